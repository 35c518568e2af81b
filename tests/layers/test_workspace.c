#include <string.h>

#include "layers/workspace.h"
#include "tests/layers/op_harness.h"

/* Views of these shapes; nothing is read. */
static float somewhere;

static mc_tensor rows(int64_t n_rows, int64_t n_cols)
{
    return mc_tensor_2d(&somewhere, MC_BF16, n_rows, n_cols);
}

static mc_tensor sums(int64_t n)
{
    return mc_tensor_1d(&somewhere, MC_F32, n);
}

/* The operators whose kernels keep nothing outside their blocks. */
static void test_most_operators_need_nothing(void **state)
{
    (void)state;
    ly_norm_fwd norm = {.x = rows(4096, 1024), .out = rows(4096, 1024)};
    ly_act_bwd act = {.x = rows(4096, 1024), .dout = rows(4096, 1024)};
    ly_embedding_fwd embedding = {.table = rows(50304, 768), .out = rows(4096, 768)};
    ly_attention_fwd attention = {.seq_len = 1024};
    ly_adamw adamw = {.param = sums(1 << 20)};
    assert_int_equal(ly_workspace_bytes_norm_fwd(&norm), 0);
    assert_int_equal(ly_workspace_bytes_act_bwd(&act), 0);
    assert_int_equal(ly_workspace_bytes_embedding_fwd(&embedding), 0);
    assert_int_equal(ly_workspace_bytes_attention_fwd(&attention), 0);
    assert_int_equal(ly_workspace_bytes_adamw(&adamw), 0);
}

static void test_fixed_needs(void **state)
{
    (void)state;
    ly_gemm gemm = {.a = rows(3, 4), .b = rows(4, 5), .c = rows(3, 5)};
    ly_sq_norm norm = {.x = sums(10)};
    ly_embedding_bwd embedding = {.dtable = rows(50304, 768), .dout = rows(4096, 768)};
    assert_int_equal(ly_workspace_bytes_gemm(&gemm), 32 * 1024 * 1024);
    assert_int_equal(ly_workspace_bytes_sq_norm(&norm), 264 * 8);
    assert_int_equal(ly_workspace_bytes_embedding_bwd(&embedding), 50304 * 2 * 4);
}

/* A sum over rows needs whole rows of floats, at least one, at most LY_PARTIALS and no more than there are rows. */
static void check_partials(size_t bytes, int n_sums, int64_t n_rows, int64_t n_cols)
{
    size_t row = (size_t)n_sums * (size_t)n_cols * 4;
    assert_int_equal(bytes % row, 0);
    assert_in_range(bytes / row, 1, n_rows < LY_PARTIALS ? (size_t)n_rows : LY_PARTIALS);
}

static void test_sums_over_rows(void **state)
{
    static const int64_t shapes[][2] = {{1, 1},      {1, 5000},    {3, 7},      {33, 64},
                                        {1000, 768}, {8192, 4096}, {70000, 33}, {64, 200000}};
    (void)state;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        int64_t n_rows = shapes[i][0], n_cols = shapes[i][1];
        mc_tensor x = rows(n_rows, n_cols), sum = sums(n_cols);
        ly_bias_grad bias = {.dy = x, .dbias = sum};
        check_partials(ly_workspace_bytes_bias_grad(&bias), 1, n_rows, n_cols);
        ly_norm_bwd norm = {.dout = x, .h = x, .dh = x};
        assert_int_equal(ly_workspace_bytes_norm_bwd(&norm), 0); /* nobody wants a sum */
        norm.dgamma = sum;
        check_partials(ly_workspace_bytes_norm_bwd(&norm), 1, n_rows, n_cols);
        norm.dbeta = norm.dy_bias = sum;
        check_partials(ly_workspace_bytes_norm_bwd(&norm), 3, n_rows, n_cols);
        ly_norm_bwd last = {.dskip = x, .dy_bias = sum};
        check_partials(ly_workspace_bytes_norm_bwd(&last), 1, n_rows, n_cols);
        mc_tensor heads = {.data = &somewhere,
                           .dtype = MC_BF16,
                           .n_dims = 4,
                           .dims = {n_rows, 2, 3, n_cols},
                           .strides = {6 * n_cols, 3 * n_cols, n_cols, 1}};
        ly_head_norm_bwd head = {.dout = heads, .x = heads, .dx = heads, .dgamma = sum, .dbeta = sum};
        check_partials(ly_workspace_bytes_head_norm_bwd(&head), 2, 6 * n_rows, n_cols);
    }
}

/* The plan's table keeps the largest need of the calls made with it. */
static void test_plan_keeps_the_peak(void **state)
{
    size_t peak = 0;
    ly_ctx cx = {.workspace_peak = &peak};
    mc_tensor x = rows(4096, 64), sum = sums(64);
    ly_bias_grad bias = {.dy = x, .dbias = sum};
    ly_norm_bwd norm = {.dout = x, .h = x, .dh = x, .dgamma = sum, .dbeta = sum};
    (void)state;
    assert_int_equal(ly_ops_get("plan", &cx.ops), MC_OK);
    assert_int_equal(cx.ops->bias_grad(&cx, &bias), MC_OK);
    size_t small = peak;
    assert_int_equal(small, ly_workspace_bytes_bias_grad(&bias));
    assert_int_equal(cx.ops->norm_bwd(&cx, &norm), MC_OK);
    assert_true(peak > small);
    assert_int_equal(peak, ly_workspace_bytes_norm_bwd(&norm));
    assert_int_equal(cx.ops->bias_grad(&cx, &bias), MC_OK);
    assert_int_equal(peak, ly_workspace_bytes_norm_bwd(&norm));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_most_operators_need_nothing),
        cmocka_unit_test(test_fixed_needs),
        cmocka_unit_test(test_sums_over_rows),
        cmocka_unit_test(test_plan_keeps_the_peak),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
