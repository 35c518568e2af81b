/* What the norm kernels share: rows spread over the threads of a block, their sums, and the arithmetic of one element
 * (layers/cpu/norm_row.h has the same formulas). */
#ifndef LAYERS_CUDA_NORM_ROW_CUH
#define LAYERS_CUDA_NORM_ROW_CUH

#include "layers/cuda/divide.cuh"
#include "layers/cuda/flat.cuh"
#include "layers/cuda/tensors.cuh"
#include "layers/norm.h"

/* A block has blockDim.y rows, each on blockDim.x threads, a multiple of the warp. */
enum { LY_I_NORM_THREADS = 512, LY_I_NORM_WARPS = LY_I_NORM_THREADS / LY_WARP };

/* Sum over the threads of a row, the same bits in each of them. All threads of the block take part. `slots` (one a
 * warp) may be written again after the next barrier. */
__device__ __forceinline__ float ly_i_row_sum(float x, float *slots)
{
    x = ly_warp_sum(x);
    int n_warps = blockDim.x / LY_WARP;
    if (n_warps == 1) {
        return x;
    }
    float *row = slots + threadIdx.y * n_warps;
    if (threadIdx.x % LY_WARP == 0) {
        row[threadIdx.x / LY_WARP] = x;
    }
    __syncthreads();
    x = row[0];
    for (int w = 1; w < n_warps; w++) {
        x += row[w];
    }
    return x;
}

/* Two sums for one barrier. */
__device__ __forceinline__ float2 ly_i_row_sum2(float2 x, float2 *slots)
{
    x.x = ly_warp_sum(x.x);
    x.y = ly_warp_sum(x.y);
    int n_warps = blockDim.x / LY_WARP;
    if (n_warps == 1) {
        return x;
    }
    float2 *row = slots + threadIdx.y * n_warps;
    if (threadIdx.x % LY_WARP == 0) {
        row[threadIdx.x / LY_WARP] = x;
    }
    __syncthreads();
    x = row[0];
    for (int w = 1; w < n_warps; w++) {
        x.x += row[w].x;
        x.y += row[w].y;
    }
    return x;
}

/* Column at which vector i of the calling thread begins. */
template <int WIDTH> __device__ __forceinline__ int ly_i_column(int i)
{
    return (int)(i * blockDim.x + threadIdx.x) * WIDTH;
}

/* gamma[0, WIDTH), plus 1 where the norm stores gamma - 1. */
template <int WIDTH, class T>
__device__ __forceinline__ void ly_i_gain(float (&g)[WIDTH], const T *gamma, bool one_plus)
{
    ly_load_f32(g, gamma);
    if (one_plus) {
#pragma unroll
        for (int k = 0; k < WIDTH; k++) {
            g[k] += 1.0f;
        }
    }
}

/* out = xhat g + beta, stored. */
template <int WIDTH, class T>
__device__ __forceinline__ void ly_i_norm_out(T *out, const float (&h)[WIDTH], float mean, float rstd,
                                              const float (&gain)[WIDTH], const T *beta)
{
    float b[WIDTH] = {}, o[WIDTH];
    if (beta) {
        ly_load_f32(b, beta);
    }
#pragma unroll
    for (int k = 0; k < WIDTH; k++) {
        o[k] = (h[k] - mean) * rstd * gain[k] + b[k];
    }
    ly_store_f32(out, o);
}

/* A row's statistics and the means that its gradient needs (layers/cpu/norm_row.h):
 * dx = rstd (dg - mean_dg - xhat mean_dgx), dg = dout g. */
struct ly_i_norm_grad {
    float mean, rstd, mean_dg, mean_dgx;
};

__device__ __forceinline__ float ly_i_norm_dx(const ly_i_norm_grad &g, float dout, float h, float gain)
{
    float xhat = (h - g.mean) * g.rstd;
    return (dout * gain - g.mean_dg - xhat * g.mean_dgx) * g.rstd;
}

/* Rows of a view (R, G, r, H), or of a (R, C) one with G = r = 1: row number (i * G + g) * r + j. */
struct ly_i_rows {
    ly_divider n_g, n_j;
    int64_t stride, stride_g, stride_j;
};

__device__ __forceinline__ int64_t ly_i_row_at(const ly_i_rows &rows, uint32_t n)
{
    uint32_t n_j = ly_divide(n, rows.n_j), n_g = ly_divide(n_j, rows.n_g);
    return n_g * rows.stride + (n_j - n_g * rows.n_g.divisor) * rows.stride_g +
           (n - n_j * rows.n_j.divisor) * rows.stride_j;
}

static inline ly_i_rows ly_i_rows_of(mc_tensor t)
{
    if (t.n_dims == 2) {
        return {ly_divider_of(1), ly_divider_of(1), t.dims[1], 0, 0};
    }
    return {ly_divider_of(t.dims[1]), ly_divider_of(t.dims[2]), t.dims[0] > 1 ? t.strides[0] : 0,
            t.dims[1] > 1 ? t.strides[1] : 0, t.dims[2] > 1 ? t.strides[2] : 0};
}

/* Whether the rows of a present tensor can be walked 16 bytes at a time. */
template <class T> static inline bool ly_i_rows_wide(mc_tensor t)
{
    const int64_t n = 16 / sizeof(T);
    if (!mc_tensor_present(t)) {
        return true;
    }
    bool wide = reinterpret_cast<uintptr_t>(t.data) % 16 == 0 && t.dims[t.n_dims - 1] % n == 0;
    for (int d = 0; d < t.n_dims - 1; d++) {
        wide = wide && (t.dims[d] <= 1 || t.strides[d] % n == 0);
    }
    return wide;
}

template <class T, class... R> static inline bool ly_i_all_wide(R... tensors)
{
    return (ly_i_rows_wide<T>(tensors) && ...);
}

static inline bool ly_absent_or_2d(mc_tensor t, int64_t d0, int64_t d1)
{
    return !mc_tensor_present(t) || ly_is_contiguous_2d(t, d0, d1);
}

static inline bool ly_absent_or_1d(mc_tensor t, int64_t d0)
{
    return !mc_tensor_present(t) || ly_is_contiguous_1d(t, d0);
}

/* Threads for a row of n_cols columns, vecs * width of them each. */
static inline unsigned ly_i_row_threads(int64_t n_cols, int width, int vecs)
{
    return (unsigned)((n_cols + width * vecs * LY_WARP - 1) / (width * vecs * LY_WARP) * LY_WARP);
}

#endif
