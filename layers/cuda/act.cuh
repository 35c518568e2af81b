/* Activation functions and their derivatives in f32: the formulas of elementwise_cpu.c, one element at a time. */
#ifndef LAYERS_CUDA_ACT_CUH
#define LAYERS_CUDA_ACT_CUH

#include "layers/cuda/kernel.cuh"
#include "layers/elementwise.h"

/* e^x, to 2 units in the last place for T = f32. For 16-bit T the processor's approximation, which errs by less than
 * 10^-5: hundreds of times finer than the rounding that follows. */
template <class T> __device__ __forceinline__ float ly_act_exp(float x)
{
    return sizeof(T) == 4 ? expf(x) : __expf(x);
}
/* The quick quotient errs by 2 units in the last place at most, and gives the limit 0 for a denominator of 2^126 and
 * more.
 */
template <class T> __device__ __forceinline__ float ly_act_sigmoid(float x)
{
    return __fdividef(1.0f, 1.0f + ly_act_exp<T>(-x));
}

/* Value and derivative; the compiler drops the half that is not used. Infinities and NaN as in elementwise_cpu.c. */
struct ly_act_pair {
    float value, slope;
};

/* x sigmoid(2 u); |du/dx| is bounded so that far out it does not become inf * 0. */
template <class T> __device__ __forceinline__ ly_act_pair ly_act_gelu_tanh(float x)
{
    const float k = 1.5957691216f; /* 2 sqrt(2 / pi) */
    float xx = x * x, s = ly_act_sigmoid<T>(x * k * fmaf(xx, 0.044715f, 1.0f)), value = x * s;
    float du = fmaf(fminf(400.0f, xx), 3.0f * 0.044715f * k, k);
    return {value, fmaf(value * (1.0f - s), du, s)};
}

template <class T> __device__ __forceinline__ ly_act_pair ly_act_gelu_erf(float x)
{
    float cdf = fmaf(0.5f, erff(x * 0.70710678f), 0.5f), density = ly_act_exp<T>(x * x * -0.5f) * 0.39894228f;
    float bounded = fminf(20.0f, fmaxf(-20.0f, x)); /* a NaN is in the density */
    return {x * cdf, fmaf(bounded, density, cdf)};
}

template <class T> __device__ __forceinline__ ly_act_pair ly_act_silu(float x)
{
    float s = ly_act_sigmoid<T>(x), value = x * s;
    return {value, fmaf(value, 1.0f - s, s)};
}

/* The activation of `KIND`; for SwiGLU that of the gate. */
template <class T, ly_act_kind KIND> __device__ __forceinline__ ly_act_pair ly_act_of(float x)
{
    if constexpr (KIND == LY_GELU_TANH) {
        return ly_act_gelu_tanh<T>(x);
    } else if constexpr (KIND == LY_GELU_ERF) {
        return ly_act_gelu_erf<T>(x);
    } else if constexpr (KIND == LY_SQUARED_RELU) {
        float p = x < 0.0f ? 0.0f : x; /* keeps a NaN */
        return {p * p, p + p};
    } else {
        return ly_act_silu<T>(x);
    }
}

#endif
