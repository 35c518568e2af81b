/* Communicators over NCCL, as the files of libmegac_cuda.so see them. */
#ifndef MEGAC_BASE_COMM_NCCL_H
#define MEGAC_BASE_COMM_NCCL_H

#include "megac/base/comm.h"
#include "megac/base/device_cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

/* mc_device_ops.comm_create (device.h). MC_UNSUPPORTED where ranks share a device. */
mc_status mc_nccl_create(mc_device *dev, const mc_comm *host, mc_stream stream, bool sends, double deadline_seconds,
                         mc_comm *comm_out) MC_MUST_CHECK;

/* Waits until `event` is reached. While it waits it asks NCCL for errors of every group of the device; after a group's
 * deadline without an operation of any group completing it aborts them all, and fails with MC_TIMEOUT, naming each
 * group's oldest operation that is not complete. */
mc_status mc_nccl_wait_event(mc_cuda *cuda, cudaEvent_t event) MC_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
