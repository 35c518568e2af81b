/* One pipeline stage of the model on one rank: [embedding] blocks [final norm, output layer, loss], as pp_stage_ops.
 *
 * A stage is laid out twice by the same code: once over measuring arenas (for the plan), once over memory. In between,
 * the planner runs a forward and a backward with operators and communicators that do nothing, which gives scratch its
 * size. */
#ifndef MEGAC_TRAIN_MODEL_STAGE_H
#define MEGAC_TRAIN_MODEL_STAGE_H

#include "datasets/ds.h"
#include "megac/train/model/block.h"
#include "megac/train/model/shards.h"
#include "pipeline/pp.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The slabs of a rank, by lifetime. */
typedef struct mt_arenas {
    mc_arena params, grads, optimizer, stash, scratch, process, cache; /* device memory */
    mc_arena pinned; /* host memory that copies to and from the device use */
} mt_arenas;

typedef struct mt_stage_sizes {
    int64_t micro_batch;
    int n_slots;   /* micro-batches whose activations live at once in training; 0: no backward will run */
    int n_io;      /* micro-batches whose input and output live at once (>= n_slots; evaluation may need more) */
    int max_micro; /* micro-batches of a step */
    int64_t head_chunk_rows;
    mt_recompute recompute;
    int offload_layers;         /* the first so many blocks of a stage keep their activations in host memory */
    bool offload_params;        /* blocks' parameters lie in host memory */
    bool main_bf16, grads_bf16; /* --main-params-dtype, --main-grads-dtype */
    bool reduce_bf16;           /* --grad-reduce-in-bf16 */
    int64_t bucket_elems;       /* least elements of a gradient bucket */
    int n_texts;                /* generation: texts continued at once, at most seq_length; 0: no generation */
    bool keeps_kv;              /* generation: keys and values of earlier tokens are kept */
} mt_stage_sizes;

/* Activations of one micro-batch. */
typedef struct mt_slot {
    mt_block_stash *blocks; /* [layer of this stage]; absent in slots that only evaluation uses */
    mc_tensor *saved;       /* [group of layers] with recompute.distribute: this rank's rows of the group's input */
} mt_slot;

typedef struct mt_io {
    mc_tensor h_in, h_out;              /* (Rl,C): from the previous stage or the embedding; to the next or the head */
    mc_tensor tokens, targets, weights; /* (R) */
} mt_io;

typedef struct mt_graphs mt_graphs;
typedef struct mt_stage_offload mt_stage_offload;

typedef struct mt_stage {
    const mt_model_config *c;
    mt_place place;
    mt_stage_sizes sizes;
    mt_block_ctx x;
    ly_ctx ly;
    mc_device *dev;
    mt_arenas *arenas;
    mt_params params;
    mt_shards shards; /* where parameters and gradients lie */
    mt_block *blocks;
    tp_embedding embedding;
    tp_head head;
    mc_tensor final_gamma, final_beta, dfinal_gamma, dfinal_beta;
    mt_slot *slots;
    mt_block_stash *again;     /* [recompute.group] stashes that blocks without their own take in turn */
    mt_stage_offload *offload; /* (optional) default: activations stay on the device */
    /* Slot, and the first block of its group, that `again` still holds the forward's values of; slot -1: none. */
    int held_slot, held_first;
    mt_io *io;
    mc_tensor grads[PP_GRAD_BUFFERS]; /* (Rl,C) */
    mc_tensor losses;                 /* (max_micro, R) f32, of the step under way */
    mc_tensor host_losses;            /* the same, pinned host memory */
    /* Generation: tokens, places and positions of the n rows of a step, (3 n) i32 at the front of each; the rows'
     * logits (n_texts, padded vocabulary) f32 where there is a head. host_: pinned host memory. */
    mc_tensor step_ids, host_step_ids, host_logits;
    /* What the loop sets for each step. */
    const ds_loader *loader; /* NULL: dry run */
    bool training;
    float loss_scale; /* of the sum of weighted token losses: the only place where the loss is scaled is the loop */
    int nan_micro;    /* tests only: number of the micro-batch, from 1 on, whose loss scale is NaN; 0: none */
    struct mt_graphs *graphs; /* (optional) default: work is queued operator by operator */
    struct mt_trace *trace;   /* (optional) default: nothing; --trace-tensors */
} mt_stage;

extern const pp_stage_ops mt_stage_ops;

/* Lays out parameters, gradients, activations over `arenas`; takes no memory of its own but the tables. `ly`, `tp_comm`
 * and the groups of `dp_comms` are kept. */
mc_status mt_stage_create(const mt_model_config *c, const mt_place *place, const mt_stage_sizes *sizes,
                          const ly_ctx *ly, const mc_comm *tp_comm, const mt_shard_comms *dp_comms, mc_device *dev,
                          mt_arenas *arenas, mt_stage **stage_out) MC_MUST_CHECK;
void mt_stage_destroy(mt_stage *stage);

/* Blocks [first, *end_out) that layer l is computed again with; false where it keeps its stash. */
bool mt_stage_group(const mt_stage *stage, int l, int *first_out, int *end_out);

/* Writes the rotary tables and initial parameters. Waits for the device. */
mc_status mt_stage_init_values(mt_stage *stage, mc_pool *pool) MC_MUST_CHECK;
/* What the model computes with, from the parameters that this rank keeps (shards.main), after these were read or
 * initialised. Collective over the data-parallel group. */
mc_status mt_stage_refresh_params(mt_stage *stage) MC_MUST_CHECK;

/* Queues the copy of the losses of the first n_micro micro-batches to the host; nothing on stages without a head. Once
 * the stream has been waited for, mt_stage_loss_sum is their weighted sum on this rank (0 without a head). */
mc_status mt_stage_fetch_losses(mt_stage *stage, int n_micro) MC_MUST_CHECK;
double mt_stage_loss_sum(const mt_stage *stage, int n_micro);

/* A step of generation: n rows. */
typedef enum {
    MT_STEP_WHOLE, /* the rows are one text; nothing is kept */
    MT_STEP_BEGIN, /* the same, keys and values are kept */
    MT_STEP_NEXT,  /* each row is the next token of a text that was begun, n <= n_texts */
} mt_step_kind;

typedef struct mt_token_step {
    mt_step_kind kind;
    int64_t n;
} mt_token_step;

/* Forward of the rows in step_ids through this stage, from io 0; the caller moves activations between stages. On the
 * last stage *logits_out is (tp, m, Vl), in scratch: of the n rows of MT_STEP_NEXT, else of the last one. Rewinds no
 * scratch. */
mc_status mt_stage_forward_tokens(mt_stage *stage, mt_token_step step, mc_tensor *logits_out) MC_MUST_CHECK;
/* Views of io 0's activations for n rows. */
mc_tensor mt_stage_token_input(mt_stage *stage, int64_t n);
mc_tensor mt_stage_token_output(mt_stage *stage, int64_t n);

#ifdef __cplusplus
}
#endif
#endif
