/* From summed micro-batch gradients to new parameters: finish the reductions, global norm, decide, update. */
#ifndef MEGAC_TRAIN_OPTIM_OPTIMIZER_H
#define MEGAC_TRAIN_OPTIM_OPTIMIZER_H

#include "megac/train/model/stage.h"
#include "megac/train/optim/offload.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum { MT_ADAM, MT_SGD } mt_optimizer_kind;

typedef struct mt_optimizer_config {
    mt_optimizer_kind kind;
    float beta1, beta2, eps, momentum;
    double clip_grad;             /* limit of the global L2 norm; 0: none */
    mc_dtype exp_avg, exp_avg_sq; /* of Adam's moments */
    bool offload;                 /* the moments leave the device (offload.h), */
    const char *offload_dir;      /* for a file in this directory; NULL: for host memory */
    bool snapshots;               /* host memory for a copy of all that a checkpoint holds (--async-save) */
} mt_optimizer_config;

/* The groups that gradients are summed over besides data parallelism. */
typedef struct mt_grad_comms {
    const mc_comm *tp;          /* replicated parameters that saw a part of the rows or heads */
    const mc_comm *kv_replicas; /* ranks that hold the same key/value heads */
    const mc_comm *embedding;   /* first and last stage, where they hold the tied embedding twice */
    const mc_comm *world;       /* the global norm */
} mt_grad_comms;

enum { MT_SNAPSHOTS = 3 };

/* A contiguous run of the slab that one operator call works on. Tensors are 1-D of the same length. */
typedef struct mt_piece {
    int64_t begin;                     /* slab element that it starts with */
    int64_t state_at;                  /* element of the stores of moments */
    mc_tensor grad, main, m, v, model; /* as ly_adamw's; m and v where the optimizer has them */
    int first_segment, n_segments;     /* of the tables below */
} mt_piece;

typedef struct mt_optimizer {
    mt_optimizer_config config;
    mt_stage *stage;
    mt_grad_comms comms;
    mc_tensor m, v;           /* stores of mt_shards_state_elems; v absent for SGD, m absent without momentum */
    mc_tensor sum_pack;       /* gradients summed over tp, packed: one collective a step */
    mt_offload *offload;      /* has the moments instead of m and v; NULL: none */
    mt_offload_chunk *chunks; /* of the update's pieces, with an offload */
    mt_piece *pieces;         /* [0, n_norm_pieces): the norm's; [first_update, n_pieces): the update's */
    int n_pieces, n_norm_pieces, first_update;
    mc_tensor norms, host_norms;            /* (n_norm_pieces) f64 on the device and, pinned, on the host */
    ly_segment *segments, *device_segments; /* the pieces' tables in pinned host memory and where operators run */
    int n_segments;
    float lr_mult[2];                  /* [decoupled_lr of a row] */
    mc_tensor snapshots[MT_SNAPSHOTS]; /* of main parameters, m, v, where config.snapshots: pinned host memory */
    int64_t steps;                     /* updates made: Adam's bias correction counts these, not iterations */
} mt_optimizer;

/* Lays out the moments over the stage's arenas (measuring or bound) and builds the pieces and their segments. */
mc_status mt_optimizer_create(const mt_optimizer_config *config, mt_stage *stage, const mt_grad_comms *comms,
                              mt_optimizer **optimizer_out) MC_MUST_CHECK;
void mt_optimizer_destroy(mt_optimizer *o);

/* What ranks tell each other once a step, in the exchange of loss and norm: in, this rank's wish; out, the sum over
 * all.
 */
typedef struct mt_votes {
    double stop;    /* ranks that want the run to end (signal, time) */
    double save;    /* ranks that want a checkpoint (--save-interval-hours) */
    double written; /* ranks whose part of a save in the background is written */
} mt_votes;

/* What one step of n_micro micro-batches came to, the same on every rank. */
typedef struct mt_step_result {
    double loss_sum;  /* of the global batch: sum of weighted token losses */
    double grad_norm; /* of the gradients times grad_scale, before clipping */
} mt_step_result;

/* After the last backward pass: finishes the sums of gradients. `grad_scale` takes out what the loss was scaled by. The
 * host waits for the device once, where it reads the losses and the norm. Collective over the world. */
mc_status mt_optimizer_reduce(mt_optimizer *o, int n_micro, double grad_scale, mt_votes *votes,
                              mt_step_result *result_out) MC_MUST_CHECK;
/* New parameters from the reduced gradients times `grad_scale`, clipped by their norm. Every rank calls it, or none
 * does and the step leaves no trace. */
mc_status mt_optimizer_update(mt_optimizer *o, double lr, double decoupled_lr, double weight_decay, double grad_scale,
                              double grad_norm) MC_MUST_CHECK;
/* The exchange of votes alone, for a step without update. Collective over the world. */
mc_status mt_optimizer_vote(mt_optimizer *o, mt_votes *votes) MC_MUST_CHECK;
/* The operators of a step, for the plan of their workspace. */
mc_status mt_optimizer_dry_run(mt_optimizer *o) MC_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
