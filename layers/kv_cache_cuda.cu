/* The cache of keys and values on the GPU.
 *
 *   work      4 H FLOP for each visible (query, key)
 *   memory    the visible keys and values once for each of the r query heads of a group: from the second-level cache
 *             but for the first; that is what bounds a step of generation besides the weights
 *   results   in a fixed order: the same bits whatever the order of threads and blocks */
#include "layers/cuda/attention.cuh"
#include "layers/cuda/tensors.cuh"
#include "layers/kv_cache.h"

/* --- kv_store --- */

enum { STORE_THREADS = 128 };

struct kv_shape {
    int G, r, H, P;
};

/* Row 0 of a group of the sequence at a place, in elements. */
__device__ __forceinline__ int64_t kv_sequence(const kv_shape &c, int place, int g)
{
    return ((int64_t)(place / c.P) * c.G + g) * c.P * c.H;
}

/* A block copies the key and the value of one group of one row. */
template <class T>
__global__ void __launch_bounds__(STORE_THREADS)
    kv_store_kernel(T *k_cache, T *v_cache, const T *k, const T *v, const int32_t *places, ly_at_strides ks,
                    ly_at_strides vs, kv_shape c)
{
    int row = blockIdx.x / c.G, g = blockIdx.x % c.G, place = places[row];
    int64_t to = kv_sequence(c, place, g) + (int64_t)(place % c.P) * c.H;
    for (int h = threadIdx.x; h < c.H; h += STORE_THREADS) {
        k_cache[to + h] = k[row * ks.row + g * ks.group + h];
        v_cache[to + h] = v[row * vs.row + g * vs.group + h];
    }
}

/* x (R, G, n, H). */
static kv_shape kv_check(mc_tensor x, mc_tensor places, mc_tensor k_cache, mc_tensor v_cache)
{
    MC_ASSERT(x.n_dims == 4 && x.strides[3] == 1 && ly_is_contiguous_1d(places, x.dims[0]));
    MC_ASSERT(k_cache.n_dims == 4 && mc_tensor_contiguous(k_cache) && mc_tensor_contiguous(v_cache));
    MC_ASSERT(mc_tensor_same_shape(k_cache, v_cache) && k_cache.dims[1] == x.dims[1] && k_cache.dims[3] == x.dims[3]);
    MC_ASSERT(x.dims[0] * x.dims[1] * x.dims[2] <= INT32_MAX && k_cache.dims[2] < 1 << 30);
    return {(int)x.dims[1], (int)x.dims[2], (int)x.dims[3], (int)k_cache.dims[2]};
}

template <class T> static int store_launch(const ly_ctx *cx, const ly_kv_store *a, const kv_shape &c)
{
    LY_LAUNCH(kv_store_kernel<T>, (unsigned)(a->k.dims[0] * c.G), (int)STORE_THREADS, 0, ly_stream(cx),
              ly_data<T>(a->k_cache), ly_data<T>(a->v_cache), ly_data<T>(a->k), ly_data<T>(a->v),
              ly_data<int32_t>(a->places), ly_at_strides_of(a->k), ly_at_strides_of(a->v), c);
    return ly_launched();
}

extern "C" int ly_k_kv_store(const ly_ctx *cx, const ly_kv_store *a)
{
    kv_shape c = kv_check(a->k, a->places, a->k_cache, a->v_cache);
    MC_ASSERT(c.r == 1 && mc_tensor_same_shape(a->k, a->v) && a->v.strides[3] == 1);
    return mc_tensor_elems(a->k) == 0 ? 0 : LY_BY_TYPE(a->k.dtype, store_launch, cx, a, c);
}

/* --- attention_decode --- */

/* A block owns one query; its warps take AT_ONCE keys in turn, each with its own running maximum and sum, and are put
 * together at the end. A lane holds every 32nd element of the head. */
enum { DECODE_WARPS = 4, DECODE_THREADS = DECODE_WARPS * LY_WARP, AT_ONCE = 4 };

/* What a warp has seen; n lanes hold out. */
template <int N> struct decode_part {
    float out[N]; /* not yet divided by the sum */
    float top, sum;
};

/* Keys [k0, end) of at most AT_ONCE. k, v: row 0 of the sequence's group. x: the query times scale * log2(e). */
template <class T, int N>
__device__ __forceinline__ void decode_keys(decode_part<N> &w, const float (&x)[N], const T *k, const T *v, int k0,
                                            int end, int H)
{
    int lane = threadIdx.x % LY_WARP;
    float s[AT_ONCE], old = w.top;
#pragma unroll
    for (int u = 0; u < AT_ONCE; u++) {
        s[u] = 0.0f;
#pragma unroll
        for (int i = 0; i < N; i++) {
            int h = lane + i * LY_WARP;
            s[u] = k0 + u < end && h < H ? fmaf(x[i], ly_to_f32(k[(int64_t)(k0 + u) * H + h]), s[u]) : s[u];
        }
    }
#pragma unroll
    for (int u = 0; u < AT_ONCE; u++) {
        s[u] = ly_warp_sum(s[u]);
        s[u] = k0 + u < end ? s[u] : -INFINITY;
        w.top = fmaxf(w.top, s[u]);
    }
    float fade = exp2f(old - w.top);
    w.sum *= fade;
#pragma unroll
    for (int i = 0; i < N; i++) {
        w.out[i] *= fade;
    }
#pragma unroll
    for (int u = 0; u < AT_ONCE; u++) {
        float e = exp2f(s[u] - w.top);
        w.sum += e;
#pragma unroll
        for (int i = 0; i < N; i++) {
            int h = lane + i * LY_WARP;
            w.out[i] = k0 + u < end && h < H ? fmaf(e, ly_to_f32(v[(int64_t)(k0 + u) * H + h]), w.out[i]) : w.out[i];
        }
    }
}

template <class T, int N>
__global__ void __launch_bounds__(DECODE_THREADS, 4)
    attention_decode_kernel(T *out, const T *q, const T *k_cache, const T *v_cache, const int32_t *places,
                            ly_at_strides qs, ly_at_strides os, kv_shape c, float scale, int window)
{
    __shared__ float outs[DECODE_WARPS][N * LY_WARP], tops[DECODE_WARPS], sums[DECODE_WARPS];
    int lane = threadIdx.x % LY_WARP, warp = threadIdx.x / LY_WARP;
    int head = blockIdx.x % (c.G * c.r), g = head / c.r, j = head % c.r;
    int row = blockIdx.x / (c.G * c.r), place = places[row];
    int last = place % c.P, first = last > window ? last - window : 0;
    int64_t at = kv_sequence(c, place, g);
    const T *query = q + row * qs.row + g * qs.group + j * qs.head;
    float x[N];
    decode_part<N> w;
    w.top = LY_AT_NO_SCORE;
    w.sum = 0.0f;
#pragma unroll
    for (int i = 0; i < N; i++) {
        int h = lane + i * LY_WARP;
        x[i] = h < c.H ? ly_to_f32(query[h]) * (scale * LY_LOG2_E) : 0.0f;
        w.out[i] = 0.0f;
    }
    for (int k0 = first + warp * AT_ONCE; k0 <= last; k0 += DECODE_WARPS * AT_ONCE) {
        decode_keys(w, x, k_cache + at, v_cache + at, k0, last + 1, c.H);
    }
#pragma unroll
    for (int i = 0; i < N; i++) {
        outs[warp][lane + i * LY_WARP] = w.out[i];
    }
    if (lane == 0) {
        tops[warp] = w.top;
        sums[warp] = w.sum;
    }
    __syncthreads();
    float top = tops[0], sum = 0.0f;
    for (int i = 1; i < DECODE_WARPS; i++) {
        top = fmaxf(top, tops[i]);
    }
    for (int i = 0; i < DECODE_WARPS; i++) {
        sum += sums[i] * exp2f(tops[i] - top);
    }
    float inverse = 1.0f / sum;
    for (int h = threadIdx.x; h < c.H; h += DECODE_THREADS) {
        float total = 0.0f;
        for (int i = 0; i < DECODE_WARPS; i++) {
            total += outs[i][h] * exp2f(tops[i] - top);
        }
        out[row * os.row + g * os.group + j * os.head + h] = ly_from_f32<T>(total * inverse);
    }
}

template <class T, int N> static int decode_queue(const ly_ctx *cx, const ly_attention_decode *a, const kv_shape &c)
{
    int window = (int)(a->window_left < 0 || a->window_left > c.P ? c.P : a->window_left);
    LY_LAUNCH((attention_decode_kernel<T, N>), (unsigned)(a->q.dims[0] * c.G * c.r), (int)DECODE_THREADS, 0,
              ly_stream(cx), ly_data<T>(a->out), ly_data<T>(a->q), ly_data<T>(a->k_cache), ly_data<T>(a->v_cache),
              ly_data<int32_t>(a->places), ly_at_strides_of(a->q), ly_at_strides_of(a->out), c, a->scale, window);
    return ly_launched();
}

template <class T> static int decode_launch(const ly_ctx *cx, const ly_attention_decode *a, const kv_shape &c)
{
    switch ((c.H + LY_WARP - 1) / LY_WARP) {
    case 1:
        return decode_queue<T, 1>(cx, a, c);
    case 2:
        return decode_queue<T, 2>(cx, a, c);
    case 3:
    case 4:
        return decode_queue<T, 4>(cx, a, c);
    default:
        return decode_queue<T, LY_CUDA_MAX_HEAD / LY_WARP>(cx, a, c);
    }
}

extern "C" int ly_k_attention_decode(const ly_ctx *cx, const ly_attention_decode *a)
{
    kv_shape c = kv_check(a->q, a->places, a->k_cache, a->v_cache);
    MC_ASSERT(c.H <= LY_CUDA_MAX_HEAD && a->scale > 0.0f);
    MC_ASSERT(mc_tensor_same_shape(a->q, a->out) && a->out.strides[3] == 1);
    return mc_tensor_elems(a->q) == 0 ? 0 : LY_BY_TYPE(a->q.dtype, decode_launch, cx, a, c);
}
