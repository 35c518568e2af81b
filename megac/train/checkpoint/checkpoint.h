/* Checkpoints: SAVE/latest_checkpointed_iteration.txt and SAVE/iter_0000100/ with safetensors shards and metadata.json
 * (DESIGN section 7). Slices are of global tensors, so any layout loads any other. */
#ifndef MEGAC_TRAIN_CHECKPOINT_CHECKPOINT_H
#define MEGAC_TRAIN_CHECKPOINT_CHECKPOINT_H

#include <stdbool.h>
#include <stdint.h>

#include "megac/base/world.h"
#include "megac/train/model/params.h"

#ifdef __cplusplus
extern "C" {
#endif

/* One tensor of this rank: row of the parameter table and where its local values lie. */
typedef struct mt_ckpt_item {
    const char *prefix; /* "model", "optimizer.exp_avg", "optimizer.exp_avg_sq" */
    const mt_param *param;
    mc_tensor local; /* param->local_dims, unless cut; host memory; any strides */
    /* Rows of the global tensor that are real where a vocabulary is padded (names ending in "word_embeddings.weight" or
     * "output_layer.weight"); 0: all. With it, a checkpoint with more padding than this layout's loads too. */
    int64_t valid_rows;
    /* Where this rank keeps less than param->local_dims (ZeRO): `local` is a rectangle of the global tensor that starts
     * at `begin`, the rank's rectangle number `part` of it. */
    bool cut;
    int part;
    int64_t begin[2];
} mt_ckpt_item;

/* Scalars of a run beside the tensors. */
typedef struct mt_ckpt_state {
    int64_t iteration;
    uint64_t consumed_samples, consumed_tokens, skipped_iterations;
    int64_t optimizer_steps;   /* Adam's bias correction counts these */
    uint64_t schedule_samples; /* of steps that updated the model: where the learning rate is; consumed_samples in
                                  checkpoints that do not say */
    double loss_scale;         /* 0: none, or not said */
    int64_t loss_scale_good_steps, loss_scale_hysteresis;
    const double *recent_losses, *recent_norms; /* (n_recent) of the last steps, oldest first (stability.h) */
    int n_recent;
    double best_loss;       /* lowest validation loss so far, */
    int64_t best_iteration; /* and where it was seen; 0: none */
    const char *config;     /* every option, "flag value" a line (as --print-config); each flag once */
    const char *tokenizer_kind;
    const void *tokenizer; /* the tokenizer file's bytes, or NULL */
    uint64_t tokenizer_bytes;
} mt_ckpt_state;

/* Every rank writes one shard with the items whose param->writes (cut ones: those that count in the norm); rank 0
 * writes metadata.json (dtype, global shape, slices with file and XXH3 checksum), fsyncs, renames iter_N.tmp to iter_N,
 * replaces latest_checkpointed_iteration.txt. Collective. On any failure, on any rank, every rank returns an error (its
 * own, or the largest code of the others) and the previous checkpoint is untouched. The slices of a tensor must cover
 * it; ranks may write the same slice (replicated key/value rows). An iteration saved before is replaced. */
mc_status mt_checkpoint_save(const char *dir, mc_world *world, const mt_ckpt_state *state, const mt_ckpt_item *items,
                             int n_items) MC_MUST_CHECK;

/* The same in three steps, so that the second may run in a thread while training goes on: begin (collective) creates
 * the files; write is this rank's own, takes no memory and reads the items' tensors, which stay as they are until then;
 * commit (collective; `written`: what write returned) makes the checkpoint the latest one. Strings of `state`, params
 * of items and their memory are kept until destroy. */
typedef struct mt_ckpt_writer mt_ckpt_writer;
mc_status mt_ckpt_begin(const char *dir, mc_world *world, const mt_ckpt_state *state, const mt_ckpt_item *items,
                        int n_items, mt_ckpt_writer **writer_out) MC_MUST_CHECK;
mc_status mt_ckpt_write(mt_ckpt_writer *writer) MC_MUST_CHECK;
/* mc_world_own_begin of that: for the thread that writes, or that waits for the one that does. */
uint64_t mt_ckpt_note(const mt_ckpt_writer *writer);
mc_status mt_ckpt_commit(mt_ckpt_writer *writer, mc_status written) MC_MUST_CHECK;
void mt_ckpt_writer_destroy(mt_ckpt_writer *writer); /* NULL allowed */

typedef struct mt_checkpoint mt_checkpoint;

/* Opens a checkpoint for reading: `path` is SAVE (the latest iteration, or `step` >= 0) or an iter_N directory.
 * A latest one that is not the newest there (a run that was resumed earlier, a save that was killed between its two
 * renames, a damaged number) is warned of. MC_NOTFOUND, MC_INPUT. No communication. */
mc_status mt_checkpoint_open(const char *path, int64_t step, mt_checkpoint **ckpt_out) MC_MUST_CHECK;
void mt_checkpoint_close(mt_checkpoint *ckpt);
/* Strings and pointers stay valid until close. */
const mt_ckpt_state *mt_checkpoint_state(const mt_checkpoint *ckpt);
/* Value of one option of the stored configuration by flag ("--hidden-size"), or NULL. */
const char *mt_checkpoint_option(const mt_checkpoint *ckpt, const char *flag);
/* Fills item->local from the slices that overlap it and verifies the checksum of every slice read. MC_NOTFOUND names a
 * missing tensor, MC_MISMATCH differing shapes (rows beyond the stored vocabulary of a "word_embeddings" or
 * "output_layer" tensor are padding: left as they are), MC_INPUT a damaged slice. */
mc_status mt_checkpoint_read(mt_checkpoint *ckpt, const mt_ckpt_item *item) MC_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
