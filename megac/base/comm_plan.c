/* The communicator of a dry run: arguments are checked, data are never touched. */
#include "megac/base/comm_impl.h"

static mc_status plan_begin(const mc_comm *c, mc_request *req)
{
    (void)c;
    req->done = true;
    return MC_OK;
}

static mc_status plan_wait(const mc_comm *c, mc_request *req)
{
    (void)c;
    MC_ASSERT(req->done);
    return MC_OK;
}

static void plan_destroy(mc_comm *c)
{
    (void)c;
}

mc_comm mc_comm_plan(const char *name, int rank, int size)
{
    static const mc_comm_ops ops = {
        .name = "plan",
        .all_reduce_begin = plan_begin,
        .all_gather_begin = plan_begin,
        .reduce_scatter_begin = plan_begin,
        .broadcast_begin = plan_begin,
        .send_begin = plan_begin,
        .recv_begin = plan_begin,
        .wait = plan_wait,
        .destroy = plan_destroy,
        .plans_only = true,
    };
    MC_ASSERT(size >= 1 && rank >= 0 && rank < size);
    return (mc_comm){.ops = &ops, .name = name, .rank = rank, .size = size};
}
