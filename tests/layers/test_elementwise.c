#include <math.h>
#include <string.h>

#include "tests/layers/op_harness.h"

typedef struct act_case {
    ly_act_kind kind;
    int64_t rows, cols;
    int aliased; /* dx is x, out is dout */
} act_case;

/* The activations by their definitions; for SwiGLU the gate's part. */
static double ref_act(ly_act_kind kind, double x)
{
    switch (kind) {
    case LY_GELU_TANH:
        return 0.5 * x * (1.0 + tanh(sqrt(2.0 / 3.14159265358979323846) * (x + 0.044715 * x * x * x)));
    case LY_GELU_ERF:
        return 0.5 * x * (1.0 + erf(x / sqrt(2.0)));
    case LY_SQUARED_RELU:
        return x > 0.0 ? x * x : 0.0;
    case LY_SWIGLU:
    case LY_SILU:
        break;
    }
    return x / (1.0 + exp(-x));
}

static double ref_slope(ly_act_kind kind, double x)
{
    const double step = 1e-5;
    return (ref_act(kind, x + step) - ref_act(kind, x - step)) / (2.0 * step);
}

static void act_body(lt_run *run, const void *arg)
{
    const act_case *t = arg;
    int gated = t->kind == LY_SWIGLU;
    int64_t n = t->rows * t->cols, x_cols = gated ? 2 * t->cols : t->cols, xn = t->rows * x_cols;
    float *x = lt_rand(xn, 1, -12.0f, 12.0f), *x0 = lt_copy(x, xn), *out = lt_f32(n);
    float *dout = lt_rand(n, 2, -1.0f, 1.0f), *dout0 = lt_copy(dout, n), *dx = t->aliased ? x : lt_f32(xn);
    float *out2 = t->aliased ? dout : lt_f32(n);
    ly_act_fwd fwd = {.kind = t->kind, .x = lt_2d(x, t->rows, x_cols), .out = lt_2d(out, t->rows, t->cols)};
    assert_int_equal(run->cx.ops->act_fwd(&run->cx, &fwd), MC_OK);
    assert_memory_equal(x, x0, (size_t)xn * 4);
    ly_act_bwd bwd = {.kind = t->kind,
                      .x = lt_2d(x, t->rows, x_cols),
                      .dout = lt_2d(dout, t->rows, t->cols),
                      .dx = lt_2d(dx, t->rows, x_cols),
                      .out = lt_2d(out2, t->rows, t->cols)};
    assert_int_equal(run->cx.ops->act_bwd(&run->cx, &bwd), MC_OK);
    lt_output(run, out, n * 4);
    lt_output(run, dx, xn * 4);
    assert_memory_equal(out, out2, (size_t)n * 4); /* the forward's output again, to the bit */
    for (int64_t i = 0; i < n; i++) {
        int64_t at = gated ? i / t->cols * x_cols + i % t->cols : i;
        double v = (double)x0[at], up = gated ? (double)x0[at + t->cols] : 1.0, d = (double)dout0[i];
        double value = ref_act(t->kind, v), slope = ref_slope(t->kind, v), size = fabs(v) < 1.0 ? 1.0 : fabs(v);
        size = t->kind == LY_SQUARED_RELU ? size * size : size;
        /* A few roundings of numbers no larger than |x| |up|; the finite difference adds 1e-9. */
        lt_close("out", i, out[i], value * up, 5e-7, size * (fabs(up) + 1e-3));
        lt_close("dx", at, dx[at], d * slope * up, 1e-6, size * (fabs(up) + 1e-3));
        if (gated) {
            lt_close("dup", at, dx[at + t->cols], d * value, 5e-7, size);
        }
    }
}

static void test_act(void **state)
{
    static const ly_act_kind kinds[] = {LY_GELU_TANH, LY_GELU_ERF, LY_SQUARED_RELU, LY_SWIGLU, LY_SILU};
    static const int64_t sizes[][2] = {{1, 1}, {3, 5}, {17, 17}, {5, 301}, {30, 768}};
    (void)state;
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
        for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
            for (int aliased = 0; aliased < 2; aliased++) {
                act_case t = {kinds[k], sizes[s][0], sizes[s][1], aliased};
                lt_for_all(act_body, &t);
            }
        }
    }
}

/* Far out the gradient is 0 or 1, never NaN; a NaN input stays one. */
static void extreme_body(lt_run *run, const void *arg)
{
    static const float points[] = {1e4f, -1e4f, 1e20f, -1e20f, 3e38f, -3e38f, NAN, 0.0f};
    ly_act_kind kind = *(const ly_act_kind *)arg;
    float *x = lt_f32(8), *dout = lt_f32(8), *dx = lt_f32(8);
    for (int i = 0; i < 8; i++) {
        x[i] = points[i];
        dout[i] = 1.0f;
    }
    ly_act_bwd bwd = {.kind = kind, .x = lt_2d(x, 1, 8), .dout = lt_2d(dout, 1, 8), .dx = lt_2d(dx, 1, 8)};
    assert_int_equal(run->cx.ops->act_bwd(&run->cx, &bwd), MC_OK);
    for (int i = 0; i < 6; i++) {
        lt_close("dx", i, dx[i], points[i] > 0.0f ? 1.0 : 0.0, 1e-6, 1.0);
    }
    assert_true(isnan(dx[6]));
    lt_close("dx", 7, dx[7], 0.5, 1e-6, 1.0);
}

static void test_act_extremes(void **state)
{
    static const ly_act_kind kinds[] = {LY_GELU_TANH, LY_GELU_ERF, LY_SILU};
    (void)state;
    for (int k = 0; k < 3; k++) {
        lt_for_all(extreme_body, &kinds[k]);
    }
}

static void add_fill_body(lt_run *run, const void *arg)
{
    int64_t n = *(const int64_t *)arg;
    float *a = lt_rand(n, 1, -1.0f, 1.0f), *b = lt_rand(n, 2, -1.0f, 1.0f), *out = lt_f32(n), *filled = lt_f32(n);
    ly_add op = {.a = lt_1d(a, n), .b = lt_1d(b, n), .out = lt_1d(out, n)};
    assert_int_equal(run->cx.ops->add(&run->cx, &op), MC_OK);
    op.out = lt_1d(a, n);
    float *a0 = lt_copy(a, n);
    assert_int_equal(run->cx.ops->add(&run->cx, &op), MC_OK);
    ly_fill fill = {.x = lt_1d(filled, n), .value = 0.0f};
    for (int64_t i = 0; i < n; i++) {
        assert_true(out[i] == a0[i] + b[i] && a[i] == out[i]);
    }
    assert_int_equal(run->cx.ops->fill(&run->cx, &fill), MC_OK);
    for (int64_t i = 0; i < n; i++) {
        assert_true(filled[i] == 0.0f && !signbit(filled[i]));
    }
    fill.value = -1.5f;
    assert_int_equal(run->cx.ops->fill(&run->cx, &fill), MC_OK);
    for (int64_t i = 0; i < n; i++) {
        assert_true(filled[i] == -1.5f);
    }
}

static void test_add_and_fill(void **state)
{
    static const int64_t sizes[] = {1, 3, 17, 301, 8192, 8193, 50000};
    (void)state;
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        lt_for_all(add_fill_body, &sizes[s]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_act),
        cmocka_unit_test(test_act_extremes),
        cmocka_unit_test(test_add_and_fill),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
