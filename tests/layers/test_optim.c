#include <math.h>
#include <string.h>

#include "tests/layers/op_harness.h"

/* Segments with padding before, between and after them. */
typedef struct optim_case {
    int64_t n;
    int n_segments;
    ly_segment segments[4];
    int64_t step;
    float momentum;
} optim_case;

static const optim_case CASES[] = {
    {1, 1, {{0, 1, 1.0f, 1.0f, 1.0f}}, 1, 0.0f},
    {40, 2, {{3, 20, 1.0f, 0.0f, 1.0f}, {25, 37, 0.5f, 1.0f, 0.0f}}, 1, 0.9f},
    {301, 3, {{0, 17, 1.0f, 1.0f, 1.0f}, {17, 18, 2.0f, 0.0f, 1.0f}, {64, 301, 1.0f, 1.0f, 1.0f}}, 7, 0.9f},
    /* Segments across the blocks of 65536 elements that tasks own. */
    {200003,
     4,
     {{16, 65530, 1.0f, 1.0f, 1.0f},
      {65536, 65537, 1.0f, 0.0f, 0.0f},
      {65600, 140000, 0.1f, 1.0f, 1.0f},
      {140000, 200000, 1.0f, 0.0f, 1.0f}},
     1000,
     0.5f},
};

static const ly_segment *segment_of(const optim_case *t, int64_t i)
{
    for (int s = 0; s < t->n_segments; s++) {
        if (i >= t->segments[s].begin && i < t->segments[s].end) {
            return &t->segments[s];
        }
    }
    return NULL;
}

static void adamw_body(lt_run *run, const void *arg)
{
    const optim_case *t = arg;
    int64_t n = t->n;
    float *param = lt_rand(n, 1, -1.0f, 1.0f), *grad = lt_rand(n, 2, -1.0f, 1.0f), *m = lt_rand(n, 3, -0.5f, 0.5f);
    float *v = lt_rand(n, 4, 0.0f, 0.5f), *p0 = lt_copy(param, n), *m0 = lt_copy(m, n), *v0 = lt_copy(v, n);
    float *g0 = lt_copy(grad, n);
    ly_adamw op = {.param = lt_1d(param, n),
                   .grad = lt_1d(grad, n),
                   .m = lt_1d(m, n),
                   .v = lt_1d(v, n),
                   .segments = t->segments,
                   .n_segments = t->n_segments,
                   .lr = 0.01f,
                   .beta1 = 0.9f,
                   .beta2 = 0.95f,
                   .eps = 1e-8f,
                   .weight_decay = 0.1f,
                   .grad_scale = 0.3f,
                   .step = t->step,
                   .clear_grad = (int)(t->step % 2)};
    assert_int_equal(run->cx.ops->adamw(&run->cx, &op), MC_OK);
    lt_output(run, param, n * 4);
    lt_output(run, m, n * 4);
    lt_output(run, v, n * 4);
    for (int64_t i = 0; i < n; i++) {
        assert_true(grad[i] == (op.clear_grad && segment_of(t, i) ? 0.0f : g0[i]));
    }
    double b1 = (double)op.beta1, b2 = (double)op.beta2;
    for (int64_t i = 0; i < n; i++) {
        const ly_segment *s = segment_of(t, i);
        if (!s) {
            assert_true(param[i] == p0[i] && m[i] == m0[i] && v[i] == v0[i]);
            continue;
        }
        double g = (double)g0[i] * (double)op.grad_scale, lr = (double)op.lr * (double)s->lr_mult;
        double mi = b1 * (double)m0[i] + (1.0 - b1) * g, vi = b2 * (double)v0[i] + (1.0 - b2) * g * g;
        double mh = mi / (1.0 - pow(b1, (double)t->step)), vh = vi / (1.0 - pow(b2, (double)t->step));
        double decay = (double)op.weight_decay * (double)s->decay_mult;
        double update = mh / (sqrt(vh) + (double)op.eps);
        /* 1 - beta in f32 has a relative error of 2^-24 / (1 - beta): 1e-6 for beta2. */
        lt_close("m", i, m[i], mi, 1e-6, fabs(mi) + 0.1);
        lt_close("v", i, v[i], vi, 2e-6, vi);
        lt_close("param", i, param[i], (double)p0[i] - lr * (update + decay * (double)p0[i]), 1e-6,
                 0.1 + fabs((double)p0[i]) + lr * fabs(update) * 3.0);
    }
}

static void sgd_body(lt_run *run, const void *arg)
{
    const optim_case *t = arg;
    int64_t n = t->n;
    float *param = lt_rand(n, 1, -1.0f, 1.0f), *grad = lt_rand(n, 2, -1.0f, 1.0f), *m = lt_rand(n, 3, -0.5f, 0.5f);
    float *p0 = lt_copy(param, n), *m0 = lt_copy(m, n);
    ly_sgd op = {.param = lt_1d(param, n),
                 .grad = lt_1d(grad, n),
                 .segments = t->segments,
                 .n_segments = t->n_segments,
                 .lr = 0.1f,
                 .momentum = t->momentum,
                 .weight_decay = 0.1f,
                 .grad_scale = 0.3f};
    if (t->momentum != 0.0f) {
        op.m = lt_1d(m, n);
    }
    assert_int_equal(run->cx.ops->sgd(&run->cx, &op), MC_OK);
    lt_output(run, param, n * 4);
    lt_output(run, m, n * 4);
    for (int64_t i = 0; i < n; i++) {
        const ly_segment *s = segment_of(t, i);
        if (!s) {
            assert_true(param[i] == p0[i] && m[i] == m0[i]);
            continue;
        }
        double g =
            (double)grad[i] * (double)op.grad_scale + (double)op.weight_decay * (double)s->decay_mult * (double)p0[i];
        double mi = t->momentum != 0.0f ? (double)t->momentum * (double)m0[i] + g : g;
        lt_close("m", i, m[i], t->momentum != 0.0f ? mi : (double)m0[i], 3e-7, 1.0);
        lt_close("param", i, param[i], (double)p0[i] - (double)op.lr * (double)s->lr_mult * mi, 3e-7, 1.2);
    }
}

static void sq_norm_body(lt_run *run, const void *arg)
{
    const optim_case *t = arg;
    float *x = lt_rand(t->n, 1, -1.0f, 1.0f);
    double *out = (double *)lt_rand(2, 2, 0.0f, 1.0f), want = 0.0;
    x[t->n / 2] = 1e25f; /* its square does not fit f32 */
    ly_sq_norm op = {
        .x = lt_1d(x, t->n), .out = mc_tensor_1d(out, MC_F64, 1), .segments = t->segments, .n_segments = t->n_segments};
    for (int big = 1; big >= 0; big--) {
        x[t->n / 2] = big ? 1e25f : 0.5f;
        assert_int_equal(run->cx.ops->sq_norm(&run->cx, &op), MC_OK);
        lt_output(run, out, 8);
        want = 0.0;
        for (int64_t i = 0; i < t->n; i++) {
            const ly_segment *s = segment_of(t, i);
            want += s ? (double)s->norm_weight * (double)x[i] * (double)x[i] : 0.0;
        }
        /* Sums of doubles: n roundings of 2^-53 at most. */
        assert_true(fabs(*out - want) <= 1.2e-16 * (double)(t->n + 16) * want);
    }
}

static void test_adamw(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        lt_for_all(adamw_body, &CASES[i]);
    }
}

static void test_sgd(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        lt_for_all(sgd_body, &CASES[i]);
    }
}

static void test_sq_norm(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        lt_for_all(sq_norm_body, &CASES[i]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_adamw),
        cmocka_unit_test(test_sgd),
        cmocka_unit_test(test_sq_norm),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
