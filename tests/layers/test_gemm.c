#include <math.h>
#include <string.h>

#include "tests/layers/op_harness.h"

/* One product: sizes, forms, and strides wider than the rows by `pad`. */
typedef struct gemm_case {
    int64_t m, n, k, pad;
    int trans_a, trans_b, beta, bias;
} gemm_case;

static mc_tensor strided(float *x, int64_t rows, int64_t cols, int64_t pad)
{
    return mc_tensor_slice(lt_2d(x, rows, cols + pad), 1, 0, cols);
}

static double element(const float *x, int64_t i, int64_t k, int64_t ld, int trans)
{
    return (double)(trans ? x[k * ld + i] : x[i * ld + k]);
}

static void gemm_body(lt_run *run, const void *arg)
{
    const gemm_case *g = arg;
    int64_t a_rows = g->trans_a ? g->k : g->m, a_cols = g->trans_a ? g->m : g->k;
    int64_t b_rows = g->trans_b ? g->n : g->k, b_cols = g->trans_b ? g->k : g->n;
    int64_t lda = a_cols + g->pad, ldb = b_cols + g->pad, ldc = g->n + g->pad;
    float *a = lt_rand(a_rows * lda, 1, -1.0f, 1.0f), *b = lt_rand(b_rows * ldb, 2, -1.0f, 1.0f);
    float *bias = lt_rand(g->n, 3, -1.0f, 1.0f);
    float *c = g->beta ? lt_rand(g->m * ldc, 4, -1.0f, 1.0f) : lt_f32(g->m * ldc), *old = lt_copy(c, g->m * ldc);
    ly_gemm op = {.a = strided(a, a_rows, a_cols, g->pad),
                  .b = strided(b, b_rows, b_cols, g->pad),
                  .c = strided(c, g->m, g->n, g->pad),
                  .trans_a = g->trans_a,
                  .trans_b = g->trans_b,
                  .beta = (float)g->beta};
    if (g->bias) {
        op.bias = lt_1d(bias, g->n);
    }
    assert_int_equal(run->cx.ops->gemm(&run->cx, &op), MC_OK);
    lt_output(run, c, g->m * ldc * 4);
    for (int64_t i = 0; run->n_threads == 1 && i < g->m; i++) {
        for (int64_t j = 0; j < g->n; j++) {
            double sum = g->beta ? (double)old[i * ldc + j] : 0.0, size = fabs(sum) + 1.0;
            sum += g->bias ? (double)bias[j] : 0.0;
            for (int64_t k = 0; k < g->k; k++) {
                double product = element(a, i, k, lda, g->trans_a) * element(b, j, k, ldb, !g->trans_b);
                sum += product;
                size += fabs(product);
            }
            /* Chains of at most 384 terms: the error is below 2^-24 times 384 times the sum of magnitudes; random
             * signs leave far less. */
            lt_close("c", i * g->n + j, c[i * ldc + j], sum, 2e-6, size);
        }
        /* Between rows nothing is written. */
        assert_memory_equal(c + i * ldc + g->n, old + i * ldc + g->n, (size_t)g->pad * 4);
    }
}

static void test_gemm_matches_double(void **state)
{
    static const int64_t sizes[][3] = {{1, 1, 1},     {3, 5, 1},       {5, 3, 17},     {17, 301, 33},
                                       {64, 64, 64},  {97, 65, 300},   {301, 17, 768}, {256, 96, 257},
                                       {2, 768, 301}, {200, 520, 256}, {31, 40, 1000}};
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
                           .bias = ((int)s + form / 2) % 2};
            lt_for_all(gemm_body, &g);
        }
    }
}

static void test_gemm_without_k(void **state)
{
    (void)state;
    for (int beta = 0; beta < 2; beta++) {
        gemm_case g = {.m = 5, .n = 7, .k = 0, .pad = 2, .beta = beta, .bias = 1};
        lt_for_all(gemm_body, &g);
    }
}

/* Any rows and columns of the product, computed alone, have the same bits: what data and tensor parallel rely on. */
static void split_body(lt_run *run, const void *arg)
{
    const gemm_case *g = arg;
    float *a = lt_rand(g->m * g->k, 1, -1.0f, 1.0f), *b = lt_rand(g->k * g->n, 2, -1.0f, 1.0f);
    float *whole = lt_f32(g->m * g->n), *parts = lt_f32(g->m * g->n);
    mc_tensor ta = g->trans_a ? lt_2d(a, g->k, g->m) : lt_2d(a, g->m, g->k);
    mc_tensor tb = g->trans_b ? lt_2d(b, g->n, g->k) : lt_2d(b, g->k, g->n);
    ly_gemm op = {.a = ta, .b = tb, .c = lt_2d(whole, g->m, g->n), .trans_a = g->trans_a, .trans_b = g->trans_b};
    assert_int_equal(run->cx.ops->gemm(&run->cx, &op), MC_OK);
    static const int64_t cuts[] = {0, 1, 31, 77, 128};
    int64_t n_cuts = 5;
    for (int64_t i = 0; i < n_cuts; i++) {
        int64_t m0 = cuts[i], m1 = i + 1 < n_cuts ? cuts[i + 1] : g->m;
        for (int64_t j = 0; j < n_cuts; j++) {
            int64_t n0 = cuts[j], n1 = j + 1 < n_cuts ? cuts[j + 1] : g->n;
            op.a = mc_tensor_slice(ta, g->trans_a ? 1 : 0, m0, m1 - m0);
            op.b = mc_tensor_slice(tb, g->trans_b ? 0 : 1, n0, n1 - n0);
            op.c = mc_tensor_slice(mc_tensor_slice(lt_2d(parts, g->m, g->n), 0, m0, m1 - m0), 1, n0, n1 - n0);
            assert_int_equal(run->cx.ops->gemm(&run->cx, &op), MC_OK);
        }
    }
    assert_memory_equal(whole, parts, (size_t)(g->m * g->n) * 4);
    lt_output(run, whole, g->m * g->n * 4);
}

static void test_gemm_split_invariance(void **state)
{
    (void)state;
    for (int form = 0; form < 4; form++) {
        gemm_case g = {.m = 260, .n = 301, .k = 700, .trans_a = form & 1, .trans_b = form >> 1};
        lt_for_all(split_body, &g);
    }
}

static void bias_body(lt_run *run, const void *arg)
{
    const int64_t *size = arg;
    int64_t rows = size[0], cols = size[1], ld = cols + size[2];
    float *dy = lt_rand(rows * ld, 1, -1.0f, 1.0f), *dbias = lt_rand(cols, 2, -1.0f, 1.0f), *old = lt_copy(dbias, cols);
    ly_bias_grad op = {.dy = strided(dy, rows, cols, size[2]), .dbias = lt_1d(dbias, cols)};
    assert_int_equal(run->cx.ops->bias_grad(&run->cx, &op), MC_OK);
    lt_output(run, dbias, cols * 4);
    for (int64_t c = 0; c < cols; c++) {
        double sum = (double)old[c], size_of = fabs(sum);
        for (int64_t r = 0; r < rows; r++) {
            sum += (double)dy[r * ld + c];
            size_of += fabs((double)dy[r * ld + c]);
        }
        /* At most 32 + rows / 32 additions in a chain, 2^-24 each. */
        lt_close("dbias", c, dbias[c], sum, 6e-8 * (33.0 + (double)rows / 32.0), size_of);
    }
}

static void test_bias_grad(void **state)
{
    static const int64_t sizes[][3] = {{1, 1, 0}, {3, 17, 2}, {100, 301, 0}, {257, 768, 64}, {33, 32, 1}, {0, 5, 0}};
    (void)state;
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        lt_for_all(bias_body, sizes[s]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gemm_matches_double),
        cmocka_unit_test(test_gemm_without_k),
        cmocka_unit_test(test_gemm_split_invariance),
        cmocka_unit_test(test_bias_grad),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
