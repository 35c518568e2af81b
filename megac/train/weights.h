/* Weights of a model, from a checkpoint of megac or a directory of Hugging Face alike; and what a run begins with. */
#ifndef MEGAC_TRAIN_WEIGHTS_H
#define MEGAC_TRAIN_WEIGHTS_H

#include "megac/train/checkpoint/checkpoint.h"
#include "megac/train/options/options.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct mt_weights mt_weights;

/* `step` as in mt_checkpoint_open; a directory of Hugging Face has none. */
mc_status mt_weights_open(const char *path, int64_t step, mt_weights **weights_out) MC_MUST_CHECK;
void mt_weights_close(mt_weights *w); /* NULL allowed */
/* The model's flags, as mt_options_adopt and mt_options_differences take them. Valid until close. */
const char *mt_weights_config(const mt_weights *w);
/* As it was given to open. */
const char *mt_weights_path(const mt_weights *w);
/* The checkpoint, or NULL. */
mt_checkpoint *mt_weights_checkpoint(const mt_weights *w);
/* As mt_checkpoint_read. */
mc_status mt_weights_read(mt_weights *w, const mt_ckpt_item *item) MC_MUST_CHECK;

/* What a run begins with: --load where there is a checkpoint; else --pretrained-checkpoint, of which only the weights
 * count; else, with --load-if-exists, nothing. */
typedef struct mt_start {
    const char *path; /* NULL: initial values */
    const char *flag; /* that names it */
    int64_t step;
    bool weights_only;
} mt_start;
mt_start mt_start_of(const mt_options *o);

#ifdef __cplusplus
}
#endif
#endif
