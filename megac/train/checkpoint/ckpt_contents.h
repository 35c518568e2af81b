/* What of a run goes into a checkpoint: its stores as the host sees them, and their tensors as items. */
#ifndef MEGAC_TRAIN_CHECKPOINT_CKPT_CONTENTS_H
#define MEGAC_TRAIN_CHECKPOINT_CKPT_CONTENTS_H

#include "megac/train/checkpoint/checkpoint.h"
#include "megac/train/engine.h"
#include "megac/train/model/host_view.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { MT_MAX_STORES = MT_SNAPSHOTS };

typedef struct mt_contents {
    mt_host_view stores[MT_MAX_STORES];
    const char *prefixes[MT_MAX_STORES];
    int n_stores;
    mt_ckpt_item *items;
    int n_items;
    mt_offload *offload; /* open */
} mt_contents;

/* Every tensor of this rank, holding the device's values; with `snapshot` copies of them in the optimizer's snapshot
 * memory, so that training may go on. mt_contents_close in any case. */
mc_status mt_contents_open(mt_contents *c, mt_engine *e, bool with_optimizer, bool snapshot) MC_MUST_CHECK;
void mt_contents_close(mt_contents *c);

#ifdef __cplusplus
}
#endif
#endif
