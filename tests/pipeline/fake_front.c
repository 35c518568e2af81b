/* Stands in for megac/base/comm.c until the program has it: the three calls that pp_exec makes. */
#include "megac/base/comm.h"

mc_status mc_comm_send_begin(const mc_comm *c, mc_tensor buf, int peer, mc_request *req)
{
    *req = (mc_request){.comm = c, .in = buf, .peer = peer};
    return c->ops->send_begin(c, req);
}

mc_status mc_comm_recv_begin(const mc_comm *c, mc_tensor buf, int peer, mc_request *req)
{
    *req = (mc_request){.comm = c, .out = buf, .peer = peer};
    return c->ops->recv_begin(c, req);
}

mc_status mc_comm_wait(mc_request *req)
{
    return req->comm->ops->wait(req->comm, req);
}
