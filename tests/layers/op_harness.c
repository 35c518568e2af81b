#include "tests/layers/op_harness.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "megac/base/half.h"
#include "megac/base/log.h"

enum { GUARD = 256, MAX_BUFFERS = 128, MAX_THREADS = 3 };
static const uint32_t GUARD_WORD = 0x7fc0a55au; /* a NaN no operator makes */

static struct {
    unsigned char *raw;
    int64_t bytes; /* between the guards */
} buffers[MAX_BUFFERS];
static int n_buffers;

/* Byte i of a buffer of nothing but guards. */
static unsigned char guard_byte(int64_t i)
{
    return (unsigned char)(GUARD_WORD >> (i % 4 * 8));
}

static void *guarded(int64_t bytes)
{
    unsigned char *raw = aligned_alloc(64, ((size_t)bytes + 2 * GUARD + 63) / 64 * 64);
    assert_non_null(raw);
    assert_true(n_buffers < MAX_BUFFERS);
    for (int64_t i = 0; i < bytes + 2 * GUARD; i++) {
        raw[i] = guard_byte(i);
    }
    buffers[n_buffers].raw = raw;
    buffers[n_buffers++].bytes = bytes;
    return raw + GUARD;
}

static void release_buffers(void)
{
    for (int b = 0; b < n_buffers; b++) {
        const unsigned char *raw = buffers[b].raw;
        int64_t end = GUARD + buffers[b].bytes;
        for (int64_t i = 0; i < GUARD; i++) {
            if (raw[i] != guard_byte(i) || raw[end + i] != guard_byte(end + i)) {
                fail_msg("buffer %d of %lld bytes: guard overwritten %s it", b, (long long)buffers[b].bytes,
                         raw[i] != guard_byte(i) ? "before" : "after");
            }
        }
        free(buffers[b].raw);
    }
    n_buffers = 0;
}

void *lt_typed(mc_dtype type, int64_t n)
{
    size_t bytes = (size_t)n * mc_dtype_bytes(type);
    return memset(guarded((int64_t)bytes), 0xff, bytes);
}

void *lt_round(mc_dtype type, const float *x, int64_t n)
{
    void *y = lt_typed(type, n);
    for (int64_t i = 0; i < n; i++) {
        if (type == MC_F32) {
            ((float *)y)[i] = x[i];
        } else {
            ((uint16_t *)y)[i] = type == MC_BF16 ? mc_bf16_from_f32(x[i]) : mc_f16_from_f32(x[i]);
        }
    }
    return y;
}

float *lt_widen(mc_dtype type, const void *x, int64_t n)
{
    float *y = lt_f32(n);
    for (int64_t i = 0; i < n; i++) {
        uint16_t half = type == MC_F32 ? 0 : ((const uint16_t *)x)[i];
        y[i] = type == MC_F32    ? ((const float *)x)[i]
               : type == MC_BF16 ? mc_f32_from_bf16(half)
                                 : mc_f32_from_f16(half);
    }
    return y;
}

float *lt_f32(int64_t n)
{
    return guarded(n * (int64_t)sizeof(float));
}

static uint32_t next(uint32_t *state)
{
    *state = *state * 1664525u + 1013904223u;
    return *state >> 8;
}

float *lt_rand(int64_t n, uint32_t seed, float low, float high)
{
    float *x = lt_f32(n);
    uint32_t state = seed * 2654435761u + 12345u;
    for (int64_t i = 0; i < n; i++) {
        x[i] = low + (high - low) * ((float)next(&state) / 16777216.0f);
    }
    return x;
}

float *lt_copy(const float *x, int64_t n)
{
    float *y = lt_f32(n);
    memcpy(y, x, (size_t)n * sizeof *y);
    return y;
}

int32_t *lt_ints(int64_t n, uint32_t seed, int32_t low, int32_t high)
{
    int32_t *x = guarded(n * (int64_t)sizeof *x);
    uint32_t state = seed * 2654435761u + 999u;
    for (int64_t i = 0; i < n; i++) {
        x[i] = low + (int32_t)(next(&state) % (uint32_t)(high - low));
    }
    return x;
}

void lt_output(lt_run *run, const void *data, int64_t bytes)
{
    const unsigned char *p = data;
    uint64_t h = run->digest ^ 1469598103934665603ull;
    for (int64_t i = 0; i < bytes; i++) {
        h = (h ^ p[i]) * 1099511628211ull;
    }
    run->digest = h;
}

void lt_close(const char *what, int64_t index, float got, double want, double tolerance, double scale)
{
    if (isnan(want) ? isnan(got) : got == (float)want || fabs((double)got - want) <= tolerance * scale) {
        return;
    }
    fail_msg("%s[%lld] is %.9g, expected %.9g (allowed difference %.3g)", what, (long long)index, (double)got, want,
             tolerance * scale);
}

void lt_close_n(const char *what, const float *got, const double *want, int64_t n, double tolerance, double scale)
{
    for (int64_t i = 0; i < n; i++) {
        lt_close(what, i, got[i], want[i], tolerance, scale);
    }
}

mc_tensor lt_1d(const float *x, int64_t n)
{
    return mc_tensor_1d((void *)(uintptr_t)x, MC_F32, n);
}

mc_tensor lt_2d(const float *x, int64_t rows, int64_t cols)
{
    return mc_tensor_2d((void *)(uintptr_t)x, MC_F32, rows, cols);
}

void lt_for_all(lt_body body, const void *arg)
{
    static const char *const variants[] = {"cpu-v2", "cpu-v3", "cpu-v4", "cpu-base"};
    int ran = 0;
    for (size_t v = 0; v < sizeof variants / sizeof *variants; v++) {
        const ly_ops *ops = NULL;
        mc_log_set_level(MC_LOG_ERROR);
        mc_log_hold(true);
        mc_log_set_rank(1); /* keeps "cannot run" of other machines' variants off the screen */
        mc_status st = ly_ops_get(variants[v], &ops);
        mc_log_set_rank(-1);
        mc_log_hold(false);
        if (st != MC_OK) {
            continue;
        }
        uint64_t digest = 0;
        for (int n_threads = 1; n_threads <= MAX_THREADS; n_threads++) {
            lt_run run = {.cx = {.ops = ops}, .n_threads = n_threads};
            assert_int_equal(mc_pool_create(n_threads, LY_POOL_SCRATCH_BYTES, &run.cx.pool), MC_OK);
            body(&run, arg);
            mc_pool_destroy(run.cx.pool);
            release_buffers();
            if (n_threads == 1) {
                digest = run.digest;
            } else if (digest != run.digest) {
                fail_msg("%s: results with %d threads differ from those with 1", variants[v], n_threads);
            }
        }
        ran++;
    }
    assert_true(ran > 0);
}
