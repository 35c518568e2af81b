/* What the tests that run as ranks share: the world, and numbers that every rank can compute for every other. */
#ifndef TESTS_BASE_RANKS_H
#define TESTS_BASE_RANKS_H

#include "megac/base/comm.h"
#include "megac/base/half.h"
#include "megac/base/world.h"
#include "tests/unit.h"

/* A number whose sums depend on their order, of member m, element i, operation k. */
static inline double ranks_value(int m, size_t i, int k)
{
    uint32_t h = (uint32_t)i * 2654435761u ^ (uint32_t)m * 40503u ^ (uint32_t)k * 2246822519u;
    h ^= h >> 15;
    h *= 2246822519u;
    h ^= h >> 13;
    return ((double)(h % 20011) - 10005.0) / (double)(1 + h % 97);
}

static inline void ranks_put(mc_dtype dtype, void *data, size_t i, double value)
{
    if (dtype == MC_F32) {
        ((float *)data)[i] = (float)value;
    } else if (dtype == MC_F64) {
        ((double *)data)[i] = value;
    } else if (dtype == MC_BF16) {
        ((uint16_t *)data)[i] = mc_bf16_from_f32((float)value);
    } else if (dtype == MC_F16) {
        ((uint16_t *)data)[i] = mc_f16_from_f32((float)value);
    } else {
        ((int32_t *)data)[i] = (int32_t)(value * 1000.0);
    }
}

#define RANKS_FOLD(type)                                                                                \
    do {                                                                                                \
        type a_, x_;                                                                                    \
        memcpy(&a_, acc, sizeof a_);                                                                    \
        memcpy(&x_, x, sizeof x_);                                                                      \
        a_ = op == MC_SUM ? (type)(a_ + x_) : op == MC_MAX ? (x_ > a_ ? x_ : a_) : (x_ < a_ ? x_ : a_); \
        memcpy(acc, &a_, sizeof a_);                                                                    \
    } while (0)

/* acc = acc op x, one element. */
static inline void ranks_fold(mc_dtype dtype, mc_reduce op, void *acc, const void *x)
{
    if (dtype == MC_F32) {
        RANKS_FOLD(float);
    } else if (dtype == MC_F64) {
        RANKS_FOLD(double);
    } else {
        RANKS_FOLD(int32_t);
    }
}

/* The 16-bit types are reduced in f32 and rounded once. */
static inline void ranks_reduced_half(mc_dtype dtype, mc_reduce op, int size, size_t i, int k, void *out)
{
    float acc = 0;
    for (int m = 0; m < size; m++) {
        uint16_t bits;
        ranks_put(dtype, &bits, 0, ranks_value(m, i, k));
        float x = dtype == MC_BF16 ? mc_f32_from_bf16(bits) : mc_f32_from_f16(bits);
        if (m == 0) {
            acc = x;
        } else {
            ranks_fold(MC_F32, op, &acc, &x);
        }
    }
    ranks_put(dtype, out, 0, acc);
}

/* Element i of the reduction over `size` members, in rank order. */
static inline void ranks_reduced(mc_dtype dtype, mc_reduce op, int size, size_t i, int k, void *out)
{
    double x;
    if (dtype == MC_BF16 || dtype == MC_F16) {
        ranks_reduced_half(dtype, op, size, i, k, out);
        return;
    }
    ranks_put(dtype, out, 0, ranks_value(0, i, k));
    for (int m = 1; m < size; m++) {
        ranks_put(dtype, &x, 0, ranks_value(m, i, k));
        ranks_fold(dtype, op, out, &x);
    }
}

#define RANKS_OK(expr) assert_string_equal(mc_status_name(expr), "OK")

#endif
