/* Runs a stage's plan: the walk's steps, performed. */

#include "megac/base/clock.h"
#include "pipeline/pp_impl.h"

typedef struct run {
    const mc_comm *comm;
    const pp_stage_ops *ops;
    void *stage;
    mc_request recv[PP_I_N_DIRS]; /* at most one receive of a direction is under way */
    pp_stats stats;
} run;

static mc_status do_compute(run *r, const pp_i_step *step)
{
    double start = mc_now();
    mc_status st = step->kind == PP_FWD
                       ? r->ops->forward(r->stage, step->micro, step->slot)
                       : r->ops->backward(r->stage, step->kind, step->micro, step->slot, step->buffer, step->last);
    r->stats.compute_seconds += mc_now() - start;
    return st;
}

static mc_status do_wait(run *r, mc_request *req)
{
    double start = mc_now();
    mc_status st = mc_comm_wait(req);
    r->stats.wait_seconds += mc_now() - start;
    return st;
}

static mc_status do_step(run *r, const pp_i_step *step)
{
    int peer = r->comm->rank; /* activations come from the previous stage and go to the next; gradients the other way */
    int down = step->dir == PP_I_ACT ? 1 : -1;
    mc_tensor buf;
    switch (step->op) {
    case PP_I_BEGIN_RECV:
        buf = step->dir == PP_I_ACT ? r->ops->input(r->stage, step->slot) : r->ops->grad(r->stage, step->buffer);
        return mc_comm_recv_begin(r->comm, buf, peer - down, &r->recv[step->dir]);
    case PP_I_WAIT_RECV:
        return do_wait(r, &r->recv[step->dir]);
    case PP_I_BEGIN_SEND:
        buf = step->dir == PP_I_ACT ? r->ops->output(r->stage, step->slot) : r->ops->grad(r->stage, step->buffer);
        return mc_comm_send_begin(r->comm, buf, peer + down, step->send);
    case PP_I_WAIT_SEND:
        return do_wait(r, step->send);
    case PP_I_COMPUTE:
        return do_compute(r, step);
    case PP_I_END:
        break;
    }
    return MC_OK;
}

mc_status pp_exec(const pp_plan *plan, const mc_comm *comm, const pp_stage_ops *ops, void *stage, pp_stats *stats_out)
{
    MC_ASSERT(comm->size == plan->shape.n_stages && comm->rank == plan->shape.stage);
    run r = {.comm = comm, .ops = ops, .stage = stage};
    pp_i_walk walk;
    pp_i_walk_begin(&walk, plan);
    for (pp_i_step step = pp_i_walk_next(&walk); step.op != PP_I_END; step = pp_i_walk_next(&walk)) {
        MC_TRY(do_step(&r, &step));
    }
    MC_ASSERT(walk.live == 0 && walk.peak_live <= plan->n_slots);
    r.stats.peak_live = walk.peak_live;
    *stats_out = r.stats;
    return MC_OK;
}
