/* Parameters of blocks in host memory (--cpu-offloading-weights): between uses a rank's part of them lies there, whole
 * where replicas do not share parameters out. It comes to one of the two buffers that blocks take in turn (shards.h) on
 * a stream of its own, while the block before is computed with; after an update new ones leave by the same way. On the
 * CPU the copies are the same. */
#ifndef MEGAC_TRAIN_MODEL_SHARDS_HOST_H
#define MEGAC_TRAIN_MODEL_SHARDS_HOST_H

#include "megac/train/model/shards.h"

#ifdef __cplusplus
extern "C" {
#endif

struct mt_shards_host {
    mc_device *dev;
    bool live; /* memory is there: not a plan */
    mc_stream compute, stream;
    mc_event reached;                /* how far computation was queued when a copy was */
    mc_event moved[MT_UNIT_BUFFERS]; /* the last copy from or to a buffer */
    mc_tensor store;                 /* of all blocks, pinned host memory */
};

/* `elems` of type T in the store. */
mc_status mt_shards_host_create(const mt_shards_config *c, int64_t elems, mt_shards_host **host_out) MC_MUST_CHECK;
void mt_shards_host_destroy(mt_shards_host *h); /* waits for copies under way; NULL allowed */

/* Queues a copy between host and a buffer, behind all computation queued so far and every earlier copy. */
mc_status mt_shards_host_move(mt_shards_host *h, int buffer, mc_tensor to, mc_tensor from) MC_MUST_CHECK;
/* What is computed from now on follows the last copy from or to the buffer. */
mc_status mt_shards_host_wait(mt_shards_host *h, int buffer) MC_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
