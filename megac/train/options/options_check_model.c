/* Rules of the model's shape. */
#include <string.h>

#include "megac/base/log.h"
#include "megac/train/options/options_impl.h"

static mc_status check_required(const mt_options *o)
{
    const struct {
        const char *flag, *example;
        int64_t value;
    } required[] = {
        {"--num-layers", "12", o->num_layers},
        {"--hidden-size", "768", o->hidden_size},
        {"--num-attention-heads", "12", o->num_attention_heads},
        {"--seq-length", "1024", o->seq_length},
    };
    for (size_t i = 0; i < sizeof required / sizeof required[0]; i++) {
        if (!mc_given_int(required[i].value)) {
            return MC_FAIL(MC_INVALID, "%s is missing; give it, for example %s %s", required[i].flag, required[i].flag,
                           required[i].example);
        }
    }
    return MC_OK;
}

/* Megatron-LM's rule for SwiGLU keeps the parameters of a 4 x hidden MLP: 2/3 of it, down to a multiple of 64. */
static int64_t default_ffn(const mt_options *o)
{
    int64_t gated = o->hidden_size * 8 / 3 / 64 * 64;
    return !o->swiglu ? 4 * o->hidden_size : gated > 0 ? gated : 64;
}

static mc_status check_precision(const mt_options *o)
{
    if (o->bf16 && o->fp16) {
        return MC_FAIL(MC_INVALID, "--bf16 and --fp16: activations have one type; keep one of the two");
    }
    if ((o->bf16 || o->fp16) && o->fp32_residual_connection) {
        return MC_FAIL(MC_UNSUPPORTED,
                       "--fp32-residual-connection: the residual stream has the type of the activations; "
                       "leave the flag out, or %s",
                       o->bf16 ? "--bf16" : "--fp16");
    }
    return MC_OK;
}

static mc_status check_vocab(const mt_options *o)
{
    bool null_tokens = o->tokenizer_type && strcmp(o->tokenizer_type, "NullTokenizer") == 0;
    if (null_tokens && !mc_given_int(o->vocab_size)) {
        return MC_FAIL(MC_INVALID,
                       "--tokenizer-type NullTokenizer: says nothing about the vocabulary; give --vocab-size");
    }
    bool vocab_known = o->tokenizer_type || mc_given_int(o->vocab_size) || mc_given_int(o->padded_vocab_size);
    if (o->mock_data && !vocab_known) {
        return MC_FAIL(MC_INVALID, "--mock-data: has no vocabulary of its own; give --vocab-size, for example 256");
    }
    if (mc_given_int(o->padded_vocab_size) && mc_given_int(o->vocab_size) && o->padded_vocab_size < o->vocab_size) {
        return MC_FAIL(MC_INVALID, "--padded-vocab-size %lld is below --vocab-size %lld; leave it out or raise it",
                       (long long)o->padded_vocab_size, (long long)o->vocab_size);
    }
    if (mc_given_int(o->padded_vocab_size) && o->padded_vocab_size % o->tensor_model_parallel_size != 0) {
        return MC_FAIL(MC_INVALID,
                       "--padded-vocab-size %lld is no multiple of --tensor-model-parallel-size %lld; leave it out or "
                       "make it one",
                       (long long)o->padded_vocab_size, (long long)o->tensor_model_parallel_size);
    }
    return MC_OK;
}

mc_status mt_i_check_model(mt_options *o)
{
    MC_TRY(check_required(o));
    if (o->swiglu + o->squared_relu + o->openai_gelu > 1) {
        return MC_FAIL(MC_INVALID, "%s and %s: the MLP has one activation; keep one of the two",
                       o->swiglu ? "--swiglu" : "--squared-relu", o->openai_gelu ? "--openai-gelu" : "--squared-relu");
    }
    mt_i_derive(o, &o->ffn_hidden_size, default_ffn(o));
    mt_i_derive(o, &o->max_position_embeddings, o->seq_length);
    if (o->max_position_embeddings < o->seq_length) {
        return MC_FAIL(MC_INVALID,
                       "--max-position-embeddings %lld is below --seq-length %lld; raise it to at least that",
                       (long long)o->max_position_embeddings, (long long)o->seq_length);
    }
    if (o->no_position_embedding && strcmp(o->position_embedding_type, "learned_absolute") == 0) {
        o->position_embedding_type = "none";
        mc_config_set_source(&o->config_, &o->position_embedding_type, MC_FROM_DERIVED);
    }
    MC_TRY(check_precision(o));
    return check_vocab(o);
}

static mc_status check_heads(mt_options *o)
{
    int64_t heads = o->num_attention_heads;
    if (!mc_given_int(o->kv_channels) && o->hidden_size % heads != 0) {
        return MC_FAIL(
            MC_INVALID,
            "--hidden-size %lld is no multiple of --num-attention-heads %lld; change one, or give the size of "
            "a head by --kv-channels",
            (long long)o->hidden_size, (long long)heads);
    }
    mt_i_derive(o, &o->kv_channels, o->hidden_size / heads);
    if (o->group_query_attention) {
        mt_i_derive(o, &o->num_query_groups, 1);
    } else if (mt_options_given(o, &o->num_query_groups) && o->num_query_groups != heads) {
        MC_WARN(
            "--num-query-groups %lld: read with --group-query-attention only; every query head gets its own key and "
            "value",
            (long long)o->num_query_groups);
        o->num_query_groups = heads;
    } else {
        mt_i_derive(o, &o->num_query_groups, heads);
    }
    if (heads % o->num_query_groups != 0) {
        return MC_FAIL(MC_INVALID, "--num-attention-heads %lld is no multiple of --num-query-groups %lld; change one",
                       (long long)heads, (long long)o->num_query_groups);
    }
    return MC_OK;
}

static mc_status check_rope(const mt_options *o)
{
    if (strcmp(o->position_embedding_type, "rope") != 0) {
        const struct {
            const char *flag;
            bool given;
        } unused[] = {
            {"--use-rope-scaling", o->use_rope_scaling},
            {"--rotary-interleaved", o->rotary_interleaved},
            {"--rotary-seq-len-interpolation-factor", mc_given_int(o->rotary_seq_len_interpolation_factor)},
        };
        for (int i = 0; i < 3; i++) {
            if (unused[i].given) {
                return MC_FAIL(MC_INVALID, "%s needs --position-embedding-type rope, not %s", unused[i].flag,
                               o->position_embedding_type);
            }
        }
        return MC_OK;
    }
    int64_t rotated = (int64_t)((double)o->kv_channels * o->rotary_percent);
    if (rotated < 2 || rotated % 2 != 0) {
        return MC_FAIL(MC_INVALID,
                       "rope turns pairs of channels, and --rotary-percent %g of a head of %lld is %lld; change "
                       "--rotary-percent or the head's size (--kv-channels)",
                       o->rotary_percent, (long long)o->kv_channels, (long long)rotated);
    }
    return MC_OK;
}

static mc_status check_window(const mt_options *o)
{
    const mc_int_list *w = &o->window_size;
    if (w->n == 0 || (w->n == 2 && (w->v[1] == 0 || w->v[1] == -1))) {
        return MC_OK;
    }
    if (w->n != 2) {
        return MC_FAIL(MC_INVALID, "--window-size: takes two numbers, LEFT RIGHT, and got %d; give for example 128 0",
                       w->n);
    }
    return MC_FAIL(MC_INVALID, "--window-size %lld %lld: attention is causal, so RIGHT must be 0", (long long)w->v[0],
                   (long long)w->v[1]);
}

mc_status mt_i_check_attention(mt_options *o)
{
    MC_TRY(check_heads(o));
    MC_TRY(check_rope(o));
    return check_window(o);
}
