/* The shape of the model, free of flags and layout, and this rank's place in the layout. */
#ifndef MEGAC_TRAIN_MODEL_MODEL_CONFIG_H
#define MEGAC_TRAIN_MODEL_MODEL_CONFIG_H

#include <stdbool.h>
#include <stdint.h>

#include "layers/elementwise.h"
#include "layers/norm.h"
#include "tensor_parallel/tp_shard.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum { MT_POSITION_LEARNED, MT_POSITION_ROPE, MT_POSITION_NONE } mt_position;

typedef struct mt_rope_config {
    double base, percent;
    double interpolation_factor; /* 1: none (--rotary-seq-len-interpolation-factor) */
    bool interleaved;
    bool llama3_scaling; /* --use-rope-scaling: Llama 3.1's frequency rule, over 8192 original positions */
    double scaling_factor;
} mt_rope_config;

typedef struct mt_model_config {
    int n_layers, heads, groups, head_dim;
    int64_t hidden, ffn, seq_length, max_positions;
    int64_t vocab, padded_vocab; /* real tokens; multiple of make-vocab-size-divisible-by x TP */
    ly_norm_kind norm;
    bool norm_one_plus_gamma;
    float norm_eps;
    ly_act_kind act;
    mt_position position;
    mt_rope_config rope;
    bool linear_bias, qkv_bias, qk_norm, tied;
    float hidden_dropout, attention_dropout;
    int64_t window_left; /* -1: none */
    float init_std, embedding_init_std;
    bool init_xavier;
    uint32_t seed;
    mc_dtype dtype; /* of parameters in the model and of activations: T of layers/ops.h */
} mt_model_config;

/* Where this rank stands. */
typedef struct mt_place {
    int tp, tp_rank, dp, dp_rank, pp, stage;
    bool sequence_parallel;
    int zero;                /* ZeRO stage: what the data-parallel group shares out (shards.h) */
    int instances, instance; /* runs of replicas that each share out for themselves, and the one that this rank is in */
    int first_layer, n_layers; /* of this stage */
} mt_place;

static inline bool mt_has_embedding(const mt_place *p)
{
    return p->stage == 0;
}

static inline bool mt_has_head(const mt_place *p)
{
    return p->stage == p->pp - 1;
}

/* Columns of the first MLP layer's output: ffn, or gate and up. */
static inline int64_t mt_fc1_cols(const mt_model_config *c)
{
    return c->act == LY_SWIGLU ? 2 * c->ffn : c->ffn;
}

/* This rank's attention heads, and the columns of its QKV activations. */
tp_heads mt_heads(const mt_model_config *c, const mt_place *p);
int64_t mt_qkv_cols(const mt_model_config *c, const tp_heads *h);

#ifdef __cplusplus
}
#endif
#endif
