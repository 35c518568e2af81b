/* The CUDA device as the files of libmegac_cuda.so see it: what mc_device.impl points to, and the calls of which
 * layers/module_cuda.c makes the table `mc_device_cuda`. */
#ifndef MEGAC_BASE_DEVICE_CUDA_H
#define MEGAC_BASE_DEVICE_CUDA_H

#include <cuda_runtime_api.h>
#include <stdbool.h>

#include "megac/base/device.h"

#ifdef __cplusplus
extern "C" {
#endif

/* One open device. It, and everything that hangs on it, is used by the thread that opened it: cudart's current device
 * is a thread's. */
typedef struct mc_cuda {
    int ordinal;      /* cudart's, among the visible devices */
    int n_visible;    /* how many there are */
    bool shared;      /* the ordinal asked for was not below n_visible: several ranks use this device */
    bool sync_each;   /* MC_SYNC=1 in the environment: every operator waits for its own end, so that a fault names it */
    int major, minor; /* compute capability */
    int n_sms;        /* streaming multiprocessors */
    size_t total_bytes;     /* of device memory */
    char name[256];         /* "NVIDIA H100 80GB HBM3" */
    struct mc_nccl *groups; /* the open ones of comm_nccl.c */
    cudaEvent_t reached;    /* of a stream that the host waits for */
    void *operators;        /* ly_cuda (layers/cuda/context_cuda.h), set by layers/module_cuda.c */
} mc_cuda;

/* MC_OK for cudaSuccess; else MC_DEVICE (MC_NOMEM for want of memory) after one line with the call, the error's name
 * and its text, and what to do. Use through MC_CUDA_TRY. */
mc_status mc_cuda_check_at(const char *file, int line, cudaError_t error, const char *call);

/* Whether this is an error of work that was queued before: the device is lost, and whichever call comes next reports
 * it.
 */
bool mc_cuda_is_fault(cudaError_t error);

/* Like MC_TRY for a call of cudart. */
#define MC_CUDA_TRY(call) MC_TRY(mc_cuda_check_at(__FILE__, __LINE__, (call), #call))

/* MC_UNSUPPORTED where the device is shared: NCCL needs one for every rank. Names the remedy. */
mc_status mc_cuda_require_own(const mc_device *dev, const char *what) MC_MUST_CHECK;

/* The slots of mc_device_ops (device.h says what each does). mc_cuda_open leaves `operators` NULL. */
bool mc_cuda_usable(int ordinal, char *why_out, size_t cap);
mc_status mc_cuda_open(mc_device *dev, int ordinal) MC_MUST_CHECK;
void mc_cuda_close(mc_device *dev);
mc_status mc_cuda_alloc(mc_device *dev, mc_mem kind, size_t bytes, const char *what, void **out) MC_MUST_CHECK;
void mc_cuda_free(mc_device *dev, mc_mem kind, void *ptr, size_t bytes);
mc_status mc_cuda_copy(mc_device *dev, void *dst, const void *src, size_t bytes, mc_stream stream) MC_MUST_CHECK;
mc_status mc_cuda_clear(mc_device *dev, void *dst, size_t bytes, mc_stream stream) MC_MUST_CHECK;
mc_status mc_cuda_stream_create(mc_device *dev, mc_stream *stream_out) MC_MUST_CHECK;
void mc_cuda_stream_destroy(mc_device *dev, mc_stream stream);
mc_status mc_cuda_stream_sync(mc_device *dev, mc_stream stream) MC_MUST_CHECK;
mc_status mc_cuda_event_create(mc_device *dev, mc_event *event_out) MC_MUST_CHECK;
void mc_cuda_event_destroy(mc_device *dev, mc_event event);
mc_status mc_cuda_event_record(mc_device *dev, mc_event event, mc_stream stream) MC_MUST_CHECK;
mc_status mc_cuda_event_wait(mc_device *dev, mc_event event, mc_stream stream) MC_MUST_CHECK;
mc_status mc_cuda_event_sync(mc_device *dev, mc_event event) MC_MUST_CHECK;
mc_status mc_cuda_graph_begin(mc_device *dev, mc_stream stream) MC_MUST_CHECK;
mc_status mc_cuda_graph_end(mc_device *dev, mc_stream stream, mc_graph *graph_out) MC_MUST_CHECK;
mc_status mc_cuda_graph_launch(mc_device *dev, mc_graph graph, mc_stream stream) MC_MUST_CHECK;
void mc_cuda_graph_destroy(mc_device *dev, mc_graph graph);
void mc_cuda_describe(mc_device *dev, char *text_out, size_t cap);

#ifdef __cplusplus
}
#endif
#endif
