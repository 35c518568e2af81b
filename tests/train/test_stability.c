/* What is found in losses and gradient norms, against sums of the textbook over the whole list of accepted steps. */
#include <math.h>
#include <string.h>

#include "megac/base/rng.h"
#include "megac/train/optim/stability.h"
#include "tests/unit.h"

enum { STEPS = 300, WINDOW = 7 };

static double uniform(uint32_t stream, int i)
{
    return (double)mc_rng_uniform(mc_rng_bits(5, stream, 0, (uint64_t)i).w[0]);
}

/* Mean and population deviation of the last WINDOW of n values. */
static void statistics(const double *v, int n, double *mean_out, double *deviation_out)
{
    double sum = 0, squares = 0;
    for (int i = n - WINDOW; i < n; i++) {
        sum += v[i];
        squares += v[i] * v[i];
    }
    *mean_out = sum / WINDOW;
    *deviation_out = sqrt(squares / WINDOW - *mean_out * *mean_out);
}

static mt_finding expected(const mt_stability_config *c, const double *losses, const double *norms, int n, double loss,
                           double norm)
{
    double mean, deviation, norm_mean, unused;
    if (norm > c->norm_limit) {
        return MT_LARGE_NORM;
    }
    if (n < WINDOW) {
        return MT_SANE;
    }
    statistics(losses, n, &mean, &deviation);
    statistics(norms, n, &norm_mean, &unused);
    return norm > c->norm_factor * norm_mean        ? MT_NORM_SPIKE
           : loss > c->loss_factor * mean           ? MT_LOSS_SPIKE
           : (loss - mean) / deviation > c->z_score ? MT_LOSS_OUTLIER
                                                    : MT_SANE;
}

/* A long run with spikes of every kind; half way through the watch is saved and restored into another. */
static void test_findings(void **state)
{
    const mt_stability_config c = {
        .norm_limit = 5.5, .norm_factor = 2, .loss_factor = 1.6, .z_score = 2.5, .window = WINDOW};
    mt_stability s, other;
    double losses[STEPS], norms[STEPS], saved[2][WINDOW];
    int n = 0, found[MT_LOSS_OUTLIER + 1] = {0};
    char text[200];
    (void)state;
    assert_int_equal(mt_stability_init(&s, &c), MC_OK);
    for (int i = 0; i < STEPS; i++) {
        double loss = 2 + uniform(1, i) + (uniform(2, i) < 0.1 ? 4 * uniform(3, i) : 0);
        double norm = 1 + uniform(4, i) + (uniform(5, i) < 0.1 ? 6 * uniform(6, i) : 0);
        mt_finding want = expected(&c, losses, norms, n, loss, norm);
        assert_int_equal(mt_stability_judge(&s, loss, norm, text, sizeof text), want);
        assert_int_equal(text[0] != 0, want != MT_SANE);
        found[want]++;
        if (want == MT_SANE) {
            mt_stability_accept(&s, loss, norm);
            losses[n] = loss;
            norms[n++] = norm;
        }
        if (i == STEPS / 2) {
            assert_int_equal(mt_stability_init(&other, &c), MC_OK);
            mt_stability_restore(&other, saved[0], saved[1], mt_stability_history(&s, saved[0], saved[1]));
            mt_stability_fini(&s);
            s = other;
        }
    }
    for (int k = 0; k <= MT_LOSS_OUTLIER; k++) {
        assert_true(k == MT_NOT_FINITE || found[k] > 2); /* every kind was met */
    }
    mt_stability_fini(&s);
}

static void test_not_finite(void **state)
{
    static const double values[][2] = {{NAN, 1}, {1, NAN}, {INFINITY, 1}, {1, INFINITY}, {-INFINITY, NAN}};
    const mt_stability_config c = {.loss_factor = 2, .window = 2, .spike_policy = MT_POLICY_REWIND};
    mt_stability s;
    char text[200];
    (void)state;
    assert_int_equal(mt_stability_init(&s, &c), MC_OK);
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
        assert_int_equal(mt_stability_judge(&s, values[i][0], values[i][1], text, sizeof text), MT_NOT_FINITE);
    }
    assert_int_equal(mt_policy_of(&c, MT_NOT_FINITE), MT_POLICY_SKIP);
    assert_int_equal(mt_policy_of(&c, MT_LOSS_SPIKE), MT_POLICY_REWIND);
    mt_stability_fini(&s);
}

/* A smaller window takes the newest of a checkpoint's steps; without limits nothing is kept, and nothing found. */
static void test_restore_into_another_window(void **state)
{
    static const double losses[] = {9, 9, 1, 1}, norms[] = {1, 1, 1, 1};
    mt_stability_config c = {.loss_factor = 2, .window = 2};
    mt_stability s;
    char text[200];
    double out[2][4];
    (void)state;
    assert_int_equal(mt_stability_init(&s, &c), MC_OK);
    mt_stability_restore(&s, losses, norms, 4);
    assert_int_equal(mt_stability_judge(&s, 2.5, 1, text, sizeof text), MT_LOSS_SPIKE);
    assert_non_null(strstr(text, "2.5"));
    mt_stability_fini(&s);
    c.loss_factor = 0;
    assert_int_equal(mt_stability_init(&s, &c), MC_OK);
    mt_stability_restore(&s, losses, norms, 4);
    assert_int_equal(mt_stability_history(&s, out[0], out[1]), 0);
    assert_int_equal(mt_stability_judge(&s, 1e30, 1e30, text, sizeof text), MT_SANE);
    mt_stability_fini(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_findings),
        cmocka_unit_test(test_not_finite),
        cmocka_unit_test(test_restore_into_another_window),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
