/* 16 lanes to and from memory of any element type: what is read is widened to f32, what is stored is rounded to nearest
 * even, bit for bit as megac/base/half.h does it.
 *
 * An operator is written once, as an always-inline function whose element type is an argument, and called through
 * LY_FOR_TYPE, which makes the type a constant: the compiler then specialises it for f32, bf16 and f16. */
#ifndef LAYERS_CPU_TYPED_H
#define LAYERS_CPU_TYPED_H

#include "layers/cpu/simd.h"
#include "megac/base/half.h"
#include "megac/base/tensor.h"

/* Runs the statement with the constant T standing for `dtype`, one of f32, bf16, f16:
 *     LY_FOR_TYPE(job->type, T, run_rows(T, job, r0, r1)); */
#define LY_FOR_TYPE(dtype, T, ...)      \
    do {                                \
        switch (dtype) {                \
        case MC_BF16: {                 \
            const mc_dtype T = MC_BF16; \
            __VA_ARGS__;                \
            break;                      \
        }                               \
        case MC_F16: {                  \
            const mc_dtype T = MC_F16;  \
            __VA_ARGS__;                \
            break;                      \
        }                               \
        default: {                      \
            const mc_dtype T = MC_F32;  \
            __VA_ARGS__;                \
        }                               \
        }                               \
    } while (0)

/* Element i of an array of `type`; NULL of a NULL. */
LY_INLINE const void *ly_elem(mc_dtype type, const void *x, int64_t i)
{
    return x ? (const char *)x + i * (type == MC_F32 ? 4 : 2) : NULL;
}
LY_INLINE void *ly_elem_out(mc_dtype type, void *x, int64_t i)
{
    return x ? (char *)x + i * (type == MC_F32 ? 4 : 2) : NULL;
}

typedef uint16_t ly_i_h __attribute__((vector_size(LY_I_NATIVE * 2)));
typedef uint16_t ly_i_hu __attribute__((vector_size(LY_I_NATIVE * 2), aligned(2), may_alias));

/* Stores the low halves of 32-bit lanes that are at most 0xffff. */
LY_INLINE void ly_i_store_low(uint16_t *x, ly_vi v)
{
#if defined(__AVX512F__)
    _mm256_storeu_si256((__m256i_u *)x, _mm512_cvtepi32_epi16((__m512i)v.a));
#elif defined(__AVX2__)
    /* The packing interleaves the halves of its operands by 64 bits. */
    __m256i packed = _mm256_packus_epi32((__m256i)v.a, (__m256i)v.b);
    _mm256_storeu_si256((__m256i_u *)x, _mm256_permute4x64_epi64(packed, 0xd8));
#elif defined(__SSE4_1__)
    _mm_storeu_si128((__m128i_u *)x, _mm_packus_epi32((__m128i)v.a, (__m128i)v.b));
    _mm_storeu_si128((__m128i_u *)(x + 8), _mm_packus_epi32((__m128i)v.c, (__m128i)v.d));
#else
#define LY_I_STMT(p, at) *(ly_i_hu *)(x + at) = __builtin_convertvector((ly_i_u)v.p, ly_i_h);
    LY_I_EACH(LY_I_STMT)
#undef LY_I_STMT
#endif
}

#define LY_I_STMT(p, at) r.p = (ly_i_f)(__builtin_convertvector(*(const ly_i_hu *)(x + at), ly_i_u) << 16);
LY_I_DEFINE(ly_vf, ly_vload_bf16, (const uint16_t *x), LY_I_STMT)
#undef LY_I_STMT

LY_INLINE ly_i_i ly_i_round_bf16(ly_i_f x)
{
    ly_i_u bits = (ly_i_u)x, high = bits >> 16, nan = (ly_i_u)(x != x);
    ly_i_u rounded = (bits + 0x7fffu + (high & 1u)) >> 16; /* carries into the exponent, and from there to infinity */
    return (ly_i_i)((rounded & ~nan) | ((high | 0x40u) & nan));
}

LY_INLINE void ly_vstore_bf16(uint16_t *x, ly_vf v)
{
    ly_vi r;
#define LY_I_STMT(p, at) r.p = ly_i_round_bf16(v.p);
    LY_I_EACH(LY_I_STMT)
#undef LY_I_STMT
    ly_i_store_low(x, r);
}

#if defined(__AVX512F__)
LY_INLINE ly_vf ly_vload_f16(const uint16_t *x)
{
    return (ly_vf){(ly_i_f)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i_u *)x))};
}
LY_INLINE void ly_vstore_f16(uint16_t *x, ly_vf v)
{
    _mm256_storeu_si256((__m256i_u *)x, _mm512_cvtps_ph((__m512)v.a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
#elif defined(__AVX2__) && defined(__F16C__)
LY_INLINE ly_vf ly_vload_f16(const uint16_t *x)
{
    return (ly_vf){(ly_i_f)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i_u *)x)),
                   (ly_i_f)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i_u *)(x + 8)))};
}
LY_INLINE void ly_vstore_f16(uint16_t *x, ly_vf v)
{
    _mm_storeu_si128((__m128i_u *)x, _mm256_cvtps_ph((__m256)v.a, _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128((__m128i_u *)(x + 8), _mm256_cvtps_ph((__m256)v.b, _MM_FROUND_TO_NEAREST_INT));
}
#else
LY_INLINE ly_vf ly_vload_f16(const uint16_t *x)
{
    float t[LY_LANES];
    for (int i = 0; i < LY_LANES; i++) {
        t[i] = mc_f32_from_f16(x[i]);
    }
    return ly_vload(t);
}
LY_INLINE void ly_vstore_f16(uint16_t *x, ly_vf v)
{
    float t[LY_LANES];
    ly_vstore(t, v);
    for (int i = 0; i < LY_LANES; i++) {
        x[i] = mc_f16_from_f32(t[i]);
    }
}
#endif

/* The first n (any number >= 1) elements at x, of which 16 at most are read; the other lanes 0. */
LY_INLINE ly_vf ly_tload(mc_dtype type, const void *x, int64_t n)
{
    if (type == MC_F32) {
        return ly_vload_n((const float *)x, n);
    }
    uint16_t tail[LY_LANES] = {0};
    if (n < LY_LANES) {
        memcpy(tail, x, (size_t)n * sizeof *tail);
        x = tail;
    }
    return type == MC_BF16 ? ly_vload_bf16((const uint16_t *)x) : ly_vload_f16((const uint16_t *)x);
}

/* Stores the first n (any number >= 1) lanes, 16 at most. */
LY_INLINE void ly_tstore(mc_dtype type, void *x, ly_vf v, int64_t n)
{
    if (type == MC_F32) {
        ly_vstore_n((float *)x, v, n);
        return;
    }
    uint16_t tail[LY_LANES], *to = n < LY_LANES ? tail : (uint16_t *)x;
    if (type == MC_BF16) {
        ly_vstore_bf16(to, v);
    } else {
        ly_vstore_f16(to, v);
    }
    if (n < LY_LANES) {
        memcpy(x, tail, (size_t)n * sizeof *tail);
    }
}

#endif
