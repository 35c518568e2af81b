/* A device's communicator by way of the host: copy out, a host communicator's operation, copy back. */
#include "megac/base/alloc.h"
#include "megac/base/comm_impl.h"

/* One operation under way, with its two pinned buffers. Kept and used again by later operations. */
typedef struct staged_slot {
    struct staged_slot *next;
    mc_request inner;
    void *in, *out;
    size_t in_bytes, out_bytes;
    bool busy;
} staged_slot;

typedef struct staged {
    mc_device *dev;
    const mc_comm *host;
    mc_stream stream;
    staged_slot *slots;
} staged;

/* The smallest free slot that fits, or a new one. */
static mc_status take_slot(staged *s, size_t in_bytes, size_t out_bytes, staged_slot **slot_out)
{
    staged_slot *best = NULL;
    for (staged_slot *t = s->slots; t; t = t->next) {
        bool fits = !t->busy && t->in_bytes >= in_bytes && t->out_bytes >= out_bytes;
        if (fits && (!best || t->in_bytes + t->out_bytes < best->in_bytes + best->out_bytes)) {
            best = t;
        }
    }
    if (!best) {
        const mc_device_ops *ops = s->dev->ops;
        MC_TRY(MC_NEW(&best, "staged operation"));
        best->next = s->slots; /* owned from here on, whatever fails */
        s->slots = best;
        if (in_bytes > 0) {
            MC_TRY(ops->alloc(s->dev, MC_MEM_PINNED_HOST, in_bytes, "staged operation", &best->in));
            best->in_bytes = in_bytes;
        }
        if (out_bytes > 0) {
            MC_TRY(ops->alloc(s->dev, MC_MEM_PINNED_HOST, out_bytes, "staged operation", &best->out));
            best->out_bytes = out_bytes;
        }
    }
    best->busy = true;
    *slot_out = best;
    return MC_OK;
}

/* The request's tensors over the slot's memory; `in` filled by the device. */
static mc_status copy_in(const staged *s, mc_request *req, staged_slot *slot)
{
    slot->inner = (mc_request){.comm = s->host, .kind = req->kind, .op = req->op, .peer = req->peer};
    slot->inner.in = req->in;
    slot->inner.out = req->out;
    slot->inner.in.data = slot->in;
    slot->inner.out.data = slot->out;
    size_t bytes = mc_tensor_present(req->in) ? mc_tensor_bytes(req->in) : 0;
    if (bytes > 0) {
        MC_TRY(s->dev->ops->copy(s->dev, slot->in, req->in.data, bytes, s->stream));
        MC_TRY(s->dev->ops->stream_sync(s->dev, s->stream));
    }
    return MC_OK;
}

static mc_status staged_begin(const mc_comm *c, mc_request *req, mc_status (*begin)(const mc_comm *c, mc_request *req))
{
    staged *s = c->impl;
    staged_slot *slot;
    size_t in_bytes = mc_tensor_present(req->in) ? mc_tensor_bytes(req->in) : 0;
    size_t out_bytes = mc_tensor_present(req->out) ? mc_tensor_bytes(req->out) : 0;
    MC_TRY(take_slot(s, in_bytes, out_bytes, &slot));
    req->queue = slot;
    MC_TRY(copy_in(s, req, slot));
    if (req->kind == MC_I_BROADCAST) { /* the host's broadcast has one buffer */
        slot->inner.out = slot->inner.in;
    }
    return begin(s->host, &slot->inner);
}

#define STAGED_BEGIN(name)                                                    \
    static mc_status staged_##name##_begin(const mc_comm *c, mc_request *req) \
    {                                                                         \
        const staged *s = c->impl;                                            \
        return staged_begin(c, req, s->host->ops->name##_begin);              \
    }
STAGED_BEGIN(all_reduce)
STAGED_BEGIN(all_gather)
STAGED_BEGIN(reduce_scatter)
STAGED_BEGIN(broadcast)
STAGED_BEGIN(send)
STAGED_BEGIN(recv)
#undef STAGED_BEGIN

static mc_status staged_wait(const mc_comm *c, mc_request *req)
{
    staged *s = c->impl;
    staged_slot *slot = req->queue;
    MC_TRY(mc_comm_wait(&slot->inner));
    size_t bytes = mc_tensor_present(req->out) ? mc_tensor_bytes(req->out) : 0;
    if (bytes > 0) {
        MC_TRY(s->dev->ops->copy(s->dev, req->out.data, slot->inner.out.data, bytes, s->stream));
        MC_TRY(s->dev->ops->stream_sync(s->dev, s->stream)); /* the slot is free for the next operation */
    }
    slot->busy = false;
    req->done = true;
    return MC_OK;
}

static void staged_destroy(mc_comm *c)
{
    staged *s = c->impl;
    while (s->slots) {
        staged_slot *slot = s->slots;
        s->slots = slot->next;
        if (slot->in) {
            s->dev->ops->free(s->dev, MC_MEM_PINNED_HOST, slot->in, slot->in_bytes);
        }
        if (slot->out) {
            s->dev->ops->free(s->dev, MC_MEM_PINNED_HOST, slot->out, slot->out_bytes);
        }
        mc_free(slot);
    }
    mc_free(s);
}

mc_status mc_comm_staged(mc_device *dev, const mc_comm *host, mc_stream stream, mc_comm *comm_out)
{
    static const mc_comm_ops ops = {
        .name = "staged",
        .all_reduce_begin = staged_all_reduce_begin,
        .all_gather_begin = staged_all_gather_begin,
        .reduce_scatter_begin = staged_reduce_scatter_begin,
        .broadcast_begin = staged_broadcast_begin,
        .send_begin = staged_send_begin,
        .recv_begin = staged_recv_begin,
        .wait = staged_wait,
        .destroy = staged_destroy,
    };
    staged *s;
    MC_TRY(MC_NEW(&s, "staged communicator"));
    *s = (staged){.dev = dev, .host = host, .stream = stream};
    *comm_out =
        (mc_comm){.ops = &ops, .impl = s, .name = host->name, .rank = host->rank, .size = host->size, .stream = stream};
    return MC_OK;
}
