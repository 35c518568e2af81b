/* Learning rate and weight decay against closed forms, in samples and in iterations. */
#include <math.h>

#include "megac/train/optim/lr.h"
#include "tests/unit.h"

/* Everything absent but a run of 1000 samples with rate 1 down to 0.1 after 100 samples of warm-up. */
static mt_lr_flags flags(const char *style)
{
    return (mt_lr_flags){
        .lr = 1.0,
        .min_lr = 0.1,
        .lr_warmup_init = 0.0,
        .decoupled_lr = NAN,
        .decoupled_min_lr = NAN,
        .weight_decay = 0.05,
        .start_weight_decay = NAN,
        .end_weight_decay = NAN,
        .lr_warmup_fraction = NAN,
        .train_iters = -1,
        .lr_decay_iters = -1,
        .lr_warmup_iters = -1,
        .lr_wsd_decay_iters = -1,
        .train_samples = 1000,
        .lr_decay_samples = -1,
        .lr_warmup_samples = 100,
        .lr_wsd_decay_samples = -1,
        .lr_decay_style = style,
    };
}

static mt_lr_config make(mt_lr_flags f)
{
    mt_lr_config c;
    assert_int_equal(mt_lr_init(&c, &f), MC_OK);
    return c;
}

static void near(double a, double b)
{
    if (!(fabs(a - b) <= 1e-14)) {
        fail_msg("%.17g, expected %.17g", a, b);
    }
}

typedef struct row {
    double at, value;
} row;

static void expect_rates(const mt_lr_config *c, const row *rows, int n)
{
    for (int i = 0; i < n; i++) {
        near(mt_lr_at(c, rows[i].at), rows[i].value);
    }
}

#define EXPECT_RATES(c, ...)                                           \
    do {                                                               \
        const row rows_[] = {__VA_ARGS__};                             \
        expect_rates(c, rows_, (int)(sizeof rows_ / sizeof rows_[0])); \
    } while (0)

static void test_linear(void **state)
{
    (void)state;
    mt_lr_config c = make(flags("linear"));
    EXPECT_RATES(&c, {0, 0}, {50, 0.5}, {100, 1}, {550, 0.55}, {325, 0.775}, {1000, 0.1}, {1001, 0.1}, {1e9, 0.1});
    c = make(flags(NULL)); /* the default */
    near(mt_lr_at(&c, 550), 0.55);
    mt_lr_flags f = flags("linear");
    f.lr_warmup_init = 0.2;
    c = make(f);
    EXPECT_RATES(&c, {0, 0.2}, {25, 0.4}, {100, 1});
    f.lr_warmup_samples = 0; /* no warm-up: the first step has the full rate */
    c = make(f);
    EXPECT_RATES(&c, {0, 1}, {500, 0.55});
    f.lr_decay_samples = 500;
    c = make(f);
    EXPECT_RATES(&c, {250, 0.55}, {500, 0.1}, {900, 0.1});
}

static void test_cosine(void **state)
{
    (void)state;
    mt_lr_config c = make(flags("cosine"));
    /* cos 60 degrees at a third of the way: share 3/4; at two thirds 1/4 */
    EXPECT_RATES(&c, {0, 0}, {100, 1}, {400, 0.1 + 0.75 * 0.9}, {550, 0.55}, {700, 0.1 + 0.25 * 0.9}, {1000, 0.1},
                 {1500, 0.1});
}

static void test_constant(void **state)
{
    (void)state;
    mt_lr_config c = make(flags("constant"));
    EXPECT_RATES(&c, {10, 0.1}, {100, 1}, {500, 1}, {5000, 1});
}

static void test_inverse_square_root(void **state)
{
    (void)state;
    mt_lr_config c = make(flags("inverse-square-root"));
    EXPECT_RATES(&c, {100, 1}, {400, 0.5}, {900, 1.0 / 3}, {1000, sqrt(0.1)}, {1001, 0.1});
    mt_lr_flags f = flags("inverse-square-root");
    f.min_lr = 0.4;
    c = make(f);
    EXPECT_RATES(&c, {400, 0.5}, {900, 0.4});
    f.lr_warmup_samples = 0;
    f.min_lr = 0;
    c = make(f);
    EXPECT_RATES(&c, {0, 1}, {1, 1}, {4, 0.5}, {100, 0.1});
}

static void test_wsd(void **state)
{
    (void)state;
    mt_lr_flags f = flags("WSD");
    f.lr_wsd_decay_samples = 400; /* 600 .. 1000 */
    f.lr_wsd_decay_style = "linear";
    mt_lr_config c = make(f);
    EXPECT_RATES(&c, {50, 0.5}, {100, 1}, {600, 1}, {700, 0.1 + 0.75 * 0.9}, {800, 0.55}, {1000, 0.1}, {1100, 0.1});
    f.lr_wsd_decay_style = "cosine";
    c = make(f);
    EXPECT_RATES(&c, {600, 1}, {800, 0.55}, {700, 0.1 + 0.9 * (2 + sqrt(2)) / 4}, {1000, 0.1});
    f.lr_wsd_decay_style = "exponential";
    c = make(f);
    EXPECT_RATES(&c, {600, 1}, {800, 0.1 + 0.9 * (sqrt(2) - 1)}, {1000, 0.1});
    f.lr_wsd_decay_style = NULL;
    c = make(f);
    near(mt_lr_at(&c, 800), 0.1 + 0.9 * (sqrt(2) - 1));
    f.lr_wsd_decay_style = "minus_sqrt";
    c = make(f);
    EXPECT_RATES(&c, {600, 1}, {700, 0.55}, {825, 0.1 + 0.9 * 0.25}, {1000, 0.1});
}

/* Steps count as samples: the same run in iterations of 20. */
static void test_iterations(void **state)
{
    (void)state;
    static const char *const styles[] = {"constant", "linear", "cosine", "inverse-square-root", "WSD"};
    for (int i = 0; i < 5; i++) {
        mt_lr_flags s = flags(styles[i]), f = s;
        s.lr_wsd_decay_samples = 400;
        s.lr_decay_samples = 800;
        f.train_samples = f.lr_decay_samples = f.lr_warmup_samples = f.lr_wsd_decay_samples = -1;
        f.global_batch = 20;
        f.train_iters = 50;
        f.lr_decay_iters = 40;
        f.lr_warmup_iters = 5;
        f.lr_wsd_decay_iters = 20;
        mt_lr_config a = make(s), b = make(f);
        for (double at = 0; at < 1200; at += 20) {
            near(mt_lr_at(&b, at), mt_lr_at(&a, at));
        }
        f.lr_warmup_iters = 0; /* the flag's default beside a fraction: 1/8 of 800 */
        f.lr_warmup_fraction = 0.125;
        b = make(f);
        for (double at = 0; at < 1200; at += 20) {
            near(mt_lr_at(&b, at), mt_lr_at(&a, at));
        }
    }
}

static void test_decoupled(void **state)
{
    (void)state;
    mt_lr_flags f = flags("linear");
    mt_lr_config c = make(f);
    near(mt_decoupled_lr_at(&c, 325), mt_lr_at(&c, 325));
    f.decoupled_lr = 4;
    c = make(f);
    near(mt_decoupled_lr_at(&c, 50), 2);
    near(mt_decoupled_lr_at(&c, 550), 0.5 * (4 + 0.1));
    f.decoupled_min_lr = 2;
    c = make(f);
    near(mt_decoupled_lr_at(&c, 550), 3);
    near(mt_decoupled_lr_at(&c, 2000), 2);
    near(mt_lr_at(&c, 550), 0.55);
}

static void test_weight_decay(void **state)
{
    (void)state;
    mt_lr_flags f = flags("linear");
    mt_lr_config c = make(f);
    near(mt_weight_decay_at(&c, 0), 0.05);
    near(mt_weight_decay_at(&c, 5000), 0.05);
    f.start_weight_decay = 0.1;
    f.end_weight_decay = 0.5;
    f.weight_decay_incr_style = "linear";
    f.lr_decay_samples = 500; /* does not matter here: the run's length does */
    c = make(f);
    near(mt_weight_decay_at(&c, 0), 0.1);
    near(mt_weight_decay_at(&c, 250), 0.2);
    near(mt_weight_decay_at(&c, 1000), 0.5);
    near(mt_weight_decay_at(&c, 1001), 0.5);
    f.weight_decay_incr_style = "cosine";
    c = make(f);
    near(mt_weight_decay_at(&c, 0), 0.1);
    near(mt_weight_decay_at(&c, 500), 0.3);
    near(mt_weight_decay_at(&c, 1000.0 / 3), 0.1 + 0.25 * 0.4);
    near(mt_weight_decay_at(&c, 1000), 0.5);
}

static void refused(mt_lr_flags f)
{
    mt_lr_config c = {.max_lr = -3};
    assert_int_equal(mt_lr_init(&c, &f), MC_INVALID);
    assert_true(c.max_lr == -3);
}

#define REFUSED(style, field, value)   \
    do {                               \
        mt_lr_flags f_ = flags(style); \
        f_.field = (value);            \
        refused(f_);                   \
    } while (0)

static void test_refused(void **state)
{
    (void)state;
    REFUSED("linear", lr, NAN);
    REFUSED("linear", min_lr, 1.5);
    REFUSED("linear", min_lr, -0.1);
    REFUSED("linear", lr_warmup_init, 2.0);
    REFUSED("linear", decoupled_lr, 0.05); /* below the minimum that it inherits */
    REFUSED("linear", train_samples, -1);
    REFUSED("linear", train_samples, 0);
    REFUSED("linear", train_iters, 10);
    REFUSED("linear", lr_decay_iters, 10);
    REFUSED("linear", lr_warmup_iters, 10);
    REFUSED("linear", lr_wsd_decay_iters, 10);
    REFUSED("linear", lr_warmup_samples, 1000);
    REFUSED("linear", lr_decay_samples, 100);
    REFUSED("linear", lr_warmup_fraction, 0.1); /* beside --lr-warmup-samples */
    REFUSED("WSD", lr_wsd_decay_samples, -1);
    REFUSED("WSD", lr_wsd_decay_samples, 1001);
    REFUSED("Linear", lr, 1.0);
    REFUSED("linear", lr_wsd_decay_style, "sqrt");
    REFUSED("linear", weight_decay_incr_style, "wrong");
    REFUSED("linear", weight_decay_incr_style, "linear"); /* without start and end */
    REFUSED("linear", end_weight_decay, 0.5);             /* constant cannot rise */
    mt_lr_flags f = flags("linear");
    f.weight_decay_incr_style = "linear";
    f.start_weight_decay = 0.5;
    f.end_weight_decay = 0.1;
    refused(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_linear),    cmocka_unit_test(test_cosine),
        cmocka_unit_test(test_constant),  cmocka_unit_test(test_inverse_square_root),
        cmocka_unit_test(test_wsd),       cmocka_unit_test(test_iterations),
        cmocka_unit_test(test_decoupled), cmocka_unit_test(test_weight_decay),
        cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
