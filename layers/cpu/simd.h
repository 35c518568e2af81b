/* Vectors of 16 floats for every CPU variant.
 *
 * ly_vf holds 16 lanes as 4, 2 or 1 native vectors (SSE, AVX2, AVX-512), so that all variants walk rows in the same
 * steps and add the lanes of a sum in the same tree. The native parts are GCC/clang vector extensions; the few x86
 * intrinsics stand behind guards, with a plain path for other processors. (One 64-byte vector type would be shorter to
 * write, but GCC 12 keeps it in memory and compares it lane by lane where the processor's registers are narrower.)
 *
 * Lanes past the end of a row: ly_vload_n gives 0 there, ly_vstore_n leaves memory alone. */
#ifndef LAYERS_CPU_SIMD_H
#define LAYERS_CPU_SIMD_H

#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define LY_INLINE static inline __attribute__((always_inline, unused))

enum { LY_LANES = 16 };

/* LY_I_NATIVE: lanes of a native vector. LY_I_EACH(X): X(part) for each of the native parts. */
#if defined(__AVX512F__)
#define LY_I_NATIVE 16
#define LY_I_EACH(X) X(a, 0)
#elif defined(__AVX2__)
#define LY_I_NATIVE 8
#define LY_I_EACH(X) X(a, 0) X(b, 8)
#else
#define LY_I_NATIVE 4
#define LY_I_EACH(X) X(a, 0) X(b, 4) X(c, 8) X(d, 12)
#endif

typedef float ly_i_f __attribute__((vector_size(LY_I_NATIVE * 4)));
typedef int32_t ly_i_i __attribute__((vector_size(LY_I_NATIVE * 4)));
typedef uint32_t ly_i_u __attribute__((vector_size(LY_I_NATIVE * 4)));
typedef float ly_i_fu __attribute__((vector_size(LY_I_NATIVE * 4), aligned(4), may_alias));
typedef uint32_t ly_i_uu __attribute__((vector_size(LY_I_NATIVE * 4), aligned(4), may_alias));
typedef float ly_i_f4 __attribute__((vector_size(16)));

#define LY_I_MEMBER_F(p, at) ly_i_f p;
#define LY_I_MEMBER_I(p, at) ly_i_i p;
/* 16 floats; 16 32-bit integers, or a mask (each lane all ones or zero). */
typedef struct ly_vf {
    LY_I_EACH(LY_I_MEMBER_F)
} ly_vf;
typedef struct ly_vi {
    LY_I_EACH(LY_I_MEMBER_I)
} ly_vi;

/* Defines `ret name(args)` whose every native part is `expr`, in which p is the part and `at` its first lane. */
#define LY_I_DEFINE(ret, name, args, stmt) \
    LY_INLINE ret name args                \
    {                                      \
        ret r;                             \
        LY_I_EACH(stmt)                    \
        return r;                          \
    }

#define LY_I_STMT(p, at) r.p = x - (ly_i_f){0};
LY_I_DEFINE(ly_vf, ly_vset1, (float x), LY_I_STMT)
#undef LY_I_STMT
#define LY_I_STMT(p, at) r.p = x - (ly_i_i){0};
LY_I_DEFINE(ly_vi, ly_viset1, (int32_t x), LY_I_STMT)
#undef LY_I_STMT
#define LY_I_STMT(p, at) r.p = *(const ly_i_fu *)(x + at);
LY_I_DEFINE(ly_vf, ly_vload, (const float *x), LY_I_STMT)
#undef LY_I_STMT
#define LY_I_STMT(p, at) r.p = (ly_i_i) * (const ly_i_uu *)(x + at);
LY_I_DEFINE(ly_vi, ly_viload, (const uint32_t *x), LY_I_STMT)
#undef LY_I_STMT
#define LY_I_STMT(p, at) r.p = x.p + y.p;
LY_I_DEFINE(ly_vf, ly_vadd, (ly_vf x, ly_vf y), LY_I_STMT)
LY_I_DEFINE(ly_vi, ly_viadd, (ly_vi x, ly_vi y), LY_I_STMT)
#undef LY_I_STMT
#define LY_I_STMT(p, at) r.p = x.p - y.p;
LY_I_DEFINE(ly_vf, ly_vsub, (ly_vf x, ly_vf y), LY_I_STMT)
LY_I_DEFINE(ly_vi, ly_visub, (ly_vi x, ly_vi y), LY_I_STMT)
#undef LY_I_STMT
#define LY_I_STMT(p, at) r.p = x.p * y.p;
LY_I_DEFINE(ly_vf, ly_vmul, (ly_vf x, ly_vf y), LY_I_STMT)
#undef LY_I_STMT
#define LY_I_STMT(p, at) r.p = x.p / y.p;
LY_I_DEFINE(ly_vf, ly_vdiv, (ly_vf x, ly_vf y), LY_I_STMT)
#undef LY_I_STMT
/* x y + z and z - x y, one rounding where the processor has fused multiply-add. Written out, since the compiler may
 * fuse either product of x y + (u v): all copies of an operator that it makes must round alike. */
#if defined(__AVX512F__)
#define LY_I_FMA(x, y, z) (ly_i_f) _mm512_fmadd_ps((__m512)(x), (__m512)(y), (__m512)(z))
#define LY_I_FNMA(x, y, z) (ly_i_f) _mm512_fnmadd_ps((__m512)(x), (__m512)(y), (__m512)(z))
#elif defined(__FMA__) && defined(__AVX2__)
#define LY_I_FMA(x, y, z) (ly_i_f) _mm256_fmadd_ps((__m256)(x), (__m256)(y), (__m256)(z))
#define LY_I_FNMA(x, y, z) (ly_i_f) _mm256_fnmadd_ps((__m256)(x), (__m256)(y), (__m256)(z))
#else
#define LY_I_FMA(x, y, z) ((x) * (y) + (z))
#define LY_I_FNMA(x, y, z) ((z) - (x) * (y))
#endif
#define LY_I_STMT(p, at) r.p = LY_I_FMA(x.p, y.p, z.p);
LY_I_DEFINE(ly_vf, ly_vfma, (ly_vf x, ly_vf y, ly_vf z), LY_I_STMT)
#undef LY_I_STMT
#define LY_I_STMT(p, at) r.p = LY_I_FNMA(x.p, y.p, z.p);
LY_I_DEFINE(ly_vf, ly_vfnma, (ly_vf x, ly_vf y, ly_vf z), LY_I_STMT)
#undef LY_I_STMT
#define LY_I_STMT(p, at) r.p = (ly_i_i)(x.p < y.p);
LY_I_DEFINE(ly_vi, ly_vlt, (ly_vf x, ly_vf y), LY_I_STMT)
LY_I_DEFINE(ly_vi, ly_vilt, (ly_vi x, ly_vi y), LY_I_STMT)
#undef LY_I_STMT
#define LY_I_STMT(p, at) r.p = (ly_i_i)((ly_i_u)x.p >= (ly_i_u)y.p);
/* Unsigned comparison. */
LY_I_DEFINE(ly_vi, ly_viuge, (ly_vi x, ly_vi y), LY_I_STMT)
#undef LY_I_STMT
#define LY_I_STMT(p, at) r.p = x.p & y.p;
LY_I_DEFINE(ly_vi, ly_viand, (ly_vi x, ly_vi y), LY_I_STMT)
#undef LY_I_STMT
#define LY_I_STMT(p, at) r.p = x.p | y.p;
LY_I_DEFINE(ly_vi, ly_vior, (ly_vi x, ly_vi y), LY_I_STMT)
#undef LY_I_STMT
#define LY_I_STMT(p, at) r.p = x.p >> n;
/* Arithmetic shifts. */
LY_I_DEFINE(ly_vi, ly_visra, (ly_vi x, int n), LY_I_STMT)
#undef LY_I_STMT
#define LY_I_STMT(p, at) r.p = x.p << n;
LY_I_DEFINE(ly_vi, ly_visll, (ly_vi x, int n), LY_I_STMT)
#undef LY_I_STMT
/* x where the mask is set, 0 elsewhere. */
#define LY_I_STMT(p, at) r.p = (ly_i_f)((ly_i_i)x.p & m.p);
LY_I_DEFINE(ly_vf, ly_vkeep, (ly_vi m, ly_vf x), LY_I_STMT)
#undef LY_I_STMT
/* m ? x : y */
#define LY_I_STMT(p, at) r.p = (ly_i_f)(((ly_i_i)x.p & m.p) | ((ly_i_i)y.p & ~m.p));
LY_I_DEFINE(ly_vf, ly_vselect, (ly_vi m, ly_vf x, ly_vf y), LY_I_STMT)
#undef LY_I_STMT
/* The bits, unchanged. */
#define LY_I_STMT(p, at) r.p = (ly_i_i)x.p;
LY_I_DEFINE(ly_vi, ly_vbits, (ly_vf x), LY_I_STMT)
#undef LY_I_STMT
#define LY_I_STMT(p, at) r.p = (ly_i_f)x.p;
LY_I_DEFINE(ly_vf, ly_vfrombits, (ly_vi x), LY_I_STMT)
#undef LY_I_STMT
#define LY_I_STMT(p, at) r.p = __builtin_convertvector(x.p, ly_i_f);
LY_I_DEFINE(ly_vf, ly_vtofloat, (ly_vi x), LY_I_STMT)
#undef LY_I_STMT

/* max: x where x > y, else y (so a NaN in x is dropped, a NaN in y kept). sqrt: correctly rounded. */
#if defined(__AVX512F__)
#define LY_I_MAX(x, y) (ly_i_f) _mm512_max_ps((__m512)(x), (__m512)(y))
#define LY_I_MIN(x, y) (ly_i_f) _mm512_min_ps((__m512)(x), (__m512)(y))
#define LY_I_SQRT(x) (ly_i_f) _mm512_sqrt_ps((__m512)(x))
#elif defined(__AVX2__)
#define LY_I_MAX(x, y) (ly_i_f) _mm256_max_ps((__m256)(x), (__m256)(y))
#define LY_I_MIN(x, y) (ly_i_f) _mm256_min_ps((__m256)(x), (__m256)(y))
#define LY_I_SQRT(x) (ly_i_f) _mm256_sqrt_ps((__m256)(x))
#elif defined(__x86_64__)
#define LY_I_MAX(x, y) (ly_i_f) _mm_max_ps((__m128)(x), (__m128)(y))
#define LY_I_MIN(x, y) (ly_i_f) _mm_min_ps((__m128)(x), (__m128)(y))
#define LY_I_SQRT(x) (ly_i_f) _mm_sqrt_ps((__m128)(x))
#else
LY_INLINE ly_i_f ly_i_pick(ly_i_i m, ly_i_f x, ly_i_f y)
{
    return (ly_i_f)(((ly_i_i)x & m) | ((ly_i_i)y & ~m));
}
LY_INLINE ly_i_f ly_i_sqrt(ly_i_f x)
{
    for (int i = 0; i < LY_I_NATIVE; i++) {
        x[i] = __builtin_sqrtf(x[i]);
    }
    return x;
}
#define LY_I_MAX(x, y) ly_i_pick((ly_i_i)((x) > (y)), x, y)
#define LY_I_MIN(x, y) ly_i_pick((ly_i_i)((x) < (y)), x, y)
#define LY_I_SQRT(x) ly_i_sqrt(x)
#endif
#define LY_I_STMT(p, at) r.p = LY_I_MAX(x.p, y.p);
LY_I_DEFINE(ly_vf, ly_vmax, (ly_vf x, ly_vf y), LY_I_STMT)
#undef LY_I_STMT
#define LY_I_STMT(p, at) r.p = LY_I_MIN(x.p, y.p);
LY_I_DEFINE(ly_vf, ly_vmin, (ly_vf x, ly_vf y), LY_I_STMT)
#undef LY_I_STMT
#define LY_I_STMT(p, at) r.p = LY_I_SQRT(x.p);
LY_I_DEFINE(ly_vf, ly_vsqrt, (ly_vf x), LY_I_STMT)
#undef LY_I_STMT

LY_INLINE ly_vf ly_vzero(void)
{
    return ly_vset1(0.0f);
}

LY_INLINE ly_vf ly_vabs(ly_vf x)
{
    return ly_vfrombits(ly_viand(ly_vbits(x), ly_viset1(0x7fffffff)));
}

/* |x| with the sign of s. */
LY_INLINE ly_vf ly_vcopysign(ly_vf x, ly_vf s)
{
    ly_vi sign = ly_viand(ly_vbits(s), ly_viset1((int32_t)0x80000000u));
    return ly_vfrombits(ly_vior(ly_vbits(ly_vabs(x)), sign));
}

LY_INLINE void ly_vstore(float *x, ly_vf v)
{
#define LY_I_STMT(p, at) *(ly_i_fu *)(x + at) = v.p;
    LY_I_EACH(LY_I_STMT)
#undef LY_I_STMT
}

/* Lane i of the mask is set when i < n. */
LY_INLINE ly_vi ly_vmask_n(int64_t n)
{
    static const int32_t lane[LY_LANES] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return ly_vilt(ly_viload((const uint32_t *)lane), ly_viset1(n < LY_LANES ? (int32_t)n : LY_LANES));
}

/* The first n (1..16) floats; the other lanes 0. */
LY_INLINE ly_vf ly_vload_n(const float *x, int64_t n)
{
    if (n >= LY_LANES) {
        return ly_vload(x);
    }
#if defined(__AVX512F__)
    return (ly_vf){(ly_i_f)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), x)};
#elif defined(__AVX2__)
    ly_vi m = ly_vmask_n(n);
    return (ly_vf){(ly_i_f)_mm256_maskload_ps(x, (__m256i)m.a), (ly_i_f)_mm256_maskload_ps(x + 8, (__m256i)m.b)};
#else
    float t[LY_LANES] = {0};
    memcpy(t, x, (size_t)n * sizeof *t);
    return ly_vload(t);
#endif
}

/* Stores the first n (1..16) lanes. */
LY_INLINE void ly_vstore_n(float *x, ly_vf v, int64_t n)
{
    if (n >= LY_LANES) {
        ly_vstore(x, v);
        return;
    }
#if defined(__AVX512F__)
    _mm512_mask_storeu_ps(x, (__mmask16)((1u << n) - 1), (__m512)v.a);
#elif defined(__AVX2__)
    ly_vi m = ly_vmask_n(n);
    _mm256_maskstore_ps(x, (__m256i)m.a, (__m256)v.a);
    _mm256_maskstore_ps(x + 8, (__m256i)m.b, (__m256)v.b);
#else
    float t[LY_LANES];
    ly_vstore(t, v);
    memcpy(x, t, (size_t)n * sizeof *t);
#endif
}

/* Folds 16 lanes to 4: lane i of the result takes lanes i, i + 8, i + 4, i + 12 (pairs at distance 8, then 4), whatever
 * the native width. OP8 and OP4 work on 8 and 4 lanes. */
#if LY_I_NATIVE == 16
#define LY_I_HALF(x, OP8) OP8(_mm512_castps512_ps256((__m512)(x).a), _mm512_extractf32x8_ps((__m512)(x).a, 1))
#elif LY_I_NATIVE == 8
#define LY_I_HALF(x, OP8) OP8((__m256)(x).a, (__m256)(x).b)
#endif
#if LY_I_NATIVE > 4
#define LY_I_DEFINE_FOLD(name, OP8, OP4)                                             \
    LY_INLINE ly_i_f4 name(ly_vf x)                                                  \
    {                                                                                \
        __m256 h = LY_I_HALF(x, OP8);                                                \
        return (ly_i_f4)OP4(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1)); \
    }
LY_I_DEFINE_FOLD(ly_i_fold_add, _mm256_add_ps, _mm_add_ps)
LY_I_DEFINE_FOLD(ly_i_fold_max, _mm256_max_ps, _mm_max_ps)
#else
LY_INLINE ly_i_f4 ly_i_fold_add(ly_vf x)
{
    return (x.a + x.c) + (x.b + x.d);
}
LY_INLINE ly_i_f4 ly_i_fold_max(ly_vf x)
{
    ly_i_f ac = LY_I_MAX(x.a, x.c), bd = LY_I_MAX(x.b, x.d);
    return LY_I_MAX(ac, bd);
}
#endif

/* Sum of the 16 lanes: pairs at distance 8, 4, 2, 1. */
LY_INLINE float ly_vsum(ly_vf x)
{
    ly_i_f4 q = ly_i_fold_add(x);
    return (q[0] + q[2]) + (q[1] + q[3]);
}

LY_INLINE float ly_vmaxlane(ly_vf x)
{
    ly_i_f4 q = ly_i_fold_max(x);
    float even = q[0] > q[2] ? q[0] : q[2], odd = q[1] > q[3] ? q[1] : q[3];
    return even > odd ? even : odd;
}

#endif
