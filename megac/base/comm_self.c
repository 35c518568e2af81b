/* The communicator of one rank: a collective is a copy, or nothing when in place. */
#include <string.h>

#include "megac/base/comm_impl.h"

static mc_status copy_begin(const mc_comm *c, mc_request *req)
{
    (void)c;
    size_t bytes = mc_tensor_bytes(req->in);
    if (bytes > 0 && req->in.data != req->out.data) {
        memcpy(req->out.data, req->in.data, bytes);
    }
    req->done = true;
    return MC_OK;
}

/* mc_comm_send_begin has refused every peer already: a group of one has no other rank. */
static mc_status no_peer(const mc_comm *c, mc_request *req)
{
    return MC_FAIL(MC_INVALID, "%s of %s: a group of one rank has no peers", mc_i_kind_name(req->kind), c->name);
}

static mc_status self_wait(const mc_comm *c, mc_request *req)
{
    (void)c;
    MC_ASSERT(req->done);
    return MC_OK;
}

static void self_destroy(mc_comm *c)
{
    (void)c;
}

mc_comm mc_comm_self(const char *name)
{
    static const mc_comm_ops ops = {
        .name = "self",
        .all_reduce_begin = copy_begin,
        .all_gather_begin = copy_begin,
        .reduce_scatter_begin = copy_begin,
        .broadcast_begin = copy_begin,
        .send_begin = no_peer,
        .recv_begin = no_peer,
        .wait = self_wait,
        .destroy = self_destroy,
    };
    return (mc_comm){.ops = &ops, .name = name, .size = 1};
}
