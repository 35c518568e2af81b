/* Device communicators over NCCL.
 *
 *   begin:  compute stream ──event──► lane's stream: operation, then the slot's event
 *   wait:   slot's event ──► compute stream                                         (the host waits for neither)
 *
 * A lane is an NCCL communicator with a stream of its own. Collectives have one; where a group sends and receives,
 * messages to higher ranks have the second and messages to lower ranks the third. A lane is a queue on every rank, and
 * in one direction along the pipeline the k-th send of a rank meets the k-th receive of its neighbour: no order of
 * activations and gradients can make two ranks wait for each other, so that sends need not be grouped with receives. */
#include <string.h>

#include "megac/base/alloc.h"
#include "megac/base/clock.h"
#include "megac/base/comm_group_nccl.h"

typedef mc_i_nccl_slot slot;
typedef mc_i_nccl_lane lane;

/* Calls of a non-blocking communicator come back at once; this waits until the last one has been queued. */
static mc_status settle(const mc_nccl *g, const lane *l, ncclResult_t r, const char *what)
{
    double start = 0;
    while (r == ncclInProgress) {
        start = start > 0 ? start : mc_now();
        if (mc_now() - start > g->deadline) {
            return MC_FAIL(
                MC_TIMEOUT,
                "NCCL, group %s: %s is not under way after %.0f s; a rank has not come: see the other ranks' "
                "messages, or raise --distributed-timeout-minutes",
                g->name, what, g->deadline);
        }
        ncclResult_t q = ncclCommGetAsyncError(l->comm, &r);
        r = q != ncclSuccess ? q : r;
        if (r == ncclInProgress) {
            mc_i_nccl_nap();
        }
    }
    return r == ncclSuccess ? MC_OK : mc_i_nccl_failed(g, r, what);
}

/* ---- operations ---- */

static mc_status add_slot(mc_nccl *g)
{
    slot *s;
    MC_TRY(MC_NEW(&s, "operation between devices"));
    mc_status st = mc_cuda_check_at(__FILE__, __LINE__, cudaEventCreateWithFlags(&s->done, cudaEventDisableTiming),
                                    "cudaEventCreateWithFlags");
    if (st != MC_OK) {
        mc_free(s);
        return st;
    }
    s->next_free = g->free;
    g->free = s;
    return MC_OK;
}

/* There are enough from the start, but for more operations at once than a lane remembers. */
static mc_status take_slot(mc_nccl *g, slot **slot_out)
{
    if (!g->free) {
        MC_TRY(add_slot(g));
    }
    slot *s = g->free;
    g->free = s->next_free;
    s->waited = false;
    *slot_out = s;
    return MC_OK;
}

static void give_slot(mc_nccl *g, slot *s)
{
    if (s->waited && !s->recent) {
        s->next_free = g->free;
        g->free = s;
    }
}

static ncclDataType_t nccl_type(mc_dtype dtype)
{
    switch (dtype) {
    case MC_F32:
        return ncclFloat32;
    case MC_F64:
        return ncclFloat64;
    case MC_BF16:
        return ncclBfloat16;
    case MC_F16:
        return ncclFloat16;
    case MC_I32:
        return ncclInt32;
    default:
        MC_ASSERT(mc_dtype_bytes(dtype) == 1);
        return ncclUint8;
    }
}

static ncclRedOp_t nccl_op(mc_reduce op)
{
    return op == MC_MAX ? ncclMax : op == MC_MIN ? ncclMin : ncclSum;
}

static ncclResult_t call(const lane *l, const mc_request *req)
{
    const void *in = req->in.data;
    void *out = req->out.data;
    mc_tensor t = req->kind == MC_I_RECV || req->kind == MC_I_REDUCE_SCATTER ? req->out : req->in;
    size_t n = (size_t)mc_tensor_elems(t);
    ncclDataType_t type = nccl_type(t.dtype);
    switch (req->kind) {
    case MC_I_ALL_REDUCE:
        return ncclAllReduce(in, out, n, type, nccl_op(req->op), l->comm, l->stream);
    case MC_I_ALL_GATHER:
        return ncclAllGather(in, out, n, type, l->comm, l->stream);
    case MC_I_REDUCE_SCATTER:
        return ncclReduceScatter(in, out, n, type, ncclSum, l->comm, l->stream);
    case MC_I_BROADCAST:
        return ncclBroadcast(in, out, n, type, req->peer, l->comm, l->stream);
    case MC_I_SEND:
        return ncclSend(in, n, type, req->peer, l->comm, l->stream);
    default:
        MC_ASSERT(req->kind == MC_I_RECV);
        return ncclRecv(out, n, type, req->peer, l->comm, l->stream);
    }
}

static int lane_of(const mc_comm *c, const mc_request *req)
{
    if (req->kind != MC_I_SEND && req->kind != MC_I_RECV) {
        return MC_I_NCCL_COLLECTIVES;
    }
    return (req->peer > c->rank) == (req->kind == MC_I_SEND) ? MC_I_NCCL_DOWN : MC_I_NCCL_UP;
}

static mc_status queue(mc_nccl *g, lane *l, mc_request *req, slot *s)
{
    const char *name = mc_i_kind_name(req->kind);
    MC_CUDA_TRY(cudaEventRecord(g->ready, g->compute));
    MC_CUDA_TRY(cudaStreamWaitEvent(l->stream, g->ready, cudaEventWaitDefault));
    MC_TRY(settle(g, l, call(l, req), name));
    MC_CUDA_TRY(cudaEventRecord(s->done, l->stream));
    return MC_OK;
}

static mc_status nccl_begin(const mc_comm *c, mc_request *req)
{
    mc_nccl *g = c->impl;
    if (req->kind == MC_I_BARRIER) { /* of the hosts: devices are ordered by their streams */
        req->done = true;
        return mc_comm_barrier(g->host);
    }
    int number = lane_of(c, req);
    if (number >= g->n_lanes) {
        return MC_FAIL(MC_COMM, "%s of %s: the group was made for collectives only, or was aborted",
                       mc_i_kind_name(req->kind), c->name);
    }
    lane *l = &g->lanes[number];
    slot *s;
    MC_TRY(take_slot(g, &s));
    s->kind = req->kind;
    s->peer = req->kind == MC_I_SEND || req->kind == MC_I_RECV ? req->peer : -1;
    s->seq = req->seq = l->n_ops;
    s->bytes = mc_i_request_bytes(req);
    mc_i_ledger_begun(g->engine->ledger, req);
    s->ledger_id = req->ledger_id;
    mc_status st = queue(g, l, req, s);
    if (st != MC_OK) {
        s->waited = true;
        give_slot(g, s);
        return st;
    }
    slot **place = &l->recent[l->n_ops++ % MC_I_NCCL_RECENT], *old = *place;
    if (old) {
        old->recent = false;
        give_slot(g, old);
    }
    s->recent = true;
    *place = s;
    req->queue = s;
    return MC_OK;
}

static mc_status nccl_wait(const mc_comm *c, mc_request *req)
{
    mc_nccl *g = c->impl;
    slot *s = req->queue;
    if (!req->done) {
        MC_CUDA_TRY(cudaStreamWaitEvent(g->compute, s->done, cudaEventWaitDefault));
        s->waited = true;
        give_slot(g, s);
        req->done = true;
    }
    return MC_OK;
}

/* ---- life ---- */

static void destroy_lane(mc_nccl *g, lane *l)
{
    if (l->comm) {
        ncclResult_t r = ncclCommFinalize(l->comm);
        if (settle(g, l, r, "the end of the group") == MC_OK) {
            (void)ncclCommDestroy(l->comm);
        } else {
            (void)ncclCommAbort(l->comm);
        }
    }
    if (l->stream) {
        (void)cudaStreamSynchronize(l->stream);
        (void)cudaStreamDestroy(l->stream);
    }
    for (int i = 0; i < MC_I_NCCL_RECENT; i++) {
        if (l->recent[i]) {
            (void)cudaEventDestroy(l->recent[i]->done);
            mc_free(l->recent[i]);
        }
    }
}

static void destroy_group(mc_nccl *g)
{
    for (mc_nccl **at = &g->cuda->groups; *at; at = &(*at)->next) {
        if (*at == g) {
            *at = g->next;
            break;
        }
    }
    for (int i = 0; i < MC_I_NCCL_LANES; i++) {
        destroy_lane(g, &g->lanes[i]);
    }
    while (g->free) {
        slot *s = g->free;
        g->free = s->next_free;
        (void)cudaEventDestroy(s->done);
        mc_free(s);
    }
    if (g->ready) {
        (void)cudaEventDestroy(g->ready);
    }
    mc_free(g);
}

static void nccl_destroy(mc_comm *c)
{
    destroy_group(c->impl);
}

/* Rank 0's ids reach the others over the host group; where it has none, all learn that. */
static mc_status exchange_ids(const mc_nccl *g, ncclUniqueId ids[MC_I_NCCL_LANES], int n)
{
    struct {
        ncclUniqueId ids[MC_I_NCCL_LANES];
        int32_t result;
    } message;
    memset(&message, 0, sizeof message);
    for (int i = 0; i < n && g->host->rank == 0 && message.result == ncclSuccess; i++) {
        message.result = (int32_t)ncclGetUniqueId(&message.ids[i]);
    }
    MC_TRY(mc_comm_broadcast(g->host, mc_tensor_1d(&message, MC_U8, sizeof message), 0));
    memcpy(ids, message.ids, sizeof message.ids);
    return message.result == ncclSuccess ? MC_OK : mc_i_nccl_failed(g, (ncclResult_t)message.result, "ncclGetUniqueId");
}

static mc_status open_lanes(mc_nccl *g, int n)
{
    ncclUniqueId ids[MC_I_NCCL_LANES];
    MC_TRY(exchange_ids(g, ids, n));
    MC_CUDA_TRY(cudaEventCreateWithFlags(&g->ready, cudaEventDisableTiming));
    for (int i = 0; i < n; i++) {
        lane *l = &g->lanes[i];
        ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
        config.blocking = 0;
        MC_CUDA_TRY(cudaStreamCreateWithFlags(&l->stream, cudaStreamNonBlocking));
        ncclResult_t r = ncclCommInitRankConfig(&l->comm, g->host->size, ids[i], g->host->rank, &config);
        MC_TRY(settle(g, l, r, "the meeting of the ranks"));
        g->n_lanes = i + 1;
        for (int k = 0; k < MC_I_NCCL_RECENT; k++) {
            MC_TRY(add_slot(g));
        }
    }
    return add_slot(g);
}

mc_status mc_nccl_create(mc_device *dev, const mc_comm *host, mc_stream stream, bool sends, double deadline_seconds,
                         mc_comm *comm_out)
{
    static const mc_comm_ops ops = {
        .name = "nccl",
        .all_reduce_begin = nccl_begin,
        .all_gather_begin = nccl_begin,
        .reduce_scatter_begin = nccl_begin,
        .broadcast_begin = nccl_begin,
        .send_begin = nccl_begin,
        .recv_begin = nccl_begin,
        .wait = nccl_wait,
        .destroy = nccl_destroy,
    };
    mc_nccl *g;
    MC_TRY(mc_cuda_require_own(dev, "--comm nccl"));
    MC_TRY(MC_NEW(&g, "NCCL group"));
    *g = (mc_nccl){.cuda = dev->impl,
                   .host = host,
                   .engine = mc_i_comm_engine(host),
                   .name = host->name,
                   .deadline = deadline_seconds,
                   .compute = (cudaStream_t)stream.handle};
    MC_ASSERT(g->engine); /* a group of one rank needs no NCCL */
    g->next = g->cuda->groups;
    g->cuda->groups = g;
    mc_status st = open_lanes(g, sends ? MC_I_NCCL_LANES : 1);
    if (st != MC_OK) {
        destroy_group(g);
        return st;
    }
    *comm_out =
        (mc_comm){.ops = &ops, .impl = g, .name = g->name, .rank = host->rank, .size = host->size, .stream = stream};
    return MC_OK;
}
