/* Every operator of every CPU variant that this machine runs, against JAX (reference/make_cases.py), on 1, 2 and 3
 * threads; results must be the same bits on any number of threads.
 *
 * usage: test_ops_reference CASE_FOLDER */
#include "layers/ops.h"
#include "megac/base/alloc.h"
#include "tests/layers/case_file.h"
#include "tests/layers/op_fields.h"
#include "tests/unit.h"

typedef union op_args {
#define LY_OP(name) ly_##name name;
#include "layers/ops.def"
#undef LY_OP
} op_args;

static const struct op_case {
    const char *op, *name;
} cases[] = {
#define LY_CASE(op, name, parameters) {#op, #name},
#include "tests/layers/op_cases.def"
#undef LY_CASE
};
enum { N_CASES = sizeof cases / sizeof *cases, MAX_BACKENDS = 4, MAX_THREADS = 3 };

typedef struct fixture {
    const char *folder;
    mc_pool *pools[MAX_THREADS];
    double worst[N_CASES];
} fixture;

/* One test: one case on one backend. */
typedef struct job {
    fixture *fix;
    const struct op_case *row;
    const ly_ops *ops;
    char title[128];
} job;

static mc_status call(const ly_ctx *cx, const char *op, const op_args *args)
{
#define LY_OP(name)                            \
    if (strcmp(op, #name) == 0) {              \
        return cx->ops->name(cx, &args->name); \
    }
#include "layers/ops.def"
#undef LY_OP
    fail_msg("no operator %s", op);
    return MC_INVALID;
}

static const op_field *find_field(const char *op, const char *name)
{
    for (int i = 0; i < op_n_fields; i++) {
        if (strcmp(op_fields[i].op, op) == 0 && strcmp(op_fields[i].name, name) == 0) {
            return &op_fields[i];
        }
    }
    fail_msg("%s has no argument %s in op_fields.c", op, name);
    return NULL;
}

static void put_int(unsigned char *at, size_t bytes, long long value)
{
    if (bytes == 1) {
        *(unsigned char *)at = (unsigned char)value;
    } else if (bytes == 4) {
        *(int32_t *)(void *)at = (int32_t)value;
    } else {
        *(int64_t *)(void *)at = value;
    }
}

static void fill_args(const case_file *file, const case_memory *memory, op_args *args)
{
    memset(args, 0, sizeof *args);
    unsigned char *base = (unsigned char *)args;
    for (int i = 0; i < file->n_fields; i++) {
        const case_field *f = &file->fields[i];
        const op_field *to = find_field(file->op, f->name);
        assert_int_equal(to->kind, f->kind == CASE_INT     ? FIELD_INT
                                   : f->kind == CASE_FLOAT ? FIELD_FLOAT
                                                           : FIELD_TENSOR);
        if (f->kind == CASE_INT) {
            put_int(base + to->offset, to->bytes, f->i);
        } else if (f->kind == CASE_FLOAT) {
            memcpy(base + to->offset, &f->f, sizeof f->f);
        } else {
            mc_tensor t = f->tensor;
            t.dtype = file->buffers[f->buffer].dtype;
            t.data = memory->data[f->buffer] + (size_t)f->offset * mc_dtype_bytes(t.dtype);
            memcpy(base + to->offset, &t, sizeof t);
        }
    }
    if (file->n_segments) {
        const ly_segment *segments = file->segments;
        memcpy(base + find_field(file->op, "segments")->offset, &segments, sizeof segments);
        memcpy(base + find_field(file->op, "n_segments")->offset, &file->n_segments, sizeof(int));
    }
}

static void same_bits(const case_file *file, const case_memory *a, const case_memory *b, const char *where)
{
    for (int i = 0; i < file->n_buffers; i++) {
        size_t bytes = file->buffers[i].count * mc_dtype_bytes(file->buffers[i].dtype);
        if (memcmp(a->data[i], b->data[i], bytes) != 0) {
            fail_msg("%s: buffer %d has other bits than with one thread", where, i);
        }
    }
}

static void run_job(void **state)
{
    job *j = *state;
    char path[512];
    snprintf(path, sizeof path, "%s/%s-%s.case", j->fix->folder, j->row->op, j->row->name);
    case_file file;
    case_open(path, &file);
    assert_string_equal(file.op, j->row->op);
    case_memory memory[MAX_THREADS];
    for (int n = 0; n < MAX_THREADS; n++) {
        char where[160];
        snprintf(where, sizeof where, "%s, %d threads", j->title, n + 1);
        case_memory_create(&file, &memory[n]);
        op_args args;
        fill_args(&file, &memory[n], &args);
        ly_ctx cx = {.ops = j->ops, .pool = j->fix->pools[n]};
        assert_int_equal(call(&cx, file.op, &args), MC_OK);
        double worst = case_check(&file, &memory[n], where);
        double *kept = &j->fix->worst[j->row - cases];
        *kept = worst > *kept ? worst : *kept;
        same_bits(&file, &memory[0], &memory[n], where);
    }
    for (int n = 0; n < MAX_THREADS; n++) {
        case_memory_destroy(&file, &memory[n]);
    }
    case_close(&file);
}

/* An operator without a case would be tested by nobody. */
static void every_operator_has_a_case(void **state)
{
    (void)state;
#define LY_OP(op_name)                                                                 \
    {                                                                                  \
        int found = 0;                                                                 \
        for (int i = 0; i < N_CASES; i++) {                                            \
            found += strcmp(cases[i].op, #op_name) == 0;                               \
        }                                                                              \
        if (!found) {                                                                  \
            fail_msg("operator " #op_name " has no row in tests/layers/op_cases.def"); \
        }                                                                              \
    }
#include "layers/ops.def"
#undef LY_OP
}

/* The variants that this processor runs, into ops_out. */
static int find_backends(const ly_ops *ops_out[MAX_BACKENDS])
{
    static const char *names[] = {"cpu-v2", "cpu-v3", "cpu-v4", "cpu-base"};
    int n = 0;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char text[512];
        mc_status st = MC_OK;
        UNIT_CAPTURE(text, st = ly_ops_get(names[i], &ops_out[n]));
        if (st == MC_OK) {
            n++;
        } else {
            printf("# not run: %s (this processor or build has no such variant)\n", names[i]);
        }
    }
    return n;
}

static void print_worst(const fixture *fix)
{
    for (int i = 0; i < N_CASES; i++) {
        printf("# %-16s %-28s largest error %.3f of its tolerance\n", cases[i].op, cases[i].name, fix->worst[i]);
    }
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: %s CASE_FOLDER\n", argv[0]);
        return 2;
    }
    static fixture fix;
    static job jobs[MAX_BACKENDS * N_CASES];
    static struct CMUnitTest tests[MAX_BACKENDS * N_CASES + 1];
    const ly_ops *ops[MAX_BACKENDS];
    int n_backends = find_backends(ops), n = 0;
    if (n_backends == 0) {
        fprintf(stderr, "%s: no CPU variant runs here\n", argv[0]);
        return 1;
    }
    fix.folder = argv[1];
    for (int i = 0; i < MAX_THREADS; i++) {
        if (mc_pool_create(i + 1, LY_POOL_SCRATCH_BYTES, &fix.pools[i]) != MC_OK) {
            return 1;
        }
    }
    tests[n++] = (struct CMUnitTest){.name = "every operator has a case", .test_func = every_operator_has_a_case};
    for (int b = 0; b < n_backends; b++) {
        for (int i = 0; i < N_CASES; i++, n++) {
            job *j = &jobs[n - 1];
            *j = (job){.fix = &fix, .row = &cases[i], .ops = ops[b]};
            snprintf(j->title, sizeof j->title, "%s %s %s", ops[b]->backend, cases[i].op, cases[i].name);
            tests[n] = (struct CMUnitTest){.name = j->title, .test_func = run_job, .initial_state = j};
        }
    }
    int failed = _cmocka_run_group_tests("ops_reference", tests, (size_t)n, NULL, NULL);
    print_worst(&fix);
    for (int i = 0; i < MAX_THREADS; i++) {
        mc_pool_destroy(fix.pools[i]);
    }
    return failed;
}
