/* Text from a model: one token after another, on any layout. */
#ifndef MEGAC_TRAIN_GENERATE_H
#define MEGAC_TRAIN_GENERATE_H

#include "megac/train/engine.h"
#include "megac/train/sampling.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct mt_generation {
    const int32_t *prompt;
    int64_t n_prompt; /* at least 1 */
    int64_t max_new;
    int64_t stop_token; /* ends the text; -1: none */
    mt_sampling sampling;
    uint64_t number;  /* of the prompt: prompts draw different numbers */
    float *logits;    /* (padded vocabulary), memory of mt_generation_memory */
    int32_t *context; /* (seq_length), likewise */
    int32_t *tokens;  /* (n_prompt + max_new): the prompt and what followed */
} mt_generation;

/* Host memory that the device copies to and from: sets `logits` and `context`, or with `give_back` frees them. */
mc_status mt_generation_memory(mt_engine *e, mt_generation *g, bool give_back) MC_MUST_CHECK;

/* Continues the prompt; every rank gets the same tokens. A context longer than --seq-length is cut on the left.
 * Collective. *n_out: tokens in all, the stop token not counted. */
mc_status mt_generate(mt_engine *e, const mt_generation *g, int64_t *n_out) MC_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
