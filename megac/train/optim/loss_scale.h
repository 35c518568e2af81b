/* The factor on the loss that keeps small fp16 gradients from vanishing, and its dynamic rule: Megatron-LM's
 * DynamicGradScaler, or with `consecutive` DeepSpeed's consecutive_hysteresis. Gradients carry the factor until the
 * optimizer divides by it. */
#ifndef MEGAC_TRAIN_OPTIM_LOSS_SCALE_H
#define MEGAC_TRAIN_OPTIM_LOSS_SCALE_H

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct mt_loss_scale_config {
    bool dynamic; /* else the scale stays `initial` */
    double initial, min;
    int64_t window;     /* good steps before the scale doubles */
    int64_t hysteresis; /* overflows before it halves */
    bool consecutive;   /* ... in a row */
} mt_loss_scale_config;

/* Kept in checkpoints. */
typedef struct mt_loss_scale {
    double scale;
    int64_t good_steps;      /* since the last overflow or doubling */
    int64_t hysteresis_left; /* overflows that are still forgiven, and the one that is not; may fall below 0 */
} mt_loss_scale;

mt_loss_scale mt_loss_scale_start(const mt_loss_scale_config *c);

/* After a step. An overflow costs one of the hysteresis; once none is left every overflow halves the scale, down to
 * `min`. `window` good steps in a row double it and restore the hysteresis, which with `consecutive` every good step
 * does. Nothing happens to a static scale. */
void mt_loss_scale_update(const mt_loss_scale_config *c, mt_loss_scale *s, bool overflow);

#ifdef __cplusplus
}
#endif
#endif
