/* Geometry of attention on the GPU: views, blocks of the score matrix, what is visible, what dropout keeps. Shared by
 * the forward and the backward, by the tensor-core kernels (attention_mma.cuh) and the f32 ones (attention_fma.cuh). */
#ifndef LAYERS_CUDA_ATTENTION_CUH
#define LAYERS_CUDA_ATTENTION_CUH

#include "layers/attention.h"
#include "layers/cuda/kernel.cuh"
#include "layers/cuda/kernels.h"
#include "megac/base/rng.h"
#include "megac/base/status.h"

#define LY_LOG2_E 1.44269504088896340736f
#define LY_LN_2 0.69314718055994530942f

/* Below any score, and finite, so that differences are never NaN: the maximum of a query that has seen no key. */
#define LY_AT_NO_SCORE (-1e30f)

/* Shared memory that one block may have on every GPU from sm_80 on. */
enum { LY_AT_SHARED_BYTES = 163 << 10 };

/* Strides in elements of a view (R, G, r, H); the last is 1. */
struct ly_at_strides {
    int64_t row, group, head;
};

/* One call, as the kernels get it: scalars only. */
struct ly_at_call {
    int T, G, r, H;
    int samples;
    int window; /* keys further back are not seen; T: no limit */
    float scale;
    ly_at_strides q, k, v, out;
    ly_at_strides dout, dq, dk, dv; /* backward */
    bool vectors;                   /* all rows may be accessed by 16 bytes */
    bool drops;                     /* dropout is on; the rest is its */
    float keep_scale;               /* 1 / (1 - p); 1 without dropout */
    uint32_t seed, stream, threshold;
    uint64_t sample0, head0;
};

/* --- host --- */

static inline ly_at_strides ly_at_strides_of(mc_tensor t)
{
    return {t.strides[0], t.strides[1], t.strides[2]};
}

/* Shapes are ours to get right: like = (R, G, r, H) with one key head. */
static inline void ly_at_check_view(mc_tensor t, mc_tensor q, int64_t heads)
{
    MC_ASSERT(t.dtype == q.dtype && t.n_dims == 4 && t.strides[3] == 1 && mc_tensor_present(t));
    MC_ASSERT(t.dims[0] == q.dims[0] && t.dims[1] == q.dims[1] && t.dims[2] == heads && t.dims[3] == q.dims[3]);
}

static inline void ly_at_check_rows(mc_tensor t, mc_tensor q)
{
    MC_ASSERT(t.dtype == MC_F32 && mc_tensor_contiguous(t));
    MC_ASSERT(mc_tensor_elems(t) == q.dims[0] * q.dims[1] * q.dims[2]);
}

/* Whether rows of a view may be accessed 16 bytes at a time. */
static inline bool ly_at_vectors(mc_tensor t)
{
    int64_t n = (int64_t)(16 / mc_dtype_bytes(t.dtype));
    return (uintptr_t)t.data % 16 == 0 && t.strides[0] % n == 0 && t.strides[1] % n == 0 && t.strides[2] % n == 0 &&
           t.dims[3] % n == 0;
}

/* The fields that forward and backward have in common (a is a ly_attention_fwd or ly_attention_bwd). */
template <class A> static inline ly_at_call ly_at_call_of(const A *a)
{
    int64_t T = a->seq_len, R = a->q.dims[0];
    MC_ASSERT(T > 0 && T < 1 << 30 && R % T == 0 && R / T < 1 << 30);
    MC_ASSERT(a->q.dims[3] >= 1 && a->q.dims[3] <= LY_CUDA_MAX_HEAD && a->scale > 0.0f);
    MC_ASSERT(!(a->dropout.p > 0.0f) || a->dropout.p < 1.0f);
    ly_at_check_view(a->q, a->q, a->q.dims[2]);
    ly_at_check_view(a->k, a->q, 1);
    ly_at_check_view(a->v, a->q, 1);
    ly_at_check_view(a->out, a->q, a->q.dims[2]);
    ly_at_check_rows(a->lse, a->q);
    ly_at_call c = {};
    c.T = (int)T;
    c.G = (int)a->q.dims[1];
    c.r = (int)a->q.dims[2];
    c.H = (int)a->q.dims[3];
    c.samples = (int)(R / T);
    c.window = (int)(a->window_left < 0 || a->window_left > T ? T : a->window_left);
    c.scale = a->scale;
    c.q = ly_at_strides_of(a->q);
    c.k = ly_at_strides_of(a->k);
    c.v = ly_at_strides_of(a->v);
    c.out = ly_at_strides_of(a->out);
    c.vectors = ly_at_vectors(a->q) && ly_at_vectors(a->k) && ly_at_vectors(a->v) && ly_at_vectors(a->out);
    c.drops = a->dropout.p > 0.0f;
    c.keep_scale = c.drops ? 1.0f / (1.0f - a->dropout.p) : 1.0f;
    if (c.drops) {
        c.seed = a->dropout.seed;
        c.stream = a->dropout.stream;
        c.threshold = mc_rng_threshold(a->dropout.p);
        c.sample0 = a->dropout.sample0;
        c.head0 = (uint64_t)a->head0;
    }
    return c;
}

/* Blocks of a launch: one for each `rows` of every (sample, head). */
static inline unsigned ly_at_grid(const ly_at_call &c, int64_t heads, int rows)
{
    int64_t blocks = c.samples * heads * ((c.T + rows - 1) / rows);
    MC_ASSERT(blocks > 0 && blocks <= 0x7fffffff);
    return (unsigned)blocks;
}

/* --- device --- */

/* What a block of threads works on. The blocks of one head follow each other, so that those which run at the same time
 * read the same keys and values from the second-level cache. */
struct ly_at_place {
    int sample, g, j; /* j: query head of the group; 0 where a block does them all */
    int block;        /* of the rows */
};

/* `n_blocks` blocks for each of `heads_in_group` x G heads; last: the last block of a head comes first. */
__device__ __forceinline__ ly_at_place ly_at_place_of(const ly_at_call &c, int heads_in_group, int n_blocks, bool last)
{
    int head = blockIdx.x / n_blocks, block = blockIdx.x % n_blocks, heads = c.G * heads_in_group;
    return {head / heads, head % heads / heads_in_group, head % heads_in_group, last ? n_blocks - 1 - block : block};
}

/* Row 0 of one head of one sample. */
template <class P>
__device__ __forceinline__ P *ly_at_head(P *data, const ly_at_strides &s, const ly_at_call &c, const ly_at_place &at,
                                         int j)
{
    return data + at.sample * (int64_t)c.T * s.row + at.g * s.group + j * s.head;
}

/* Where row 0 of a head is in (B, G * r, T). */
__device__ __forceinline__ int64_t ly_at_stats(const ly_at_call &c, const ly_at_place &at, int j)
{
    return (((int64_t)at.sample * c.G + at.g) * c.r + j) * c.T;
}

__device__ __forceinline__ bool ly_at_visible(int query, int key, int window)
{
    return (unsigned)(query - key) <= (unsigned)window;
}
/* Whether any, or not all, of n_q queries from q0 see any of n_k keys from k0. */
__device__ __forceinline__ bool ly_at_any_visible(int q0, int n_q, int k0, int n_k, int window)
{
    return k0 <= q0 + n_q - 1 && k0 + n_k - 1 >= q0 - window;
}
__device__ __forceinline__ bool ly_at_some_hidden(int q0, int n_q, int k0, int n_k, int window)
{
    return k0 + n_k - 1 > q0 || k0 < q0 + n_q - 1 - window;
}
/* The keys that queries [q0, q0 + n_q) see are [first, end), first a multiple of `step`. */
__device__ __forceinline__ int ly_at_first_key(int q0, int window, int step)
{
    return max(q0 - window, 0) / step * step;
}
__device__ __forceinline__ int ly_at_end_key(int q0, int n_q, int T)
{
    return min(q0 + n_q, T);
}
/* The queries that see keys [k0, k0 + n_k) are [first, end), first a multiple of `step`. */
__device__ __forceinline__ int ly_at_first_query(int k0, int step)
{
    return k0 / step * step;
}
__device__ __forceinline__ int ly_at_end_query(int k0, int n_k, int window, int T)
{
    return window >= T - k0 - n_k ? T : k0 + n_k + window;
}

/* The dropout words of one head: element (q, k) has index first + q T + k. */
struct ly_at_drop {
    uint32_t seed, stream, threshold;
    uint64_t sample, first;
    int T;
};

__device__ __forceinline__ ly_at_drop ly_at_drop_of(const ly_at_call &c, const ly_at_place &at, int j)
{
    uint64_t head = c.head0 + (uint64_t)(at.g * c.r + j);
    return {c.seed, c.stream, c.threshold, c.sample0 + (uint64_t)at.sample, head * (uint64_t)c.T * (uint64_t)c.T, c.T};
}

/* Bit i: element (query, key + i) is kept. T and key are multiples of 4, so that the four share one Philox block. */
__device__ __forceinline__ uint32_t ly_at_kept4(const ly_at_drop &d, int query, int key)
{
    uint64_t element = d.first + (uint64_t)query * (uint64_t)d.T + (uint64_t)key;
    mc_rng_block b = mc_rng_bits(d.seed, d.stream, d.sample, element / 4);
    return (b.w[0] >= d.threshold ? 1u : 0u) | (b.w[1] >= d.threshold ? 2u : 0u) | (b.w[2] >= d.threshold ? 4u : 0u) |
           (b.w[3] >= d.threshold ? 8u : 0u);
}

/* Whether element (query, key) is kept, for any T. */
__device__ __forceinline__ bool ly_at_kept(const ly_at_drop &d, int query, int key)
{
    uint64_t element = d.first + (uint64_t)query * (uint64_t)d.T + (uint64_t)key;
    mc_rng_block b = mc_rng_bits(d.seed, d.stream, d.sample, element / 4);
    uint32_t low = element % 2 ? b.w[1] : b.w[0], high = element % 2 ? b.w[3] : b.w[2];
    return (element % 4 < 2 ? low : high) >= d.threshold;
}

/* --- backward: one element --- */

/* From exp(score - lse) and dP: P as dV wants it, and dS without the factor `scale`. */
__device__ __forceinline__ void ly_at_bwd_element(float exponential, float dp, float delta, bool visible, bool kept,
                                                  float keep_scale, float &p_out, float &ds_out)
{
    float e = visible ? exponential : 0.0f;
    p_out = kept ? e * keep_scale : 0.0f;
    ds_out = e * ((kept ? dp * keep_scale : 0.0f) - delta);
}

#endif
