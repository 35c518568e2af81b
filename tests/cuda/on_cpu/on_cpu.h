/* CUDA C++ for g++: the names that kernels use, on top of a runtime that executes every block as fibers, with exact
 * barriers and warp collectives. layers/cuda/launch.cuh includes it (LY_ON_CPU_HEADER) where nvcc does not compile.
 *
 * Not here, on purpose, because the CPU cannot show their errors: inline PTX, clusters, cooperative groups, tensor-map
 * copies, __activemask. A kernel that needs one has an alternative under #ifdef __CUDA_ARCH__. */
#ifndef TESTS_CUDA_ON_CPU_ON_CPU_H
#define TESTS_CUDA_ON_CPU_ON_CPU_H

#include <assert.h>
#include <stdio.h>

#include "tests/cuda/on_cpu/launch.h"
#include "tests/cuda/on_cpu/math.h"
#include "tests/cuda/on_cpu/sync.h"

#define __trap() ly_on_cpu::fail("__trap at %s:%d", __FILE__, __LINE__)

#endif
