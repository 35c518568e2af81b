/* What the CUDA operators keep between calls: handles of NVIDIA's libraries and what these chose for each shape. Made
 * when the device is opened (module_cuda.c), found from every call through ly_ctx.backend, used by one thread at a
 * time. */
#ifndef LAYERS_CUDA_CONTEXT_CUDA_H
#define LAYERS_CUDA_CONTEXT_CUDA_H

#include <stdbool.h>

#include "layers/ops.h"
#include "megac/base/device_cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct ly_cuda {
    mc_cuda *device;
    struct ly_i_cublas *cublas; /* gemm_cuda.c: handle and the algorithm of every problem seen */
    struct ly_i_cudnn *cudnn;   /* attention_cudnn.c: handle and plans; NULL: our kernels do all attention */
} ly_cuda;

static inline ly_cuda *ly_i_cuda(const ly_ctx *cx)
{
    return (ly_cuda *)((mc_cuda *)cx->backend)->operators;
}

/* Called when the device is opened and closed, with the device current. destroy takes NULL. */
mc_status ly_i_cuda_create(mc_cuda *device, ly_cuda **context_out) MC_MUST_CHECK;
void ly_i_cuda_destroy(ly_cuda *context);

/* gemm_cuda.c */
mc_status ly_i_cublas_create(const mc_cuda *device, struct ly_i_cublas **cublas_out) MC_MUST_CHECK;
void ly_i_cublas_destroy(struct ly_i_cublas *cublas);
mc_status ly_i_gemm_cublas(const ly_ctx *cx, const ly_gemm *a) MC_MUST_CHECK;

/* attention_cudnn.c. create succeeds with NULL where cuDNN is not installed (it says so once). The two calls set
 * *done_out = false, and queue nothing, where cuDNN has no plan for the shape, types or dropout: our kernel runs
 * then. */
mc_status ly_i_cudnn_create(const mc_cuda *device, struct ly_i_cudnn **cudnn_out) MC_MUST_CHECK;
void ly_i_cudnn_destroy(struct ly_i_cudnn *cudnn);
mc_status ly_i_attention_fwd_cudnn(const ly_ctx *cx, const ly_attention_fwd *a, bool *done_out) MC_MUST_CHECK;
mc_status ly_i_attention_bwd_cudnn(const ly_ctx *cx, const ly_attention_bwd *a, bool *done_out) MC_MUST_CHECK;

/* ops_cuda.c: the table; "norm_fwd: x bf16(9,33) out ..."; and MC_OK, or MC_DEVICE after a line that says so, for what
 * a launch of operator LY_OP_<name> (profile.h) returned. With MC_SYNC=1 it waits for the operator first. */
extern const ly_ops ly_i_ops_cuda;
void ly_i_cuda_describe(int op, const void *args, char *text_out, size_t cap);
mc_status ly_i_cuda_launched(const ly_ctx *cx, int error, int op, const void *args) MC_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
