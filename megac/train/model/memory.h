/* The memory of one rank: planned by running the layout and one micro-batch dry, then reserved to the byte. */
#ifndef MEGAC_TRAIN_MODEL_MEMORY_H
#define MEGAC_TRAIN_MODEL_MEMORY_H

#include "megac/base/world.h"
#include "megac/train/optim/optimizer.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct mt_memory_request {
    const mt_model_config *model;
    mt_place place;
    mt_stage_sizes sizes;
    mt_optimizer_config optimizer; /* read where sizes.n_slots > 0 (training) */
    int n_threads;
    size_t loader_bytes; /* the batches read ahead */
    const char *device;  /* "cpu", "cuda": whose operators need a workspace */
} mt_memory_request;

/* Bytes by arena, in the order that `megac plan` prints. */
typedef struct mt_memory_plan {
    size_t params, grads, optimizer, stash, scratch, process; /* arenas on the device */
    size_t cache;                                             /* keys and values of generation, another arena */
    size_t workspace;                                         /* of the device's operators; 0 on the CPU */
    size_t pinned;                                            /* host memory for copies to and from the device */
    size_t host;                                              /* thread scratch and batches read ahead */
    bool gathers_params;                                      /* ranks read each other's parameters (ZeRO) */
} mt_memory_plan;

size_t mt_memory_total(const mt_memory_plan *plan);
/* What of it lies on the device: all but `pinned` and `host` where the device has memory of its own. */
size_t mt_memory_on_device(const mt_memory_plan *plan, const char *device);

/* What this rank will reserve. Runs no arithmetic and touches no memory of the model. */
mc_status mt_memory_measure(const mt_memory_request *rq, mt_memory_plan *plan_out) MC_MUST_CHECK;

enum { MT_N_ARENAS = sizeof(mt_arenas) / sizeof(mc_arena) };

/* The reserved slabs of a rank. Gradients, activations and scratch are communicated (with ZeRO parameters too), so with
 * several CPU ranks they lie in memory that the ranks of a node share. */
typedef struct mt_memory {
    mt_memory_plan plan;
    mc_device *dev;
    void *own; /* optimizer, process, cache, workspace, params; and the rest unless ranks share it */
    size_t own_bytes;
    void *pinned;
    void *workspace;                     /* NULL where the plan has none */
    mc_arena_split *splits[MT_N_ARENAS]; /* MC_ARENA_SPLIT=1: where the arenas' tensors lie instead */
} mt_memory;

/* Reserves exactly the plan and binds the arenas, whose tensors are used in the order of `stream`. Collective over the
 * world. */
mc_status mt_memory_reserve(mt_memory *memory, const mt_memory_plan *plan, mc_device *dev, mc_stream stream,
                            mc_world *world, mt_arenas *arenas) MC_MUST_CHECK;
void mt_memory_release(mt_memory *memory);

#ifdef __cplusplus
}
#endif
#endif
