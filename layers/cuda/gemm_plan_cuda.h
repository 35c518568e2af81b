/* Matrix products by cuBLASLt: what describes a problem, and the algorithm chosen for it. gemm_cuda.c turns an operator
 * call into problems, gemm_plan_cuda.c chooses and remembers. */
#ifndef LAYERS_CUDA_GEMM_PLAN_CUDA_H
#define LAYERS_CUDA_GEMM_PLAN_CUDA_H

#include <cublasLt.h>
#include <stdbool.h>

#include "layers/cuda/context_cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Everything that cuBLASLt's choice may depend on; compared as bytes, so it has no padding. Row-major as in gemm.h. */
typedef struct ly_i_gemm_key {
    int64_t m, n, k, lda, ldb, ldc; /* strides of rows, in elements */
    uint64_t workspace_bytes;
    uint8_t type, c_type;                               /* mc_dtype of a, b; of c */
    uint8_t trans_a, trans_b, bias, tf32;               /* 0 or 1; bias: in the epilogue */
    uint8_t align_a, align_b, align_c, align_workspace; /* log2 of bytes, at most 8 */
    uint8_t zero[6];
} ly_i_gemm_key;

typedef struct ly_i_gemm_plan {
    ly_i_gemm_key key;
    cublasLtMatmulDescOpaque_t desc;
    cublasLtMatrixLayoutOpaque_t a, b, c;
    cublasLtMatmulAlgo_t algo;
    size_t workspace_bytes; /* that the algorithm needs */
    bool possible;          /* false: cuBLASLt has no algorithm for this problem */
} ly_i_gemm_plan;

enum { LY_I_GEMM_PLANS = 512, LY_I_GEMM_SLOTS = 1024 };

struct ly_i_cublas {
    cublasLtHandle_t handle;
    bool autotune; /* candidates are timed; otherwise the first one is taken (MC_GEMM_AUTOTUNE=0) */
    int n_plans;
    uint16_t slots[LY_I_GEMM_SLOTS]; /* open addressing: 1 + number of a plan, 0 empty */
    ly_i_gemm_plan plans[LY_I_GEMM_PLANS];
};

/* The memory of one problem. workspace is that of the key's bytes. */
typedef struct ly_i_gemm_data {
    const void *a, *b, *bias;
    void *c, *workspace;
    float beta;
} ly_i_gemm_data;

/* The plan for `key`; where it is new, chosen now: with autotune by timing the candidates on `data`, which waits for
 * the stream. When LY_I_GEMM_PLANS are known, all are forgotten. The plan is valid until the next call. */
mc_status ly_i_gemm_plan_get(const ly_ctx *cx, const ly_i_gemm_key *key, const ly_i_gemm_data *data,
                             ly_i_gemm_plan **plan_out) MC_MUST_CHECK;

/* Queues c = op(a) op(b) + beta c (+ bias) by `algo` of the plan's problem. */
cublasStatus_t ly_i_gemm_plan_run(const ly_ctx *cx, ly_i_gemm_plan *plan, const cublasLtMatmulAlgo_t *algo,
                                  size_t workspace_bytes, const ly_i_gemm_data *data);

/* MC_OK, or MC_DEVICE after a line with the call and the status. */
mc_status ly_i_cublas_check_at(const char *file, int line, cublasStatus_t status, const char *call);
#define LY_CUBLAS_TRY(call) MC_TRY(ly_i_cublas_check_at(__FILE__, __LINE__, (call), #call))

#ifdef __cplusplus
}
#endif
#endif
