/* The loss scale against a model of its rules that remembers the whole run and computes the scale from scratch. */
#include <math.h>
#include <stdlib.h>

#include "megac/base/rng.h"
#include "megac/train/optim/loss_scale.h"
#include "tests/unit.h"

enum { STEPS = 400 };

/* After n steps: counts overflows since the hysteresis was last full, good steps in a row, and so on. */
static double scale_after(const mt_loss_scale_config *c, const bool *overflow, int n)
{
    double scale = c->initial;
    int64_t run = 0, spent = 0; /* good steps in a row; overflows since the last doubling */
    for (int i = 0; i < n; i++) {
        run = overflow[i] ? 0 : run + 1;
        spent += overflow[i];
        if (overflow[i] && spent >= c->hysteresis) {
            scale = fmax(scale * 0.5, c->min);
        }
        if (c->consecutive && !overflow[i]) {
            spent = 0;
        }
        if (run == c->window) {
            scale *= 2;
            run = spent = 0;
        }
    }
    return scale;
}

static void check_run(const mt_loss_scale_config *c, uint32_t seed, float share)
{
    bool overflow[STEPS];
    mt_loss_scale s = mt_loss_scale_start(c);
    assert_true(s.scale == c->initial);
    for (int i = 0; i < STEPS; i++) {
        overflow[i] = mc_rng_uniform(mc_rng_bits(seed, 1, 0, (uint64_t)i).w[0]) < share;
        mt_loss_scale_update(c, &s, overflow[i]);
        double want = scale_after(c, overflow, i + 1);
        if (s.scale != want) {
            fail_msg("window %lld, hysteresis %lld, step %d: scale %g, expected %g", (long long)c->window,
                     (long long)c->hysteresis, i, s.scale, want);
        }
    }
}

static void test_any_sequence(void **state)
{
    (void)state;
    for (int64_t window = 1; window < 9; window += 2) {
        for (int64_t hysteresis = 1; hysteresis < 4; hysteresis++) {
            for (uint32_t seed = 0; seed < 5; seed++) {
                mt_loss_scale_config c = {true, 65536, seed % 2 ? 1 : 1000, window, hysteresis, false};
                check_run(&c, seed, 0.05f + 0.1f * (float)seed);
                c.consecutive = true;
                check_run(&c, seed, 0.05f + 0.1f * (float)seed);
            }
        }
    }
}

/* The documented example: the defaults with a hysteresis of 2. */
static void test_by_hand(void **state)
{
    (void)state;
    mt_loss_scale_config c = {true, 1024, 300, 3, 2, false};
    const struct {
        bool overflow;
        double scale;
    } steps[] = {
        {true, 1024}, {true, 512},  {true, 300},  /* not 256: the minimum */
        {false, 300}, {false, 300}, {true, 300},  /* starts counting good steps anew */
        {false, 300}, {false, 300}, {false, 600}, /* three in a row */
        {true, 600},  {true, 300},  {true, 300},
    };
    mt_loss_scale s = mt_loss_scale_start(&c);
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
        mt_loss_scale_update(&c, &s, steps[i].overflow);
        assert_true(s.scale == steps[i].scale);
    }
}

/* DeepSpeed's update_scale, step by step as it stands there: its state is the scale, the hysteresis, the number of the
 * step and that of the last overflow. */
static void deepspeed(const mt_loss_scale_config *c, const bool *overflow, double *scales)
{
    double scale = c->initial;
    int64_t hysteresis = c->hysteresis, last = -1;
    for (int64_t i = 0; i < STEPS; i++) {
        if (overflow[i] && (c->hysteresis == 1 || hysteresis == 1)) {
            scale = fmax(scale / 2, c->min);
        } else if (overflow[i]) {
            hysteresis--;
        }
        if (overflow[i]) {
            last = i;
        } else {
            bool grows = (i - last) % c->window == 0;
            hysteresis = c->consecutive || grows ? c->hysteresis : hysteresis;
            scale *= grows ? 2 : 1;
        }
        scales[i] = scale;
    }
}

static void test_is_deepspeed(void **state)
{
    (void)state;
    int differ = 0; /* runs in which it matters whether overflows come in a row */
    for (uint32_t seed = 0; seed < 40; seed++) {
        bool overflow[STEPS];
        double scales[2][STEPS];
        mt_loss_scale_config c = {true, 65536, 1, 1 + seed % 7, 1 + seed % 4, false};
        for (int i = 0; i < STEPS; i++) {
            overflow[i] = mc_rng_uniform(mc_rng_bits(seed, 2, 0, (uint64_t)i).w[0]) < 0.3f;
        }
        for (int consecutive = 0; consecutive < 2; consecutive++) {
            c.consecutive = consecutive;
            mt_loss_scale s = mt_loss_scale_start(&c);
            deepspeed(&c, overflow, scales[consecutive]);
            for (int i = 0; i < STEPS; i++) {
                mt_loss_scale_update(&c, &s, overflow[i]);
                assert_true(s.scale == scales[consecutive][i]);
            }
        }
        differ += memcmp(scales[0], scales[1], sizeof scales[0]) != 0;
    }
    assert_true(differ > 20);
}

static void test_in_a_row_by_hand(void **state)
{
    (void)state;
    mt_loss_scale_config c = {true, 1024, 1, 3, 2, true};
    const struct {
        bool overflow;
        double scale;
    } steps[] = {
        {true, 1024}, {false, 1024}, {true, 1024}, {false, 1024},              /* one at a time: forgiven for ever */
        {true, 1024}, {true, 512},   {true, 256},  {false, 256},  {true, 256}, /* forgiven again */
    };
    mt_loss_scale s = mt_loss_scale_start(&c);
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
        mt_loss_scale_update(&c, &s, steps[i].overflow);
        assert_true(s.scale == steps[i].scale);
    }
}

static void test_static(void **state)
{
    (void)state;
    mt_loss_scale_config c = {.initial = 128, .min = 1, .window = 1, .hysteresis = 1};
    mt_loss_scale s = mt_loss_scale_start(&c);
    for (int i = 0; i < 10; i++) {
        mt_loss_scale_update(&c, &s, i % 2);
        assert_true(s.scale == 128);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_any_sequence),     cmocka_unit_test(test_by_hand), cmocka_unit_test(test_is_deepspeed),
        cmocka_unit_test(test_in_a_row_by_hand), cmocka_unit_test(test_static),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
