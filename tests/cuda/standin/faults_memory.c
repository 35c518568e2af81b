/* Faults with memory, `faults_memory FAULT`; 0 is the correct program. Prints "ok", "WRONG" or "ALLOCATED". */
#include <dlfcn.h>
#include <stdint.h>

#include "tests/cuda/standin/faults.h"

enum fault {
    NONE,
    PINNED_OVERWRITTEN,      /* while a copy from it may be pending */
    PINNED_FREED_EARLY,      /* likewise */
    BUFFER_REUSED_EARLY,     /* overwritten by one stream while another may read it */
    HOST_WRITES_DEVICE,      /* through a pointer of the device */
    HOST_READS_DEVICE,       /* likewise */
    KERNEL_GETS_HOST_MEMORY, /* as an argument */
    FREE_ASYNC_ELSEWHERE,    /* on a stream that does not follow the user of the memory */
    KERNEL_WRITES_TOO_FAR,   /* past the last page of the allocation */
    KERNEL_WRITES_SLACK,     /* past the end, within its last page */
    KERNEL_WRITES_BEFORE,    /* the start */
    KERNEL_READS_SLACK,
    NOT_INITIALISED,
    ALLOCATION_IN_STEP, /* which the program finds by the count */
    WRONG_KIND,         /* of a copy */
    STACK_SOURCE,       /* of an asynchronous copy */
    FREE_IN_USE,
    USE_AFTER_FREE, /* pointer argument of a kernel */
    COPY_PAST_END,
    COPY_FROM_FREED,
    DOUBLE_FREE,
    FREE_INSIDE, /* not at the start of the allocation */
    UNREGISTER_IN_USE,
    CALL_IN_HOST_FUNCTION,
    STREAM_DESTROYED, /* and used */
    NO_SYNC_AT_END,
};

enum { SMALL_N = 250 }; /* whose end is not the end of its page's slack */

typedef struct run {
    enum fault fault;
    cudaStream_t a, b;
    cudaEvent_t event;
    float *x, *y, *small, *in, *out;
} run;

static uint64_t n_allocations(void)
{
    uint64_t (*count)(void) = NULL;
    *(void **)&count = dlsym(RTLD_DEFAULT, "standin_n_allocations");
    return count ? count() : 0;
}

static void begin(run *r, enum fault fault)
{
    *r = (run){.fault = fault, .a = new_stream(), .b = new_stream(), .event = new_event()};
    r->x = new_device(FAULTS_BYTES);
    r->y = new_device(FAULTS_BYTES);
    r->small = new_device(SMALL_N * sizeof(float));
    r->in = new_pinned(FAULTS_BYTES);
    r->out = new_pinned(FAULTS_BYTES);
}

static void end(run *r)
{
    if (r->fault != NO_SYNC_AT_END) {
        MUST(cudaDeviceSynchronize());
    }
    MUST(cudaFree(r->x));
    MUST(cudaFree(r->y));
    MUST(cudaFree(r->small));
    MUST(cudaFreeHost(r->in));
    MUST(cudaFreeHost(r->out));
    MUST(cudaStreamDestroy(r->a));
    if (r->fault != STREAM_DESTROYED) {
        MUST(cudaStreamDestroy(r->b));
    }
    MUST(cudaEventDestroy(r->event));
}

/* x = value, on stream a. */
static void upload(run *r, float value)
{
    float stack[FAULTS_N];
    set_all(r->in, value);
    set_all(stack, value);
    const float *from = r->fault == STACK_SOURCE ? stack : r->in;
    enum cudaMemcpyKind kind = r->fault == WRONG_KIND ? cudaMemcpyDeviceToDevice : cudaMemcpyHostToDevice;
    MUST(cudaMemcpyAsync(r->x, from, FAULTS_BYTES, kind, r->a));
    if (r->fault == PINNED_OVERWRITTEN) {
        set_all(r->in, -1);
    }
    if (r->fault == PINNED_FREED_EARLY) {
        MUST(cudaFreeHost(r->in));
        r->in = new_pinned(FAULTS_BYTES);
    }
    set_all(stack, -1);
}

static void pointer_faults(run *r)
{
    float host[FAULTS_N];
    volatile float *forbidden = r->x;
    float *gone = new_device(FAULTS_BYTES);
    if (r->fault == HOST_WRITES_DEVICE) {
        forbidden[3] = 1;
    }
    if (r->fault == HOST_READS_DEVICE) {
        host[0] = forbidden[3];
    }
    if (r->fault == KERNEL_GETS_HOST_MEMORY) {
        set_all(host, 0);
        MUST(tk_subtract(r->y, host, FAULTS_N, 0, r->a));
        MUST(cudaStreamSynchronize(r->a));
    }
    MUST(cudaFree(r->fault == FREE_INSIDE ? gone + 64 : gone));
    if (r->fault == DOUBLE_FREE) {
        MUST(cudaFree(gone));
    }
    if (r->fault == USE_AFTER_FREE) {
        MUST(tk_subtract(gone, r->x, FAULTS_N, 1, r->a));
    }
    if (r->fault == COPY_FROM_FREED) {
        MUST(cudaMemcpyAsync(r->out, gone, FAULTS_BYTES, cudaMemcpyDeviceToHost, r->a));
    }
    if (r->fault == COPY_PAST_END) {
        MUST(cudaMemcpyAsync(r->x + 1, r->y, FAULTS_BYTES, cudaMemcpyDeviceToDevice, r->a));
    }
}

static void kernel_faults(run *r)
{
    int before = r->fault == KERNEL_WRITES_BEFORE, after = r->fault == KERNEL_WRITES_SLACK;
    MUST(cudaMemsetAsync(r->small, 0, SMALL_N * sizeof(float), r->a));
    MUST(tk_subtract(r->small - before, r->x, SMALL_N + after, 1, r->a));
    if (r->fault == KERNEL_READS_SLACK) {
        MUST(tk_subtract(r->y, r->small, SMALL_N + 1, 0, r->a));
    }
    if (r->fault == KERNEL_WRITES_TOO_FAR) {
        MUST(tk_subtract(r->y + 1, r->x, FAULTS_N, 1, r->a));
    }
}

static void release_faults(run *r)
{
    if (r->fault == FREE_IN_USE || r->fault == FREE_ASYNC_ELSEWHERE) {
        void *temporary = NULL;
        MUST(cudaMalloc(&temporary, FAULTS_BYTES));
        MUST(cudaMemcpyAsync(temporary, r->x, FAULTS_BYTES, cudaMemcpyDeviceToDevice, r->a));
        MUST(r->fault == FREE_IN_USE ? cudaFree(temporary) : cudaFreeAsync(temporary, r->b));
    }
    if (r->fault == UNREGISTER_IN_USE) {
        static float mine[FAULTS_N];
        MUST(cudaHostRegister(mine, sizeof mine, cudaHostRegisterDefault));
        MUST(cudaMemcpyAsync(mine, r->x, FAULTS_BYTES, cudaMemcpyDeviceToHost, r->a));
        MUST(cudaHostUnregister(mine));
    }
}

static void CUDART_CB calls_cuda(void *stream)
{
    cudaStreamQuery(stream);
}

static void stream_faults(run *r)
{
    if (r->fault == CALL_IN_HOST_FUNCTION) {
        MUST(cudaLaunchHostFunc(r->a, calls_cuda, r->b));
    }
    if (r->fault == STREAM_DESTROYED) {
        MUST(cudaStreamDestroy(r->b));
        cudaMemsetAsync(r->y, 0, FAULTS_BYTES, r->b);
    }
}

/* y = -x on stream a, out = y on stream b. */
static void compute(run *r)
{
    if (r->fault != NOT_INITIALISED) {
        MUST(cudaMemsetAsync(r->y, 0, FAULTS_BYTES, r->a));
    }
    MUST(tk_subtract(r->y, r->x, FAULTS_N, 1, r->a));
    MUST(cudaEventRecord(r->event, r->a));
    MUST(cudaStreamWaitEvent(r->b, r->event, 0));
    MUST(cudaMemcpyAsync(r->out, r->y, FAULTS_BYTES, cudaMemcpyDeviceToHost, r->b));
    MUST(cudaEventRecord(r->event, r->b));
    if (r->fault == BUFFER_REUSED_EARLY) {
        MUST(cudaMemsetAsync(r->y, 0, FAULTS_BYTES, r->a));
        MUST(cudaDeviceSynchronize());
    }
    MUST(cudaEventSynchronize(r->event));
}

int main(int argc, char **argv)
{
    run r;
    begin(&r, argc > 1 ? (enum fault)atoi(argv[1]) : NONE);
    pointer_faults(&r);
    uint64_t n_before = n_allocations();
    upload(&r, 5);
    kernel_faults(&r);
    if (r.fault == ALLOCATION_IN_STEP) {
        MUST(cudaFree(new_device(4)));
    }
    release_faults(&r);
    compute(&r);
    int wrong = differs(r.out, -5), allocated = r.fault == ALLOCATION_IN_STEP && n_allocations() != n_before;
    stream_faults(&r);
    if (r.fault == NO_SYNC_AT_END) {
        MUST(cudaMemsetAsync(r.small, 0, 4, r.a));
    }
    end(&r);
    puts(wrong ? "WRONG" : allocated ? "ALLOCATED" : "ok");
    return wrong || allocated ? FAULTS_WRONG : 0;
}
