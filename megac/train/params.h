/* The parameter table: one row per tensor, written once. Initial values, sharding, weight decay, gradient sums,
 * optimizer, checkpoint and conversion all read it.
 *
 * A row's global tensor is what exists whatever the layout; the local tensor of a rank is a concatenation of ranges of
 * one of its dims (one range for a plain column or row split; gate and up ranges for a SwiGLU input; query rows and
 * key/value rows where KV heads are replicated). */
#ifndef MEGAC_TRAIN_PARAMS_H
#define MEGAC_TRAIN_PARAMS_H

#include <stdbool.h>
#include <stdint.h>

#include "megac/base/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { MT_NAME_BYTES = 96, MT_MAX_RANGES = 2 };

typedef struct mt_range {
    int64_t begin, count; /* of the global dim */
} mt_range;

typedef enum { MT_INIT_NORMAL, MT_INIT_ZERO, MT_INIT_ONE, MT_INIT_XAVIER } mt_init;

/* Over which ranks a parameter's gradient must be summed besides data parallelism. */
typedef enum {
    MT_SUM_NONE,
    MT_SUM_TP,          /* replicated over TP, fed with shards of the sequence or of the heads */
    MT_SUM_KV_REPLICAS, /* key/value rows that several TP ranks hold (only local dim-0 rows of ranges[1]) */
} mt_grad_sum;

typedef struct mt_param {
    char name[MT_NAME_BYTES]; /* Megatron-LM's name, e.g. "decoder.layers.3.mlp.linear_fc1.weight" */
    int n_dims;               /* 1 or 2 */
    int64_t global_dims[2], local_dims[2];
    int shard_dim; /* dim that `ranges` cut; whole tensor: ranges[0] = all of it */
    int n_ranges;
    mt_range ranges[MT_MAX_RANGES];
    int layer;         /* decoder layer, -1 outside */
    bool decay;        /* weight decay applies */
    bool decoupled_lr; /* embedding or output layer (--decoupled-lr) */
    mt_init init;
    float init_std;
    uint32_t init_stream; /* of mc_rng; equal on every layout */
    mt_grad_sum grad_sum;
    bool counts_in_norm; /* this rank's copy is the one that the global norm counts */
    bool writes;         /* this rank's copy is the one that a checkpoint stores (data-parallel rank 0 only) */
    int64_t offset;      /* of the local tensor in every slab, in elements */
} mt_param;

#ifdef __cplusplus
}
#endif
#endif
