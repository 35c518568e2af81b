/* Device memory as the host sees it, outside of steps: for initial values and checkpoints. */
#ifndef MEGAC_TRAIN_MODEL_HOST_VIEW_H
#define MEGAC_TRAIN_MODEL_HOST_VIEW_H

#include <stdbool.h>

#include "megac/base/device.h"
#include "megac/base/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

/* `host` is the device tensor itself where the host addresses device memory, else a pinned copy. */
typedef struct mt_host_view {
    mc_device *dev;
    mc_stream stream;
    mc_tensor device, host;
    bool borrowed; /* host is the caller's */
} mt_host_view;

/* `device` is contiguous. With `read` the host sees its values, after the work queued on `stream`; without, they are
 * undefined. MC_NOMEM. */
mc_status mt_host_view_open(mt_host_view *v, mc_device *dev, mc_stream stream, mc_tensor device,
                            bool read) MC_MUST_CHECK;
/* The same over memory of the caller's, a copy wherever the device's memory lies: what the host sees stays as it is
 * while the device goes on. Waits for the copy. */
mc_status mt_host_view_snapshot(mt_host_view *v, mc_device *dev, mc_stream stream, mc_tensor device,
                                mc_tensor snapshot) MC_MUST_CHECK;
/* What lies in host memory already, whatever the device. */
mt_host_view mt_host_view_wrap(mc_tensor host);
/* The device gets the host's values, ordered after the work queued on the stream; waits for it. */
mc_status mt_host_view_write(mt_host_view *v) MC_MUST_CHECK;
void mt_host_view_close(mt_host_view *v);

#ifdef __cplusplus
}
#endif
#endif
