/* Matrix product on a GPU: cuBLASLt, with the bias in its epilogue where it can be. */
#include <string.h>

#include "layers/cuda/gemm_plan_cuda.h"
#include "layers/cuda/kernels.h"
#include "layers/profile.h"
#include "layers/workspace.h"
#include "megac/base/arena.h"

/* cuBLASLt reads the epilogue's bias 16 bytes at a time, and says nowhere that it must be aligned so. */
enum { BIAS_ALIGN = 16, MAX_ALIGN_LOG2 = 8 };

static bool is_matrix(mc_tensor t)
{
    return t.n_dims == 2 && (t.dims[1] <= 1 || t.strides[1] == 1) && (t.dims[0] <= 1 || t.strides[0] >= t.dims[1]);
}

static bool is_type(mc_tensor t, mc_dtype type)
{
    return !mc_tensor_present(t) || t.dtype == type;
}

/* Distance of rows; that of a single row is never used, and must only be large enough. */
static int64_t row_stride(mc_tensor t)
{
    return t.dims[0] > 1 ? t.strides[0] : t.dims[1] > 1 ? t.dims[1] : 1;
}

static uint8_t align_log2(const void *p)
{
    uint8_t log2 = 0;
    for (uintptr_t at = (uintptr_t)p; log2 < MAX_ALIGN_LOG2 && at % 2 == 0; at /= 2) {
        log2++;
    }
    return log2;
}

static ly_i_gemm_key make_key(const ly_ctx *cx, const ly_gemm *a, size_t workspace_bytes)
{
    ly_i_gemm_key key;
    memset(&key, 0, sizeof key);
    key.m = a->c.dims[0];
    key.n = a->c.dims[1];
    key.k = a->a.dims[a->trans_a ? 0 : 1];
    key.lda = row_stride(a->a);
    key.ldb = row_stride(a->b);
    key.ldc = row_stride(a->c);
    key.workspace_bytes = workspace_bytes < LY_GEMM_WORKSPACE_BYTES ? workspace_bytes : LY_GEMM_WORKSPACE_BYTES;
    key.type = (uint8_t)a->a.dtype;
    key.c_type = (uint8_t)a->c.dtype;
    key.trans_a = a->trans_a;
    key.trans_b = a->trans_b;
    key.bias = mc_tensor_present(a->bias);
    key.tf32 = cx->tf32 && a->a.dtype == MC_F32;
    key.align_a = align_log2(a->a.data);
    key.align_b = align_log2(a->b.data);
    key.align_c = align_log2(a->c.data);
    key.align_workspace = align_log2(cx->workspace);
    return key;
}

/* One product of cuBLASLt. Where the library has no algorithm, *done_out is false and nothing was queued. */
static mc_status product(const ly_ctx *cx, const ly_gemm *a, size_t workspace_bytes, bool *done_out)
{
    ly_i_gemm_key key = make_key(cx, a, workspace_bytes);
    ly_i_gemm_data data = {a->a.data, a->b.data, a->bias.data, a->c.data, cx->workspace, a->beta};
    ly_i_gemm_plan *plan;
    MC_TRY(ly_i_gemm_plan_get(cx, &key, &data, &plan));
    *done_out = plan->possible;
    if (!plan->possible) {
        return MC_OK;
    }
    cublasStatus_t status = ly_i_gemm_plan_run(cx, plan, &plan->algo, plan->workspace_bytes, &data);
    if (status == CUBLAS_STATUS_SUCCESS) {
        return MC_OK;
    }
    char text[512];
    ly_i_cuda_describe(LY_OP_gemm, a, text, sizeof text);
    return MC_FAIL(MC_DEVICE, "operator %s: cublasLtMatmul: %s (%s)", text, cublasLtGetStatusName(status),
                   cublasLtGetStatusString(status));
}

static mc_status product_or_fail(const ly_ctx *cx, const ly_gemm *a, size_t workspace_bytes)
{
    bool done = false;
    MC_TRY(product(cx, a, workspace_bytes, &done));
    if (done) {
        return MC_OK;
    }
    char text[512];
    ly_i_cuda_describe(LY_OP_gemm, a, text, sizeof text);
    return MC_FAIL(MC_UNSUPPORTED, "operator %s%s%s: cuBLASLt %zu has no algorithm for this product", text,
                   a->trans_a ? " trans_a" : "", a->trans_b ? " trans_b" : "", cublasLtGetVersion());
}

/* c = ones (M,1) bias (1,N) + beta c: bias in every row of c, exact in T. The ones stand at the end of the workspace;
 * *left_out is what remains of it. */
static mc_status spread_bias(const ly_ctx *cx, const ly_gemm *a, size_t *left_out)
{
    int64_t m = a->c.dims[0], n = a->c.dims[1];
    size_t bytes = (size_t)m * mc_dtype_bytes(a->bias.dtype);
    MC_ASSERT(bytes <= cx->workspace_bytes);
    size_t left = (cx->workspace_bytes - bytes) / MC_ARENA_ALIGN * MC_ARENA_ALIGN;
    mc_tensor ones = mc_tensor_1d((char *)cx->workspace + left, a->bias.dtype, m);
    ly_fill fill = {ones, 1.0f};
    MC_TRY(ly_i_cuda_launched(cx, ly_k_fill(cx, &fill), LY_OP_fill, &fill));
    ly_gemm outer = {.a = mc_tensor_2d(ones.data, a->bias.dtype, m, 1),
                     .b = mc_tensor_2d(a->bias.data, a->bias.dtype, 1, n),
                     .c = a->c,
                     .beta = a->beta};
    *left_out = left;
    return product_or_fail(cx, &outer, left);
}

/* The bias first, then the product upon it: c of 16 bits still rounds the sum of both once. */
static mc_status product_upon_bias(const ly_ctx *cx, const ly_gemm *a)
{
    size_t left = 0;
    MC_TRY(spread_bias(cx, a, &left));
    ly_gemm rest = *a;
    rest.bias = (mc_tensor){0};
    rest.beta = 1.0f;
    return product_or_fail(cx, &rest, left);
}

/* K = 0: c = beta c + bias. */
static mc_status empty_sum(const ly_ctx *cx, const ly_gemm *a)
{
    size_t size = mc_dtype_bytes(a->c.dtype), left = 0;
    if (mc_tensor_present(a->bias)) {
        return spread_bias(cx, a, &left);
    }
    if (a->beta == 0.0f) {
        MC_CUDA_TRY(cudaMemset2DAsync(a->c.data, (size_t)row_stride(a->c) * size, 0, (size_t)a->c.dims[1] * size,
                                      (size_t)a->c.dims[0], (cudaStream_t)cx->stream.handle));
    }
    return MC_OK;
}

mc_status ly_i_gemm_cublas(const ly_ctx *cx, const ly_gemm *a)
{
    mc_dtype type = a->a.dtype;
    int64_t m = a->c.dims[0], n = a->c.dims[1], k = a->a.dims[a->trans_a ? 0 : 1];
    MC_ASSERT(is_matrix(a->a) && is_matrix(a->b) && is_matrix(a->c));
    MC_ASSERT(type == MC_F32 || type == MC_BF16 || type == MC_F16);
    MC_ASSERT(a->b.dtype == type && is_type(a->bias, type) && (a->c.dtype == type || a->c.dtype == MC_F32));
    MC_ASSERT(a->a.dims[a->trans_a ? 1 : 0] == m && a->b.dims[a->trans_b ? 0 : 1] == n &&
              a->b.dims[a->trans_b ? 1 : 0] == k);
    MC_ASSERT(!mc_tensor_present(a->bias) ||
              (a->bias.n_dims == 1 && a->bias.dims[0] == n && (n <= 1 || a->bias.strides[0] == 1)));
    MC_ASSERT(a->beta == 0.0f || (a->beta == 1.0f && a->c.dtype == MC_F32));
    if (m == 0 || n == 0) {
        return MC_OK;
    }
    if (k == 0) {
        return empty_sum(cx, a);
    }
    if (!mc_tensor_present(a->bias)) {
        return product_or_fail(cx, a, cx->workspace_bytes);
    }
    /* The epilogue's bias has c's type. */
    if (a->c.dtype == type && (uintptr_t)a->bias.data % BIAS_ALIGN == 0) {
        bool done = false;
        MC_TRY(product(cx, a, cx->workspace_bytes, &done));
        if (done) {
            return MC_OK;
        }
    }
    return product_upon_bias(cx, a);
}
