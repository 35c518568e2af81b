#include "tensor_parallel/tp.h"

mc_status tp_linear_fwd(const tp_ctx *tp, mc_tensor x, mc_tensor w, mc_tensor bias, mc_tensor y)
{
    return tp->ly->ops->gemm(tp->ly, &(ly_gemm){.a = x, .b = w, .c = y, .bias = bias, .trans_b = true});
}

mc_status tp_linear_bwd_input(const tp_ctx *tp, mc_tensor dy, mc_tensor w, mc_tensor dx)
{
    return tp->ly->ops->gemm(tp->ly, &(ly_gemm){.a = dy, .b = w, .c = dx});
}

mc_status tp_linear_bwd_weight(const tp_ctx *tp, mc_tensor dy, mc_tensor x, mc_tensor dw, mc_tensor dbias)
{
    MC_TRY(tp->ly->ops->gemm(tp->ly, &(ly_gemm){.a = dy, .b = x, .c = dw, .trans_a = true, .beta = 1}));
    if (mc_tensor_present(dbias)) {
        MC_TRY(tp->ly->ops->bias_grad(tp->ly, &(ly_bias_grad){.dy = dy, .dbias = dbias}));
    }
    return MC_OK;
}

mc_status tp_row_linear_fwd(const tp_ctx *tp, mc_tensor x, mc_tensor w, mc_tensor out)
{
    mc_tensor partial = tp_partial(tp, x.dims[0], out);
    MC_TRY(tp_linear_fwd(tp, x, w, (mc_tensor){0}, partial));
    return tp_reduce(tp, partial, out);
}

mc_status tp_col_linear_bwd_input(const tp_ctx *tp, mc_tensor dy, mc_tensor w, mc_tensor dx)
{
    mc_tensor partial = tp_partial(tp, dy.dims[0], dx);
    MC_TRY(tp_linear_bwd_input(tp, dy, w, partial));
    return tp_reduce(tp, partial, dx);
}
