/* LayerNorm and RMSNorm, fused with what stands before them in a transformer block: bias, dropout, residual. */
#ifndef LAYERS_NORM_H
#define LAYERS_NORM_H

#include <stdbool.h>

#include "layers/dropout.h"
#include "megac/base/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum { LY_LAYERNORM, LY_RMSNORM } ly_norm_kind;

/* Forward, one pass over memory. R rows of C columns, all contiguous:
 *   h   = x + dropout(y + y_bias)         y (R,C), y_bias (C) optional; y absent: h = x, and `h` is not written
 *   out = (h - mean) rstd g + beta        LayerNorm; RMSNorm: h rstd g with rstd = 1 / sqrt(mean(h^2) + eps)
 *   g   = gamma, or 1 + gamma with `one_plus_gamma` (--apply-layernorm-1p)
 *   x (R,C)  h (R,C): may be x itself (in place)  out (R,C) optional: absent means only h is wanted
 *   gamma (C); beta (C) optional; stats (R,2) f32: mean (0 for RMSNorm) and rstd, written when `out` is present
 * h is rounded to T first, and the norm reads the rounded h, as the backward will. */
typedef struct ly_norm_fwd {
    ly_norm_kind kind;
    bool one_plus_gamma;
    float eps;
    mc_tensor x, y, y_bias, h, gamma, beta, out, stats;
    ly_dropout dropout;
} ly_norm_fwd;

/* Backward of the above from h and stats:
 *   dh    = dskip + d(norm)/dh . dout     dskip (R,C) optional: gradient that reaches h past the norm; dh may be dskip
 *   dy    = dropout mask . dh             (R,C) optional: gradient of y; where p = 0 use dh instead and leave it absent
 *   out   = the forward's out again       (R,C) optional: recomputed, for the weight gradient of what consumed it; may
 *                                         not overlap dout
 *   dgamma, dbeta (C) f32 +=              dbeta optional
 *   dy_bias (C) f32 +=                    optional: column sums of dy (of dh where dy is absent), before rounding
 * dout absent (no norm: the block's last addition): dh = dskip, only dy and dy_bias are computed. Column sums add rows
 * in an order that does not depend on the number of threads. */
typedef struct ly_norm_bwd {
    ly_norm_kind kind;
    bool one_plus_gamma;
    mc_tensor dout, h, stats, gamma, beta, dskip;
    mc_tensor dh, dy, out, dgamma, dbeta, dy_bias;
    ly_dropout dropout;
} ly_norm_bwd;

/* Norm over the last dim of per-head views (R, G, r, H), rows strided (--qk-layernorm): out = norm(x) with gamma, beta
 * (H), in place not allowed; stats (R * G * r, 2) f32. */
typedef struct ly_head_norm_fwd {
    ly_norm_kind kind;
    bool one_plus_gamma;
    float eps;
    mc_tensor x, gamma, beta, out, stats;
} ly_head_norm_fwd;

/* dx (same view as x; may be dout's memory) overwritten; dgamma, dbeta (H) f32 +=. */
typedef struct ly_head_norm_bwd {
    ly_norm_kind kind;
    bool one_plus_gamma;
    mc_tensor dout, x, stats, gamma;
    mc_tensor dx, dgamma, dbeta;
} ly_head_norm_bwd;

#ifdef __cplusplus
}
#endif
#endif
