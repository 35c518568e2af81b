/* How CPU operators cut their work: into tasks that depend on the shape only, never on the number of threads. */
#ifndef LAYERS_CPU_ROWS_H
#define LAYERS_CPU_ROWS_H

#include "layers/cpu/simd.h"
#include "layers/cpu/typed.h"
#include "layers/ops.h"
#include "megac/base/status.h"

/* Work is cut into this many pieces at most: enough that threads finish together, few enough that handing out costs
 * nothing. */
enum { LY_MAX_TASKS = 64 };

/* Tasks for `n` items of `item_floats` floats of memory traffic each: one per 32 KiB or so. */
LY_INLINE int ly_tasks(int64_t n, int64_t item_floats)
{
    int64_t tasks = n * item_floats / 8192 + 1;
    tasks = tasks < n ? tasks : n;
    return (int)(tasks < LY_MAX_TASKS ? tasks : LY_MAX_TASKS);
}

/* Sums over rows go by strips of LY_COL_UNIT columns, a task owning whole strips, in blocks of LY_COL_ROWS rows whose
 * sums are then added: one order, and less rounding than one long chain. */
enum { LY_COL_UNIT = 32, LY_COL_ROWS = 32 };

/* One row's part of a strip. */
typedef struct ly_cols {
    ly_vf v[2];
} ly_cols;

LY_INLINE int ly_col_tasks(int64_t n_cols)
{
    int64_t strips = (n_cols + LY_COL_UNIT - 1) / LY_COL_UNIT;
    return (int)(strips < LY_MAX_TASKS ? strips : LY_MAX_TASKS);
}

LY_INLINE ly_cols ly_cols_zero(void)
{
    return (ly_cols){{ly_vzero(), ly_vzero()}};
}

/* The first n (any number >= 1) columns at x, 0 in the others. */
LY_INLINE ly_cols ly_cols_load(const float *x, int64_t n)
{
    return (ly_cols){{ly_vload_n(x, n), n > LY_LANES ? ly_vload_n(x + LY_LANES, n - LY_LANES) : ly_vzero()}};
}

LY_INLINE ly_cols ly_cols_add(ly_cols x, ly_cols y)
{
    return (ly_cols){{ly_vadd(x.v[0], y.v[0]), ly_vadd(x.v[1], y.v[1])}};
}

/* The same from elements of any type. */
LY_INLINE ly_cols ly_cols_tload(mc_dtype type, const void *x, int64_t n)
{
    return (ly_cols){
        {ly_tload(type, x, n), n > LY_LANES ? ly_tload(type, ly_elem(type, x, LY_LANES), n - LY_LANES) : ly_vzero()}};
}

/* x[0..n) += sums */
LY_INLINE void ly_cols_accumulate(float *x, ly_cols sums, int64_t n)
{
    ly_cols old = ly_cols_load(x, n);
    ly_vstore_n(x, ly_vadd(old.v[0], sums.v[0]), n);
    if (n > LY_LANES) {
        ly_vstore_n(x + LY_LANES, ly_vadd(old.v[1], sums.v[1]), n - LY_LANES);
    }
}

LY_INLINE const float *ly_cf(mc_tensor t)
{
    return (const float *)t.data;
}

LY_INLINE float *ly_f(mc_tensor t)
{
    return (float *)t.data;
}

/* Contiguous and exactly d0 x d1, or d0, long. */
LY_INLINE int ly_is_2d(mc_tensor t, int64_t d0, int64_t d1)
{
    return t.n_dims == 2 && t.dims[0] == d0 && t.dims[1] == d1 && mc_tensor_contiguous(t);
}

LY_INLINE int ly_is_1d(mc_tensor t, int64_t d0)
{
    return t.n_dims == 1 && t.dims[0] == d0 && mc_tensor_contiguous(t);
}

LY_INLINE int ly_absent_or_2d(mc_tensor t, int64_t d0, int64_t d1)
{
    return !mc_tensor_present(t) || ly_is_2d(t, d0, d1);
}

LY_INLINE int ly_absent_or_1d(mc_tensor t, int64_t d0)
{
    return !mc_tensor_present(t) || ly_is_1d(t, d0);
}

/* Refuses a present tensor a->name of another type than `want`; `op` is a literal. (3: the length of "a->".) */
#define LY_TRY_DTYPE(op, tensor, want)                                                                    \
    do {                                                                                                  \
        if (mc_tensor_present(tensor) && (tensor).dtype != (want)) {                                      \
            return MC_FAIL(MC_UNSUPPORTED, "operator " op ": operand %s is %s; this call takes %s there", \
                           &(#tensor)[3], mc_dtype_name((tensor).dtype), mc_dtype_name(want));            \
        }                                                                                                 \
    } while (0)
#define LY_TRY_F32(op, tensor) LY_TRY_DTYPE(op, tensor, MC_F32)

/* Refuses a present tensor a->name whose type is not one that LY_FOR_TYPE knows. Other tensors of type T follow:
 * LY_TRY_DTYPE(op, a->other, a->name.dtype). */
#define LY_TRY_TYPE(op, tensor)                                                                           \
    do {                                                                                                  \
        if (mc_tensor_present(tensor) && (tensor).dtype != MC_F32 && (tensor).dtype != MC_BF16 &&         \
            (tensor).dtype != MC_F16) {                                                                   \
            return MC_FAIL(MC_UNSUPPORTED,                                                                \
                           "operator " op ": operand %s is %s; the CPU operators take f32, bf16 and f16", \
                           &(#tensor)[3], mc_dtype_name((tensor).dtype));                                 \
        }                                                                                                 \
    } while (0)

#endif
