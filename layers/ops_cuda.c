/* The "cuda" table: every operator goes to a kernel of ours (cuda/kernels.h) or to a library of NVIDIA's, and what was
 * launched is checked. An operator without a line here is a compile error. */
#include <stdio.h>
#include <string.h>

#include "layers/cuda/context_cuda.h"
#include "layers/cuda/kernels.h"
#include "layers/profile.h"

static const char *const op_names[] = {
#define LY_OP(name) #name,
#include "layers/ops.def"
#undef LY_OP
};

static const struct {
    int op;
    const char *name;
    size_t offset;
} tensors[] = {
#define LY_TENSOR(op, field) {LY_OP_##op, #field, offsetof(ly_##op, field)},
#include "layers/op_tensors.def"
#undef LY_TENSOR
};

static size_t put_list(char *text, size_t used, size_t cap, const int64_t *list, int n)
{
    for (int i = 0; i < n && used < cap; i++) {
        used += (size_t)snprintf(text + used, cap - used, "%s%lld", i ? "," : "(", (long long)list[i]);
    }
    return used < cap ? used + (size_t)snprintf(text + used, cap - used, ")") : used;
}

void ly_i_cuda_describe(int op, const void *args, char *text_out, size_t cap)
{
    size_t used = (size_t)snprintf(text_out, cap, "%s:", op_names[op]);
    for (size_t i = 0; i < sizeof tensors / sizeof *tensors && used < cap; i++) {
        const mc_tensor *t = (const mc_tensor *)(const void *)((const char *)args + tensors[i].offset);
        if (tensors[i].op == op && mc_tensor_present(*t)) {
            used += (size_t)snprintf(text_out + used, cap - used, " %s %s", tensors[i].name, mc_dtype_name(t->dtype));
            used = used < cap ? put_list(text_out, used, cap, t->dims, t->n_dims) : used;
            if (used < cap && !mc_tensor_contiguous(*t)) {
                used += (size_t)snprintf(text_out + used, cap - used, " strides ");
                used = used < cap ? put_list(text_out, used, cap, t->strides, t->n_dims) : used;
            }
        }
    }
}

mc_status ly_i_cuda_launched(const ly_ctx *cx, int error, int op, const void *args)
{
    cudaError_t e = (cudaError_t)error;
    const char *when = "cannot be launched";
    if (e == cudaSuccess && ly_i_cuda(cx)->device->sync_each) {
        e = cudaStreamSynchronize((cudaStream_t)cx->stream.handle);
        when = "failed on the device (MC_SYNC=1: in this operator, or in work of another stream)";
    }
    if (e == cudaSuccess) {
        return MC_OK;
    }
    bool earlier = mc_cuda_is_fault(e) && !ly_i_cuda(cx)->device->sync_each; /* a launch reports that too */
    const char *remedy = earlier ? "; it or work queued before failed: run again with MC_SYNC=1 to know" : "";
    char text[512];
    (void)cudaGetLastError(); /* told here: the next launch must not report it again */
    ly_i_cuda_describe(op, args, text, sizeof text);
    return MC_FAIL(MC_DEVICE, "operator %s %s: %s (%s); on %s%s", text, when, cudaGetErrorName(e),
                   cudaGetErrorString(e), ly_i_cuda(cx)->device->name, remedy);
}

#define KERNEL(op)                                                      \
    static mc_status op##_cuda(const ly_ctx *cx, const ly_##op *a)      \
    {                                                                   \
        return ly_i_cuda_launched(cx, ly_k_##op(cx, a), LY_OP_##op, a); \
    }

KERNEL(bias_grad)
KERNEL(norm_fwd)
KERNEL(norm_bwd)
KERNEL(head_norm_fwd)
KERNEL(head_norm_bwd)
KERNEL(act_fwd)
KERNEL(act_bwd)
KERNEL(rope)
KERNEL(kv_store)
KERNEL(embedding_fwd)
KERNEL(embedding_bwd)
KERNEL(embed_finish_fwd)
KERNEL(embed_finish_bwd)
KERNEL(xent_stats)
KERNEL(xent_grad)
KERNEL(adamw)
KERNEL(sgd)
KERNEL(sq_norm)
KERNEL(add)
KERNEL(fill)
KERNEL(cast)

static mc_status check_head(mc_tensor q)
{
    if (q.dims[3] <= LY_CUDA_MAX_HEAD) {
        return MC_OK;
    }
    return MC_FAIL(MC_UNSUPPORTED,
                   "attention heads of %lld on --device cuda: at most %d; use more heads (--num-attention-heads, "
                   "--kv-channels), or --device cpu",
                   (long long)q.dims[3], LY_CUDA_MAX_HEAD);
}

static mc_status attention_fwd_cuda(const ly_ctx *cx, const ly_attention_fwd *a)
{
    bool done;
    MC_TRY(check_head(a->q));
    MC_TRY(ly_i_attention_fwd_cudnn(cx, a, &done));
    return ly_i_cuda_launched(cx, done ? cudaSuccess : ly_k_attention_fwd(cx, a), LY_OP_attention_fwd, a);
}

static mc_status attention_bwd_cuda(const ly_ctx *cx, const ly_attention_bwd *a)
{
    bool done;
    MC_TRY(check_head(a->q));
    MC_TRY(ly_i_attention_bwd_cudnn(cx, a, &done));
    return ly_i_cuda_launched(cx, done ? cudaSuccess : ly_k_attention_bwd(cx, a), LY_OP_attention_bwd, a);
}

static mc_status attention_decode_cuda(const ly_ctx *cx, const ly_attention_decode *a)
{
    MC_TRY(check_head(a->q));
    return ly_i_cuda_launched(cx, ly_k_attention_decode(cx, a), LY_OP_attention_decode, a);
}

static mc_status gemm_cuda(const ly_ctx *cx, const ly_gemm *a)
{
    MC_TRY(ly_i_gemm_cublas(cx, a));
    return ly_i_cuda_launched(cx, cudaSuccess, LY_OP_gemm, a);
}

const ly_ops ly_i_ops_cuda = {
    .backend = "cuda",
#define LY_OP(name) .name = name##_cuda,
#include "layers/ops.def"
#undef LY_OP
};
