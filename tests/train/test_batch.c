/* Global batch sizes against tables worked out by hand. */

#include "megac/base/alloc.h"
#include "megac/train/optim/batch.h"
#include "tests/unit.h"

typedef struct row {
    uint64_t consumed;
    int64_t size;
} row;

static void expect_sizes(const mt_batch *b, const row *rows, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (mt_batch_size_at(b, rows[i].consumed) != rows[i].size) {
            fail_msg("after %llu samples: %lld, expected %lld", (unsigned long long)rows[i].consumed,
                     (long long)mt_batch_size_at(b, rows[i].consumed), (long long)rows[i].size);
        }
    }
}

#define EXPECT_SIZES(b, ...)                                    \
    do {                                                        \
        const row rows_[] = {__VA_ARGS__};                      \
        expect_sizes(b, rows_, sizeof rows_ / sizeof rows_[0]); \
    } while (0)

static mt_batch make(mt_batch_config c)
{
    mt_batch b = {0};
    assert_int_equal(mt_batch_init(&b, &c), MC_OK);
    return b;
}

static void refused(mt_batch_config c)
{
    mt_batch b = {.unit = -5};
    assert_int_equal(mt_batch_init(&b, &c), MC_INVALID);
    assert_int_equal(b.unit, -5); /* outputs are written on success only */
}

static void test_constant(void **state)
{
    (void)state;
    mt_batch b = make((mt_batch_config){.global_batch = 24, .micro_batch = 2, .data_parallel = 3});
    EXPECT_SIZES(&b, {0, 24}, {1, 24}, {UINT64_C(1) << 60, 24});
    assert_int_equal(mt_batch_max(&b), 24);
    assert_int_equal(mt_batch_iterations(&b, 0, 240), 10);
    assert_int_equal(mt_batch_iterations(&b, 0, 263), 10);
    assert_int_equal(mt_batch_iterations(&b, 48, 240), 8);
    assert_int_equal(mt_batch_iterations(&b, 300, 240), 0);
    assert_int_equal(mt_batch_samples(&b, 0, 10), 240);
    mt_batch_fini(&b);

    b = make((mt_batch_config){.global_batch = -1, .micro_batch = 2, .data_parallel = 3});
    assert_int_equal(mt_batch_size_at(&b, 0), 6);
    mt_batch_fini(&b);
}

/* From 16 to 64 by 16 over 300 samples: three increments, one every 100 samples. */
static void test_ramp(void **state)
{
    (void)state;
    mt_batch b = make((mt_batch_config){
        .global_batch = 64, .micro_batch = 4, .data_parallel = 2, .rampup = (const int64_t[]){16, 16, 300}});
    EXPECT_SIZES(&b, {0, 16}, {99, 16}, {100, 32}, {199, 32}, {200, 48}, {299, 48}, {300, 64}, {301, 64}, {9999, 64});
    assert_int_equal(mt_batch_max(&b), 64);
    /* 7 x 16 = 112, 3 x 32 = 208, 2 x 48 = 304, then 64 each. */
    assert_int_equal(mt_batch_samples(&b, 0, 7), 112);
    assert_int_equal(mt_batch_samples(&b, 0, 10), 208);
    assert_int_equal(mt_batch_samples(&b, 0, 12), 304);
    assert_int_equal(mt_batch_samples(&b, 0, 14), 432);
    assert_int_equal(mt_batch_samples(&b, 208, 3), 2 * 48 + 64);
    assert_int_equal(mt_batch_iterations(&b, 0, 112), 7);
    assert_int_equal(mt_batch_iterations(&b, 0, 207), 9);
    assert_int_equal(mt_batch_iterations(&b, 0, 208), 10);
    assert_int_equal(mt_batch_iterations(&b, 0, 431), 13);
    assert_int_equal(mt_batch_iterations(&b, 0, 432), 14);
    mt_batch_fini(&b);

    /* Increments that do not divide the samples: one every 10 / 3. */
    b = make((mt_batch_config){
        .global_batch = 4, .micro_batch = 1, .data_parallel = 1, .rampup = (const int64_t[]){1, 1, 10}});
    EXPECT_SIZES(&b, {0, 1}, {3, 1}, {4, 2}, {6, 2}, {7, 3}, {9, 3}, {10, 4});
    mt_batch_fini(&b);

    /* Without samples, or already at the end: no ramp. */
    b = make((mt_batch_config){
        .global_batch = 4, .micro_batch = 1, .data_parallel = 1, .rampup = (const int64_t[]){1, 1, 0}});
    EXPECT_SIZES(&b, {0, 4});
    mt_batch_fini(&b);
    b = make((mt_batch_config){
        .global_batch = 4, .micro_batch = 1, .data_parallel = 1, .rampup = (const int64_t[]){4, 3, 100}});
    EXPECT_SIZES(&b, {0, 4}, {50, 4});
    mt_batch_fini(&b);
}

/* Stepping one batch at a time must agree with the closed forms, from any start. */
static void expect_stepping(const mt_batch_config *c, uint64_t last_start, uint64_t stride)
{
    mt_batch b = make(*c);
    for (uint64_t start = 0; start < last_start; start += stride) {
        uint64_t consumed = start;
        for (int64_t n = 0; n < 60; n++) {
            assert_int_equal(mt_batch_samples(&b, start, n), consumed - start);
            assert_int_equal(mt_batch_iterations(&b, start, consumed), n);
            int64_t size = mt_batch_size_at(&b, consumed);
            assert_int_equal(mt_batch_iterations(&b, start, consumed + (uint64_t)size - 1), n);
            consumed += (uint64_t)size;
        }
    }
    mt_batch_fini(&b);
}

static void test_iterations_agree_with_stepping(void **state)
{
    (void)state;
    mt_batch_config c = {.global_batch = 60, .micro_batch = 1, .data_parallel = 4};
    c.rampup = (const int64_t[]){4, 8, 777};
    expect_stepping(&c, 900, 37);
    c.rampup = (const int64_t[]){4, 8, 100}; /* 100 / 7 samples an increment */
    expect_stepping(&c, 120, 1);
    c.rampup = (const int64_t[]){4, 4, 9}; /* more increments than samples: some sizes never occur */
    expect_stepping(&c, 20, 1);
    c = (mt_batch_config){.micro_batch = 1, .data_parallel = 1, .seq_length = 3, .step_schedule = "0:7 100:2 200:31"};
    expect_stepping(&c, 90, 1);
}

static void test_decrease(void **state)
{
    (void)state;
    mt_batch b =
        make((mt_batch_config){.global_batch = 50, .micro_batch = 4, .data_parallel = 3, .decrease_if_needed = true});
    EXPECT_SIZES(&b, {0, 48});
    assert_int_equal(mt_batch_max(&b), 48);
    mt_batch_fini(&b);
    b = make((mt_batch_config){.global_batch = 50,
                               .micro_batch = 4,
                               .data_parallel = 3,
                               .decrease_if_needed = true,
                               .rampup = (const int64_t[]){20, 15, 100}});
    EXPECT_SIZES(&b, {0, 12}, {50, 24}, {100, 48}); /* 20, 35, 50 */
    mt_batch_fini(&b);
    refused((mt_batch_config){.global_batch = 11, .micro_batch = 4, .data_parallel = 3, .decrease_if_needed = true});
}

static void test_steps(void **state)
{
    (void)state;
    mt_batch b = make(
        (mt_batch_config){.micro_batch = 2, .data_parallel = 8, .step_schedule = "0:16 2.4B:320", .seq_length = 2048});
    /* 2.4e9 / 2048 = 1171875 samples */
    EXPECT_SIZES(&b, {0, 16}, {1171874, 16}, {1171875, 320}, {UINT64_C(1) << 50, 320});
    assert_int_equal(mt_batch_max(&b), 320);
    mt_batch_fini(&b);

    b = make((mt_batch_config){
        .micro_batch = 1, .data_parallel = 1, .step_schedule = " 1k:8,0:4 1.5M:1K 3T:2 ", .seq_length = 10});
    EXPECT_SIZES(&b, {0, 4}, {99, 4}, {100, 8}, {149999, 8}, {150000, 1000}, {299999999999, 1000}, {300000000000, 2});
    assert_int_equal(mt_batch_max(&b), 1000);
    mt_batch_fini(&b);
}

static void test_refused(void **state)
{
    (void)state;
    const mt_batch_config ok = {.global_batch = 64, .micro_batch = 4, .data_parallel = 2, .seq_length = 16};
    mt_batch_config c = ok;
    c.global_batch = 60;
    refused(c);
    c = ok, c.micro_batch = 0;
    refused(c);
    c = ok, c.data_parallel = 0;
    refused(c);
    const int64_t bad_ramps[][3] = {{0, 16, 9},  {16, 0, 9},   {16, 16, -1}, {128, 16, 9},
                                    {16, 20, 9}, {12, 4, 100}, {4, 4, 100},  {-16, 16, 9}};
    for (size_t i = 0; i < sizeof bad_ramps / sizeof bad_ramps[0]; i++) {
        c = ok, c.rampup = bad_ramps[i];
        refused(c);
    }
    c = ok, c.step_schedule = "0:16";
    refused(c); /* with --global-batch-size */
    static const char *const bad[] = {"",      "16",     "0",         "0:",        "0:16 5",    "0:x",
                                      "0:-16", "0:16.5", "1K:16",     "0:16 0:32", "0:16 5:32", "0:0",
                                      "0:16x", "nan:16", "0:16 -1:8", "0:9",       "0:16;1K:8", "0:1B0"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        c = ok, c.global_batch = 0, c.step_schedule = bad[i];
        refused(c);
    }
    c = ok, c.global_batch = 0, c.step_schedule = "0:16", c.decrease_if_needed = true;
    refused(c);
    c = ok, c.global_batch = 0, c.step_schedule = "0:16", c.rampup = (const int64_t[]){16, 16, 64};
    refused(c);
    c = ok, c.global_batch = 0, c.step_schedule = "0:16", c.seq_length = 0;
    refused(c);
    assert_int_equal(mc_alloc_report_leaks(), 0);
}

/* A run that goes on with more ranks is not held up by sizes that lie behind it. */
static void test_sizes_behind_are_not_checked(void **state)
{
    (void)state;
    mt_batch_config c = {
        .global_batch = 64, .micro_batch = 4, .data_parallel = 8, .rampup = (const int64_t[]){16, 16, 300}};
    refused(c);
    c.consumed = 250; /* 48 is current */
    refused(c);
    c.consumed = 300;
    mt_batch b = make(c);
    assert_int_equal(mt_batch_size_at(&b, 300), 64);
    mt_batch_fini(&b);
}

static void test_out_of_memory(void **state)
{
    (void)state;
    mt_batch_config c = {.micro_batch = 1, .data_parallel = 1, .step_schedule = "0:1", .seq_length = 1};
    mt_batch b;
    mc_alloc_fail_at(1);
    assert_int_equal(mt_batch_init(&b, &c), MC_NOMEM);
    mc_alloc_fail_at(0);
    assert_int_equal(mc_alloc_report_leaks(), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_constant),
        cmocka_unit_test(test_ramp),
        cmocka_unit_test(test_iterations_agree_with_stepping),
        cmocka_unit_test(test_decrease),
        cmocka_unit_test(test_steps),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_sizes_behind_are_not_checked),
        cmocka_unit_test(test_out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
