/* What libcudart says where there is no driver: the same of NVIDIA's library and of the stand-in. Its output is
 * compared, so that nothing here may differ from run to run. Status 77: this machine has a driver. */
#include <cuda_runtime_api.h>
#include <stdio.h>
#include <string.h>

#define TELL(call)                                                                                     \
    do {                                                                                               \
        int error_ = (int)(call), seen_ = (int)cudaPeekAtLastError(), last_ = (int)cudaGetLastError(); \
        printf("%s = %d, peek %d, last %d\n", #call, error_, seen_, last_);                            \
    } while (0)

static void tell_device(void)
{
    static struct cudaDeviceProp p;
    int n = -7;
    TELL(cudaGetDeviceCount(&n));
    TELL(cudaSetDevice(0));
    TELL(cudaSetDevice(-1));
    TELL(cudaGetDevice(&n));
    TELL(cudaGetDeviceProperties(&p, 0));
    TELL(cudaDeviceGetAttribute(&n, cudaDevAttrMultiProcessorCount, 0));
    TELL(cudaDeviceSynchronize());
    printf("untouched %d\n", n);
    TELL(cudaDriverGetVersion(&n));
    printf("driver %d\n", n);
    TELL(cudaRuntimeGetVersion(&n));
    printf("runtime %d\n", n);
}

static void tell_work(void)
{
    void *ptr = NULL;
    size_t n_free = 7, n_total = 7;
    struct cudaPointerAttributes about;
    cudaStream_t stream = NULL;
    cudaEvent_t event = NULL;
    TELL(cudaMalloc(&ptr, 10));
    TELL(cudaMalloc(&ptr, 0));
    TELL(cudaMallocHost(&ptr, 10));
    TELL(cudaHostAlloc(&ptr, 10, 0));
    TELL(cudaFree(NULL));
    TELL(cudaFreeHost(NULL));
    TELL(cudaMemGetInfo(&n_free, &n_total));
    TELL(cudaPointerGetAttributes(&about, &n_free));
    TELL(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    TELL(cudaStreamSynchronize(NULL));
    TELL(cudaStreamQuery(NULL));
    TELL(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    TELL(cudaEventRecord(NULL, NULL));
    TELL(cudaStreamWaitEvent(NULL, NULL, 0));
    TELL(cudaMemset(NULL, 0, 0));
    TELL(cudaMemsetAsync(NULL, 0, 0, NULL));
    TELL(cudaMemcpy(NULL, NULL, 0, cudaMemcpyDefault));
    TELL(cudaMemcpyAsync(NULL, NULL, 0, cudaMemcpyDefault, NULL));
    printf("untouched %d %zu %zu %d %d\n", ptr == NULL, n_free, n_total, stream == NULL, event == NULL);
}

int main(void)
{
    int n = 0;
    if (cudaGetDeviceCount(&n) != cudaErrorInsufficientDriver) {
        return 77;
    }
    tell_device();
    tell_work();
    for (int error = -1; error <= 1000; error++) {
        const char *name = cudaGetErrorName((cudaError_t)error);
        if (strcmp(name, "unrecognized error code") != 0) {
            printf("%d %s\n", error, name);
        }
    }
    return 0;
}
