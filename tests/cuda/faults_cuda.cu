/* The kernels of faults.h: one planted fault each, then sound ones. */
#include <cuda_pipeline_primitives.h>
#include <mma.h>
#include <string.h>

#include "layers/cuda/kernel.cuh"
#include "tests/cuda/faults.h"

#define KERNEL __global__ void

/* --- barriers --- */

KERNEL missing_barrier(float *y, const float *x)
{
    __shared__ float s[128];
    int t = threadIdx.x;
    s[t] = x[t];
    y[t] = s[127 - t];
}

KERNEL missing_barrier_in_loop(float *y, const float *x)
{
    __shared__ float s[128];
    int t = threadIdx.x;
    float sum = 0;
    for (int k = 0; k < 3; k++) {
        s[t] = x[k * 128 + t]; /* while others still read the last round */
        __syncthreads();
        sum += s[127 - t];
    }
    y[t] = sum;
}

KERNEL barrier_in_branch(float *y, const float *)
{
    if (threadIdx.x < 64) {
        __syncthreads();
    }
    y[threadIdx.x] = 1;
}

KERNEL two_barriers(float *y, const float *)
{
    if (threadIdx.x < 64) {
        __syncthreads();
        y[threadIdx.x] = 1;
    } else {
        __syncthreads();
        y[threadIdx.x] = 2;
    }
}

KERNEL return_before_barrier(float *y, const float *)
{
    if (threadIdx.x >= 100) {
        return;
    }
    __syncthreads();
    y[threadIdx.x] = 1;
}

/* --- warps --- */

KERNEL shuffle_in_branch(float *y, const float *)
{
    float v = threadIdx.x;
    if (threadIdx.x < 16) {
        v += __shfl_xor_sync(0xffffffffu, v, 1);
    } else {
        __syncthreads();
    }
    y[threadIdx.x] = v;
}

KERNEL shuffle_from_returned(float *y, const float *)
{
    int t = threadIdx.x;
    if (t >= 20) {
        return;
    }
    float v = t;
    for (int step = 16; step > 0; step /= 2) {
        v += __shfl_xor_sync(0xffffffffu, v, step);
    }
    y[t] = v;
}

KERNEL shuffle_mask_lacks_caller(float *y, const float *)
{
    y[threadIdx.x] = __shfl_sync(0x0000ffffu, static_cast<float>(threadIdx.x), 0);
}

KERNEL masks_overlap(float *y, const float *)
{
    unsigned mask = threadIdx.x < 16 ? 0x0001ffffu : 0xffff0000u;
    y[threadIdx.x] = __any_sync(mask, threadIdx.x == 3);
}

KERNEL collectives_differ(float *y, const float *)
{
    float v = threadIdx.x;
    if (threadIdx.x & 1) {
        v = __shfl_xor_sync(0xffffffffu, v, 1);
    } else {
        __syncwarp();
    }
    y[threadIdx.x] = v;
}

KERNEL missing_warp_barrier(float *y, const float *)
{
    __shared__ float s[32];
    int t = threadIdx.x;
    s[t] = t;
    y[t] = s[t ^ 1];
}

/* --- memory --- */

KERNEL uninitialised_shared(float *y, const float *)
{
    __shared__ float s[128];
    if (threadIdx.x != 0) {
        s[threadIdx.x] = 1;
    }
    __syncthreads();
    y[threadIdx.x] = s[threadIdx.x ^ 1];
}

template <class T> KERNEL uninitialised_in_template(T *y, const T *)
{
    __shared__ T s[128];
    if (threadIdx.x != 0) {
        s[threadIdx.x] = 1;
    }
    __syncthreads();
    y[threadIdx.x] = s[threadIdx.x ^ 1];
}

KERNEL uninitialised_dynamic(float *y, const float *)
{
    LY_SHARED_DYN(float, s);
    if (threadIdx.x != 0) {
        s[threadIdx.x] = 1;
    }
    __syncthreads();
    y[threadIdx.x] = s[threadIdx.x ^ 1];
}

KERNEL outside_static_shared(float *y, const float *)
{
    __shared__ float s[128];
    s[threadIdx.x] = 1;
    __syncthreads();
    y[threadIdx.x] = s[threadIdx.x + 1];
}

KERNEL write_outside_dynamic_shared(float *y, const float *)
{
    LY_SHARED_DYN(float, s);
    s[threadIdx.x + 1] = 1;
    __syncthreads();
    y[threadIdx.x] = 0;
}

KERNEL read_outside_dynamic_shared(float *y, const float *)
{
    LY_SHARED_DYN(float, s);
    s[threadIdx.x] = 1;
    __syncthreads();
    y[threadIdx.x] = s[threadIdx.x + 1];
}

KERNEL write_outside_global(float *y, const float *)
{
    y[threadIdx.x + FAULT_OUT - 127] = 1;
}

KERNEL misaligned_vector(float *y, const float *x)
{
    ly_store(y + 4 * threadIdx.x, ly_load(x + 1 + 4 * threadIdx.x));
}

/* --- blocks --- */

KERNEL blocks_write_one_place(float *y, const float *)
{
    if (threadIdx.x == 0) {
        y[0] = blockIdx.x;
    }
}

KERNEL blocks_write_one_value(float *y, const float *)
{
    if (threadIdx.x == 0) {
        y[0] = 1;
    }
}

KERNEL float_atomics(float *y, const float *x)
{
    if (threadIdx.x == 0 && blockIdx.x == 0) {
        y[0] = 0;
    }
    atomicAdd(&y[1], x[threadIdx.x] * 1e-3f + 1.0f / (1 + blockIdx.x));
}

KERNEL last_block_without_fence(float *y, const float *x)
{
    __shared__ bool last;
    y[1 + blockIdx.x] = x[blockIdx.x];
    unsigned *ticket = reinterpret_cast<unsigned *>(y);
    last = atomicInc(ticket, gridDim.x - 1) == gridDim.x - 1;
    if (last) {
        float sum = 0;
        for (unsigned b = 0; b < gridDim.x; b++) {
            sum += y[1 + b];
        }
        y[FAULT_OUT - 1] = sum;
    }
}

/* --- asynchronous copies and tensor cores --- */

/* Four stages of x through two buffers of shared memory, by one warp; `pending` groups may be unfinished when a stage
 * is read, and the warp meets after each stage with `meet`. */
__device__ void pipelined_sum(float *y, const float *x, int pending, bool meet)
{
    __shared__ __align__(16) float s[2][128];
    int t = threadIdx.x;
    float sum = 0;
    __pipeline_memcpy_async(&s[0][4 * t], x + 4 * t, 16);
    __pipeline_commit();
    for (int k = 0; k < 4; k++) {
        if (k < 3) {
            __pipeline_memcpy_async(&s[(k + 1) % 2][4 * t], x + 128 * (k + 1) + 4 * t, 16);
        }
        __pipeline_commit();
        __pipeline_wait_prior(pending);
        __syncwarp();
        for (int i = 0; i < 4; i++) {
            sum += s[k % 2][(4 * t + 4 + i) % 128]; /* the neighbour's */
        }
        if (meet) {
            __syncwarp();
        }
    }
    y[t] = sum;
}

KERNEL weak_pipeline_wait(float *y, const float *x)
{
    pipelined_sum(y, x, 2, true);
}

KERNEL buffer_still_read(float *y, const float *x)
{
    pipelined_sum(y, x, 1, false);
}

KERNEL sound_pipeline(float *y, const float *x)
{
    pipelined_sum(y, x, 1, true);
}

KERNEL misaligned_copy(float *y, const float *x)
{
    __shared__ __align__(16) float s[128];
    __pipeline_memcpy_async(&s[4 * threadIdx.x], x + 1 + 4 * threadIdx.x, 16);
    __pipeline_commit();
    __pipeline_wait_prior(0);
    y[threadIdx.x] = s[4 * threadIdx.x];
}

using namespace nvcuda;

/* y (16,16) = a b, with a (16,16) from x and b its transpose by a column-major load, moved by `shift` elements. */
__device__ void tile_product(float *y, const float *x, int shift)
{
    __shared__ __align__(32) __nv_bfloat16 a[256 + 32];
    for (int i = threadIdx.x; i < 256 + 32; i += 32) {
        a[i] = __float2bfloat16_rn(x[i]);
    }
    __syncwarp();
    wmma::fragment<wmma::matrix_a, 16, 16, 16, __nv_bfloat16, wmma::row_major> fa;
    wmma::fragment<wmma::matrix_b, 16, 16, 16, __nv_bfloat16, wmma::col_major> fb;
    wmma::fragment<wmma::accumulator, 16, 16, 16, float> sum;
    wmma::fill_fragment(sum, 0.0f);
    wmma::load_matrix_sync(fa, a + shift, 16);
    wmma::load_matrix_sync(fb, a + shift, 16);
    wmma::mma_sync(sum, fa, fb, sum);
    wmma::store_matrix_sync(y, sum, 16, wmma::mem_row_major);
}

KERNEL misaligned_tile(float *y, const float *x)
{
    tile_product(y, x, 8);
}

KERNEL sound_tile(float *y, const float *x)
{
    tile_product(y, x, 0);
}

/* --- sound --- */

KERNEL sound_barrier(float *y, const float *x)
{
    __shared__ float s[128], one;
    int t = threadIdx.x;
    s[t] = x[t];
    if (t == 0) {
        one = 3;
    }
    __syncthreads();
    y[blockIdx.x * 128 + t] = s[127 - t] + one;
}

KERNEL sound_dynamic_shared(float *y, const float *x)
{
    LY_SHARED_DYN(float, s);
    s[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[blockIdx.x * 128 + threadIdx.x] = s[127 - threadIdx.x];
}

KERNEL sound_warp_barrier(float *y, const float *)
{
    __shared__ float s[32];
    int t = threadIdx.x;
    s[t] = t;
    __syncwarp();
    y[t] = s[t ^ 1];
}

KERNEL sound_half_warps(float *y, const float *)
{
    float v = threadIdx.x;
    if (threadIdx.x & 16) {
        v = __shfl_xor_sync(0xffff0000u, v, 1);
    } else {
        v = __shfl_xor_sync(0x0000ffffu, v, 2);
    }
    y[threadIdx.x] = v;
}

KERNEL sound_block_sum(float *y, const float *x)
{
    __shared__ float slots[32];
    y[blockIdx.x * 128 + threadIdx.x] = ly_block_sum(x[threadIdx.x], slots);
}

KERNEL sound_integer_atomics(float *y, const float *)
{
    atomicAdd(reinterpret_cast<unsigned *>(y), threadIdx.x + blockIdx.x);
}

/* Every block leaves a part; the last one adds them in order. */
KERNEL sound_last_block(float *y, const float *x)
{
    __shared__ bool last;
    if (threadIdx.x == 0) {
        y[1 + blockIdx.x] = x[blockIdx.x];
    }
    __threadfence();
    if (threadIdx.x == 0) {
        unsigned *ticket = reinterpret_cast<unsigned *>(y);
        last = atomicInc(ticket, gridDim.x - 1) == gridDim.x - 1;
    }
    __syncthreads();
    if (last && threadIdx.x == 0) {
        __threadfence();
        float sum = 0;
        for (unsigned b = 0; b < gridDim.x; b++) {
            sum += y[1 + b];
        }
        y[FAULT_OUT - 1] = sum;
    }
}

static const struct {
    const char *name;
    void (*kernel)(float *, const float *);
    int grid, block, shared_bytes;
} rows[] = {
#define ROW(kernel, grid, block, shared_bytes)     \
    {                                              \
#kernel, kernel, grid, block, shared_bytes \
    }
    ROW(missing_barrier, 1, 128, 0),
    ROW(missing_barrier_in_loop, 1, 128, 0),
    ROW(barrier_in_branch, 1, 128, 0),
    ROW(two_barriers, 1, 128, 0),
    ROW(return_before_barrier, 1, 128, 0),
    ROW(shuffle_in_branch, 1, 32, 0),
    ROW(shuffle_from_returned, 1, 32, 0),
    ROW(shuffle_mask_lacks_caller, 1, 32, 0),
    ROW(masks_overlap, 1, 32, 0),
    ROW(collectives_differ, 1, 32, 0),
    ROW(missing_warp_barrier, 1, 32, 0),
    ROW(uninitialised_shared, 1, 128, 0),
    ROW(uninitialised_in_template<float>, 1, 128, 0),
    ROW(uninitialised_dynamic, 1, 128, 512),
    ROW(outside_static_shared, 1, 128, 0),
    ROW(write_outside_dynamic_shared, 1, 128, 512),
    ROW(read_outside_dynamic_shared, 1, 128, 512),
    ROW(write_outside_global, 1, 128, 0),
    ROW(misaligned_vector, 1, 32, 0),
    ROW(blocks_write_one_place, 4, 32, 0),
    ROW(blocks_write_one_value, 4, 32, 0),
    ROW(float_atomics, 4, 32, 0),
    ROW(last_block_without_fence, 4, 1, 0),
    ROW(weak_pipeline_wait, 1, 32, 0),
    ROW(buffer_still_read, 1, 32, 0),
    ROW(misaligned_copy, 1, 32, 0),
    ROW(misaligned_tile, 1, 32, 0),
    ROW(sound_barrier, 2, 128, 0),
    ROW(sound_dynamic_shared, 2, 128, 512),
    ROW(sound_warp_barrier, 1, 32, 0),
    ROW(sound_half_warps, 1, 32, 0),
    ROW(sound_block_sum, 2, 128, 0),
    ROW(sound_integer_atomics, 4, 32, 0),
    ROW(sound_last_block, 4, 32, 0),
    ROW(sound_pipeline, 1, 32, 0),
    ROW(sound_tile, 1, 32, 0),
#undef ROW
};

int fault_launch(const char *name, float *y, const float *x)
{
    for (const auto &row : rows) {
        if (strcmp(row.name, name) == 0) {
            ly_on_cpu::launch_kernel(row.name, row.grid, row.block, row.shared_bytes, nullptr, row.kernel, y, x);
            return ly_launched();
        }
    }
    return -1;
}

int fault_configure(const unsigned grid[3], const unsigned block[3], int shared_bytes, int ask, float *y)
{
    if (ask) {
        int error =
            cudaFuncSetAttribute(sound_integer_atomics, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
        if (error) {
            return error;
        }
    } else {
        (void)cudaFuncSetAttribute(sound_integer_atomics, cudaFuncAttributeMaxDynamicSharedMemorySize, 0);
    }
    const float *x = nullptr;
    LY_LAUNCH(sound_integer_atomics, dim3(grid[0], grid[1], grid[2]), dim3(block[0], block[1], block[2]), shared_bytes,
              nullptr, y, x);
    return ly_launched();
}
