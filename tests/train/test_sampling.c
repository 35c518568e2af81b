/* Sampling: exact sets under top-k and top-p, frequencies against exact probabilities. */
#include <math.h>
#include <stdbool.h>

#include "megac/train/sampling.h"
#include "tests/unit.h"

enum { V = 8, DRAWS = 40000 };

static const float logits[V] = {1.0f, 3.0f, -2.0f, 3.0f, 0.5f, -INFINITY, 2.0f, NAN};

/* Draws at DRAWS positions. */
static void count(const mt_sampling *s, const float *x, int n, int *counts)
{
    memset(counts, 0, (size_t)n * sizeof *counts);
    for (int i = 0; i < DRAWS; i++) {
        int32_t t = mt_sample(s, x, n, 7, (uint64_t)i);
        assert_true(t >= 0 && t < n);
        counts[t]++;
    }
}

/* Chi-square of the counts against exp(logit / T) over the tokens of `allowed`; other tokens must not occur. The bounds
 * are the 99.9 % points for 1 to 6 degrees of freedom: with the fixed seed the outcome is always the same. */
static void expect_distribution(const int *counts, const float *x, int n, double temperature, unsigned allowed)
{
    static const double bound[] = {0, 10.83, 13.82, 16.27, 18.47, 20.52, 22.46};
    double total = 0, chi2 = 0;
    int freedom = -1;
    for (int i = 0; i < n; i++) {
        total += allowed >> i & 1 ? exp((double)x[i] / temperature) : 0;
    }
    for (int i = 0; i < n; i++) {
        if ((allowed >> i & 1) == 0) {
            assert_int_equal(counts[i], 0);
            continue;
        }
        double expected = DRAWS * exp((double)x[i] / temperature) / total;
        chi2 += (counts[i] - expected) * (counts[i] - expected) / expected;
        freedom++;
    }
    assert_true(freedom <= 6);
    if (freedom > 0 && chi2 > bound[freedom]) {
        fail_msg("chi-square %g of %d degrees of freedom", chi2, freedom);
    }
}

enum { ALL = 0x5f }; /* tokens 0, 1, 2, 3, 4, 6 */

static void test_greedy(void **state)
{
    (void)state;
    mt_sampling s = {.seed = 1};
    for (uint64_t i = 0; i < 50; i++) {
        assert_int_equal(mt_sample(&s, logits, V, 0, i), 1); /* 1 and 3 are equal: the lower one */
    }
    const float none[] = {NAN, -INFINITY, NAN}, one[] = {NAN, -INFINITY, -50.0f, NAN}, huge[] = {1, INFINITY, 2};
    s.temperature = 1;
    assert_int_equal(mt_sample(&s, none, 3, 0, 0), -1);
    assert_int_equal(mt_sample(&s, one, 4, 0, 0), 2);
    assert_int_equal(mt_sample(&s, huge, 3, 0, 0), 1);
    int32_t scratch[V];
    s.scratch = scratch;
    s.top_k = 1;
    for (uint64_t i = 0; i < 50; i++) {
        assert_int_equal(mt_sample(&s, logits, V, 0, i), 1);
    }
}

static void test_temperature(void **state)
{
    (void)state;
    static const double temperatures[] = {0.5, 1.0, 3.0};
    int counts[V];
    for (int i = 0; i < 3; i++) {
        mt_sampling s = {.seed = 5, .temperature = temperatures[i]};
        count(&s, logits, V, counts);
        expect_distribution(counts, logits, V, temperatures[i], ALL);
    }
}

static void test_top_k(void **state)
{
    (void)state;
    /* In order of likelihood: 1, 3, 6, 0, 4, 2. */
    static const unsigned sets[] = {0, 0x02, 0x0a, 0x4a, 0x4b, 0x5b, 0x5f, 0x5f, 0x5f, 0x5f};
    int32_t scratch[V];
    int counts[V];
    for (int k = 1; k <= 9; k++) {
        mt_sampling s = {.seed = 11, .temperature = 1.5, .top_k = k, .scratch = scratch};
        count(&s, logits, V, counts);
        expect_distribution(counts, logits, V, 1.5, sets[k]);
    }
}

/* Probabilities 0.4, 0.3, 0.2, 0.1 at tokens 2, 0, 3, 1. */
static void test_top_p(void **state)
{
    (void)state;
    const float x[4] = {logf(0.3f), logf(0.1f), logf(0.4f), logf(0.2f)};
    static const struct {
        double p;
        int k;
        unsigned set;
    } rows[] = {{0.01, 0, 0x4},
                {0.39, 0, 0x4},
                {0.41, 0, 0x5},
                {0.69, 0, 0x5},
                {0.71, 0, 0xd},
                {0.89, 0, 0xd},
                {0.91, 0, 0xf},
                {1.0, 0, 0xf},
                {0.0, 0, 0xf},
                /* after top-k 3 they weigh 4/9, 3/9, 2/9; after top-k 2, 4/7 and 3/7 */
                {0.44, 3, 0x4},
                {0.45, 3, 0x5},
                {0.77, 3, 0x5},
                {0.79, 3, 0xd},
                {0.56, 2, 0x4},
                {0.58, 2, 0x5}};
    int32_t scratch[4];
    int counts[4];
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        mt_sampling s = {.seed = 3, .temperature = 1, .top_p = rows[i].p, .top_k = rows[i].k, .scratch = scratch};
        count(&s, x, 4, counts);
        expect_distribution(counts, x, 4, 1, rows[i].set);
    }
}

static void test_pure(void **state)
{
    (void)state;
    mt_sampling s = {.seed = 9, .temperature = 1};
    int same_seed = 0, same_prompt = 0;
    for (uint64_t i = 0; i < 1000; i++) {
        int32_t t = mt_sample(&s, logits, V, 2, i);
        assert_int_equal(mt_sample(&s, logits, V, 2, i), t);
        mt_sampling other = s;
        other.seed = 10;
        same_seed += mt_sample(&other, logits, V, 2, i) == t;
        same_prompt += mt_sample(&s, logits, V, 3, i) == t;
    }
    /* Independent draws agree with probability sum p^2 = 0.35: far from 1000 times. */
    assert_true(same_seed < 500 && same_prompt < 500);
}

/* Every token of a large flat vocabulary can be reached, and the order of likelihood among 1000 is right. */
static void test_large(void **state)
{
    (void)state;
    enum { N = 1000 };
    float x[N];
    int32_t scratch[N];
    for (int i = 0; i < N; i++) {
        x[i] = (float)((i * 617) % N); /* a permutation: token with value v is the vth from below */
    }
    for (int k = 1; k < N; k += 97) {
        mt_sampling s = {.seed = 1, .temperature = 1e9, .top_k = k, .scratch = scratch};
        for (uint64_t i = 0; i < 200; i++) {
            assert_true(x[mt_sample(&s, x, N, 0, i)] >= (float)(N - k));
        }
    }
    mt_sampling flat = {.seed = 1, .temperature = 1e9};
    bool seen[N] = {false};
    for (uint64_t i = 0; i < 20000; i++) {
        seen[mt_sample(&flat, x, N, 0, i)] = true;
    }
    for (int i = 0; i < N; i++) {
        assert_true(seen[i]); /* missed with probability e^-20 each */
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_greedy), cmocka_unit_test(test_temperature), cmocka_unit_test(test_top_k),
        cmocka_unit_test(test_top_p),  cmocka_unit_test(test_pure),        cmocka_unit_test(test_large),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
