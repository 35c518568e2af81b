/* Activations in host memory between forward and backward (--cpu-offloading-num-layers): what the first blocks of a
 * stage keep leaves the device after their forward and comes back before their backward, on a stream of its own.
 *
 *   compute   F0   F1   F2   F3  ...  B3   B2   B1   B0
 *   copy           out0 out1 out2     in2  in1  in0
 *
 * What travels together is an item: what a block keeps, its input with it; or of a group of blocks that are computed
 * again the input of the first (its part, where tensor-parallel ranks keep a part each). The stage's own input stays.
 * On the device two stashes and three inputs serve all items of all micro-batches in turn (a third, as a block writes
 * the next one's input while the block before it is still on its way out); host memory has a place for each item of
 * each slot.
 *
 * The copies are the same work on every device, so the CPU's run, which saves no memory, is the one to compare with.
 * The numbers are those of the run without. */
#ifndef MEGAC_TRAIN_MODEL_STAGE_OFFLOAD_H
#define MEGAC_TRAIN_MODEL_STAGE_OFFLOAD_H

#include "megac/train/model/stage.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Before slots are laid out: s->offload, which stays NULL where nothing leaves the device. */
mc_status mt_stage_offload_create(mt_stage *s) MC_MUST_CHECK;
/* After it: takes the host's memory. */
void mt_stage_offload_take(mt_stage *s);
/* Waits for copies under way. */
void mt_stage_offload_destroy(mt_stage *s);

/* Does what layer l keeps travel? */
bool mt_stage_offload_moves(const mt_stage *s, int l);
/* Its places on the device, which other layers have too; absent until the caller takes them. */
mc_tensor *mt_stage_offload_input(mt_stage *s, int l);
mc_tensor *mt_stage_offload_part(mt_stage *s, int l);
mt_block_stash *mt_stage_offload_stash(mt_stage *s, int l);

/* ---- a step; nothing happens for layers that stay ---- */

/* Before layer l's forward: what it and its successor's input will overwrite has left the device. */
mc_status mt_stage_offload_room(mt_stage *s, int l) MC_MUST_CHECK;
/* After it: what it keeps begins to leave. */
mc_status mt_stage_offload_store(mt_stage *s, int slot, int l) MC_MUST_CHECK;
/* Before layer l's backward: what it kept is back, what the one before it kept begins to come. l = n_layers stands for
 * what follows the blocks. */
mc_status mt_stage_offload_use(mt_stage *s, int slot, int l) MC_MUST_CHECK;
/* Layer l's backward is queued, which has destroyed what it kept. */
void mt_stage_offload_done(mt_stage *s, int l);

#ifdef __cplusplus
}
#endif
#endif
