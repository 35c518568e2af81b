#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/layers/op_harness.h"

/* The vocabulary of `vocab` columns, `valid` of them real, split over `shards` equal shards. */
typedef struct xent_case {
    int64_t rows, vocab, valid;
    int shards, weights;
    float spread; /* logits lie in +-spread */
} xent_case;

/* Columns of one shard, copied out of the whole. */
static float *shard_of(const float *whole, const xent_case *t, int s)
{
    int64_t width = t->vocab / t->shards;
    float *x = lt_f32(t->rows * width);
    for (int64_t r = 0; r < t->rows; r++) {
        memcpy(x + r * width, whole + r * t->vocab + s * width, (size_t)width * 4);
    }
    return x;
}

/* log-sum-exp of a row in double. */
static double ref_lse(const float *x, int64_t n)
{
    double max = -INFINITY, sum = 0.0;
    for (int64_t c = 0; c < n; c++) {
        max = (double)x[c] > max ? (double)x[c] : max;
    }
    for (int64_t c = 0; c < n; c++) {
        sum += exp((double)x[c] - max);
    }
    return max + log(sum);
}

static void xent_body(lt_run *run, const void *arg)
{
    const xent_case *t = arg;
    int64_t width = t->vocab / t->shards, n = t->rows * width;
    const float scale = 0.37f;
    float *whole = lt_rand(t->rows * t->vocab, 1, -t->spread, t->spread), *losses = lt_f32(t->rows);
    float *weights = lt_rand(t->rows, 2, 0.0f, 2.0f), *stats = lt_f32(t->shards * t->rows * 3);
    int32_t *targets = lt_ints(t->rows, 3, 0, (int32_t)t->valid);
    weights[0] = 0.0f;
    mc_tensor tt = mc_tensor_1d(targets, MC_I32, t->rows);
    for (int s = 0; s < t->shards; s++) {
        float *x = shard_of(whole, t, s);
        ly_xent_stats op = {.logits = lt_2d(x, t->rows, width),
                            .targets = tt,
                            .stats = lt_2d(stats + s * t->rows * 3, t->rows, 3),
                            .vocab0 = s * width,
                            .vocab_valid = t->valid};
        assert_int_equal(run->cx.ops->xent_stats(&run->cx, &op), MC_OK);
    }
    lt_output(run, stats, t->shards * t->rows * 3 * 4);
    for (int s = 0; s < t->shards; s++) {
        float *x = shard_of(whole, t, s);
        ly_xent_grad op = {.logits = lt_2d(x, t->rows, width),
                           .targets = tt,
                           .all_stats = mc_tensor_3d(stats, MC_F32, t->shards, t->rows, 3),
                           .losses = lt_1d(losses, t->rows),
                           .vocab0 = s * width,
                           .vocab_valid = t->valid,
                           .scale = scale,
                           .write_grad = 1};
        if (t->weights) {
            op.weights = lt_1d(weights, t->rows);
        }
        assert_int_equal(run->cx.ops->xent_grad(&run->cx, &op), MC_OK);
        lt_output(run, x, n * 4);
        for (int64_t r = 0; r < t->rows; r++) {
            const float *row = whole + r * t->vocab;
            double lse = ref_lse(row, t->valid), w = t->weights ? (double)weights[r] : 1.0;
            /* exp's argument is rounded at 2 * spread * 2^-24. */
            double tolerance = 6e-7 + 1.2e-7 * 2.0 * (double)t->spread;
            lt_close("loss", r, losses[r], w * (lse - (double)row[targets[r]]), tolerance, 1.0 + 2.0 * w);
            for (int64_t c = 0; c < width; c++) {
                int64_t v = s * width + c;
                double p = v < t->valid ? exp((double)row[v] - lse) - (v == targets[r] ? 1.0 : 0.0) : 0.0;
                lt_close("dlogits", r * width + c, x[r * width + c], p * w * (double)scale, tolerance, 1.0);
                assert_true(v < t->valid || x[r * width + c] == 0.0f);
            }
        }
        /* Without write_grad the logits stay, and the losses are the same. */
        float *again = shard_of(whole, t, s), *keep = lt_copy(again, n), *losses2 = lt_f32(t->rows);
        op.logits = lt_2d(again, t->rows, width);
        op.losses = lt_1d(losses2, t->rows);
        op.write_grad = 0;
        assert_int_equal(run->cx.ops->xent_grad(&run->cx, &op), MC_OK);
        assert_memory_equal(again, keep, (size_t)n * 4);
        assert_memory_equal(losses, losses2, (size_t)t->rows * 4);
    }
}

static void test_xent(void **state)
{
    static const xent_case cases[] = {
        {1, 1, 1, 1, 0, 1.0f},        {3, 5, 4, 1, 1, 4.0f},        {17, 304, 301, 1, 1, 10.0f},
        {5, 304, 301, 4, 1, 10.0f},   {4, 4096, 2001, 2, 0, 30.0f}, {3, 4096, 2001, 4, 1, 1.0f},
        {2, 3000, 3000, 1, 0, 60.0f}, {6, 768, 700, 3, 1, 5.0f},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        lt_for_all(xent_body, &cases[i]);
    }
}

/* Logits of -inf, +-1e4 and NaN: no overflow, and a NaN is never hidden. */
static void special_body(lt_run *run, const void *arg)
{
    enum { R = 4, V = 2500 };
    float *x = lt_f32(R * V), *stats = lt_f32(R * 3), *losses = lt_f32(R);
    int32_t *targets = lt_ints(R, 1, 0, 1);
    (void)arg;
    for (int i = 0; i < R * V; i++) {
        x[i] = i < V ? -INFINITY : i < 2 * V ? (i % 2 ? 1e4f : -1e4f) : 0.0f;
    }
    x[V - 1] = 3.0f;       /* row 0: one finite logit, in the last chunk */
    x[2 * V + 1700] = NAN; /* row 2: a NaN among zeros */
    for (int i = 3 * V; i < 4 * V; i++) {
        x[i] = i % 7 ? -INFINITY : NAN; /* row 3: NaN among -inf */
    }
    targets[0] = V - 1;
    targets[1] = 1;
    mc_tensor tt = mc_tensor_1d(targets, MC_I32, R);
    ly_xent_stats op = {.logits = lt_2d(x, R, V), .targets = tt, .stats = lt_2d(stats, R, 3), .vocab_valid = V};
    assert_int_equal(run->cx.ops->xent_stats(&run->cx, &op), MC_OK);
    assert_true(stats[0] == 3.0f && stats[1] == 1.0f);
    assert_true(stats[3] == 1e4f && stats[4] == V / 2);
    assert_true(isnan(stats[7]) && isnan(stats[10]));
    ly_xent_grad grad = {.logits = lt_2d(x, R, V),
                         .targets = tt,
                         .all_stats = mc_tensor_3d(stats, MC_F32, 1, R, 3),
                         .losses = lt_1d(losses, R),
                         .vocab_valid = V,
                         .scale = 1.0f,
                         .write_grad = 1};
    assert_int_equal(run->cx.ops->xent_grad(&run->cx, &grad), MC_OK);
    lt_close("loss", 0, losses[0], 0.0, 1e-7, 1.0);
    lt_close("loss", 1, losses[1], log(V / 2.0), 1e-3, 1.0); /* 1e4 has a spacing of 1e-3 */
    assert_true(isnan(losses[2]) && isnan(losses[3]));
    assert_true(x[0] == 0.0f && x[V - 1] == 0.0f);
}

static void test_xent_special(void **state)
{
    (void)state;
    lt_for_all(special_body, NULL);
}

/* A shard of padding only: maximum -inf, sum 0, gradient 0. */
static void padding_body(lt_run *run, const void *arg)
{
    enum { R = 3, V = 40 };
    float *x = lt_rand(R * V, 1, -1.0f, 1.0f), *stats = lt_f32(R * 3);
    int32_t *targets = lt_ints(R, 2, 0, 50);
    (void)arg;
    ly_xent_stats op = {.logits = lt_2d(x, R, V),
                        .targets = mc_tensor_1d(targets, MC_I32, R),
                        .stats = lt_2d(stats, R, 3),
                        .vocab0 = 60,
                        .vocab_valid = 50};
    assert_int_equal(run->cx.ops->xent_stats(&run->cx, &op), MC_OK);
    for (int r = 0; r < R; r++) {
        assert_true(stats[3 * r] == -INFINITY && stats[3 * r + 1] == 0.0f && stats[3 * r + 2] == 0.0f);
    }
}

static void test_xent_padding_shard(void **state)
{
    (void)state;
    lt_for_all(padding_body, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_xent),
        cmocka_unit_test(test_xent_special),
        cmocka_unit_test(test_xent_padding_shard),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
