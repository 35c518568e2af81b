/* The next token from logits, on the host: greedy, or drawn after temperature, top-k and top-p. A pure function: the
 * random number depends on (seed, prompt, position) only, so that the text is the same on every layout. */
#ifndef MEGAC_TRAIN_SAMPLING_H
#define MEGAC_TRAIN_SAMPLING_H

#include <stdint.h>

#include "megac/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct mt_sampling {
    uint32_t seed;
    double temperature; /* logits are divided by it; <= 0: greedy */
    int top_k;          /* draw among the k likeliest tokens only; <= 0: all */
    double top_p;       /* draw among the fewest likeliest tokens that weigh at least p together; <= 0 or >= 1: all */
    int32_t *scratch;   /* (n_vocab); needed with top_k or top_p, may be NULL otherwise */
} mt_sampling;

/* Token in [0, n_vocab). logits (n_vocab); -inf and NaN are never chosen; -1 when nothing else is there (a model that
 * has diverged). Of equal logits the lower token is the likelier. top_p weighs what top_k leaves, after temperature.
 * `prompt` is the prompt's number, `position` that of the token. */
int32_t mt_sample(const mt_sampling *sampling, const float *logits, int n_vocab, uint64_t prompt, uint64_t position);

#ifdef __cplusplus
}
#endif
#endif
