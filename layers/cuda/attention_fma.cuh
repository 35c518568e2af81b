/* Attention in f32 arithmetic: for T = f32, and for 16-bit T with head sizes or strides that tensor cores cannot take.
 *
 * 256 threads in 16 rows (ty) of 16 (tx) share a block of scores: a thread owns rows RI ty + i and columns tx + 16 j,
 * and of the sums (rows, H) the same rows and columns 64 n + 4 tx .. + 3. Tiles in shared memory are f32, CC chunks of
 * 64 columns padded with zeros, at a distance of 64 CC + 4: an odd number of 16-byte units, so that 8 rows read
 * together lie in different banks. */
#ifndef LAYERS_CUDA_ATTENTION_FMA_CUH
#define LAYERS_CUDA_ATTENTION_FMA_CUH

#include "layers/cuda/attention.cuh"

enum { LY_FMA_THREADS = 256 };

/* Floats from one row of a tile to the next. */
template <int CC> __host__ __device__ constexpr int ly_fma_row()
{
    return 64 * CC + 4;
}

/* Reads rows [first, first + ROWS) into a tile; rows from T on and columns from H on become zero. */
template <class T, int CC, int ROWS>
__device__ __forceinline__ void ly_fma_load(float *tile, const T *rows, int64_t stride, int first, const ly_at_call &c)
{
    enum { N = ly_vec<T>::N, COLS = 64 * CC };
    if (c.vectors) {
        for (int at = threadIdx.x; at < ROWS * COLS / N; at += LY_FMA_THREADS) {
            int row = at / (COLS / N), col = at % (COLS / N) * N;
            float *to = tile + row * ly_fma_row<CC>() + col;
            ly_vec<T> x = {};
            if (first + row < c.T && col < c.H) {
                x = ly_load(rows + (first + row) * stride + col);
            }
#pragma unroll
            for (int i = 0; i < N; i += 4) {
                ly_store(to + i, ly_vec<float>{{ly_to_f32(x.x[i]), ly_to_f32(x.x[i + 1]), ly_to_f32(x.x[i + 2]),
                                                ly_to_f32(x.x[i + 3])}});
            }
        }
        return;
    }
    for (int at = threadIdx.x; at < ROWS * COLS; at += LY_FMA_THREADS) {
        int row = at / COLS, col = at % COLS;
        bool there = first + row < c.T && col < c.H;
        tile[row * ly_fma_row<CC>() + col] = there ? ly_to_f32(rows[(first + row) * stride + col]) : 0.0f;
    }
}

/* s[i][j] = row RI ty + i of a times row tx + 16 j of b. */
template <int CC, int RI, int RJ>
__device__ __forceinline__ void ly_fma_scores(float (&s)[RI][RJ], const float *a, const float *b, int H)
{
    const float *a_row = a + threadIdx.x / 16 * RI * ly_fma_row<CC>(), *b_row = b + threadIdx.x % 16 * ly_fma_row<CC>();
#pragma unroll
    for (int i = 0; i < RI; i++) {
#pragma unroll
        for (int j = 0; j < RJ; j++) {
            s[i][j] = 0.0f;
        }
    }
#pragma unroll 2
    for (int h = 0; h < H; h += 4) {
        ly_vec<float> x[RI], y[RJ];
#pragma unroll
        for (int i = 0; i < RI; i++) {
            x[i] = ly_load(a_row + i * ly_fma_row<CC>() + h);
        }
#pragma unroll
        for (int j = 0; j < RJ; j++) {
            y[j] = ly_load(b_row + 16 * j * ly_fma_row<CC>() + h);
        }
#pragma unroll
        for (int i = 0; i < RI; i++) {
#pragma unroll
            for (int j = 0; j < RJ; j++) {
#pragma unroll
                for (int n = 0; n < 4; n++) {
                    s[i][j] = fmaf(x[i].x[n], y[j].x[n], s[i][j]);
                }
            }
        }
    }
}

/* Which of this thread's elements dropout keeps: bit i RJ + j for row RI ty + i from row0 on and column tx + 16 j from
 * col0 on. Rows are queries, or, with KEY_ROWS, keys. A loop, to save the registers of its unrolled rounds. */
template <int RI, int RJ, bool KEY_ROWS>
__device__ __forceinline__ uint32_t ly_fma_kept(const ly_at_drop &d, int row0, int col0)
{
    uint32_t kept = 0;
#pragma unroll 1
    for (int n = 0; n < RI * RJ; n++) {
        int row = row0 + threadIdx.x / 16 * RI + n / RJ, col = col0 + threadIdx.x % 16 + 16 * (n % RJ);
        kept |= (uint32_t)(KEY_ROWS ? ly_at_kept(d, col, row) : ly_at_kept(d, row, col)) << n;
    }
    return kept;
}

/* acc (rows, H) += p (rows, KEYS; row distance KEYS + 4) times b (KEYS rows of a tile). */
template <int KEYS, int RI, int CC>
__device__ __forceinline__ void ly_fma_accumulate(float (&acc)[RI][CC][4], const float *p, const float *b)
{
    const float *p_row = p + threadIdx.x / 16 * RI * (KEYS + 4), *b_col = b + threadIdx.x % 16 * 4;
#pragma unroll 1
    for (int k = 0; k < KEYS; k += 4) {
        ly_vec<float> x[RI];
#pragma unroll
        for (int i = 0; i < RI; i++) {
            x[i] = ly_load(p_row + i * (KEYS + 4) + k);
        }
#pragma unroll
        for (int kk = 0; kk < 4; kk++) {
#pragma unroll
            for (int n = 0; n < CC; n++) {
                ly_vec<float> y = ly_load(b_col + (k + kk) * ly_fma_row<CC>() + 64 * n);
#pragma unroll
                for (int i = 0; i < RI; i++) {
#pragma unroll
                    for (int e = 0; e < 4; e++) {
                        acc[i][n][e] = fmaf(x[i].x[kk], y.x[e], acc[i][n][e]);
                    }
                }
            }
        }
    }
}

/* Four numbers of T, stored at once. */
template <class T> struct alignas(4 * sizeof(T)) ly_fma_four {
    T x[4];
};

/* Writes acc, times a factor for each row, to rows first + RI ty + i. */
template <class T, int RI, int CC>
__device__ __forceinline__ void ly_fma_store(T *rows, int64_t stride, int first, const float (&acc)[RI][CC][4],
                                             const float (&factor)[RI], const ly_at_call &c)
{
#pragma unroll
    for (int i = 0; i < RI; i++) {
        int row = first + threadIdx.x / 16 * RI + i;
#pragma unroll
        for (int n = 0; n < CC; n++) {
            int col = 64 * n + threadIdx.x % 16 * 4;
            ly_fma_four<T> x;
#pragma unroll
            for (int e = 0; e < 4; e++) {
                x.x[e] = ly_from_f32<T>(acc[i][n][e] * factor[i]);
            }
            T *to = rows + row * stride + col;
            if (row < c.T && c.vectors && col < c.H) {
                *reinterpret_cast<ly_fma_four<T> *>(to) = x;
            } else if (row < c.T) {
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    if (col + e < c.H) {
                        to[e] = x.x[e];
                    }
                }
            }
        }
    }
}

#endif
