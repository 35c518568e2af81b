/* The global batch size as a function of the samples consumed: constant, Megatron-LM's ramp (--rampup-batch-size) or
 * steps (--step-batch-size-schedule). Pure: every rank computes the same numbers, and a resumed run needs the number of
 * consumed samples only. */
#ifndef MEGAC_TRAIN_OPTIM_BATCH_H
#define MEGAC_TRAIN_OPTIM_BATCH_H

#include <stdbool.h>
#include <stdint.h>

#include "megac/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct mt_batch_config {
    int64_t global_batch;  /* samples; <= 0: the largest of the step schedule, else micro_batch x data_parallel */
    int64_t micro_batch;   /* samples of one micro-batch on one rank */
    int64_t data_parallel; /* ranks that share a global batch */
    const int64_t *rampup; /* {start, increment, samples}, or NULL */
    /* "THRESHOLD:SIZE ..." with blanks or commas between, or NULL. Numbers may be decimal and end in K, M, B or T (10^3
     * .. 10^12). Thresholds count tokens, as in Megatron-LM: seq_length of them are one sample. */
    const char *step_schedule;
    int64_t seq_length;
    bool decrease_if_needed; /* round every size down to a multiple of micro_batch x data_parallel */
    uint64_t consumed;       /* samples consumed already: sizes that lie behind are not checked */
} mt_batch_config;

typedef struct mt_batch_step {
    uint64_t threshold; /* samples from which on the size holds */
    int64_t size;
} mt_batch_step;

typedef struct mt_batch {
    int64_t unit; /* micro_batch x data_parallel */
    int64_t max;
    bool decrease;
    /* Ramp: size start + k increment from the sample k ramp_samples / n_increments on; n_increments 0: no ramp. */
    int64_t start, increment, n_increments, ramp_samples;
    mt_batch_step *steps; /* ascending; NULL without a step schedule */
    int n_steps;
} mt_batch;

/* MC_INVALID names the flag and what it could be: numbers that are not positive, a ramp that does not divide, a
 * schedule that cannot be read, and sizes still to come that are no multiple of micro_batch x data_parallel. MC_NOMEM.
 */
mc_status mt_batch_init(mt_batch *batch, const mt_batch_config *config) MC_MUST_CHECK;
void mt_batch_fini(mt_batch *batch); /* a zeroed batch is allowed */

/* Samples of the step that begins after `consumed` samples. */
int64_t mt_batch_size_at(const mt_batch *batch, uint64_t consumed);
/* The largest size of the run. */
int64_t mt_batch_max(const mt_batch *batch);
/* Steps that fit into `samples` when the run begins at `consumed`. Where sizes change, a last partial step is not
 * counted. */
int64_t mt_batch_iterations(const mt_batch *batch, uint64_t consumed, uint64_t samples);
/* Samples of the `iterations` steps that follow `consumed`. */
uint64_t mt_batch_samples(const mt_batch *batch, uint64_t consumed, int64_t iterations);

#ifdef __cplusplus
}
#endif
#endif
