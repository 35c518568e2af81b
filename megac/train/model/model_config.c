/* From flags to the shape of the model. */
#include "megac/train/model/model_config.h"

#include <math.h>
#include <string.h>

#include "megac/train/setup.h"

/* Tokens that the tokenizer or the data set, or failing these the flags, say there are. */
static mc_status find_vocab(const mt_options *o, const ds_source *data, int64_t *vocab_out)
{
    int64_t vocab = mc_given_int(o->vocab_size) ? o->vocab_size : 0, seen = data ? ds_source_vocab_size(data) : 0;
    if (vocab == 0) {
        bool bytes = o->tokenizer_type && strcmp(o->tokenizer_type, "ByteTokenizer") == 0;
        vocab = seen > 0 ? seen : bytes ? 257 : 0;
    }
    if (vocab == 0 && mc_given_int(o->padded_vocab_size)) {
        vocab = o->padded_vocab_size;
    }
    if (vocab == 0) {
        return MC_FAIL(MC_INVALID, "the vocabulary size is not known without a dataset; give --vocab-size N or "
                                   "--tokenizer-type ByteTokenizer");
    }
    if (seen > vocab) {
        return MC_FAIL(MC_INVALID, "--vocab-size %lld is smaller than the dataset's vocabulary of %lld tokens",
                       (long long)vocab, (long long)seen);
    }
    *vocab_out = vocab;
    return MC_OK;
}

static mc_status set_vocab(mt_model_config *c, const mt_options *o, const ds_source *data)
{
    int tp = (int)o->tensor_model_parallel_size;
    MC_TRY(find_vocab(o, data, &c->vocab));
    c->padded_vocab = mc_given_int(o->padded_vocab_size)
                          ? o->padded_vocab_size
                          : tp_padded_vocab(c->vocab, o->make_vocab_size_divisible_by, tp);
    if (c->padded_vocab < c->vocab || c->padded_vocab % tp != 0) {
        return MC_FAIL(MC_INVALID,
                       "--padded-vocab-size %lld must be at least the vocabulary (%lld) and a multiple of the "
                       "tensor-parallel size (%d)",
                       (long long)c->padded_vocab, (long long)c->vocab, tp);
    }
    return MC_OK;
}

static ly_act_kind act_kind(const mt_options *o)
{
    return o->swiglu ? LY_SWIGLU : o->squared_relu ? LY_SQUARED_RELU : LY_GELU_TANH;
}

static mt_position position_kind(const mt_options *o)
{
    if (strcmp(o->position_embedding_type, "rope") == 0) {
        return MT_POSITION_ROPE;
    }
    bool none = o->no_position_embedding || strcmp(o->position_embedding_type, "none") == 0;
    return none ? MT_POSITION_NONE : MT_POSITION_LEARNED;
}

mc_status mt_model_config_from(const mt_options *o, const ds_source *data, mt_model_config *config_out)
{
    bool rms = strcmp(o->normalization, "RMSNorm") == 0;
    mt_model_config c = {
        .n_layers = (int)o->num_layers,
        .heads = (int)o->num_attention_heads,
        .groups = (int)o->num_query_groups,
        .head_dim = (int)o->kv_channels,
        .hidden = o->hidden_size,
        .ffn = o->ffn_hidden_size,
        .seq_length = o->seq_length,
        .max_positions = o->max_position_embeddings,
        .norm = rms ? LY_RMSNORM : LY_LAYERNORM,
        .norm_one_plus_gamma = o->apply_layernorm_1p,
        .norm_eps = (float)o->norm_epsilon,
        .act = act_kind(o),
        .position = position_kind(o),
        .rope =
            {
                .base = (double)o->rotary_base,
                .percent = o->rotary_percent,
                .interpolation_factor = mc_given_int(o->rotary_seq_len_interpolation_factor)
                                            ? (double)o->rotary_seq_len_interpolation_factor
                                            : 1.0,
                .interleaved = o->rotary_interleaved,
                .llama3_scaling = o->use_rope_scaling,
                .scaling_factor = o->rope_scaling_factor,
            },
        .linear_bias = o->add_bias_linear,
        .qkv_bias = o->add_qkv_bias,
        .qk_norm = o->qk_layernorm,
        .tied = !o->untie_embeddings_and_output_weights,
        .hidden_dropout = (float)o->hidden_dropout,
        .attention_dropout = (float)o->attention_dropout,
        .window_left = o->window_size.n > 0 ? o->window_size.v[0] : -1,
        .init_std = (float)o->init_method_std,
        .embedding_init_std =
            (float)(mc_given_float(o->embedding_init_method_std) ? o->embedding_init_method_std : o->init_method_std),
        .init_xavier = o->init_method_xavier_uniform,
        .seed = (uint32_t)o->seed,
        .dtype = o->bf16   ? MC_BF16
                 : o->fp16 ? MC_F16
                           : MC_F32,
    };
    MC_TRY(set_vocab(&c, o, data));
    *config_out = c;
    return MC_OK;
}
