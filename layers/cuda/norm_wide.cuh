/* Norms of rows too wide for the registers of a block: one row (forward) or a few (backward) to a block, read again
 * from the caches for each pass. Rows may be strided, so that wide heads come here too. */
#ifndef LAYERS_CUDA_NORM_WIDE_CUH
#define LAYERS_CUDA_NORM_WIDE_CUH

#include "layers/cuda/dropout.cuh"
#include "layers/cuda/norm_row.cuh"

/* h = x + mask (y + y_bias), rounded to T, WIDTH columns from c on; `at` is the row's offset in contiguous tensors. */
template <int WIDTH, class T>
__device__ __forceinline__ void ly_i_residual(float (&h)[WIDTH], const T *x, const T *y, const T *y_bias, int c,
                                              const ly_mask &mask, ly_mask_row place, int n_cols)
{
    float add[WIDTH];
    ly_load_f32(h, x);
    ly_load_f32(add, y);
    if (y_bias) {
        float b[WIDTH];
        ly_load_f32(b, y_bias + c);
#pragma unroll
        for (int k = 0; k < WIDTH; k++) {
            add[k] += b[k];
        }
    }
    if (mask.on) {
        ly_mask_apply(add, mask, place.sample, (uint64_t)place.position * n_cols + c);
    }
#pragma unroll
    for (int k = 0; k < WIDTH; k++) {
        h[k] = ly_to_f32(ly_from_f32<T>(h[k] + add[k]));
    }
}

/* Bytes an element: those of norm_fwd_kernel (norm_cuda.cu) from memory; h is read twice more, from the caches. */
template <class T, int WIDTH>
static __global__ void __launch_bounds__(LY_I_NORM_THREADS, 2)
    ly_i_norm_fwd_wide(const T *x, const T *y, const T *y_bias, T *h, const T *gamma, const T *beta, T *out,
                       float *stats, ly_i_rows x_rows, ly_i_rows out_rows, int n_cols, bool rms, bool one_plus,
                       float eps, ly_mask mask)
{
    __shared__ float slots[2][LY_I_NORM_WARPS];
    int64_t row = blockIdx.x, step = blockDim.x * WIDTH;
    const T *in = x + ly_i_row_at(x_rows, blockIdx.x);
    float sum = 0.0f, squares = 0.0f;
    if (y) {
        ly_mask_row place = ly_mask_row_of(mask, row);
        T *h_row = h + row * n_cols;
        for (int64_t c = threadIdx.x * WIDTH; c < n_cols; c += step) {
            float v[WIDTH];
            ly_i_residual(v, in + c, y + row * n_cols + c, y_bias, (int)c, mask, place, n_cols);
            ly_store_f32(h_row + c, v);
        }
        in = h_row; /* each thread reads back what it wrote */
    }
    if (!out) {
        return;
    }
    for (int64_t c = threadIdx.x * WIDTH; !rms && c < n_cols; c += step) {
        float v[WIDTH];
        ly_load_f32(v, in + c);
#pragma unroll
        for (int k = 0; k < WIDTH; k++) {
            sum += v[k];
        }
    }
    float mean = rms ? 0.0f : ly_i_row_sum(sum, slots[0]) / (float)n_cols;
    for (int64_t c = threadIdx.x * WIDTH; c < n_cols; c += step) {
        float v[WIDTH];
        ly_load_f32(v, in + c);
#pragma unroll
        for (int k = 0; k < WIDTH; k++) {
            squares += (v[k] - mean) * (v[k] - mean);
        }
    }
    float rstd = 1.0f / sqrtf(ly_i_row_sum(squares, slots[1]) / (float)n_cols + eps);
    if (threadIdx.x == 0) {
        stats[2 * row] = mean;
        stats[2 * row + 1] = rstd;
    }
    T *out_row = out + ly_i_row_at(out_rows, blockIdx.x);
    for (int64_t c = threadIdx.x * WIDTH; c < n_cols; c += step) {
        float v[WIDTH], gain[WIDTH];
        ly_load_f32(v, in + c);
        ly_i_gain(gain, gamma + c, one_plus);
        ly_i_norm_out(out_row + c, v, mean, rstd, gain, beta ? beta + c : beta);
    }
}

/* table[c..] = or += v, by the one thread that owns these columns of the block's partial row. */
template <int WIDTH>
__device__ __forceinline__ void ly_i_add_owned(float *table, int64_t c, const float (&v)[WIDTH], bool first)
{
    if (table) {
        float sum[WIDTH] = {};
        if (!first) {
            ly_load_f32(sum, table + c);
        }
#pragma unroll
        for (int k = 0; k < WIDTH; k++) {
            sum[k] += v[k];
        }
        ly_store_f32(table + c, sum);
    }
}

/* Rows that a block of the wide backward takes together: one addition to the partial row in memory for all of them. */
enum { LY_I_WIDE_ROWS = 4 };

/* The gradient of one vector of one row: stores dh, dy, out, adds to the column sums. */
template <class T, int WIDTH> struct ly_i_wide_grad {
    float gain[WIDTH], dgamma[WIDTH], dbeta[WIDTH], dy_bias[WIDTH];

    __device__ __forceinline__ void norm(float (&d)[WIDTH], const float (&dout)[WIDTH], const float (&h)[WIDTH],
                                         const ly_i_norm_grad &g)
    {
#pragma unroll
        for (int k = 0; k < WIDTH; k++) {
            d[k] = ly_i_norm_dx(g, dout[k], h[k], gain[k]);
            dgamma[k] += dout[k] * ((h[k] - g.mean) * g.rstd);
            dbeta[k] += dout[k];
        }
    }
};

/* mean(dg) and mean(dg xhat) of a row, by the whole block. `slots` as in ly_i_row_sum2. */
template <int WIDTH, class T>
__device__ __forceinline__ ly_i_norm_grad ly_i_wide_means(const T *dout, const T *h, const float *stats, const T *gamma,
                                                          bool one_plus, bool rms, int n_cols, float2 *slots)
{
    float mean = stats[0], rstd = stats[1];
    float2 sums = {0.0f, 0.0f};
    for (int64_t c = threadIdx.x * WIDTH; c < n_cols; c += (int64_t)blockDim.x * WIDTH) {
        float d[WIDTH], x[WIDTH], gain[WIDTH];
        ly_load_f32(d, dout + c);
        ly_load_f32(x, h + c);
        ly_i_gain(gain, gamma + c, one_plus);
#pragma unroll
        for (int k = 0; k < WIDTH; k++) {
            float dg = d[k] * gain[k];
            sums.x += dg;
            sums.y += dg * ((x[k] - mean) * rstd);
        }
    }
    sums = ly_i_row_sum2(sums, slots);
    return {mean, rstd, rms ? 0.0f : sums.x / (float)n_cols, sums.y / (float)n_cols};
}

/* Bytes an element: those of norm_bwd_kernel (norm_bwd_cuda.cu) from memory; dout and h come a second time from the
 * second-level cache, where the partial rows stay too. dout absent: no norm, d = dskip. */
template <class T, int WIDTH>
static __global__ void __launch_bounds__(LY_I_NORM_THREADS)
    ly_i_norm_bwd_wide(const T *dout, const T *h, const float *stats, const T *gamma, const T *beta, const T *dskip,
                       T *dh, T *dy, T *out, float *dgamma, float *dbeta, float *dy_bias, ly_i_rows dout_rows,
                       ly_i_rows h_rows, ly_i_rows dh_rows, int64_t n_rows, int n_cols, bool rms, bool one_plus,
                       ly_mask mask)
{
    __shared__ float2 slots[LY_I_WIDE_ROWS][LY_I_NORM_WARPS];
    __shared__ ly_i_norm_grad g[LY_I_WIDE_ROWS];
    int64_t at = (int64_t)blockIdx.x * n_cols;
    dgamma = dgamma ? dgamma + at : dgamma;
    dbeta = dbeta ? dbeta + at : dbeta;
    dy_bias = dy_bias ? dy_bias + at : dy_bias;
    for (int64_t row0 = (int64_t)blockIdx.x * LY_I_WIDE_ROWS; row0 < n_rows;
         row0 += (int64_t)gridDim.x * LY_I_WIDE_ROWS) {
        int n = n_rows - row0 < LY_I_WIDE_ROWS ? (int)(n_rows - row0) : LY_I_WIDE_ROWS;
        for (int j = 0; dout && j < n; j++) {
            int64_t row = row0 + j;
            ly_i_norm_grad means = ly_i_wide_means<WIDTH>(dout + ly_i_row_at(dout_rows, (uint32_t)row),
                                                          h + ly_i_row_at(h_rows, (uint32_t)row), stats + 2 * row,
                                                          gamma, one_plus, rms, n_cols, slots[j]);
            if (threadIdx.x == 0) {
                g[j] = means;
            }
        }
        __syncthreads();
        for (int64_t c = threadIdx.x * WIDTH; c < n_cols; c += (int64_t)blockDim.x * WIDTH) {
            ly_i_wide_grad<T, WIDTH> sums = {};
            if (dout) {
                ly_i_gain(sums.gain, gamma + c, one_plus);
            }
#pragma unroll 1
            for (int j = 0; j < n; j++) {
                uint32_t row = (uint32_t)(row0 + j);
                int64_t flat = (row0 + j) * n_cols + c;
                float d[WIDTH] = {}, x[WIDTH], skip[WIDTH] = {};
                if (dskip) {
                    ly_load_f32(skip, dskip + flat);
                }
                if (dout) {
                    float up[WIDTH];
                    ly_load_f32(up, dout + ly_i_row_at(dout_rows, row) + c);
                    ly_load_f32(x, h + ly_i_row_at(h_rows, row) + c);
                    sums.norm(d, up, x, g[j]);
                    if (out) {
                        ly_i_norm_out(out + flat, x, g[j].mean, g[j].rstd, sums.gain, beta ? beta + c : beta);
                    }
                }
#pragma unroll
                for (int k = 0; k < WIDTH; k++) {
                    d[k] += skip[k];
                }
                if (dh) {
                    ly_store_f32(dh + ly_i_row_at(dh_rows, row) + c, d);
                }
                if (dy && mask.on) {
                    ly_mask_row place = ly_mask_row_of(mask, row);
                    ly_mask_apply(d, mask, place.sample, (uint64_t)place.position * n_cols + c);
                }
                if (dy) {
                    ly_store_f32(dy + flat, d);
                }
#pragma unroll
                for (int k = 0; k < WIDTH; k++) {
                    sums.dy_bias[k] += d[k];
                }
            }
            bool first = row0 == (int64_t)blockIdx.x * LY_I_WIDE_ROWS;
            ly_i_add_owned(dgamma, c, sums.dgamma, first);
            ly_i_add_owned(dbeta, c, sums.dbeta, first);
            ly_i_add_owned(dy_bias, c, sums.dy_bias, first);
        }
        __syncthreads(); /* g and slots are written again */
    }
}

#endif
