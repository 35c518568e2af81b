/* Kernels for the tests of the stand-in CUDA runtime: plain loops, launched through tests/cuda/on_cpu/hook.h as those
 * of the product are. Each returns the cudaError_t of its launch as an int. Built twice, plain and for the race
 * detector. */
#ifndef TESTS_CUDA_STANDIN_KERNELS_H
#define TESTS_CUDA_STANDIN_KERNELS_H

#include <stddef.h>

/* y[i] -= a * x[i] for n elements. */
int tk_subtract(float *y, const float *x, size_t n, float a, void *stream);
/* y[i] = x[i] * x[i], by way of n floats of workspace. */
int tk_square(float *y, const float *x, float *workspace, size_t n, void *stream);
/* A kernel that fails as one that breaks the rules does. */
int tk_fail(float *y, void *stream);
/* A launch whose grid has no block. */
int tk_empty_grid(float *y, void *stream);

#endif
