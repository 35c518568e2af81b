/* Sums over rows in two stages. Each block of a kernel adds its own rows in order and writes one row of partial sums to
 * the workspace; a second, small kernel adds the partial rows in order. Nothing depends on which block runs when. */
#ifndef LAYERS_CUDA_ROW_SUM_CUH
#define LAYERS_CUDA_ROW_SUM_CUH

#include "layers/cuda/flat.cuh"
#include "layers/cuda/partials.h"
#include "layers/cuda/tensors.cuh"

/* Adds what `n_slots` groups of threads of a block hold of the same columns, in slot order, and writes the sums to
 * `partial`. Vector i of a thread are the columns from first + i * step on; `buffer` is shared memory of n_cols floats.
 * All threads of the block take part; those with `live` false (or columns beyond n_cols) hold nothing. */
template <int WIDTH, int VECS>
__device__ __forceinline__ void ly_i_sum_slots(const float (&sums)[VECS][WIDTH], float *buffer, float *partial,
                                               int slot, int n_slots, bool live, int first, int step, int n_cols)
{
    for (int s = 0; s < n_slots; s++) {
        float *to = s == n_slots - 1 ? partial : buffer;
        if (live && slot == s) {
#pragma unroll
            for (int i = 0; i < VECS; i++) {
                int c = first + i * step;
                if (c < n_cols) {
#pragma unroll
                    for (int k = 0; k < WIDTH; k++) {
                        to[c + k] = s == 0 ? sums[i][k] : buffer[c + k] + sums[i][k];
                    }
                }
            }
        }
        if (n_slots > 1) {
            __syncthreads();
        }
    }
}

enum { LY_I_ADD_COLS = 32, LY_I_ADD_SLOTS = 8 };

/* sum += partial rows 0..n_parts-1 of `partials` (gridDim.y tables of n_parts x n_cols, one for each sum). Eight
 * threads share a column: each adds every eighth row, and their sums are added in order. Bytes: 4 n_parts + 8 a column.
 */
static __global__ void __launch_bounds__(LY_I_ADD_COLS *LY_I_ADD_SLOTS)
    ly_i_add_partials(const float *partials, float *sum0, float *sum1, float *sum2, int n_parts, int64_t n_cols)
{
    __shared__ float slots[LY_I_ADD_SLOTS][LY_I_ADD_COLS];
    int64_t c = (int64_t)blockIdx.x * LY_I_ADD_COLS + threadIdx.x;
    const float *table = partials + (int64_t)blockIdx.y * n_parts * n_cols;
    float total = 0.0f;
    if (c < n_cols) {
#pragma unroll 4
        for (int p = threadIdx.y; p < n_parts; p += LY_I_ADD_SLOTS) {
            total += table[p * n_cols + c];
        }
    }
    slots[threadIdx.y][threadIdx.x] = total;
    __syncthreads();
    if (threadIdx.y == 0 && c < n_cols) {
        for (int s = 1; s < LY_I_ADD_SLOTS; s++) {
            total += slots[s][threadIdx.x];
        }
        float *sum = blockIdx.y == 0 ? sum0 : blockIdx.y == 1 ? sum1 : sum2;
        sum[c] += total;
    }
}

/* The tables of partial rows of up to three sums in the workspace, and the second stage. An absent sum has no table. */
struct ly_i_row_sums {
    float *table[3]; /* NULL: absent */
    float *sum[3];   /* those present, first ones first */
    int n_sums;
    int n_parts;
    int64_t n_cols;
};

static inline ly_i_row_sums ly_i_row_sums_of(const ly_ctx *cx, mc_tensor sum0, mc_tensor sum1, mc_tensor sum2,
                                             int64_t n_parts, int64_t n_cols)
{
    const mc_tensor sums[3] = {sum0, sum1, sum2};
    ly_i_row_sums r = {};
    r.n_parts = (int)n_parts;
    r.n_cols = n_cols;
    for (int i = 0; i < 3; i++) {
        if (mc_tensor_present(sums[i])) {
            r.table[i] = static_cast<float *>(cx->workspace) + r.n_sums * n_parts * n_cols;
            r.sum[r.n_sums++] = ly_data<float>(sums[i]);
        }
    }
    MC_ASSERT(r.n_sums == 0 || (size_t)(r.n_sums * n_parts * n_cols) * sizeof(float) <= cx->workspace_bytes);
    return r;
}

/* Queues the second stage behind the kernel that wrote the tables. */
static inline int ly_i_row_sums_finish(const ly_ctx *cx, const ly_i_row_sums *r)
{
    if (r->n_sums == 0) {
        return 0;
    }
    dim3 grid((unsigned)ly_i_ceil(r->n_cols, LY_I_ADD_COLS), (unsigned)r->n_sums);
    const float *partials = static_cast<const float *>(cx->workspace);
    LY_LAUNCH(ly_i_add_partials, grid, dim3(LY_I_ADD_COLS, LY_I_ADD_SLOTS), 0, ly_stream(cx), partials, r->sum[0],
              r->sum[1], r->sum[2], r->n_parts, r->n_cols);
    return ly_launched();
}

#endif
