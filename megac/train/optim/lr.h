/* Learning rate and weight decay as pure functions of progress, with the meaning of Megatron-LM's
 * OptimizerParamScheduler. Progress is measured in samples; a run counted in iterations has a constant batch size, and
 * an iteration is that many samples.
 *
 * Megatron-LM sets the rate before the first update and moves it after every update: the update that begins after
 * `consumed` samples uses the values at progress `consumed`, so that the first update with a warm-up from 0 has rate 0.
 * The value that it logs for a step is the one after the move. */
#ifndef MEGAC_TRAIN_OPTIM_LR_H
#define MEGAC_TRAIN_OPTIM_LR_H

#include <stdint.h>

#include "megac/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The flags, by their names. Absent: a negative integer, NAN, or NULL for a word (which then has Megatron-LM's
 * default).
 */
typedef struct mt_lr_flags {
    double lr, min_lr, lr_warmup_init;
    double decoupled_lr, decoupled_min_lr;
    double weight_decay, start_weight_decay, end_weight_decay;
    double lr_warmup_fraction;
    int64_t train_iters, lr_decay_iters, lr_warmup_iters, lr_wsd_decay_iters;
    int64_t train_samples, lr_decay_samples, lr_warmup_samples, lr_wsd_decay_samples;
    int64_t global_batch; /* samples of an iteration, for the ..._iters */
    const char *lr_decay_style, *lr_wsd_decay_style, *weight_decay_incr_style;
} mt_lr_flags;

typedef enum { MT_LR_CONSTANT, MT_LR_LINEAR, MT_LR_COSINE, MT_LR_INVERSE_SQRT, MT_LR_WSD } mt_lr_style;
typedef enum { MT_WSD_EXPONENTIAL, MT_WSD_LINEAR, MT_WSD_COSINE, MT_WSD_MINUS_SQRT } mt_wsd_style;
typedef enum { MT_DECAY_CONSTANT, MT_DECAY_LINEAR, MT_DECAY_COSINE } mt_decay_incr_style;

typedef struct mt_lr_config {
    mt_lr_style style;
    mt_wsd_style wsd_style;
    mt_decay_incr_style wd_style;
    double warmup_init, max_lr, min_lr;
    double decoupled_max_lr, decoupled_min_lr; /* equal to the others without --decoupled-lr */
    double warmup_samples, decay_samples, wsd_samples;
    double start_wd, end_wd, wd_samples;
} mt_lr_config;

/* MC_INVALID names the flag: iterations and samples mixed, rates out of order, a warm-up that is not shorter than the
 * decay, WSD without the length of its last phase, weight decay that falls, an unknown style. */
mc_status mt_lr_init(mt_lr_config *config, const mt_lr_flags *flags) MC_MUST_CHECK;

/* Values after `progress_samples` samples. */
double mt_lr_at(const mt_lr_config *config, double progress_samples);
/* Of embedding and output layer (--decoupled-lr). */
double mt_decoupled_lr_at(const mt_lr_config *config, double progress_samples);
double mt_weight_decay_at(const mt_lr_config *config, double progress_samples);

#ifdef __cplusplus
}
#endif
#endif
