#include "megac/train/model/shards_host.h"

#include "megac/base/alloc.h"

static mc_status open_stream(mt_shards_host *h)
{
    const mc_device_ops *ops = h->dev->ops;
    MC_TRY(ops->stream_create(h->dev, &h->stream));
    MC_TRY(ops->event_create(h->dev, &h->reached));
    for (int b = 0; b < MT_UNIT_BUFFERS; b++) {
        MC_TRY(ops->event_create(h->dev, &h->moved[b]));
    }
    return MC_OK;
}

mc_status mt_shards_host_create(const mt_shards_config *c, int64_t elems, mt_shards_host **host_out)
{
    mt_shards_host *h;
    MC_TRY(MC_NEW(&h, "parameters in host memory"));
    h->dev = c->dev;
    h->compute = c->ly->stream;
    h->live = c->pinned_arena->bound;
    h->store = mc_arena_take_1d(c->pinned_arena, c->dtype, elems);
    mc_status st = h->live ? open_stream(h) : MC_OK;
    if (st != MC_OK) {
        mt_shards_host_destroy(h);
        return st;
    }
    *host_out = h;
    return MC_OK;
}

void mt_shards_host_destroy(mt_shards_host *h)
{
    if (!h) {
        return;
    }
    const mc_device_ops *ops = h->dev->ops;
    if (h->stream.handle) { /* after an error copies may be under way */
        (void)ops->stream_sync(h->dev, h->stream);
        ops->stream_destroy(h->dev, h->stream);
    }
    ops->event_destroy(h->dev, h->reached);
    for (int b = 0; b < MT_UNIT_BUFFERS; b++) {
        ops->event_destroy(h->dev, h->moved[b]);
    }
    mc_free(h);
}

mc_status mt_shards_host_move(mt_shards_host *h, int buffer, mc_tensor to, mc_tensor from)
{
    const mc_device_ops *ops = h->dev->ops;
    if (!h->live) {
        return MC_OK;
    }
    MC_TRY(ops->event_record(h->dev, h->reached, h->compute));
    MC_TRY(ops->event_wait(h->dev, h->reached, h->stream));
    MC_TRY(ops->copy(h->dev, to.data, from.data, mc_tensor_bytes(from), h->stream));
    return ops->event_record(h->dev, h->moved[buffer], h->stream);
}

mc_status mt_shards_host_wait(mt_shards_host *h, int buffer)
{
    return h->live ? h->dev->ops->event_wait(h->dev, h->moved[buffer], h->compute) : MC_OK;
}
