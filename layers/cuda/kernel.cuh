/* What kernels share: conversion to f32 and back, 16-byte accesses, sums over a warp and a block in a fixed order.
 * Included by .cu files only. */
#ifndef LAYERS_CUDA_KERNEL_CUH
#define LAYERS_CUDA_KERNEL_CUH

#include <stdint.h>

#include "layers/cuda/launch.cuh"

enum { LY_WARP = 32 };

__device__ __forceinline__ float ly_to_f32(float x)
{
    return x;
}
__device__ __forceinline__ float ly_to_f32(__nv_bfloat16 x)
{
    return __bfloat162float(x);
}
__device__ __forceinline__ float ly_to_f32(__half x)
{
    return __half2float(x);
}

/* Rounds to nearest, ties to even. */
template <class T> __device__ __forceinline__ T ly_from_f32(float x);
template <> __device__ __forceinline__ float ly_from_f32<float>(float x)
{
    return x;
}
template <> __device__ __forceinline__ __nv_bfloat16 ly_from_f32<__nv_bfloat16>(float x)
{
    return __float2bfloat16_rn(x);
}
template <> __device__ __forceinline__ __half ly_from_f32<__half>(float x)
{
    return __float2half_rn(x);
}

/* 16 bytes of T: 4 f32, or 8 of 16 bits. Pointers must be 16-byte aligned for load and store. */
template <class T> struct alignas(16) ly_vec {
    enum { N = 16 / sizeof(T) };
    T x[N];
};

template <class T> __device__ __forceinline__ ly_vec<T> ly_load(const T *p)
{
    return *reinterpret_cast<const ly_vec<T> *>(p);
}
template <class T> __device__ __forceinline__ void ly_store(T *p, const ly_vec<T> &v)
{
    *reinterpret_cast<ly_vec<T> *>(p) = v;
}
/* Whether rows of `stride` elements that begin at p may be read 16 bytes at a time. */
template <class T> __host__ __device__ __forceinline__ bool ly_aligned16(const T *p, int64_t stride)
{
    return reinterpret_cast<uintptr_t>(p) % 16 == 0 && stride % (int64_t)(16 / sizeof(T)) == 0;
}

/* Sum over the warp, the same bits in every lane. All 32 lanes take part. */
__device__ __forceinline__ float ly_warp_sum(float x)
{
    for (int step = LY_WARP / 2; step > 0; step /= 2) {
        x += __shfl_xor_sync(0xffffffffu, x, step);
    }
    return x;
}
__device__ __forceinline__ double ly_warp_sum(double x)
{
    for (int step = LY_WARP / 2; step > 0; step /= 2) {
        x += __shfl_xor_sync(0xffffffffu, x, step);
    }
    return x;
}
__device__ __forceinline__ float ly_warp_max(float x)
{
    for (int step = LY_WARP / 2; step > 0; step /= 2) {
        float y = __shfl_xor_sync(0xffffffffu, x, step);
        x = y > x ? y : x;
    }
    return x;
}

/* Sum over a one-dimensional block of whole warps, in warp order, in every thread. `slots` is shared memory of one T
 * per warp; it may be used again after the next barrier. */
template <class T> __device__ __forceinline__ T ly_block_sum(T x, T *slots)
{
    int lane = threadIdx.x % LY_WARP, warp = threadIdx.x / LY_WARP, n_warps = blockDim.x / LY_WARP;
    x = ly_warp_sum(x);
    if (n_warps == 1) {
        return x;
    }
    __syncthreads();
    if (lane == 0) {
        slots[warp] = x;
    }
    __syncthreads();
    T sum = slots[0];
    for (int w = 1; w < n_warps; w++) {
        sum += slots[w];
    }
    return sum;
}

#endif
