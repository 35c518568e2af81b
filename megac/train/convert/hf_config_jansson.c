/* config.json to flags. */
#include <jansson.h>
#include <math.h>
#include <string.h>

#include "megac/train/convert/hf_impl.h"

enum { GPT2 = 1 << MT_HF_GPT2, LLAMA = 1 << MT_HF_LLAMA, MISTRAL = 1 << MT_HF_MISTRAL, QWEN2 = 1 << MT_HF_QWEN2 };
enum { QWEN3 = 1 << MT_HF_QWEN3, QWEN = QWEN2 | QWEN3, ROPE = LLAMA | MISTRAL | QWEN, ALL = GPT2 | ROPE };

/* Fields that are known: read below, or (with `must`, as JSON) right with one value only. */
static const struct {
    const char *name;
    unsigned archs;
    const char *must;
} fields[] = {
    {"architectures", ALL, NULL},
    {"model_type", ALL, NULL},
    {"vocab_size", ALL, NULL},
    {"tie_word_embeddings", ALL, NULL},
    {"n_positions", GPT2, NULL},
    {"n_embd", GPT2, NULL},
    {"n_layer", GPT2, NULL},
    {"n_head", GPT2, NULL},
    {"n_inner", GPT2, NULL},
    {"activation_function", GPT2, NULL},
    {"layer_norm_epsilon", GPT2, NULL},
    {"scale_attn_weights", GPT2, "true"},
    {"scale_attn_by_inverse_layer_idx", GPT2, "false"},
    {"add_cross_attention", ALL, "false"},
    {"is_encoder_decoder", ALL, "false"},
    {"hidden_size", ROPE, NULL},
    {"intermediate_size", ROPE, NULL},
    {"num_hidden_layers", ROPE, NULL},
    {"num_attention_heads", ROPE, NULL},
    {"num_key_value_heads", ROPE, NULL},
    {"head_dim", ROPE, NULL},
    {"hidden_act", ROPE, "\"silu\""},
    {"max_position_embeddings", ROPE, NULL},
    {"rms_norm_eps", ROPE, NULL},
    {"rope_theta", ROPE, NULL},
    {"rope_scaling", ROPE, NULL},
    {"rope_parameters", ROPE, NULL},
    {"rope_interleaved", ROPE, "false"},
    {"partial_rotary_factor", ROPE, "1.0"},
    {"attention_bias", LLAMA, NULL},
    {"mlp_bias", LLAMA, NULL},
    {"attention_bias", QWEN3, "false"},
    {"use_mrope", QWEN, "false"},
    {"sliding_window", MISTRAL | QWEN, NULL},
    {"use_sliding_window", QWEN, NULL},
    {"max_window_layers", QWEN, NULL},
    {"layer_types", ROPE, NULL},
    {"quantization_config", ALL, "null"},
};

/* Fields that do not change what a forward pass computes: training, sampling, bookkeeping. */
static const char *const without_effect[] = {
    "torch_dtype",
    "dtype",
    "transformers_version",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "sep_token_id",
    "unk_token_id",
    "decoder_start_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "use_cache",
    "initializer_range",
    "pretraining_tp",
    "attention_dropout",
    "attn_pdrop",
    "embd_pdrop",
    "resid_pdrop",
    "hidden_dropout",
    "n_ctx",
    "reorder_and_upcast_attn",
    "summary_activation",
    "summary_first_dropout",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
    "task_specific_params",
    "gradient_checkpointing",
    "id2label",
    "label2id",
    "finetuning_task",
    "problem_type",
    "tokenizer_class",
    "prefix",
    "return_dict",
    "return_dict_in_generate",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "torchscript",
    "use_bfloat16",
    "attn_implementation",
    "chunk_size_feed_forward",
    "is_decoder",
    "is_llama_config",
    "max_length",
    "min_length",
    "do_sample",
    "early_stopping",
    "num_beams",
    "num_beam_groups",
    "diversity_penalty",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
    "repetition_penalty",
    "length_penalty",
    "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size",
    "bad_words_ids",
    "num_return_sequences",
    "remove_invalid_values",
    "exponential_decay_length_penalty",
    "suppress_tokens",
    "begin_suppress_tokens",
    "keys_to_ignore_at_inference",
    "unsloth_version",
    "unsloth_fixed",
    "transformers.js_config",
    "auto_map",
    "pruned_heads",
};

typedef struct reader {
    const char *path;
    const json_t *root;
    mt_hf_arch arch;
    mt_text *flags;
} reader;

/* A value as its file has it, cut to `cap`. */
static const char *value_text(const json_t *v, char *out, size_t cap)
{
    size_t n = json_dumpb(v, out, cap - 1, JSON_ENCODE_ANY | JSON_COMPACT);
    out[n < cap ? n : cap - 1] = '\0';
    return out;
}

static mc_status refuse(const reader *r, const char *name, const json_t *v, const char *remedy)
{
    char text[200];
    return MC_FAIL(MC_UNSUPPORTED, "%s: \"%s\": %s: %s", r->path, name, value_text(v, text, sizeof text), remedy);
}

static bool equals(const json_t *v, const char *must)
{
    json_t *want = json_loads(must, JSON_DECODE_ANY, NULL);
    bool equal = json_is_number(v) && json_is_number(want) ? json_number_value(v) == json_number_value(want)
                                                           : json_equal(v, want) == 1;
    json_decref(want);
    return equal;
}

static mc_status check_field(const reader *r, const char *name, const json_t *v)
{
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        if (strcmp(fields[i].name, name) == 0 && (fields[i].archs & 1u << r->arch)) {
            bool fits = !fields[i].must || json_is_null(v) || equals(v, fields[i].must);
            return fits ? MC_OK : refuse(r, name, v, "megac's models do not compute that");
        }
    }
    for (size_t i = 0; i < sizeof without_effect / sizeof *without_effect; i++) {
        if (strcmp(without_effect[i], name) == 0) {
            return MC_OK;
        }
    }
    if (name[0] == '_' || json_is_null(v) || json_is_false(v)) {
        return MC_OK;
    }
    return refuse(r, name, v,
                  "a field that megac does not know and that may change the computation; take it out of a copy if it "
                  "does not");
}

/* A field that is there and not null. */
static const json_t *get(const reader *r, const char *name)
{
    const json_t *v = json_object_get(r->root, name);
    return v && !json_is_null(v) ? v : NULL;
}

/* `preset` < 0: required. */
static mc_status get_int(const reader *r, const char *name, int64_t preset, int64_t *out)
{
    const json_t *v = get(r, name);
    if (!v && preset >= 0) {
        *out = preset;
        return MC_OK;
    }
    if (!json_is_integer(v) || json_integer_value(v) < 1) {
        return MC_FAIL(MC_INPUT, "%s: \"%s\" is %s", r->path, name, v ? "not a whole number above 0" : "missing");
    }
    *out = json_integer_value(v);
    return MC_OK;
}

static mc_status get_real(const reader *r, const json_t *object, const char *name, double preset, double *out)
{
    const json_t *v = json_object_get(object, name);
    *out = v && !json_is_null(v) ? json_number_value(v) : preset;
    if (v && !json_is_null(v) && !json_is_number(v)) {
        return MC_FAIL(MC_INPUT, "%s: \"%s\" is not a number", r->path, name);
    }
    return MC_OK;
}

static mc_status get_bool(const reader *r, const char *name, bool preset, bool *out)
{
    const json_t *v = get(r, name);
    *out = v ? json_is_true(v) : preset;
    return !v || json_is_boolean(v) ? MC_OK : MC_FAIL(MC_INPUT, "%s: \"%s\" is not true or false", r->path, name);
}

static void add_int(reader *r, const char *flag, int64_t v)
{
    mt_text_printf(r->flags, "%s %lld\n", flag, (long long)v);
}

static void add_switch(reader *r, const char *flag, bool on)
{
    if (on) {
        mt_text_printf(r->flags, "%s true\n", flag);
    }
}

static void add_length(reader *r, int64_t positions)
{
    add_int(r, "--max-position-embeddings", positions);
    add_int(r, "--seq-length", positions < MT_HF_SEQ_LENGTH ? positions : MT_HF_SEQ_LENGTH);
}

static mc_status check_multiple(const reader *r, const char *name, int64_t v, const char *of, int64_t unit)
{
    return v % unit == 0 ? MC_OK
                         : MC_FAIL(MC_INPUT, "%s: \"%s\" %lld is no multiple of \"%s\" %lld", r->path, name,
                                   (long long)v, of, (long long)unit);
}

static mc_status read_gpt2(reader *r)
{
    int64_t hidden, layers, heads, positions, inner;
    double eps;
    const json_t *act = get(r, "activation_function");
    const char *name = act ? json_string_value(act) : "gelu_new";
    MC_TRY(get_int(r, "n_embd", -1, &hidden));
    MC_TRY(get_int(r, "n_layer", -1, &layers));
    MC_TRY(get_int(r, "n_head", -1, &heads));
    MC_TRY(check_multiple(r, "n_embd", hidden, "n_head", heads));
    MC_TRY(get_int(r, "n_positions", -1, &positions));
    MC_TRY(get_int(r, "n_inner", 4 * hidden, &inner));
    MC_TRY(get_real(r, r->root, "layer_norm_epsilon", 1e-5, &eps));
    if (!name ||
        (strcmp(name, "gelu_new") != 0 && strcmp(name, "gelu_pytorch_tanh") != 0 && strcmp(name, "gelu_fast") != 0)) {
        return refuse(r, "activation_function", act, "megac has GELU by tanh (gelu_new) for it");
    }
    add_int(r, "--num-layers", layers);
    add_int(r, "--hidden-size", hidden);
    add_int(r, "--ffn-hidden-size", inner);
    add_int(r, "--num-attention-heads", heads);
    add_int(r, "--num-query-groups", heads);
    add_length(r, positions);
    mt_text_printf(r->flags, "--position-embedding-type learned_absolute\n--normalization LayerNorm\n");
    mt_text_printf(r->flags, "--norm-epsilon %.17g\n", eps);
    return MC_OK;
}

/* rope_scaling, or what newer files call rope_parameters: its kind and the few that megac has. */
static mc_status read_scaling(reader *r, const char *field, const json_t *s)
{
    static const char *const known[] = {
        "rope_type", "type", "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings",
        "rope_theta"};
    const json_t *type = json_object_get(s, "rope_type");
    const char *kind = json_string_value(type ? type : json_object_get(s, "type")), *key;
    double factor, low, high, original;
    json_t *v;
    if (!json_is_object(s) || !kind) {
        return MC_FAIL(MC_INPUT, "%s: \"%s\" is not an object with a \"rope_type\"", r->path, field);
    }
    json_object_foreach((json_t *)s, key, v)
    {
        bool found = json_is_null(v);
        for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
            found = found || strcmp(known[i], key) == 0;
        }
        if (!found) {
            return refuse(r, key, v, "a part of the rotary scaling that megac does not know");
        }
    }
    MC_TRY(get_real(r, s, "factor", 1, &factor));
    MC_TRY(get_real(r, s, "low_freq_factor", 0, &low));
    MC_TRY(get_real(r, s, "high_freq_factor", 0, &high));
    MC_TRY(get_real(r, s, "original_max_position_embeddings", 0, &original));
    if (strcmp(kind, "default") == 0) {
        return MC_OK;
    }
    if (strcmp(kind, "linear") == 0 && factor >= 1 && factor == floor(factor) && factor <= 1e6) {
        add_int(r, "--rotary-seq-len-interpolation-factor", (int64_t)factor);
        return MC_OK;
    }
    if (strcmp(kind, "llama3") == 0 && low == 1 && high == 4 && original == 8192) {
        mt_text_printf(r->flags, "--use-rope-scaling true\n--rope-scaling-factor %.17g\n", factor);
        return MC_OK;
    }
    return refuse(r, field, s,
                  "megac has \"default\", \"linear\" by a whole factor, and \"llama3\" with low 1, high 4, original "
                  "8192");
}

static mc_status read_rope(reader *r)
{
    const json_t *parameters = get(r, "rope_parameters"), *scaling = get(r, "rope_scaling");
    const char *field = parameters ? "rope_parameters" : "rope_scaling";
    double theta;
    if (parameters && scaling && !json_equal(parameters, scaling)) {
        return refuse(r, "rope_scaling", scaling, "\"rope_parameters\" says otherwise; keep one of the two");
    }
    MC_TRY(get_real(r, r->root, "rope_theta", 10000, &theta));
    MC_TRY(get_real(r, parameters, "rope_theta", theta, &theta));
    if (!(theta >= 1 && theta == floor(theta) && theta < 0x1p53)) {
        return refuse(r, "rope_theta", get(r, "rope_theta"), "--rotary-base is a whole number from 1 on");
    }
    mt_text_printf(r->flags, "--position-embedding-type rope\n");
    add_int(r, "--rotary-base", (int64_t)theta);
    return parameters || scaling ? read_scaling(r, field, parameters ? parameters : scaling) : MC_OK;
}

/* Layers that look through the window. */
static mc_status count_sliding(const reader *r, int64_t layers, int64_t *sliding_out)
{
    const json_t *types = get(r, "layer_types"), *first = get(r, "max_window_layers");
    bool uses = r->arch == MT_HF_MISTRAL;
    *sliding_out = 0;
    if (r->arch == MT_HF_QWEN2 || r->arch == MT_HF_QWEN3) {
        MC_TRY(get_bool(r, "use_sliding_window", false, &uses));
    }
    if (types && json_array_size(types) != (size_t)layers) {
        return MC_FAIL(MC_INPUT, "%s: \"layer_types\" does not list %lld layers", r->path, (long long)layers);
    }
    for (size_t i = 0; i < json_array_size(types); i++) {
        const json_t *v = json_array_get(types, i);
        const char *kind = json_string_value(v);
        bool full = kind && strcmp(kind, "full_attention") == 0;
        if (!full && !(kind && strcmp(kind, "sliding_attention") == 0)) {
            return refuse(r, "layer_types", v, "megac has full_attention and sliding_attention");
        }
        *sliding_out += uses && !full;
    }
    if (!types && uses) {
        /* Qwen's rule without a list: the first layers look at everything. */
        int64_t preset = r->arch == MT_HF_MISTRAL ? 0 : 28;
        int64_t early = json_is_integer(first) ? json_integer_value(first) : preset;
        *sliding_out = early < layers ? layers - (early > 0 ? early : 0) : 0;
    }
    return MC_OK;
}

/* transformers' window counts the token itself, --window-size the earlier ones only. */
static mc_status read_window(reader *r, int64_t layers)
{
    const json_t *v = json_object_get(r->root, "sliding_window");
    int64_t sliding;
    MC_TRY(count_sliding(r, layers, &sliding));
    if (sliding == 0 || (v && json_is_null(v))) {
        return MC_OK;
    }
    int64_t window = v ? json_integer_value(v) : 4096; /* what the classes take for a missing field */
    if (v && (!json_is_integer(v) || window < 1)) {
        return MC_FAIL(MC_INPUT, "%s: \"sliding_window\" is not a whole number above 0", r->path);
    }
    if (sliding != layers) {
        return MC_FAIL(MC_UNSUPPORTED,
                       "%s: \"sliding_window\" holds for %lld of %lld layers; megac's --window-size for all or none",
                       r->path, (long long)sliding, (long long)layers);
    }
    mt_text_printf(r->flags, "--window-size %lld 0\n", (long long)(window - 1));
    return MC_OK;
}

static mc_status read_biases(reader *r)
{
    bool attention = false, mlp = false;
    if (r->arch == MT_HF_LLAMA) {
        MC_TRY(get_bool(r, "attention_bias", false, &attention));
        MC_TRY(get_bool(r, "mlp_bias", false, &mlp));
    }
    if (attention != mlp) {
        return refuse(r, attention ? "attention_bias" : "mlp_bias", json_true(),
                      "megac has biases in all linear layers, in none, or in query, key and value alone");
    }
    add_switch(r, "--disable-bias-linear", !mlp);
    add_switch(r, "--add-qkv-bias", r->arch == MT_HF_QWEN2);
    return MC_OK;
}

static mc_status read_llama(reader *r)
{
    int64_t hidden, inner, layers, heads, groups, size, positions;
    bool qwen3 = r->arch == MT_HF_QWEN3;
    double eps;
    MC_TRY(get_int(r, "hidden_size", -1, &hidden));
    MC_TRY(get_int(r, "intermediate_size", -1, &inner));
    MC_TRY(get_int(r, "num_hidden_layers", -1, &layers));
    MC_TRY(get_int(r, "num_attention_heads", -1, &heads));
    /* Mistral's and Qwen's classes have numbers of their own for a missing field. */
    bool key_there = json_object_get(r->root, "num_key_value_heads") || r->arch == MT_HF_LLAMA;
    MC_TRY(get_int(r, "num_key_value_heads", key_there ? heads : -1, &groups));
    MC_TRY(get_int(r, "head_dim", qwen3 && !json_object_get(r->root, "head_dim") ? 128 : hidden / heads, &size));
    MC_TRY(check_multiple(r, "num_attention_heads", heads, "num_key_value_heads", groups));
    if (size % 2 != 0) {
        return MC_FAIL(MC_INPUT, "%s: \"head_dim\" %lld is odd; rotary positions turn channels in pairs", r->path,
                       (long long)size);
    }
    MC_TRY(get_int(r, "max_position_embeddings", -1, &positions));
    MC_TRY(get_real(r, r->root, "rms_norm_eps", 1e-6, &eps));
    add_int(r, "--num-layers", layers);
    add_int(r, "--hidden-size", hidden);
    add_int(r, "--ffn-hidden-size", inner);
    add_int(r, "--num-attention-heads", heads);
    add_int(r, "--kv-channels", size);
    add_switch(r, "--group-query-attention", groups != heads);
    add_int(r, "--num-query-groups", groups);
    add_length(r, positions);
    mt_text_printf(r->flags, "--normalization RMSNorm\n--norm-epsilon %.17g\n--swiglu true\n", eps);
    add_switch(r, "--qk-layernorm", qwen3);
    MC_TRY(read_biases(r));
    MC_TRY(read_rope(r));
    return read_window(r, layers);
}

/* By "architectures", which may name one class; "model_type" agrees, and decides where it is missing. */
static mc_status find_arch(reader *r)
{
    const json_t *list = get(r, "architectures");
    const char *type = json_string_value(get(r, "model_type"));
    const char *cls = json_string_value(json_array_get(list, 0));
    for (int i = 0; i < MT_HF_ARCH_COUNT; i++) {
        bool named = cls && strcmp(cls, mt_hf_class((mt_hf_arch)i)) == 0 && json_array_size(list) == 1;
        bool typed = type && strcmp(type, mt_hf_type((mt_hf_arch)i)) == 0;
        if ((list ? named : typed) && (!type || typed)) {
            r->arch = (mt_hf_arch)i;
            return MC_OK;
        }
    }
    return MC_FAIL(MC_UNSUPPORTED,
                   "%s: architecture \"%s\" (model_type \"%s\") is unknown; megac has GPT2LMHeadModel, "
                   "LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM",
                   r->path, cls ? cls : "none", type ? type : "none");
}

static mc_status read_all(reader *r)
{
    const char *name;
    json_t *v;
    int64_t vocab;
    bool tied;
    MC_TRY(find_arch(r));
    json_object_foreach((json_t *)r->root, name, v)
    {
        MC_TRY(check_field(r, name, v));
    }
    MC_TRY(get_int(r, "vocab_size", -1, &vocab));
    MC_TRY(get_bool(r, "tie_word_embeddings", r->arch == MT_HF_GPT2, &tied));
    add_int(r, "--vocab-size", vocab);
    add_switch(r, "--untie-embeddings-and-output-weights", !tied);
    MC_TRY(r->arch == MT_HF_GPT2 ? read_gpt2(r) : read_llama(r));
    return r->flags->st;
}

mc_status mt_hf_config_parse(const char *path, const char *text, size_t bytes, mt_hf_arch *arch_out, mt_text *flags)
{
    void *root;
    MC_TRY(mt_i_hf_json(path, text, bytes, &root));
    reader r = {.path = path, .root = root, .flags = flags};
    mc_status st = read_all(&r);
    *arch_out = r.arch;
    mt_hf_json_release(root);
    return st;
}
