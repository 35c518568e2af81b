/* Simulation of schedules: peaks and bubbles against their formulas, and planted faults. */
#include <math.h>

#include "megac/base/alloc.h"
#include "pipeline/pp.h"
#include "tests/unit.h"

static const pp_schedule *find(const char *name)
{
    const pp_schedule *s;
    assert_int_equal(pp_schedule_find(name, &s), MC_OK);
    return s;
}

static int min(int a, int b)
{
    return a < b ? a : b;
}

static void test_peaks_and_bubbles(void **state)
{
    (void)state;
    static const int micros[] = {1, 2, 3, 4, 5, 7, 8, 16, 33, 64};
    for (int p = 1; p <= 16; p++) {
        for (size_t i = 0; i < sizeof micros / sizeof micros[0]; i++) {
            int m = micros[i];
            pp_report f1b = {0}, gpipe = {0};
            assert_int_equal(pp_check(find("1f1b"), p, m, false, &f1b), MC_OK);
            assert_int_equal(pp_check(find("gpipe"), p, m, false, &gpipe), MC_OK);
            for (int s = 0; s < p; s++) {
                assert_int_equal(f1b.peak_live[s], min(p - s, m));
                assert_int_equal(gpipe.peak_live[s], m);
            }
            /* Both fill and drain once: (m + p - 1) x (forward + backward). */
            assert_true(f1b.ideal == 3.0 * m && gpipe.ideal == 3.0 * m);
            assert_true(f1b.makespan == 3.0 * (m + p - 1) && gpipe.makespan == 3.0 * (m + p - 1));
        }
    }
}

static void test_many_stages(void **state)
{
    (void)state;
    pp_report r;
    assert_int_equal(pp_check(find("1f1b"), 100, 130, false, &r), MC_OK);
    assert_int_equal(r.peak_live[0], 100);
    assert_int_equal(r.peak_live[63], 37);
    assert_true(r.makespan == 3.0 * (130 + 99));
}

static void test_forward_only(void **state)
{
    (void)state;
    for (int p = 1; p <= 9; p++) {
        for (int m = 1; m <= 20; m++) {
            pp_report r;
            assert_int_equal(pp_check(find("1f1b"), p, m, true, &r), MC_OK);
            for (int s = 0; s < p; s++) {
                assert_true(r.peak_live[s] <= 2);
            }
            assert_true(r.ideal == m && r.makespan == m + p - 1);
        }
    }
}

static void test_unknown_schedule(void **state)
{
    (void)state;
    char text[512];
    const pp_schedule *s = NULL;
    mc_status st = MC_OK;
    UNIT_CAPTURE(text, st = pp_schedule_find("dualpipe", &s));
    assert_true(st == MC_INVALID && s == NULL);
    assert_non_null(strstr(text, "dualpipe"));
    assert_non_null(strstr(text, "1f1b, gpipe"));
}

/* Faults are planted into the list of stage 1 of 1f1b: in the last backward's or the last forward's neighbourhood. */
static int base(const pp_shape *shape, pp_action *out)
{
    return find("1f1b")->generate(shape, out);
}

static int slots(const pp_shape *shape)
{
    return find("1f1b")->n_slots(shape);
}

static int locate(const pp_action *list, int n, pp_kind kind, int micro)
{
    for (int i = 0; i < n; i++) {
        if (list[i].kind == kind && list[i].micro == micro) {
            return i;
        }
    }
    fail_msg("no %s of %d", pp_kind_name(kind), micro);
    return -1;
}

static void move(pp_action *list, int from, int to)
{
    pp_action a = list[from];
    int step = from < to ? 1 : -1;
    for (int i = from; i != to; i += step) {
        list[i] = list[i + step];
    }
    list[to] = a;
}

static int erase(pp_action *list, int n, int at)
{
    move(list, at, n - 1);
    return n - 1;
}

static int missing_receive(const pp_shape *shape, pp_action *out)
{
    int n = base(shape, out);
    return shape->stage == 1 ? erase(out, n, locate(out, n, PP_RECV_FWD, 2)) : n;
}

static int missing_grad_receive(const pp_shape *shape, pp_action *out)
{
    int n = base(shape, out);
    return shape->stage == 1 ? erase(out, n, locate(out, n, PP_RECV_BWD, 0)) : n;
}

static int missing_send(const pp_shape *shape, pp_action *out)
{
    int n = base(shape, out);
    return shape->stage == 1 ? erase(out, n, locate(out, n, PP_SEND_BWD, 3)) : n;
}

static int missing_backward(const pp_shape *shape, pp_action *out)
{
    int n = base(shape, out);
    return shape->stage == 0 ? erase(out, n, locate(out, n, PP_BWD, 3)) : n;
}

static int duplicate_forward(const pp_shape *shape, pp_action *out)
{
    int n = base(shape, out);
    if (shape->stage == 1) {
        out[n] = (pp_action){.kind = PP_FWD, .micro = 1};
        move(out, n, locate(out, n, PP_FWD, 1));
        n++;
    }
    return n;
}

static int backward_before_forward(const pp_shape *shape, pp_action *out)
{
    int n = base(shape, out);
    if (shape->stage == 2) { /* the last stage has no receive to stop it */
        move(out, locate(out, n, PP_BWD, 3), locate(out, n, PP_FWD, 3));
    }
    return n;
}

static int wrong_micro(const pp_shape *shape, pp_action *out)
{
    int n = base(shape, out);
    out[0].micro += shape->stage == 2 ? 99 : 0;
    return n;
}

static int foreign_action(const pp_shape *shape, pp_action *out)
{
    int n = base(shape, out);
    if (shape->stage == 0) {
        out[n++] = (pp_action){.kind = PP_SEND_BWD, .micro = 3};
    }
    return n;
}

/* Stage 1 wants the gradient before it has sent the output that the gradient is of. */
static int swapped_send_and_receive(const pp_shape *shape, pp_action *out)
{
    int n = base(shape, out);
    if (shape->stage == 1) {
        move(out, locate(out, n, PP_RECV_BWD, 3), locate(out, n, PP_SEND_FWD, 3));
    }
    return n;
}

/* Locally in order, but stage 1 holds the output of micro-batch 1 back until it has the gradient of 0, which stage 2,
 * working all forwards first, sends only afterwards. */
static int deadlock(const pp_shape *shape, pp_action *out)
{
    if (shape->stage == 2) {
        return find("gpipe")->generate(shape, out);
    }
    int n = base(shape, out);
    if (shape->stage == 1) {
        move(out, locate(out, n, PP_SEND_FWD, 1), locate(out, n, PP_RECV_BWD, 0));
    }
    return n;
}

static int deadlock_slots(const pp_shape *shape)
{
    return shape->n_micro;
}

/* Stage 1 takes 1 before 0, stage 0 sends them in order: both lists are fine alone. */
static int crossed_messages(const pp_shape *shape, pp_action *out)
{
    int n = find("gpipe")->generate(shape, out);
    for (int i = 0; shape->stage == 1 && i < n; i++) {
        bool swap = out[i].micro < 2;
        out[i].micro = swap ? 1 - out[i].micro : out[i].micro;
    }
    return n;
}

/* All forwards in 1f1b's number of slots. */
static int too_many_live(const pp_shape *shape, pp_action *out)
{
    return find("gpipe")->generate(shape, out);
}

/* Three gradients received before the first backward: only two buffers. */
static int too_many_grads(const pp_shape *shape, pp_action *out)
{
    int n = find("gpipe")->generate(shape, out);
    if (shape->stage == 1) {
        for (int micro = 1; micro < 3; micro++) {
            move(out, locate(out, n, PP_RECV_BWD, micro), locate(out, n, PP_RECV_BWD, 0) + micro);
        }
    }
    return n;
}

/* Backwards in another order than their receives: the buffers would be mixed up. */
static int crossed_grads(const pp_shape *shape, pp_action *out)
{
    int n = find("gpipe")->generate(shape, out);
    if (shape->stage == 1) {
        move(out, locate(out, n, PP_RECV_BWD, 1), locate(out, n, PP_RECV_BWD, 0));
    }
    return n;
}

static void test_planted_faults(void **state)
{
    (void)state;
    const struct {
        int (*generate)(const pp_shape *, pp_action *);
        int (*n_slots)(const pp_shape *);
        const char *message;
    } faults[] = {
        {missing_receive, slots, "forward comes before its receive of the activation (micro-batch 2 on stage 1"},
        {missing_grad_receive, slots, "backward comes before its receive of the output's gradient"},
        {missing_send, slots, "the list has no send of the input's gradient"},
        {missing_backward, slots, "the list has no backward"},
        {duplicate_forward, slots, "forward comes twice"},
        {backward_before_forward, slots, "backward comes before its"},
        {wrong_micro, slots, "on micro-batch 99 of 4"},
        {foreign_action, slots, "send of the input's gradient has no place on this stage"},
        {swapped_send_and_receive, slots, "comes before its send of the output"},
        {deadlock, deadlock_slots, "does not finish"},
        {crossed_messages, deadlock_slots, "stage 1 receives the activation of micro-batch 1 where stage 0 sends that"},
        {too_many_live, slots, "forward needs a slot, and all 3 are in use"},
        {too_many_grads, deadlock_slots, "needs a grad buffer, and all 2 are in use"},
        {crossed_grads, deadlock_slots, "comes where micro-batch"},
    };
    for (size_t i = 0; i < sizeof faults / sizeof faults[0]; i++) {
        pp_schedule s = {.name = "planted", .generate = faults[i].generate, .n_slots = faults[i].n_slots};
        pp_report r = {.makespan = -1};
        char text[1024];
        mc_status st = MC_OK;
        UNIT_CAPTURE(text, st = pp_check(&s, 3, 4, false, &r));
        if (st != MC_INVALID || strstr(text, faults[i].message) == NULL) {
            fail_msg("fault %zu, \"%s\": %s, \"%s\"", i, faults[i].message, mc_status_name(st), text);
        }
        assert_true(r.makespan == -1);
        assert_int_equal(mc_alloc_report_leaks(), 0);
    }
}

static void test_deadlock_is_explained(void **state)
{
    (void)state;
    pp_schedule s = {.name = "planted", .generate = deadlock, .n_slots = deadlock_slots};
    pp_report r;
    char text[1024];
    mc_status st = MC_OK;
    UNIT_CAPTURE(text, st = pp_check(&s, 3, 4, false, &r));
    assert_int_equal(st, MC_INVALID);
    assert_non_null(strstr(text, "stage 1 waits for stage 2 to send the gradient of micro-batch 0"));
    assert_non_null(strstr(text, "stage 2 waits for stage 1 to send the activation of micro-batch 1"));
}

/* A zero-bubble list with the two backward kinds is planned and simulated like the others: weight gradients of the
 * last stage wait until the end. */
static int split_backward(const pp_shape *shape, pp_action *out)
{
    int n = 0;
    pp_action list[256];
    int n_base = find("gpipe")->generate(shape, list);
    for (int i = 0; i < n_base; i++) {
        out[n] = list[i];
        out[n].kind = list[i].kind == PP_BWD ? PP_BWD_INPUT : list[i].kind;
        n++;
    }
    for (int micro = 0; micro < shape->n_micro; micro++) {
        out[n++] = (pp_action){.kind = PP_BWD_WEIGHT, .micro = micro};
    }
    return n;
}

static void test_split_backward(void **state)
{
    (void)state;
    pp_schedule s = {.name = "split", .generate = split_backward, .n_slots = deadlock_slots};
    pp_report r;
    assert_int_equal(pp_check(&s, 4, 8, false, &r), MC_OK);
    assert_true(r.ideal == 24.0);
    /* Forward and input gradient fill and drain: 2 (8 + 3); the weight gradients of stage 0 come last: 8. */
    assert_true(r.makespan == 2.0 * (8 + 3) + 8.0);
    assert_int_equal(r.peak_live[3], 8);
}

static void test_out_of_memory(void **state)
{
    (void)state;
    mc_status st = MC_NOMEM;
    int n = 0;
    while (st == MC_NOMEM) {
        pp_report r;
        char text[512];
        mc_alloc_fail_at((size_t)++n);
        UNIT_CAPTURE(text, st = pp_check(find("1f1b"), 3, 4, false, &r));
        mc_alloc_fail_at(0);
        assert_int_equal(mc_alloc_report_leaks(), 0);
    }
    assert_int_equal(st, MC_OK);
    assert_true(n > 10);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_peaks_and_bubbles), cmocka_unit_test(test_many_stages),
        cmocka_unit_test(test_forward_only),      cmocka_unit_test(test_unknown_schedule),
        cmocka_unit_test(test_planted_faults),    cmocka_unit_test(test_deadlock_is_explained),
        cmocka_unit_test(test_split_backward),    cmocka_unit_test(test_out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
