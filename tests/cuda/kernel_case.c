#include "tests/cuda/kernel_case.h"

#include <math.h>

#include "megac/base/alloc.h"
#include "megac/base/half.h"
#include "tests/layers/op_fields.h"
#include "tests/unit.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define GUARD_CLOSE(p, n) ASAN_POISON_MEMORY_REGION(p, n)
#define GUARD_OPEN(p, n) ASAN_UNPOISON_MEMORY_REGION(p, n)
#else
#define GUARD_CLOSE(p, n) (void)(p)
#define GUARD_OPEN(p, n) (void)(p)
#endif

/* The guard's bytes are a huge float of any type, so that reading them shows. */
enum { GUARD_BYTES = 256, GUARD_BYTE = 0xfb, MAX_ERRORS = 5 };
typedef enum { LIBRARY, ONCE, SPREAD } rounding;

static rounding rounding_of(const char *op)
{
#define KERNEL_OP(name, how)      \
    if (strcmp(op, #name) == 0) { \
        return how;               \
    }
#include "tests/cuda/kernel_ops.def"
    fail_msg("operator %s has no row in tests/cuda/kernel_ops.def", op);
    return LIBRARY;
}

/* Whether the tensor may be of this 16-bit type. */
static bool has_type(const char *op, const char *field, mc_dtype type)
{
#define KERNEL_TYPED(o, f)                               \
    if (strcmp(op, #o) == 0 && strcmp(field, #f) == 0) { \
        return true;                                     \
    }
#define KERNEL_BF16(o, f)                                \
    if (strcmp(op, #o) == 0 && strcmp(field, #f) == 0) { \
        return type == MC_BF16;                          \
    }
#include "tests/cuda/kernel_ops.def"
    return false;
}

static void *alloc_or_fail(size_t bytes)
{
    void *p = NULL;
    assert_int_equal(mc_alloc(1, bytes + 1, "kernel case", &p), MC_OK);
    return p;
}

/* --- elements --- */

static double get(mc_dtype dtype, const void *data, size_t i)
{
    switch (dtype) {
    case MC_F32:
        return ((const float *)data)[i];
    case MC_F64:
        return ((const double *)data)[i];
    case MC_BF16:
        return mc_f32_from_bf16(((const uint16_t *)data)[i]);
    case MC_F16:
        return mc_f32_from_f16(((const uint16_t *)data)[i]);
    default:
        return ((const int32_t *)data)[i];
    }
}

/* Copies what a buffer holds before the call, rounded to its type now. */
static void put_before(const kernel_case *kc, int b, mc_dtype dtype, void *to)
{
    const case_buffer *from = &kc->file.buffers[b];
    if (dtype == from->dtype) {
        memcpy(to, from->before, from->count * mc_dtype_bytes(dtype));
        return;
    }
    for (size_t i = 0; i < from->count; i++) {
        float x = ((const float *)(const void *)from->before)[i];
        ((uint16_t *)to)[i] = dtype == MC_BF16 ? mc_bf16_from_f32(x) : mc_f16_from_f32(x);
    }
}

static float rounded(mc_dtype type, float x)
{
    return type == MC_BF16 ? mc_f32_from_bf16(mc_bf16_from_f32(x)) : mc_f32_from_f16(mc_f16_from_f32(x));
}

/* --- arguments --- */

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
    int32_t i32 = (int32_t)value;
    int64_t i64 = value;
    unsigned char u8 = (unsigned char)value;
    memcpy(at, bytes == 1 ? (const void *)&u8 : bytes == 4 ? (const void *)&i32 : (const void *)&i64, bytes);
}

static void fill_args(const case_file *file, const mc_dtype *dtypes, unsigned char *const *data, kernel_args *args_out)
{
    memset(args_out, 0, sizeof *args_out);
    unsigned char *base = (unsigned char *)args_out;
    for (int i = 0; i < file->n_fields; i++) {
        const case_field *f = &file->fields[i];
        const op_field *to = find_field(file->op, f->name);
        if (f->kind == CASE_INT) {
            put_int(base + to->offset, to->bytes, f->i);
        } else if (f->kind == CASE_FLOAT) {
            memcpy(base + to->offset, &f->f, sizeof f->f);
        } else {
            mc_tensor t = f->tensor;
            t.dtype = dtypes[f->buffer];
            t.data = data[f->buffer] + (size_t)f->offset * mc_dtype_bytes(t.dtype);
            memcpy(base + to->offset, &t, sizeof t);
        }
    }
    if (file->n_segments) {
        const ly_segment *segments = file->segments;
        memcpy(base + find_field(file->op, "segments")->offset, &segments, sizeof segments);
        memcpy(base + find_field(file->op, "n_segments")->offset, &file->n_segments, sizeof(int));
    }
}

void kernel_fill_args(const kernel_case *kc, const kernel_memory *memory, kernel_args *args_out)
{
    fill_args(&kc->file, kc->dtypes, memory->data, args_out);
}

/* --- what is wanted --- */

static void call_cpu(const char *op, mc_pool *pool, const kernel_args *args)
{
    const ly_ops *ops = NULL;
    mc_status st = MC_INVALID;
    assert_int_equal(ly_ops_get("cpu", &ops), MC_OK);
    ly_ctx cx = {.ops = ops, .pool = pool};
#define LY_OP(name)                       \
    if (strcmp(op, #name) == 0) {         \
        st = ops->name(&cx, &args->name); \
    }
#include "layers/ops.def"
#undef LY_OP
    assert_int_equal(st, MC_OK);
}

/* norm_fwd rounds h before the norm reads it: the norm again, of the rounded h alone. */
static void norm_of_rounded(const kernel_case *kc, mc_pool *pool, const kernel_args *args)
{
    ly_norm_fwd again = args->norm_fwd;
    if (!mc_tensor_present(again.y) || !mc_tensor_present(again.out)) {
        return;
    }
    int64_t n = again.h.dims[0] * again.h.dims[1];
    float *h = alloc_or_fail((size_t)n * sizeof *h);
    for (int64_t i = 0; i < n; i++) {
        h[i] = rounded(kc->type, ((const float *)again.h.data)[i]);
    }
    again.x = again.h;
    again.x.data = h;
    again.y = again.y_bias = again.h = (mc_tensor){0};
    again.dropout.p = 0;
    kernel_args one = {.norm_fwd = again};
    call_cpu("norm_fwd", pool, &one);
    mc_free(h);
}

static void run_reference(kernel_case *kc, mc_pool *pool)
{
    const case_file *file = &kc->file;
    unsigned char *data[CASE_MAX_BUFFERS];
    mc_dtype plain[CASE_MAX_BUFFERS];
    for (int b = 0; b < file->n_buffers; b++) {
        const case_buffer *from = &file->buffers[b];
        plain[b] = from->dtype;
        data[b] = alloc_or_fail(from->count * mc_dtype_bytes(from->dtype));
        memcpy(data[b], from->before, from->count * mc_dtype_bytes(from->dtype));
        for (size_t i = 0; i < from->count && kc->dtypes[b] != from->dtype; i++) {
            float *x = (float *)(void *)data[b] + i;
            *x = rounded(kc->dtypes[b], *x);
        }
    }
    kernel_args args;
    fill_args(file, plain, data, &args);
    call_cpu(file->op, pool, &args);
    if (strcmp(file->op, "norm_fwd") == 0) {
        norm_of_rounded(kc, pool, &args);
    }
    for (int b = 0; b < file->n_buffers; b++) {
        size_t n = file->buffers[b].count;
        kc->want[b] = alloc_or_fail(n * sizeof(double));
        for (size_t i = 0; i < n; i++) {
            kc->want[b][i] = get(plain[b], data[b], i);
        }
        mc_free(data[b]);
    }
}

bool kernel_case_open(const char *path, mc_dtype type, mc_pool *pool, kernel_case *kc_out)
{
    kernel_case *kc = kc_out;
    memset(kc, 0, sizeof *kc);
    case_open(path, &kc->file);
    kc->type = type;
    kc->spread = rounding_of(kc->file.op) == SPREAD ? 4 : 0;
    int n_typed = 0;
    for (int b = 0; b < kc->file.n_buffers; b++) {
        kc->dtypes[b] = kc->file.buffers[b].dtype;
    }
    for (int i = 0; i < kc->file.n_fields; i++) {
        const case_field *f = &kc->file.fields[i];
        if (type != MC_F32 && f->kind == CASE_TENSOR && has_type(kc->file.op, f->name, type)) {
            assert_int_equal(kc->file.buffers[f->buffer].dtype, MC_F32);
            kc->dtypes[f->buffer] = type;
            n_typed++;
        }
    }
    if (type != MC_F32 && n_typed == 0) {
        case_close(&kc->file);
        return false;
    }
    if (type != MC_F32) {
        run_reference(kc, pool);
    }
    return true;
}

void kernel_case_close(kernel_case *kc)
{
    for (int b = 0; b < kc->file.n_buffers; b++) {
        mc_free(kc->want[b]);
    }
    case_close(&kc->file);
}

/* --- memory --- */

static void add_block(kernel_memory *m, size_t bytes, size_t shift_bytes)
{
    unsigned char *p = alloc_or_fail(bytes + shift_bytes + 3 * GUARD_BYTES);
    m->blocks[m->n] = p;
    p += (GUARD_BYTES - (uintptr_t)p % GUARD_BYTES) % GUARD_BYTES + GUARD_BYTES + shift_bytes;
    m->data[m->n] = p;
    m->bytes[m->n++] = bytes;
    memset(p - GUARD_BYTES, GUARD_BYTE, GUARD_BYTES);
    memset(p + bytes, GUARD_BYTE, GUARD_BYTES);
    GUARD_CLOSE(p - GUARD_BYTES, GUARD_BYTES);
    GUARD_CLOSE(p + bytes, GUARD_BYTES);
}

void kernel_memory_create(const kernel_case *kc, int shift, size_t workspace_bytes, kernel_memory *memory_out)
{
    memset(memory_out, 0, sizeof *memory_out);
    for (int b = 0; b < kc->file.n_buffers; b++) {
        size_t size = mc_dtype_bytes(kc->dtypes[b]);
        add_block(memory_out, kc->file.buffers[b].count * size, (size_t)shift * size);
        put_before(kc, b, kc->dtypes[b], memory_out->data[b]);
    }
    add_block(memory_out, workspace_bytes, 0);
    memset(kernel_workspace(memory_out), 0xff, workspace_bytes);
}

void kernel_memory_destroy(kernel_memory *memory)
{
    for (int i = 0; i < memory->n; i++) {
        GUARD_OPEN(memory->data[i] - GUARD_BYTES, memory->bytes[i] + 2 * GUARD_BYTES);
        mc_free(memory->blocks[i]);
    }
}

void *kernel_workspace(const kernel_memory *memory)
{
    return memory->data[memory->n - 1];
}

/* --- checks --- */

static int check_guards(kernel_memory *m, const char *where)
{
    int errors = 0;
    for (int i = 0; i < m->n; i++) {
        const unsigned char *before = m->data[i] - GUARD_BYTES, *after = m->data[i] + m->bytes[i];
        size_t touched = 0;
        GUARD_OPEN(before, GUARD_BYTES);
        GUARD_OPEN(after, GUARD_BYTES);
        for (int k = 0; k < GUARD_BYTES; k++) {
            touched += (before[k] != GUARD_BYTE) + (after[k] != GUARD_BYTE);
        }
        if (touched) {
            print_error("%s: %zu bytes around buffer %d%s were written\n", where, touched, i,
                        i == m->n - 1 ? " (the workspace)" : "");
            errors++;
        }
    }
    return errors;
}

/* How far a result may be from what is wanted. */
static double tolerance(const kernel_case *kc, int b, double want, double from_file, double largest)
{
    if (!kc->want[b]) {
        return from_file;
    }
    /* Both sides carry the f32 error that the case allows. */
    double tol = 2 * from_file;
    if (kc->dtypes[b] != kc->file.buffers[b].dtype) {
        double unit = kc->type == MC_BF16 ? 0x1p-8 : 0x1p-11, smallest = kc->type == MC_BF16 ? 0 : 0x1p-25;
        tol += unit * (fabs(want) * 1.001 + kc->spread * largest) + smallest;
    }
    return tol;
}

static double largest_of(const case_buffer *b, const double *want)
{
    double largest = 0;
    for (size_t i = 0; i < b->count; i++) {
        largest = b->tol[i] > 0 && fabs(want[i]) > largest ? fabs(want[i]) : largest;
    }
    return largest;
}

static int check_buffer(const kernel_case *kc, int b, const kernel_memory *memory, const char *where, double *worst)
{
    const case_buffer *buffer = &kc->file.buffers[b];
    const double *wants = kc->want[b] ? kc->want[b] : buffer->want;
    size_t size = mc_dtype_bytes(kc->dtypes[b]);
    unsigned char *before = alloc_or_fail(buffer->count * size);
    put_before(kc, b, kc->dtypes[b], before);
    double largest = largest_of(buffer, wants);
    int errors = 0;
    for (size_t i = 0; i < buffer->count; i++) {
        double got = get(kc->dtypes[b], memory->data[b], i), error = fabs(got - wants[i]);
        bool kept = buffer->tol[i] == 0, right;
        double tol = kept ? 0 : tolerance(kc, b, wants[i], buffer->tol[i], largest);
        if (kept) {
            right = memcmp(memory->data[b] + i * size, before + i * size, size) == 0;
        } else {
            /* So written that a NaN is wrong; the second form is for wanted infinities. */
            right = error <= tol || got == wants[i] || isinf(tol);
            *worst = isfinite(error / tol) && error / tol > *worst ? error / tol : *worst;
        }
        if (!right && errors++ < MAX_ERRORS) {
            print_error("%s: buffer %d element %zu is %.9g, want %.9g within %.3g%s\n", where, b, i, got,
                        kept ? get(kc->dtypes[b], before, i) : wants[i], tol, kept ? " (must not be written)" : "");
        }
    }
    mc_free(before);
    return errors;
}

double kernel_check(const kernel_case *kc, kernel_memory *memory, const char *where)
{
    double worst = 0;
    int errors = check_guards(memory, where);
    for (int b = 0; b < kc->file.n_buffers; b++) {
        errors += check_buffer(kc, b, memory, where, &worst);
    }
    if (errors) {
        fail_msg("%s: %d wrong", where, errors);
    }
    return worst;
}

void kernel_same_bits(const kernel_case *kc, const kernel_memory *a, const kernel_memory *b, const char *where)
{
    for (int i = 0; i < kc->file.n_buffers; i++) {
        if (memcmp(a->data[i], b->data[i], a->bytes[i]) != 0) {
            fail_msg("%s: buffer %d has other bits than in the forward order", where, i);
        }
    }
}
