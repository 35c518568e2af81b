/* The permutation is a bijection, differs by key, shows no pattern; blends keep their proportions exactly. */
#include <math.h>

#include "datasets/ds_impl.h"
#include "megac/base/alloc.h"
#include "tests/unit.h"

static void check_bijection(uint64_t n, uint32_t seed, uint64_t epoch)
{
    unsigned char *seen = calloc(n, 1);
    for (uint64_t i = 0; i < n; i++) {
        uint64_t x = ds_i_permute(seed, 5, epoch, n, i);
        assert_true(x < n);
        assert_int_equal(seen[x], 0);
        seen[x] = 1;
    }
    free(seen);
}

static void bijection(void **state)
{
    (void)state;
    for (uint64_t n = 1; n <= 600; n++) {
        check_bijection(n, (uint32_t)n, n % 3);
    }
    static const uint64_t large[] = {1023, 1024, 1025, 4095, 4097, 9973, 32768, 65535, 65537, 99991, 100000};
    for (size_t i = 0; i < sizeof large / sizeof *large; i++) {
        check_bijection(large[i], 1234, i);
    }
}

/* At the largest n every index still lands inside, and close indices land apart. */
static void huge(void **state)
{
    (void)state;
    uint64_t n = UINT64_MAX - 5, near = 0;
    for (uint64_t i = 0; i < 1000; i++) {
        uint64_t a = ds_i_permute(7, 1, 0, n, i), b = ds_i_permute(7, 1, 0, n, i + 1);
        assert_true(a < n && b < n && a != b);
        near += (a > b ? a - b : b - a) < n / 1000;
    }
    assert_true(near < 20); /* 2 expected */
}

/* Each of n indices goes to each of n places about equally often over epochs: chi-square of n * n cells with
 * (n - 1)^2 degrees of freedom f; mean f, standard deviation sqrt(2 f); six deviations allowed. */
static void uniform_small(void **state)
{
    (void)state;
    for (uint64_t n = 2; n <= 40; n += n < 12 ? 1 : 7) {
        uint64_t counts[40][40] = {{0}};
        const int epochs = 20000;
        for (int e = 0; e < epochs; e++) {
            for (uint64_t i = 0; i < n; i++) {
                counts[i][ds_i_permute(99, 3, (uint64_t)e, n, i)]++;
            }
        }
        double expect = (double)epochs / (double)n, chi = 0, f = (double)((n - 1) * (n - 1));
        for (uint64_t i = 0; i < n; i++) {
            for (uint64_t j = 0; j < n; j++) {
                chi += ((double)counts[i][j] - expect) * ((double)counts[i][j] - expect) / expect;
            }
        }
        assert_true(fabs(chi - f) < 6 * sqrt(2 * f) + 6);
    }
}

static uint64_t agreements(uint32_t s1, uint32_t t1, uint64_t e1, uint32_t s2, uint32_t t2, uint64_t e2)
{
    uint64_t n = 10000, same = 0;
    for (uint64_t i = 0; i < n; i++) {
        same += ds_i_permute(s1, t1, e1, n, i) == ds_i_permute(s2, t2, e2, n, i);
    }
    return same;
}

/* Two random permutations agree in 1 place on average (Poisson): 12 has probability below 1e-9. */
static void keys_differ(void **state)
{
    (void)state;
    assert_true(agreements(1, 1, 0, 1, 1, 0) == 10000);
    assert_true(agreements(1, 1, 0, 1, 1, 1) < 12);
    assert_true(agreements(1, 1, 0, 2, 1, 0) < 12);
    assert_true(agreements(1, 1, 0, 1, 2, 0) < 12);
}

/* Neighbours stay no neighbours, and their differences are not a constant stride: the rank correlation of (p(i),
 * p(i + 1)) is near 0, with standard deviation 1 / sqrt(n). */
static void no_pattern(void **state)
{
    (void)state;
    const uint64_t n = 50000;
    double mean = ((double)n - 1) / 2, cov = 0, var = 0;
    uint64_t adjacent = 0, last = ds_i_permute(3, 1, 0, n, 0);
    for (uint64_t i = 1; i < n; i++) {
        uint64_t x = ds_i_permute(3, 1, 0, n, i);
        adjacent += x == last + 1 || last == x + 1;
        cov += ((double)x - mean) * ((double)last - mean);
        var += ((double)x - mean) * ((double)x - mean);
        last = x;
    }
    assert_true(adjacent < 20); /* 2 expected */
    assert_true(fabs(cov / var) < 6 / sqrt((double)n));
}

static void blend_counts(void **state)
{
    (void)state;
    static const double weights[][4] = {
        {1, 1, 1, 1}, {0.7, 0.2, 0.1, 1e-4}, {1e5, 3, 17.5, 1}, {1.0 / 3, 1.0 / 7, 2, 0.01}};
    for (size_t k = 0; k < sizeof weights / sizeof *weights; k++) {
        uint64_t shares[4], counts[4], before[4] = {0};
        ds_i_blend b;
        assert_int_equal(ds_i_blend_init(weights[k], 4, shares, &b), MC_OK);
        double sum = weights[k][0] + weights[k][1] + weights[k][2] + weights[k][3];
        for (uint64_t blocks = 1; blocks < 3000; blocks += blocks < 1000 ? 1 : 97) {
            uint64_t total = 0;
            ds_i_blend_counts(&b, blocks, counts);
            for (int i = 0; i < 4; i++) {
                double exact = (double)blocks * (double)b.block * weights[k][i] / sum;
                assert_true(fabs((double)counts[i] - exact) < 1 + 1e-6 * exact);
                assert_true(counts[i] >= before[i]);
                before[i] = counts[i];
                total += counts[i];
            }
            assert_true(total == blocks * b.block);
        }
    }
}

/* Every member's samples are numbered 0, 1, 2, ... without gap or repeat. */
static void blend_places(void **state)
{
    (void)state;
    static const double weights[3] = {5, 2.5, 0.03};
    for (int shuffle = 0; shuffle < 2; shuffle++) {
        uint64_t shares[3], n[3] = {0}, top[3] = {0};
        unsigned char *seen[3];
        ds_i_blend b;
        assert_int_equal(ds_i_blend_init(weights, 3, shares, &b), MC_OK);
        uint64_t samples = 20 * b.block;
        for (int i = 0; i < 3; i++) {
            seen[i] = calloc(samples, 1);
        }
        for (uint64_t s = 0; s < samples; s++) {
            int m;
            uint64_t index;
            ds_i_blend_place(&b, 11, shuffle, s, &m, &index);
            assert_true(m >= 0 && m < 3 && index < samples);
            assert_int_equal(seen[m][index], 0);
            seen[m][index] = 1;
            n[m]++;
            top[m] = index + 1 > top[m] ? index + 1 : top[m];
        }
        for (int i = 0; i < 3; i++) {
            assert_true(n[i] == top[i] && n[i] > 0);
            free(seen[i]);
        }
    }
}

static void blend_refuses(void **state)
{
    (void)state;
    static const double weights[2] = {1, 1e-9};
    uint64_t shares[2];
    ds_i_blend b;
    char text[512];
    mc_status st;
    UNIT_CAPTURE(text, st = ds_i_blend_init(weights, 2, shares, &b));
    assert_int_equal(st, MC_INVALID);
    assert_non_null(strstr(text, "1e-09"));
}

static void mock_is_learnable(void **state)
{
    (void)state;
    enum { VOCAB = 50, COUNT = 4001 };
    int32_t a[COUNT], b[COUNT];
    static uint32_t pairs[VOCAB][VOCAB];
    memset(pairs, 0, sizeof pairs);
    double entropy = 0;
    for (uint64_t s = 0; s < 20; s++) {
        ds_i_mock_window(5, 0, s, VOCAB, COUNT, a);
        for (int i = 0; i < COUNT; i++) {
            assert_in_range(a[i], 0, VOCAB - 1);
        }
        for (int i = 1; i < COUNT; i++) {
            pairs[a[i - 1]][a[i]]++;
        }
    }
    ds_i_mock_window(5, 0, 7, VOCAB, COUNT, a);
    ds_i_mock_window(5, 0, 7, VOCAB, COUNT, b);
    assert_memory_equal(a, b, sizeof a);
    ds_i_mock_window(5, 1, 7, VOCAB, COUNT, b);
    assert_memory_not_equal(a, b, sizeof a); /* another split */
    for (int i = 0; i < VOCAB; i++) {
        double row = 0;
        for (int j = 0; j < VOCAB; j++) {
            row += pairs[i][j];
        }
        for (int j = 0; j < VOCAB; j++) {
            entropy -= pairs[i][j] ? pairs[i][j] / (20.0 * (COUNT - 1)) * log(pairs[i][j] / row) : 0;
        }
    }
    /* 15/16 of the steps have 1.21 nats, the noise adds 0.23 of the choice and 1/16 of ln 50: at most 1.7 in all,
     * against ln 50 = 3.9 without the table. Successors that coincide lower it. */
    assert_true(entropy > 0.6 && entropy < 1.75);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bijection),    cmocka_unit_test(huge),          cmocka_unit_test(uniform_small),
        cmocka_unit_test(keys_differ),  cmocka_unit_test(no_pattern),    cmocka_unit_test(blend_counts),
        cmocka_unit_test(blend_places), cmocka_unit_test(blend_refuses), cmocka_unit_test(mock_is_learnable),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
