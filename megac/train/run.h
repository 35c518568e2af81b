/* A training run in progress: engine, data, schedules, and the numbers that a checkpoint keeps. */
#ifndef MEGAC_TRAIN_RUN_H
#define MEGAC_TRAIN_RUN_H

#include "layers/profile.h"
#include "megac/train/checkpoint/saver.h"
#include "megac/train/engine.h"
#include "megac/train/metrics.h"
#include "megac/train/optim/loss_scale.h"
#include "megac/train/optim/lr.h"
#include "megac/train/optim/stability.h"
#include "megac/train/stop.h"
#include "megac/train/token_losses.h"
#include "megac/train/weights.h"

#ifdef __cplusplus
extern "C" {
#endif

/* One split's data and the batches read ahead from it. */
typedef struct mt_feed {
    ds_source *source; /* NULL: this run has no such data */
    ds_loader *loader;
    mc_device *dev; /* that `pinned` belongs to, and the stream whose copies read it */
    mc_stream stream;
    void *pinned; /* the loader's batches, on a device that copies them; else NULL */
    size_t pinned_bytes;
} mt_feed;

typedef struct mt_run {
    const mt_options *o;
    mc_world *world;
    mt_engine *e;
    mt_feed train, valid;
    mt_lr_config lr;
    mt_metrics metrics;
    ly_profile profile; /* --log-operators */
    double profiled_seconds;
    double started_seconds; /* clock at the start of the process's run, for --exit-duration-in-mins */
    /* What a checkpoint keeps. */
    int64_t iteration;
    uint64_t consumed_samples, consumed_tokens;
    int64_t skipped_iterations;
    uint64_t
        schedule_samples; /* of steps that updated the model: the learning rate follows these (Megatron-LM's rule) */
    mt_loss_scale_config scale_config;
    mt_loss_scale scale;
    mt_stability stability;
    double best_loss;        /* lowest validation loss so far (--save-best), */
    int64_t best_iteration;  /* and where; 0: none */
    int64_t saved_iteration; /* of the newest checkpoint of this run; -1: none */
    mt_stop *stop;           /* signals; NULL where nothing would be saved */
    mt_saver saver;
    mt_votes votes;           /* of all ranks, in the last step */
    int64_t loaded_iteration; /* of the checkpoint that the run went on from; -1: none */
    int nan_at[3];            /* tests only (loop.c): step, data-parallel rank, micro-batch from 1 on; zeros: none */
} mt_run;

/* Why the loop ended. */
typedef enum { MT_FINISHED, MT_STOPPED_EARLY } mt_end;

/* Data of one split by the flags, with --token-losses in the order of the files; *source_out is NULL where there is
 * none. `whole`: all of --data-path, not its share.
 */
mc_status mt_source_open(const mt_options *o, ds_split which, bool whole, ds_source **source_out) MC_MUST_CHECK;

/* Reads ahead from the feed's source (nothing where it has none), into memory that the engine's device copies from. */
mc_status mt_feed_open(mt_engine *e, mt_feed *feed) MC_MUST_CHECK;
/* ds_loader_next, in the ledger of the rank. */
mc_status mt_feed_next(mc_world *world, const mt_feed *feed, double *weight_out) MC_MUST_CHECK;
/* Before the engine is destroyed. */
void mt_feed_close(mt_feed *feed);

/* Trains until --train-iters, --train-samples, --exit-interval, --exit-duration-in-mins, or a signal on any rank. */
mc_status mt_loop(mt_run *run, mt_end *end_out) MC_MUST_CHECK;

/* Micro-batches on every data-parallel rank that mt_evaluate would run; MC_INVALID or MC_INPUT where there is not one.
 */
mc_status mt_evaluation_micros(const mt_setup *s, const ds_source *source, int64_t n_steps,
                               int64_t *n_out) MC_MUST_CHECK;
/* Mean loss over `n_steps` global batches of the feed, from its first sample on; n_steps 0: every window of it once, on
 * any layout. Each token's loss goes to `record` too (NULL: to nobody). Collective. */
mc_status mt_evaluate(mt_engine *e, const mt_feed *feed, int64_t n_steps, mt_token_losses *record, double *loss_out,
                      double *tokens_out) MC_MUST_CHECK;

/* Reads weights, and unless `weights_only` optimizer state and counters, into the run. `run` may lack an optimizer. */
mc_status mt_run_load(mt_run *run, mt_weights *w, bool weights_only) MC_MUST_CHECK;
/* Back to the model, optimizer, schedule, loss scale and statistics of the newest checkpoint of this run, or the one
 * that it began with; iteration and data go on. *done_out is false where there is none. Collective. */
mc_status mt_run_rewind(mt_run *run, bool *done_out) MC_MUST_CHECK;
/* Weights alone, for evaluation and generation. */
mc_status mt_engine_load(mt_engine *e, mt_weights *w) MC_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
