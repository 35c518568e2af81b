/* The CUDA device over cudart: non-blocking streams, order by events alone, every error one line that names its call.
 */
#include "megac/base/device_cuda.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "megac/base/alloc.h"
#include "megac/base/comm_nccl.h"
#include "megac/base/log.h"

enum { MIN_MAJOR = 8, DEVICE_ALIGN = 256 };

static double gib(size_t bytes)
{
    return (double)bytes / (1 << 30);
}

bool mc_cuda_is_fault(cudaError_t e)
{
    switch (e) {
    case cudaErrorIllegalAddress:
    case cudaErrorMisalignedAddress:
    case cudaErrorIllegalInstruction:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorHardwareStackError:
    case cudaErrorLaunchFailure:
    case cudaErrorLaunchTimeout:
    case cudaErrorAssert:
    case cudaErrorECCUncorrectable:
        return true;
    default:
        return false;
    }
}

mc_status mc_cuda_check_at(const char *file, int line, cudaError_t error, const char *call)
{
    if (error == cudaSuccess) {
        return MC_OK;
    }
    (void)cudaGetLastError(); /* told here: the next launch must not report it again */
    const char *remedy =
        mc_cuda_is_fault(error) ? "; work queued before failed: run again with MC_SYNC=1 to name the operator" : "";
    mc_fail_at(file, line, "%.*s: %s (%s)%s", (int)strcspn(call, "("), call, cudaGetErrorName(error),
               cudaGetErrorString(error), remedy);
    return error == cudaErrorMemoryAllocation ? MC_NOMEM : MC_DEVICE;
}

/* Where nothing can be returned. A lost device has been reported by then. */
static void note(cudaError_t error, const char *call)
{
    if (error != cudaSuccess && !mc_cuda_is_fault(error)) {
        MC_WARN("%s: %s (%s)", call, cudaGetErrorName(error), cudaGetErrorString(error));
    }
    (void)cudaGetLastError();
}

static cudaStream_t raw(mc_stream stream)
{
    return (cudaStream_t)stream.handle;
}

static bool no_driver(char *why_out, size_t cap)
{
    int driver = 0, built = CUDART_VERSION;
    if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) {
        snprintf(why_out, cap,
                 "no NVIDIA driver on this machine (cudaErrorInsufficientDriver); install one, or use "
                 "--device cpu");
    } else {
        snprintf(why_out, cap,
                 "the NVIDIA driver is too old: it knows CUDA %d.%d, this build needs %d.%d; update the driver, or use "
                 "--device cpu",
                 driver / 1000, driver % 1000 / 10, built / 1000, built % 1000 / 10);
    }
    return false;
}

bool mc_cuda_usable(int ordinal, char *why_out, size_t cap)
{
    int n = 0, major = 0, minor = 0;
    cudaError_t e = cudaGetDeviceCount(&n);
    if (e == cudaErrorInsufficientDriver) {
        return no_driver(why_out, cap);
    }
    if (e == cudaErrorNoDevice || (e == cudaSuccess && n == 0)) {
        const char *visible = getenv("CUDA_VISIBLE_DEVICES");
        snprintf(why_out, cap,
                 "no CUDA device is visible (CUDA_VISIBLE_DEVICES %s%s%s); make one visible, or use "
                 "--device cpu",
                 visible ? "is \"" : "is not set", visible ? visible : "", visible ? "\"" : "");
        return false;
    }
    int device = e == cudaSuccess ? ordinal % n : 0;
    e = e ? e : cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    e = e ? e : cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    if (e != cudaSuccess) {
        snprintf(why_out, cap,
                 "CUDA cannot be used: %s (%s); repair the driver's installation (does nvidia-smi work?), or "
                 "use --device cpu",
                 cudaGetErrorName(e), cudaGetErrorString(e));
        return false;
    }
    if (major < MIN_MAJOR) {
        snprintf(why_out, cap,
                 "CUDA device %d has compute capability %d.%d, and megac needs %d.0 (Ampere) or newer; choose "
                 "another with CUDA_VISIBLE_DEVICES, or use --device cpu",
                 device, major, minor, MIN_MAJOR);
        return false;
    }
    return true;
}

static mc_status read_properties(mc_cuda *c, int ordinal)
{
    struct cudaDeviceProp properties;
    MC_CUDA_TRY(cudaGetDeviceCount(&c->n_visible));
    c->ordinal = ordinal % c->n_visible;
    c->shared = ordinal >= c->n_visible;
    MC_CUDA_TRY(cudaSetDevice(c->ordinal));
    MC_CUDA_TRY(cudaGetDeviceProperties(&properties, c->ordinal));
    c->major = properties.major;
    c->minor = properties.minor;
    c->n_sms = properties.multiProcessorCount;
    c->total_bytes = properties.totalGlobalMem;
    snprintf(c->name, sizeof c->name, "%s", properties.name);
    const char *sync = getenv("MC_SYNC");
    c->sync_each = sync && *sync && strcmp(sync, "0") != 0;
    return MC_OK;
}

mc_status mc_cuda_open(mc_device *dev, int ordinal)
{
    char why[512];
    mc_cuda *c;
    if (!mc_cuda_usable(ordinal, why, sizeof why)) {
        return MC_FAIL(MC_UNSUPPORTED, "--device cuda: %s", why);
    }
    MC_TRY(MC_NEW(&c, "CUDA device"));
    mc_status st = read_properties(c, ordinal);
    if (st == MC_OK) {
        st = mc_cuda_check_at(__FILE__, __LINE__, cudaEventCreateWithFlags(&c->reached, cudaEventDisableTiming),
                              "cudaEventCreateWithFlags");
    }
    if (st != MC_OK) {
        mc_free(c);
        return st;
    }
    dev->impl = c;
    return MC_OK;
}

void mc_cuda_close(mc_device *dev)
{
    mc_cuda *c = dev->impl;
    note(cudaEventDestroy(c->reached), "cudaEventDestroy");
    mc_free(c);
    dev->impl = NULL;
}

mc_status mc_cuda_require_own(const mc_device *dev, const char *what)
{
    const mc_cuda *c = dev->impl;
    if (!c->shared) {
        return MC_OK;
    }
    return MC_FAIL(
        MC_UNSUPPORTED,
        "%s needs a CUDA device for every rank, and local rank %d finds only %d visible; start at most %d "
        "ranks on this node, make more visible (CUDA_VISIBLE_DEVICES), or use --comm mpi, with which ranks may "
        "share one",
        what, dev->ordinal, c->n_visible, c->n_visible);
}

static mc_status no_memory(const mc_cuda *c, mc_mem kind, size_t bytes, const char *what)
{
    size_t free_bytes = 0, total_bytes = 0;
    (void)cudaGetLastError();
    if (kind == MC_MEM_PINNED_HOST) {
        return MC_FAIL(MC_NOMEM,
                       "no page-locked host memory for %s: %zu bytes (%.2f GiB); see `megac plan` and use fewer "
                       "ranks on this node or a smaller micro-batch",
                       what, bytes, gib(bytes));
    }
    note(cudaMemGetInfo(&free_bytes, &total_bytes), "cudaMemGetInfo");
    return MC_FAIL(
        MC_NOMEM,
        "no device memory for %s: %zu bytes (%.2f GiB), and %zu (%.2f GiB) of %s are free; see `megac plan` and "
        "use a smaller model or micro-batch, or more ranks",
        what, bytes, gib(bytes), free_bytes, gib(free_bytes), c->name);
}

mc_status mc_cuda_alloc(mc_device *dev, mc_mem kind, size_t bytes, const char *what, void **out)
{
    void *p = NULL;
    size_t at_least = bytes ? bytes : 1;
    cudaError_t e =
        kind == MC_MEM_DEVICE ? cudaMalloc(&p, at_least) : cudaHostAlloc(&p, at_least, cudaHostAllocDefault);
    if (e == cudaErrorMemoryAllocation) {
        return no_memory(dev->impl, kind, bytes, what);
    }
    MC_TRY(mc_cuda_check_at(__FILE__, __LINE__, e, kind == MC_MEM_DEVICE ? "cudaMalloc" : "cudaHostAlloc"));
    MC_ASSERT((uintptr_t)p % DEVICE_ALIGN == 0);
    *out = p;
    return MC_OK;
}

void mc_cuda_free(mc_device *dev, mc_mem kind, void *ptr, size_t bytes)
{
    (void)dev;
    (void)bytes;
    if (kind == MC_MEM_DEVICE) {
        note(cudaFree(ptr), "cudaFree");
    } else {
        note(cudaFreeHost(ptr), "cudaFreeHost");
    }
}

mc_status mc_cuda_copy(mc_device *dev, void *dst, const void *src, size_t bytes, mc_stream stream)
{
    (void)dev;
    if (bytes > 0) {
        MC_CUDA_TRY(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDefault, raw(stream)));
    }
    return MC_OK;
}

mc_status mc_cuda_clear(mc_device *dev, void *dst, size_t bytes, mc_stream stream)
{
    (void)dev;
    if (bytes > 0) {
        MC_CUDA_TRY(cudaMemsetAsync(dst, 0, bytes, raw(stream)));
    }
    return MC_OK;
}

/* Non-blocking: not ordered with the legacy stream, which nothing of ours uses. */
mc_status mc_cuda_stream_create(mc_device *dev, mc_stream *stream_out)
{
    cudaStream_t s;
    (void)dev;
    MC_CUDA_TRY(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
    stream_out->handle = s;
    return MC_OK;
}

void mc_cuda_stream_destroy(mc_device *dev, mc_stream stream)
{
    (void)dev;
    if (stream.handle) {
        note(cudaStreamDestroy(raw(stream)), "cudaStreamDestroy");
    }
}

mc_status mc_cuda_stream_sync(mc_device *dev, mc_stream stream)
{
    mc_cuda *c = dev->impl;
    if (c->groups) { /* a rank that does not come must not hang this one */
        MC_CUDA_TRY(cudaEventRecord(c->reached, raw(stream)));
        return mc_nccl_wait_event(c, c->reached);
    }
    MC_CUDA_TRY(cudaStreamSynchronize(raw(stream)));
    return MC_OK;
}

mc_status mc_cuda_event_create(mc_device *dev, mc_event *event_out)
{
    cudaEvent_t e;
    (void)dev;
    MC_CUDA_TRY(cudaEventCreateWithFlags(&e, cudaEventDisableTiming));
    event_out->handle = e;
    return MC_OK;
}

void mc_cuda_event_destroy(mc_device *dev, mc_event event)
{
    (void)dev;
    if (event.handle) {
        note(cudaEventDestroy((cudaEvent_t)event.handle), "cudaEventDestroy");
    }
}

mc_status mc_cuda_event_record(mc_device *dev, mc_event event, mc_stream stream)
{
    (void)dev;
    MC_CUDA_TRY(cudaEventRecord((cudaEvent_t)event.handle, raw(stream)));
    return MC_OK;
}

mc_status mc_cuda_event_wait(mc_device *dev, mc_event event, mc_stream stream)
{
    (void)dev;
    MC_CUDA_TRY(cudaStreamWaitEvent(raw(stream), (cudaEvent_t)event.handle, cudaEventWaitDefault));
    return MC_OK;
}

mc_status mc_cuda_event_sync(mc_device *dev, mc_event event)
{
    mc_cuda *c = dev->impl;
    if (c->groups) {
        return mc_nccl_wait_event(c, (cudaEvent_t)event.handle);
    }
    MC_CUDA_TRY(cudaEventSynchronize((cudaEvent_t)event.handle));
    return MC_OK;
}

mc_status mc_cuda_graph_begin(mc_device *dev, mc_stream stream)
{
    const mc_cuda *c = dev->impl;
    if (c->sync_each) {
        return MC_FAIL(MC_UNSUPPORTED, "MC_SYNC=1 waits for every operator, which cannot be recorded; leave one out");
    }
    MC_CUDA_TRY(cudaStreamBeginCapture(raw(stream), cudaStreamCaptureModeThreadLocal));
    return MC_OK;
}

mc_status mc_cuda_graph_end(mc_device *dev, mc_stream stream, mc_graph *graph_out)
{
    cudaGraph_t graph = NULL;
    cudaGraphExec_t exec = NULL;
    (void)dev;
    cudaError_t error = cudaStreamEndCapture(raw(stream), &graph);
    if (error == cudaSuccess) {
        error = cudaGraphInstantiate(&exec, graph, 0);
    }
    if (graph) {
        note(cudaGraphDestroy(graph), "cudaGraphDestroy");
    }
    if (error != cudaSuccess) {
        (void)cudaGetLastError();
        return MC_FAIL(MC_UNSUPPORTED, "recording a CUDA graph: %s (%s)", cudaGetErrorName(error),
                       cudaGetErrorString(error));
    }
    graph_out->handle = exec;
    return MC_OK;
}

mc_status mc_cuda_graph_launch(mc_device *dev, mc_graph graph, mc_stream stream)
{
    (void)dev;
    MC_CUDA_TRY(cudaGraphLaunch((cudaGraphExec_t)graph.handle, raw(stream)));
    return MC_OK;
}

void mc_cuda_graph_destroy(mc_device *dev, mc_graph graph)
{
    (void)dev;
    if (graph.handle) {
        note(cudaGraphExecDestroy((cudaGraphExec_t)graph.handle), "cudaGraphExecDestroy");
    }
}

void mc_cuda_describe(mc_device *dev, char *text_out, size_t cap)
{
    const mc_cuda *c = dev->impl;
    snprintf(text_out, cap, "%s, %.1f GiB", c->name, gib(c->total_bytes));
}
