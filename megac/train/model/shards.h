/* Parameters, gradients and optimizer state by units, and who of the data-parallel group keeps which part of them: ZeRO
 * (Rajbhandari et al. 2020).
 *
 * A unit (params.h) is cut into as many equal parts as the group has ranks; rank d answers for part d. By stage:
 *
 *             parameters (T)     gradients (f32)      main parameters, moments
 *   0         whole              whole                whole
 *   1 optim   whole              whole                own parts
 *   2 grads   whole              own parts *          own parts
 *   3 params  own parts *        own parts *          own parts
 *
 * * of blocks, with two buffers of a whole block that blocks take in turn: while one is computed with, the other is
 * being gathered or reduced. Units outside the blocks stay whole, as the tied embedding is used at both ends of a step;
 * their gradients are reduced once a step.
 *
 * In stages 0 and 3 what a rank keeps of blocks' parameters may lie in host memory (shards_host.h); then stage 0 has
 * the two buffers, too.
 *
 * With gradients in bf16 (--main-grads-dtype) blocks are treated as in stage 2: a micro-batch adds in f32 to a buffer,
 * which is then added to the own part and rounded once.
 *
 * Sums over the group add in rank order whatever the stage, and the global norm is a sum over parts in every stage, so
 * stages 0 and 1 are the same run to the bit; so are 2 and 3 with one micro-batch a step. With more, theirs add over
 * the group first and then over micro-batches.
 *
 * Hybrid sharding (--num-distributed-optimizer-instances N; Megatron-LM's meaning): the group is cut into N instances
 * of consecutive ranks. "Group" above is then one instance; the ranks that have the same place in every instance keep
 * the same part. Gradients are summed inside an instance as above, and once a step, when all its micro-batches are in,
 * the parts are summed across the instances, in the instances' order. So with one micro-batch a step stages 1 to 3 are
 * the same run to the bit; N changes the order of sums.
 *
 * With --grad-reduce-in-bf16 what is exchanged is rounded to bf16 (to nearest even), and so is each sum of it, which is
 * added in f32 in rank order first (NCCL adds in an order of its own and rounds every addition). Gradients of
 * micro-batches still add in f32. So these are rounded, whatever the stage:
 *
 *   stages 0, 1; units outside the blocks    a rank's sum of micro-batches; the instance's sum; the sum of instances
 *   blocks of stages 2, 3                    a rank's micro-batch; the instance's sum of it; an instance's sum of
 *                                            micro-batches, where there are several instances; the sum of instances
 *
 * which with one micro-batch a step is the same. Two bf16 buffers of the largest unit (bucket, in stage 0) are what
 * is exchanged from; stages 2 and 3 then need one f32 buffer of a block instead of two. */
#ifndef MEGAC_TRAIN_MODEL_SHARDS_H
#define MEGAC_TRAIN_MODEL_SHARDS_H

#include "layers/ops.h"
#include "megac/base/comm.h"
#include "megac/train/model/params.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct mt_shards_host mt_shards_host;

/* What a rank has of one unit. Tensors are 1-D. */
typedef struct mt_shard {
    mc_tensor param;      /* whole, type T; of a gathered block valid between acquire and the next-but-one block's */
    mc_tensor grad;       /* whole, f32: where a backward pass adds */
    int64_t begin, elems; /* own part, in elements of the whole slab */
    mc_tensor param_part, grad_part; /* own part (in host memory stage 0: whole); the gradient is the group's sum once
                                        reductions are finished */
    mc_tensor main;                  /* f32, what the optimizer updates: own part, stage 0: whole; param's memory where
                                        T is f32 */
    int64_t main_at, state_at;       /* its first element in main_store, and in stores of moments */
    mc_request gather;
    bool gathering;
} mt_shard;

typedef enum { MT_SUM_IDLE, MT_SUM_WITHIN, MT_SUM_ACROSS } mt_sum_phase;

/* Gradients that are summed in one operation: a unit, or contiguous units in stage 0. */
typedef struct mt_bucket {
    mc_tensor whole; /* f32, where backward passes add */
    mc_tensor kept;  /* what gets the sum: own part, stage 0: whole */
    mc_tensor sum;   /* own part of what is being exchanged: in `whole`, in a wire, or `kept` */
    int first_unit;
    bool joins; /* `whole` is a buffer: each micro-batch's sum is added to `kept` */
    bool last;  /* the sum under way is the step's last */
    mt_sum_phase phase;
    mc_request request;
} mt_bucket;

enum { MT_UNIT_BUFFERS = 2 };

/* The data-parallel groups, which must outlive the shards. */
typedef struct mt_shard_comms {
    const mc_comm *within; /* ranks that share out: an instance */
    const mc_comm *across; /* ranks of all instances that keep the same part; of one instance: a group of one */
} mt_shard_comms;

typedef struct mt_shards {
    const mt_params *params;
    mt_shard_comms comms;
    const ly_ctx *ly;
    int zero;
    bool grads_bf16;
    mt_shards_host *host; /* (optional) default: all parameters lie on the device */
    bool own_main;        /* main parameters have memory of their own: T is of 16 bits, and an optimizer runs */
    mt_shard *units;      /* [params->n_units] */
    mc_tensor param_store, grad_store; /* all of `param` and `grad` that is kept, */
    mc_tensor outer_grad_store;        /* but for f32 gradients of units outside the blocks, where grad_store is bf16 */
    mc_tensor main_store; /* all of `main`: param_store where the optimizer updates that, or where none runs */
    mc_tensor param_buffers[MT_UNIT_BUFFERS], grad_buffers[MT_UNIT_BUFFERS];
    int held[MT_UNIT_BUFFERS];        /* unit whose parameters lie, or will lie, in a buffer; -1: none */
    int reducing[MT_UNIT_BUFFERS];    /* unit whose gradient is being summed in a buffer; -1: none */
    mc_tensor wires[MT_UNIT_BUFFERS]; /* bf16: what is exchanged instead of f32 gradients; taken in turn */
    int on_wire[MT_UNIT_BUFFERS];     /* bucket that took it last; -1: none */
    int n_wires, turn;
    mt_bucket *buckets; /* one a unit, but for stage 0 */
    int n_buckets;
    int next;         /* the next bucket to reduce at the end of a step; -1: all begun */
    int newest;       /* the bucket whose last sum of the step was begun last; -1: none */
    bool grads_clear; /* grad_store is all zeros already */
} mt_shards;

typedef struct mt_shards_config {
    const mt_params *params;
    mt_shard_comms comms;
    const ly_ctx *ly;
    mc_dtype dtype;       /* T */
    int zero;             /* 0 to 3; 0 in a group of one, and then one instance */
    bool training;        /* gradients and main parameters exist */
    bool main_bf16;       /* the optimizer updates bf16 parameters: T itself */
    bool grads_bf16;      /* with stage 2 or 3, or a group of one */
    bool reduce_bf16;     /* gradients are exchanged in bf16 */
    int64_t bucket_elems; /* stage 0: least elements of a bucket (--ddp-bucket-size) */
    bool host_params;     /* of blocks lie in host memory: stage 0 or 3, with main parameters of their own */
    mc_device *dev;
    mc_arena *params_arena, *grads_arena, *optimizer_arena, *pinned_arena;
} mt_shards_config;

mc_status mt_shards_create(mt_shards *s, const mt_shards_config *c) MC_MUST_CHECK;
void mt_shards_destroy(mt_shards *s);

/* Elements of a store that holds what the optimizer keeps: own parts, stage 0: all. */
int64_t mt_shards_state_elems(const mt_shards *s);
/* Views of a row of the parameter table in its unit's `param` and `grad`; absent for row -1, or without gradients. */
mc_tensor mt_shards_param(const mt_shards *s, int row);
mc_tensor mt_shards_grad(const mt_shards *s, int row);
/* Elements [from, to) of a row's gradient, flat, of which this rank holds the group's sum after mt_shards_reduced: own
 * part, stage 0: all of them. May have no elements. */
mc_tensor mt_shards_summed(const mt_shards *s, int row, int64_t from, int64_t to);

/* ---- a step ---- */

/* Clears what backward passes add to. */
mc_status mt_shards_begin_step(mt_shards *s) MC_MUST_CHECK;
/* The unit's parameters are there to compute with. Stage 3 begins to gather block `next` (a unit, or -1). */
mc_status mt_shards_acquire(mt_shards *s, int unit, int next) MC_MUST_CHECK;
/* Before a backward pass adds to the unit's gradient. */
mc_status mt_shards_open_grads(mt_shards *s, int unit) MC_MUST_CHECK;
/* After it. `last`: of the step, and of all units from this one on; what can be reduced is begun. */
mc_status mt_shards_close_grads(mt_shards *s, int unit, bool last) MC_MUST_CHECK;
/* Begins what is left and waits for all: own parts (stage 0: everything) hold the group's sum. */
mc_status mt_shards_reduced(mt_shards *s) MC_MUST_CHECK;
/* The optimizer, or a checkpoint's reader, has changed `main` (and param_part, unless `cast` or in host memory):
 * gathers begin, for acquire to wait for. */
mc_status mt_shards_publish(mt_shards *s, bool cast) MC_MUST_CHECK;
/* Waits for every gather. */
mc_status mt_shards_settle(mt_shards *s) MC_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
