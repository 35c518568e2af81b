#include <math.h>
#include <string.h>

#include "megac/base/log.h"
#include "tests/layers/op_harness.h"

/* One product: sizes, forms, and strides wider than the rows by `pad`. */
typedef struct gemm_case {
    int64_t m, n, k, pad;
    int trans_a, trans_b, beta, bias;
    mc_dtype type, c_type; /* of a, b, bias; of c */
} gemm_case;

/* An operand: of the type under test, and the same numbers as f32. */
typedef struct operand {
    mc_dtype type;
    const void *typed;
    const float *wide;
} operand;

static operand operand_rand(mc_dtype type, int64_t n, uint32_t seed)
{
    float *x = lt_rand(n, seed, -1.0f, 1.0f);
    if (type == MC_F32) {
        return (operand){type, x, x};
    }
    void *typed = lt_round(type, x, n);
    return (operand){type, typed, lt_widen(type, typed, n)};
}

static mc_tensor matrix(const void *x, mc_dtype type, int64_t rows, int64_t cols, int64_t pad)
{
    return mc_tensor_slice(mc_tensor_2d((void *)(uintptr_t)x, type, rows, cols + pad), 1, 0, cols);
}

static double element(const float *x, int64_t i, int64_t k, int64_t ld, int trans)
{
    return (double)(trans ? x[k * ld + i] : x[i * ld + k]);
}

static void gemm_product(lt_run *run, const gemm_case *g, operand a, operand b, operand bias, void *c, int wide)
{
    mc_dtype type = wide ? MC_F32 : g->type;
    const void *pa = wide ? a.wide : a.typed, *pb = wide ? b.wide : b.typed, *pbias = wide ? bias.wide : bias.typed;
    ly_gemm op = {.a = g->trans_a ? matrix(pa, type, g->k, g->m, g->pad) : matrix(pa, type, g->m, g->k, g->pad),
                  .b = g->trans_b ? matrix(pb, type, g->n, g->k, g->pad) : matrix(pb, type, g->k, g->n, g->pad),
                  .c = matrix(c, wide ? MC_F32 : g->c_type, g->m, g->n, g->pad),
                  .trans_a = g->trans_a,
                  .trans_b = g->trans_b,
                  .beta = (float)g->beta};
    if (g->bias) {
        op.bias = mc_tensor_1d((void *)(uintptr_t)pbias, type, g->n);
    }
    assert_int_equal(run->cx.ops->gemm(&run->cx, &op), MC_OK);
}

/* Half a unit in the last place of `type` above 1, as a share of the value at most. */
static double half_unit(mc_dtype type)
{
    return type == MC_F32 ? 0.0 : type == MC_BF16 ? 0x1p-8 : 0x1p-11;
}

static void gemm_body(lt_run *run, const void *arg)
{
    const gemm_case *g = arg;
    int64_t a_rows = g->trans_a ? g->k : g->m, a_cols = g->trans_a ? g->m : g->k;
    int64_t b_rows = g->trans_b ? g->n : g->k, b_cols = g->trans_b ? g->k : g->n;
    int64_t lda = a_cols + g->pad, ldb = b_cols + g->pad, ldc = g->n + g->pad, c_elems = g->m * ldc;
    int64_t c_bytes = g->c_type == MC_F32 ? 4 : 2;
    operand a = operand_rand(g->type, a_rows * lda, 1), b = operand_rand(g->type, b_rows * ldb, 2);
    operand bias = operand_rand(g->type, g->n, 3);
    float *old = g->beta ? lt_rand(c_elems, 4, -1.0f, 1.0f) : lt_f32(c_elems), *wide = lt_copy(old, c_elems);
    char *c = g->c_type == MC_F32 ? (char *)lt_copy(old, c_elems) : lt_typed(g->c_type, c_elems);
    char *c_old = g->c_type == MC_F32 ? (char *)lt_copy(old, c_elems) : lt_typed(g->c_type, c_elems);
    gemm_product(run, g, a, b, bias, c, 0);
    lt_output(run, c, c_elems * c_bytes);
    if (run->n_threads > 1) {
        return;
    }
    /* The widened operands give the same sums, and those are rounded once. */
    gemm_product(run, g, a, b, bias, wide, 1);
    const void *rounded = g->c_type == MC_F32 ? wide : lt_round(g->c_type, wide, c_elems);
    const float *got = g->c_type == MC_F32 ? (const float *)c : lt_widen(g->c_type, c, c_elems);
    for (int64_t i = 0; i < g->m; i++) {
        size_t row = (size_t)(i * ldc * c_bytes), end = row + (size_t)(g->n * c_bytes);
        assert_memory_equal(c + row, (const char *)rounded + row, (size_t)(g->n * c_bytes));
        /* Between rows nothing is written. */
        assert_memory_equal(c + end, c_old + end, (size_t)(g->pad * c_bytes));
        for (int64_t j = 0; j < g->n; j++) {
            double sum = g->beta ? (double)old[i * ldc + j] : 0.0, size = fabs(sum) + 1.0;
            sum += g->bias ? (double)bias.wide[j] : 0.0;
            for (int64_t k = 0; k < g->k; k++) {
                double product = element(a.wide, i, k, lda, g->trans_a) * element(b.wide, j, k, ldb, !g->trans_b);
                sum += product;
                size += fabs(product);
            }
            /* Chains of at most 768 terms: the error is below 2^-24 times 768 times the sum of magnitudes; random
             * signs leave far less. Then half a unit of the rounded sum. */
            double unit = half_unit(g->c_type) * fabs(sum);
            lt_close("c", i * g->n + j, got[i * ldc + j], sum, 1.0, 2e-6 * size + 1.01 * unit);
        }
    }
}

static void test_gemm_matches_double(void **state)
{
    static const int64_t sizes[][3] = {{1, 1, 1},      {3, 5, 1},      {5, 3, 17},     {17, 301, 33}, {64, 64, 64},
                                       {97, 65, 300},  {301, 17, 768}, {256, 96, 257}, {2, 768, 301}, {200, 520, 256},
                                       {31, 40, 1000}, {300, 33, 800}, {13, 850, 790}, {6, 16, 16},   {12, 32, 1600}};
    (void)state;
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        for (int form = 0; form < 4; form++) {
            gemm_case g = {.m = sizes[s][0],
                           .n = sizes[s][1],
                           .k = sizes[s][2],
                           .pad = (int64_t)(s % 3) * 5,
                           .trans_a = form & 1,
                           .trans_b = form >> 1,
                           .beta = (int)(s + (size_t)form) % 2,
                           .bias = ((int)s + form / 2) % 2,
                           .type = MC_F32,
                           .c_type = MC_F32};
            lt_for_all(gemm_body, &g);
        }
    }
}

static void test_gemm_types(void **state)
{
    static const int64_t sizes[][3] = {{1, 1, 1},     {5, 3, 17},    {33, 70, 65},   {40, 24, 768},
                                       {97, 65, 300}, {31, 40, 800}, {270, 50, 770}, {14, 800, 1600}};
    static const mc_dtype types[][2] = {
        {MC_BF16, MC_BF16}, {MC_BF16, MC_F32}, {MC_F16, MC_F16}, {MC_F16, MC_F32}, {MC_F32, MC_F32}};
    (void)state;
    for (size_t t = 0; t < sizeof types / sizeof *types; t++) {
        for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
            for (int form = 0; form < 4; form++) {
                gemm_case g = {.m = sizes[s][0],
                               .n = sizes[s][1],
                               .k = sizes[s][2],
                               .pad = (int64_t)(s % 3) * 5,
                               .trans_a = form & 1,
                               .trans_b = form >> 1,
                               .beta = types[t][1] == MC_F32 ? (int)(s + (size_t)form) % 2 : 0,
                               .bias = ((int)s + form / 2) % 2,
                               .type = types[t][0],
                               .c_type = types[t][1]};
                lt_for_all(gemm_body, &g);
            }
        }
    }
}

/* Type combinations outside the contract are refused, and c stays as it was. */
static void refused_body(lt_run *run, const void *arg)
{
    enum { F = MC_F32, B = MC_BF16, H = MC_F16 };
    /* a, b, bias, c, beta */
    static const int bad[][5] = {{B, H, B, B, 0}, {F, B, F, F, 0}, {B, B, F, B, 0}, {B, B, B, H, 0},
                                 {F, F, F, B, 0}, {B, B, B, B, 1}, {H, H, H, H, 1}};
    (void)arg;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        mc_dtype t[4] = {(mc_dtype)bad[i][0], (mc_dtype)bad[i][1], (mc_dtype)bad[i][2], (mc_dtype)bad[i][3]};
        void *c = lt_typed(t[3], 4), *old = lt_typed(t[3], 4);
        ly_gemm op = {.a = mc_tensor_2d(lt_typed(t[0], 4), t[0], 2, 2),
                      .b = mc_tensor_2d(lt_typed(t[1], 4), t[1], 2, 2),
                      .bias = mc_tensor_1d(lt_typed(t[2], 2), t[2], 2),
                      .c = mc_tensor_2d(c, t[3], 2, 2),
                      .beta = (float)bad[i][4]};
        mc_log_set_rank(1); /* keeps the expected refusals off the screen */
        mc_log_hold(true);
        mc_status st = run->cx.ops->gemm(&run->cx, &op);
        mc_log_set_rank(-1);
        mc_log_hold(false);
        assert_int_equal(st, MC_UNSUPPORTED);
        assert_memory_equal(c, old, t[3] == MC_F32 ? 16 : 8);
    }
}

static void test_gemm_refuses_other_types(void **state)
{
    (void)state;
    lt_for_all(refused_body, NULL);
}

static void test_gemm_without_k(void **state)
{
    (void)state;
    static const mc_dtype types[][2] = {{MC_F32, MC_F32}, {MC_BF16, MC_F32}, {MC_F16, MC_F16}, {MC_BF16, MC_BF16}};
    for (size_t t = 0; t < sizeof types / sizeof *types; t++) {
        for (int beta = 0; beta < (types[t][1] == MC_F32 ? 2 : 1); beta++) {
            for (int bias = 0; bias < 2; bias++) {
                gemm_case g = {.m = 5,
                               .n = 21,
                               .k = 0,
                               .pad = 2,
                               .beta = beta,
                               .bias = bias,
                               .type = types[t][0],
                               .c_type = types[t][1]};
                lt_for_all(gemm_body, &g);
            }
        }
    }
}

/* Any rows and columns of the product, computed alone, have the same bits: what data and tensor parallel rely on. */
static void split_body(lt_run *run, const void *arg)
{
    const gemm_case *g = arg;
    int64_t c_bytes = g->c_type == MC_F32 ? 4 : 2;
    operand a = operand_rand(g->type, g->m * g->k, 1), b = operand_rand(g->type, g->k * g->n, 2);
    void *whole = lt_typed(g->c_type, g->m * g->n), *parts = lt_typed(g->c_type, g->m * g->n);
    mc_tensor ta = g->trans_a ? matrix(a.typed, g->type, g->k, g->m, 0) : matrix(a.typed, g->type, g->m, g->k, 0);
    mc_tensor tb = g->trans_b ? matrix(b.typed, g->type, g->n, g->k, 0) : matrix(b.typed, g->type, g->k, g->n, 0);
    mc_tensor to = matrix(parts, g->c_type, g->m, g->n, 0);
    ly_gemm op = {
        .a = ta, .b = tb, .c = matrix(whole, g->c_type, g->m, g->n, 0), .trans_a = g->trans_a, .trans_b = g->trans_b};
    assert_int_equal(run->cx.ops->gemm(&run->cx, &op), MC_OK);
    static const int64_t cuts[] = {0, 1, 31, 77, 128};
    int64_t n_cuts = 5;
    for (int64_t i = 0; i < n_cuts; i++) {
        int64_t m0 = cuts[i], m1 = i + 1 < n_cuts ? cuts[i + 1] : g->m;
        for (int64_t j = 0; j < n_cuts; j++) {
            int64_t n0 = cuts[j], n1 = j + 1 < n_cuts ? cuts[j + 1] : g->n;
            op.a = mc_tensor_slice(ta, g->trans_a ? 1 : 0, m0, m1 - m0);
            op.b = mc_tensor_slice(tb, g->trans_b ? 0 : 1, n0, n1 - n0);
            op.c = mc_tensor_slice(mc_tensor_slice(to, 0, m0, m1 - m0), 1, n0, n1 - n0);
            assert_int_equal(run->cx.ops->gemm(&run->cx, &op), MC_OK);
        }
    }
    assert_memory_equal(whole, parts, (size_t)(g->m * g->n * c_bytes));
    lt_output(run, whole, g->m * g->n * c_bytes);
}

static void test_gemm_split_invariance(void **state)
{
    static const mc_dtype types[][2] = {{MC_F32, MC_F32}, {MC_BF16, MC_BF16}, {MC_F16, MC_F32}};
    (void)state;
    for (size_t t = 0; t < sizeof types / sizeof *types; t++) {
        for (int form = 0; form < 4; form++) {
            gemm_case g = {.m = 270,
                           .n = 301,
                           .k = 800,
                           .trans_a = form & 1,
                           .trans_b = form >> 1,
                           .type = types[t][0],
                           .c_type = types[t][1]};
            lt_for_all(split_body, &g);
        }
    }
}

typedef struct bias_case {
    mc_dtype type;
    int64_t rows, cols, pad;
} bias_case;

static void bias_body(lt_run *run, const void *arg)
{
    const bias_case *g = arg;
    int64_t rows = g->rows, cols = g->cols, ld = cols + g->pad;
    operand dy = operand_rand(g->type, rows * ld, 1);
    float *dbias = lt_rand(cols, 2, -1.0f, 1.0f), *old = lt_copy(dbias, cols);
    ly_bias_grad op = {.dy = matrix(dy.typed, g->type, rows, cols, g->pad), .dbias = lt_1d(dbias, cols)};
    assert_int_equal(run->cx.ops->bias_grad(&run->cx, &op), MC_OK);
    lt_output(run, dbias, cols * 4);
    for (int64_t c = 0; c < cols; c++) {
        double sum = (double)old[c], size_of = fabs(sum);
        for (int64_t r = 0; r < rows; r++) {
            sum += (double)dy.wide[r * ld + c];
            size_of += fabs((double)dy.wide[r * ld + c]);
        }
        /* At most 32 + rows / 32 additions in a chain, 2^-24 each. */
        lt_close("dbias", c, dbias[c], sum, 6e-8 * (33.0 + (double)rows / 32.0), size_of);
    }
}

static void test_bias_grad(void **state)
{
    static const int64_t sizes[][3] = {{1, 1, 0}, {3, 17, 2}, {100, 301, 0}, {257, 768, 64}, {33, 32, 1}, {0, 5, 0}};
    static const mc_dtype types[] = {MC_F32, MC_BF16, MC_F16};
    (void)state;
    for (size_t t = 0; t < sizeof types / sizeof *types; t++) {
        for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
            bias_case g = {types[t], sizes[s][0], sizes[s][1], sizes[s][2]};
            lt_for_all(bias_body, &g);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gemm_matches_double),      cmocka_unit_test(test_gemm_types),
        cmocka_unit_test(test_gemm_refuses_other_types), cmocka_unit_test(test_gemm_without_k),
        cmocka_unit_test(test_gemm_split_invariance),    cmocka_unit_test(test_bias_grad),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
