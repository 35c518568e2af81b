/* Bytes that every kernel of ours moves, against the fewest that could do: instrumented kernels run the operators'
 * cases, each access is counted by the buffer that it falls in, and each byte of a buffer need be read once and written
 * once at most. So many passes a buffer takes is what its operator is allowed, or the test fails.
 *
 * Tensors that come from caches do not count (`cached` below: gains, biases, tables), nor those of less than half as
 * many elements as the largest: no count of accesses says how often they come from memory.
 *
 * usage: traffic CASE_FOLDER; prints a line for each operator and type in Markdown. */
#include "tests/cuda/traffic.h"

#include <stdint.h>

#include "layers/cuda/kernels.h"
#include "layers/workspace.h"
#include "tests/cuda/kernel_case.h"
#include "tests/cuda/on_cpu/control.h"
#include "tests/unit.h"

enum { READ, WRITTEN, N_WAYS };

/* What a launch did to a buffer: all bytes of its accesses, and those that were touched at all. */
typedef struct traffic {
    const unsigned char *begin;
    size_t bytes, moved[N_WAYS];
    unsigned char *touched; /* 1 << way */
} traffic;

static struct {
    traffic buffers[CASE_MAX_BUFFERS + 1]; /* the last one: workspace */
    int n;
    bool counts;
} T;

void traffic_access(const void *ptr, size_t bytes, bool writes)
{
    const unsigned char *p = ptr;
    for (int i = 0; T.counts && i < T.n; i++) {
        traffic *t = &T.buffers[i];
        if (p >= t->begin && p < t->begin + t->bytes) {
            t->moved[writes] += bytes;
            for (size_t b = (size_t)(p - t->begin); b < (size_t)(p - t->begin) + bytes && b < t->bytes; b++) {
                t->touched[b] |= (unsigned char)(1 << writes);
            }
        }
    }
}

static const struct op_case {
    const char *op, *name;
} cases[] = {
#define LY_CASE(op, name, parameters) {#op, #name},
#include "tests/layers/op_cases.def"
#undef LY_CASE
};

static const char *const cached[] = {"gamma", "beta", "y_bias",    "bias",  "dgamma", "dbeta",   "dy_bias", "table",
                                     "cos",   "sin",  "positions", "stats", "tokens", "targets", "losses"};

/* Passes over its buffers that an operator may take, for each byte that it must move, and why more than one; of its
 * cases "wide*" with rows that no block holds in its registers, and of the others. */
static const struct {
    const char *op;
    double passes, wide;
    const char *why;
} operators[] = {
    {"act_bwd", 1, 1, ""},
    {"act_fwd", 1, 1, ""},
    {"adamw", 1, 1, ""},
    {"add", 1, 1, ""},
    {"attention_bwd", 3, 3, "k, v for every tile of queries, q, dout for every tile of keys: from L2"},
    {"attention_fwd", 3.4, 3.4, "k, v for every tile of queries: from L2"},
    {"bias_grad", 1, 1, ""},
    {"cast", 1, 1, ""},
    {"embed_finish_bwd", 1, 1, ""},
    {"embed_finish_fwd", 1, 1, ""},
    {"embedding_bwd", 1, 1, ""},
    {"embedding_fwd", 1, 1, ""},
    {"fill", 1, 1, ""},
    {"head_norm_bwd", 1, 1.7, "a wide row is read once more, for its sums: from L2"},
    {"head_norm_fwd", 1, 1.5, "a wide row is read once more, for its sums: from L2"},
    {"norm_bwd", 1, 1.5, "a wide row is read once more, for its sums: from L2"},
    {"norm_fwd", 1, 1.5, "a wide row is read once more, for its sums: from L2"},
    {"rope", 1, 1, ""},
    {"sgd", 1, 1, ""},
    {"sq_norm", 1, 1, ""},
    {"xent_grad", 1.15, 1, "a row's target is read once more: short rows"},
    {"xent_stats", 1.05, 1.05, "a row's target is read once more: short rows"},
};
enum { N_CASES = sizeof cases / sizeof *cases, N_OPERATORS = sizeof operators / sizeof *operators };
static const mc_dtype types[] = {MC_F32, MC_BF16};
enum { N_TYPES = sizeof types / sizeof *types };

/* The case that took the most passes, of an operator's cases of one type, wide or not. */
typedef struct worst {
    const char *name;
    double passes, must, moved; /* bytes */
    int n_cases;
} worst;

typedef struct job {
    const char *folder;
    mc_pool *pool;
    worst found[N_OPERATORS][N_TYPES][2];
} job;

static int launch(const ly_ctx *cx, const char *op, const kernel_args *args)
{
#define LY_OP(name)                          \
    if (strcmp(op, #name) == 0) {            \
        return ly_k_##name(cx, &args->name); \
    }
#define ly_k_gemm(cx, args) (-1) /* a library's */
#include "layers/ops.def"
#undef LY_OP
    return -1;
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

/* Runs the case once and counts. */
static void count(const kernel_case *kc, kernel_memory *memory)
{
    kernel_args args;
    kernel_memory_create(kc, 0, 0, memory);
    kernel_fill_args(kc, memory, &args);
    size_t workspace = workspace_bytes(kc->file.op, &args);
    kernel_memory_destroy(memory);
    kernel_memory_create(kc, 0, workspace, memory);
    kernel_fill_args(kc, memory, &args);
    ly_ctx cx = {.workspace = kernel_workspace(memory), .workspace_bytes = workspace};
    T.n = kc->file.n_buffers;
    for (int i = 0; i < T.n; i++) {
        T.buffers[i] = (traffic){.begin = memory->data[i], .bytes = memory->bytes[i]};
        T.buffers[i].touched = calloc(memory->bytes[i] + 1, 1);
        assert_non_null(T.buffers[i].touched);
    }
    ly_on_cpu_reset();
    T.counts = true;
    int error = launch(&cx, kc->file.op, &args);
    T.counts = false;
    if (error || ly_on_cpu_error()[0]) {
        fail_msg("%s: error %d: %s", kc->file.op, error, ly_on_cpu_error());
    }
}

/* Whether a buffer holds a tensor that counts. */
static bool is_streamed(const kernel_case *kc, int buffer)
{
    size_t most = 0;
    for (int i = 0; i < kc->file.n_buffers; i++) {
        most = kc->file.buffers[i].count > most ? kc->file.buffers[i].count : most;
    }
    bool streamed = 2 * kc->file.buffers[buffer].count >= most;
    for (int f = 0; f < kc->file.n_fields; f++) {
        const case_field *field = &kc->file.fields[f];
        for (size_t k = 0; k < sizeof cached / sizeof *cached && field->kind == CASE_TENSOR; k++) {
            streamed = streamed && !(field->buffer == buffer && strcmp(field->name, cached[k]) == 0);
        }
    }
    return streamed;
}

static void judge(const kernel_case *kc, const char *name, worst *w)
{
    size_t must = 0, moved = 0;
    for (int i = 0; i < T.n; i++) {
        const traffic *t = &T.buffers[i];
        for (size_t b = 0; is_streamed(kc, i) && b < t->bytes; b++) {
            must += (size_t)(t->touched[b] >> READ & 1) + (size_t)(t->touched[b] >> WRITTEN & 1);
        }
        moved += is_streamed(kc, i) ? t->moved[READ] + t->moved[WRITTEN] : 0;
        free(t->touched);
    }
    double passes = must ? (double)moved / (double)must : 0;
    w->n_cases++;
    if (passes > w->passes) {
        *w = (worst){name, passes, (double)must, (double)moved, w->n_cases};
    }
}

/* A line of the table; returns whether the operator moves more than it may. */
static bool show(int o, mc_dtype type, const worst *w, bool wide)
{
    double may = wide ? operators[o].wide : operators[o].passes;
    printf("| %s%s | %s | %d | %.2f | %.2f | %s: %.0f of %.0f | %s |\n", operators[o].op, wide ? ", wide rows" : "",
           mc_dtype_name(type), w->n_cases, w->passes, may, w->name, w->moved, w->must,
           may > 1 ? operators[o].why : "");
    return w->passes > may;
}

static void no_kernel_moves_more_than_it_may(void **state)
{
    job *j = *state;
    int beyond = 0;
    for (int c = 0; c < N_CASES; c++) {
        for (int o = 0; o < N_OPERATORS; o++) {
            for (int t = 0; strcmp(cases[c].op, operators[o].op) == 0 && t < N_TYPES; t++) {
                kernel_case kc;
                kernel_memory memory;
                char path[512];
                snprintf(path, sizeof path, "%s/%s-%s.case", j->folder, cases[c].op, cases[c].name);
                if (strcmp(cases[c].name, "wide_head") == 0 || !kernel_case_open(path, types[t], j->pool, &kc)) {
                    continue;
                }
                count(&kc, &memory);
                judge(&kc, cases[c].name, &j->found[o][t][strncmp(cases[c].name, "wide", 4) == 0]);
                kernel_memory_destroy(&memory);
                kernel_case_close(&kc);
            }
        }
    }
    printf("| operator | type | cases | passes | may | worst case, bytes moved of those that must | why |\n"
           "|---|---|---|---|---|---|---|\n");
    for (int o = 0; o < N_OPERATORS; o++) {
        for (int t = 0; t < N_TYPES * 2; t++) {
            const worst *w = &j->found[o][t / 2][t % 2];
            beyond += w->n_cases > 0 && show(o, types[t / 2], w, t % 2);
        }
        assert_true(j->found[o][0][0].n_cases > 0);
    }
    assert_int_equal(beyond, 0);
}

int main(int argc, char **argv)
{
    static job j;
    if (argc != 2) {
        fprintf(stderr, "usage: %s CASE_FOLDER\n", argv[0]);
        return 2;
    }
    j.folder = argv[1];
    if (mc_pool_create(1, LY_POOL_SCRATCH_BYTES, &j.pool) != MC_OK) {
        return 1;
    }
    const struct CMUnitTest tests[] = {cmocka_unit_test_prestate(no_kernel_moves_more_than_it_may, &j)};
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    mc_pool_destroy(j.pool);
    return failed;
}
