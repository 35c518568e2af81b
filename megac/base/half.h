/* Scalar conversions between f32 and the 16-bit types, bit for bit what the hardware does: to nearest, ties to even; an
 * infinity stays one, a NaN stays a NaN. */
#ifndef MEGAC_BASE_HALF_H
#define MEGAC_BASE_HALF_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

static inline float mc_f32_from_bf16(uint16_t v)
{
    uint32_t bits = (uint32_t)v << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

static inline uint16_t mc_bf16_from_f32(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, 4);
    if ((bits & 0x7fffffff) > 0x7f800000) {
        return (uint16_t)(bits >> 16 | 0x40);
    }
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static inline float mc_f32_from_f16(uint16_t v)
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

static inline uint16_t mc_f16_from_f32(float f)
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

/* bf16 of a value by stochastic rounding: up with the probability of what is cut off, so that the mean over random
 * words is x itself. The low 16 bits of `word` decide. Infinities and NaN as mc_bf16_from_f32. */
static inline uint16_t mc_bf16_stochastic(float x, uint32_t word)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (bits & 0x7f800000u) == 0x7f800000u ? mc_bf16_from_f32(x) : (uint16_t)((bits + (word & 0xffffu)) >> 16);
}

#ifdef __cplusplus
}
#endif
#endif
