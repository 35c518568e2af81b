/* Attention backward on the GPU, from the forward's log-sum-exp:
 *
 *   P = exp(scale Q K^T - lse)   dP = dO V^T   dS = P (mask dP / (1 - p) - delta)      delta = sum of dO * out
 *   dV = (P mask / (1 - p))^T dO   dK = scale dS^T Q   dQ = scale dS K
 *
 * Three launches: delta; dK and dV by blocks of keys, each of which walks the queries of its group's r heads in order;
 * dQ by blocks of queries. Each gradient has one writer, which adds in a fixed order: no atomics, the same bits in
 * every run. The price is that scores and dP are computed twice.
 *
 *   work      14 H FLOP for each visible (query, key), 8 in dK and dV, 6 in dQ; hidden tiles are skipped
 *   memory    dK, dV: k, v, dk, dv once, q and dout once for each block of keys; dQ: q, dout, dq once, k and v once for
 *             each block of queries; what is read again comes mostly from the L2 cache */
#include "layers/cuda/attention_fma.cuh"
#include "layers/cuda/attention_mma.cuh"
#include "layers/cuda/kernels.h"

/* --- delta --- */

/* 8 lanes for each row: delta[row] = sum of out * dout. Moves 2 H elements a row once. */
enum { DELTA_LANES = 8, DELTA_THREADS = 256, DELTA_ROWS = DELTA_THREADS / DELTA_LANES };

template <class T>
__global__ void __launch_bounds__(DELTA_THREADS)
    bwd_delta(float *delta, const T *out, const T *dout, ly_at_call c, ly_at_strides dout_strides)
{
    enum { N = ly_vec<T>::N };
    int n_blocks = (c.T + DELTA_ROWS - 1) / DELTA_ROWS, lane = threadIdx.x % DELTA_LANES;
    ly_at_place at = ly_at_place_of(c, c.r, n_blocks, false);
    int t = at.block * DELTA_ROWS + threadIdx.x / DELTA_LANES;
    float sum = 0.0f;
    if (t < c.T) {
        const T *x = ly_at_head(out, c.out, c, at, at.j) + t * c.out.row;
        const T *y = ly_at_head(dout, dout_strides, c, at, at.j) + t * dout_strides.row;
        if (c.vectors) {
            for (int col = lane * N; col < c.H; col += DELTA_LANES * N) {
                ly_vec<T> u = ly_load(x + col), v = ly_load(y + col);
#pragma unroll
                for (int i = 0; i < N; i++) {
                    sum = fmaf(ly_to_f32(u.x[i]), ly_to_f32(v.x[i]), sum);
                }
            }
        } else {
            for (int col = lane; col < c.H; col += DELTA_LANES) {
                sum = fmaf(ly_to_f32(x[col]), ly_to_f32(y[col]), sum);
            }
        }
    }
    for (int step = DELTA_LANES / 2; step > 0; step /= 2) {
        sum += __shfl_xor_sync(0xffffffffu, sum, step);
    }
    if (t < c.T && lane == 0) {
        delta[ly_at_stats(c, at, at.j) + t] = sum;
    }
}

/* --- both kinds of kernel --- */

/* From a score and dP of one element: P as dV wants it and dS (without scale). score: times log2(e); `top`: lse times
 * log2(e). */
template <bool EXACT>
__device__ __forceinline__ void bwd_element(float score, float dp, float top, float delta, bool visible, bool kept,
                                            float keep_scale, float &p_out, float &ds_out)
{
    float e = EXACT ? exp2f(score - top) : ly_exp2(score - top);
    e = visible ? e : 0.0f;
    p_out = kept ? e * keep_scale : 0.0f;
    ds_out = e * ((kept ? dp * keep_scale : 0.0f) - delta);
}

/* --- dQ on tensor cores --- */

template <int HP> struct dq_tile {
    enum {
        MT = HP <= 96 ? 2 : 1,
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
                bwd_element<false>(s[m][n][i] * scale, dp[m][n][i], top[m][i / 2], delta[m][i / 2], visible,
                                   kept[m] >> (4 * n + i) & 1u, c.keep_scale, unused, s[m][n][i]);
            }
        }
    }
}

/* Queries and their dO stay in shared memory; keys and values come in two buffers, the next while one is used. */
template <class T, int HP>
__global__ void __launch_bounds__(dq_tile<HP>::THREADS)
    bwd_dq_mma(T *dq, const T *q, const T *k, const T *v, const T *dout, const float *lse, const float *delta,
               ly_at_call c, ly_at_strides dout_strides)
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
    ly_at_load<T, HP, tile::QUERIES, tile::THREADS>(douts, ly_at_head(dout, dout_strides, c, at, at.j),
                                                    dout_strides.row, q0, c);
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

/* --- dK and dV on tensor cores --- */

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
        STEP = 32, /* queries whose scores are in registers at once */
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
                float score = s[m][n][i] * scale;
                bwd_element<false>(score, dp[m][n][i], top[i % 2], delta[i % 2], visible, kept[m] >> (4 * n + i) & 1u,
                                   c.keep_scale, s[m][n][i], dp[m][n][i]);
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
                ly_at_call c, ly_at_strides dout_strides)
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
    const T *q_head = ly_at_head(q, c.q, c, at, 0), *dout_head = ly_at_head(dout, dout_strides, c, at, 0);
    const float *lse_head = lse + ly_at_stats(c, at, 0), *delta_head = delta + ly_at_stats(c, at, 0);

    ly_at_load<T, HP, tile::KEYS, tile::THREADS>(keys, ly_at_head(k, c.k, c, at, 0), c.k.row, k0, c);
    ly_at_load<T, HP, tile::KEYS, tile::THREADS>(values, ly_at_head(v, c.v, c, at, 0), c.v.row, k0, c);
    dkv_load<T, HP, tile::QUERIES, tile::THREADS>(pairs, stats, q_head, c.q.row, dout_head, dout_strides.row, lse_head,
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
                q_head + next_j * c.q.head, c.q.row, dout_head + next_j * dout_strides.head, dout_strides.row,
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

/* --- f32 arithmetic, any T and H --- */

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
               ly_at_call c, ly_at_strides dout_strides)
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
    ly_fma_load<T, CC, tile::QUERIES>(douts, ly_at_head(dout, dout_strides, c, at, at.j), dout_strides.row, q0, c);
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
                bwd_element<true>(s[i][j] * (c.scale * LY_LOG2_E), dp[i][j], top[i], sums[i], visible,
                                  kept >> (i * tile::RJ + j) & 1u, c.keep_scale, unused,
                                  grads[(row + i) * (tile::KEYS + 4) + tx + 16 * j]);
            }
        }
        __syncwarp(); /* 16 lanes of one warp write and read the same rows of dS */
        ly_fma_accumulate<tile::KEYS>(acc, grads, keys);
    }
    ly_fma_store(ly_at_head(dq, c.dq, c, at, at.j), c.dq.row, q0, acc, factor, c);
}

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
                ly_at_call c, ly_at_strides dout_strides)
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
        ly_fma_load<T, CC, tile::QUERIES>(douts, ly_at_head(dout, dout_strides, c, at, j), dout_strides.row, q0, c);
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
                bwd_element<true>(s[i][n] * (c.scale * LY_LOG2_E), dp[i][n], top[n], sums[n], visible,
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

/* --- launchers --- */

/* Both kernels of one kind; `dkv_shared`, `dq_shared` in bytes. */
#define LY_I_LAUNCH_BOTH(dkv_kernel, dkv_rows, dkv_threads, dkv_shared, dq_kernel, dq_rows, dq_threads, dq_shared) \
    do {                                                                                                           \
        cudaStream_t stream = (cudaStream_t)cx->stream.handle;                                                     \
        const T *q = (const T *)a->q.data, *k = (const T *)a->k.data, *v = (const T *)a->v.data;                   \
        const T *dout = (const T *)a->dout.data;                                                                   \
        const float *lse = (const float *)a->lse.data, *delta = (const float *)a->delta.data;                      \
        const cudaFuncAttribute limit = cudaFuncAttributeMaxDynamicSharedMemorySize;                               \
        int error = (int)cudaFuncSetAttribute(dkv_kernel, limit, dkv_shared);                                      \
        error = error != 0 ? error : (int)cudaFuncSetAttribute(dq_kernel, limit, dq_shared);                       \
        if (error != 0) {                                                                                          \
            return error;                                                                                          \
        }                                                                                                          \
        LY_LAUNCH(dkv_kernel, ly_at_grid(c, c.G, dkv_rows), dkv_threads, dkv_shared, stream, (T *)a->dk.data,      \
                  (T *)a->dv.data, q, k, v, dout, lse, delta, c, ds);                                              \
        error = ly_launched();                                                                                     \
        if (error != 0) {                                                                                          \
            return error;                                                                                          \
        }                                                                                                          \
        LY_LAUNCH(dq_kernel, ly_at_grid(c, (int64_t)c.G *c.r, dq_rows), dq_threads, dq_shared, stream,             \
                  (T *)a->dq.data, q, k, v, dout, lse, delta, c, ds);                                              \
        return ly_launched();                                                                                      \
    } while (0)

template <class T, int HP>
static int bwd_launch_mma(const ly_ctx *cx, const ly_attention_bwd *a, const ly_at_call &c, const ly_at_strides &ds)
{
    typedef dkv_tile<HP> kv;
    typedef dq_tile<HP> q_;
    LY_I_LAUNCH_BOTH((bwd_dkv_mma<T, HP>), kv::KEYS, (int)kv::THREADS,
                     (int)(kv::SHARED_ELEMS * sizeof(T) + kv::SHARED_FLOATS * sizeof(float)), (bwd_dq_mma<T, HP>),
                     q_::QUERIES, (int)q_::THREADS, (int)(q_::SHARED_ELEMS * sizeof(T)));
}

template <class T, int CC>
static int bwd_launch_fma(const ly_ctx *cx, const ly_attention_bwd *a, const ly_at_call &c, const ly_at_strides &ds)
{
    typedef dkv_fma_tile<CC> kv;
    typedef dq_fma_tile<CC> q_;
    LY_I_LAUNCH_BOTH((bwd_dkv_fma<T, CC>), kv::KEYS, (int)LY_FMA_THREADS, (int)(kv::SHARED_FLOATS * sizeof(float)),
                     (bwd_dq_fma<T, CC>), q_::QUERIES, (int)LY_FMA_THREADS, (int)(q_::SHARED_FLOATS * sizeof(float)));
}

template <class T> static int bwd_launch(const ly_ctx *cx, const ly_attention_bwd *a)
{
    ly_at_call c = ly_at_call_of(a);
    ly_at_check_view(a->dout, a->q, a->q.dims[2]);
    ly_at_check_view(a->dq, a->q, a->q.dims[2]);
    ly_at_check_view(a->dk, a->q, 1);
    ly_at_check_view(a->dv, a->q, 1);
    ly_at_check_rows(a->delta, a->q);
    c.dq = ly_at_strides_of(a->dq);
    c.dk = ly_at_strides_of(a->dk);
    c.dv = ly_at_strides_of(a->dv);
    c.vectors =
        c.vectors && ly_at_vectors(a->dout) && ly_at_vectors(a->dq) && ly_at_vectors(a->dk) && ly_at_vectors(a->dv);
    ly_at_strides ds = ly_at_strides_of(a->dout);
    LY_LAUNCH((bwd_delta<T>), ly_at_grid(c, (int64_t)c.G * c.r, DELTA_ROWS), (int)DELTA_THREADS, 0,
              (cudaStream_t)cx->stream.handle, (float *)a->delta.data, (const T *)a->out.data, (const T *)a->dout.data,
              c, ds);
    int error = ly_launched();
    if (error != 0) {
        return error;
    }
    if constexpr (sizeof(T) == 2) {
#define LY_I_SIZE(HP)                               \
    if (c.vectors && c.H <= HP) {                   \
        return bwd_launch_mma<T, HP>(cx, a, c, ds); \
    }
        LY_AT_HEAD_SIZES(LY_I_SIZE)
#undef LY_I_SIZE
    }
    switch ((c.H + 63) / 64) {
    case 1:
        return bwd_launch_fma<T, 1>(cx, a, c, ds);
    case 2:
        return bwd_launch_fma<T, 2>(cx, a, c, ds);
    case 3:
        return bwd_launch_fma<T, 3>(cx, a, c, ds);
    default:
        return bwd_launch_fma<T, 4>(cx, a, c, ds);
    }
}

extern "C" int ly_k_attention_bwd(const ly_ctx *cx, const ly_attention_bwd *a)
{
    switch (a->q.dtype) {
    case MC_BF16:
        return bwd_launch<__nv_bfloat16>(cx, a);
    case MC_F16:
        return bwd_launch<__half>(cx, a);
    default:
        MC_ASSERT(a->q.dtype == MC_F32);
        return bwd_launch<float>(cx, a);
    }
}
