/* Which checkpoints of a save directory stay. */
#ifndef MEGAC_TRAIN_CHECKPOINT_CKPT_RETAIN_H
#define MEGAC_TRAIN_CHECKPOINT_CKPT_RETAIN_H

#include <stdint.h>

#include "megac/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct mt_retain {
    int64_t newest;    /* iteration just saved: always stays */
    int64_t keep_last; /* so many of the newest stay (--keep-last); 0: all of them */
    int64_t interval;  /* multiples of it stay (--save-retain-interval); 0: none for that */
    int64_t best;      /* stays too; -1: none */
} mt_retain;

/* Removes what the policy does not keep, and what interrupted saves left behind. Checkpoints newer than `newest` (of a
 * run that went further, then was resumed earlier) are not touched. A checkpoint is renamed before it is deleted, so
 * that none is ever seen half gone. What cannot be removed is warned of. */
void mt_checkpoint_retain(const char *dir, const mt_retain *policy);
/* Writes dir/best_checkpointed_iteration.txt. */
mc_status mt_checkpoint_mark_best(const char *dir, int64_t iteration) MC_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
