/* The rank program of test_nccl.c: what its two files share. */
#ifndef TESTS_CUDA_STANDIN_RANKS_NCCL_H
#define TESTS_CUDA_STANDIN_RANKS_NCCL_H

#include <cuda_runtime_api.h>
#include <nccl.h>
#include <stdio.h>
#include <stdlib.h>

/* Ends the rank with status 3 unless the call returns 0. */
#define CHECK(call) check((int)(call), 0, #call, __FILE__, __LINE__)
/* ... unless it returns `want`. */
#define EXPECT(call, want) check((int)(call), (int)(want), #call, __FILE__, __LINE__)

typedef struct ranks_nccl {
    int rank, n;
    ncclComm_t comm;
    cudaStream_t stream, other;
} ranks_nccl;

static inline void check(int got, int want, const char *text, const char *file, int line)
{
    if (got != want) {
        fprintf(stderr, "%s:%d: %s is %d, expected %d (%s)\n", file, line, text, got, want, ncclGetLastError(NULL));
        exit(3);
    }
}

/* Operations x types x sizes against exact values; the order of additions; a pipeline; long groups. */
void ranks_nccl_table(const ranks_nccl *r);
void ranks_nccl_order(const ranks_nccl *r);
void ranks_nccl_pipeline(const ranks_nccl *r);
void ranks_nccl_long_group(const ranks_nccl *r);

#endif
