/* What the programs with planted faults share. */
#ifndef TESTS_CUDA_STANDIN_FAULTS_H
#define TESTS_CUDA_STANDIN_FAULTS_H

#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>

#include "tests/cuda/standin/kernels.h"

enum { FAULTS_N = 256, FAULTS_WRONG = 1, FAULTS_ERROR = 3 };
#define FAULTS_BYTES (FAULTS_N * sizeof(float))

/* Ends the program at the first error: "CALL = number name". */
#define MUST(call)                                                                        \
    do {                                                                                  \
        int error_ = (int)(call);                                                         \
        if (error_) {                                                                     \
            printf("%s = %d %s\n", #call, error_, cudaGetErrorName((cudaError_t)error_)); \
            exit(FAULTS_ERROR);                                                           \
        }                                                                                 \
    } while (0)

static inline float *new_device(size_t bytes)
{
    void *ptr = NULL;
    MUST(cudaMalloc(&ptr, bytes));
    return ptr;
}

static inline float *new_pinned(size_t bytes)
{
    void *ptr = NULL;
    MUST(cudaMallocHost(&ptr, bytes));
    return ptr;
}

static inline cudaStream_t new_stream(void)
{
    cudaStream_t stream = NULL;
    MUST(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    return stream;
}

static inline cudaEvent_t new_event(void)
{
    cudaEvent_t event = NULL;
    MUST(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    return event;
}

static inline void set_all(float *x, float value)
{
    for (int i = 0; i < FAULTS_N; i++) {
        x[i] = value;
    }
}

/* Whether some element is not `value`; NaN is not. */
static inline int differs(const float *x, float value)
{
    int n = 0;
    for (int i = 0; i < FAULTS_N; i++) {
        n += !(x[i] == value);
    }
    return n > 0;
}

#endif
