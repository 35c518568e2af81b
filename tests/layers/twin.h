/* Operands twice: of a 16-bit type for the operator under test, and the same numbers as f32 for the f32 operator, whose
 * results, rounded once, are what is expected. */
#ifndef TESTS_LAYERS_TWIN_H
#define TESTS_LAYERS_TWIN_H

#include <string.h>

#include "tests/layers/op_harness.h"

/* One operand twice: of type T for the operator under test, and the same numbers as f32. */
typedef struct twin {
    mc_dtype type;
    int64_t n;
    void *typed;
    float *wide;
} twin;

static inline twin twin_rand(mc_dtype type, int64_t n, uint32_t seed, float low, float high)
{
    twin t = {type, n, lt_round(type, lt_rand(n, seed, low, high), n), NULL};
    t.wide = lt_widen(type, t.typed, n);
    return t;
}

static inline twin twin_empty(mc_dtype type, int64_t n)
{
    return (twin){type, n, lt_typed(type, n), lt_f32(n)};
}

/* The twin's view: f32, or of type T. */
static inline mc_tensor view(const twin *t, int wide, int64_t rows, int64_t cols)
{
    return wide ? lt_2d(t->wide, rows, cols) : mc_tensor_2d(t->typed, t->type, rows, cols);
}

static inline mc_tensor view1(const twin *t, int wide)
{
    return wide ? lt_1d(t->wide, t->n) : mc_tensor_1d(t->typed, t->type, t->n);
}

static inline void twin_same(lt_run *run, const char *what, const twin *t)
{
    const uint16_t *got = t->typed, *want = lt_round(t->type, t->wide, t->n);
    for (int64_t i = 0; i < t->n; i++) {
        if (got[i] != want[i]) {
            fail_msg("%s[%lld] is 0x%04x, expected 0x%04x, which is %.9g rounded", what, (long long)i, got[i], want[i],
                     (double)t->wide[i]);
        }
    }
    lt_output(run, t->typed, t->n * 2);
}

static inline void same_f32(lt_run *run, const char *what, const float *got, const float *want, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        if (memcmp(&got[i], &want[i], sizeof *got) != 0) {
            fail_msg("%s[%lld] is %.9g, expected %.9g", what, (long long)i, (double)got[i], (double)want[i]);
        }
    }
    lt_output(run, got, n * 4);
}

#endif
