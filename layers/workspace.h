/* Device memory that an operator needs for itself, from shapes alone, so that it can be planned on any machine. The CPU
 * operators need none of it (their scratch comes with the pool).
 *
 * One buffer serves all calls on a stream, one after another: it must hold the largest. */
#ifndef LAYERS_WORKSPACE_H
#define LAYERS_WORKSPACE_H

#include "layers/ops.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What cuBLASLt may use for one product; NVIDIA advises 32 MiB from Hopper on. */
enum { LY_GEMM_WORKSPACE_BYTES = 32 << 20 };
/* Rows of partial sums that kernels with column sums (norm_bwd, head_norm_bwd, bias_grad, sq_norm) write at most; a
 * second kernel adds them in order. How many follows from the shape alone (layers/cuda/partials.h). */
enum { LY_PARTIALS = 264 };

/* Bytes for this call; 0 where none are needed. One function for every operator of ops.def. */
#define LY_OP(name) size_t ly_workspace_bytes_##name(const ly_##name *a);
#include "layers/ops.def"
#undef LY_OP

#ifdef __cplusplus
}
#endif
#endif
