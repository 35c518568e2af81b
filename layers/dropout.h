/* How an operator finds the dropout mask of an element, from global indices only (megac/base/rng.h). */
#ifndef LAYERS_DROPOUT_H
#define LAYERS_DROPOUT_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* A tensor of rows is the flattened (B, T) of one micro-batch, or a contiguous shard of it. Local row r is global row
 * row0 + r; its sample is sample0 + (row0 + r) / seq_len and its position (row0 + r) % seq_len. Element (position t,
 * column c) of a sample of width C has index t * C + c in (seed, stream, sample): it is kept when word index % 4 of
 * block index / 4 is >= mc_rng_threshold(p), and then scaled by 1 / (1 - p). p = 0: no dropout, nothing else is read.
 */
typedef struct ly_dropout {
    float p;
    uint32_t seed, stream;
    uint64_t sample0; /* global number of the micro-batch's first sample */
    int64_t row0;     /* global row of local row 0 inside the micro-batch */
    int64_t seq_len;  /* T */
} ly_dropout;

#ifdef __cplusplus
}
#endif
#endif
