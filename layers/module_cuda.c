/* What libmegac_cuda.so exports: the device's table, with the operators of this folder in it. */
#include <stdio.h>

#include "layers/cuda/context_cuda.h"
#include "layers/cuda/kernels.h"
#include "megac/base/alloc.h"
#include "megac/base/comm_nccl.h"
#include "megac/base/log.h"

/* What megac/base/device.c looks for. */
extern const mc_device_ops mc_device_cuda;

mc_status ly_i_cuda_create(mc_cuda *device, ly_cuda **context_out)
{
    ly_cuda *context;
    MC_TRY(MC_NEW(&context, "CUDA operators"));
    context->device = device;
    mc_status st = ly_i_cublas_create(device, &context->cublas);
    st = st == MC_OK ? ly_i_cudnn_create(device, &context->cudnn) : st;
    if (st != MC_OK) {
        ly_i_cuda_destroy(context);
        return st;
    }
    *context_out = context;
    return MC_OK;
}

void ly_i_cuda_destroy(ly_cuda *context)
{
    if (context) {
        ly_i_cudnn_destroy(context->cudnn);
        ly_i_cublas_destroy(context->cublas);
        mc_free(context);
    }
}

/* Whether the kernels of this build run on this device: only a launch tells. */
static mc_status try_kernel(mc_device *dev, float *on_device, float *on_host, mc_stream stream)
{
    const mc_cuda *c = dev->impl;
    ly_ctx cx = {.stream = stream, .backend = dev->impl};
    int e = ly_k_fill(&cx, &(ly_fill){mc_tensor_1d(on_device, MC_F32, 1), 1.0f});
    if (e == cudaErrorNoKernelImageForDevice || e == cudaErrorUnsupportedPtxVersion ||
        e == cudaErrorInvalidKernelImage) {
        (void)cudaGetLastError();
        return MC_FAIL(
            MC_UNSUPPORTED,
            "--device cuda: this build has no kernels for %s (compute capability %d.%d): %s; build megac with "
            "its architecture, or use --device cpu",
            c->name, c->major, c->minor, cudaGetErrorName((cudaError_t)e));
    }
    MC_TRY(mc_cuda_check_at(__FILE__, __LINE__, (cudaError_t)e, "first kernel"));
    MC_TRY(mc_cuda_copy(dev, on_host, on_device, sizeof *on_host, stream));
    MC_TRY(mc_cuda_stream_sync(dev, stream));
    if (*on_host != 1.0f) {
        return MC_FAIL(MC_DEVICE, "%s: a kernel stored %g instead of 1; check the device with its maker's tools",
                       c->name, (double)*on_host);
    }
    return MC_OK;
}

static mc_status check_kernels(mc_device *dev)
{
    void *on_device = NULL, *on_host = NULL;
    mc_stream stream = {0};
    mc_status st;
    MC_TRY_GOTO(st, mc_cuda_alloc(dev, MC_MEM_DEVICE, sizeof(float), "the first kernel", &on_device), undo_all);
    MC_TRY_GOTO(st, mc_cuda_alloc(dev, MC_MEM_PINNED_HOST, sizeof(float), "the first kernel", &on_host), undo_all);
    MC_TRY_GOTO(st, mc_cuda_stream_create(dev, &stream), undo_all);
    st = try_kernel(dev, on_device, on_host, stream);
    if (st != MC_OK) {
        (void)cudaStreamSynchronize((cudaStream_t)stream.handle); /* what was queued may still use the memory */
    }
undo_all:
    mc_cuda_stream_destroy(dev, stream);
    mc_cuda_free(dev, MC_MEM_PINNED_HOST, on_host, sizeof(float));
    mc_cuda_free(dev, MC_MEM_DEVICE, on_device, sizeof(float));
    return st;
}

static void cuda_close(mc_device *dev)
{
    mc_cuda *c = dev->impl;
    ly_i_cuda_destroy(c->operators);
    mc_cuda_close(dev);
}

static mc_status cuda_open(mc_device *dev, int ordinal)
{
    MC_TRY(mc_cuda_open(dev, ordinal));
    mc_cuda *c = dev->impl;
    ly_cuda *context = NULL;
    mc_status st;
    MC_TRY_GOTO(st, ly_i_cuda_create(c, &context), undo_open);
    c->operators = context;
    MC_TRY_GOTO(st, check_kernels(dev), undo_open);
    return MC_OK;
undo_open:
    cuda_close(dev);
    return st;
}

const mc_device_ops mc_device_cuda = {
    .name = "cuda",
    .usable = mc_cuda_usable,
    .open = cuda_open,
    .close = cuda_close,
    .alloc = mc_cuda_alloc,
    .free = mc_cuda_free,
    .copy = mc_cuda_copy,
    .clear = mc_cuda_clear,
    .stream_create = mc_cuda_stream_create,
    .stream_destroy = mc_cuda_stream_destroy,
    .stream_sync = mc_cuda_stream_sync,
    .event_create = mc_cuda_event_create,
    .event_destroy = mc_cuda_event_destroy,
    .event_record = mc_cuda_event_record,
    .event_wait = mc_cuda_event_wait,
    .event_sync = mc_cuda_event_sync,
    .graph_begin = mc_cuda_graph_begin,
    .graph_end = mc_cuda_graph_end,
    .graph_launch = mc_cuda_graph_launch,
    .graph_destroy = mc_cuda_graph_destroy,
    .describe = mc_cuda_describe,
    .comm_create = mc_nccl_create,
    .operators = &ly_i_ops_cuda,
};
