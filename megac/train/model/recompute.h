/* Activation recomputation: what the backward pass finds and what it computes again. */
#ifndef MEGAC_TRAIN_MODEL_RECOMPUTE_H
#define MEGAC_TRAIN_MODEL_RECOMPUTE_H

#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What blocks do not keep between forward and backward but compute again (--recompute-...): the same numbers. */
typedef struct mt_recompute {
    int full_layers; /* the first so many blocks of a stage keep no stash */
    int group;       /* of those, one in so many keeps its input; the others' are computed from it */
    bool core_attn;  /* blocks do not keep attn and lse */
    bool mlp;        /* nor fc1 */
    bool distribute; /* tensor-parallel ranks keep a part of the rows of those inputs each */
} mt_recompute;

#ifdef __cplusplus
}
#endif
#endif
