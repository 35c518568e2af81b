#include "tests/cuda/attention_case.h"

#include <math.h>

#include "megac/base/half.h"
#include "megac/base/pool.h"
#include "megac/base/rng.h"

static mc_dtype dtype_of(const attention_memory *m, int which)
{
    return which == ATTENTION_LSE || which == ATTENTION_DELTA ? MC_F32 : m->dtype;
}

static size_t guard_bytes(const attention_memory *m, int which)
{
    return ATTENTION_GUARD * mc_dtype_bytes(dtype_of(m, which));
}

size_t attention_bytes(const attention_memory *m, attention_buffer which)
{
    return (size_t)(m->elems[which] + 2 * ATTENTION_GUARD) * mc_dtype_bytes(dtype_of(m, which));
}

void *attention_start(const attention_memory *m, attention_buffer which)
{
    return (char *)m->data[which] - guard_bytes(m, which);
}

static float get(const void *data, mc_dtype dtype, int64_t i)
{
    switch (dtype) {
    case MC_BF16:
        return mc_f32_from_bf16(((const uint16_t *)data)[i]);
    case MC_F16:
        return mc_f32_from_f16(((const uint16_t *)data)[i]);
    default:
        return ((const float *)data)[i];
    }
}

/* Rounded to bf16 first, which f32 holds exactly and f16 nearly so. */
static void put(void *data, mc_dtype dtype, int64_t i, float x)
{
    uint16_t bits = mc_bf16_from_f32(x);
    x = mc_f32_from_bf16(bits);
    if (dtype == MC_F32) {
        ((float *)data)[i] = x;
    } else {
        ((uint16_t *)data)[i] = dtype == MC_BF16 ? bits : mc_f16_from_f32(x);
    }
}

/* Uniform in [-1, 1). */
static float uniform(uint32_t stream, int64_t i)
{
    return 2.0f * mc_rng_uniform(mc_rng_bits(99, stream, 0, (uint64_t)i).w[0]) - 1.0f;
}

attention_memory attention_make(const attention_shape *s, mc_dtype dtype)
{
    int64_t R = (int64_t)s->B * s->T, heads = (int64_t)s->G * s->r, head = s->H + s->pad;
    int64_t qkv = R * (heads + 2 * s->G) * head, out = R * heads * s->H;
    attention_memory m = {.dtype = dtype, .elems = {qkv, out, out, qkv, R * heads, R * heads}};
    for (int i = 0; i < ATTENTION_BUFFERS; i++) {
        size_t bytes = attention_bytes(&m, (attention_buffer)i);
        char *start = aligned_alloc(256, (bytes + 255) / 256 * 256);
        assert_non_null(start);
        memset(start, 0xff, bytes);
        m.data[i] = start + guard_bytes(&m, i);
    }
    for (int64_t i = 0; i < qkv; i++) {
        if (i % head < s->H) {
            put(m.data[ATTENTION_QKV], dtype, i, 2.0f * uniform(1, i));
        }
    }
    for (int64_t i = 0; i < out; i++) {
        put(m.data[ATTENTION_DOUT], dtype, i, uniform(2, i));
    }
    return m;
}

void attention_free(attention_memory *m)
{
    for (int i = 0; i < ATTENTION_BUFFERS; i++) {
        free(attention_start(m, (attention_buffer)i));
    }
}

typedef enum { PART_Q, PART_K, PART_V } part;

static mc_tensor part_of(const attention_shape *s, const attention_memory *m, attention_buffer which, part p)
{
    int64_t R = (int64_t)s->B * s->T, head = s->H + s->pad, heads = p == PART_Q ? s->r : 1, before, group;
    if (s->apart) {
        before = p == PART_Q ? 0 : R * s->G * (p == PART_K ? s->r : s->r + 1) * head;
        group = heads * head;
    } else {
        before = (p == PART_Q ? 0 : p == PART_K ? s->r : s->r + 1) * head;
        group = (s->r + 2) * head;
    }
    return (mc_tensor){.data = (char *)m->data[which] + (size_t)before * mc_dtype_bytes(m->dtype),
                       .dtype = m->dtype,
                       .n_dims = 4,
                       .dims = {R, s->G, heads, s->H},
                       .strides = {s->G * group, group, head, 1}};
}

static mc_tensor out_of(const attention_shape *s, const attention_memory *m, attention_buffer which)
{
    int64_t group = (int64_t)s->r * s->H;
    return (mc_tensor){.data = m->data[which],
                       .dtype = m->dtype,
                       .n_dims = 4,
                       .dims = {(int64_t)s->B * s->T, s->G, s->r, s->H},
                       .strides = {s->G * group, group, s->H, 1}};
}

ly_attention_fwd attention_fwd_args(const attention_shape *s, const attention_memory *m)
{
    return (ly_attention_fwd){
        .q = part_of(s, m, ATTENTION_QKV, PART_Q),
        .k = part_of(s, m, ATTENTION_QKV, PART_K),
        .v = part_of(s, m, ATTENTION_QKV, PART_V),
        .out = out_of(s, m, ATTENTION_OUT),
        .lse = mc_tensor_3d(m->data[ATTENTION_LSE], MC_F32, s->B, (int64_t)s->G * s->r, s->T),
        .seq_len = s->T,
        .scale = 1.0f / sqrtf((float)s->H),
        .window_left = s->window,
        .head0 = 5,
        .dropout = {.p = s->p,
                    .seed = 1234,
                    .stream = mc_rng_stream(MC_RNG_DROPOUT_ATTENTION, 3),
                    .sample0 = (1ull << 33) + 77},
    };
}

ly_attention_bwd attention_bwd_args(const attention_shape *s, const attention_memory *m)
{
    ly_attention_fwd f = attention_fwd_args(s, m);
    return (ly_attention_bwd){
        .q = f.q,
        .k = f.k,
        .v = f.v,
        .out = f.out,
        .lse = f.lse,
        .dout = out_of(s, m, ATTENTION_DOUT),
        .delta = mc_tensor_3d(m->data[ATTENTION_DELTA], MC_F32, s->B, (int64_t)s->G * s->r, s->T),
        .dq = part_of(s, m, ATTENTION_DQKV, PART_Q),
        .dk = part_of(s, m, ATTENTION_DQKV, PART_K),
        .dv = part_of(s, m, ATTENTION_DQKV, PART_V),
        .seq_len = s->T,
        .scale = f.scale,
        .window_left = s->window,
        .head0 = f.head0,
        .dropout = f.dropout,
    };
}

attention_memory attention_reference(const attention_shape *s)
{
    attention_memory m = attention_make(s, MC_F32);
    ly_ctx cx = {0};
    ly_attention_fwd f = attention_fwd_args(s, &m);
    ly_attention_bwd b = attention_bwd_args(s, &m);
    assert_int_equal(ly_ops_get("cpu", &cx.ops), MC_OK);
    assert_int_equal(mc_pool_create(1, LY_POOL_SCRATCH_BYTES, &cx.pool), MC_OK);
    assert_int_equal(cx.ops->attention_fwd(&cx, &f), MC_OK);
    assert_int_equal(cx.ops->attention_bwd(&cx, &b), MC_OK);
    mc_pool_destroy(cx.pool);
    return m;
}

/* Largest error against the CPU's, as a share of the largest element. What is NaN there must be NaN here: the elements
 * that nobody writes, guards and gaps between heads. */
static double error_of(const attention_shape *s, const attention_memory *got, const attention_memory *want,
                       attention_buffer which)
{
    mc_dtype type = dtype_of(got, which), want_type = dtype_of(want, which);
    const void *x = attention_start(got, which), *y = attention_start(want, which);
    double top = 1e-30, worst = 0;
    for (int64_t i = 0; i < got->elems[which] + 2 * ATTENTION_GUARD; i++) {
        float a = get(x, type, i), b = get(y, want_type, i);
        if (isnan(a) != isnan(b)) {
            fail_msg("%s, %s, buffer %d, element %lld: %g instead of %g", s->name, mc_dtype_name(got->dtype), which,
                     (long long)(i - ATTENTION_GUARD), (double)a, (double)b);
        }
        if (!isnan(a)) {
            top = fmax(top, fabs((double)b));
            worst = fmax(worst, fabs((double)a - (double)b));
        }
    }
    return worst / top;
}

/* f32: sums of up to 300 rounded products and exponentials. 16 bits: probabilities and dS are rounded (by half a unit
 * of 2^-8 and 2^-11), results once more; sums of a few hundred such errors of both signs stay below 2 units of the
 * largest element. */
static double tolerance(mc_dtype dtype)
{
    return dtype == MC_F32 ? 2e-6 : dtype == MC_F16 ? 0x1p-10 : 0x1p-7;
}

void attention_check(const attention_shape *s, const attention_memory *got, const attention_memory *want)
{
    double out = error_of(s, got, want, ATTENTION_OUT), grads = error_of(s, got, want, ATTENTION_DQKV);
    double lse = error_of(s, got, want, ATTENTION_LSE);
    print_message("  %-28s %-4s out %.1e  gradients %.1e  lse %.1e\n", s->name, mc_dtype_name(got->dtype), out, grads,
                  lse);
    assert_true(out <= tolerance(got->dtype));
    assert_true(grads <= tolerance(got->dtype));
    assert_true(lse <= 1e-6);
}
