/* FLOPs per token against matrix products counted one by one and against published formulas. */
#include <math.h>

#include "megac/train/model/flops.h"
#include "tests/unit.h"

static double product(int64_t m, int64_t n, int64_t k)
{
    return 2.0 * (double)m * (double)n * (double)k;
}

static void near(double a, double b, double tolerance)
{
    if (!(fabs(a - b) <= tolerance * fabs(b))) {
        fail_msg("%.17g, expected %.17g", a, b);
    }
}

/* Products of one forward over a whole sequence; `pairs`: (query, key) pairs that attention computes. */
static double count(const mt_flops_shape *s, double pairs)
{
    int64_t t = s->seq_length, q = s->heads * s->head_dim, kv = s->groups * s->head_dim;
    double f = 0;
    for (int64_t l = 0; l < s->n_layers; l++) {
        f += product(t, q, s->hidden) + product(t, kv, s->hidden) + product(t, kv, s->hidden);
        for (int64_t h = 0; h < s->heads; h++) {
            f += 2.0 * pairs * (double)s->head_dim; /* Q K^T */
            f += 2.0 * pairs * (double)s->head_dim; /* P V */
        }
        f += product(t, s->hidden, q);
        f += product(t, s->ffn, s->hidden) + (s->gated ? product(t, s->ffn, s->hidden) : 0);
        f += product(t, s->hidden, s->ffn);
    }
    return f + product(t, s->vocab, s->hidden);
}

static const mt_flops_shape gpt2 = {.n_layers = 12,
                                    .hidden = 768,
                                    .ffn = 3072,
                                    .heads = 12,
                                    .groups = 12,
                                    .head_dim = 64,
                                    .seq_length = 1024,
                                    .window_left = -1,
                                    .vocab = 50304};
static const mt_flops_shape llama = {.n_layers = 7,
                                     .hidden = 320,
                                     .ffn = 896,
                                     .heads = 10,
                                     .groups = 2,
                                     .head_dim = 48, /* heads x head_dim is not hidden */
                                     .gated = true,
                                     .seq_length = 96,
                                     .window_left = -1,
                                     .vocab = 1000};

static void test_counted_by_hand(void **state)
{
    (void)state;
    const mt_flops_shape *shapes[] = {&gpt2, &llama};
    for (int i = 0; i < 2; i++) {
        const mt_flops_shape *s = shapes[i];
        double t = (double)s->seq_length;
        mt_flops f = mt_flops_per_token(s);
        near(t * f.full, 3 * count(s, t * t), 1e-14);
        near(t * f.causal, 3 * count(s, t * t / 2), 1e-14);
        near(f.causal, 3 * (f.linear + f.attention_half), 1e-15);
        /* What a causal mask really leaves is half a diagonal more. */
        assert_true(t * f.causal < 3 * count(s, t * (t + 1) / 2));
    }
}

static void test_published_formulas(void **state)
{
    (void)state;
    const mt_flops_shape *s = &gpt2;
    double l = 12, h = 768, t = 1024, v = 50304;
    mt_flops f = mt_flops_per_token(s);
    /* Korthikanti et al. 2022, per token: 72 L h^2 (1 + s / 6h + v / 12hL). */
    near(f.full, 72 * l * h * h * (1 + t / (6 * h) + v / (12 * h * l)), 1e-14);
    /* 6 N + 6 L h T, N the weights of the matrices: the causal half. */
    near(f.causal, 6 * (12 * l * h * h + v * h) + 6 * l * h * t, 1e-14);
}

static void test_window(void **state)
{
    (void)state;
    mt_flops_shape s = llama;
    double t = (double)s.seq_length, none = mt_flops_per_token(&s).causal;
    s.window_left = 95; /* all of the sequence */
    near(mt_flops_per_token(&s).causal, none, 1e-15);
    s.window_left = 500;
    near(mt_flops_per_token(&s).causal, none, 1e-15);
    s.window_left = 15;
    double pairs = 0; /* keys i - 15 .. i */
    for (int i = 0; i < 96; i++) {
        pairs += i < 15 ? i + 1 : 16;
    }
    /* The half convention is half a diagonal of the leading triangle short: 16 / 2 pairs. */
    near(t * mt_flops_per_token(&s).causal, 3 * count(&s, pairs - 8), 1e-14);
    near(t * mt_flops_per_token(&s).full, 3 * count(&s, t * 16), 1e-14);
}

/* The measured peak is a number that a processor can have: above what one scalar unit at 100 MHz does, below 64 lanes x
 * 2 x 10 GHz a thread. */
static void test_peak(void **state)
{
    (void)state;
    for (int threads = 1; threads <= 2; threads++) {
        mc_pool *pool;
        assert_int_equal(mc_pool_create(threads, 0, &pool), MC_OK);
        double peak = mt_measure_peak(pool);
        assert_true(isfinite(peak) && peak > 1e8 && peak < 1.3e12 * threads);
        print_message("%d threads: %.1f GFLOP/s\n", threads, peak * 1e-9);
        mc_pool_destroy(pool);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_counted_by_hand),
        cmocka_unit_test(test_published_formulas),
        cmocka_unit_test(test_window),
        cmocka_unit_test(test_peak),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
