/* Text from a model: one token after another, several texts at once, on any layout. */
#ifndef MEGAC_TRAIN_GENERATE_H
#define MEGAC_TRAIN_GENERATE_H

#include "megac/train/engine.h"
#include "megac/train/sampling.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct mt_generation {
    int64_t max_new;    /* tokens to write after each prompt */
    int64_t stop_token; /* ends a text; -1: none */
    mt_sampling sampling;
} mt_generation;

/* A prompt and what follows it. */
typedef struct mt_text {
    int32_t *tokens;  /* (n_prompt + max_new): the prompt's are there before */
    int64_t n_prompt; /* 1 .. seq_length */
    uint64_t number;  /* of the prompt: prompts draw different numbers */
    int64_t n;        /* out: tokens in all, the stop token not counted */
    bool ended;       /* out */
} mt_text;

/* Continues n_texts texts, at most the engine's n_texts; every rank gets the same tokens, which do not depend on the
 * texts beside (but for rounding on some devices). A text longer than seq_length is continued from its last seq_length
 * tokens, all computed again for each token. Collective. MC_INVALID: a token that the model does not have; MC_NUMERIC:
 * no logit is a number. */
mc_status mt_generate(mt_engine *e, const mt_generation *g, mt_text *texts, int n_texts) MC_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
