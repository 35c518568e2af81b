#include "megac/train/convert/convert_map.h"

#include <stdio.h>
#include <string.h>

#include "megac/base/alloc.h"

static const struct {
    const char *cls, *type;
} archs[MT_HF_ARCH_COUNT] = {
#define MT_HF_ROW(name, cls, type) [MT_HF_##name] = {cls, type},
    MT_HF_ARCHS(MT_HF_ROW)
#undef MT_HF_ROW
};

/* One tensor of Hugging Face: the parameter without "decoder.layers.N.", the tensor without the part before the layer's
 * number and that number. */
typedef struct map_row {
    const char *param, *tensor;
    mt_hf_part part;
    bool transposed;
} map_row;

static const map_row gpt2_rows[] = {
    {"embedding.word_embeddings.weight", "transformer.wte.weight", MT_HF_WHOLE, false},
    {"embedding.position_embeddings.weight", "transformer.wpe.weight", MT_HF_WHOLE, false},
    {"input_layernorm.weight", "ln_1.weight", MT_HF_WHOLE, false},
    {"input_layernorm.bias", "ln_1.bias", MT_HF_WHOLE, false},
    {"self_attention.linear_qkv.weight", "attn.c_attn.weight", MT_HF_QKV, true},
    {"self_attention.linear_qkv.bias", "attn.c_attn.bias", MT_HF_QKV, false},
    {"self_attention.linear_proj.weight", "attn.c_proj.weight", MT_HF_WHOLE, true},
    {"self_attention.linear_proj.bias", "attn.c_proj.bias", MT_HF_WHOLE, false},
    {"pre_mlp_layernorm.weight", "ln_2.weight", MT_HF_WHOLE, false},
    {"pre_mlp_layernorm.bias", "ln_2.bias", MT_HF_WHOLE, false},
    {"mlp.linear_fc1.weight", "mlp.c_fc.weight", MT_HF_WHOLE, true},
    {"mlp.linear_fc1.bias", "mlp.c_fc.bias", MT_HF_WHOLE, false},
    {"mlp.linear_fc2.weight", "mlp.c_proj.weight", MT_HF_WHOLE, true},
    {"mlp.linear_fc2.bias", "mlp.c_proj.bias", MT_HF_WHOLE, false},
    {"decoder.final_layernorm.weight", "transformer.ln_f.weight", MT_HF_WHOLE, false},
    {"decoder.final_layernorm.bias", "transformer.ln_f.bias", MT_HF_WHOLE, false},
    {"output_layer.weight", "lm_head.weight", MT_HF_WHOLE, false},
};

static const map_row llama_rows[] = {
    {"embedding.word_embeddings.weight", "model.embed_tokens.weight", MT_HF_WHOLE, false},
    {"input_layernorm.weight", "input_layernorm.weight", MT_HF_WHOLE, false},
    {"self_attention.linear_qkv.weight", "self_attn.q_proj.weight", MT_HF_Q, false},
    {"self_attention.linear_qkv.weight", "self_attn.k_proj.weight", MT_HF_K, false},
    {"self_attention.linear_qkv.weight", "self_attn.v_proj.weight", MT_HF_V, false},
    {"self_attention.linear_qkv.bias", "self_attn.q_proj.bias", MT_HF_Q, false},
    {"self_attention.linear_qkv.bias", "self_attn.k_proj.bias", MT_HF_K, false},
    {"self_attention.linear_qkv.bias", "self_attn.v_proj.bias", MT_HF_V, false},
    {"self_attention.q_layernorm.weight", "self_attn.q_norm.weight", MT_HF_WHOLE, false},
    {"self_attention.k_layernorm.weight", "self_attn.k_norm.weight", MT_HF_WHOLE, false},
    {"self_attention.linear_proj.weight", "self_attn.o_proj.weight", MT_HF_WHOLE, false},
    {"self_attention.linear_proj.bias", "self_attn.o_proj.bias", MT_HF_WHOLE, false},
    {"pre_mlp_layernorm.weight", "post_attention_layernorm.weight", MT_HF_WHOLE, false},
    {"mlp.linear_fc1.weight", "mlp.gate_proj.weight", MT_HF_GATE, false},
    {"mlp.linear_fc1.weight", "mlp.up_proj.weight", MT_HF_UP, false},
    {"mlp.linear_fc1.bias", "mlp.gate_proj.bias", MT_HF_GATE, false},
    {"mlp.linear_fc1.bias", "mlp.up_proj.bias", MT_HF_UP, false},
    {"mlp.linear_fc2.weight", "mlp.down_proj.weight", MT_HF_WHOLE, false},
    {"mlp.linear_fc2.bias", "mlp.down_proj.bias", MT_HF_WHOLE, false},
    {"decoder.final_layernorm.weight", "model.norm.weight", MT_HF_WHOLE, false},
    {"output_layer.weight", "lm_head.weight", MT_HF_WHOLE, false},
};

enum { MAX_TENSORS_OF_PARAM = 3 };

const char *mt_hf_class(mt_hf_arch arch)
{
    return archs[arch].cls;
}

const char *mt_hf_type(mt_hf_arch arch)
{
    return archs[arch].type;
}

const char *mt_hf_prefix(mt_hf_arch arch)
{
    return arch == MT_HF_GPT2 ? "transformer." : "model.";
}

static bool ends_with(const char *text, const char *end)
{
    size_t n = strlen(text), m = strlen(end);
    return n >= m && strcmp(text + n - m, end) == 0;
}

bool mt_hf_is_buffer(const char *name)
{
    return ends_with(name, ".attn.bias") || ends_with(name, ".attn.masked_bias") ||
           ends_with(name, ".rotary_emb.inv_freq");
}

/* Rows of a parameter that a part holds; `rows`: of all of it. */
static int64_t part_rows(const mt_model_config *c, mt_hf_part part, int64_t rows)
{
    switch (part) {
    case MT_HF_Q:
        return (int64_t)c->heads * c->head_dim;
    case MT_HF_K:
    case MT_HF_V:
        return (int64_t)c->groups * c->head_dim;
    case MT_HF_GATE:
    case MT_HF_UP:
        return rows / 2;
    case MT_HF_WHOLE:
    case MT_HF_QKV:
        break;
    }
    return rows;
}

static void add_tensor(mt_hf_map *m, int param, const map_row *row)
{
    const mt_param *p = &m->params.rows[param];
    mt_hf_tensor *t = &m->tensors[m->n_tensors++];
    int64_t rows = part_rows(&m->model, row->part, p->global_dims[0]);
    *t = (mt_hf_tensor){.param = param, .part = row->part, .transposed = row->transposed, .n_dims = p->n_dims};
    t->dims[0] = row->transposed ? p->global_dims[1] : rows;
    t->dims[1] = p->n_dims == 1 ? 0 : row->transposed ? rows : p->global_dims[1];
    if (p->layer < 0) {
        snprintf(t->name, sizeof t->name, "%s", row->tensor);
    } else {
        snprintf(t->name, sizeof t->name, m->arch == MT_HF_GPT2 ? "transformer.h.%d.%s" : "model.layers.%d.%s",
                 p->layer, row->tensor);
    }
}

static mc_status add_tensors(mt_hf_map *m, int param)
{
    const mt_param *p = &m->params.rows[param];
    const map_row *rows = m->arch == MT_HF_GPT2 ? gpt2_rows : llama_rows;
    size_t n = m->arch == MT_HF_GPT2 ? sizeof gpt2_rows / sizeof *rows : sizeof llama_rows / sizeof *rows;
    char prefix[MT_NAME_BYTES] = "";
    if (p->layer >= 0) {
        snprintf(prefix, sizeof prefix, "decoder.layers.%d.", p->layer);
    }
    const char *name = p->name + strlen(prefix);
    int before = m->n_tensors;
    for (size_t i = 0; i < n; i++) {
        if (strcmp(rows[i].param, name) == 0) {
            add_tensor(m, param, &rows[i]);
        }
    }
    if (m->n_tensors == before) {
        return MC_FAIL(MC_UNSUPPORTED, "%s has no counterpart of the parameter \"%s\"; the model cannot be one",
                       mt_hf_class(m->arch), p->name);
    }
    return MC_OK;
}

mc_status mt_hf_map_create(mt_hf_arch arch, const mt_model_config *c, mt_hf_map *map_out)
{
    mt_hf_map m = {.arch = arch, .model = *c};
    mt_place whole = {.tp = 1, .dp = 1, .pp = 1, .n_layers = c->n_layers};
    m.model.padded_vocab = c->vocab;
    MC_TRY(mt_params_create(&m.model, &whole, &m.params));
    mc_status st = MC_NEW_N(&m.tensors, m.params.n_rows * MAX_TENSORS_OF_PARAM, "map of tensors");
    for (int i = 0; i < m.params.n_rows && st == MC_OK; i++) {
        st = add_tensors(&m, i);
    }
    if (st != MC_OK) {
        mt_hf_map_destroy(&m);
        return st;
    }
    *map_out = m;
    return MC_OK;
}

void mt_hf_map_destroy(mt_hf_map *m)
{
    mc_free(m->tensors);
    mt_params_destroy(&m->params);
    *m = (mt_hf_map){0};
}

/* Rows of q (which 0), k (1) or v (2) of a group: in the parameter, and in a tensor that holds all heads of it. */
static mt_hf_span group_span(const mt_model_config *c, int group, int which)
{
    int64_t H = c->head_dim, queries = c->heads / c->groups, first = (queries + 2) * group;
    int64_t before = which == 0 ? 0 : queries + which - 1, n = which == 0 ? queries : 1;
    return (mt_hf_span){.param_row = (first + before) * H, .hf_row = group * n * H, .n_rows = n * H};
}

bool mt_hf_map_span(const mt_hf_map *m, const mt_hf_tensor *t, int i, mt_hf_span *span_out)
{
    const mt_model_config *c = &m->model;
    int64_t rows = m->params.rows[t->param].global_dims[0];
    switch (t->part) {
    case MT_HF_Q:
    case MT_HF_K:
    case MT_HF_V:
        if (i >= c->groups) {
            return false;
        }
        *span_out = group_span(c, i, (int)(t->part - MT_HF_Q));
        return true;
    case MT_HF_QKV:
        if (i >= 3 * c->groups) {
            return false;
        }
        *span_out = group_span(c, i / 3, i % 3);
        span_out->hf_row += i % 3 == 0 ? 0 : (int64_t)(c->heads + (i % 3 - 1) * c->groups) * c->head_dim;
        return true;
    case MT_HF_GATE:
        *span_out = (mt_hf_span){0, 0, rows / 2};
        return i == 0;
    case MT_HF_UP:
        *span_out = (mt_hf_span){rows / 2, 0, rows / 2};
        return i == 0;
    case MT_HF_WHOLE:
        break;
    }
    *span_out = (mt_hf_span){0, 0, rows};
    return i == 0;
}

const mt_hf_tensor *mt_hf_map_find(const mt_hf_map *m, const char *name)
{
    for (int i = 0; i < m->n_tensors; i++) {
        if (strcmp(m->tensors[i].name, name) == 0) {
            return &m->tensors[i];
        }
    }
    return NULL;
}
