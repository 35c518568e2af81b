/* Attention forward on the GPU: a block of threads owns a block of queries of one head and walks the keys that they
 * see, with the running maximum and sum of each query (online softmax).
 *
 *   work      4 H FLOP for each visible (query, key); tiles that no query of a warp sees are skipped
 *   memory    q, out and lse move once; k and v once for each block of queries of the r heads, mostly from the L2 cache
 *   results   in a fixed order: the same bits whatever the order of threads and blocks */
#include "layers/cuda/attention_fma.cuh"
#include "layers/cuda/attention_mma.cuh"
#include "layers/cuda/kernels.h"

/* --- tensor cores, 16-bit T --- */

/* A warp owns 16 MT queries. Twice 16 halve the reads of keys and values from shared memory (one 16x16 piece feeds 4
 * products instead of 2); from H = 192 on the sums of 32 queries do not fit into registers. */
template <int HP> struct fwd_tile {
    enum {
        MT = HP <= 128 ? 2 : 1,
        WARPS = HP <= 128 ? 4 : 8,
        THREADS = WARPS * LY_WARP,
        QUERIES = WARPS * 16 * MT,
        KEYS = HP == 128 ? 32 : 64,
        NT = KEYS / 8,
        CT = HP / 8,
        SHARED_ELEMS = (QUERIES + 2 * KEYS) * (HP + 8),
    };
};

/* What a lane holds of its warp's queries: rows 16 m + lane / 4 in [m][0], those + 8 in [m][1]. */
template <int MT, int CT> struct fwd_rows {
    float out[MT][CT][4]; /* not yet divided by the sum */
    float top[MT][2];     /* maximum of the scores, not scaled */
    float sum[MT][2];     /* this lane's share */
};

template <int MT, int CT> __device__ __forceinline__ void fwd_start(fwd_rows<MT, CT> &w)
{
#pragma unroll
    for (int m = 0; m < MT; m++) {
        w.top[m][0] = w.top[m][1] = LY_AT_NO_SCORE;
        w.sum[m][0] = w.sum[m][1] = 0.0f;
#pragma unroll
        for (int n = 0; n < CT; n++) {
            w.out[m][n][0] = w.out[m][n][1] = w.out[m][n][2] = w.out[m][n][3] = 0.0f;
        }
    }
}

/* Scores that a query does not see become -infinity. */
template <int MT, int NT> __device__ __forceinline__ void fwd_hide(float (&s)[MT][NT][4], int q0, int k0, int window)
{
    int lane = ly_lane(), query = q0 + lane / 4, key = k0 + lane % 4 * 2;
#pragma unroll
    for (int m = 0; m < MT; m++) {
#pragma unroll
        for (int n = 0; n < NT; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                bool visible = ly_at_visible(query + m * 16 + i / 2 * 8, key + n * 8 + i % 2, window);
                s[m][n][i] = visible ? s[m][n][i] : -INFINITY;
            }
        }
    }
}

/* Row `half` of s[m]: scores become exponentials; top, sum and out follow. scale: of scores, times log2(e). */
template <int NT, int CT>
__device__ __forceinline__ void fwd_softmax_row(float (&s)[NT][4], int half, float scale, float &top, float &sum,
                                                float (&out)[CT][4])
{
    float old = top;
#pragma unroll
    for (int n = 0; n < NT; n++) {
        top = fmaxf(top, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
    }
    top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
    top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
    float fade = ly_exp2((old - top) * scale), top_scaled = top * scale;
    sum *= fade;
#pragma unroll
    for (int n = 0; n < CT; n++) {
        out[n][2 * half] *= fade;
        out[n][2 * half + 1] *= fade;
    }
#pragma unroll
    for (int n = 0; n < NT; n++) {
#pragma unroll
        for (int i = 2 * half; i < 2 * half + 2; i++) {
            s[n][i] = ly_exp2(fmaf(s[n][i], scale, -top_scaled));
            sum += s[n][i];
        }
    }
}

/* Bit 4 n + i of kept[m] says whether s[m][n][i] stays. */
template <int MT, int NT> __device__ __forceinline__ void fwd_drop(float (&s)[MT][NT][4], const uint32_t (&kept)[MT])
{
#pragma unroll
    for (int m = 0; m < MT; m++) {
#pragma unroll
        for (int n = 0; n < NT; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                s[m][n][i] = kept[m] >> (4 * n + i) & 1u ? s[m][n][i] : 0.0f;
            }
        }
    }
}

/* Softmax over one more block of scores of the warp's queries from q0 on. */
template <int MT, int NT, int CT>
__device__ __forceinline__ void fwd_softmax(float (&s)[MT][NT][4], fwd_rows<MT, CT> &w, const ly_at_call &c, int q0,
                                            int k0, const uint32_t (&kept)[MT])
{
    if (ly_at_some_hidden(q0, 16 * MT, k0, 8 * NT, c.window)) {
        fwd_hide(s, q0, k0, c.window);
    }
#pragma unroll
    for (int m = 0; m < MT; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            fwd_softmax_row(s[m], half, c.scale * LY_LOG2_E, w.top[m][half], w.sum[m][half], w.out[m]);
        }
    }
    if (c.drops) {
        fwd_drop(s, kept);
    }
}

/* Writes lse, leaves in `factor` what out is to be multiplied by. Queries from T on are not written. */
template <int MT, int CT>
__device__ __forceinline__ void fwd_finish(const fwd_rows<MT, CT> &w, const ly_at_call &c, int q0, float *lse,
                                           float (&factor)[MT][2])
{
    int lane = ly_lane();
#pragma unroll
    for (int m = 0; m < MT; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float sum = w.sum[m][half];
            sum += __shfl_xor_sync(0xffffffffu, sum, 1);
            sum += __shfl_xor_sync(0xffffffffu, sum, 2);
            factor[m][half] = c.keep_scale / sum;
            int query = q0 + m * 16 + half * 8 + lane / 4;
            if (query < c.T && lane % 4 == 0) {
                lse[query] = w.top[m][half] * c.scale + logf(sum);
            }
        }
    }
}

/* Keys and values have one tile each: the next values arrive while scores are computed, the next keys while values are
 * used. */
template <class T, int HP>
__global__ void __launch_bounds__(fwd_tile<HP>::THREADS)
    fwd_mma(T *out, float *lse, const T *q, const T *k, const T *v, ly_at_call c)
{
    typedef fwd_tile<HP> tile;
    LY_SHARED_DYN(T, queries);
    T *keys = queries + tile::QUERIES * ly_at_row<HP>(), *values = keys + tile::KEYS * ly_at_row<HP>();
    int n_blocks = (c.T + tile::QUERIES - 1) / tile::QUERIES, warp = threadIdx.x / LY_WARP;
    ly_at_place at = ly_at_place_of(c, c.r, n_blocks, true);
    int q0 = at.block * tile::QUERIES, q_warp = q0 + warp * 16 * tile::MT;
    int first = ly_at_first_key(q0, c.window, tile::KEYS), end = ly_at_end_key(q0, tile::QUERIES, c.T);
    const T *k_head = ly_at_head(k, c.k, c, at, 0), *v_head = ly_at_head(v, c.v, c, at, 0);
    T *mine = queries + warp * 16 * tile::MT * ly_at_row<HP>();
    ly_at_drop drop = ly_at_drop_of(c, at, at.j);

    ly_at_load<T, HP, tile::QUERIES, tile::THREADS>(queries, ly_at_head(q, c.q, c, at, at.j), c.q.row, q0, c);
    ly_at_load<T, HP, tile::KEYS, tile::THREADS>(keys, k_head, c.k.row, first, c);
    __pipeline_commit();
    fwd_rows<tile::MT, tile::CT> w;
    fwd_start(w);
    for (int k0 = first; k0 < end; k0 += tile::KEYS) {
        bool seen = ly_at_any_visible(q_warp, 16 * tile::MT, k0, tile::KEYS, c.window);
        uint32_t kept[tile::MT] = {};
        float s[tile::MT][tile::NT][4];
        __pipeline_wait_prior(0);
        __syncthreads(); /* the keys are here, the values of the last round are done with */
        ly_at_load<T, HP, tile::KEYS, tile::THREADS>(values, v_head, c.v.row, k0, c);
        __pipeline_commit();
        if (seen) {
            for (int m = 0; m < tile::MT && c.drops; m++) {
                kept[m] = ly_at_kept_queries<tile::NT>(drop, q_warp + m * 16, k0);
            }
            ly_at_scores<T, HP>(s, mine, keys);
        }
        __pipeline_wait_prior(0);
        __syncthreads(); /* the values are here, the keys are done with */
        if (k0 + tile::KEYS < end) {
            ly_at_load<T, HP, tile::KEYS, tile::THREADS>(keys, k_head, c.k.row, k0 + tile::KEYS, c);
        }
        __pipeline_commit();
        if (seen) {
            fwd_softmax(s, w, c, q_warp, k0, kept);
            ly_at_accumulate<T, HP>(w.out, s, values);
        }
    }
    float factor[tile::MT][2];
    fwd_finish(w, c, q_warp, lse + ly_at_stats(c, at, at.j), factor);
    ly_at_stage<T, HP>(mine, w.out, factor); /* only this warp reads these queries */
    __syncthreads();
    ly_at_store<T, HP, tile::QUERIES, tile::THREADS>(ly_at_head(out, c.out, c, at, at.j), c.out.row, q0, queries, c);
}

/* --- f32 arithmetic, any T and H --- */

template <int CC> struct fwd_fma_tile {
    enum {
        RI = 4,
        RJ = CC == 1 ? 4 : 2,
        QUERIES = 16 * RI,
        KEYS = 16 * RJ,
        SHARED_FLOATS = (QUERIES + 2 * KEYS) * ly_fma_row<CC>() + QUERIES * (KEYS + 4),
    };
};

/* A row of s: scores become exponentials in `probs` (a row of the tile of probabilities), or 0 where bit j of `kept` is
 * not set; top, sum and out follow. */
template <int RJ, int CC>
__device__ __forceinline__ void fwd_fma_softmax_row(float (&s)[RJ], float *probs, int query, int k0,
                                                    const ly_at_call &c, uint32_t kept, float &top, float &sum,
                                                    float (&out)[CC][4])
{
    int tx = threadIdx.x % 16;
    float old = top;
#pragma unroll
    for (int j = 0; j < RJ; j++) {
        s[j] = ly_at_visible(query, k0 + tx + 16 * j, c.window) ? s[j] * (c.scale * LY_LOG2_E) : -INFINITY;
        top = fmaxf(top, s[j]);
    }
    for (int step = 8; step > 0; step /= 2) {
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, step));
    }
    float fade = exp2f(old - top);
    sum *= fade;
#pragma unroll
    for (int n = 0; n < CC; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            out[n][i] *= fade;
        }
    }
#pragma unroll
    for (int j = 0; j < RJ; j++) {
        float e = exp2f(s[j] - top);
        sum += e;
        probs[tx + 16 * j] = kept >> j & 1u ? e : 0.0f;
    }
}

template <class T, int CC>
__global__ void __launch_bounds__(LY_FMA_THREADS, CC <= 2 ? 2 : 1)
    fwd_fma(T *out, float *lse, const T *q, const T *k, const T *v, ly_at_call c)
{
    typedef fwd_fma_tile<CC> tile;
    LY_SHARED_DYN(float, queries);
    float *keys = queries + tile::QUERIES * ly_fma_row<CC>(), *values = keys + tile::KEYS * ly_fma_row<CC>();
    float *probs = values + tile::KEYS * ly_fma_row<CC>();
    int n_blocks = (c.T + tile::QUERIES - 1) / tile::QUERIES, row = threadIdx.x / 16 * tile::RI;
    ly_at_place at = ly_at_place_of(c, c.r, n_blocks, true);
    int q0 = at.block * tile::QUERIES;
    int first = ly_at_first_key(q0, c.window, tile::KEYS), end = ly_at_end_key(q0, tile::QUERIES, c.T);
    const T *k_head = ly_at_head(k, c.k, c, at, 0), *v_head = ly_at_head(v, c.v, c, at, 0);
    ly_at_drop drop = ly_at_drop_of(c, at, at.j);
    float acc[tile::RI][CC][4] = {}, top[tile::RI], sum[tile::RI];
#pragma unroll
    for (int i = 0; i < tile::RI; i++) {
        top[i] = LY_AT_NO_SCORE;
        sum[i] = 0.0f;
    }
    ly_fma_load<T, CC, tile::QUERIES>(queries, ly_at_head(q, c.q, c, at, at.j), c.q.row, q0, c);
    for (int k0 = first; k0 < end; k0 += tile::KEYS) {
        float s[tile::RI][tile::RJ];
        __syncthreads(); /* the last round is done with keys and values */
        ly_fma_load<T, CC, tile::KEYS>(keys, k_head, c.k.row, k0, c);
        ly_fma_load<T, CC, tile::KEYS>(values, v_head, c.v.row, k0, c);
        __syncthreads();
        uint32_t kept = c.drops ? ly_fma_kept<tile::RI, tile::RJ, false>(drop, q0, k0) : ~0u;
        ly_fma_scores<CC>(s, queries, keys, c.H);
#pragma unroll
        for (int i = 0; i < tile::RI; i++) {
            fwd_fma_softmax_row(s[i], probs + (row + i) * (tile::KEYS + 4), q0 + row + i, k0, c, kept >> i * tile::RJ,
                                top[i], sum[i], acc[i]);
        }
        __syncwarp(); /* 16 lanes of one warp write and read the same rows of probabilities */
        ly_fma_accumulate<tile::KEYS>(acc, probs, values);
    }
    float *stats = lse + ly_at_stats(c, at, at.j);
    float factor[tile::RI];
#pragma unroll
    for (int i = 0; i < tile::RI; i++) {
        for (int step = 8; step > 0; step /= 2) {
            sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], step);
        }
        factor[i] = c.keep_scale / sum[i];
        if (q0 + row + i < c.T && threadIdx.x % 16 == 0) {
            stats[q0 + row + i] = top[i] * LY_LN_2 + logf(sum[i]);
        }
    }
    ly_fma_store(ly_at_head(out, c.out, c, at, at.j), c.out.row, q0, acc, factor, c);
}

/* --- launchers --- */

template <class T, int HP> static int fwd_launch_mma(const ly_ctx *cx, const ly_attention_fwd *a, const ly_at_call &c)
{
    typedef fwd_tile<HP> tile;
    constexpr int shared = tile::SHARED_ELEMS * (int)sizeof(T);
    static_assert(shared <= LY_AT_SHARED_BYTES, "the tiles of a block do not fit");
    int error = (int)cudaFuncSetAttribute(fwd_mma<T, HP>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
    if (error != 0) {
        return error;
    }
    LY_LAUNCH((fwd_mma<T, HP>), ly_at_grid(c, (int64_t)c.G * c.r, tile::QUERIES), (int)tile::THREADS, shared,
              (cudaStream_t)cx->stream.handle, (T *)a->out.data, (float *)a->lse.data, (const T *)a->q.data,
              (const T *)a->k.data, (const T *)a->v.data, c);
    return ly_launched();
}

template <class T, int CC> static int fwd_launch_fma(const ly_ctx *cx, const ly_attention_fwd *a, const ly_at_call &c)
{
    typedef fwd_fma_tile<CC> tile;
    constexpr int shared = tile::SHARED_FLOATS * (int)sizeof(float);
    static_assert(shared <= LY_AT_SHARED_BYTES, "the tiles of a block do not fit");
    int error = (int)cudaFuncSetAttribute(fwd_fma<T, CC>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
    if (error != 0) {
        return error;
    }
    LY_LAUNCH((fwd_fma<T, CC>), ly_at_grid(c, (int64_t)c.G * c.r, tile::QUERIES), (int)LY_FMA_THREADS, shared,
              (cudaStream_t)cx->stream.handle, (T *)a->out.data, (float *)a->lse.data, (const T *)a->q.data,
              (const T *)a->k.data, (const T *)a->v.data, c);
    return ly_launched();
}

template <class T> static int fwd_launch(const ly_ctx *cx, const ly_attention_fwd *a)
{
    ly_at_call c = ly_at_call_of(a);
    if constexpr (sizeof(T) == 2) {
#define LY_I_SIZE(HP)                           \
    if (c.vectors && c.H <= HP) {               \
        return fwd_launch_mma<T, HP>(cx, a, c); \
    }
        LY_AT_HEAD_SIZES(LY_I_SIZE)
#undef LY_I_SIZE
    }
    switch ((c.H + 63) / 64) {
    case 1:
        return fwd_launch_fma<T, 1>(cx, a, c);
    case 2:
        return fwd_launch_fma<T, 2>(cx, a, c);
    case 3:
        return fwd_launch_fma<T, 3>(cx, a, c);
    default:
        return fwd_launch_fma<T, 4>(cx, a, c);
    }
}

extern "C" int ly_k_attention_fwd(const ly_ctx *cx, const ly_attention_fwd *a)
{
    switch (a->q.dtype) {
    case MC_BF16:
        return fwd_launch<__nv_bfloat16>(cx, a);
    case MC_F16:
        return fwd_launch<__half>(cx, a);
    default:
        MC_ASSERT(a->q.dtype == MC_F32);
        return fwd_launch<float>(cx, a);
    }
}
