/* Random numbers: Random123's known answers, independence of the layout, and the distributions. */
#include <math.h>

#include "megac/base/rng.h"
#include "tests/unit.h"

static void assert_words(mc_rng_block b, uint32_t w0, uint32_t w1, uint32_t w2, uint32_t w3)
{
    const uint32_t want[4] = {w0, w1, w2, w3};
    assert_memory_equal(b.w, want, sizeof want);
}

/* The philox4x32-10 rows of Random123's kat_vectors. */
static void philox_known_answers(void **state)
{
    (void)state;
    assert_words(mc_rng_bits(0, 0, 0, 0), 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8);
    assert_words(mc_rng_bits(0xffffffff, 0xffffffff, UINT64_MAX, UINT64_MAX), 0x408f276d, 0x41c83b0e, 0xa20bc7c6,
                 0x6d5451fd);
    assert_words(mc_rng_bits(0xa4093822, 0x299f31d0, 0x0370734413198a2e, 0x85a308d3243f6a88), 0xd16cfe09, 0x94fdcceb,
                 0x5001e420, 0x24126ea1);
}

static void streams_hold_kind_and_index(void **state)
{
    (void)state;
    assert_int_equal(mc_rng_stream(MC_RNG_INIT, 0), 0x01000000);
    assert_int_equal(mc_rng_stream(MC_RNG_SAMPLING, 0xffffff), 0x09ffffff);
    assert_int_equal(mc_rng_stream(MC_RNG_INIT, 0x1000001), 0x01000001);
}

static void uniform_stays_inside(void **state)
{
    (void)state;
    assert_true(mc_rng_uniform(0) > 0.0f);
    assert_true(mc_rng_uniform(0xffffffff) < 1.0f);
    float last = 0.0f;
    for (uint32_t bits = 0; bits < 0xffff0000u; bits += 0x10000u) {
        float u = mc_rng_uniform(bits);
        assert_true(u > last && u < 1.0f);
        last = u;
    }
    /* symmetric: u(bits) + u(~bits) = 1 exactly */
    for (uint32_t bits = 1; bits < 0xf0000000u; bits += 0x00fedcbau) {
        assert_true((double)mc_rng_uniform(bits) + (double)mc_rng_uniform(~bits) == 1.0);
    }
}

static void threshold_is_the_probability(void **state)
{
    (void)state;
    assert_int_equal(mc_rng_threshold(0.0f), 0);
    assert_int_equal(mc_rng_threshold(0.5f), 0x80000000);
    assert_int_equal(mc_rng_threshold(0.25f), 0x40000000);
    assert_int_equal(mc_rng_threshold(1.0f), 0xffffffff);
    assert_int_equal(mc_rng_threshold(nextafterf(1.0f, 0.0f)), 0xffffff00);
}

/* Elements first .. first + n - 1, cut anywhere, are the same bits. */
static void values_depend_on_the_element_only(void **state)
{
    (void)state;
    enum { N = 257 };
    const uint64_t firsts[] = {0, 1, 2, 3, 5, 1000003, (1ull << 40) + 1};
    float whole[N], part[N];
    for (size_t f = 0; f < sizeof firsts / sizeof firsts[0]; f++) {
        for (int kind = 0; kind < 2; kind++) {
            void (*fill)(uint32_t, uint32_t, uint64_t, int64_t, float, float *) =
                kind ? mc_rng_uniform_fill : mc_rng_normal;
            memset(whole, 0xff, sizeof whole);
            memset(part, 0xff, sizeof part);
            fill(7, 9, firsts[f], N, 0.5f, whole);
            for (int at = 0, n = 1; at < N; at += n, n = 1 + (n * 5 + 2) % 11) {
                fill(7, 9, firsts[f] + (uint64_t)at, n < N - at ? n : N - at, 0.5f, part + at);
            }
            assert_memory_equal(whole, part, sizeof whole);
        }
    }
}

static void nothing_is_written_beyond_the_end(void **state)
{
    (void)state;
    for (int64_t n = 0; n < 9; n++) {
        float out[10];
        for (int i = 0; i < 10; i++) {
            out[i] = -77.0f;
        }
        mc_rng_normal(1, 2, 3, n, 1.0f, out);
        for (int64_t i = n; i < 10; i++) {
            assert_true(out[i] == -77.0f);
        }
    }
}

/* Against Box-Muller in double precision from the words themselves. Tolerance: the angle's rounding, 2 pi 2^-24 = 4e-7,
 * and that of the functions, times the radius (< 6). */
static void normal_is_box_muller(void **state)
{
    (void)state;
    float out[4000];
    mc_rng_normal(42, 43, 0, 4000, 2.0f, out);
    for (uint64_t block = 0; block < 1000; block++) {
        mc_rng_block b = mc_rng_bits(42, 43, 0, block);
        for (int pair = 0; pair < 2; pair++) {
            double u = mc_rng_uniform(b.w[2 * pair]), v = mc_rng_uniform(b.w[2 * pair + 1]);
            double radius = 2.0 * sqrt(-2.0 * log(u)), angle = 2.0 * 3.14159265358979323846 * v;
            const float *z = out + 4 * block + 2 * pair;
            assert_true(fabs(z[0] - radius * cos(angle)) < 1e-5);
            assert_true(fabs(z[1] - radius * sin(angle)) < 1e-5);
        }
    }
}

/* Five standard errors of each moment for n numbers. */
static void normal_moments(void **state)
{
    (void)state;
    enum { N = 1 << 20 };
    float *z = malloc(N * sizeof *z);
    assert_non_null(z);
    mc_rng_normal(1234, mc_rng_stream(MC_RNG_INIT, 5), 12345, N, 1.0f, z);
    double sum[5] = {0}, neighbours = 0, far = 0;
    for (int i = 0; i < N; i++) {
        double power = 1;
        for (int k = 1; k <= 4; k++) {
            power *= z[i];
            sum[k] += power;
        }
        neighbours += i ? (double)z[i] * z[i - 1] : 0;
        far += fabsf(z[i]) > 3.0f;
    }
    free(z);
    double n = N, e = 5 / sqrt(n);
    assert_true(fabs(sum[1] / n) < e);
    assert_true(fabs(sum[2] / n - 1) < e * sqrt(2));
    assert_true(fabs(sum[3] / n) < e * sqrt(15));
    assert_true(fabs(sum[4] / n - 3) < e * sqrt(96));
    assert_true(fabs(neighbours / n) < e);
    assert_true(fabs(far / n - 0.0026997960632601866) < e * sqrt(0.0027));
}

static void uniform_fill_moments(void **state)
{
    (void)state;
    enum { N = 1 << 20 };
    float *x = malloc(N * sizeof *x);
    assert_non_null(x);
    mc_rng_uniform_fill(77, 78, 3, N, 0.3f, x);
    double sum = 0, squares = 0, n = N;
    for (int i = 0; i < N; i++) {
        assert_true(x[i] > -0.3f && x[i] < 0.3f);
        sum += x[i];
        squares += (double)x[i] * x[i];
    }
    free(x);
    double variance = 0.09 / 3;
    assert_true(fabs(sum / n) < 5 * sqrt(variance / n));
    assert_true(fabs(squares / n - variance) < 5 * sqrt((0.0081 / 5 - variance * variance) / n));
}

/* Keys and counters that differ in one place give unrelated words: no equal word in 64 neighbours of each argument. */
static void arguments_are_all_used(void **state)
{
    (void)state;
    mc_rng_block base = mc_rng_bits(1, 2, 3, 4);
    for (int bit = 0; bit < 64; bit++) {
        uint64_t flip = 1ull << bit;
        const mc_rng_block other[] = {
            mc_rng_bits(1 ^ (uint32_t)(flip >> (bit >= 32 ? 32 : 0)), 2, 3, 4),
            mc_rng_bits(1, 2 ^ (uint32_t)(flip >> (bit >= 32 ? 32 : 0)), 3, 4),
            mc_rng_bits(1, 2, 3 ^ flip, 4),
            mc_rng_bits(1, 2, 3, 4 ^ flip),
        };
        for (size_t i = 0; i < sizeof other / sizeof other[0]; i++) {
            for (int w = 0; w < 4; w++) {
                assert_int_not_equal(other[i].w[w], base.w[w]);
            }
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(philox_known_answers),
        cmocka_unit_test(streams_hold_kind_and_index),
        cmocka_unit_test(uniform_stays_inside),
        cmocka_unit_test(threshold_is_the_probability),
        cmocka_unit_test(values_depend_on_the_element_only),
        cmocka_unit_test(nothing_is_written_beyond_the_end),
        cmocka_unit_test(normal_is_box_muller),
        cmocka_unit_test(normal_moments),
        cmocka_unit_test(uniform_fill_moments),
        cmocka_unit_test(arguments_are_all_used),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
