/* The backward's kernels in f32 arithmetic (any T and H). Included by attention_bwd_cuda.cu, which says what they
 * compute. */
#ifndef LAYERS_CUDA_ATTENTION_BWD_FMA_CUH
#define LAYERS_CUDA_ATTENTION_BWD_FMA_CUH

#include "layers/cuda/attention_fma.cuh"

/* --- dQ --- */

template <int CC> struct dq_fma_tile {
    enum {
        RI = CC <= 2 ? 4 : 2,
        RJ = 2,
        QUERIES = 16 * RI,
        KEYS = 16 * RJ,
        SHARED_FLOATS = 2 * (QUERIES + KEYS) * ly_fma_row<CC>() + QUERIES * (KEYS + 4),
    };
};

template <class T, int CC>
__global__ void __launch_bounds__(LY_FMA_THREADS, CC == 1 ? 2 : 1)
    bwd_dq_fma(T *dq, const T *q, const T *k, const T *v, const T *dout, const float *lse, const float *delta,
               ly_at_call c)
{
    typedef dq_fma_tile<CC> tile;
    LY_SHARED_DYN(float, queries);
    float *douts = queries + tile::QUERIES * ly_fma_row<CC>(), *keys = douts + tile::QUERIES * ly_fma_row<CC>();
    float *values = keys + tile::KEYS * ly_fma_row<CC>(), *grads = values + tile::KEYS * ly_fma_row<CC>();
    int n_blocks = (c.T + tile::QUERIES - 1) / tile::QUERIES, row = threadIdx.x / 16 * tile::RI, tx = threadIdx.x % 16;
    ly_at_place at = ly_at_place_of(c, c.r, n_blocks, true);
    int q0 = at.block * tile::QUERIES;
    int first = ly_at_first_key(q0, c.window, tile::KEYS), end = ly_at_end_key(q0, tile::QUERIES, c.T);
    ly_at_drop drop = ly_at_drop_of(c, at, at.j);
    float acc[tile::RI][CC][4] = {}, top[tile::RI], sums[tile::RI], factor[tile::RI];
#pragma unroll
    for (int i = 0; i < tile::RI; i++) {
        int query = q0 + row + i;
        int64_t stat = ly_at_stats(c, at, at.j) + query;
        top[i] = query < c.T ? lse[stat] * LY_LOG2_E : INFINITY; /* P of queries from T on is 0 */
        sums[i] = query < c.T ? delta[stat] : 0.0f;
        factor[i] = c.scale;
    }
    ly_fma_load<T, CC, tile::QUERIES>(queries, ly_at_head(q, c.q, c, at, at.j), c.q.row, q0, c);
    ly_fma_load<T, CC, tile::QUERIES>(douts, ly_at_head(dout, c.dout, c, at, at.j), c.dout.row, q0, c);
    for (int k0 = first; k0 < end; k0 += tile::KEYS) {
        float s[tile::RI][tile::RJ], dp[tile::RI][tile::RJ];
        __syncthreads(); /* the last round is done with keys and values */
        ly_fma_load<T, CC, tile::KEYS>(keys, ly_at_head(k, c.k, c, at, 0), c.k.row, k0, c);
        ly_fma_load<T, CC, tile::KEYS>(values, ly_at_head(v, c.v, c, at, 0), c.v.row, k0, c);
        __syncthreads();
        uint32_t kept = c.drops ? ly_fma_kept<tile::RI, tile::RJ, false>(drop, q0, k0) : ~0u;
        ly_fma_scores<CC>(s, queries, keys, c.H);
        ly_fma_scores<CC>(dp, douts, values, c.H);
#pragma unroll
        for (int i = 0; i < tile::RI; i++) {
#pragma unroll
            for (int j = 0; j < tile::RJ; j++) {
                bool visible = ly_at_visible(q0 + row + i, k0 + tx + 16 * j, c.window);
                float unused;
                ly_at_bwd_element(exp2f(s[i][j] * (c.scale * LY_LOG2_E) - top[i]), dp[i][j], sums[i], visible,
                                  kept >> (i * tile::RJ + j) & 1u, c.keep_scale, unused,
                                  grads[(row + i) * (tile::KEYS + 4) + tx + 16 * j]);
            }
        }
        __syncwarp(); /* 16 lanes of one warp write and read the same rows of dS */
        ly_fma_accumulate<tile::KEYS>(acc, grads, keys);
    }
    ly_fma_store(ly_at_head(dq, c.dq, c, at, at.j), c.dq.row, q0, acc, factor, c);
}

/* --- dK and dV --- */

template <int CC> struct dkv_fma_tile {
    enum {
        RI = CC <= 2 ? 4 : 2,
        RJ = 2,
        KEYS = 16 * RI,
        QUERIES = 16 * RJ,
        SHARED_FLOATS = 2 * (KEYS + QUERIES) * ly_fma_row<CC>() + 2 * KEYS * (QUERIES + 4),
    };
};

template <class T, int CC>
__global__ void __launch_bounds__(LY_FMA_THREADS, CC == 1 ? 2 : 1)
    bwd_dkv_fma(T *dk, T *dv, const T *q, const T *k, const T *v, const T *dout, const float *lse, const float *delta,
                ly_at_call c)
{
    typedef dkv_fma_tile<CC> tile;
    LY_SHARED_DYN(float, keys);
    float *values = keys + tile::KEYS * ly_fma_row<CC>(), *queries = values + tile::KEYS * ly_fma_row<CC>();
    float *douts = queries + tile::QUERIES * ly_fma_row<CC>(), *probs = douts + tile::QUERIES * ly_fma_row<CC>();
    float *grads = probs + tile::KEYS * (tile::QUERIES + 4);
    int n_blocks = (c.T + tile::KEYS - 1) / tile::KEYS, row = threadIdx.x / 16 * tile::RI, tx = threadIdx.x % 16;
    ly_at_place at = ly_at_place_of(c, 1, n_blocks, false);
    int k0 = at.block * tile::KEYS;
    int first = ly_at_first_query(k0, tile::QUERIES), end = ly_at_end_query(k0, tile::KEYS, c.window, c.T);
    float dk_acc[tile::RI][CC][4] = {}, dv_acc[tile::RI][CC][4] = {};
    ly_fma_load<T, CC, tile::KEYS>(keys, ly_at_head(k, c.k, c, at, 0), c.k.row, k0, c);
    ly_fma_load<T, CC, tile::KEYS>(values, ly_at_head(v, c.v, c, at, 0), c.v.row, k0, c);
    for (int j = 0, q0 = first; j < c.r; q0 + tile::QUERIES < end ? q0 += tile::QUERIES : (q0 = first, j++)) {
        float s[tile::RI][tile::RJ], dp[tile::RI][tile::RJ], top[tile::RJ], sums[tile::RJ];
#pragma unroll
        for (int n = 0; n < tile::RJ; n++) {
            int query = q0 + tx + 16 * n;
            int64_t stat = ly_at_stats(c, at, j) + query;
            top[n] = query < c.T ? lse[stat] * LY_LOG2_E : INFINITY;
            sums[n] = query < c.T ? delta[stat] : 0.0f;
        }
        __syncthreads(); /* the last round is done with queries and dO */
        ly_fma_load<T, CC, tile::QUERIES>(queries, ly_at_head(q, c.q, c, at, j), c.q.row, q0, c);
        ly_fma_load<T, CC, tile::QUERIES>(douts, ly_at_head(dout, c.dout, c, at, j), c.dout.row, q0, c);
        __syncthreads();
        uint32_t kept = c.drops ? ly_fma_kept<tile::RI, tile::RJ, true>(ly_at_drop_of(c, at, j), k0, q0) : ~0u;
        ly_fma_scores<CC>(s, keys, queries, c.H);
        ly_fma_scores<CC>(dp, values, douts, c.H);
#pragma unroll
        for (int i = 0; i < tile::RI; i++) {
#pragma unroll
            for (int n = 0; n < tile::RJ; n++) {
                int place = (row + i) * (tile::QUERIES + 4) + tx + 16 * n;
                bool visible = ly_at_visible(q0 + tx + 16 * n, k0 + row + i, c.window);
                ly_at_bwd_element(exp2f(s[i][n] * (c.scale * LY_LOG2_E) - top[n]), dp[i][n], sums[n], visible,
                                  kept >> (i * tile::RJ + n) & 1u, c.keep_scale, probs[place], grads[place]);
            }
        }
        __syncwarp(); /* 16 lanes of one warp write and read the same rows of P and dS */
        ly_fma_accumulate<tile::QUERIES>(dv_acc, probs, douts);
        ly_fma_accumulate<tile::QUERIES>(dk_acc, grads, queries);
    }
    float scale[tile::RI], one[tile::RI];
#pragma unroll
    for (int i = 0; i < tile::RI; i++) {
        scale[i] = c.scale;
        one[i] = 1.0f;
    }
    ly_fma_store(ly_at_head(dk, c.dk, c, at, 0), c.dk.row, k0, dk_acc, scale, c);
    ly_fma_store(ly_at_head(dv, c.dv, c, at, 0), c.dv.row, k0, dv_acc, one, c);
}

#endif
