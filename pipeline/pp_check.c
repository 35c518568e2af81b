/* Simulation of all stages of a schedule.
 *
 * Worst case for order: a send is done only when its receiver waits for it, however early the receive was begun, so
 * that what passes here cannot hang over any communicator. For time, transfers are free. */
#include <stdio.h>

#include "megac/base/alloc.h"
#include "pipeline/pp_impl.h"

static const double forward_time = 1.0, backward_time = 2.0, half_backward_time = 1.0;

typedef struct sim_stage {
    pp_plan plan;
    pp_i_walk walk;
    pp_i_step step; /* the one to do next */
    double time, work;
    int n_sent[PP_I_N_DIRS];    /* messages whose send has begun */
    int n_awaited[PP_I_N_DIRS]; /* messages that the stage has come to wait for */
    double *sent_time[PP_I_N_DIRS];
    int *sent_micro[PP_I_N_DIRS];
} sim_stage;

typedef struct sim {
    const pp_schedule *schedule;
    int n_stages, n_micro;
    sim_stage *stages;
} sim;

static mc_status sim_init(sim *s, bool forward_only)
{
    MC_TRY(MC_NEW_N(&s->stages, s->n_stages, "pipeline simulation"));
    for (int i = 0; i < s->n_stages; i++) {
        sim_stage *st = &s->stages[i];
        MC_TRY(pp_plan_init(&st->plan, s->n_micro));
        for (int dir = 0; dir < PP_I_N_DIRS; dir++) {
            MC_TRY(MC_NEW_N(&st->sent_time[dir], s->n_micro, "pipeline simulation times"));
            MC_TRY(MC_NEW_N(&st->sent_micro[dir], s->n_micro, "pipeline simulation messages"));
        }
        pp_shape shape = {.n_stages = s->n_stages, .stage = i, .n_micro = s->n_micro, .forward_only = forward_only};
        MC_TRY(pp_plan_make(&st->plan, s->schedule, &shape));
        pp_i_walk_begin(&st->walk, &st->plan);
        st->step = pp_i_walk_next(&st->walk);
    }
    return MC_OK;
}

static void sim_fini(sim *s)
{
    for (int i = 0; s->stages != NULL && i < s->n_stages; i++) {
        for (int dir = 0; dir < PP_I_N_DIRS; dir++) {
            mc_free(s->stages[i].sent_time[dir]);
            mc_free(s->stages[i].sent_micro[dir]);
        }
        pp_plan_fini(&s->stages[i].plan);
    }
    mc_free(s->stages);
}

/* The stage at the other end of a step's message. */
static int peer_of(const pp_i_step *step, int stage)
{
    bool from_previous = (step->op == PP_I_WAIT_RECV) == (step->dir == PP_I_ACT);
    return from_previous ? stage - 1 : stage + 1;
}

static double compute_time(pp_kind kind)
{
    return kind == PP_FWD ? forward_time : kind == PP_BWD ? backward_time : half_backward_time;
}

/* Does the stage's next step; *moved_out is false when it must wait for a peer. */
static mc_status sim_step(sim *s, int stage, bool *moved_out)
{
    sim_stage *st = &s->stages[stage];
    const pp_i_step *step = &st->step;
    const sim_stage *peer;
    *moved_out = false;
    switch (step->op) {
    case PP_I_END:
        return MC_OK;
    case PP_I_COMPUTE:
        st->time += compute_time(step->kind);
        st->work += compute_time(step->kind);
        break;
    case PP_I_BEGIN_RECV:
        break;
    case PP_I_BEGIN_SEND:
        st->sent_time[step->dir][step->index] = st->time;
        st->sent_micro[step->dir][step->index] = step->micro;
        st->n_sent[step->dir] = step->index + 1;
        break;
    case PP_I_WAIT_SEND:
        peer = &s->stages[peer_of(step, stage)];
        if (peer->n_awaited[step->dir] <= step->index) {
            return MC_OK;
        }
        break;
    case PP_I_WAIT_RECV:
        peer = &s->stages[peer_of(step, stage)];
        st->n_awaited[step->dir] = step->index + 1;
        if (peer->n_sent[step->dir] <= step->index) {
            return MC_OK;
        }
        if (peer->sent_micro[step->dir][step->index] != step->micro) {
            return MC_FAIL(MC_INVALID,
                           "pipeline schedule \"%s\": stage %d receives the %s of micro-batch %d where stage %d sends "
                           "that of micro-batch %d",
                           s->schedule->name, stage, step->dir == PP_I_ACT ? "activation" : "gradient", step->micro,
                           peer_of(step, stage), peer->sent_micro[step->dir][step->index]);
        }
        if (peer->sent_time[step->dir][step->index] > st->time) {
            st->time = peer->sent_time[step->dir][step->index];
        }
        break;
    }
    st->step = pp_i_walk_next(&st->walk);
    *moved_out = true;
    return MC_OK;
}

/* Says what the first waiting stage waits for, then what that peer waits for, until the chain closes or ends. */
static mc_status deadlock(const sim *s, int stage)
{
    char text[512];
    size_t used = 0;
    for (int links = 0; links < 4; links++) {
        const pp_i_step *step = &s->stages[stage].step;
        int n;
        int peer = -1;
        if (step->op == PP_I_END) {
            n = snprintf(text + used, sizeof text - used, "%sstage %d has finished", links > 0 ? "; " : "", stage);
        } else {
            peer = peer_of(step, stage);
            n = snprintf(text + used, sizeof text - used,
                         "%sstage %d waits for stage %d to %s the %s of micro-batch %d", links > 0 ? "; " : "", stage,
                         peer, step->op == PP_I_WAIT_RECV ? "send" : "receive",
                         step->dir == PP_I_ACT ? "activation" : "gradient", step->micro);
        }
        MC_ASSERT(n > 0 && (size_t)n < sizeof text - used);
        used += (size_t)n;
        if (peer < 0) {
            break;
        }
        stage = peer;
    }
    return MC_FAIL(MC_INVALID, "pipeline schedule \"%s\" with %d stages and %d micro-batches does not finish: %s",
                   s->schedule->name, s->n_stages, s->n_micro, text);
}

static mc_status sim_run(sim *s)
{
    for (;;) {
        bool progress = false;
        int waiting = -1;
        for (int stage = s->n_stages - 1; stage >= 0; stage--) {
            bool moved = true;
            while (moved) {
                MC_TRY(sim_step(s, stage, &moved));
                progress = progress || moved;
            }
            if (s->stages[stage].step.op != PP_I_END) {
                waiting = stage;
            }
        }
        if (waiting < 0) {
            return MC_OK;
        }
        if (!progress) {
            return deadlock(s, waiting);
        }
    }
}

static void sim_report(const sim *s, pp_report *report_out)
{
    pp_report r = {0};
    for (int i = 0; i < s->n_stages; i++) {
        const sim_stage *st = &s->stages[i];
        if (i < (int)(sizeof r.peak_live / sizeof r.peak_live[0])) {
            r.peak_live[i] = st->walk.peak_live;
        }
        r.makespan = st->time > r.makespan ? st->time : r.makespan;
        r.ideal = st->work > r.ideal ? st->work : r.ideal;
    }
    *report_out = r;
}

mc_status pp_check(const pp_schedule *schedule, int n_stages, int n_micro, bool forward_only, pp_report *report_out)
{
    MC_ASSERT(n_stages >= 1 && n_micro >= 1);
    sim s = {.schedule = schedule, .n_stages = n_stages, .n_micro = n_micro};
    mc_status st;
    MC_TRY_GOTO(st, sim_init(&s, forward_only), undo_all);
    MC_TRY_GOTO(st, sim_run(&s), undo_all);
    sim_report(&s, report_out);
undo_all:
    sim_fini(&s);
    return st;
}
