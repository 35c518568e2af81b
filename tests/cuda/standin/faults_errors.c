/* Errors, leaks and devices, `faults_errors CASE`: what a program meets, and does not tidy up. Each call is checked, as
 * it is in the product. Prints "ok", or the call that failed and its error. */
#include "tests/cuda/standin/faults.h"

enum errors_case {
    COMPLETE, /* a small program that tidies up: for injected failures */
    LEAK_DEVICE,
    LEAK_PINNED,
    LEAK_HANDLES,
    LEAK_AND_FAIL, /* status 3: what is left after an error is nobody's business */
    KERNEL_FAILS,
    NEVER_RUN,
    TWO_DEVICES,
    NO_SUCH_DEVICE,
    DESCRIBE_DEVICE,
    LAUNCH_EMPTY_GRID,
    TOO_MUCH_MEMORY, /* more than STANDIN_MEM=1048576 */
    UNKNOWN_ATTRIBUTE,
    TOO_MANY_REPORTS,
};

static void complete(void)
{
    cudaGraph_t graph = NULL;
    cudaGraphExec_t exec = NULL;
    cudaEvent_t event = new_event();
    cudaStream_t stream = new_stream();
    float *x = new_device(FAULTS_BYTES), *y = new_device(FAULTS_BYTES), *host = new_pinned(FAULTS_BYTES);
    set_all(host, 1);
    MUST(cudaMemcpyAsync(x, host, FAULTS_BYTES, cudaMemcpyHostToDevice, stream));
    MUST(cudaMemsetAsync(y, 0, FAULTS_BYTES, stream));
    MUST(tk_subtract(y, x, FAULTS_N, 2, stream));
    MUST(cudaEventRecord(event, stream));
    MUST(cudaStreamWaitEvent(stream, event, 0));
    MUST(cudaEventSynchronize(event));
    MUST(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    MUST(tk_subtract(y, x, FAULTS_N, 2, stream));
    MUST(cudaStreamEndCapture(stream, &graph));
    MUST(cudaGraphInstantiate(&exec, graph, 0));
    MUST(cudaGraphLaunch(exec, stream));
    MUST(cudaMemcpyAsync(host, y, FAULTS_BYTES, cudaMemcpyDeviceToHost, stream));
    MUST(cudaStreamSynchronize(stream));
    if (differs(host, -4)) {
        printf("WRONG\n");
        exit(FAULTS_WRONG);
    }
    MUST(cudaGraphExecDestroy(exec));
    MUST(cudaGraphDestroy(graph));
    MUST(cudaFree(x));
    MUST(cudaFree(y));
    MUST(cudaFreeHost(host));
    MUST(cudaEventDestroy(event));
    MUST(cudaStreamDestroy(stream));
}

/* Everything that follows a failed kernel fails too. */
static void kernel_fails(void)
{
    float *y = new_device(FAULTS_BYTES);
    cudaStream_t stream = new_stream();
    void *ptr = NULL;
    MUST(tk_fail(y, stream));
    cudaError_t at_wait = cudaStreamSynchronize(stream), later = cudaMalloc(&ptr, 4);
    printf("wait %s, then %s, last %s\n", cudaGetErrorName(at_wait), cudaGetErrorName(later),
           cudaGetErrorName(cudaGetLastError()));
}

static void describe_device(void)
{
    struct cudaDeviceProp p;
    int n = 0, major = 0, shared = 0, blocks = 0;
    size_t free_bytes = 0, total = 0;
    float *y = new_device(4);
    cudaStream_t stream = new_stream();
    MUST(cudaGetDeviceCount(&n));
    MUST(cudaGetDeviceProperties(&p, 0));
    MUST(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0));
    MUST(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0));
    MUST(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, (const void *)describe_device, 256, 100 << 10));
    MUST(cudaMemGetInfo(&free_bytes, &total));
    printf("%d x %s %d.%d, attribute %d, shared %d, %d blocks, used %zu\n", n, p.name, p.major, p.minor, major, shared,
           blocks, total - free_bytes);
    int launched = tk_subtract(y, y, 1, 1, stream);
    printf("launch %s, last %s\n", cudaGetErrorName((cudaError_t)launched), cudaGetErrorName(cudaGetLastError()));
    MUST(cudaStreamSynchronize(stream));
    MUST(cudaStreamDestroy(stream));
    MUST(cudaFree(y));
}

static void reports(void)
{
    for (int i = 0; i < 25; i++) {
        float *freed = new_device(4);
        MUST(cudaFree(freed));
        cudaFree(freed);
    }
}

static void leaks(enum errors_case which)
{
    if (which == LEAK_DEVICE) {
        new_device(100);
        new_device(24);
    } else if (which == LEAK_PINNED) {
        new_pinned(7);
    } else if (which == LEAK_HANDLES) {
        new_stream();
        new_event();
        new_event();
    } else if (which == LEAK_AND_FAIL) {
        new_device(100);
        exit(FAULTS_ERROR);
    }
}

int main(int argc, char **argv)
{
    enum errors_case which = argc > 1 ? (enum errors_case)atoi(argv[1]) : COMPLETE;
    int value = 0;
    leaks(which);
    switch (which) {
    case COMPLETE:
        complete();
        break;
    case KERNEL_FAILS:
        kernel_fails();
        break;
    case NEVER_RUN:
        MUST(cudaMemsetAsync(new_device(4), 0, 4, new_stream()));
        break;
    case TWO_DEVICES:
        MUST(cudaFree(new_device(4)));
        MUST(cudaSetDevice(1));
        break;
    case NO_SUCH_DEVICE:
        MUST(cudaSetDevice(2));
        break;
    case DESCRIBE_DEVICE:
        describe_device();
        break;
    case LAUNCH_EMPTY_GRID:
        MUST(tk_empty_grid(new_device(4), NULL));
        break;
    case TOO_MUCH_MEMORY:
        new_device(1 << 19);
        new_device((1 << 19) + 4);
        break;
    case UNKNOWN_ATTRIBUTE:
        cudaDeviceGetAttribute(&value, cudaDevAttrMaxTexture1DWidth, 0);
        break;
    case TOO_MANY_REPORTS:
        reports();
        break;
    default:
        break;
    }
    puts("ok");
    return 0;
}
