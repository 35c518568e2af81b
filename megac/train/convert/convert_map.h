/* How the models of Hugging Face's transformers lay out what megac's parameter table holds: names, cuts and orders of
 * rows. Pure; reads no file.
 *
 *   megac                            GPT-2                         Llama, Mistral, Qwen2, Qwen3
 *   linear_qkv  per KV group         c_attn  [q | k | v], each     q_proj, k_proj, v_proj, each all heads
 *               [q heads, k, v]              all heads
 *   linear_fc1  [gate; up]           c_fc    (no gate)             gate_proj, up_proj
 *   weights     (out, in)            (in, out): its Conv1D         (out, in)
 *
 * Rotary channels need no change: both pair channel i with i + half of the head. */
#ifndef MEGAC_TRAIN_CONVERT_CONVERT_MAP_H
#define MEGAC_TRAIN_CONVERT_CONVERT_MAP_H

#include "megac/train/model/params.h"

#ifdef __cplusplus
extern "C" {
#endif

/* MT_HF_ARCHS(X): X(name, class of "architectures", "model_type"). */
#define MT_HF_ARCHS(X)                          \
    X(GPT2, "GPT2LMHeadModel", "gpt2")          \
    X(LLAMA, "LlamaForCausalLM", "llama")       \
    X(MISTRAL, "MistralForCausalLM", "mistral") \
    X(QWEN2, "Qwen2ForCausalLM", "qwen2")       \
    X(QWEN3, "Qwen3ForCausalLM", "qwen3")

typedef enum {
#define MT_HF_ROW(name, cls, type) MT_HF_##name,
    MT_HF_ARCHS(MT_HF_ROW)
#undef MT_HF_ROW
        MT_HF_ARCH_COUNT
} mt_hf_arch;

const char *mt_hf_class(mt_hf_arch arch);
const char *mt_hf_type(mt_hf_arch arch);

/* Which rows of the megac parameter a tensor holds. */
typedef enum { MT_HF_WHOLE, MT_HF_Q, MT_HF_K, MT_HF_V, MT_HF_QKV, MT_HF_GATE, MT_HF_UP } mt_hf_part;

typedef struct mt_hf_tensor {
    char name[MT_NAME_BYTES]; /* Hugging Face's, e.g. "model.layers.3.mlp.up_proj.weight" */
    int param;                /* row of the parameter table that it is (a part of) */
    mt_hf_part part;
    bool transposed; /* stored as (in, out) */
    int n_dims;
    int64_t dims[2]; /* as stored */
} mt_hf_tensor;

/* Rows [param_row, param_row + n_rows) of the parameter are rows [hf_row, hf_row + n_rows) of the tensor; columns of a
 * transposed one. */
typedef struct mt_hf_span {
    int64_t param_row, hf_row, n_rows;
} mt_hf_span;

typedef struct mt_hf_map {
    mt_hf_arch arch;
    mt_model_config model; /* with padded_vocab = vocab: files of Hugging Face have no padding */
    mt_params params;      /* of the whole model */
    mt_hf_tensor *tensors; /* in the order of params.rows */
    int n_tensors;
} mt_hf_map;

/* MC_UNSUPPORTED names a parameter that models of this architecture do not have. */
mc_status mt_hf_map_create(mt_hf_arch arch, const mt_model_config *c, mt_hf_map *map_out) MC_MUST_CHECK;
void mt_hf_map_destroy(mt_hf_map *map);
/* Span number i of a tensor; false past the last one. The spans of a tensor cover it once, and those of a parameter's
 * tensors cover the parameter once. */
bool mt_hf_map_span(const mt_hf_map *map, const mt_hf_tensor *t, int i, mt_hf_span *span_out);
/* By Hugging Face's name, or NULL. */
const mt_hf_tensor *mt_hf_map_find(const mt_hf_map *map, const char *name);
/* Part of every name in files of the whole model ("model.") that files of the bare decoder lack. */
const char *mt_hf_prefix(mt_hf_arch arch);
/* True for what checkpoints hold besides parameters: buffers that are computed (masks, rotary frequencies). */
bool mt_hf_is_buffer(const char *name);

#ifdef __cplusplus
}
#endif
#endif
