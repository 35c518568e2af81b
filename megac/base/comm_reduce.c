/* Element-wise reductions in a fixed order. Blocks small enough for the first-level cache are summed in a buffer of
 * their own, so that `out` may be any of the inputs and the loops vectorise. */
#include <string.h>

#include "megac/base/comm_impl.h"
#include "megac/base/half.h"

enum { BLOCK_BYTES = 8192 };

typedef void (*reduce_fn)(void *restrict dst, const void *restrict a, const void *restrict b, size_t n);
typedef void (*fold_fn)(void *restrict dst, const void *restrict x, size_t n);

#define ADD(a, b) ((a) + (b))
/* Sums of i32 wrap instead of being undefined. */
#define ADD_I32(a, b) ((int32_t)((uint32_t)(a) + (uint32_t)(b)))
/* A NaN on either side wins. */
#define MAX(a, b) ((b) > (a) || (b) != (b) ? (b) : (a))
#define MIN(a, b) ((b) < (a) || (b) != (b) ? (b) : (a))

#define REDUCERS(name, type, OP)                                                                           \
    static void first_##name(void *restrict dst, const void *restrict a, const void *restrict b, size_t n) \
    {                                                                                                      \
        type *restrict d = dst;                                                                            \
        const type *restrict x = a;                                                                        \
        const type *restrict y = b;                                                                        \
        for (size_t i = 0; i < n; i++) {                                                                   \
            d[i] = OP(x[i], y[i]);                                                                         \
        }                                                                                                  \
    }                                                                                                      \
    static void fold_##name(void *restrict dst, const void *restrict b, size_t n)                          \
    {                                                                                                      \
        type *restrict d = dst;                                                                            \
        const type *restrict y = b;                                                                        \
        for (size_t i = 0; i < n; i++) {                                                                   \
            d[i] = OP(d[i], y[i]);                                                                         \
        }                                                                                                  \
    }

REDUCERS(sum_f32, float, ADD)
REDUCERS(sum_f64, double, ADD)
REDUCERS(sum_i32, int32_t, ADD_I32)
REDUCERS(max_f32, float, MAX)
REDUCERS(max_f64, double, MAX)
REDUCERS(max_i32, int32_t, MAX)
REDUCERS(min_f32, float, MIN)
REDUCERS(min_f64, double, MIN)
REDUCERS(min_i32, int32_t, MIN)

#define ROW(type)                                                                 \
    {                                                                             \
        {first_sum_##type, fold_sum_##type}, {first_max_##type, fold_max_##type}, \
        {                                                                         \
            first_min_##type, fold_min_##type                                     \
        }                                                                         \
    }

static const struct {
    reduce_fn first;
    fold_fn fold;
} table[MC_DTYPE_COUNT][MC_MIN + 1] = {
    [MC_F32] = ROW(f32),
    [MC_F64] = ROW(f64),
    [MC_I32] = ROW(i32),
};

static void widen(mc_dtype dtype, float *restrict to, const uint16_t *restrict from, size_t n)
{
    if (dtype == MC_BF16) {
        for (size_t i = 0; i < n; i++) {
            to[i] = mc_f32_from_bf16(from[i]);
        }
    } else {
        for (size_t i = 0; i < n; i++) {
            to[i] = mc_f32_from_f16(from[i]);
        }
    }
}

static void narrow(mc_dtype dtype, uint16_t *restrict to, const float *restrict from, size_t n)
{
    if (dtype == MC_BF16) {
        for (size_t i = 0; i < n; i++) {
            to[i] = mc_bf16_from_f32(from[i]);
        }
    } else {
        for (size_t i = 0; i < n; i++) {
            to[i] = mc_f16_from_f32(from[i]);
        }
    }
}

/* 16-bit types: through f32, rounded once. */
static void reduce_half(mc_dtype dtype, mc_reduce op, void *const *out, int n_out, const void *const *in, int n,
                        size_t elems)
{
    enum { STEP = BLOCK_BYTES / 4 };
    float sum[STEP], next[STEP];
    uint16_t rounded[STEP];
    for (size_t done = 0; done < elems; done += STEP) {
        size_t count = elems - done < STEP ? elems - done : STEP;
        widen(dtype, sum, (const uint16_t *)in[0] + done, count);
        for (int i = 1; i < n; i++) {
            widen(dtype, next, (const uint16_t *)in[i] + done, count);
            table[MC_F32][op].fold(sum, next, count);
        }
        narrow(dtype, rounded, sum, count);
        for (int i = 0; i < n_out; i++) {
            memcpy((uint16_t *)out[i] + done, rounded, count * sizeof *rounded);
        }
    }
}

void mc_i_reduce_to(mc_dtype dtype, mc_reduce op, void *const *out, int n_out, const void *const *in, int n,
                    size_t elems)
{
    if (dtype == MC_BF16 || dtype == MC_F16) {
        reduce_half(dtype, op, out, n_out, in, n, elems);
        return;
    }
    _Alignas(64) unsigned char block[BLOCK_BYTES];
    reduce_fn first = table[dtype][op].first;
    fold_fn fold = table[dtype][op].fold;
    MC_ASSERT(first);
    size_t elem_bytes = mc_dtype_bytes(dtype), step = BLOCK_BYTES / elem_bytes;
    for (size_t done = 0; done < elems; done += step) {
        size_t count = elems - done < step ? elems - done : step, at = done * elem_bytes, bytes = count * elem_bytes;
        if (n == 1) {
            memcpy(block, (const char *)in[0] + at, bytes);
        } else {
            first(block, (const char *)in[0] + at, (const char *)in[1] + at, count);
        }
        for (int i = 2; i < n; i++) {
            fold(block, (const char *)in[i] + at, count);
        }
        for (int i = 0; i < n_out; i++) {
            memcpy((char *)out[i] + at, block, bytes);
        }
    }
}

void mc_i_reduce(mc_dtype dtype, mc_reduce op, void *out, const void *const *in, int n, size_t elems)
{
    mc_i_reduce_to(dtype, op, &out, 1, in, n, elems);
}
