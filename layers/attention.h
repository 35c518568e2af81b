/* Scaled dot-product attention without a T x T matrix in memory (Dao et al., FlashAttention, 2022; backward from the
 * saved log-sum-exp). */
#ifndef LAYERS_ATTENTION_H
#define LAYERS_ATTENTION_H

#include <stdbool.h>

#include "layers/dropout.h"
#include "megac/base/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Shapes: R = B * seq_len rows, row b * seq_len + t. G local KV groups, r query heads per group, H head size.
 *   q (R, G, r, H), k and v (R, G, 1, H): 4-D views with any strides, last dim contiguous; normally three views of one
 *   (R, G * (r + 2) * H) buffer laid out per group as [q * r, k, v] (Megatron-LM's order)
 *   out (R, G, r, H) view of (R, G * r * H); lse (B, G * r, T) f32: log of the sum of exponentials of each score row
 * Causal: query t sees keys max(0, t - window_left) .. t. window_left < 0: no limit.
 * `scale` is positive. Dropout acts on probabilities: element index ((head0 + h) * T + q_pos) * T + k_pos of (seed,
 * stream, sample), where h is the local query head number g * r + j; `dropout.row0` is not used. Where T is 16 bits
 * wide, probabilities, and in the backward the gradients of scores, may be rounded to T before they are multiplied by v
 * (q, k). Results do not depend on the number of threads. */
typedef struct ly_attention_fwd {
    mc_tensor q, k, v, out, lse;
    int64_t seq_len;
    float scale;
    int64_t window_left;
    int64_t head0; /* global number of local query head 0 */
    ly_dropout dropout;
} ly_attention_fwd;

/* dq, dk, dv (views like q, k, v): overwritten. Needs the forward's q, k, v, out, lse and dout (like out).
 * `delta` (B, G * r, T) f32: workspace. */
typedef struct ly_attention_bwd {
    mc_tensor q, k, v, out, lse, dout, delta;
    mc_tensor dq, dk, dv;
    int64_t seq_len;
    float scale;
    int64_t window_left;
    int64_t head0;
    ly_dropout dropout;
} ly_attention_bwd;

#ifdef __cplusplus
}
#endif
#endif
