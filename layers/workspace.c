#include "layers/workspace.h"

#include "layers/cuda/attention_split.h"
#include "layers/cuda/partials.h"

/* Below, one function for each operator that needs memory. */

static size_t row_sums(int n_sums, int64_t n_parts, int64_t n_cols)
{
    return (size_t)n_sums * (size_t)n_parts * (size_t)n_cols * sizeof(float);
}

static size_t gemm_bytes(const ly_gemm *a)
{
    (void)a;
    return LY_GEMM_WORKSPACE_BYTES;
}

static size_t bias_grad_bytes(const ly_bias_grad *a)
{
    return row_sums(1, ly_i_bias_grad_partials(a->dy.dims[0], a->dy.dims[1]), a->dy.dims[1]);
}

static size_t norm_bwd_bytes(const ly_norm_bwd *a)
{
    mc_tensor shape = mc_tensor_present(a->dout) ? a->dout : a->dskip;
    return row_sums(ly_i_n_sums(a->dgamma, a->dbeta, a->dy_bias), ly_i_norm_partials(shape.dims[0]), shape.dims[1]);
}

static size_t head_norm_bwd_bytes(const ly_head_norm_bwd *a)
{
    int64_t n_heads = a->x.dims[0] * a->x.dims[1] * a->x.dims[2];
    return row_sums(ly_i_n_sums(a->dgamma, a->dbeta, (mc_tensor){0}), ly_i_head_norm_partials(n_heads), a->x.dims[3]);
}

/* The first row and the number of rows of each token. */
static size_t embedding_bwd_bytes(const ly_embedding_bwd *a)
{
    return 2 * (size_t)a->dtable.dims[0] * sizeof(int32_t);
}

/* Our kernels need none; cuDNN's plans may use what their calls are worth. */
static size_t attention_fwd_bytes(const ly_attention_fwd *a)
{
    return (size_t)ly_i_sdpa_split_fwd(a).workspace_bytes;
}

static size_t attention_bwd_bytes(const ly_attention_bwd *a)
{
    return (size_t)ly_i_sdpa_split_bwd(a).workspace_bytes;
}

static size_t sq_norm_bytes(const ly_sq_norm *a)
{
    (void)a;
    return LY_PARTIALS * sizeof(double);
}

static inline size_t no_bytes(const void *a)
{
    (void)a;
    return 0;
}

/* LY_I_NEEDS_<op> puts that operator's function in second place; of an operator without one, no_bytes stands there. */
#define LY_I_NEEDS_gemm ~, gemm_bytes
#define LY_I_NEEDS_bias_grad ~, bias_grad_bytes
#define LY_I_NEEDS_norm_bwd ~, norm_bwd_bytes
#define LY_I_NEEDS_head_norm_bwd ~, head_norm_bwd_bytes
#define LY_I_NEEDS_embedding_bwd ~, embedding_bwd_bytes
#define LY_I_NEEDS_attention_fwd ~, attention_fwd_bytes
#define LY_I_NEEDS_attention_bwd ~, attention_bwd_bytes
#define LY_I_NEEDS_sq_norm ~, sq_norm_bytes

#define LY_I_SECOND_OF(first, second, ...) second
#define LY_I_SECOND(...) LY_I_SECOND_OF(__VA_ARGS__, ~)

#define LY_OP(name)                                         \
    size_t ly_workspace_bytes_##name(const ly_##name *a)    \
    {                                                       \
        return LY_I_SECOND(LY_I_NEEDS_##name, no_bytes)(a); \
    }
#include "layers/ops.def"
