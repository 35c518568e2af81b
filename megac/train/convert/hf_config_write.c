/* Flags to config.json. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "megac/train/convert/hf_config.h"

mc_status mt_hf_options(const char *where, const char *flags, mt_options **out)
{
    mt_options *o;
    bool done;
    MC_TRY(mt_options_parse(MT_TRAIN, 0, NULL, &o, &done));
    mc_status st = mt_options_adopt(o, where, flags);
    if (st == MC_OK) {
        st = mt_options_finish_model(o);
    }
    if (st != MC_OK) {
        mt_options_free(o);
        return st;
    }
    *out = o;
    return MC_OK;
}

const char *mt_hf_dtype_name(mt_st_dtype dtype)
{
    return dtype == MT_ST_BF16  ? "bfloat16"
           : dtype == MT_ST_F16 ? "float16"
           : dtype == MT_ST_F64 ? "float64"
                                : "float32";
}

static bool is_rope(const mt_options *o)
{
    return strcmp(o->position_embedding_type, "rope") == 0;
}

static bool is_rms(const mt_options *o)
{
    return strcmp(o->normalization, "RMSNorm") == 0;
}

static bool has_window(const mt_options *o)
{
    return o->window_size.n > 0 && o->window_size.v[0] >= 0;
}

mc_status mt_hf_config_choose(const char *where, const mt_options *o, mt_hf_arch *arch_out)
{
    bool gpt = strcmp(o->position_embedding_type, "learned_absolute") == 0;
    bool interpolated = mc_given_int(o->rotary_seq_len_interpolation_factor);
    const struct {
        const char *flag;
        bool alien;
    } rules[] = {
        {"--apply-layernorm-1p", o->apply_layernorm_1p},
        {"--squared-relu", o->squared_relu},
        {"--position-embedding-type none", !gpt && !is_rope(o)},
        {"--position-embedding-type learned_absolute with --normalization RMSNorm", gpt && is_rms(o)},
        {"--position-embedding-type learned_absolute with --swiglu", gpt && o->swiglu},
        {"--position-embedding-type learned_absolute with --disable-bias-linear", gpt && !o->add_bias_linear},
        {"--position-embedding-type learned_absolute with --qk-layernorm", gpt && o->qk_layernorm},
        {"--position-embedding-type learned_absolute with --window-size", gpt && has_window(o)},
        {"--position-embedding-type learned_absolute with --num-query-groups",
         gpt && o->num_query_groups != o->num_attention_heads},
        {"--position-embedding-type learned_absolute with --kv-channels",
         gpt && o->kv_channels * o->num_attention_heads != o->hidden_size},
        {"--position-embedding-type rope with --normalization LayerNorm", !gpt && !is_rms(o)},
        {"--position-embedding-type rope without --swiglu", !gpt && !o->swiglu},
        {"--rotary-interleaved", !gpt && o->rotary_interleaved},
        {"--rotary-percent", !gpt && o->rotary_percent != 1},
        {"--use-rope-scaling with --rotary-seq-len-interpolation-factor", !gpt && o->use_rope_scaling && interpolated},
        {"--qk-layernorm with --add-qkv-bias", !gpt && o->qk_layernorm && o->add_qkv_bias},
        {"--qk-layernorm without --disable-bias-linear", !gpt && o->qk_layernorm && o->add_bias_linear},
        {"--window-size without --disable-bias-linear", !gpt && has_window(o) && o->add_bias_linear},
    };
    for (size_t i = 0; i < sizeof rules / sizeof *rules; i++) {
        if (rules[i].alien) {
            return MC_FAIL(MC_UNSUPPORTED,
                           "%s: no model of Hugging Face that megac writes has %s; it has GPT-2, Llama, Mistral, Qwen2 "
                           "and Qwen3",
                           where, rules[i].flag);
        }
    }
    *arch_out = gpt                                      ? MT_HF_GPT2
                : o->qk_layernorm                        ? MT_HF_QWEN3
                : o->add_qkv_bias && !o->add_bias_linear ? MT_HF_QWEN2
                : has_window(o)                          ? MT_HF_MISTRAL
                                                         : MT_HF_LLAMA;
    return MC_OK;
}

/* ---- writing; the fields in alphabetical order, as transformers writes them ---- */

static void put_int(mt_text *t, const char *name, int64_t v)
{
    mt_text_printf(t, "  \"%s\": %lld,\n", name, (long long)v);
}

static void put_bool(mt_text *t, const char *name, bool v)
{
    mt_text_printf(t, "  \"%s\": %s,\n", name, v ? "true" : "false");
}

static void put_word(mt_text *t, const char *name, const char *v)
{
    mt_text_printf(t, "  \"%s\": \"%s\",\n", name, v);
}

/* The shortest text that reads back as the same number, with a point or an exponent. */
static void put_real(mt_text *t, const char *name, double v)
{
    char text[40];
    for (int digits = 1; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, v);
        if (strtod(text, NULL) == v) {
            break;
        }
    }
    mt_text_printf(t, "  \"%s\": %s%s,\n", name, text, strpbrk(text, ".e") ? "" : ".0");
}

static void write_gpt2(const mt_options *o, mt_text *t)
{
    put_word(t, "activation_function", "gelu_new");
    put_real(t, "layer_norm_epsilon", o->norm_epsilon);
    put_int(t, "n_embd", o->hidden_size);
    put_int(t, "n_head", o->num_attention_heads);
    put_int(t, "n_inner", o->ffn_hidden_size);
    put_int(t, "n_layer", o->num_layers);
    put_int(t, "n_positions", o->max_position_embeddings);
    put_bool(t, "scale_attn_by_inverse_layer_idx", false);
    put_bool(t, "scale_attn_weights", true);
}

static void write_scaling(const mt_options *o, mt_text *t)
{
    if (o->use_rope_scaling) {
        mt_text_printf(t, "  \"rope_scaling\": {\n  ");
        put_real(t, "factor", o->rope_scaling_factor);
        mt_text_printf(t, "    \"high_freq_factor\": 4.0,\n    \"low_freq_factor\": 1.0,\n"
                          "    \"original_max_position_embeddings\": 8192,\n    \"rope_type\": \"llama3\"\n  },\n");
    } else if (mc_given_int(o->rotary_seq_len_interpolation_factor)) {
        mt_text_printf(t, "  \"rope_scaling\": {\n    \"factor\": %lld.0,\n    \"rope_type\": \"linear\"\n  },\n",
                       (long long)o->rotary_seq_len_interpolation_factor);
    } else {
        mt_text_printf(t, "  \"rope_scaling\": null,\n");
    }
}

static void write_window(mt_hf_arch arch, const mt_options *o, mt_text *t)
{
    bool qwen = arch == MT_HF_QWEN2 || arch == MT_HF_QWEN3;
    if (has_window(o)) {
        put_int(t, "sliding_window", o->window_size.v[0] + 1); /* the token itself counts there */
    } else if (arch != MT_HF_LLAMA) {
        mt_text_printf(t, "  \"sliding_window\": null,\n");
    }
    if (qwen) {
        put_int(t, "max_window_layers", has_window(o) ? 0 : o->num_layers);
        put_bool(t, "use_sliding_window", has_window(o));
    }
}

static void write_llama(mt_hf_arch arch, const mt_options *o, mt_text *t)
{
    if (arch == MT_HF_LLAMA) {
        put_bool(t, "attention_bias", o->add_bias_linear);
        put_bool(t, "mlp_bias", o->add_bias_linear);
    } else if (arch == MT_HF_QWEN3) {
        put_bool(t, "attention_bias", false);
    }
    put_int(t, "head_dim", o->kv_channels);
    put_word(t, "hidden_act", "silu");
    put_int(t, "hidden_size", o->hidden_size);
    put_int(t, "intermediate_size", o->ffn_hidden_size);
    put_int(t, "max_position_embeddings", o->max_position_embeddings);
    put_int(t, "num_attention_heads", o->num_attention_heads);
    put_int(t, "num_hidden_layers", o->num_layers);
    put_int(t, "num_key_value_heads", o->num_query_groups);
    put_real(t, "rms_norm_eps", o->norm_epsilon);
    put_real(t, "rope_theta", (double)o->rotary_base);
    write_scaling(o, t);
    write_window(arch, o, t);
}

void mt_hf_config_write(mt_hf_arch arch, const mt_options *o, mt_st_dtype dtype, mt_text *t)
{
    mt_text_printf(t, "{\n  \"architectures\": [\n    \"%s\"\n  ],\n", mt_hf_class(arch));
    mt_text_printf(t, "  \"bos_token_id\": null,\n  \"eos_token_id\": null,\n");
    put_word(t, "model_type", mt_hf_type(arch));
    if (arch == MT_HF_GPT2) {
        write_gpt2(o, t);
    } else {
        write_llama(arch, o, t);
    }
    put_bool(t, "tie_word_embeddings", !o->untie_embeddings_and_output_weights);
    put_word(t, "torch_dtype", mt_hf_dtype_name(dtype));
    put_bool(t, "use_cache", true);
    mt_text_printf(t, "  \"vocab_size\": %lld\n}\n", (long long)o->vocab_size);
}
