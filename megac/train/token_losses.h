/* The loss of every token of an evaluation in one safetensors file: tensor `losses` (windows, seq_length) f32, nats,
 * windows in the order in which they are read, 0 where a target has no weight (--eod-mask-loss). Rank 0 writes it as
 * the steps go, whatever the layout: what it holds is one micro-batch. */
#ifndef MEGAC_TRAIN_TOKEN_LOSSES_H
#define MEGAC_TRAIN_TOKEN_LOSSES_H

#include "megac/train/engine.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct mt_token_losses mt_token_losses;

/* For the evaluation of so many windows. Begins "PATH.tmp"; the file gets its name when it is complete. Collective, as
 * all that follows. MC_NOTFOUND and other errors of the file system, MC_NOMEM. */
mc_status mt_token_losses_create(mt_engine *e, const char *path, uint64_t n_windows,
                                 mt_token_losses **losses_out) MC_MUST_CHECK;
/* The step of n_micro micro-batches whose losses mt_engine_loss_sum has waited for; windows past the last are left
 * out. */
mc_status mt_token_losses_add(mt_token_losses *t, int n_micro) MC_MUST_CHECK;
/* Every window must have come. The file is durable on return. */
mc_status mt_token_losses_finish(mt_token_losses *t) MC_MUST_CHECK;
/* NULL allowed. Removes an unfinished file. */
void mt_token_losses_destroy(mt_token_losses *t);

#ifdef __cplusplus
}
#endif
#endif
