/* --cuda-graphs: a micro-batch's forward and backward recorded once and launched as one piece of work from then on. */
#ifndef MEGAC_TRAIN_MODEL_STAGE_GRAPHS_H
#define MEGAC_TRAIN_MODEL_STAGE_GRAPHS_H

#include "megac/train/model/stage.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Why this stage's work cannot be recorded, or NULL: what changes from step to step must lie in memory, not in
 * arguments, and communicators wait on the host. */
const char *mt_graphs_unfit(const mt_stage *stage);

/* For a stage that is fit. MC_NOMEM. */
mc_status mt_graphs_create(mt_stage *stage, mt_graphs **graphs_out) MC_MUST_CHECK;
void mt_graphs_destroy(mt_graphs *graphs); /* NULL allowed */
/* Pieces of work launched so far. */
int64_t mt_graphs_launched(const mt_graphs *graphs);

/* What a piece of work is of: it is recorded again when something here differs. */
typedef struct mt_graph_key {
    bool backward;
    int micro, slot, buffer;
    float loss_scale;
} mt_graph_key;

/* Runs body(stage, key), recorded or not: the first time as it is, so that algorithms have been chosen, the second time
 * recorded. `graphs` NULL: as it is. */
typedef mc_status (*mt_graph_body)(mt_stage *stage, const mt_graph_key *key);
mc_status mt_graphs_run(mt_graphs *graphs, mt_stage *stage, const mt_graph_key *key, mt_graph_body body) MC_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
