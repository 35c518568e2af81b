/* What a run tells about itself: the progress line on standard output and one JSON object a line in the metrics file.
 * Rank 0 only; on other ranks every function does nothing. */
#ifndef MEGAC_TRAIN_METRICS_H
#define MEGAC_TRAIN_METRICS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "megac/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct mt_metrics {
    FILE *file;  /* NULL: no metrics file, or not rank 0 */
    bool speaks; /* rank 0 */
    bool scaled; /* the progress line has the loss scale */
    /* Constants of the run. */
    double flops_per_token_causal, flops_per_token_full; /* model FLOPs, forward and backward, per token */
    double peak_flops;                                   /* of all ranks together; 0: unknown, no MFU */
    int64_t total_iterations;                            /* 0: unknown (sample-based run with a ramp) */
    int64_t log_interval;
    /* Since the last progress line. */
    double window_seconds, window_loss; /* the loss of steps that were not skipped */
    int64_t window_tokens, window_steps, window_skipped;
} mt_metrics;

typedef struct mt_metrics_step {
    int64_t iteration;
    uint64_t consumed_samples, consumed_tokens;
    int64_t tokens; /* computed in this step: 0 where it was passed over */
    double loss, learning_rate, grad_norm, loss_scale, seconds;
    bool skipped;
    const char *finding, *decision; /* why and how a step was not trained on as usual; NULL: it was */
} mt_metrics_step;

/* Opens `path` for appending (its directory must exist) on the rank that `speaks`; NULL: no file. MC_IO. */
mc_status mt_metrics_open(mt_metrics *m, const char *path, bool speaks) MC_MUST_CHECK;
/* MC_IO when what was written did not reach the file (disk full). */
mc_status mt_metrics_close(mt_metrics *m) MC_MUST_CHECK;

/* Records a step; prints the progress line at every log interval. */
mc_status mt_metrics_step_done(mt_metrics *m, const mt_metrics_step *s) MC_MUST_CHECK;
/* Records an evaluation: mean loss over `tokens` tokens of the split called `name`. */
mc_status mt_metrics_eval_done(mt_metrics *m, int64_t iteration, const char *name, double loss,
                               double tokens) MC_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
