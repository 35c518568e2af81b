/* How many partial rows the kernels with column sums write, from shapes alone: so that results do not depend on the
 * device, and the workspace (layers/workspace.h) can be planned without one. */
#ifndef LAYERS_CUDA_PARTIALS_H
#define LAYERS_CUDA_PARTIALS_H

#include "layers/workspace.h"

static inline int64_t ly_i_ceil(int64_t n, int64_t unit)
{
    return (n + unit - 1) / unit;
}

static inline int64_t ly_i_partials(int64_t wanted)
{
    const int64_t most = LY_PARTIALS;
    return wanted < 1 ? 1 : wanted < most ? wanted : most;
}

/* norm_bwd: a block for every few rows at most. LY_PARTIALS blocks are two for each of an H100's 132 multiprocessors.
 */
static inline int64_t ly_i_norm_partials(int64_t n_rows)
{
    return ly_i_partials(ly_i_ceil(n_rows, 4));
}

/* head_norm_bwd: rows are heads, short ones. */
static inline int64_t ly_i_head_norm_partials(int64_t n_heads)
{
    return ly_i_partials(ly_i_ceil(n_heads, 32));
}

/* bias_grad: strips of 256 columns times parts of the rows make about 8 blocks for each multiprocessor. */
static inline int64_t ly_i_bias_grad_partials(int64_t n_rows, int64_t n_cols)
{
    int64_t few = ly_i_ceil(n_rows, 32), wanted = 1056 / ly_i_ceil(n_cols < 1 ? 1 : n_cols, 256);
    return ly_i_partials(wanted < few ? wanted : few);
}

/* Sums that a norm's backward is asked for, each a row of floats. */
static inline int ly_i_n_sums(mc_tensor x, mc_tensor y, mc_tensor z)
{
    return mc_tensor_present(x) + mc_tensor_present(y) + mc_tensor_present(z);
}

#endif
