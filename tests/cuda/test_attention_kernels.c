/* Our attention kernels on the CPU against the CPU operators: every element type, head sizes of every path, sequences
 * that end inside a tile, windows, grouped heads, dropout, views of one fused buffer. Outputs start as NaN, must not
 * depend on the order of threads, blocks and asynchronous copies, and must leave everything around them alone. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka.h needs the four above. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "layers/cuda/kernels.h"
#include "megac/base/half.h"
#include "megac/base/pool.h"
#include "megac/base/rng.h"
#include "tests/cuda/on_cpu/control.h"

typedef struct shape {
    const char *name;
    int B, T, G, r, H;
    int window; /* -1: none */
    float p;    /* dropout */
    int pad;    /* elements between the heads of a fused row */
} shape;

static const shape shapes[] = {
    {"one token", 2, 1, 2, 1, 8, -1, 0, 0},
    {"tiny odd head", 1, 7, 1, 1, 5, -1, 0, 0},
    {"one tile", 1, 64, 1, 1, 64, -1, 0, 0},
    {"ends in a tile", 1, 150, 1, 2, 64, -1, 0, 0},
    {"several blocks", 1, 261, 1, 1, 32, -1, 0, 0},
    {"padded head", 1, 97, 2, 1, 40, -1, 0, 0},
    {"head 80", 1, 130, 1, 1, 80, -1, 0, 0},
    {"head 96", 1, 140, 1, 1, 96, -1, 0, 0},
    {"head 128", 1, 161, 1, 1, 128, -1, 0, 0},
    {"head 192", 1, 140, 1, 1, 192, -1, 0, 0},
    {"head 256", 1, 135, 1, 1, 256, -1, 0, 0},
    {"odd head 130", 1, 70, 1, 1, 130, -1, 0, 0},
    {"odd head 251", 1, 50, 1, 1, 251, -1, 0, 0},
    {"window 0", 1, 70, 1, 1, 32, 0, 0, 0},
    {"window inside a tile", 1, 300, 1, 1, 32, 10, 0, 0},
    {"window of tiles", 2, 290, 1, 1, 64, 100, 0, 0},
    {"window longer than T", 1, 90, 1, 1, 32, 1000, 0, 0},
    {"groups", 2, 70, 2, 3, 32, -1, 0, 0},
    {"groups, window", 1, 140, 1, 4, 64, 33, 0, 0},
    {"dropout", 2, 132, 1, 2, 64, -1, 0.3f, 0},
    {"dropout, odd T", 1, 133, 2, 1, 32, -1, 0.1f, 0},
    {"dropout, window, head 128", 1, 100, 1, 2, 128, 40, 0.5f, 0},
    {"dropout, odd head", 1, 45, 1, 2, 19, -1, 0.2f, 0},
    {"dropout, head 256", 1, 68, 1, 1, 256, -1, 0.2f, 0},
    {"misaligned rows", 1, 77, 1, 2, 64, -1, 0, 3},
    {"padded rows", 1, 77, 1, 2, 64, -1, 0, 8},
};
enum { N_SHAPES = sizeof shapes / sizeof shapes[0], GUARD = 64 };

/* One set of tensors in one element type; buffers begin and end with GUARD elements that nobody writes. */
typedef struct tensors {
    mc_dtype dtype;
    int64_t qkv_elems, out_elems, rows;
    void *qkv, *out, *dout, *dqkv;
    float *lse, *delta;
} tensors;

static uint32_t hash(uint32_t x)
{
    x = (x ^ x >> 16) * 0x7feb352du;
    x = (x ^ x >> 15) * 0x846ca68bu;
    return x ^ x >> 16;
}

static float uniform(uint32_t seed, int64_t i)
{
    return (float)(hash(seed * 0x9e3779b9u + (uint32_t)i) >> 8) * (2.0f / 16777216.0f) - 1.0f;
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

static void put(void *data, mc_dtype dtype, int64_t i, float x)
{
    if (dtype == MC_F32) {
        ((float *)data)[i] = x;
    } else {
        ((uint16_t *)data)[i] = dtype == MC_BF16 ? mc_bf16_from_f32(x) : mc_f16_from_f32(x);
    }
}

/* n elements between guards, all NaN. */
static void *nans(mc_dtype dtype, int64_t n)
{
    size_t bytes = (size_t)(n + 2 * GUARD) * mc_dtype_bytes(dtype);
    char *data = aligned_alloc(64, (bytes + 63) / 64 * 64);
    assert_non_null(data);
    memset(data, 0xff, (bytes + 63) / 64 * 64);
    return data + GUARD * mc_dtype_bytes(dtype);
}

static void drop(mc_dtype dtype, void *data)
{
    free((char *)data - GUARD * mc_dtype_bytes(dtype));
}

static int64_t row_elems(const shape *s)
{
    return (int64_t)s->G * (s->r + 2) * (s->H + s->pad);
}

/* Inputs: the same values for every type, each rounded to bf16 first, which is exact in f32 (and nearly so in f16). */
static tensors tensors_make(const shape *s, mc_dtype dtype)
{
    int64_t R = (int64_t)s->B * s->T;
    tensors t = {.dtype = dtype};
    t.qkv_elems = R * row_elems(s);
    t.out_elems = R * s->G * s->r * s->H;
    t.rows = R * s->G * s->r;
    t.qkv = nans(dtype, t.qkv_elems);
    t.out = nans(dtype, t.out_elems);
    t.dout = nans(dtype, t.out_elems);
    t.dqkv = nans(dtype, t.qkv_elems);
    t.lse = nans(MC_F32, t.rows);
    t.delta = nans(MC_F32, t.rows);
    for (int64_t i = 0; i < t.qkv_elems; i++) {
        if (i % (s->H + s->pad) < s->H) {
            put(t.qkv, dtype, i, mc_f32_from_bf16(mc_bf16_from_f32(2.0f * uniform(1, i))));
        }
    }
    for (int64_t i = 0; i < t.out_elems; i++) {
        put(t.dout, dtype, i, mc_f32_from_bf16(mc_bf16_from_f32(uniform(2, i))));
    }
    return t;
}

static void tensors_free(tensors *t)
{
    drop(t->dtype, t->qkv);
    drop(t->dtype, t->out);
    drop(t->dtype, t->dout);
    drop(t->dtype, t->dqkv);
    drop(MC_F32, t->lse);
    drop(MC_F32, t->delta);
}

/* Heads `first`..first + heads of each group of a fused buffer. */
static mc_tensor fused_view(const shape *s, void *data, mc_dtype dtype, int first, int heads)
{
    int64_t H = s->H + s->pad;
    return (mc_tensor){.data = (char *)data + (size_t)(first * H) * mc_dtype_bytes(dtype),
                       .dtype = dtype,
                       .n_dims = 4,
                       .dims = {(int64_t)s->B * s->T, s->G, heads, s->H},
                       .strides = {row_elems(s), (s->r + 2) * H, H, 1}};
}

static mc_tensor out_view(const shape *s, void *data, mc_dtype dtype)
{
    return (mc_tensor){.data = data,
                       .dtype = dtype,
                       .n_dims = 4,
                       .dims = {(int64_t)s->B * s->T, s->G, s->r, s->H},
                       .strides = {(int64_t)s->G * s->r * s->H, (int64_t)s->r * s->H, s->H, 1}};
}

static ly_dropout dropout_of(const shape *s)
{
    return (ly_dropout){.p = s->p, .seed = 1234, .stream = mc_rng_stream(MC_RNG_DROPOUT_ATTENTION, 3), .sample0 = 77};
}

static ly_attention_fwd fwd_args(const shape *s, const tensors *t)
{
    return (ly_attention_fwd){
        .q = fused_view(s, t->qkv, t->dtype, 0, s->r),
        .k = fused_view(s, t->qkv, t->dtype, s->r, 1),
        .v = fused_view(s, t->qkv, t->dtype, s->r + 1, 1),
        .out = out_view(s, t->out, t->dtype),
        .lse = mc_tensor_3d(t->lse, MC_F32, s->B, s->G * s->r, s->T),
        .seq_len = s->T,
        .scale = 1.0f / sqrtf((float)s->H),
        .window_left = s->window,
        .head0 = 5,
        .dropout = dropout_of(s),
    };
}

static ly_attention_bwd bwd_args(const shape *s, const tensors *t)
{
    ly_attention_fwd f = fwd_args(s, t);
    return (ly_attention_bwd){
        .q = f.q,
        .k = f.k,
        .v = f.v,
        .out = f.out,
        .lse = f.lse,
        .dout = out_view(s, t->dout, t->dtype),
        .delta = mc_tensor_3d(t->delta, MC_F32, s->B, s->G * s->r, s->T),
        .dq = fused_view(s, t->dqkv, t->dtype, 0, s->r),
        .dk = fused_view(s, t->dqkv, t->dtype, s->r, 1),
        .dv = fused_view(s, t->dqkv, t->dtype, s->r + 1, 1),
        .seq_len = s->T,
        .scale = f.scale,
        .window_left = s->window,
        .head0 = f.head0,
        .dropout = f.dropout,
    };
}

/* Forward and backward through the kernels, in one order. */
static void run_kernels(const shape *s, const tensors *t, ly_on_cpu_order order)
{
    ly_ctx cx = {0};
    ly_attention_fwd f = fwd_args(s, t);
    ly_attention_bwd b = bwd_args(s, t);
    ly_on_cpu_reset();
    ly_on_cpu_set_order(order, 7);
    assert_int_equal(ly_k_attention_fwd(&cx, &f), 0);
    assert_string_equal(ly_on_cpu_error(), "");
    assert_int_equal(ly_k_attention_bwd(&cx, &b), 0);
    assert_string_equal(ly_on_cpu_error(), "");
    assert_int_equal(ly_on_cpu_n_launches(), 4);
}

/* Error of n elements against the CPU's, as a share of the largest one; written: how many are not NaN. */
static double error_of(const void *got, mc_dtype dtype, const float *want, int64_t n, int64_t *written)
{
    double top = 1e-30, worst = 0;
    for (int64_t i = 0; i < n; i++) {
        float x = get(got, dtype, i);
        assert_true(isnan(x) == isnan(want[i]));
        if (!isnan(x)) {
            top = fmax(top, fabs((double)want[i]));
            worst = fmax(worst, fabs((double)x - (double)want[i]));
            (*written)++;
        }
    }
    return worst / top;
}

/* What arithmetic allows, as a share of the largest element. f32: sums of up to 300 rounded products and exponentials.
 * 16 bits: probabilities and dS are rounded (2^-9 and 2^-12 of each), out and gradients once more; dQ, dK of a few
 * hundred terms of both signs stay below 4 such units of the largest. */
static double tolerance(mc_dtype dtype)
{
    return dtype == MC_F32 ? 2e-6 : dtype == MC_F16 ? 4.0 / 4096 : 4.0 / 512;
}

static void check_shape(const shape *s, mc_dtype dtype, mc_pool *pool)
{
    const ly_ops *cpu;
    assert_int_equal(ly_ops_get("cpu", &cpu), MC_OK);
    ly_ctx cx = {.ops = cpu, .pool = pool};
    tensors want = tensors_make(s, MC_F32), got = tensors_make(s, dtype), again = tensors_make(s, dtype);
    ly_attention_fwd f = fwd_args(s, &want);
    ly_attention_bwd b = bwd_args(s, &want);
    assert_int_equal(cpu->attention_fwd(&cx, &f), MC_OK);
    assert_int_equal(cpu->attention_bwd(&cx, &b), MC_OK);
    run_kernels(s, &got, LY_ON_CPU_FORWARD);

    int64_t written = 0;
    double out = error_of(got.out, dtype, want.out, want.out_elems, &written);
    double grads = error_of(got.dqkv, dtype, want.dqkv, want.qkv_elems, &written);
    assert_int_equal(written, want.out_elems + (int64_t)s->B * s->T * s->G * (s->r + 2) * s->H);
    double lse = error_of(got.lse, MC_F32, want.lse, want.rows, &written);
    print_message("  %-28s %-4s out %.1e  grads %.1e  lse %.1e\n", s->name, mc_dtype_name(dtype), out, grads, lse);
    assert_true(out <= tolerance(dtype));
    assert_true(grads <= tolerance(dtype));
    assert_true(lse <= 1e-6);

    size_t size = mc_dtype_bytes(dtype);
    for (int order = LY_ON_CPU_REVERSE; order <= LY_ON_CPU_RANDOM; order++) {
        run_kernels(s, &again, (ly_on_cpu_order)order);
        assert_memory_equal((char *)got.out - GUARD * size, (char *)again.out - GUARD * size,
                            (size_t)(got.out_elems + 2 * GUARD) * size);
        assert_memory_equal((char *)got.dqkv - GUARD * size, (char *)again.dqkv - GUARD * size,
                            (size_t)(got.qkv_elems + 2 * GUARD) * size);
        assert_memory_equal(got.lse, again.lse, (size_t)got.rows * 4);
    }
    for (int64_t i = 0; i < GUARD; i++) {
        assert_true(isnan(get((char *)got.out - GUARD * size, dtype, i)));
        assert_true(isnan(get((char *)got.out + (size_t)got.out_elems * size, dtype, i)));
        assert_true(isnan(get((char *)got.dqkv - GUARD * size, dtype, i)));
        assert_true(isnan(get((char *)got.dqkv + (size_t)got.qkv_elems * size, dtype, i)));
    }
    tensors_free(&want);
    tensors_free(&got);
    tensors_free(&again);
}

/* LY_TEST_SHAPES="first last" runs a part of the list. */
static void check_type(mc_dtype dtype)
{
    int first = 0, last = N_SHAPES - 1;
    const char *part = getenv("LY_TEST_SHAPES");
    if (part) {
        assert_int_equal(sscanf(part, "%d %d", &first, &last), 2);
    }
    mc_pool *pool;
    assert_int_equal(mc_pool_create(1, LY_POOL_SCRATCH_BYTES, &pool), MC_OK);
    for (int i = first; i <= last && i < N_SHAPES; i++) {
        check_shape(&shapes[i], dtype, pool);
    }
    mc_pool_destroy(pool);
}

static void test_f32(void **state)
{
    (void)state;
    check_type(MC_F32);
}

static void test_bf16(void **state)
{
    (void)state;
    check_type(MC_BF16);
}

static void test_f16(void **state)
{
    (void)state;
    check_type(MC_F16);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_f32),
        cmocka_unit_test(test_bf16),
        cmocka_unit_test(test_f16),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
