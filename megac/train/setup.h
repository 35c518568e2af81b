/* What the flags mean for a given number of ranks: pure, without devices and without talking to other ranks. `megac
 * plan` needs no more than this. */
#ifndef MEGAC_TRAIN_SETUP_H
#define MEGAC_TRAIN_SETUP_H

#include "megac/train/model/flops.h"
#include "megac/train/model/memory.h"
#include "megac/train/optim/batch.h"
#include "megac/train/optim/loss_scale.h"
#include "megac/train/optim/lr.h"
#include "megac/train/optim/stability.h"
#include "megac/train/options/options.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum { MT_FOR_TRAINING, MT_FOR_EVALUATION, MT_FOR_GENERATION } mt_purpose;

typedef struct mt_setup {
    const mt_options *o;
    mt_purpose purpose;
    int world_size;
    mc_grid grid;
    mt_batch batch; /* global batch size as a function of consumed samples */
    int max_micro;  /* micro-batches of the largest step */
    int n_threads;  /* CPU threads of a rank */
    const pp_schedule *schedule;
    mt_model_config model;
    mt_optimizer_config optimizer;
    int *first_layer, *n_layers; /* of each stage */
    const char *device;          /* "cpu", "cuda": the name of the device in use or planned for */
} mt_setup;

/* `data` may be NULL (mock data, or a plan without data: the vocabulary then comes from flags). `local_size`: ranks of
 * this machine, which share its cores. MC_INVALID. */
mc_status mt_setup_init(mt_setup *s, const mt_options *o, mt_purpose purpose, int world_size, int local_size,
                        const ds_source *data) MC_MUST_CHECK;
void mt_setup_fini(mt_setup *s);

mt_place mt_setup_place(const mt_setup *s, int rank);
/* Micro-batches of a step of `global_batch` samples. */
int mt_setup_micros(const mt_setup *s, int64_t global_batch);
/* Whether a training run reads validation data too. */
bool mt_setup_evaluates(const mt_options *o);
/* Global batches of one evaluation inside a training run; 0: all of the set (--full-validation). */
int64_t mt_eval_steps(const mt_options *o);
/* The loader of `rank`; `source` may be NULL in a plan. */
ds_loader_config mt_setup_loader(const mt_setup *s, int rank, const ds_source *source);
/* What `rank` would reserve. */
mt_memory_request mt_setup_memory(const mt_setup *s, int rank);

/* Learning rate and weight decay of the run. */
mc_status mt_setup_lr(const mt_setup *s, mt_lr_config *lr_out) MC_MUST_CHECK;
/* Without --fp16 and --loss-scale a fixed scale of 1. */
mt_loss_scale_config mt_setup_loss_scale(const mt_setup *s);
mt_stability_config mt_setup_stability(const mt_setup *s);
/* Model FLOPs per token. */
mt_flops mt_setup_flops(const mt_setup *s);

/* The shape of the model alone. */
mc_status mt_model_config_from(const mt_options *o, const ds_source *data, mt_model_config *config_out) MC_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
