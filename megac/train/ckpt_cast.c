/* Element conversions on load, all through float or double. */
#include <math.h>
#include <string.h>

#include "megac/train/ckpt_impl.h"

static float from_bf16(uint16_t v)
{
    uint32_t bits = (uint32_t)v << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

static uint16_t to_bf16(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, 4);
    if (isnan(f)) {
        return (uint16_t)(bits >> 16 | 0x40);
    }
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static float from_f16(uint16_t v)
{
    uint32_t sign = (uint32_t)(v & 0x8000) << 16, exponent = v >> 10 & 0x1f, mantissa = v & 0x3ff, bits;
    float f;
    if (exponent == 0) { /* zero and subnormal: mantissa x 2^-24, exact in float */
        f = (float)mantissa * 0x1p-24f;
        return sign ? -f : f;
    }
    bits = sign | (exponent == 31 ? 0xffu : exponent + 112) << 23 | mantissa << 13;
    memcpy(&f, &bits, 4);
    return f;
}

static uint16_t to_f16(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, 4);
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    uint32_t magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) {
        return (uint16_t)(sign | 0x7e00 | (bits >> 13 & 0x1ff));
    }
    if (magnitude >= 0x477ff000) { /* 65520 and above round to infinity */
        return (uint16_t)(sign | 0x7c00);
    }
    if (magnitude < 0x38800000) { /* below 2^-14: subnormal, a multiple of 2^-24; rint rounds to even */
        float a;
        memcpy(&a, &magnitude, 4);
        return (uint16_t)(sign | (uint32_t)rintf(a * 0x1p24f));
    }
    return (uint16_t)(sign | ((magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13));
}

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
CAST(f32_bf16, float, uint16_t, to_bf16(v))
CAST(f32_f16, float, uint16_t, to_f16(v))
CAST(f64_f32, double, float, (float)v)
CAST(f64_bf16, double, uint16_t, to_bf16((float)v))
CAST(f64_f16, double, uint16_t, to_f16((float)v))
CAST(bf16_f32, uint16_t, float, from_bf16(v))
CAST(bf16_f64, uint16_t, double, from_bf16(v))
CAST(bf16_f16, uint16_t, uint16_t, to_f16(from_bf16(v)))
CAST(f16_f32, uint16_t, float, from_f16(v))
CAST(f16_f64, uint16_t, double, from_f16(v))
CAST(f16_bf16, uint16_t, uint16_t, to_bf16(from_f16(v)))

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
