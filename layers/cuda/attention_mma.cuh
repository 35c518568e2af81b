/* Attention on tensor cores: tiles of 16-bit rows in shared memory, the two kinds of product over them, dropout in the
 * layout of the sums (layers/cuda/mma.cuh).
 *
 * A tile holds rows of H columns, padded with zeros to HP = a multiple of 16, at a distance of HP + 8 elements: an odd
 * number of 16-byte units, so that the 8 rows that one ldmatrix reads lie in different banks. */
#ifndef LAYERS_CUDA_ATTENTION_MMA_CUH
#define LAYERS_CUDA_ATTENTION_MMA_CUH

#include <cuda_pipeline_primitives.h>

#include "layers/cuda/attention.cuh"
#include "layers/cuda/mma.cuh"

/* Head sizes that have a kernel of their own; others are padded to the next. */
#define LY_AT_HEAD_SIZES(X) X(32) X(64) X(80) X(96) X(128) X(192) X(256)

/* Elements from one row of a tile to the next. */
template <int HP> __host__ __device__ constexpr int ly_at_row()
{
    return HP + 8;
}

/* Queues copies of rows [first, first + ROWS) to a tile; rows from T on and columns from H on become zero. Needs
 * 16-byte aligned rows. Every thread of the block calls it; the rows are there after commit, wait and a barrier. */
template <class T, int HP, int ROWS, int THREADS>
__device__ __forceinline__ void ly_at_load(T *tile, const T *rows, int64_t stride, int first, const ly_at_call &c)
{
    enum { VECTORS = HP / 8 };
#pragma unroll 2
    for (int i = 0; i < ROWS * VECTORS; i += THREADS) {
        int at = i + threadIdx.x, row = at / VECTORS, col = at % VECTORS * 8;
        if ((ROWS * VECTORS) % THREADS != 0 && at >= ROWS * VECTORS) {
            break;
        }
        T *to = tile + row * ly_at_row<HP>() + col;
        if (first + row < c.T && col < c.H) {
            __pipeline_memcpy_async(to, rows + (first + row) * stride + col, 16);
        } else {
            ly_store(to, ly_vec<T>{});
        }
    }
}

/* The reverse, without the padding. */
template <class T, int HP, int ROWS, int THREADS>
__device__ __forceinline__ void ly_at_store(T *rows, int64_t stride, int first, const T *tile, const ly_at_call &c)
{
    enum { VECTORS = HP / 8 };
    for (int at = threadIdx.x; at < ROWS * VECTORS; at += THREADS) {
        int row = at / VECTORS, col = at % VECTORS * 8;
        if (first + row < c.T && col < c.H) {
            ly_store(rows + (first + row) * stride + col, ly_load(tile + row * ly_at_row<HP>() + col));
        }
    }
}

/* c (16 MT, 8 NT) = A (16 MT rows of a tile) B^T (8 NT rows of a tile), over HP columns. */
template <class T, int HP, int MT, int NT>
__device__ __forceinline__ void ly_at_scores(float (&c)[MT][NT][4], const T *a, const T *b)
{
    int lane = ly_lane(), row = ly_at_row<HP>();
    const T *a_row = a + lane % 16 * row + lane / 16 * 8;
    const T *b_row = b + (lane / 16 * 8 + lane % 8) * row + lane / 8 % 2 * 8;
#pragma unroll
    for (int m = 0; m < MT; m++) {
#pragma unroll
        for (int n = 0; n < NT; n++) {
            c[m][n][0] = c[m][n][1] = c[m][n][2] = c[m][n][3] = 0.0f;
        }
    }
#pragma unroll
    for (int k = 0; k < HP; k += 16) {
        uint32_t x[MT][4];
#pragma unroll
        for (int m = 0; m < MT; m++) {
            ly_ldmatrix(x[m], a_row + m * 16 * row + k);
        }
#pragma unroll
        for (int n = 0; n < NT; n += 2) {
            uint32_t y[4];
            ly_ldmatrix(y, b_row + n * 8 * row + k);
#pragma unroll
            for (int m = 0; m < MT; m++) {
                ly_mma<T>(c[m][n], x[m], y[0], y[1]);
                ly_mma<T>(c[m][n + 1], x[m], y[2], y[3]);
            }
        }
    }
}

/* o (16 MT, 8 CT) += p (16 MT, 8 NT), rounded to T, times 8 NT rows of a tile, 8 CT columns of them from b on. */
template <class T, int HP, int MT, int NT, int CT>
__device__ __forceinline__ void ly_at_accumulate(float (&o)[MT][CT][4], const float (&p)[MT][NT][4], const T *b)
{
    int lane = ly_lane(), row = ly_at_row<HP>();
    const T *b_row = b + lane % 16 * row + lane / 16 * 8;
#pragma unroll
    for (int k = 0; k < NT; k += 2) {
        uint32_t x[MT][4];
#pragma unroll
        for (int m = 0; m < MT; m++) {
            x[m][0] = ly_pack2<T>(p[m][k][0], p[m][k][1]);
            x[m][1] = ly_pack2<T>(p[m][k][2], p[m][k][3]);
            x[m][2] = ly_pack2<T>(p[m][k + 1][0], p[m][k + 1][1]);
            x[m][3] = ly_pack2<T>(p[m][k + 1][2], p[m][k + 1][3]);
        }
#pragma unroll
        for (int n = 0; n < CT; n += 2) {
            uint32_t y[4];
            ly_ldmatrix_transposed(y, b_row + k * 8 * row + n * 8);
#pragma unroll
            for (int m = 0; m < MT; m++) {
                ly_mma<T>(o[m][n], x[m], y[0], y[1]);
                ly_mma<T>(o[m][n + 1], x[m], y[2], y[3]);
            }
        }
    }
}

/* Rounds o times a factor for each row (factor[m][0]: row lane / 4; [1]: that + 8) to T, into 16 MT rows of a tile. */
template <class T, int HP, int MT, int CT>
__device__ __forceinline__ void ly_at_stage(T *tile, const float (&o)[MT][CT][4], const float (&factor)[MT][2])
{
    int lane = ly_lane();
#pragma unroll
    for (int m = 0; m < MT; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            T *to = tile + (m * 16 + half * 8 + lane / 4) * ly_at_row<HP>() + lane % 4 * 2;
#pragma unroll
            for (int n = 0; n < CT; n++) {
                float low = o[m][n][2 * half] * factor[m][half], high = o[m][n][2 * half + 1] * factor[m][half];
                *reinterpret_cast<uint32_t *>(to + n * 8) = ly_pack2<T>(low, high);
            }
        }
    }
}

/* Which of 16 queries x 8 NT keys are kept: bit 4 n + i is this lane's c[n][i]. k0 is a multiple of 8. The loop stays
 * a loop: its Philox rounds are many instructions, and unrolled they would hold registers that the products need. */
template <int NT> __device__ __forceinline__ uint32_t ly_at_kept_queries(const ly_at_drop &d, int q0, int k0)
{
    int lane = ly_lane(), g = lane / 4, t = lane % 4;
    uint32_t kept = 0;
#pragma unroll 1
    for (int n = 0; n < NT; n++) {
        uint32_t bits = 0;
        if (d.T % 4 == 0) { /* even lanes make the words of query g, odd ones those of g + 8; then they swap halves */
            uint32_t mine = ly_at_kept4(d, q0 + g + t % 2 * 8, k0 + n * 8 + t / 2 * 4);
            uint32_t other = __shfl_xor_sync(0xffffffffu, mine, 1);
            uint32_t low = t % 2 ? other : mine, high = t % 2 ? mine : other;
            bits = (low >> t % 2 * 2 & 3u) | (high >> t % 2 * 2 & 3u) << 2;
        } else {
#pragma unroll 1
            for (int i = 0; i < 4; i++) {
                bits |= (uint32_t)ly_at_kept(d, q0 + g + i / 2 * 8, k0 + n * 8 + 2 * t + i % 2) << i;
            }
        }
        kept |= bits << 4 * n;
    }
    return kept;
}

/* The same for 16 keys x 8 NT queries. */
template <int NT> __device__ __forceinline__ uint32_t ly_at_kept_keys(const ly_at_drop &d, int k0, int q0)
{
    int lane = ly_lane(), g = lane / 4, t = lane % 4;
    uint32_t kept = 0;
#pragma unroll 1
    for (int n = 0; n < NT; n++) {
        uint32_t bits = 0;
        if (d.T % 4 == 0) { /* lane l makes the words of query l % 8, keys 4 (l / 8)..+3 */
            uint32_t mine = ly_at_kept4(d, q0 + n * 8 + lane % 8, k0 + lane / 8 * 4);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int from = (g / 4 + i / 2 * 2) * 8 + 2 * t + i % 2;
                bits |= (__shfl_sync(0xffffffffu, mine, from) >> g % 4 & 1u) << i;
            }
        } else {
#pragma unroll 1
            for (int i = 0; i < 4; i++) {
                bits |= (uint32_t)ly_at_kept(d, q0 + n * 8 + 2 * t + i % 2, k0 + g + i / 2 * 8) << i;
            }
        }
        kept |= bits << 4 * n;
    }
    return kept;
}

#endif
