/* Element conversions on load, all through float or double. */
#include <string.h>

#include "megac/base/half.h"
#include "megac/train/checkpoint/ckpt_impl.h"

#define CAST(name, from_type, to_type, expr)                        \
    static void name(void *dst, const void *src, size_t n)          \
    {                                                               \
        for (size_t i = 0; i < n; i++) {                            \
            from_type v;                                            \
            memcpy(&v, (const char *)src + i * sizeof v, sizeof v); \
            to_type r = (expr);                                     \
            memcpy((char *)dst + i * sizeof r, &r, sizeof r);       \
        }                                                           \
    }

CAST(f32_f64, float, double, v)
CAST(f32_bf16, float, uint16_t, mc_bf16_from_f32(v))
CAST(f32_f16, float, uint16_t, mc_f16_from_f32(v))
CAST(f64_f32, double, float, (float)v)
CAST(f64_bf16, double, uint16_t, mc_bf16_from_f32((float)v))
CAST(f64_f16, double, uint16_t, mc_f16_from_f32((float)v))
CAST(bf16_f32, uint16_t, float, mc_f32_from_bf16(v))
CAST(bf16_f64, uint16_t, double, mc_f32_from_bf16(v))
CAST(bf16_f16, uint16_t, uint16_t, mc_f16_from_f32(mc_f32_from_bf16(v)))
CAST(f16_f32, uint16_t, float, mc_f32_from_f16(v))
CAST(f16_f64, uint16_t, double, mc_f32_from_f16(v))
CAST(f16_bf16, uint16_t, uint16_t, mc_bf16_from_f32(mc_f32_from_f16(v)))

static void copy_1(void *dst, const void *src, size_t n)
{
    memcpy(dst, src, n);
}

static void copy_2(void *dst, const void *src, size_t n)
{
    memcpy(dst, src, 2 * n);
}

static void copy_4(void *dst, const void *src, size_t n)
{
    memcpy(dst, src, 4 * n);
}

static void copy_8(void *dst, const void *src, size_t n)
{
    memcpy(dst, src, 8 * n);
}

mt_i_cast_fn mt_i_cast(mt_st_dtype from, mc_dtype to)
{
    static const mt_i_cast_fn table[MT_ST_DTYPE_COUNT][MC_DTYPE_COUNT] = {
        [MT_ST_F32] = {[MC_F32] = copy_4, [MC_F64] = f32_f64, [MC_BF16] = f32_bf16, [MC_F16] = f32_f16},
        [MT_ST_F64] = {[MC_F32] = f64_f32, [MC_F64] = copy_8, [MC_BF16] = f64_bf16, [MC_F16] = f64_f16},
        [MT_ST_BF16] = {[MC_F32] = bf16_f32, [MC_F64] = bf16_f64, [MC_BF16] = copy_2, [MC_F16] = bf16_f16},
        [MT_ST_F16] = {[MC_F32] = f16_f32, [MC_F64] = f16_f64, [MC_BF16] = f16_bf16, [MC_F16] = copy_2},
        [MT_ST_I32] = {[MC_I32] = copy_4},
        [MT_ST_U8] = {[MC_U8] = copy_1},
    };
    return table[from][to];
}
