/* Plans: the lists of 1F1B written out by hand, slots, and no allocation when the number of micro-batches changes. */
#include "megac/base/alloc.h"
#include "pipeline/pp.h"
#include "tests/unit.h"

/* "r0 f0 s0 R0 b0 S0": lower case forward, upper case the gradients' messages. */
static void print_list(const pp_plan *plan, char *text, size_t cap)
{
    static const char letters[] = {
        [PP_RECV_FWD] = 'r', [PP_FWD] = 'f',       [PP_SEND_FWD] = 's',   [PP_RECV_BWD] = 'R',
        [PP_BWD] = 'b',      [PP_BWD_INPUT] = 'i', [PP_BWD_WEIGHT] = 'w', [PP_SEND_BWD] = 'S'};
    size_t used = 0;
    text[0] = '\0';
    for (int i = 0; i < plan->n_actions; i++) {
        const pp_action *a = &plan->actions[i];
        used += (size_t)snprintf(text + used, cap - used, "%s%c%d/%d", i > 0 ? " " : "", letters[a->kind], a->micro,
                                 a->slot);
        assert_true(used < cap);
    }
}

static void expect_list(const char *schedule, pp_shape shape, const char *expected)
{
    const pp_schedule *s;
    pp_plan plan;
    char text[1024];
    assert_int_equal(pp_schedule_find(schedule, &s), MC_OK);
    assert_int_equal(pp_plan_init(&plan, shape.n_micro), MC_OK);
    assert_int_equal(pp_plan_make(&plan, s, &shape), MC_OK);
    print_list(&plan, text, sizeof text);
    assert_string_equal(text, expected);
    pp_plan_fini(&plan);
}

/* Action and micro-batch / slot. */
static void test_lists_by_hand(void **state)
{
    (void)state;
    expect_list("1f1b", (pp_shape){.n_stages = 3, .stage = 0, .n_micro = 4},
                "f0/0 s0/0 f1/1 s1/1 f2/2 s2/2 R0/0 b0/0 f3/0 s3/0 R1/1 b1/1 R2/2 b2/2 R3/0 b3/0");
    expect_list("1f1b", (pp_shape){.n_stages = 3, .stage = 1, .n_micro = 4},
                "r0/0 f0/0 s0/0 r1/1 f1/1 s1/1 R0/0 b0/0 S0/0 r2/0 f2/0 s2/0 R1/1 b1/1 S1/1 r3/1 f3/1 s3/1 R2/0 b2/0 "
                "S2/0 R3/1 b3/1 S3/1");
    expect_list("1f1b", (pp_shape){.n_stages = 3, .stage = 2, .n_micro = 3},
                "r0/0 f0/0 b0/0 S0/0 r1/0 f1/0 b1/0 S1/0 r2/0 f2/0 b2/0 S2/0");
    expect_list("1f1b", (pp_shape){.n_stages = 4, .stage = 0, .n_micro = 2},
                "f0/0 s0/0 f1/1 s1/1 R0/0 b0/0 R1/1 b1/1"); /* fewer micro-batches than stages */
    expect_list("1f1b", (pp_shape){.n_stages = 1, .stage = 0, .n_micro = 3}, "f0/0 b0/0 f1/0 b1/0 f2/0 b2/0");
    expect_list("gpipe", (pp_shape){.n_stages = 2, .stage = 0, .n_micro = 3},
                "f0/0 s0/0 f1/1 s1/1 f2/2 s2/2 R0/0 b0/0 R1/1 b1/1 R2/2 b2/2");
    expect_list("1f1b", (pp_shape){.n_stages = 3, .stage = 1, .n_micro = 3, .forward_only = true},
                "r0/0 f0/0 s0/0 r1/1 f1/1 s1/1 r2/0 f2/0 s2/0");
}

static void test_changes_of_size_allocate_nothing(void **state)
{
    (void)state;
    const pp_schedule *s;
    pp_plan plan;
    assert_int_equal(pp_schedule_find("1f1b", &s), MC_OK);
    assert_int_equal(pp_plan_init(&plan, 32), MC_OK);
    mc_alloc_freeze(true);
    for (int m = 1; m <= 32; m++) {
        for (int stage = 0; stage < 5; stage++) {
            pp_shape shape = {.n_stages = 5, .stage = stage, .n_micro = m, .forward_only = m % 3 == 0};
            assert_int_equal(pp_plan_make(&plan, s, &shape), MC_OK);
            assert_true(plan.n_actions <= pp_max_actions(m));
            int expected = shape.forward_only ? (m < 2 ? m : 2) : 5 - stage < m ? 5 - stage : m;
            assert_int_equal(plan.n_slots, expected);
        }
    }
    mc_alloc_freeze(false);
    assert_int_equal(mc_alloc_get_stats().after_freeze, 0);
    pp_plan_fini(&plan);
    pp_plan_fini(&plan); /* a zeroed plan is allowed */
    assert_int_equal(mc_alloc_report_leaks(), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lists_by_hand),
        cmocka_unit_test(test_changes_of_size_allocate_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
