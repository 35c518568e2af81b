/* Device communicators over NCCL.
 *
 *   begin:  compute stream ──event──► lane's stream: operation, then the slot's event
 *   wait:   slot's event ──► compute stream                                         (the host waits for neither)
 *
 * A lane is an NCCL communicator with a stream of its own. Collectives have one; where a group sends and receives,
 * messages to higher ranks have the second and messages to lower ranks the third. A lane is a queue on every rank, and
 * in one direction along the pipeline the k-th send of a rank meets the k-th receive of its neighbour: no order of
 * activations and gradients can make two ranks wait for each other, so that sends need not be grouped with receives. */
#include "megac/base/comm_nccl.h"

#include <nccl.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "megac/base/alloc.h"
#include "megac/base/clock.h"
#include "megac/base/comm_impl.h"

enum { RECENT = 64, MAX_LANES = 3 };
enum { COLLECTIVES, DOWN, UP };

/* One operation: until it is waited for, and beyond that while it is among the lane's recent ones. */
typedef struct slot {
    struct slot *next_free;
    cudaEvent_t done;
    int kind, peer;
    uint64_t seq;
    size_t bytes;
    bool waited, recent;
} slot;

typedef struct lane {
    ncclComm_t comm;
    cudaStream_t stream;
    slot *recent[RECENT]; /* operation seq is at seq % RECENT */
    uint64_t n_ops;
    uint64_t n_complete; /* a lower bound, for the deadline */
} lane;

struct mc_nccl {
    struct mc_nccl *next; /* of the device's groups */
    mc_cuda *cuda;
    const mc_comm *host;
    const char *name;
    double deadline;
    cudaStream_t compute;
    cudaEvent_t ready;
    lane lanes[MAX_LANES];
    int n_lanes;
    slot *free;
};
typedef struct mc_nccl mc_nccl;

static const char *const lane_names[MAX_LANES] = {"collectives", "messages to higher ranks", "messages to lower ranks"};

static void nap(void)
{
    nanosleep(&(struct timespec){.tv_nsec = 20000}, NULL);
}

static mc_status nccl_failed(const mc_nccl *g, ncclResult_t r, const char *what)
{
    const char *last = ncclGetLastError(NULL);
    return MC_FAIL(MC_COMM, "NCCL, group %s: %s: %s%s%s; NCCL_DEBUG=INFO in the environment tells more", g->name, what,
                   ncclGetErrorString(r), last && *last ? ": " : "", last ? last : "");
}

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
            nap();
        }
    }
    return r == ncclSuccess ? MC_OK : nccl_failed(g, r, what);
}

/* ---- the watch ---- */

/* First operation of the lane that is not complete, or NULL. *n_out: complete ones, as far as is known. */
static const slot *oldest_open(lane *l, uint64_t *n_out)
{
    uint64_t first = l->n_ops > RECENT ? l->n_ops - RECENT : 0;
    for (uint64_t seq = l->n_complete > first ? l->n_complete : first; seq < l->n_ops; seq++) {
        const slot *s = l->recent[seq % RECENT];
        if (cudaEventQuery(s->done) == cudaErrorNotReady) {
            *n_out = seq;
            return s;
        }
    }
    *n_out = l->n_ops;
    return NULL;
}

/* Whether an operation of any group has completed since the last call. */
static bool progress(mc_cuda *cuda)
{
    bool any = false;
    for (mc_nccl *g = cuda->groups; g; g = g->next) {
        for (int i = 0; i < g->n_lanes; i++) {
            lane *l = &g->lanes[i];
            uint64_t n;
            (void)oldest_open(l, &n);
            any = any || n > l->n_complete;
            l->n_complete = n;
        }
    }
    return any;
}

static mc_status check_async(mc_cuda *cuda)
{
    for (const mc_nccl *g = cuda->groups; g; g = g->next) {
        for (int i = 0; i < g->n_lanes; i++) {
            ncclResult_t r = ncclSuccess, q = ncclCommGetAsyncError(g->lanes[i].comm, &r);
            r = q != ncclSuccess ? q : r;
            if (r != ncclSuccess && r != ncclInProgress) {
                return nccl_failed(g, r, lane_names[i]);
            }
        }
    }
    return MC_OK;
}

/* "tp all_reduce #41 (8192 bytes)" of every lane with an open operation. */
static mc_status report(mc_cuda *cuda, double waited)
{
    char text[1024] = "";
    size_t used = 0;
    for (mc_nccl *g = cuda->groups; g; g = g->next) {
        for (int i = 0; i < g->n_lanes; i++) {
            uint64_t n;
            const slot *s = oldest_open(&g->lanes[i], &n);
            if (!s || used + 1 >= sizeof text) {
                continue;
            }
            int wrote = snprintf(text + used, sizeof text - used, "%s%s %s #%llu of %zu bytes, rank %d of %d",
                                 used ? "; " : "", g->name, mc_i_kind_name(s->kind), (unsigned long long)s->seq,
                                 s->bytes, g->host->rank, g->host->size);
            used += wrote > 0 ? (size_t)wrote : 0;
            if (s->peer >= 0 && used + 1 < sizeof text) {
                wrote = snprintf(text + used, sizeof text - used, ", other side rank %d", s->peer);
                used += wrote > 0 ? (size_t)wrote : 0;
            }
        }
    }
    return MC_FAIL(
        MC_TIMEOUT,
        "no operation between devices completed for %.0f s; not complete: %s; see the other ranks' messages, "
        "or raise --distributed-timeout-minutes",
        waited, text[0] ? text : "none (the device itself does not come to an end)");
}

/* Nothing of these groups can be used again. Operations under way end with an error. */
static void abort_all(mc_cuda *cuda)
{
    for (mc_nccl *g = cuda->groups; g; g = g->next) {
        for (int i = 0; i < g->n_lanes; i++) {
            if (g->lanes[i].comm) {
                (void)ncclCommAbort(g->lanes[i].comm);
                g->lanes[i].comm = NULL;
            }
        }
        g->n_lanes = 0;
    }
}

static double shortest_deadline(const mc_cuda *cuda)
{
    double least = 0;
    for (const mc_nccl *g = cuda->groups; g; g = g->next) {
        least = least == 0 || g->deadline < least ? g->deadline : least;
    }
    return least;
}

mc_status mc_nccl_wait_event(mc_cuda *cuda, cudaEvent_t event)
{
    double limit = shortest_deadline(cuda), since = mc_now(), checked = since;
    for (cudaError_t e = cudaEventQuery(event); e != cudaSuccess; e = cudaEventQuery(event)) {
        mc_status st = e == cudaErrorNotReady ? MC_OK : mc_cuda_check_at(__FILE__, __LINE__, e, "cudaEventQuery");
        if (st == MC_OK && mc_now() - checked > 0.05) {
            checked = mc_now();
            st = check_async(cuda);
            since = progress(cuda) ? checked : since;
        }
        if (st == MC_OK && mc_now() - since > limit) {
            st = report(cuda, mc_now() - since);
        }
        if (st != MC_OK) {
            abort_all(cuda);
            return st;
        }
        nap();
    }
    return MC_OK;
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
        return COLLECTIVES;
    }
    return (req->peer > c->rank) == (req->kind == MC_I_SEND) ? DOWN : UP;
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
    mc_status st = queue(g, l, req, s);
    if (st != MC_OK) {
        s->waited = true;
        give_slot(g, s);
        return st;
    }
    slot **place = &l->recent[l->n_ops++ % RECENT], *old = *place;
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
    for (int i = 0; i < RECENT; i++) {
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
    for (int i = 0; i < MAX_LANES; i++) {
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
static mc_status exchange_ids(const mc_nccl *g, ncclUniqueId ids[MAX_LANES], int n)
{
    struct {
        ncclUniqueId ids[MAX_LANES];
        int32_t result;
    } message;
    memset(&message, 0, sizeof message);
    for (int i = 0; i < n && g->host->rank == 0 && message.result == ncclSuccess; i++) {
        message.result = (int32_t)ncclGetUniqueId(&message.ids[i]);
    }
    MC_TRY(mc_comm_broadcast(g->host, mc_tensor_1d(&message, MC_U8, sizeof message), 0));
    memcpy(ids, message.ids, sizeof message.ids);
    return message.result == ncclSuccess ? MC_OK : nccl_failed(g, (ncclResult_t)message.result, "ncclGetUniqueId");
}

static mc_status open_lanes(mc_nccl *g, int n)
{
    ncclUniqueId ids[MAX_LANES];
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
        for (int k = 0; k < RECENT; k++) {
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
                   .name = host->name,
                   .deadline = deadline_seconds,
                   .compute = (cudaStream_t)stream.handle};
    g->next = g->cuda->groups;
    g->cuda->groups = g;
    mc_status st = open_lanes(g, sends ? MAX_LANES : 1);
    if (st != MC_OK) {
        destroy_group(g);
        return st;
    }
    *comm_out =
        (mc_comm){.ops = &ops, .impl = g, .name = g->name, .rank = host->rank, .size = host->size, .stream = stream};
    return MC_OK;
}
