/* Every operator against JAX (reference/make_cases.py): on the CPU every variant that this machine runs, with 1, 2 and
 * 3 threads; on another device its own operators, twice. Each time the results must be the same bits.
 *
 * usage: test_ops_reference CASE_FOLDER [DEVICE]       "cpu" unless given */
#include "layers/ops.h"
#include "layers/workspace.h"
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
/* What a product gets here: enough for some algorithm of the library, and clearing more takes the test's time. */
enum { GEMM_WORKSPACE_BYTES = 1 << 16 };

/* What a device must refuse with MC_UNSUPPORTED and one line, because it cannot do it. */
static const struct {
    const char *backend, *op, *name;
} refusals[] = {
    {"cuda", "attention_fwd", "wide_head"},
    {"cuda", "attention_bwd", "wide_head"},
};

typedef struct fixture {
    const char *folder;
    mc_device dev;
    mc_stream stream;
    mc_pool *pools[MAX_THREADS]; /* on the CPU */
    int n_runs;
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

/* Device memory that the call may use, to the byte. */
static size_t workspace_bytes(const fixture *fix, const char *op, const op_args *args)
{
    size_t bytes = 0;
#define LY_OP(name)                                     \
    if (strcmp(op, #name) == 0) {                       \
        bytes = ly_workspace_bytes_##name(&args->name); \
    }
#include "layers/ops.def"
#undef LY_OP
    bytes = strcmp(op, "gemm") == 0 && bytes > GEMM_WORKSPACE_BYTES ? GEMM_WORKSPACE_BYTES : bytes;
    return fix->dev.ops->host_memory ? 0 : bytes;
}

static bool must_refuse(const char *backend, const struct op_case *row)
{
    for (size_t i = 0; i < sizeof refusals / sizeof *refusals; i++) {
        if (strcmp(refusals[i].backend, backend) == 0 && strcmp(refusals[i].op, row->op) == 0 &&
            strcmp(refusals[i].name, row->name) == 0) {
            return true;
        }
    }
    return false;
}

static void call_refused(const ly_ctx *cx, const char *op, const op_args *args)
{
    char text[512];
    mc_status st = MC_OK;
    UNIT_CAPTURE(text, st = call(cx, op, args));
    assert_int_equal(st, MC_UNSUPPORTED);
    assert_non_null(strstr(text, cx->ops->backend));
    printf("# refused, as it must be: %s", text);
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

/* The arguments with tensors in `memory`; where it is NULL they are for their shapes only. */
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
            t.data = file->bytes; /* present */
            if (memory) {
                t.data = memory->device + memory->data[f->buffer] + (size_t)f->offset * mc_dtype_bytes(t.dtype);
            }
            memcpy(base + to->offset, &t, sizeof t);
        }
    }
    if (file->n_segments) {
        const void *segments = memory ? memory->device + memory->segments : NULL;
        memcpy(base + find_field(file->op, "segments")->offset, &segments, sizeof segments);
        memcpy(base + find_field(file->op, "n_segments")->offset, &file->n_segments, sizeof(int));
    }
}

static void same_bits(const case_file *file, const case_memory *a, const case_memory *b, const char *where)
{
    for (int i = 0; i < file->n_buffers; i++) {
        size_t bytes = file->buffers[i].count * mc_dtype_bytes(file->buffers[i].dtype);
        if (memcmp(a->host + a->data[i], b->host + b->data[i], bytes) != 0) {
            fail_msg("%s: buffer %d has other bits than in the first run", where, i);
        }
    }
}

static void nothing_written(const case_file *file, const case_memory *m, const char *where)
{
    for (int i = 0; i < file->n_buffers; i++) {
        size_t bytes = file->buffers[i].count * mc_dtype_bytes(file->buffers[i].dtype);
        if (memcmp(m->host + m->data[i], file->buffers[i].before, bytes) != 0) {
            fail_msg("%s: buffer %d was written although the call failed", where, i);
        }
    }
}

static void run_job(void **state)
{
    job *j = *state;
    fixture *fix = j->fix;
    char path[512];
    snprintf(path, sizeof path, "%s/%s-%s.case", fix->folder, j->row->op, j->row->name);
    case_file file;
    case_open(path, &file);
    assert_string_equal(file.op, j->row->op);
    case_memory memory[MAX_THREADS];
    op_args args;
    fill_args(&file, NULL, &args);
    size_t workspace = workspace_bytes(fix, file.op, &args);
    for (int n = 0; n < fix->n_runs; n++) {
        char where[160];
        snprintf(where, sizeof where, "%s, %s %d", j->title, fix->pools[0] ? "threads" : "run", n + 1);
        case_memory_create(&file, &fix->dev, fix->stream, workspace, &memory[n]);
        fill_args(&file, &memory[n], &args);
        ly_ctx cx = {.ops = j->ops, .pool = fix->pools[n], .stream = fix->stream, .backend = fix->dev.impl};
        cx.workspace = workspace ? memory[n].device + memory[n].workspace : NULL;
        cx.workspace_bytes = workspace;
        if (must_refuse(j->ops->backend, j->row)) {
            call_refused(&cx, file.op, &args);
            case_memory_fetch(&memory[n]);
            nothing_written(&file, &memory[n], where);
            continue;
        }
        assert_int_equal(call(&cx, file.op, &args), MC_OK);
        case_memory_fetch(&memory[n]);
        double worst = case_check(&file, &memory[n], where);
        double *kept = &fix->worst[j->row - cases];
        *kept = worst > *kept ? worst : *kept;
        same_bits(&file, &memory[0], &memory[n], where);
    }
    for (int n = 0; n < fix->n_runs; n++) {
        case_memory_destroy(&memory[n]);
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

/* layers/op_tensors.def, from which messages are made, and op_fields.c list the same tensors. */
static void every_tensor_is_listed(void **state)
{
    static const struct {
        const char *op, *name;
        size_t offset;
    } listed[] = {
#define LY_TENSOR(op, field) {#op, #field, offsetof(ly_##op, field)},
#include "layers/op_tensors.def"
#undef LY_TENSOR
    };
    size_t n_listed = sizeof listed / sizeof *listed, n_fields = 0;
    (void)state;
    for (size_t i = 0; i < n_listed; i++) {
        const op_field *f = find_field(listed[i].op, listed[i].name);
        assert_int_equal(f->kind, FIELD_TENSOR);
        assert_int_equal(f->offset, listed[i].offset);
    }
    for (int i = 0; i < op_n_fields; i++) {
        n_fields += op_fields[i].kind == FIELD_TENSOR;
    }
    assert_int_equal(n_fields, n_listed); /* no name stands twice in either: offsets of one struct differ */
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

/* Opens the device and what its runs need; lists the tables of operators to test. Returns their number. */
static int open_backends(fixture *fix, const char *device, const ly_ops *ops_out[MAX_BACKENDS])
{
    if (mc_device_open(device, 0, &fix->dev) != MC_OK ||
        fix->dev.ops->stream_create(&fix->dev, &fix->stream) != MC_OK) {
        return 0;
    }
    if (fix->dev.ops->operators) {
        char text[300];
        fix->dev.ops->describe(&fix->dev, text, sizeof text);
        printf("# %s\n", text);
        ops_out[0] = fix->dev.ops->operators;
        fix->n_runs = 2;
        return 1;
    }
    for (int i = 0; i < MAX_THREADS; i++) {
        if (mc_pool_create(i + 1, LY_POOL_SCRATCH_BYTES, &fix->pools[i]) != MC_OK) {
            return 0;
        }
    }
    fix->n_runs = MAX_THREADS;
    return find_backends(ops_out);
}

static void close_backends(fixture *fix)
{
    for (int i = 0; i < MAX_THREADS; i++) {
        mc_pool_destroy(fix->pools[i]);
    }
    if (fix->dev.ops) {
        fix->dev.ops->stream_destroy(&fix->dev, fix->stream);
    }
    mc_device_close(&fix->dev);
}

int main(int argc, char **argv)
{
    if (argc != 2 && argc != 3) {
        fprintf(stderr, "usage: %s CASE_FOLDER [DEVICE]\n", argv[0]);
        return 2;
    }
    static fixture fix;
    static job jobs[MAX_BACKENDS * N_CASES];
    static struct CMUnitTest tests[MAX_BACKENDS * N_CASES + 2];
    const ly_ops *ops[MAX_BACKENDS];
    fix.folder = argv[1];
    int n_backends = open_backends(&fix, argc == 3 ? argv[2] : "cpu", ops), n = 0;
    if (n_backends == 0) {
        fprintf(stderr, "%s: no operators run here\n", argv[0]);
        return 1;
    }
    tests[n++] = (struct CMUnitTest){.name = "every operator has a case", .test_func = every_operator_has_a_case};
    tests[n++] = (struct CMUnitTest){.name = "every tensor is listed", .test_func = every_tensor_is_listed};
    for (int b = 0; b < n_backends; b++) {
        for (int i = 0; i < N_CASES; i++, n++) {
            job *j = &jobs[b * N_CASES + i];
            *j = (job){.fix = &fix, .row = &cases[i], .ops = ops[b]};
            snprintf(j->title, sizeof j->title, "%s %s %s", ops[b]->backend, cases[i].op, cases[i].name);
            tests[n] = (struct CMUnitTest){.name = j->title, .test_func = run_job, .initial_state = j};
        }
    }
    int failed = _cmocka_run_group_tests("ops_reference", tests, (size_t)n, NULL, NULL);
    print_worst(&fix);
    close_backends(&fix);
    return failed;
}
