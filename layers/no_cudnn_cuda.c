/* Takes the place of attention_cudnn.c where the build has no headers of cuDNN: our kernels do all attention. */
#include "layers/cuda/context_cuda.h"
#include "megac/base/log.h"

mc_status ly_i_cudnn_create(const mc_cuda *device, struct ly_i_cudnn **cudnn_out)
{
    (void)device;
    *cudnn_out = NULL;
    MC_INFO("this build knows no cuDNN: attention runs on megac's own kernels");
    return MC_OK;
}

void ly_i_cudnn_destroy(struct ly_i_cudnn *cudnn)
{
    (void)cudnn;
}

mc_status ly_i_attention_fwd_cudnn(const ly_ctx *cx, const ly_attention_fwd *a, bool *done_out)
{
    (void)cx;
    (void)a;
    *done_out = false;
    return MC_OK;
}

mc_status ly_i_attention_bwd_cudnn(const ly_ctx *cx, const ly_attention_bwd *a, bool *done_out)
{
    (void)cx;
    (void)a;
    *done_out = false;
    return MC_OK;
}
