/* Which algorithm of cuBLASLt computes a product: asked once for every problem, chosen by time, remembered in a hash
 * table. */
#include "layers/cuda/gemm_plan_cuda.h"

#include <stdlib.h>
#include <string.h>

#include "layers/workspace.h"
#include "megac/base/alloc.h"
#include "megac/base/log.h"

enum { CANDIDATES = 8, ROUNDS = 3, RUNS = 3 };
/* A later candidate must beat an earlier one by this factor: noise must not choose. */
static const float WORTH = 1.03f;

mc_status ly_i_cublas_check_at(const char *file, int line, cublasStatus_t status, const char *call)
{
    if (status == CUBLAS_STATUS_SUCCESS) {
        return MC_OK;
    }
    mc_fail_at(file, line, "%.*s: %s (%s)", (int)strcspn(call, "("), call, cublasLtGetStatusName(status),
               cublasLtGetStatusString(status));
    return status == CUBLAS_STATUS_ALLOC_FAILED ? MC_NOMEM : MC_DEVICE;
}

mc_status ly_i_cublas_create(const mc_cuda *device, struct ly_i_cublas **cublas_out)
{
    struct ly_i_cublas *c;
    (void)device;
    MC_TRY(MC_NEW(&c, "matrix product plans"));
    const char *autotune = getenv("MC_GEMM_AUTOTUNE");
    c->autotune = !autotune || strcmp(autotune, "0") != 0;
    cublasStatus_t status = cublasLtCreate(&c->handle);
    if (status != CUBLAS_STATUS_SUCCESS) {
        mc_free(c);
        return ly_i_cublas_check_at(__FILE__, __LINE__, status, "cublasLtCreate");
    }
    *cublas_out = c;
    return MC_OK;
}

void ly_i_cublas_destroy(struct ly_i_cublas *cublas)
{
    if (cublas) {
        cublasLtDestroy(cublas->handle);
        mc_free(cublas);
    }
}

static cudaDataType_t cuda_type(int dtype)
{
    switch (dtype) {
    case MC_F32:
        return CUDA_R_32F;
    case MC_BF16:
        return CUDA_R_16BF;
    default:
        return CUDA_R_16F;
    }
}

/* cuBLASLt sees columns: our row-major c (M,N) is its C (N,M), so its first operand is our b, its second our a, and our
 * bias, one value a column, is one value a row of C, as its epilogue wants. */
static mc_status describe(ly_i_gemm_plan *p)
{
    const ly_i_gemm_key *key = &p->key;
    cublasOperation_t op_a = key->trans_b ? CUBLAS_OP_T : CUBLAS_OP_N, op_b = key->trans_a ? CUBLAS_OP_T : CUBLAS_OP_N;
    cublasComputeType_t compute = key->tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
    cudaDataType_t type = cuda_type(key->type), c_type = cuda_type(key->c_type);
    uint64_t m = (uint64_t)key->m, n = (uint64_t)key->n, k = (uint64_t)key->k;
    LY_CUBLAS_TRY(cublasLtMatmulDescInit(&p->desc, compute, CUDA_R_32F));
    LY_CUBLAS_TRY(cublasLtMatmulDescSetAttribute(&p->desc, CUBLASLT_MATMUL_DESC_TRANSA, &op_a, sizeof op_a));
    LY_CUBLAS_TRY(cublasLtMatmulDescSetAttribute(&p->desc, CUBLASLT_MATMUL_DESC_TRANSB, &op_b, sizeof op_b));
    if (key->bias) {
        cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
        LY_CUBLAS_TRY(
            cublasLtMatmulDescSetAttribute(&p->desc, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue));
    }
    LY_CUBLAS_TRY(cublasLtMatrixLayoutInit(&p->a, type, key->trans_b ? k : n, key->trans_b ? n : k, key->ldb));
    LY_CUBLAS_TRY(cublasLtMatrixLayoutInit(&p->b, type, key->trans_a ? m : k, key->trans_a ? k : m, key->lda));
    LY_CUBLAS_TRY(cublasLtMatrixLayoutInit(&p->c, c_type, n, m, key->ldc));
    return MC_OK;
}

static mc_status describe_limits(const ly_i_gemm_key *key, cublasLtMatmulPreferenceOpaque_t *limits)
{
    uint32_t a = 1u << key->align_b, b = 1u << key->align_a, c = 1u << key->align_c;
    LY_CUBLAS_TRY(cublasLtMatmulPreferenceInit(limits));
    struct {
        cublasLtMatmulPreferenceAttributes_t name;
        const void *value;
        size_t bytes;
    } rows[] = {
        {CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &key->workspace_bytes, sizeof key->workspace_bytes},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &a, sizeof a},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &b, sizeof b},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &c, sizeof c},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &c, sizeof c},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        LY_CUBLAS_TRY(cublasLtMatmulPreferenceSetAttribute(limits, rows[i].name, rows[i].value, rows[i].bytes));
    }
    /* Where K is split, partial sums stay f32: the contract rounds to 16 bits once. */
    uint32_t schemes = key->c_type == MC_F32 ? CUBLASLT_REDUCTION_SCHEME_MASK : CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    LY_CUBLAS_TRY(cublasLtMatmulPreferenceSetAttribute(limits, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &schemes,
                                                       sizeof schemes));
    return MC_OK;
}

/* Candidates in the library's order; none where it supports no such problem. */
static mc_status ask(struct ly_i_cublas *c, ly_i_gemm_plan *p, cublasLtMatmulHeuristicResult_t *list, int *n_out)
{
    cublasLtMatmulPreferenceOpaque_t limits;
    int n = 0, kept = 0;
    MC_TRY(describe_limits(&p->key, &limits));
    cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(c->handle, &p->desc, &p->a, &p->b, &p->c, &p->c, &limits,
                                                           c->autotune ? CANDIDATES : 1, list, &n);
    if (status != CUBLAS_STATUS_NOT_SUPPORTED) {
        MC_TRY(ly_i_cublas_check_at(__FILE__, __LINE__, status, "cublasLtMatmulAlgoGetHeuristic"));
        for (int i = 0; i < n; i++) {
            if (list[i].state == CUBLAS_STATUS_SUCCESS && list[i].workspaceSize <= p->key.workspace_bytes) {
                list[kept++] = list[i];
            }
        }
    }
    *n_out = kept;
    return MC_OK;
}

cublasStatus_t ly_i_gemm_plan_run(const ly_ctx *cx, ly_i_gemm_plan *plan, const cublasLtMatmulAlgo_t *algo,
                                  size_t workspace_bytes, const ly_i_gemm_data *data)
{
    const float one = 1.0f;
    if (plan->key.bias) {
        cublasStatus_t status = cublasLtMatmulDescSetAttribute(&plan->desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER,
                                                               &data->bias, sizeof data->bias);
        if (status != CUBLAS_STATUS_SUCCESS) {
            return status;
        }
    }
    return cublasLtMatmul(ly_i_cuda(cx)->cublas->handle, &plan->desc, &one, data->b, &plan->a, data->a, &plan->b,
                          &data->beta, data->c, &plan->c, data->c, &plan->c, algo,
                          workspace_bytes ? data->workspace : NULL, workspace_bytes, (cudaStream_t)cx->stream.handle);
}

/* Milliseconds of RUNS runs of each candidate, the least of ROUNDS; a candidate that fails to run keeps -1. */
static mc_status time_candidates(const ly_ctx *cx, ly_i_gemm_plan *p, const cublasLtMatmulHeuristicResult_t *list,
                                 int n, const ly_i_gemm_data *data, cudaEvent_t begin, cudaEvent_t end, float *ms_out)
{
    cudaStream_t stream = (cudaStream_t)cx->stream.handle;
    for (int round = 0; round <= ROUNDS; round++) { /* round 0 warms up and is not kept */
        for (int i = 0; i < n; i++) {
            float ms = 0;
            bool ran = round == 0 || ms_out[i] >= 0;
            MC_CUDA_TRY(cudaEventRecord(begin, stream));
            for (int run = 0; run < RUNS && ran; run++) {
                ran = ly_i_gemm_plan_run(cx, p, &list[i].algo, list[i].workspaceSize, data) == CUBLAS_STATUS_SUCCESS;
            }
            MC_CUDA_TRY(cudaEventRecord(end, stream));
            MC_CUDA_TRY(cudaEventSynchronize(end));
            MC_CUDA_TRY(cudaEventElapsedTime(&ms, begin, end));
            ms_out[i] = !ran ? -1 : round <= 1 || ms < ms_out[i] ? ms : ms_out[i];
        }
    }
    return MC_OK;
}

static int fastest(const float *ms, int n)
{
    float best = -1;
    for (int i = 0; i < n; i++) {
        best = ms[i] >= 0 && (best < 0 || ms[i] < best) ? ms[i] : best;
    }
    for (int i = 0; i < n; i++) {
        if (ms[i] >= 0 && ms[i] <= best * WORTH) {
            return i;
        }
    }
    return -1;
}

/* Times on the call's own operands. c is overwritten by the call anyway where beta is 0; where it accumulates, a copy
 * of it in memory taken for the purpose serves as c (its values do not matter), and where there is no such memory the
 * first candidate is taken. */
static mc_status choose_by_time(const ly_ctx *cx, ly_i_gemm_plan *p, const cublasLtMatmulHeuristicResult_t *list, int n,
                                const ly_i_gemm_data *data, int *chosen_out)
{
    float ms[CANDIDATES] = {0};
    ly_i_gemm_data trial = *data;
    void *own = NULL;
    cudaEvent_t begin = NULL, end = NULL;
    mc_status st = MC_OK;
    if (data->beta != 0.0f) {
        size_t bytes = (size_t)p->key.ldc * (size_t)p->key.m * mc_dtype_bytes((mc_dtype)p->key.c_type);
        if (cudaMalloc(&own, bytes) != cudaSuccess) {
            (void)cudaGetLastError();
            MC_DEBUG("gemm: no memory to time candidates, the first one is taken");
            *chosen_out = 0;
            return MC_OK;
        }
        trial.c = own;
        trial.beta = 0.0f; /* an algorithm is not bound to beta, and reading c costs all candidates the same */
    }
    MC_TRY_GOTO(st, mc_cuda_check_at(__FILE__, __LINE__, cudaEventCreate(&begin), "cudaEventCreate"), undo_all);
    MC_TRY_GOTO(st, mc_cuda_check_at(__FILE__, __LINE__, cudaEventCreate(&end), "cudaEventCreate"), undo_all);
    MC_TRY_GOTO(st, time_candidates(cx, p, list, n, &trial, begin, end, ms), undo_all);
    *chosen_out = fastest(ms, n);
undo_all:
    cudaEventDestroy(begin);
    cudaEventDestroy(end);
    cudaFree(own); /* nothing runs in it: every round was waited for */
    return st;
}

static mc_status make_plan(const ly_ctx *cx, struct ly_i_cublas *c, const ly_i_gemm_data *data, ly_i_gemm_plan *p)
{
    cublasLtMatmulHeuristicResult_t list[CANDIDATES];
    int n = 0, chosen = 0;
    MC_TRY(describe(p));
    if (p->key.bias) { /* the library checks its alignment when asked */
        LY_CUBLAS_TRY(cublasLtMatmulDescSetAttribute(&p->desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &data->bias,
                                                     sizeof data->bias));
    }
    MC_TRY(ask(c, p, list, &n));
    if (n > 1) {
        MC_TRY(choose_by_time(cx, p, list, n, data, &chosen));
    }
    p->possible = n > 0 && chosen >= 0;
    if (p->possible) {
        p->algo = list[chosen].algo;
        p->workspace_bytes = list[chosen].workspaceSize;
    }
    return MC_OK;
}

/* FNV-1a over 8-byte words. */
static uint64_t hash(const ly_i_gemm_key *key)
{
    uint64_t words[sizeof *key / 8], h = 0xcbf29ce484222325u;
    _Static_assert(sizeof *key == 9 * 8, "compared as bytes: no padding");
    memcpy(words, key, sizeof *key);
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        h = (h ^ words[i]) * 0x100000001b3u;
        h ^= h >> 32;
    }
    return h;
}

mc_status ly_i_gemm_plan_get(const ly_ctx *cx, const ly_i_gemm_key *key, const ly_i_gemm_data *data,
                             ly_i_gemm_plan **plan_out)
{
    struct ly_i_cublas *c = ly_i_cuda(cx)->cublas;
    size_t at = hash(key) % LY_I_GEMM_SLOTS;
    for (; c->slots[at]; at = (at + 1) % LY_I_GEMM_SLOTS) {
        ly_i_gemm_plan *p = &c->plans[c->slots[at] - 1];
        if (memcmp(&p->key, key, sizeof *key) == 0) {
            *plan_out = p;
            return MC_OK;
        }
    }
    if (c->n_plans == LY_I_GEMM_PLANS) {
        memset(c->slots, 0, sizeof c->slots);
        c->n_plans = 0;
        at = hash(key) % LY_I_GEMM_SLOTS;
    }
    ly_i_gemm_plan *p = &c->plans[c->n_plans];
    memset(p, 0, sizeof *p);
    p->key = *key;
    MC_TRY(make_plan(cx, c, data, p));
    c->slots[at] = (uint16_t)++c->n_plans;
    *plan_out = p;
    return MC_OK;
}
