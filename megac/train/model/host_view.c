#include "megac/train/model/host_view.h"

static mc_status move(mt_host_view *v, void *dst, const void *src)
{
    if (dst == src || v->dev->ops->host_memory) {
        return MC_OK;
    }
    MC_TRY(v->dev->ops->copy(v->dev, dst, src, mc_tensor_bytes(v->device), v->stream));
    return v->dev->ops->stream_sync(v->dev, v->stream);
}

mc_status mt_host_view_open(mt_host_view *v, mc_device *dev, mc_stream stream, mc_tensor device, bool read)
{
    MC_ASSERT(mc_tensor_contiguous(device));
    mt_host_view w = {.dev = dev, .stream = stream, .device = device, .host = device};
    if (!dev->ops->host_memory) {
        MC_TRY(dev->ops->alloc(dev, MC_MEM_PINNED_HOST, mc_tensor_bytes(device), "host copy of device memory",
                               &w.host.data));
    }
    mc_status st = read ? move(&w, w.host.data, device.data) : MC_OK;
    if (st != MC_OK) {
        mt_host_view_close(&w);
        return st;
    }
    *v = w;
    return MC_OK;
}

mc_status mt_host_view_snapshot(mt_host_view *v, mc_device *dev, mc_stream stream, mc_tensor device, mc_tensor snapshot)
{
    MC_ASSERT(mc_tensor_contiguous(device) && mc_tensor_bytes(snapshot) == mc_tensor_bytes(device));
    *v = (mt_host_view){.dev = dev, .stream = stream, .device = device, .host = snapshot, .borrowed = true};
    MC_TRY(dev->ops->copy(dev, snapshot.data, device.data, mc_tensor_bytes(device), stream));
    return dev->ops->stream_sync(dev, stream);
}

mt_host_view mt_host_view_wrap(mc_tensor host)
{
    return (mt_host_view){.device = host, .host = host};
}

mc_status mt_host_view_write(mt_host_view *v)
{
    return move(v, v->device.data, v->host.data);
}

void mt_host_view_close(mt_host_view *v)
{
    if (v->host.data != v->device.data && !v->borrowed) {
        v->dev->ops->free(v->dev, MC_MEM_PINNED_HOST, v->host.data, mc_tensor_bytes(v->host));
    }
    *v = (mt_host_view){0};
}
