/* Checks of arguments for all backends, and the blocking calls. */
#include "megac/base/comm.h"

#include <stdio.h>

#include "megac/base/comm_impl.h"

const char *mc_i_kind_name(int kind)
{
    static const char *const names[] = {
        [MC_I_BARRIER] = "barrier",       [MC_I_ALL_REDUCE] = "all_reduce",
        [MC_I_ALL_GATHER] = "all_gather", [MC_I_REDUCE_SCATTER] = "reduce_scatter",
        [MC_I_BROADCAST] = "broadcast",   [MC_I_SEND] = "send",
        [MC_I_RECV] = "receive",
    };
    return kind >= 0 && kind < (int)(sizeof names / sizeof names[0]) ? names[kind] : "unknown operation";
}

mc_i_engine *mc_i_comm_engine(const mc_comm *c)
{
    return c->ops->engine ? c->ops->engine(c) : NULL;
}

size_t mc_i_request_bytes(const mc_request *req)
{
    return mc_tensor_bytes(req->kind == MC_I_RECV ? req->out : req->in);
}

mc_i_call mc_i_call_of(const mc_request *req)
{
    mc_tensor t = req->kind == MC_I_RECV ? req->out : req->in;
    return (mc_i_call){
        .kind = req->kind == MC_I_RECV ? MC_I_SEND : req->kind,
        .dtype = (int32_t)t.dtype,
        .op = (int32_t)req->op,
        .root = req->kind == MC_I_BROADCAST ? req->peer : -1,
        .bytes = mc_tensor_bytes(t),
        .seq = req->seq,
    };
}

mc_status mc_i_call_compare(mc_i_engine *e, const mc_comm *c, const mc_i_call *mine, const mc_i_call *theirs, int rank)
{
    static const char *const ops[] = {"sum", "max", "min"};
    if (mine->kind == theirs->kind && mine->dtype == theirs->dtype && mine->op == theirs->op &&
        mine->root == theirs->root && mine->bytes == theirs->bytes && mine->seq == theirs->seq) {
        return MC_OK;
    }
    const mc_i_call *call[] = {mine, theirs};
    char text[2][96];
    for (int i = 0; i < 2; i++) {
        char detail[32] = "";
        if (call[i]->kind == MC_I_ALL_REDUCE) {
            snprintf(detail, sizeof detail, " %s", ops[(unsigned)call[i]->op < 3 ? call[i]->op : 0]);
        } else if (call[i]->kind == MC_I_BROADCAST) {
            snprintf(detail, sizeof detail, " from member %d", (int)call[i]->root);
        }
        snprintf(text[i], sizeof text[i], "%s%s of %llu bytes %s (#%llu)", mc_i_kind_name(call[i]->kind), detail,
                 (unsigned long long)call[i]->bytes, mc_dtype_name((mc_dtype)call[i]->dtype),
                 (unsigned long long)call[i]->seq);
    }
    mc_status st = MC_FAIL(MC_MISMATCH,
                           "%s: this rank is at %s, rank %d at %s; every rank of the group must call the same "
                           "operations with the same shapes, in the same order",
                           c->name, text[0], rank, text[1]);
    mc_i_report(e, MC_I_DISAGREE, &rank, 1);
    return st;
}

static mc_status check_tensor(const mc_comm *c, const char *call, const char *role, mc_tensor t)
{
    if ((unsigned)t.dtype >= MC_DTYPE_COUNT || t.n_dims < 1 || t.n_dims > MC_MAX_DIMS) {
        return MC_FAIL(MC_INVALID, "%s of %s: %s is no tensor (type %d, %d dims)", call, c->name, role, (int)t.dtype,
                       t.n_dims);
    }
    if (!mc_tensor_contiguous(t)) {
        return MC_FAIL(MC_INVALID, "%s of %s: %s is not contiguous; copy it first", call, c->name, role);
    }
    if (!c->ops->plans_only && !t.data && mc_tensor_elems(t) > 0) {
        return MC_FAIL(MC_INVALID, "%s of %s: %s has no data", call, c->name, role);
    }
    return MC_OK;
}

static mc_status check_number(const mc_comm *c, const char *call, mc_dtype dtype)
{
    if (dtype != MC_F32 && dtype != MC_F64 && dtype != MC_I32 && dtype != MC_BF16 && dtype != MC_F16) {
        return MC_FAIL(MC_UNSUPPORTED, "%s of %s: cannot reduce %s; convert to a float type or i32", call, c->name,
                       mc_dtype_name(dtype));
    }
    return MC_OK;
}

/* `small` is either element-for-element at `place` in memory, or apart from all of `large`. */
static mc_status check_overlap(const mc_comm *c, const char *call, mc_tensor small, mc_tensor large, size_t at)
{
    uintptr_t s = (uintptr_t)small.data, l = (uintptr_t)large.data;
    size_t n_small = mc_tensor_bytes(small), n_large = mc_tensor_bytes(large);
    if (c->ops->plans_only || s == l + at || s + n_small <= l || l + n_large <= s) {
        return MC_OK;
    }
    return MC_FAIL(MC_INVALID, "%s of %s: in and out overlap without being in place", call, c->name);
}

/* `whole` is size * d0 in dim 0 where `part` is d0, and alike in the others. */
static mc_status check_parts(const mc_comm *c, const char *call, mc_tensor part, mc_tensor whole)
{
    bool same = part.dtype == whole.dtype && part.n_dims == whole.n_dims && whole.dims[0] == part.dims[0] * c->size;
    for (int i = 1; same && i < part.n_dims; i++) {
        same = part.dims[i] == whole.dims[i];
    }
    if (!same) {
        return MC_FAIL(MC_INVALID, "%s of %s: %s of %lld x %lld elements is not %d parts of %s, %lld x %lld", call,
                       c->name, mc_dtype_name(whole.dtype), (long long)whole.dims[0],
                       (long long)(mc_tensor_elems(whole) / (whole.dims[0] ? whole.dims[0] : 1)), c->size,
                       mc_dtype_name(part.dtype), (long long)part.dims[0],
                       (long long)(mc_tensor_elems(part) / (part.dims[0] ? part.dims[0] : 1)));
    }
    return check_overlap(c, call, part, whole, (size_t)c->rank * mc_tensor_bytes(part));
}

static mc_status check_peer(const mc_comm *c, const char *call, int peer, bool may_be_me)
{
    if (peer < 0 || peer >= c->size || (!may_be_me && peer == c->rank)) {
        return MC_FAIL(MC_INVALID, "%s of %s: there is no %srank %d among %d", call, c->name, may_be_me ? "" : "other ",
                       peer, c->size);
    }
    return MC_OK;
}

mc_status mc_comm_all_reduce_begin(const mc_comm *c, mc_tensor in, mc_tensor out, mc_reduce op, mc_request *req)
{
    const char *call = mc_i_kind_name(MC_I_ALL_REDUCE);
    MC_TRY(check_tensor(c, call, "in", in));
    MC_TRY(check_tensor(c, call, "out", out));
    MC_TRY(check_number(c, call, in.dtype));
    if (in.dtype != out.dtype || !mc_tensor_same_shape(in, out)) {
        return MC_FAIL(MC_INVALID, "%s of %s: in (%lld %s) and out (%lld %s) differ in shape or type", call, c->name,
                       (long long)mc_tensor_elems(in), mc_dtype_name(in.dtype), (long long)mc_tensor_elems(out),
                       mc_dtype_name(out.dtype));
    }
    if ((unsigned)op > MC_MIN) {
        return MC_FAIL(MC_INVALID, "%s of %s: unknown reduction %d", call, c->name, (int)op);
    }
    MC_TRY(check_overlap(c, call, in, out, 0));
    *req = (mc_request){.comm = c, .kind = MC_I_ALL_REDUCE, .in = in, .out = out, .op = op, .peer = -1};
    return c->ops->all_reduce_begin(c, req);
}

mc_status mc_comm_all_gather_begin(const mc_comm *c, mc_tensor in, mc_tensor out, mc_request *req)
{
    const char *call = mc_i_kind_name(MC_I_ALL_GATHER);
    MC_TRY(check_tensor(c, call, "in", in));
    MC_TRY(check_tensor(c, call, "out", out));
    MC_TRY(check_parts(c, call, in, out));
    *req = (mc_request){.comm = c, .kind = MC_I_ALL_GATHER, .in = in, .out = out, .peer = -1};
    return c->ops->all_gather_begin(c, req);
}

mc_status mc_comm_reduce_scatter_begin(const mc_comm *c, mc_tensor in, mc_tensor out, mc_request *req)
{
    const char *call = mc_i_kind_name(MC_I_REDUCE_SCATTER);
    MC_TRY(check_tensor(c, call, "in", in));
    MC_TRY(check_tensor(c, call, "out", out));
    MC_TRY(check_number(c, call, in.dtype));
    MC_TRY(check_parts(c, call, out, in));
    *req = (mc_request){.comm = c, .kind = MC_I_REDUCE_SCATTER, .in = in, .out = out, .peer = -1};
    return c->ops->reduce_scatter_begin(c, req);
}

mc_status mc_comm_send_begin(const mc_comm *c, mc_tensor buf, int peer, mc_request *req)
{
    const char *call = mc_i_kind_name(MC_I_SEND);
    MC_TRY(check_tensor(c, call, "buffer", buf));
    MC_TRY(check_peer(c, call, peer, false));
    *req = (mc_request){.comm = c, .kind = MC_I_SEND, .in = buf, .peer = peer};
    return c->ops->send_begin(c, req);
}

mc_status mc_comm_recv_begin(const mc_comm *c, mc_tensor buf, int peer, mc_request *req)
{
    const char *call = mc_i_kind_name(MC_I_RECV);
    MC_TRY(check_tensor(c, call, "buffer", buf));
    MC_TRY(check_peer(c, call, peer, false));
    *req = (mc_request){.comm = c, .kind = MC_I_RECV, .out = buf, .peer = peer};
    return c->ops->recv_begin(c, req);
}

mc_status mc_comm_wait(mc_request *req)
{
    MC_ASSERT(req->comm);
    return req->comm->ops->wait(req->comm, req);
}

mc_status mc_comm_all_reduce(const mc_comm *c, mc_tensor in, mc_tensor out, mc_reduce op)
{
    mc_request req;
    MC_TRY(mc_comm_all_reduce_begin(c, in, out, op, &req));
    return mc_comm_wait(&req);
}

mc_status mc_comm_all_gather(const mc_comm *c, mc_tensor in, mc_tensor out)
{
    mc_request req;
    MC_TRY(mc_comm_all_gather_begin(c, in, out, &req));
    return mc_comm_wait(&req);
}

mc_status mc_comm_reduce_scatter(const mc_comm *c, mc_tensor in, mc_tensor out)
{
    mc_request req;
    MC_TRY(mc_comm_reduce_scatter_begin(c, in, out, &req));
    return mc_comm_wait(&req);
}

mc_status mc_comm_broadcast(const mc_comm *c, mc_tensor buf, int root)
{
    const char *call = mc_i_kind_name(MC_I_BROADCAST);
    MC_TRY(check_tensor(c, call, "buffer", buf));
    MC_TRY(check_peer(c, call, root, true));
    mc_request req = {.comm = c, .kind = MC_I_BROADCAST, .in = buf, .out = buf, .peer = root};
    MC_TRY(c->ops->broadcast_begin(c, &req));
    return mc_comm_wait(&req);
}

mc_status mc_comm_send(const mc_comm *c, mc_tensor buf, int peer)
{
    mc_request req;
    MC_TRY(mc_comm_send_begin(c, buf, peer, &req));
    return mc_comm_wait(&req);
}

mc_status mc_comm_recv(const mc_comm *c, mc_tensor buf, int peer)
{
    mc_request req;
    MC_TRY(mc_comm_recv_begin(c, buf, peer, &req));
    return mc_comm_wait(&req);
}

mc_status mc_comm_barrier(const mc_comm *c)
{
    mc_tensor none = mc_tensor_1d(NULL, MC_I32, 0);
    mc_request req = {.comm = c, .kind = MC_I_BARRIER, .in = none, .out = none, .peer = -1};
    MC_TRY(c->ops->all_reduce_begin(c, &req));
    return mc_comm_wait(&req);
}

void mc_comm_destroy(mc_comm *c)
{
    if (c->ops) {
        c->ops->destroy(c);
    }
    *c = (mc_comm){0};
}
