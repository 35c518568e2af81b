/* The backward's kernels on tensor cores (16-bit T). Included by attention_bwd_cuda.cu, which says what they compute.
 */
#ifndef LAYERS_CUDA_ATTENTION_BWD_MMA_CUH
#define LAYERS_CUDA_ATTENTION_BWD_MMA_CUH

#include "layers/cuda/attention_mma.cuh"

/* --- dQ --- */

template <int HP> struct dq_tile {
    enum {
        MT = HP > 32 && HP <= 96 ? 2 : 1, /* 32: sm_100's ptxas spills with 2 */
        WARPS = 4,
        THREADS = WARPS * LY_WARP,
        QUERIES = WARPS * 16 * MT,
        KEYS = HP <= 64 ? 64 : 32,
        STEP = 32, /* keys whose scores are in registers at once */
        NT = STEP / 8,
        CT = HP / 8,
        SHARED_ELEMS = (2 * QUERIES + 4 * KEYS) * (HP + 8),
    };
};

/* s holds scores and becomes dS; dp is dO V^T. Rows are queries. */
template <int MT, int NT>
__device__ __forceinline__ void dq_scores(float (&s)[MT][NT][4], const float (&dp)[MT][NT][4],
                                          const float (&top)[MT][2], const float (&delta)[MT][2],
                                          const uint32_t (&kept)[MT], const ly_at_call &c, int q0, int k0)
{
    int lane = ly_lane(), query = q0 + lane / 4, key = k0 + lane % 4 * 2;
    bool hidden = ly_at_some_hidden(q0, 16 * MT, k0, 8 * NT, c.window);
    float scale = c.scale * LY_LOG2_E;
#pragma unroll
    for (int m = 0; m < MT; m++) {
#pragma unroll
        for (int n = 0; n < NT; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                bool visible = !hidden || ly_at_visible(query + m * 16 + i / 2 * 8, key + n * 8 + i % 2, c.window);
                float unused;
                ly_at_bwd_element(ly_exp2(fmaf(s[m][n][i], scale, -top[m][i / 2])), dp[m][n][i], delta[m][i / 2],
                                  visible, kept[m] >> (4 * n + i) & 1u, c.keep_scale, unused, s[m][n][i]);
            }
        }
    }
}

/* Queries and their dO stay in shared memory; keys and values come in two buffers, the next while one is used. */
template <class T, int HP>
__global__ void __launch_bounds__(dq_tile<HP>::THREADS)
    bwd_dq_mma(T *dq, const T *q, const T *k, const T *v, const T *dout, const float *lse, const float *delta,
               ly_at_call c)
{
    typedef dq_tile<HP> tile;
    LY_SHARED_DYN(T, queries);
    T *douts = queries + tile::QUERIES * ly_at_row<HP>(), *pairs = douts + tile::QUERIES * ly_at_row<HP>();
    int n_blocks = (c.T + tile::QUERIES - 1) / tile::QUERIES, warp_row = threadIdx.x / LY_WARP * 16 * tile::MT;
    ly_at_place at = ly_at_place_of(c, c.r, n_blocks, true);
    int q0 = at.block * tile::QUERIES, q_warp = q0 + warp_row;
    int first = ly_at_first_key(q0, c.window, tile::KEYS), end = ly_at_end_key(q0, tile::QUERIES, c.T);
    const T *k_head = ly_at_head(k, c.k, c, at, 0), *v_head = ly_at_head(v, c.v, c, at, 0);
    ly_at_drop drop = ly_at_drop_of(c, at, at.j);

    ly_at_load<T, HP, tile::QUERIES, tile::THREADS>(queries, ly_at_head(q, c.q, c, at, at.j), c.q.row, q0, c);
    ly_at_load<T, HP, tile::QUERIES, tile::THREADS>(douts, ly_at_head(dout, c.dout, c, at, at.j), c.dout.row, q0, c);
    ly_at_load<T, HP, tile::KEYS, tile::THREADS>(pairs, k_head, c.k.row, first, c);
    ly_at_load<T, HP, tile::KEYS, tile::THREADS>(pairs + tile::KEYS * ly_at_row<HP>(), v_head, c.v.row, first, c);
    __pipeline_commit();
    float acc[tile::MT][tile::CT][4] = {}, top[tile::MT][2], sums[tile::MT][2], factor[tile::MT][2];
#pragma unroll
    for (int i = 0; i < 2 * tile::MT; i++) {
        int query = q_warp + i * 8 + ly_lane() / 4;
        int64_t row = ly_at_stats(c, at, at.j) + query;
        top[i / 2][i % 2] = query < c.T ? lse[row] * LY_LOG2_E : INFINITY; /* P of queries from T on is 0 */
        sums[i / 2][i % 2] = query < c.T ? delta[row] : 0.0f;
        factor[i / 2][i % 2] = c.scale;
    }
    for (int k0 = first, buffer = 0; k0 < end; k0 += tile::KEYS, buffer ^= 1) {
        T *keys = pairs + buffer * 2 * tile::KEYS * ly_at_row<HP>(), *values = keys + tile::KEYS * ly_at_row<HP>();
        __pipeline_wait_prior(0);
        __syncthreads(); /* this round's buffer is here, the other one is done with */
        if (k0 + tile::KEYS < end) {
            T *next = pairs + (buffer ^ 1) * 2 * tile::KEYS * ly_at_row<HP>();
            ly_at_load<T, HP, tile::KEYS, tile::THREADS>(next, k_head, c.k.row, k0 + tile::KEYS, c);
            ly_at_load<T, HP, tile::KEYS, tile::THREADS>(next + tile::KEYS * ly_at_row<HP>(), v_head, c.v.row,
                                                         k0 + tile::KEYS, c);
        }
        __pipeline_commit();
#pragma unroll 1
        for (int step = 0; step < tile::KEYS; step += tile::STEP) {
            if (!ly_at_any_visible(q_warp, 16 * tile::MT, k0 + step, tile::STEP, c.window)) {
                continue;
            }
            float s[tile::MT][tile::NT][4], dp[tile::MT][tile::NT][4];
            uint32_t kept[tile::MT];
            for (int m = 0; m < tile::MT; m++) {
                kept[m] = c.drops ? ly_at_kept_queries<tile::NT>(drop, q_warp + m * 16, k0 + step) : ~0u;
            }
            ly_at_scores<T, HP>(s, queries + warp_row * ly_at_row<HP>(), keys + step * ly_at_row<HP>());
            ly_at_scores<T, HP>(dp, douts + warp_row * ly_at_row<HP>(), values + step * ly_at_row<HP>());
            dq_scores(s, dp, top, sums, kept, c, q_warp, k0 + step);
            ly_at_accumulate<T, HP>(acc, s, keys + step * ly_at_row<HP>());
        }
    }
    ly_at_stage<T, HP>(queries + warp_row * ly_at_row<HP>(), acc, factor); /* only this warp reads these queries */
    __syncthreads();
    ly_at_store<T, HP, tile::QUERIES, tile::THREADS>(ly_at_head(dq, c.dq, c, at, at.j), c.dq.row, q0, queries, c);
}

/* --- dK and dV --- */

/* Rows of the scores are keys here. From H = 192 on the sums of 16 keys do not fit into one warp's registers: SPLIT = 2
 * warps compute the same scores and take half of the columns each (12 H FLOP instead of 8). */
template <int HP> struct dkv_tile {
    enum {
        MT = HP <= 64 ? 2 : 1,
        SPLIT = HP <= 128 ? 1 : 2,
        WARPS = 4 * SPLIT,
        THREADS = WARPS * LY_WARP,
        KEYS = WARPS / SPLIT * 16 * MT,
        QUERIES = HP <= 64 ? 64 : 32,
        STEP = HP == 64 ? 16 : 32, /* queries whose scores are in registers at once */
        NT = STEP / 8,
        CT = HP / 8 / SPLIT,
        PAIR_ELEMS = 2 * QUERIES * (HP + 8),
        SHARED_ELEMS = 2 * KEYS * (HP + 8) + 2 * PAIR_ELEMS,
        SHARED_FLOATS = 2 * 2 * QUERIES, /* lse and delta, in two buffers */
    };
};

/* s holds scores and becomes P, dp becomes dS. Rows are keys; `stats` has lse, then `count` further delta, of query q0
 * on. */
template <int MT, int NT>
__device__ __forceinline__ void dkv_scores(float (&s)[MT][NT][4], float (&dp)[MT][NT][4], const float *stats, int count,
                                           const uint32_t (&kept)[MT], const ly_at_call &c, int k0, int q0)
{
    int lane = ly_lane(), key = k0 + lane / 4, query = q0 + lane % 4 * 2;
    bool hidden = ly_at_some_hidden(q0, 8 * NT, k0, 16 * MT, c.window);
    float scale = c.scale * LY_LOG2_E;
#pragma unroll
    for (int n = 0; n < NT; n++) {
        const float *column = stats + n * 8 + lane % 4 * 2;
        float top[2] = {column[0] * LY_LOG2_E, column[1] * LY_LOG2_E};
        float delta[2] = {column[count], column[count + 1]};
#pragma unroll
        for (int m = 0; m < MT; m++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                bool visible = !hidden || ly_at_visible(query + n * 8 + i % 2, key + m * 16 + i / 2 * 8, c.window);
                float e = ly_exp2(fmaf(s[m][n][i], scale, -top[i % 2]));
                ly_at_bwd_element(e, dp[m][n][i], delta[i % 2], visible, kept[m] >> (4 * n + i) & 1u, c.keep_scale,
                                  s[m][n][i], dp[m][n][i]);
            }
        }
    }
}

/* Queues the copies of one block of queries: q and dO to `pair`, lse and delta to `stats`. All of them are zero from T
 * on, so that P there is 1, times dO = 0, and dS is 0. */
template <class T, int HP, int QUERIES, int THREADS>
__device__ __forceinline__ void dkv_load(T *pair, float *stats, const T *q, int64_t q_row, const T *dout,
                                         int64_t dout_row, const float *lse, const float *delta, int q0,
                                         const ly_at_call &c)
{
    ly_at_load<T, HP, QUERIES, THREADS>(pair, q, q_row, q0, c);
    ly_at_load<T, HP, QUERIES, THREADS>(pair + QUERIES * ly_at_row<HP>(), dout, dout_row, q0, c);
    static_assert(2 * QUERIES <= THREADS, "a thread for each statistic");
    if ((int)threadIdx.x < 2 * QUERIES) {
        int query = q0 + threadIdx.x % QUERIES;
        const float *from = threadIdx.x < QUERIES ? lse : delta;
        if (query < c.T) {
            __pipeline_memcpy_async(stats + threadIdx.x, from + query, 4);
        } else {
            stats[threadIdx.x] = 0.0f;
        }
    }
}

/* Keys and values stay in shared memory; the queries of head after head come in two buffers. */
template <class T, int HP>
__global__ void __launch_bounds__(dkv_tile<HP>::THREADS)
    bwd_dkv_mma(T *dk, T *dv, const T *q, const T *k, const T *v, const T *dout, const float *lse, const float *delta,
                ly_at_call c)
{
    typedef dkv_tile<HP> tile;
    LY_SHARED_DYN(T, keys);
    T *values = keys + tile::KEYS * ly_at_row<HP>(), *pairs = values + tile::KEYS * ly_at_row<HP>();
    float *stats = reinterpret_cast<float *>(keys + tile::SHARED_ELEMS);
    int n_blocks = (c.T + tile::KEYS - 1) / tile::KEYS, warp = threadIdx.x / LY_WARP;
    int warp_row = warp / tile::SPLIT * 16 * tile::MT, warp_col = warp % tile::SPLIT * (HP / tile::SPLIT);
    ly_at_place at = ly_at_place_of(c, 1, n_blocks, false);
    int k0 = at.block * tile::KEYS, k_warp = k0 + warp_row;
    int first = ly_at_first_query(k0, tile::QUERIES), end = ly_at_end_query(k0, tile::KEYS, c.window, c.T);
    const T *q_head = ly_at_head(q, c.q, c, at, 0), *dout_head = ly_at_head(dout, c.dout, c, at, 0);
    const float *lse_head = lse + ly_at_stats(c, at, 0), *delta_head = delta + ly_at_stats(c, at, 0);

    ly_at_load<T, HP, tile::KEYS, tile::THREADS>(keys, ly_at_head(k, c.k, c, at, 0), c.k.row, k0, c);
    ly_at_load<T, HP, tile::KEYS, tile::THREADS>(values, ly_at_head(v, c.v, c, at, 0), c.v.row, k0, c);
    dkv_load<T, HP, tile::QUERIES, tile::THREADS>(pairs, stats, q_head, c.q.row, dout_head, c.dout.row, lse_head,
                                                  delta_head, first, c);
    __pipeline_commit();
    float dk_acc[tile::MT][tile::CT][4] = {}, dv_acc[tile::MT][tile::CT][4] = {};
    int j = 0, q0 = first, buffer = 0;
    while (j < c.r) {
        int next_j = q0 + tile::QUERIES < end ? j : j + 1, next_q0 = next_j == j ? q0 + tile::QUERIES : first;
        const T *queries = pairs + buffer * tile::PAIR_ELEMS, *douts = queries + tile::QUERIES * ly_at_row<HP>();
        __pipeline_wait_prior(0);
        __syncthreads(); /* this round's buffer is here, the other one is done with */
        if (next_j < c.r) {
            dkv_load<T, HP, tile::QUERIES, tile::THREADS>(
                pairs + (buffer ^ 1) * tile::PAIR_ELEMS, stats + (buffer ^ 1) * 2 * tile::QUERIES,
                q_head + next_j * c.q.head, c.q.row, dout_head + next_j * c.dout.head, c.dout.row,
                lse_head + (int64_t)next_j * c.T, delta_head + (int64_t)next_j * c.T, next_q0, c);
        }
        __pipeline_commit();
#pragma unroll 1
        for (int step = 0; step < tile::QUERIES; step += tile::STEP) {
            if (!ly_at_any_visible(q0 + step, tile::STEP, k_warp, 16 * tile::MT, c.window)) {
                continue;
            }
            float s[tile::MT][tile::NT][4], dp[tile::MT][tile::NT][4];
            uint32_t kept[tile::MT];
            for (int m = 0; m < tile::MT; m++) {
                kept[m] =
                    c.drops ? ly_at_kept_keys<tile::NT>(ly_at_drop_of(c, at, j), k_warp + m * 16, q0 + step) : ~0u;
            }
            const T *q_step = queries + step * ly_at_row<HP>(), *dout_step = douts + step * ly_at_row<HP>();
            ly_at_scores<T, HP>(s, keys + warp_row * ly_at_row<HP>(), q_step);
            ly_at_scores<T, HP>(dp, values + warp_row * ly_at_row<HP>(), dout_step);
            dkv_scores(s, dp, stats + buffer * 2 * tile::QUERIES + step, tile::QUERIES, kept, c, k_warp, q0 + step);
            ly_at_accumulate<T, HP>(dv_acc, s, dout_step + warp_col);
            ly_at_accumulate<T, HP>(dk_acc, dp, q_step + warp_col);
        }
        j = next_j;
        q0 = next_q0;
        buffer ^= 1;
    }
    float scale[tile::MT][2], one[tile::MT][2];
#pragma unroll
    for (int m = 0; m < tile::MT; m++) {
        scale[m][0] = scale[m][1] = c.scale;
        one[m][0] = one[m][1] = 1.0f;
    }
    __syncthreads(); /* keys and values are done with by both warps of a pair */
    ly_at_stage<T, HP>(keys + warp_row * ly_at_row<HP>() + warp_col, dk_acc, scale);
    ly_at_stage<T, HP>(values + warp_row * ly_at_row<HP>() + warp_col, dv_acc, one);
    __syncthreads();
    ly_at_store<T, HP, tile::KEYS, tile::THREADS>(ly_at_head(dk, c.dk, c, at, 0), c.dk.row, k0, keys, c);
    ly_at_store<T, HP, tile::KEYS, tile::THREADS>(ly_at_head(dv, c.dv, c, at, 0), c.dv.row, k0, values, c);
}

#endif
