/* Plants one fault in a program's use of CUDA: preloaded (LD_PRELOAD), it stands between the program and the libraries
 * that stand in for NVIDIA's, so that neither has code for it.
 *
 *     PLANT=FAULT:N[@RANK]     the Nth call that FAULT is about (FAULTS below) goes wrong, on every rank or on one
 *     PLANT=count              nothing goes wrong; at exit each rank says how many calls each fault is about
 *
 * Says on standard error `planted[RANK]: FAULT N at ...` when it strikes. */
#include <cublasLt.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <nccl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/cuda/on_cpu/hook.h"
#include "tests/cuda/standin/control.h"

typedef enum {
    NONE,
    SKIP_WAIT,    /* a stream does not wait for an event */
    SKIP_SYNC,    /* the host does not wait: a stream, an event, or the queries that end when an event is complete */
    SKIP_RECORD,  /* an event stays where it was recorded last */
    SKIP_LAUNCH,  /* what an unchecked launch that failed looks like: no kernel ran, and nobody was told */
    LEAK,         /* memory, a stream or an event is not given back */
    WRONG_COUNT,  /* of an operation between ranks: one element is missing */
    SWAP_KIND,    /* a rank receives where it should send */
    SWAP_ORDER,   /* two sends to one rank change places */
    REUSE_EARLY,  /* the compute stream overwrites a buffer that is being communicated */
    PINNED_EARLY, /* the host overwrites pinned memory while it is being copied to the device */
    HOST_TOUCH,   /* the host reads memory of the device */
    SHARED_SPACE, /* two streams share a workspace of matrix products */
    ALLOCATION,   /* device memory is asked for */
    N_FAULTS
} fault_kind;

static const char *const FAULTS[N_FAULTS] = {
    "none",         "skip-wait",   "skip-sync",        "skip-record", "skip-launch",
    "leak",         "wrong-count", "swap-kind",        "swap-order",  "reuse-early",
    "pinned-early", "host-touch",  "shared-workspace", "allocation",
};

/* A send that waits for the next one. */
typedef struct held_send {
    const void *buffer;
    size_t count;
    ncclDataType_t type;
    ncclComm_t comm;
    int peer;
} held_send;

static struct plant {
    fault_kind fault; /* NONE: count */
    int nth, calls[N_FAULTS], rank;
    cudaStream_t compute; /* where the last kernel was launched */
    bool recorded;        /* an event, since the host last asked for one */
    held_send held;
} P;

static void say_counts(void)
{
    char text[512];
    int n = snprintf(text, sizeof text, "planted[%d]: calls", P.rank);
    for (int f = 1; f < N_FAULTS; f++) {
        n += snprintf(text + n, sizeof text - (size_t)n, " %s=%d", FAULTS[f], P.calls[f]);
    }
    fprintf(stderr, "%s\n", text);
}

__attribute__((constructor)) static void read_plant(void)
{
    const char *rank = getenv("OMPI_COMM_WORLD_RANK"), *text = getenv("PLANT");
    const char *colon = text ? strchr(text, ':') : NULL, *at = text ? strchr(text, '@') : NULL;
    P.rank = rank ? atoi(rank) : 0;
    if (!text || (at && atoi(at + 1) != P.rank)) {
        return;
    }
    if (strcmp(text, "count") == 0) {
        atexit(say_counts);
        return;
    }
    for (int f = 1; colon && f < N_FAULTS; f++) {
        if (strlen(FAULTS[f]) == (size_t)(colon - text) && strncmp(text, FAULTS[f], strlen(FAULTS[f])) == 0) {
            P.fault = (fault_kind)f;
            P.nth = atoi(colon + 1);
        }
    }
    if (P.nth < 1) {
        fprintf(stderr, "PLANT=%s: count, FAULT:N or FAULT:N@RANK, with a FAULT of planted.c and N >= 1\n", text);
        _Exit(2);
    }
}

/* Whether this call, which `fault` is about, is the one. */
static bool strikes(fault_kind fault, const char *what)
{
    if (++P.calls[fault] != P.nth || fault != P.fault) {
        return false;
    }
    fprintf(stderr, "planted[%d]: %s %d at %s\n", P.rank, FAULTS[fault], P.nth, what);
    return true;
}

/* The function of the same name behind us: next in the order of the program's libraries, or in those that the module
 * has brought. */
#define NEXT(name) ((__typeof__(&name))next(#name))
static void *next(const char *name)
{
    static const char *const brought[] = {"libnccl.so.2", "libcublasLt.so.13"};
    void *found = dlsym(RTLD_NEXT, name);
    for (size_t i = 0; !found && i < sizeof brought / sizeof *brought; i++) {
        void *library = dlopen(brought[i], RTLD_LAZY | RTLD_NOLOAD);
        found = library ? dlsym(library, name) : NULL;
    }
    if (!found) {
        fprintf(stderr, "planted: nothing behind %s\n", name);
        abort();
    }
    return found;
}

/* ---- order */

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags)
{
    return strikes(SKIP_WAIT, "cudaStreamWaitEvent") ? cudaSuccess : NEXT(cudaStreamWaitEvent)(stream, event, flags);
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    return strikes(SKIP_SYNC, "cudaStreamSynchronize") ? cudaSuccess : NEXT(cudaStreamSynchronize)(stream);
}

cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    return strikes(SKIP_SYNC, "cudaEventSynchronize") ? cudaSuccess : NEXT(cudaEventSynchronize)(event);
}

/* The first query after a record begins a wait. */
cudaError_t cudaEventQuery(cudaEvent_t event)
{
    bool begins = P.recorded;
    P.recorded = false;
    return begins && strikes(SKIP_SYNC, "cudaEventQuery") ? cudaSuccess : NEXT(cudaEventQuery)(event);
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    P.recorded = true;
    return strikes(SKIP_RECORD, "cudaEventRecord") ? cudaSuccess : NEXT(cudaEventRecord)(event, stream);
}

/* ---- what is not given back */

cudaError_t cudaFree(void *ptr)
{
    return ptr && strikes(LEAK, "cudaFree") ? cudaSuccess : NEXT(cudaFree)(ptr);
}

cudaError_t cudaFreeHost(void *ptr)
{
    return ptr && strikes(LEAK, "cudaFreeHost") ? cudaSuccess : NEXT(cudaFreeHost)(ptr);
}

cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    return strikes(LEAK, "cudaStreamDestroy") ? cudaSuccess : NEXT(cudaStreamDestroy)(stream);
}

cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    return strikes(LEAK, "cudaEventDestroy") ? cudaSuccess : NEXT(cudaEventDestroy)(event);
}

/* ---- kernels and memory */

static void allocate_and_free(void)
{
    void *p = NULL;
    if (cudaMalloc(&p, 1024) != cudaSuccess || NEXT(cudaFree)(p) != cudaSuccess) {
        fprintf(stderr, "planted: no memory\n");
    }
}

/* Reads where a pointer of the kernel's points. The value is of no use: the compiler must not know. */
static void touch(const ly_on_cpu_launch *launch)
{
    for (int i = 0; i < launch->n_pointers; i++) {
        volatile const char *p = launch->pointers[i].address;
        if (p) {
            (void)*p;
        }
    }
}

int ly_on_cpu_launch_hook(const ly_on_cpu_launch *launch)
{
    P.compute = launch->stream;
    if (strikes(SKIP_LAUNCH, launch->kernel)) {
        launch->release(launch->closure);
        return 0;
    }
    if (strikes(HOST_TOUCH, launch->kernel)) {
        touch(launch);
    }
    if (strikes(ALLOCATION, launch->kernel)) {
        allocate_and_free();
    }
    return NEXT(ly_on_cpu_launch_hook)(launch);
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t stream)
{
    cudaError_t error = NEXT(cudaMemcpyAsync)(to, from, bytes, kind, stream);
    struct cudaPointerAttributes attributes;
    bool from_host =
        cudaPointerGetAttributes(&attributes, from) == cudaSuccess && attributes.type == cudaMemoryTypeHost;
    if (error == cudaSuccess && from_host && strikes(PINNED_EARLY, "cudaMemcpyAsync")) {
        standin_host_access(from, bytes, 1);
        memset((void *)(size_t)from, 0, bytes);
    }
    return error;
}

/* `later` waits for what is queued on `earlier` now. */
static bool follows(cudaStream_t later, cudaStream_t earlier)
{
    cudaEvent_t event;
    return cudaEventCreateWithFlags(&event, cudaEventDisableTiming) == cudaSuccess &&
           NEXT(cudaEventRecord)(event, earlier) == cudaSuccess &&
           NEXT(cudaStreamWaitEvent)(later, event, 0) == cudaSuccess && NEXT(cudaEventDestroy)(event) == cudaSuccess;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t lt, cublasLtMatmulDesc_t desc, const void *alpha, const void *A,
                              cublasLtMatrixLayout_t a, const void *B, cublasLtMatrixLayout_t b, const void *beta,
                              const void *C, cublasLtMatrixLayout_t c, void *D, cublasLtMatrixLayout_t d,
                              const cublasLtMatmulAlgo_t *algo, void *workspace, size_t bytes, cudaStream_t stream)
{
    enum { SPARE_BYTES = 1 << 20 }; /* more than any matrix of the runs that faults are planted in */
    __typeof__(&cublasLtMatmul) multiply = NEXT(cublasLtMatmul);
    void *spare = NULL;
    cudaStream_t aside = NULL;
    P.compute = stream;
    bool strike = bytes > 0 && strikes(SHARED_SPACE, "cublasLtMatmul");
    /* The same product into memory of its own, in a stream of its own that is ordered with all but this product. */
    if (strike &&
        (cudaMalloc(&spare, SPARE_BYTES) != cudaSuccess ||
         cudaStreamCreateWithFlags(&aside, cudaStreamNonBlocking) != cudaSuccess || !follows(aside, stream))) {
        fprintf(stderr, "planted: no second stream\n");
    }
    cublasStatus_t status = multiply(lt, desc, alpha, A, a, B, b, beta, C, c, D, d, algo, workspace, bytes, stream);
    if (strike && (multiply(lt, desc, alpha, A, a, B, b, beta, spare, d, spare, d, algo, workspace, bytes, aside) !=
                       CUBLAS_STATUS_SUCCESS ||
                   !follows(stream, aside))) {
        fprintf(stderr, "planted: the second product fails\n");
    }
    return status;
}

/* ---- between ranks */

static size_t bytes_of(size_t count, ncclDataType_t type)
{
    bool one = type == ncclInt8 || type == ncclUint8, two = type == ncclFloat16 || type == ncclBfloat16;
    bool eight = type == ncclFloat64 || type == ncclInt64 || type == ncclUint64;
    return count * (one ? 1 : two ? 2 : eight ? 8 : 4);
}

static size_t count_of(size_t count, const char *what)
{
    return strikes(WRONG_COUNT, what) ? count - 1 : count;
}

/* After an operation was queued: its buffer is written by the compute stream, with nothing in between. */
static ncclResult_t reuse(ncclResult_t result, const void *buffer, size_t bytes, const char *what)
{
    if (strikes(REUSE_EARLY, what) && cudaMemsetAsync((void *)(size_t)buffer, 0, bytes, P.compute) != cudaSuccess) {
        fprintf(stderr, "planted: the buffer cannot be overwritten\n");
    }
    return result;
}

ncclResult_t ncclAllReduce(const void *in, void *out, size_t n, ncclDataType_t type, ncclRedOp_t op, ncclComm_t comm,
                           cudaStream_t stream)
{
    n = count_of(n, "ncclAllReduce");
    return reuse(NEXT(ncclAllReduce)(in, out, n, type, op, comm, stream), in, bytes_of(n, type), "ncclAllReduce");
}

ncclResult_t ncclAllGather(const void *in, void *out, size_t n, ncclDataType_t type, ncclComm_t comm,
                           cudaStream_t stream)
{
    n = count_of(n, "ncclAllGather");
    return reuse(NEXT(ncclAllGather)(in, out, n, type, comm, stream), in, bytes_of(n, type), "ncclAllGather");
}

ncclResult_t ncclReduceScatter(const void *in, void *out, size_t n, ncclDataType_t type, ncclRedOp_t op,
                               ncclComm_t comm, cudaStream_t stream)
{
    n = count_of(n, "ncclReduceScatter");
    return reuse(NEXT(ncclReduceScatter)(in, out, n, type, op, comm, stream), in, bytes_of(n, type),
                 "ncclReduceScatter");
}

ncclResult_t ncclBroadcast(const void *in, void *out, size_t n, ncclDataType_t type, int root, ncclComm_t comm,
                           cudaStream_t stream)
{
    n = count_of(n, "ncclBroadcast");
    return reuse(NEXT(ncclBroadcast)(in, out, n, type, root, comm, stream), in, bytes_of(n, type), "ncclBroadcast");
}

ncclResult_t ncclRecv(void *out, size_t n, ncclDataType_t type, int peer, ncclComm_t comm, cudaStream_t stream)
{
    n = count_of(n, "ncclRecv");
    return reuse(NEXT(ncclRecv)(out, n, type, peer, comm, stream), out, bytes_of(n, type), "ncclRecv");
}

ncclResult_t ncclSend(const void *in, size_t n, ncclDataType_t type, int peer, ncclComm_t comm, cudaStream_t stream)
{
    n = count_of(n, "ncclSend");
    if (strikes(SWAP_KIND, "ncclSend")) {
        return NEXT(ncclRecv)((void *)(size_t)in, n, type, peer, comm, stream);
    }
    if (strikes(SWAP_ORDER, "ncclSend")) {
        P.held = (held_send){in, n, type, comm, peer};
        return ncclSuccess;
    }
    ncclResult_t result = NEXT(ncclSend)(in, n, type, peer, comm, stream);
    const held_send h = P.held;
    if (h.buffer && h.comm == comm && result == ncclSuccess) {
        P.held.buffer = NULL;
        result = NEXT(ncclSend)(h.buffer, h.count, h.type, h.peer, comm, stream);
    }
    return reuse(result, in, bytes_of(n, type), "ncclSend");
}
