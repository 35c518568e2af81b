/* Everything a run stands on, set up in order: groups, threads, memory, stage, optimizer. Training, evaluation and
 * generation share it. */
#ifndef MEGAC_TRAIN_ENGINE_H
#define MEGAC_TRAIN_ENGINE_H

#include "megac/train/setup.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The communicators of this rank. */
typedef struct mt_groups {
    mc_comm tp, pp;
    mc_comm dp, across;  /* replicas: within and across of mt_shard_comms */
    mc_comm kv_replicas; /* tensor-parallel ranks that hold the same key/value heads */
    mc_comm embedding;   /* first and last stage, where they hold a tied embedding twice */
} mt_groups;

enum { MT_N_GROUPS = sizeof(mt_groups) / sizeof(mc_comm) };

typedef struct mt_engine {
    mt_setup setup;
    mc_world *world;
    mt_groups groups;
    mc_comm host_groups[MT_N_GROUPS]; /* under the groups of a device that has memory of its own */
    int n_host_groups;
    mc_device dev;
    mc_pool *pool;
    ly_ctx ly;
    mt_place place;
    mt_arenas arenas;
    mt_memory memory;
    mt_stage *stage;
    mt_optimizer *optimizer; /* training only */
    pp_plan train_plan, eval_plan;
} mt_engine;

/* Sets up over an open world; parameters get their initial values. Collective. `data` as in mt_setup_init. */
mc_status mt_engine_create(const mt_options *o, mt_purpose purpose, mc_world *world, const ds_source *data,
                           mt_engine **engine_out) MC_MUST_CHECK;
void mt_engine_destroy(mt_engine *e);

/* One pass of the pipeline over the loader's current step of n_micro micro-batches: forward and backward in training,
 * forward alone otherwise. */
mc_status mt_engine_run_step(mt_engine *e, const ds_loader *loader, int n_micro, bool training, double loss_scale,
                             pp_stats *stats_out) MC_MUST_CHECK;
/* The world rank that answers for the outputs of a replica: its last stage, tensor-parallel rank 0. */
int mt_engine_speaker(const mt_engine *e, int replica);
/* Waits for that pass: sum of its weighted token losses on this rank; 0 where it has no head. */
mc_status mt_engine_loss_sum(mt_engine *e, int n_micro, double *sum_out) MC_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
