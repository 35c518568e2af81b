/* The walk: traces of elementary steps worked out by hand. They fix when receives are begun (before the compute that
 * they run beside) and when sends are waited for (not before the next compute). */
#include "pipeline/pp_impl.h"
#include "tests/unit.h"

/* Letters: r / R begin the receive of an activation / a gradient, w / W wait for it; f, b compute; s / S begin a send,
 * e / E wait for its end. Each is followed by the micro-batch, and a gradient's by its buffer. */
static void trace(const pp_plan *plan, char *text, size_t cap)
{
    pp_i_walk walk;
    size_t used = 0;
    text[0] = '\0';
    pp_i_walk_begin(&walk, plan);
    for (pp_i_step s = pp_i_walk_next(&walk); s.op != PP_I_END; s = pp_i_walk_next(&walk)) {
        static const char letters[][PP_I_N_DIRS] = {[PP_I_BEGIN_RECV] = {'r', 'R'},
                                                    [PP_I_WAIT_RECV] = {'w', 'W'},
                                                    [PP_I_BEGIN_SEND] = {'s', 'S'},
                                                    [PP_I_WAIT_SEND] = {'e', 'E'}};
        const char *sep = used > 0 ? " " : "";
        int n;
        if (s.op == PP_I_COMPUTE) {
            n = snprintf(text + used, cap - used, "%s%c%d", sep, s.kind == PP_FWD ? 'f' : 'b', s.micro);
        } else if (s.dir == PP_I_GRAD && s.buffer >= 0) {
            n = snprintf(text + used, cap - used, "%s%c%d.%d", sep, letters[s.op][s.dir], s.micro, s.buffer);
        } else {
            n = snprintf(text + used, cap - used, "%s%c%d", sep, letters[s.op][s.dir], s.micro);
        }
        assert_true(n > 0 && used + (size_t)n < cap);
        used += (size_t)n;
    }
    assert_int_equal(pp_i_walk_next(&walk).op, PP_I_END);
    assert_int_equal(walk.live, 0);
}

static void expect_trace(const pp_schedule *schedule, pp_shape shape, const char *expected)
{
    pp_plan plan;
    char text[2048];
    assert_int_equal(pp_plan_init(&plan, shape.n_micro), MC_OK);
    assert_int_equal(pp_plan_make(&plan, schedule, &shape), MC_OK);
    for (int step = 0; step < 2; step++) { /* a walk leaves nothing behind */
        trace(&plan, text, sizeof text);
        assert_string_equal(text, expected);
    }
    pp_plan_fini(&plan);
}

static void test_middle_stage_of_1f1b(void **state)
{
    (void)state;
    expect_trace(&pp_i_1f1b, (pp_shape){.n_stages = 3, .stage = 1, .n_micro = 4},
                 /* warm-up: the next activation and the first gradient are under way during the first forward */
                 "r0 w0 r1 R0.0 f0 s0 "
                 /* the gradient of 1 is begun beside the backward of 0 */
                 "w1 f1 s1 W0 e0 R1.1 b0 S0.0 "
                 /* steady: slot 0 is free only after b0; the send of gradient 0 is over once b1 is next, and its
                  * buffer takes the gradient of 2 */
                 "r2 w2 f2 s2 W1 e1 E0.0 R2.0 b1 S1.1 "
                 "r3 w3 f3 s3 W2 e2 E1.1 R3.1 b2 S2.0 "
                 /* cool-down */
                 "W3 e3 b3 S3.1 E2.0 E3.1");
}

static void test_first_stage_of_1f1b(void **state)
{
    (void)state;
    /* Nothing is sent back from here, so a grad buffer is free as soon as its backward is done. One receive of a
     * direction is under way at a time. */
    expect_trace(&pp_i_1f1b, (pp_shape){.n_stages = 2, .stage = 0, .n_micro = 3},
                 "R0.0 f0 s0 f1 s1 W0 e0 R1.1 b0 f2 s2 W1 e1 R2.0 b1 W2 e2 b2");
}

static void test_last_stage_of_1f1b(void **state)
{
    (void)state;
    /* One slot: the next activation waits for the backward. Nothing is received backward; the buffer of a backward must
     * have been sent. */
    expect_trace(&pp_i_1f1b, (pp_shape){.n_stages = 2, .stage = 1, .n_micro = 4},
                 "r0 w0 f0 b0 S0.0 r1 w1 f1 b1 S1.1 r2 w2 f2 E0.0 b2 S2.0 r3 w3 f3 E1.1 b3 S3.1 E2.0 E3.1");
}

static void test_cool_down_leaves_fresh_sends_alone(void **state)
{
    (void)state;
    /* gpipe, middle stage: before b1 the send of gradient 0 has just begun, so that the receive of 2 is begun only at
     * its place. */
    expect_trace(&pp_i_gpipe, (pp_shape){.n_stages = 3, .stage = 1, .n_micro = 3},
                 "r0 w0 r1 R0.0 f0 s0 w1 r2 f1 s1 w2 f2 s2 W0 e0 R1.1 b0 S0.0 W1 e1 b1 S1.1 E0.0 R2.0 W2 e2 b2 S2.0 "
                 "E2.0 E1.1");
}

static void test_forward_only(void **state)
{
    (void)state;
    /* The next activation arrives during a forward, the last output leaves during the next. */
    expect_trace(&pp_i_1f1b, (pp_shape){.n_stages = 3, .stage = 1, .n_micro = 4, .forward_only = true},
                 "r0 w0 r1 f0 s0 w1 r2 f1 s1 w2 e0 r3 f2 s2 w3 e1 f3 s3 e2 e3");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_middle_stage_of_1f1b), cmocka_unit_test(test_first_stage_of_1f1b),
        cmocka_unit_test(test_last_stage_of_1f1b),   cmocka_unit_test(test_cool_down_leaves_fresh_sends_alone),
        cmocka_unit_test(test_forward_only),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
