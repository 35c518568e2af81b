/* The cache of keys and values on the CPU. A task of the attention is one group of one row: its r queries share every
 * block of keys and values while that is in the first-level cache. */
#include <math.h>

#include "layers/cpu/attention_tile.h"
#include "layers/cpu/isa.h"
#include "layers/cpu/rows.h"

#define LOG2_E 1.44269504088896340736f

/* Below any score: the maximum of a query that has seen no key. Finite, so that differences are never NaN. */
#define NO_SCORE (-1e30f)

/* Keys of a block, whole vectors of scores. */
enum { KEYS = 64 };

/* Where the row of one token and group begins in a cache, in elements. */
static int64_t cache_row(mc_tensor cache, int64_t place, int64_t g)
{
    int64_t P = cache.dims[2], sequence = place / P, position = place % P;
    return ((sequence * cache.dims[1] + g) * P + position) * cache.dims[3];
}

static int64_t place_of(mc_tensor places, mc_tensor cache, int64_t r)
{
    int64_t place = ((const int32_t *)places.data)[r];
    MC_ASSERT(place >= 0 && place < cache.dims[0] * cache.dims[2]);
    return place;
}

/* x: (R, G, n, H) view. */
static void check(mc_tensor x, mc_tensor places, mc_tensor k_cache, mc_tensor v_cache)
{
    MC_ASSERT(x.n_dims == 4 && x.strides[3] == 1 && ly_is_1d(places, x.dims[0]));
    MC_ASSERT(k_cache.n_dims == 4 && mc_tensor_contiguous(k_cache) && mc_tensor_contiguous(v_cache));
    MC_ASSERT(mc_tensor_same_shape(k_cache, v_cache) && k_cache.dims[1] == x.dims[1] && k_cache.dims[3] == x.dims[3]);
}

typedef struct store_job {
    const ly_kv_store *a;
    int n_tasks;
} store_job;

static void store_task(void *arg, int task, int thread, void *scratch)
{
    const store_job *job = arg;
    const ly_kv_store *a = job->a;
    const mc_tensor from[2] = {a->k, a->v}, to[2] = {a->k_cache, a->v_cache};
    size_t bytes = mc_dtype_bytes(a->k.dtype);
    long r0, r1;
    (void)thread;
    (void)scratch;
    mc_pool_range((long)a->k.dims[0], job->n_tasks, task, 1, &r0, &r1);
    for (int64_t r = r0; r < r1; r++) {
        int64_t place = place_of(a->places, a->k_cache, r);
        for (int64_t g = 0; g < a->k.dims[1]; g++) {
            for (int i = 0; i < 2; i++) {
                const char *row =
                    (const char *)from[i].data + (size_t)(r * from[i].strides[0] + g * from[i].strides[1]) * bytes;
                memcpy((char *)to[i].data + (size_t)cache_row(to[i], place, g) * bytes, row,
                       (size_t)a->k.dims[3] * bytes);
            }
        }
    }
}

mc_status LY_CPU(kv_store)(const ly_ctx *cx, const ly_kv_store *a)
{
    LY_TRY_TYPE("kv_store", a->k);
    LY_TRY_DTYPE("kv_store", a->v, a->k.dtype);
    LY_TRY_DTYPE("kv_store", a->places, MC_I32);
    LY_TRY_DTYPE("kv_store", a->k_cache, a->k.dtype);
    LY_TRY_DTYPE("kv_store", a->v_cache, a->k.dtype);
    check(a->k, a->places, a->k_cache, a->v_cache);
    MC_ASSERT(a->k.dims[2] == 1 && mc_tensor_same_shape(a->k, a->v) && a->v.strides[3] == 1);
    store_job job = {a, ly_tasks(a->k.dims[0], 4 * a->k.dims[1] * a->k.dims[3])};
    mc_pool_run(cx->pool, job.n_tasks, store_task, &job);
    return MC_OK;
}

typedef struct decode_job {
    const ly_attention_decode *a;
    int64_t G, r, H, cols, window;
} decode_job;

/* One query's part of a thread's scratch. */
typedef struct decode_query {
    float *q, *out;   /* (cols): times scale * log2(e); not yet divided by the sum */
    float *max, *sum; /* of base-2 scores */
    float *scores;    /* (KEYS), shared by the queries in turn */
    int64_t H;
} decode_query;

static size_t scratch_floats(const decode_job *j)
{
    return (size_t)(j->r * (2 * j->cols + 2) + KEYS);
}

static decode_query query_of(const decode_job *j, float *scratch, int64_t i)
{
    float *at = scratch + KEYS + i * 2 * j->cols, *stats = scratch + KEYS + j->r * 2 * j->cols + 2 * i;
    return (decode_query){.q = at, .out = at + j->cols, .max = stats, .sum = stats + 1, .scores = scratch, .H = j->H};
}

LY_INLINE float dot(mc_dtype type, const float *q, const void *k, int64_t H)
{
    ly_vf sum = ly_vzero();
    for (int64_t h = 0; h < H; h += LY_LANES) {
        sum = ly_vfma(ly_vload(q + h), ly_tload(type, ly_elem(type, k, h), H - h), sum);
    }
    return ly_vsum(sum);
}

/* The next n keys and values (n, H): scores, softmax, and the sum of values. */
LY_INLINE void decode_block(mc_dtype type, const decode_query *w, const void *k, const void *v, int64_t n)
{
    int64_t padded = ly_at_round_up(n, LY_LANES);
    ly_vf top = ly_vset1(*w->max), total = ly_vzero();
    for (int64_t i = 0; i < padded; i++) {
        w->scores[i] = i < n ? dot(type, w->q, ly_elem(type, k, i * w->H), w->H) : NO_SCORE;
    }
    for (int64_t i = 0; i < padded; i += LY_LANES) {
        top = ly_vmax(ly_vload(w->scores + i), top);
    }
    top = ly_vset1(ly_vmaxlane(top));
    ly_vf fade = ly_at_exp2(ly_vsub(ly_vset1(*w->max), top));
    for (int64_t i = 0; i < padded; i += LY_LANES) {
        ly_vf e = ly_at_exp2(ly_vsub(ly_vload(w->scores + i), top));
        ly_vstore(w->scores + i, e);
        total = ly_vadd(total, e);
    }
    for (int64_t h = 0; h < w->H; h += LY_LANES) {
        ly_vf sum = ly_vmul(ly_vload(w->out + h), fade);
        for (int64_t i = 0; i < n; i++) {
            sum = ly_vfma(ly_vset1(w->scores[i]), ly_tload(type, ly_elem(type, v, i * w->H + h), w->H - h), sum);
        }
        ly_vstore(w->out + h, sum);
    }
    float lanes[LY_LANES];
    ly_vstore(lanes, fade);
    *w->sum = *w->sum * lanes[0] + ly_vsum(total);
    ly_vstore(lanes, top);
    *w->max = lanes[0];
}

LY_INLINE void decode_start(mc_dtype type, const decode_query *w, const void *q, float scale)
{
    for (int64_t h = 0; h < w->H; h += LY_LANES) {
        ly_vstore(w->q + h, ly_vmul(ly_tload(type, ly_elem(type, q, h), w->H - h), ly_vset1(scale * LOG2_E)));
        ly_vstore(w->out + h, ly_vzero());
    }
    *w->max = NO_SCORE;
    *w->sum = 0.0f;
}

LY_INLINE void decode_finish(mc_dtype type, const decode_query *w, void *out)
{
    ly_vf inv = ly_vset1(1.0f / *w->sum);
    for (int64_t h = 0; h < w->H; h += LY_LANES) {
        ly_tstore(type, ly_elem_out(type, out, h), ly_vmul(ly_vload(w->out + h), inv), w->H - h);
    }
}

LY_INLINE void decode_group(mc_dtype type, const decode_job *j, int64_t row, int64_t g, float *scratch)
{
    const ly_attention_decode *a = j->a;
    int64_t place = place_of(a->places, a->k_cache, row), last = place % a->k_cache.dims[2];
    int64_t first = last > j->window ? last - j->window : 0;
    const int64_t *qs = a->q.strides, *os = a->out.strides;
    for (int64_t i = 0; i < j->r; i++) {
        decode_query w = query_of(j, scratch, i);
        decode_start(type, &w, ly_elem(type, a->q.data, row * qs[0] + g * qs[1] + i * qs[2]), a->scale);
    }
    for (int64_t k0 = first; k0 <= last; k0 += KEYS) {
        int64_t n = last + 1 - k0 < KEYS ? last + 1 - k0 : KEYS, at = cache_row(a->k_cache, place - last + k0, g);
        for (int64_t i = 0; i < j->r; i++) {
            decode_query w = query_of(j, scratch, i);
            decode_block(type, &w, ly_elem(type, a->k_cache.data, at), ly_elem(type, a->v_cache.data, at), n);
        }
    }
    for (int64_t i = 0; i < j->r; i++) {
        decode_query w = query_of(j, scratch, i);
        decode_finish(type, &w, ly_elem_out(type, a->out.data, row * os[0] + g * os[1] + i * os[2]));
    }
}

static void decode_task(void *arg, int task, int thread, void *scratch)
{
    const decode_job *j = arg;
    (void)thread;
    LY_FOR_TYPE(j->a->q.dtype, T, decode_group(T, j, task / j->G, task % j->G, scratch));
}

mc_status LY_CPU(attention_decode)(const ly_ctx *cx, const ly_attention_decode *a)
{
    LY_TRY_TYPE("attention_decode", a->q);
    LY_TRY_DTYPE("attention_decode", a->places, MC_I32);
    LY_TRY_DTYPE("attention_decode", a->k_cache, a->q.dtype);
    LY_TRY_DTYPE("attention_decode", a->v_cache, a->q.dtype);
    LY_TRY_DTYPE("attention_decode", a->out, a->q.dtype);
    check(a->q, a->places, a->k_cache, a->v_cache);
    MC_ASSERT(mc_tensor_same_shape(a->q, a->out) && a->out.strides[3] == 1);
    decode_job j = {.a = a, .G = a->q.dims[1], .r = a->q.dims[2], .H = a->q.dims[3]};
    j.cols = ly_at_round_up(j.H, LY_LANES);
    j.window = a->window_left < 0 ? a->k_cache.dims[2] : a->window_left;
    if (scratch_floats(&j) * sizeof(float) > mc_pool_scratch_bytes(cx->pool)) {
        return MC_FAIL(MC_UNSUPPORTED,
                       "attention_decode: %lld query heads of size %lld a group do not fit into a CPU thread's "
                       "scratch; use more groups or smaller heads",
                       (long long)j.r, (long long)j.H);
    }
    mc_pool_run(cx->pool, (int)(a->q.dims[0] * j.G), decode_task, &j);
    return MC_OK;
}
