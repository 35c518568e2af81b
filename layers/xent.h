/* Softmax cross entropy over a vocabulary that may be split over ranks: two passes with a small exchange between them.
 */
#ifndef LAYERS_XENT_H
#define LAYERS_XENT_H

#include "megac/base/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

/* stats (R,3) f32: for each row of logits (R,Vl): maximum, sum of exp(logit - maximum), and the target's logit (0 where
 * targets[r] is outside [vocab0, vocab0 + Vl)). Columns at or beyond `vocab_valid - vocab0` are padding: they count as
 * -inf (a shard of padding only gives maximum -inf and sum 0). targets (R) i32. logits f32. */
typedef struct ly_xent_stats {
    mc_tensor logits, targets, stats;
    int64_t vocab0, vocab_valid;
} ly_xent_stats;

/* all_stats (S,R,3) f32: the S shards' stats in rank order. losses (R) f32 = weights[r] * (log-sum-exp - target logit),
 * overwritten; optional. When `write_grad`, (softmax - onehot(target)) * weights[r] * scale, padding columns 0, goes to
 * dlogits (R,Vl) of type T, or where that is absent overwrites the f32 logits. weights (R) f32 optional (1): loss mask;
 * a row of weight 0 has loss and gradient 0, whatever its logits hold. A NaN in a row's valid logits makes its loss
 * NaN. */
typedef struct ly_xent_grad {
    mc_tensor logits, targets, all_stats, losses, weights;
    mc_tensor dlogits; /* (optional) default: in place */
    int64_t vocab0, vocab_valid;
    float scale;
    int write_grad;
} ly_xent_grad;

#ifdef __cplusplus
}
#endif
#endif
