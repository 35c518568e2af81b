/* Device functions that neither the C library nor CUDA's headers have for g++: arithmetic, bits, cached loads, and the
 * 16-bit types. Results may differ from a GPU's in the last bits (expf, rsqrtf, fused multiply-add). */
#ifndef TESTS_CUDA_ON_CPU_MATH_H
#define TESTS_CUDA_ON_CPU_MATH_H

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <type_traits>

/* The C library declares functions of these names that nobody may call. */
#define __expf(x) expf(x)
#define __exp10f(x) exp10f(x)
#define __logf(x) logf(x)
#define __log2f(x) log2f(x)
#define __sinf(x) sinf(x)
#define __cosf(x) cosf(x)
#define __tanf(x) tanf(x)
#define __powf(x, y) powf(x, y)

static inline float __fdividef(float a, float b)
{
    return a / b;
}
static inline float fdividef(float a, float b)
{
    return a / b;
}
static inline float __fadd_rn(float a, float b)
{
    return a + b;
}
static inline float __fsub_rn(float a, float b)
{
    return a - b;
}
static inline float __fmul_rn(float a, float b)
{
    return a * b;
}
static inline float __fdiv_rn(float a, float b)
{
    return a / b;
}
static inline float __fsqrt_rn(float x)
{
    return sqrtf(x);
}
static inline float __frcp_rn(float x)
{
    return 1.0f / x;
}
static inline float __frsqrt_rn(float x)
{
    return static_cast<float>(1.0 / sqrt(static_cast<double>(x)));
}
static inline float __fmaf_rn(float a, float b, float c)
{
    return fmaf(a, b, c);
}
static inline float rsqrtf(float x)
{
    return 1.0f / sqrtf(x);
}
static inline double rsqrt(double x)
{
    return 1.0 / sqrt(x);
}
static inline float __saturatef(float x)
{
    return x > 1.0f ? 1.0f : x > 0.0f ? x : 0.0f; /* NaN becomes 0 */
}

template <class To, class From> static inline To ly_on_cpu_bits(From x)
{
    static_assert(sizeof(To) == sizeof(From), "same size");
    To y;
    memcpy(&y, &x, sizeof y);
    return y;
}
static inline unsigned __float_as_uint(float x)
{
    return ly_on_cpu_bits<unsigned>(x);
}
static inline float __uint_as_float(unsigned x)
{
    return ly_on_cpu_bits<float>(x);
}
static inline int __float_as_int(float x)
{
    return ly_on_cpu_bits<int>(x);
}
static inline float __int_as_float(int x)
{
    return ly_on_cpu_bits<float>(x);
}
static inline long long __double_as_longlong(double x)
{
    return ly_on_cpu_bits<long long>(x);
}
static inline double __longlong_as_double(long long x)
{
    return ly_on_cpu_bits<double>(x);
}

static inline unsigned __umulhi(unsigned a, unsigned b)
{
    return static_cast<unsigned>((static_cast<uint64_t>(a) * b) >> 32);
}
static inline int __mulhi(int a, int b)
{
    return static_cast<int>((static_cast<int64_t>(a) * b) >> 32);
}
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b)
{
    __extension__ typedef unsigned __int128 wide;
    return static_cast<unsigned long long>((static_cast<wide>(a) * b) >> 64);
}
static inline int __popc(unsigned x)
{
    return __builtin_popcount(x);
}
static inline int __popcll(unsigned long long x)
{
    return __builtin_popcountll(x);
}
static inline int __clz(int x)
{
    return x ? __builtin_clz(static_cast<unsigned>(x)) : 32;
}
static inline int __clzll(long long x)
{
    return x ? __builtin_clzll(static_cast<unsigned long long>(x)) : 64;
}
static inline int __ffs(int x)
{
    return __builtin_ffs(x);
}
static inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned by)
{
    uint64_t both = static_cast<uint64_t>(high) << 32 | low;
    return static_cast<unsigned>(both << (by & 31) >> 32);
}
static inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned by)
{
    uint64_t both = static_cast<uint64_t>(high) << 32 | low;
    return static_cast<unsigned>(both >> (by & 31));
}

template <class A, class B> static inline std::common_type_t<A, B> min(A a, B b)
{
    return b < a ? b : a;
}
template <class A, class B> static inline std::common_type_t<A, B> max(A a, B b)
{
    return a < b ? b : a;
}

/* Cache hints say nothing here. */
#define LY_ON_CPU_LOAD(name)                            \
    template <class T> static inline T name(const T *p) \
    {                                                   \
        return *p;                                      \
    }
LY_ON_CPU_LOAD(__ldg)
LY_ON_CPU_LOAD(__ldca)
LY_ON_CPU_LOAD(__ldcg)
LY_ON_CPU_LOAD(__ldcs)
LY_ON_CPU_LOAD(__ldlu)
LY_ON_CPU_LOAD(__ldcv)
#define LY_ON_CPU_STORE(name)                                    \
    template <class T> static inline void name(T *p, const T &x) \
    {                                                            \
        *p = x;                                                  \
    }
LY_ON_CPU_STORE(__stwb)
LY_ON_CPU_STORE(__stcg)
LY_ON_CPU_STORE(__stcs)
LY_ON_CPU_STORE(__stwt)

/* Fused up to one more rounding, in double: the last bit may differ from a GPU's where that falls on a tie. */
static inline __nv_bfloat16 __hfma(__nv_bfloat16 a, __nv_bfloat16 b, __nv_bfloat16 c)
{
    return __double2bfloat16(fma(static_cast<double>(__bfloat162float(a)), __bfloat162float(b), __bfloat162float(c)));
}
static inline __half __hfma(__half a, __half b, __half c)
{
    return __double2half(fma(static_cast<double>(__half2float(a)), __half2float(b), __half2float(c)));
}
static inline __nv_bfloat162 __hfma2(__nv_bfloat162 a, __nv_bfloat162 b, __nv_bfloat162 c)
{
    return __nv_bfloat162(__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y));
}
static inline __half2 __hfma2(__half2 a, __half2 b, __half2 c)
{
    return __half2(__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y));
}

#endif
