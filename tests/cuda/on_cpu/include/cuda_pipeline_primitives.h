/* cp.async by CUDA's C interface; stands before CUDA's own header of this name. A copy happens at the latest moment
 * that the kernel permits (the wait), at the earliest (the call), or at either, as the order says: a wait that is too
 * weak and a buffer that is still being read both change results. */
#ifndef TESTS_CUDA_ON_CPU_INCLUDE_CUDA_PIPELINE_PRIMITIVES_H
#define TESTS_CUDA_ON_CPU_INCLUDE_CUDA_PIPELINE_PRIMITIVES_H

#include "tests/cuda/on_cpu/runtime.h"

#define __pipeline_memcpy_async(to, from, ...) ly_on_cpu::pipeline_copy(LY_ON_CPU_HERE, (to), (from), __VA_ARGS__)
#define __pipeline_commit() ly_on_cpu::copy_commit()
#define __pipeline_wait_prior(n) ly_on_cpu::copy_wait(n)

namespace ly_on_cpu
{

inline void pipeline_copy(place at, void *to, const void *from, size_t bytes, size_t zeros = 0)
{
    copy_async(to, from, bytes, zeros, at);
}

} // namespace ly_on_cpu

#endif
