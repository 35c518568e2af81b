/* pp_exec for real: one thread a stage over the fake communicator, with a toy model whose numbers tell every mix-up.
 *
 * Forward adds the stage's constant to each element; the activation entering stage s for micro-batch j is
 * 1000 j + (0 + 1 + .. + s - 1). Backward doubles: the gradient leaving stage s is (j + 1) 2^(p - s). */
#include <math.h>
#include <pthread.h>
#include <time.h>

#include "megac/base/alloc.h"
#include "megac/base/rng.h"
#include "pipeline/pp.h"
#include "tests/pipeline/fake_comm.h"
#include "tests/unit.h"

enum { MAX_STAGES = 6, MAX_MICRO = 16, ELEMS = 33 };

typedef struct event {
    bool forward;
    int micro, slot, buffer;
    bool last;
} event;

typedef struct toy {
    int stage, n_stages, n_micro;
    bool forward_only, delays;
    float in[MAX_MICRO][ELEMS], out[MAX_MICRO][ELEMS], grad[PP_GRAD_BUFFERS][ELEMS];
    int slot_micro[MAX_MICRO]; /* -1: free */
    int live, peak_live, n_events, faults;
    event events[4 * MAX_MICRO];
    uint32_t seed;
} toy;

static void fault_unless(toy *t, bool ok)
{
    t->faults += ok ? 0 : 1;
}

static float activation(int micro, int stage)
{
    return (float)(1000 * micro + stage * (stage - 1) / 2);
}

static void expect_all(toy *t, const float *x, float value)
{
    for (int e = 0; e < ELEMS; e++) {
        fault_unless(t, x[e] == value + (float)e);
    }
}

static void maybe_sleep(toy *t, int micro, int what)
{
    if (!t->delays) {
        return;
    }
    mc_rng_block r = mc_rng_bits(t->seed, (uint32_t)t->stage, (uint64_t)micro, (uint64_t)what);
    struct timespec ts = {.tv_nsec = (long)(r.w[0] % 400) * 1000};
    if (r.w[1] % 2 == 0) {
        nanosleep(&ts, NULL);
    }
}

static mc_status toy_forward(void *stage, int micro, int slot)
{
    toy *t = stage;
    maybe_sleep(t, micro, 0);
    fault_unless(t, t->slot_micro[slot] < 0);
    if (t->stage > 0) {
        expect_all(t, t->in[slot], activation(micro, t->stage));
    } else {
        for (int e = 0; e < ELEMS; e++) {
            t->in[slot][e] = activation(micro, 0) + (float)e;
        }
    }
    for (int e = 0; e < ELEMS; e++) {
        t->out[slot][e] = t->in[slot][e] + (float)t->stage;
    }
    if (!t->forward_only) {
        t->slot_micro[slot] = micro;
        t->live++;
        t->peak_live = t->live > t->peak_live ? t->live : t->peak_live;
    }
    t->events[t->n_events++] = (event){.forward = true, .micro = micro, .slot = slot, .buffer = -1};
    return MC_OK;
}

static mc_status toy_backward(void *stage, pp_kind kind, int micro, int slot, int buffer, bool last)
{
    toy *t = stage;
    maybe_sleep(t, micro, 1);
    fault_unless(t, kind == PP_BWD && t->slot_micro[slot] == micro);
    /* The stash of this micro-batch must have survived everything since its forward. */
    expect_all(t, t->in[slot], activation(micro, t->stage));
    float *g = t->grad[buffer];
    if (t->stage == t->n_stages - 1) {
        for (int e = 0; e < ELEMS; e++) {
            g[e] = (float)(micro + 1) + (float)e;
        }
    }
    float dout = ldexpf((float)(micro + 1), t->n_stages - 1 - t->stage);
    expect_all(t, g, dout);
    for (int e = 0; e < ELEMS; e++) {
        g[e] = 2.0f * dout + (float)e;
    }
    memset(t->in[slot], 0xdd, sizeof t->in[slot]);
    memset(t->out[slot], 0xdd, sizeof t->out[slot]); /* its send must be over */
    t->slot_micro[slot] = -1;
    t->live--;
    t->events[t->n_events++] = (event){.micro = micro, .slot = slot, .buffer = buffer, .last = last};
    return MC_OK;
}

static mc_tensor toy_input(void *stage, int slot)
{
    return mc_tensor_1d(((toy *)stage)->in[slot], MC_F32, ELEMS);
}

static mc_tensor toy_output(void *stage, int slot)
{
    return mc_tensor_1d(((toy *)stage)->out[slot], MC_F32, ELEMS);
}

static mc_tensor toy_grad(void *stage, int buffer)
{
    return mc_tensor_1d(((toy *)stage)->grad[buffer], MC_F32, ELEMS);
}

static const pp_stage_ops toy_ops = {
    .forward = toy_forward, .backward = toy_backward, .input = toy_input, .output = toy_output, .grad = toy_grad};

typedef struct job {
    const pp_schedule *schedule;
    mc_comm comm;
    toy *toy;
    pp_stats stats;
    int n_slots;
    mc_status st;
} job;

static mc_status run_stage(job *j)
{
    pp_plan plan;
    toy *t = j->toy;
    MC_TRY(pp_plan_init(&plan, MAX_MICRO));
    pp_shape shape = {
        .n_stages = t->n_stages, .stage = t->stage, .n_micro = t->n_micro, .forward_only = t->forward_only};
    mc_status st;
    MC_TRY_GOTO(st, pp_plan_make(&plan, j->schedule, &shape), undo);
    j->n_slots = plan.n_slots;
    for (int step = 0; step < 2; step++) { /* a plan is run again at every step */
        t->n_events = 0;
        MC_TRY_GOTO(st, pp_exec(&plan, &j->comm, &toy_ops, t, &j->stats), undo);
    }
undo:
    pp_plan_fini(&plan);
    return st;
}

static void *stage_thread(void *arg)
{
    job *j = arg;
    j->st = run_stage(j);
    return NULL;
}

/* Runs all stages; leaves each one's toy and job for further checks. */
static void run_all(const char *name, int p, int m, bool forward_only, bool delays, toy *toys, job *jobs)
{
    const pp_schedule *schedule;
    assert_int_equal(pp_schedule_find(name, &schedule), MC_OK);
    fake_group *group = fake_group_create(p);
    pthread_t threads[MAX_STAGES];
    for (int s = 0; s < p; s++) {
        toys[s] = (toy){.stage = s,
                        .n_stages = p,
                        .n_micro = m,
                        .forward_only = forward_only,
                        .delays = delays,
                        .seed = (uint32_t)(100 * p + m)};
        memset(toys[s].slot_micro, 0xff, sizeof toys[s].slot_micro);
        jobs[s] = (job){.schedule = schedule, .comm = fake_group_member(group, s), .toy = &toys[s]};
        assert_int_equal(pthread_create(&threads[s], NULL, stage_thread, &jobs[s]), 0);
    }
    for (int s = 0; s < p; s++) {
        pthread_join(threads[s], NULL);
    }
    for (int s = 0; s < p; s++) {
        assert_int_equal(jobs[s].st, MC_OK);
        assert_int_equal(toys[s].faults, 0);
        assert_int_equal(toys[s].n_events, forward_only ? m : 2 * m);
        assert_true(jobs[s].stats.compute_seconds > 0.0 && jobs[s].stats.wait_seconds >= 0.0);
        assert_int_equal(jobs[s].stats.peak_live, jobs[s].n_slots);
    }
    assert_int_equal(fake_group_unfinished(group), 0);
    fake_group_destroy(group);
}

static void training_runs(const char *name, bool delays, int m_step)
{
    toy *toys = calloc(MAX_STAGES, sizeof *toys);
    job jobs[MAX_STAGES];
    for (int p = 1; p <= MAX_STAGES; p++) {
        for (int m = 1; m <= MAX_MICRO; m += m_step) {
            run_all(name, p, m, false, delays, toys, jobs);
            for (int s = 0; s < p; s++) {
                int expected = strcmp(name, "gpipe") == 0 || m < p - s ? m : p - s;
                assert_int_equal(toys[s].peak_live, expected);
                assert_int_equal(jobs[s].stats.peak_live, expected);
                const event *last = &toys[s].events[toys[s].n_events - 1];
                int n_last = 0, n_backward = 0;
                for (int i = 0; i < toys[s].n_events; i++) {
                    const event *e = &toys[s].events[i];
                    if (!e->forward) {
                        assert_int_equal(e->buffer, n_backward++ % PP_GRAD_BUFFERS);
                        n_last += e->last ? 1 : 0;
                    }
                }
                assert_true(last->last && n_last == 1);
            }
        }
    }
    free(toys);
}

static void test_1f1b_all_shapes(void **state)
{
    (void)state;
    training_runs("1f1b", false, 1);
}

static void test_gpipe_all_shapes(void **state)
{
    (void)state;
    training_runs("gpipe", false, 1);
}

static void test_random_delays(void **state)
{
    (void)state;
    training_runs("1f1b", true, 5);
    training_runs("gpipe", true, 5);
}

/* Four stages and 16 micro-batches: the order that each stage computes in is Megatron-LM's. */
static void test_it_is_1f1b(void **state)
{
    (void)state;
    enum { P = 4, M = 16 };
    toy *toys = calloc(P, sizeof *toys);
    job jobs[P];
    run_all("1f1b", P, M, false, true, toys, jobs);
    assert_true(toys[0].peak_live == 4 && jobs[0].stats.peak_live == 4);
    for (int s = 0; s < P; s++) {
        int warmup = P - 1 - s, i = 0;
        for (int micro = 0; micro < warmup; micro++, i++) {
            assert_true(toys[s].events[i].forward && toys[s].events[i].micro == micro);
        }
        for (int micro = warmup; micro < M; micro++, i += 2) {
            assert_true(toys[s].events[i].forward && toys[s].events[i].micro == micro);
            assert_true(!toys[s].events[i + 1].forward && toys[s].events[i + 1].micro == micro - warmup);
        }
        for (int micro = M - warmup; micro < M; micro++, i++) {
            assert_true(!toys[s].events[i].forward && toys[s].events[i].micro == micro);
        }
        assert_int_equal(i, 2 * M);
    }
    free(toys);
}

static void test_forward_only(void **state)
{
    (void)state;
    toy *toys = calloc(MAX_STAGES, sizeof *toys);
    job jobs[MAX_STAGES];
    for (int p = 1; p <= MAX_STAGES; p++) {
        for (int m = 1; m <= MAX_MICRO; m++) {
            const pp_schedule *schedule;
            assert_int_equal(pp_schedule_find("1f1b", &schedule), MC_OK);
            fake_group *group = fake_group_create(p);
            pthread_t threads[MAX_STAGES];
            for (int s = 0; s < p; s++) {
                toys[s] = (toy){.stage = s, .n_stages = p, .n_micro = m, .forward_only = true, .delays = m % 4 == 0};
                memset(toys[s].slot_micro, 0xff, sizeof toys[s].slot_micro);
                jobs[s] = (job){.schedule = schedule, .comm = fake_group_member(group, s), .toy = &toys[s]};
                assert_int_equal(pthread_create(&threads[s], NULL, stage_thread, &jobs[s]), 0);
            }
            for (int s = 0; s < p; s++) {
                pthread_join(threads[s], NULL);
                assert_int_equal(jobs[s].st, MC_OK);
                assert_true(toys[s].faults == 0 && toys[s].n_events == m);
                assert_int_equal(jobs[s].n_slots, m < 2 ? m : 2);
                for (int i = 0; i < m; i++) {
                    assert_true(toys[s].events[i].micro == i && toys[s].events[i].slot == i % 2);
                }
            }
            assert_int_equal(fake_group_unfinished(group), 0);
            fake_group_destroy(group);
        }
    }
    free(toys);
}

static mc_status failing_forward(void *stage, int micro, int slot)
{
    (void)stage;
    (void)slot;
    return micro == 2 ? MC_NUMERIC : MC_OK;
}

static mc_status quiet_backward(void *stage, pp_kind kind, int micro, int slot, int buffer, bool last)
{
    (void)stage, (void)kind, (void)micro, (void)slot, (void)buffer, (void)last;
    return MC_OK;
}

static void test_stage_error_stops_the_list(void **state)
{
    (void)state;
    pp_stage_ops ops = toy_ops;
    ops.forward = failing_forward;
    ops.backward = quiet_backward;
    const pp_schedule *schedule;
    assert_int_equal(pp_schedule_find("1f1b", &schedule), MC_OK);
    pp_plan plan;
    assert_int_equal(pp_plan_init(&plan, 4), MC_OK);
    pp_shape shape = {.n_stages = 1, .stage = 0, .n_micro = 4};
    assert_int_equal(pp_plan_make(&plan, schedule, &shape), MC_OK);
    fake_group *group = fake_group_create(1);
    mc_comm comm = fake_group_member(group, 0);
    pp_stats stats = {.peak_live = -7};
    assert_int_equal(pp_exec(&plan, &comm, &ops, NULL, &stats), MC_NUMERIC);
    assert_int_equal(stats.peak_live, -7); /* outputs are written on success only */
    fake_group_destroy(group);
    pp_plan_fini(&plan);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_1f1b_all_shapes), cmocka_unit_test(test_gpipe_all_shapes),
        cmocka_unit_test(test_random_delays),   cmocka_unit_test(test_it_is_1f1b),
        cmocka_unit_test(test_forward_only),    cmocka_unit_test(test_stage_error_stops_the_list),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
