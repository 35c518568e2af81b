/* Products on tensor cores, a warp at a time: mma.m16n8k16 (16-bit operands, f32 sums) and the loads that feed it, from
 * sm_80 on. Unlike nvcuda::wmma's, these registers have a documented layout (PTX ISA, "Matrix Fragments for
 * mma.m16n8k16"), so that softmax works on the sums where they are and hands them on as the next product's operand,
 * without a round trip through shared memory.
 *
 * With g = lane / 4 and t = lane % 4, a lane holds
 *   A (16, 16): a[0] (g, 2t..2t+1)  a[1] (g + 8, 2t..)  a[2] (g, 2t + 8..)  a[3] (g + 8, 2t + 8..)
 *   B (16, 8):  b0 (2t..2t+1, g)    b1 (2t + 8.., g)
 *   C (16, 8):  c[0], c[1] (g, 2t..2t+1)  c[2], c[3] (g + 8, 2t..)
 * two 16-bit values in a register, the lower index in the low half. All 32 lanes of a warp call together.
 *
 * Everything has an alternative made of shuffles: it runs where there is no PTX (tests on the CPU), and with
 * LY_MMA_BY_SHUFFLES on a GPU too, to compare. */
#ifndef LAYERS_CUDA_MMA_CUH
#define LAYERS_CUDA_MMA_CUH

#include <string.h>

#include "layers/cuda/kernel.cuh"

#if defined(__CUDA_ARCH__) && !defined(LY_MMA_BY_SHUFFLES)
#define LY_I_MMA_PTX 1
#else
#define LY_I_MMA_PTX 0
#endif

__device__ __forceinline__ int ly_lane()
{
    return threadIdx.x % LY_WARP;
}

/* Two numbers rounded to T, `low` in the low half. */
template <class T> __device__ __forceinline__ uint32_t ly_pack2(float low, float high);
template <> __device__ __forceinline__ uint32_t ly_pack2<__nv_bfloat16>(float low, float high)
{
    __nv_bfloat162 x = __floats2bfloat162_rn(low, high);
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}
template <> __device__ __forceinline__ uint32_t ly_pack2<__half>(float low, float high)
{
    __half2 x = __floats2half2_rn(low, high);
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

/* 2^x to 2 units in the last place; 0 below 2^-126, where the exact result would be subnormal. */
__device__ __forceinline__ float ly_exp2(float x)
{
#if LY_I_MMA_PTX
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return x < -126.0f ? 0.0f : exp2f(x);
#endif
}

#if LY_I_MMA_PTX

/* C += A B. */
template <class T>
__device__ __forceinline__ void ly_mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <>
__device__ __forceinline__ void ly_mma<__nv_bfloat16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1)
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
__device__ __forceinline__ void ly_mma<__half>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1)
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* Loads four 8x8 matrices from shared memory: lane l gives the address of the 8 elements (16 bytes, aligned) of row
 * l % 8 of matrix l / 8, and receives of matrix i the elements (lane / 4, 2 (lane % 4)..+1) in r[i]. */
__device__ __forceinline__ void ly_ldmatrix(uint32_t (&r)[4], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"((uint32_t)__cvta_generic_to_shared(row)));
}
/* The same, each matrix transposed: (2 (lane % 4)..+1, lane / 4). */
__device__ __forceinline__ void ly_ldmatrix_transposed(uint32_t (&r)[4], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"((uint32_t)__cvta_generic_to_shared(row)));
}

#else

/* sum + x . y of the four 16-bit values in each. */
template <class T> __device__ __forceinline__ float ly_i_dot4(uint64_t x, uint64_t y, float sum)
{
    for (int i = 0; i < 4; i++) {
        uint16_t x_bits = (uint16_t)(x >> 16 * i), y_bits = (uint16_t)(y >> 16 * i);
        T u, v;
        memcpy(static_cast<void *>(&u), &x_bits, 2);
        memcpy(static_cast<void *>(&v), &y_bits, 2);
        sum += ly_to_f32(u) * ly_to_f32(v);
    }
    return sum;
}

template <class T>
__device__ __forceinline__ void ly_mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1)
{
    int lane = ly_lane(), quad = lane / 4 * 4, t = lane % 4;
    uint64_t low = a[0] | (uint64_t)a[2] << 32, high = a[1] | (uint64_t)a[3] << 32, b = b0 | (uint64_t)b1 << 32;
    for (int s = 0; s < 4; s++) { /* lane s of a quad holds inner indices 2s, 2s + 1, 2s + 8, 2s + 9 */
        uint64_t x0 = __shfl_sync(0xffffffffu, low, quad + s), x1 = __shfl_sync(0xffffffffu, high, quad + s);
        uint64_t y0 = __shfl_sync(0xffffffffu, b, 8 * t + s), y1 = __shfl_sync(0xffffffffu, b, 8 * t + 4 + s);
        c[0] = ly_i_dot4<T>(x0, y0, c[0]);
        c[1] = ly_i_dot4<T>(x0, y1, c[1]);
        c[2] = ly_i_dot4<T>(x1, y0, c[2]);
        c[3] = ly_i_dot4<T>(x1, y1, c[3]);
    }
}

__device__ __forceinline__ void ly_ldmatrix(uint32_t (&r)[4], const void *row)
{
    int lane = ly_lane();
    for (int i = 0; i < 4; i++) {
        uint64_t from = __shfl_sync(0xffffffffu, (uint64_t)(uintptr_t)row, 8 * i + lane / 4);
        memcpy(&r[i], (const uint16_t *)(uintptr_t)from + 2 * (lane % 4), 4);
    }
}
__device__ __forceinline__ void ly_ldmatrix_transposed(uint32_t (&r)[4], const void *row)
{
    int lane = ly_lane();
    for (int i = 0; i < 4; i++) {
        uint64_t low = __shfl_sync(0xffffffffu, (uint64_t)(uintptr_t)row, 8 * i + 2 * (lane % 4));
        uint64_t high = __shfl_sync(0xffffffffu, (uint64_t)(uintptr_t)row, 8 * i + 2 * (lane % 4) + 1);
        r[i] = ((const uint16_t *)(uintptr_t)low)[lane / 4] | (uint32_t)((const uint16_t *)(uintptr_t)high)[lane / 4]
                                                                  << 16;
    }
}

#endif
#endif
