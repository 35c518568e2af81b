/* Division by a number that a whole launch shares: one product and one shift instead of the processor's long sequence.
 */
#ifndef LAYERS_CUDA_DIVIDE_CUH
#define LAYERS_CUDA_DIVIDE_CUH

#include "layers/cuda/kernel.cuh"
#include "megac/base/status.h"

/* n / divisor for n < 2^31. With 2^s the power of two at or above the divisor, magic = floor(2^(31+s) / divisor) + 1
 * exceeds 2^(31+s) / divisor by at most 1, so n magic / 2^(31+s) exceeds n / divisor by less than 1 / divisor: never
 * enough to reach the next integer. magic fits 32 bits. */
struct ly_divider {
    uint32_t divisor, magic, shift;
};

/* 1 <= divisor <= 2^31 */
static inline ly_divider ly_divider_of(int64_t divisor)
{
    uint32_t s = 0;
    MC_ASSERT(divisor >= 1 && divisor <= INT64_C(1) << 31);
    while (INT64_C(1) << s < divisor) {
        s++;
    }
    return {(uint32_t)divisor, (uint32_t)((UINT64_C(1) << (31 + s)) / (uint64_t)divisor + 1), 31 + s};
}

__host__ __device__ __forceinline__ uint32_t ly_divide(uint32_t n, const ly_divider &d)
{
    return (uint32_t)((uint64_t)n * d.magic >> d.shift);
}

#endif
