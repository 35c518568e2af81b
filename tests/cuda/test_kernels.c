/* Every kernel that is an operator, launched on host memory: all cases of tests/layers/op_cases.def in f32, bf16 and
 * f16, with threads and blocks in several orders (the same bits in each) and with tensors that do not begin on a
 * 16-byte boundary. With kernels under ThreadSanitizer (LY_ON_CPU_TSAN) races are looked for instead.
 *
 * usage: test_kernels CASE_FOLDER [PATTERN], with PATTERN as in "norm_fwd layernorm*" or "* bf16" */
#include <fnmatch.h>

#include "layers/cuda/kernels.h"
#include "layers/workspace.h"
#include "tests/cuda/kernel_case.h"
#include "tests/cuda/on_cpu/control.h"
#include "tests/cuda/races.h"
#include "tests/unit.h"

/* Weak: a kernel that is missing is named by a test, not by the linker. */
#define LY_OP(name) int ly_k_##name(const ly_ctx *cx, const ly_##name *a) __attribute__((weak));
#include "layers/ops.def"
#undef LY_OP

static const struct op_case {
    const char *op, *name;
} cases[] = {
#define LY_CASE(op, name, parameters) {#op, #name},
#include "tests/layers/op_cases.def"
#undef LY_CASE
};

static const mc_dtype types[] = {MC_F32, MC_BF16, MC_F16};
enum { N_CASES = sizeof cases / sizeof *cases, N_TYPES = sizeof types / sizeof *types };

#ifdef LY_ON_CPU_TSAN
/* The order changes what runs, not what is ordered: one suffices. */
static const struct {
    ly_on_cpu_order order;
    unsigned seed;
    int shift;
} runs[] = {{LY_ON_CPU_FORWARD, 0, 0}};
#else
static const struct {
    ly_on_cpu_order order;
    unsigned seed;
    int shift; /* elements from an aligned address; other sums are allowed for other alignments */
} runs[] = {
    {LY_ON_CPU_FORWARD, 0, 0}, {LY_ON_CPU_REVERSE, 0, 0}, {LY_ON_CPU_RANDOM, 1, 0},
    {LY_ON_CPU_RANDOM, 2, 0},  {LY_ON_CPU_FORWARD, 0, 1}, {LY_ON_CPU_REVERSE, 0, 1},
};
#endif
enum { N_RUNS = sizeof runs / sizeof *runs };

/* What a launcher refuses, with an error and no launch: head sizes beyond 256. */
static const struct op_case refused[] = {{"attention_fwd", "wide_head"}, {"attention_bwd", "wide_head"}};

typedef struct job {
    const char *folder;
    const struct op_case *row;
    mc_dtype type;
    mc_pool *pool;
    double worst;
    bool ran;
    char title[96];
} job;

static int launch(const ly_ctx *cx, const char *op, const kernel_args *args)
{
#define LY_OP(name)                          \
    if (strcmp(op, #name) == 0) {            \
        return ly_k_##name(cx, &args->name); \
    }
#include "layers/ops.def"
#undef LY_OP
    return -1;
}

static bool has_kernel(const char *op)
{
#define LY_OP(name)                 \
    if (strcmp(op, #name) == 0) {   \
        return ly_k_##name != NULL; \
    }
#include "layers/ops.def"
#undef LY_OP
    return false;
}

static size_t workspace_bytes(const char *op, const kernel_args *args)
{
#define LY_OP(name)                                    \
    if (strcmp(op, #name) == 0) {                      \
        return ly_workspace_bytes_##name(&args->name); \
    }
#include "layers/ops.def"
#undef LY_OP
    return 0;
}

static bool must_refuse(const struct op_case *row)
{
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        if (strcmp(refused[i].op, row->op) == 0 && strcmp(refused[i].name, row->name) == 0) {
            return true;
        }
    }
    return false;
}

/* Launches once in `memory`, which is made here. */
static void run(const kernel_case *kc, int r, const char *where, kernel_memory *memory)
{
    kernel_args args;
    kernel_memory_create(kc, runs[r].shift, 0, memory);
    kernel_fill_args(kc, memory, &args);
    size_t workspace = workspace_bytes(kc->file.op, &args);
    kernel_memory_destroy(memory);
    kernel_memory_create(kc, runs[r].shift, workspace, memory);
    kernel_fill_args(kc, memory, &args);
    ly_ctx cx = {.workspace = kernel_workspace(memory), .workspace_bytes = workspace};
    ly_on_cpu_reset();
    ly_on_cpu_set_order(runs[r].order, runs[r].seed);
    races_reset(0);
    int error = launch(&cx, kc->file.op, &args);
    if (error || ly_on_cpu_error()[0]) {
        fail_msg("%s: error %d: %s", where, error, ly_on_cpu_error());
    }
    if (ly_on_cpu_n_launches() == 0) {
        fail_msg("%s: nothing was launched", where);
    }
    if (races_seen()) {
        fail_msg("%s: %d races, the first in %s", where, races_seen(), races_first());
    }
}

static void kernel_is_right(void **state)
{
    static const char *const order_names[] = {"forward", "reverse", "random"};
    job *j = *state;
    kernel_case kc;
    kernel_memory memory[N_RUNS];
    char path[512];
    if (!has_kernel(j->row->op)) {
        fail_msg("operator %s has no kernel", j->row->op);
    }
    snprintf(path, sizeof path, "%s/%s-%s.case", j->folder, j->row->op, j->row->name);
    if (!kernel_case_open(path, j->type, j->pool, &kc)) {
        skip();
    }
    assert_string_equal(kc.file.op, j->row->op);
    for (int r = 0; r < N_RUNS; r++) {
        char where[192];
        snprintf(where, sizeof where, "%s, order %s %u, shift %d", j->title, order_names[runs[r].order], runs[r].seed,
                 runs[r].shift);
        run(&kc, r, where, &memory[r]);
        double worst = kernel_check(&kc, &memory[r], where);
        j->worst = worst > j->worst ? worst : j->worst;
        int first = r; /* of the same alignment */
        while (first > 0 && runs[first - 1].shift == runs[r].shift) {
            first--;
        }
        kernel_same_bits(&kc, &memory[first], &memory[r], where);
    }
    for (int r = 0; r < N_RUNS; r++) {
        kernel_memory_destroy(&memory[r]);
    }
    kernel_case_close(&kc);
    j->ran = true;
}

static void every_operator_has_a_kernel(void **state)
{
    (void)state;
    enum { LIBRARY, ONCE, SPREAD };
    int missing = 0;
#define KERNEL_OP(op, rounding)                                                                \
    if (rounding != LIBRARY && !ly_k_##op) {                                                   \
        print_error("operator " #op " has no launcher ly_k_" #op " in libmegac_kernels.so\n"); \
        missing++;                                                                             \
    }
#include "tests/cuda/kernel_ops.def"
    assert_int_equal(missing, 0);
}

static bool has_library(const char *op)
{
    enum { LIBRARY, ONCE, SPREAD };
#define KERNEL_OP(name, rounding)   \
    if (strcmp(op, #name) == 0) {   \
        return rounding == LIBRARY; \
    }
#include "tests/cuda/kernel_ops.def"
    return false;
}

int main(int argc, char **argv)
{
    if (argc != 2 && argc != 3) {
        fprintf(stderr, "usage: %s CASE_FOLDER [PATTERN]\n", argv[0]);
        return 2;
    }
    static job jobs[N_CASES * N_TYPES];
    static struct CMUnitTest tests[N_CASES * N_TYPES + 1];
    mc_pool *pool = NULL;
    if (mc_pool_create(1, LY_POOL_SCRATCH_BYTES, &pool) != MC_OK) {
        return 1;
    }
    int n = 0, n_tests = 0;
    tests[n_tests++] = (struct CMUnitTest)cmocka_unit_test(every_operator_has_a_kernel);
    for (int c = 0; c < N_CASES; c++) {
        for (int t = 0; t < N_TYPES; t++) {
            job *j = &jobs[n];
            *j = (job){.folder = argv[1], .row = &cases[c], .type = types[t], .pool = pool};
            snprintf(j->title, sizeof j->title, "%s %s %s", cases[c].op, cases[c].name, mc_dtype_name(types[t]));
            if (has_library(j->row->op) || must_refuse(j->row) || (argc == 3 && fnmatch(argv[2], j->title, 0) != 0)) {
                continue;
            }
            tests[n_tests++] = (struct CMUnitTest){.name = j->title, .test_func = kernel_is_right, .initial_state = j};
            n++;
        }
    }
    int failed = _cmocka_run_group_tests("kernels", tests, (size_t)n_tests, NULL, NULL);
    int ran = 0;
    for (int i = 0; i < n; i++) {
        ran += jobs[i].ran;
        if (jobs[i].ran) {
            printf("# %-56s largest error %.3f of its tolerance\n", jobs[i].title, jobs[i].worst);
        }
    }
    mc_pool_destroy(pool);
    if (ran == 0) {
        fprintf(stderr, "%s: no kernel was run\n", argv[0]);
    }
    return failed || ran == 0;
}
