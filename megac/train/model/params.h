/* The parameter table: one row per tensor, written once. Initial values, sharding, weight decay, gradient sums,
 * optimizer, checkpoint and conversion all read it.
 *
 * A row's global tensor is what exists whatever the layout; the local tensor of a rank is a concatenation of ranges of
 * one of its dims (one range for a plain column or row split; gate and up ranges for a SwiGLU input; query rows and
 * key/value rows where KV heads are replicated). */
#ifndef MEGAC_TRAIN_MODEL_PARAMS_H
#define MEGAC_TRAIN_MODEL_PARAMS_H

#include <stdbool.h>
#include <stdint.h>

#include "megac/base/arena.h"
#include "megac/base/pool.h"
#include "megac/base/tensor.h"
#include "megac/train/model/model_config.h"

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
    float init_std;       /* standard deviation; MT_INIT_XAVIER: limit on either side of 0 */
    uint32_t init_stream; /* of mc_rng; equal on every layout */
    mt_grad_sum grad_sum;
    bool counts_in_norm; /* this rank's copy is the one that the global norm counts */
    bool writes;         /* this rank's copy is the one that a checkpoint stores (data-parallel rank 0 only) */
    int64_t offset;      /* of the local tensor in every slab, in elements */
    int unit;            /* that it belongs to */
} mt_param;

/* Rows whose parameters come and go together: a block, or a tensor outside the blocks (both of the final norm). Its
 * length is a multiple of the data-parallel group's size, so that the group can share it out in equal parts (shards.h);
 * what follows the last tensor is padding. */
typedef struct mt_unit {
    int first_row, n_rows;
    int64_t begin, end; /* in every slab, in elements */
} mt_unit;

/* The tensors of one transformer block, in slab order. */
typedef enum {
    MT_LN1_GAMMA,
    MT_LN1_BETA,
    MT_QKV_WEIGHT,
    MT_QKV_BIAS,
    MT_Q_GAMMA,
    MT_Q_BETA,
    MT_K_GAMMA,
    MT_K_BETA,
    MT_PROJ_WEIGHT,
    MT_PROJ_BIAS,
    MT_LN2_GAMMA,
    MT_LN2_BETA,
    MT_FC1_WEIGHT,
    MT_FC1_BIAS,
    MT_FC2_WEIGHT,
    MT_FC2_BIAS,
    MT_BLOCK_PARAMS,
} mt_block_param;

/* The tensors outside the blocks. */
typedef enum {
    MT_WORD_EMBEDDINGS,
    MT_POSITION_EMBEDDINGS,
    MT_FINAL_GAMMA,
    MT_FINAL_BETA,
    MT_OUTPUT_WEIGHT,
    MT_OUTER_PARAMS,
} mt_outer_param;

/* The rows of one rank, in slab order: embeddings, blocks, final norm, output layer. `outer` and `block` are row
 * numbers, -1 where this rank or this model has no such tensor. A tied output layer is row `outer[MT_OUTPUT_WEIGHT]` =
 * `outer[MT_WORD_EMBEDDINGS]` on a stage that holds both ends, and a second copy of the embedding on the last stage of
 * a pipeline. */
typedef struct mt_params {
    mt_param *rows;
    int n_rows;
    int outer[MT_OUTER_PARAMS];
    int (*block)[MT_BLOCK_PARAMS]; /* [layer of this stage][tensor] */
    int n_layers;
    mt_unit *units; /* in slab order: those before the blocks, the blocks, those behind */
    int n_units, first_block_unit;
    int64_t slab_elems; /* of each slab: parameters, gradients, moments */
    int64_t n_local;    /* elements of this rank without padding */
} mt_params;

mc_status mt_params_create(const mt_model_config *c, const mt_place *p, mt_params *params_out) MC_MUST_CHECK;
void mt_params_destroy(mt_params *params);

/* Parameters of the whole model; with `real_vocab` the padding rows of the vocabulary do not count. */
int64_t mt_params_count(const mt_model_config *c, bool real_vocab);

/* View of a row's local tensor in a slab that starts at `slab`; absent (data NULL) for row -1. */
mc_tensor mt_params_view(const mt_params *params, int row, mc_tensor slab);

/* Of elements [from, to) of a row's local tensor, flat: those that lie in elements [begin, end) of the slab, as a range
 * of the slab. False when there are none. */
bool mt_params_clip(const mt_param *row, int64_t from, int64_t to, int64_t begin, int64_t end, int64_t *lo_out,
                    int64_t *hi_out);
/* Elements of a row's local tensor. */
int64_t mt_param_elems(const mt_param *row);
/* Columns of a row's local and global tensor; 1-D tensors are a column. */
int64_t mt_param_cols(const mt_param *row);
int64_t mt_param_global_cols(const mt_param *row);
/* Where element `flat` of a row's local tensor stands in the global one: row and column. Those that follow it in its
 * local row and range follow it there. */
void mt_param_global(const mt_param *row, int64_t flat, int64_t at_out[2]);

/* Writes initial values of the slab's elements from `begin` on into `part` (1-D host memory; f32, bf16 or f16,
 * rounded): a pure function of (seed, parameter, global element), whatever the layout. Padding is left as it is. */
void mt_params_init(const mt_params *params, uint32_t seed, int64_t begin, mc_tensor part, mc_pool *pool);

#ifdef __cplusplus
}
#endif
#endif
