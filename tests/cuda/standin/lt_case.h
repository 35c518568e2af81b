/* One matrix product through cuBLASLt and its reference in double precision, for test_cublaslt.c. */
#ifndef TESTS_CUDA_STANDIN_LT_CASE_H
#define TESTS_CUDA_STANDIN_LT_CASE_H

#include <cublasLt.h>
#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stdint.h>

/* D (m,n) = epilogue(alpha op(A) op(B) + beta C). Every matrix has `pad` elements between its lines. */
typedef struct lt_case {
    cudaDataType_t in, out;
    int m, n, k, pad, batch;
    bool ta, tb, row_a, row_b, row_d;
    bool in_place; /* C is D */
    cublasLtEpilogue_t epilogue;
    cublasComputeType_t compute;
    float alpha, beta;
    int algorithm; /* index among the heuristic's results; -1: none given */
} lt_case;

/* A matrix (or vector) on both sides. `elems` of `type`; the host's copy is what was uploaded. */
typedef struct lt_array {
    cudaDataType_t type;
    size_t elems;
    int64_t ld, stride;
    char *host, *device;
} lt_array;

typedef struct lt_run {
    lt_case c;
    lt_array a, b, c_in, d, bias, aux;
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t la, lb, lc, ld;
    cublasLtMatmulPreference_t preference;
    cublasLtMatmulHeuristicResult_t found[8];
    int n_found;
} lt_run;

/* What all cases use. */
typedef struct lt_bench {
    cublasLtHandle_t handle;
    cudaStream_t stream;
    char *workspace;
    size_t workspace_bytes;
} lt_bench;

void lt_bench_open(lt_bench *bench);
void lt_bench_close(lt_bench *bench);

/* Fills inputs with numbers in [-1, 1), all outputs with NaN, and asks the heuristic. */
void lt_open(lt_run *r, const lt_bench *bench, lt_case c);
cublasStatus_t lt_multiply(lt_run *r, const lt_bench *bench);
void lt_close(lt_run *r);

/* Downloads D (and what the epilogue wrote) and compares with double precision; elements between the lines must be as
 * they were. Fails the test. */
void lt_verify(lt_run *r, const lt_bench *bench);

double lt_get(const char *p, size_t i, cudaDataType_t type);
void lt_put(char *p, size_t i, cudaDataType_t type, double v);
size_t lt_bytes(cudaDataType_t type);

#endif
