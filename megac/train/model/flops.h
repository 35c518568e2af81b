/* Floating-point operations of the model per token, and what the processor could do at most: the two sides of MFU.
 *
 * Only matrix products count, a multiply-add as two operations; forward once and backward twice (Korthikanti et al.,
 * "Reducing Activation Recomputation in Large Transformer Models", 2022, appendix A; recomputation does not count:
 * --log-operators tells what was run).
 * Attention is counted in two ways, because published figures differ: `causal` (half of the T x T products, as
 * Megatron-LM has counted since 2024) and `full` (all of them, as in PaLM's MFU). */
#ifndef MEGAC_TRAIN_MODEL_FLOPS_H
#define MEGAC_TRAIN_MODEL_FLOPS_H

#include <stdbool.h>
#include <stdint.h>

#include "megac/base/pool.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct mt_flops_shape {
    int64_t n_layers, hidden, ffn, heads, groups, head_dim; /* groups: key/value heads */
    bool gated;                                             /* SwiGLU: three MLP matrices instead of two */
    int64_t seq_length;
    int64_t window_left; /* tokens to the left that a token sees besides itself; -1: all */
    int64_t vocab;       /* columns of the output layer. Megatron-LM counts the padded vocabulary; so does megac */
} mt_flops_shape;

typedef struct mt_flops {
    double linear;         /* forward, per token: all layers' linears and the output layer */
    double attention_half; /* forward, per token: all layers' QK^T and PV, causal half */
    double attention_full;
    double causal, full; /* training, per token: 3 x (linear + attention) */
} mt_flops;

mt_flops mt_flops_per_token(const mt_flops_shape *shape);

/* Single-precision operations per second of the pool's threads together: the best of a few short loops of fused
 * multiply-adds in registers, in the widest vectors the processor has. Takes about 3 ms. */
double mt_measure_peak(mc_pool *pool);

#ifdef __cplusplus
}
#endif
#endif
