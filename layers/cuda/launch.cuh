/* What every .cu file includes first: CUDA C++, or, compiled by g++ for tests, the same kernels on the CPU.
 *
 * Launches go through one macro with typed pointers, so that a kernel can run as fibers and its arguments be checked;
 * the launcher returns the launch's error (cudaError_t as int). */
#ifndef LAYERS_CUDA_LAUNCH_CUH
#define LAYERS_CUDA_LAUNCH_CUH

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

/* Queues kernel<<<grid, block, shared_bytes, stream>>>(...); a kernel with template commas stands in parentheses. */
#define LY_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
    (kernel)<<<(grid), (block), (shared_bytes), (stream)>>>(__VA_ARGS__)
/* The launch's dynamic shared memory, 16-byte aligned, as T *name. */
#define LY_SHARED_DYN(T, name)                                       \
    extern __shared__ __align__(16) unsigned char ly_i_shared_raw[]; \
    T *name = reinterpret_cast<T *>(ly_i_shared_raw)
/* After a launch: what cudaLaunchKernel said. */
static inline int ly_launched()
{
    return (int)cudaGetLastError();
}
#else
#include LY_ON_CPU_HEADER /* the test build's: the same names for g++ (tests/cuda/on_cpu) */
#endif

#endif
