/* From summed micro-batch gradients to new parameters: finish the reductions, global norm, decide, update. */
#ifndef MEGAC_TRAIN_OPTIMIZER_H
#define MEGAC_TRAIN_OPTIMIZER_H

#include "megac/train/data_parallel.h"
#include "megac/train/stage.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum { MT_ADAM, MT_SGD } mt_optimizer_kind;

typedef struct mt_optimizer_config {
    mt_optimizer_kind kind;
    float beta1, beta2, eps, momentum;
    double clip_grad; /* limit of the global L2 norm; 0: none */
} mt_optimizer_config;

/* The groups that gradients are summed over besides data parallelism. */
typedef struct mt_grad_comms {
    const mc_comm *tp;          /* replicated parameters that saw a part of the rows or heads */
    const mc_comm *kv_replicas; /* ranks that hold the same key/value heads */
    const mc_comm *embedding;   /* first and last stage, where they hold the tied embedding twice */
    const mc_comm *world;       /* the global norm */
} mt_grad_comms;

typedef struct mt_optimizer {
    mt_optimizer_config config;
    mt_stage *stage;
    mt_data_parallel dp;
    mt_grad_comms comms;
    mc_tensor m, v;                         /* slabs; v absent for SGD, m absent without momentum */
    mc_tensor sum_pack;                     /* gradients summed over tp, packed: one collective a step */
    mc_tensor norm_out, host_norm;          /* (1) f64 on the device and, pinned, on the host */
    ly_segment *segments, *device_segments; /* the same table in pinned host memory and where operators run */
    int n_segments;
    int64_t steps; /* updates made: Adam's bias correction counts these, not iterations */
} mt_optimizer;

/* Lays out the moments over the stage's arenas (measuring or bound) and builds the segment table. `dp` is kept. */
mc_status mt_optimizer_create(const mt_optimizer_config *config, mt_stage *stage, const mc_comm *dp,
                              const mt_grad_comms *comms, int64_t bucket_elems,
                              mt_optimizer **optimizer_out) MC_MUST_CHECK;
void mt_optimizer_destroy(mt_optimizer *o);

/* What one step did. */
typedef struct mt_step_result {
    double loss_sum;  /* of the global batch: sum of weighted token losses */
    double grad_norm; /* before clipping */
    bool skipped;     /* the norm was not finite: no rank changed anything */
} mt_step_result;

/* After a step of n_micro micro-batches. The host waits for the device once, where it reads the losses and the norm.
 * Collective over the world. */
mc_status mt_optimizer_step(mt_optimizer *o, double lr, double decoupled_lr, double weight_decay, int n_micro,
                            mt_step_result *result_out) MC_MUST_CHECK;
/* The operators of a step, for the plan of their workspace. */
mc_status mt_optimizer_dry_run(mt_optimizer *o) MC_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
