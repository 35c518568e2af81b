/* Matrix products of the CUDA backend in every form: types, transposes, strides, alignments, bias, accumulation, empty
 * sums, against double precision. Every problem runs three times: the first chooses an algorithm, and the bits of the
 * others must be the same as the first's. */
#include <math.h>
#include <stdbool.h>

#include "layers/cuda/gemm_plan_cuda.h"
#include "layers/workspace.h"
#include "megac/base/alloc.h"
#include "megac/base/half.h"
#include "tests/cuda/cuda_device.h"

enum { GUARD = 256, RUNS = 3, STANDIN_WORKSPACE = 1 << 16 };

typedef struct gemm_case {
    int64_t m, n, k;
    int64_t pad;   /* elements between rows */
    int64_t shift; /* elements by which a, b and bias miss their alignment */
    mc_dtype type, c_type;
    bool trans_a, trans_b, bias;
    int beta;
} gemm_case;

static cuda_device d;

/* A matrix or vector on the device between guards of bytes 0xFF, and its values on the host. */
typedef struct operand {
    mc_tensor t;
    int64_t n; /* elements in all, with pads */
    size_t bytes;
    unsigned char *device, *host;
    double *values;
} operand;

/* Operands of one case lie one after another in these, so that a case allocates nothing. */
enum { POOL_BYTES = 1 << 18, POOL_VALUES = 1 << 17 };
static struct {
    unsigned char *device, *host;
    size_t used, used_values;
    double values[POOL_VALUES];
} pool;

static void put(unsigned char *at, mc_dtype type, double v)
{
    float f = (float)v;
    uint16_t h = type == MC_BF16 ? mc_bf16_from_f32(f) : mc_f16_from_f32(f);
    memcpy(at, type == MC_F32 ? (void *)&f : (void *)&h, mc_dtype_bytes(type));
}

static double get(const unsigned char *at, mc_dtype type)
{
    float f;
    uint16_t h;
    memcpy(type == MC_F32 ? (void *)&f : (void *)&h, at, mc_dtype_bytes(type));
    return (double)(type == MC_F32 ? f : type == MC_BF16 ? mc_f32_from_bf16(h) : mc_f32_from_f16(h));
}

static uint32_t next(uint32_t *seed)
{
    *seed = *seed * 1664525u + 1013904223u;
    return *seed >> 8;
}

/* `bytes` of the pool, on the host filled with bytes 0xFF. */
static size_t take(size_t bytes)
{
    size_t at = pool.used;
    pool.used += (bytes + GUARD - 1) / GUARD * GUARD;
    assert_true(pool.used <= POOL_BYTES);
    memset(pool.host + at, 0xff, bytes);
    return at;
}

/* rows x cols with `pad` more elements a row, the first `shift` elements behind an alignment of 256; uniform in [-1, 1)
 * if `filled`, else NaN; pads are NaN. */
static operand make(int64_t rows, int64_t cols, int64_t pad, int64_t shift, mc_dtype type, bool filled, uint32_t seed)
{
    int64_t ld = cols + pad, n = rows > 0 ? (rows - 1) * ld + cols : 0;
    size_t size = mc_dtype_bytes(type), first = GUARD + (size_t)shift * size;
    operand o = {.n = n, .bytes = first + (size_t)n * size + GUARD, .values = pool.values + pool.used_values};
    size_t at = take(o.bytes);
    o.host = pool.host + at;
    o.device = pool.device + at;
    pool.used_values += (size_t)n;
    assert_true(pool.used_values <= POOL_VALUES);
    for (int64_t i = 0; i < n; i++) {
        unsigned char *element = o.host + first + (size_t)i * size;
        if (filled && i % ld < cols) {
            put(element, type, (double)next(&seed) / (1 << 23) - 1.0);
        }
        o.values[i] = get(element, type);
    }
    cuda_copy(&d, o.device, o.host, o.bytes);
    cuda_wait(&d);
    o.t = mc_tensor_2d(o.device + first, type, rows, cols);
    o.t.strides[0] = ld;
    return o;
}

static void empty_pool(void)
{
    pool.used = pool.used_values = 0;
}

static double element(const operand *o, int64_t i, int64_t j, bool trans)
{
    return o->values[trans ? j * o->t.strides[0] + i : i * o->t.strides[0] + j];
}

/* Unit roundoff of a stored element. */
static double roundoff(mc_dtype type)
{
    return type == MC_F32 ? 0x1p-24 : type == MC_BF16 ? 0x1p-8 : 0x1p-11;
}

/* f32 sums in any order: their rounding errors add up like a random walk (see tests/layers/reference/case.py); then the
 * one rounding of the store. The smallest steps of f16 are 2^-24. */
static void check_element(const gemm_case *g, double got, double want, double size, int64_t i, int64_t j)
{
    double tol = (8 + 2 * sqrt((double)g->k)) * 0x1p-24 * size;
    tol += g->c_type == MC_F32 ? 0 : roundoff(g->c_type) * fabs(want) + 0x1p-25;
    if (!(fabs(got - want) <= tol)) {
        fail_msg("m %d n %d k %d pad %d shift %d %s->%s%s%s beta %d%s: c[%d,%d] is %.9g, want %.9g within %.3g",
                 (int)g->m, (int)g->n, (int)g->k, (int)g->pad, (int)g->shift, mc_dtype_name(g->type),
                 mc_dtype_name(g->c_type), g->trans_a ? " trans_a" : "", g->trans_b ? " trans_b" : "", g->beta,
                 g->bias ? " bias" : "", (int)i, (int)j, got, want, tol);
    }
}

static void check(const gemm_case *g, const operand *a, const operand *b, const operand *bias, const operand *c,
                  const unsigned char *out)
{
    size_t size = mc_dtype_bytes(g->c_type);
    int64_t ld = c->t.strides[0];
    for (int64_t at = 0; at < c->n; at++) {
        int64_t i = at / ld, j = at % ld;
        const unsigned char *got = out + GUARD + (size_t)at * size;
        if (j >= g->n) {
            assert_memory_equal(got, c->host + GUARD + (size_t)at * size, size);
            continue;
        }
        double sum = g->beta ? c->values[at] : 0.0, magnitude = fabs(sum);
        for (int64_t k = 0; k < g->k; k++) {
            double product = element(a, i, k, g->trans_a) * element(b, k, j, g->trans_b);
            sum += product;
            magnitude += fabs(product);
        }
        sum += g->bias ? bias->values[j] : 0.0;
        magnitude += g->bias ? fabs(bias->values[j]) : 0.0;
        check_element(g, get(got, g->c_type), sum, magnitude, i, j);
    }
    for (size_t i = 0; i < GUARD; i++) {
        assert_int_equal(out[i], 0xff);
        assert_int_equal(out[c->bytes - 1 - i], 0xff);
    }
}

static void run_case(const gemm_case *g)
{
    empty_pool();
    operand a = make(g->trans_a ? g->k : g->m, g->trans_a ? g->m : g->k, g->pad, g->shift, g->type, true, 1);
    operand b = make(g->trans_b ? g->n : g->k, g->trans_b ? g->k : g->n, g->pad, g->shift, g->type, true, 2);
    operand bias = make(1, g->n, 0, g->shift, g->type, true, 3);
    operand c = make(g->m, g->n, g->pad, 0, g->c_type, g->beta != 0, 4);
    ly_gemm op = {.a = a.t, .b = b.t, .c = c.t, .trans_a = g->trans_a, .trans_b = g->trans_b, .beta = (float)g->beta};
    op.bias = g->bias ? mc_tensor_1d(bias.t.data, g->type, g->n) : (mc_tensor){0};
    unsigned char *out[RUNS];
    for (int run = 0; run < RUNS; run++) {
        out[run] = pool.host + take(c.bytes);
        cuda_copy(&d, c.device, c.host, c.bytes);
        assert_int_equal(d.cx.ops->gemm(&d.cx, &op), MC_OK);
        cuda_copy(&d, out[run], c.device, c.bytes);
        cuda_wait(&d);
        assert_memory_equal(out[run], out[0], c.bytes);
    }
    check(g, &a, &b, &bias, &c, out[0]);
}

static const mc_dtype types[][2] = {
    {MC_F32, MC_F32}, {MC_BF16, MC_BF16}, {MC_BF16, MC_F32}, {MC_F16, MC_F16}, {MC_F16, MC_F32},
};
enum { N_TYPES = sizeof types / sizeof *types };

/* All transposes, bias and beta of one size and pair of types. */
static void all_forms(gemm_case g)
{
    for (int form = 0; form < 16; form++) {
        g.trans_a = form & 1;
        g.trans_b = form & 2;
        g.bias = form & 4;
        g.beta = (form & 8) != 0;
        if (!g.beta || g.c_type == MC_F32) {
            run_case(&g);
        }
    }
}

static void every_form_and_type(void **state)
{
    (void)state;
    const int64_t sizes[][3] = {{1, 1, 1}, {7, 5, 3}, {8, 16, 24}, {33, 17, 65}, {64, 48, 32}};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        for (int t = 0; t < N_TYPES; t++) {
            all_forms((gemm_case){
                .m = sizes[s][0], .n = sizes[s][1], .k = sizes[s][2], .type = types[t][0], .c_type = types[t][1]});
        }
    }
}

static void rows_may_be_strided_and_odd(void **state)
{
    (void)state;
    const int64_t pads[][2] = {{8, 0}, {5, 0}, {0, 1}, {3, 3}, {16, 4}};
    for (size_t p = 0; p < sizeof pads / sizeof *pads; p++) {
        for (int t = 0; t < N_TYPES; t++) {
            all_forms((gemm_case){.m = 24,
                                  .n = 40,
                                  .k = 16,
                                  .pad = pads[p][0],
                                  .shift = pads[p][1],
                                  .type = types[t][0],
                                  .c_type = types[t][1]});
        }
    }
}

static void empty_sums(void **state)
{
    (void)state;
    for (int t = 0; t < N_TYPES; t++) {
        for (int64_t pad = 0; pad <= 3; pad += 3) {
            all_forms((gemm_case){.m = 6, .n = 10, .k = 0, .pad = pad, .type = types[t][0], .c_type = types[t][1]});
        }
        all_forms((gemm_case){.m = 0, .n = 10, .k = 4, .type = types[t][0], .c_type = types[t][1]});
        all_forms((gemm_case){.m = 5, .n = 0, .k = 4, .type = types[t][0], .c_type = types[t][1]});
    }
}

/* A single row's stride is nobody's business. */
static void one_row_of_any_stride(void **state)
{
    (void)state;
    float *x = cuda_memory(&d, 3 * sizeof *x), *host = cuda_host(&d, 3 * sizeof *host);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(d.cx.ops->fill(&d.cx, &(ly_fill){mc_tensor_1d(x + i, MC_F32, 1), (float)(i + 2)}), MC_OK);
    }
    ly_gemm op = {.a = mc_tensor_2d(x, MC_F32, 1, 1),
                  .b = mc_tensor_2d(x + 1, MC_F32, 1, 1),
                  .c = mc_tensor_2d(x + 2, MC_F32, 1, 1)};
    op.a.strides[0] = 0;
    op.b.strides[0] = 1000000;
    op.c.strides[0] = -4;
    assert_int_equal(d.cx.ops->gemm(&d.cx, &op), MC_OK);
    cuda_copy(&d, host, x, 3 * sizeof *x);
    cuda_wait(&d);
    assert_true(host[2] == 6.0f);
    cuda_memory_free(&d, x, 3 * sizeof *x);
    cuda_host_free(&d, host, 3 * sizeof *host);
}

static const struct ly_i_cublas *plans(void)
{
    return ly_i_cuda(&d.cx)->cublas;
}

/* The second call of a problem finds the first's plan, whatever the pointers; another alignment is another problem. */
static void plans_are_remembered(void **state)
{
    (void)state;
    gemm_case g = {.m = 40, .n = 56, .k = 72, .type = MC_BF16, .c_type = MC_BF16};
    run_case(&g);
    int n = plans()->n_plans;
    assert_true(n > 0);
    run_case(&g);
    assert_int_equal(plans()->n_plans, n);
    g.shift = 1;
    run_case(&g);
    assert_int_equal(plans()->n_plans, n + 1);
    bool tf32 = d.cx.tf32;
    d.cx.tf32 = true; /* f32 only */
    run_case(&g);
    assert_int_equal(plans()->n_plans, n + 1);
    d.cx.tf32 = tf32;
}

static void plans_are_bounded(void **state)
{
    (void)state;
    for (int i = 0; i < LY_I_GEMM_PLANS + 40; i++) {
        gemm_case g = {.m = 2 + i / 30, .n = 3 + i % 30, .k = 2, .type = MC_F32, .c_type = MC_F32, .bias = i % 2};
        run_case(&g);
        assert_in_range(plans()->n_plans, 1, LY_I_GEMM_PLANS);
    }
}

/* TF32 keeps 10 bits of what it reads: inputs of 10 bits give the same sums, and others within 2^-10 of each product.
 */
static void tf32_is_asked_for(void **state)
{
    (void)state;
    const struct ly_i_cublas *c = plans();
    gemm_case g = {.m = 48, .n = 32, .k = 40, .type = MC_F32, .c_type = MC_F32};
    int seen = c->n_plans;
    empty_pool();
    d.cx.tf32 = true;
    operand a = make(g.m, g.k, 0, 0, MC_F32, true, 1), b = make(g.k, g.n, 0, 0, MC_F32, true, 2);
    operand out = make(g.m, g.n, 0, 0, MC_F32, false, 3);
    assert_int_equal(d.cx.ops->gemm(&d.cx, &(ly_gemm){.a = a.t, .b = b.t, .c = out.t}), MC_OK);
    d.cx.tf32 = false;
    cuda_copy(&d, out.host, out.device, out.bytes);
    cuda_wait(&d);
    assert_int_equal(c->n_plans, seen + 1);
    assert_int_equal(c->plans[seen].key.tf32, 1);
    for (int64_t i = 0; i < g.m * g.n; i++) {
        double sum = 0, size = 0;
        for (int64_t k = 0; k < g.k; k++) {
            double product = a.values[i / g.n * g.k + k] * b.values[k * g.n + i % g.n];
            sum += product;
            size += fabs(product);
        }
        assert_true(fabs((double)((float *)(void *)(out.host + GUARD))[i] - sum) <= 0x1p-9 * size);
    }
}

/* Without workspace there are algorithms too, for all but a bias outside of the epilogue. */
static void works_without_workspace(void **state)
{
    (void)state;
    void *workspace = d.cx.workspace;
    size_t bytes = d.cx.workspace_bytes;
    d.cx.workspace = NULL;
    d.cx.workspace_bytes = 0;
    run_case(&(gemm_case){.m = 32, .n = 64, .k = 96, .type = MC_BF16, .c_type = MC_F32, .beta = 1});
    run_case(&(gemm_case){.m = 32, .n = 64, .k = 96, .type = MC_F32, .c_type = MC_F32, .bias = true});
    d.cx.workspace = workspace;
    d.cx.workspace_bytes = bytes;
}

static int open_all(void **state)
{
    (void)state;
    /* The stand-in runtime pays for every page of device memory at every call. */
    cuda_device_open(&d, STANDIN_WORKSPACE);
    if (!cuda_standin("standin_forgive")) {
        cuda_device_close(&d);
        cuda_device_open(&d, LY_GEMM_WORKSPACE_BYTES);
    }
    pool.device = cuda_memory(&d, POOL_BYTES);
    pool.host = cuda_host(&d, POOL_BYTES);
    return 0;
}

static int close_all(void **state)
{
    (void)state;
    if (d.dev.ops) {
        cuda_memory_free(&d, pool.device, POOL_BYTES);
        cuda_host_free(&d, pool.host, POOL_BYTES);
    }
    cuda_device_close(&d);
    return mc_alloc_report_leaks() > 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_form_and_type),
        cmocka_unit_test(rows_may_be_strided_and_odd),
        cmocka_unit_test(empty_sums),
        cmocka_unit_test(one_row_of_any_stride),
        cmocka_unit_test(plans_are_remembered),
        cmocka_unit_test(tf32_is_asked_for),
        cmocka_unit_test(works_without_workspace),
        cmocka_unit_test(plans_are_bounded),
    };
    return cmocka_run_group_tests(tests, open_all, close_all);
}
