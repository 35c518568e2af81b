#include "megac/train/model/params.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "megac/base/alloc.h"
#include "megac/base/half.h"
#include "megac/base/rng.h"

enum { ROW_ALIGN_ELEMS = 64, INIT_CHUNK_ELEMS = 1 << 16, OUTER_STREAM = 0xffff00 };

/* What a tensor is, before this rank's share is worked out. */
typedef struct spec {
    const char *name;
    int64_t dims[2]; /* global; dims[1] = 0: one dim */
    enum { WHOLE, ROWS, GATED_ROWS, QKV_ROWS, COLS } shard;
    mt_init init;
    float std;
    bool decay, present;
    mt_grad_sum sum;
} spec;

typedef struct builder {
    const mt_model_config *c;
    const mt_place *p;
    mt_params *out;
    int cap_rows;
} builder;

tp_heads mt_heads(const mt_model_config *c, const mt_place *p)
{
    return tp_heads_of(c->heads, c->groups, c->head_dim, p->tp, p->tp_rank);
}

int64_t mt_qkv_cols(const mt_model_config *c, const tp_heads *h)
{
    return (int64_t)h->groups * (h->queries + 2) * c->head_dim;
}

/* Cuts dim 0 or 1 of the global tensor into this rank's ranges. */
static void shard(const builder *b, const spec *s, mt_param *row)
{
    int64_t tp = b->p->tp, rank = b->p->tp_rank;
    row->shard_dim = s->shard == COLS ? 1 : 0;
    int64_t whole = row->global_dims[row->shard_dim];
    row->n_ranges = 1;
    switch (s->shard) {
    case WHOLE:
        row->ranges[0] = (mt_range){0, whole};
        break;
    case ROWS:
    case COLS:
        row->ranges[0] = (mt_range){rank * (whole / tp), whole / tp};
        break;
    case GATED_ROWS:
        row->n_ranges = 2;
        row->ranges[0] = (mt_range){rank * (whole / 2 / tp), whole / 2 / tp};
        row->ranges[1] = (mt_range){whole / 2 + row->ranges[0].begin, row->ranges[0].count};
        break;
    case QKV_ROWS: {
        tp_heads h = mt_heads(b->c, b->p);
        row->n_ranges = h.replicas > 1 ? 2 : 1;
        row->ranges[0] = (mt_range){h.q_begin, h.q_rows};
        row->ranges[1] = (mt_range){h.kv_begin, h.kv_rows};
        row->grad_sum = h.replicas > 1 ? MT_SUM_KV_REPLICAS : row->grad_sum;
        break;
    }
    }
    row->local_dims[0] = row->global_dims[0];
    row->local_dims[1] = row->global_dims[1];
    row->local_dims[row->shard_dim] = row->ranges[0].count + (row->n_ranges > 1 ? row->ranges[1].count : 0);
}

int64_t mt_param_elems(const mt_param *row)
{
    return row->local_dims[0] * mt_param_cols(row);
}

int64_t mt_param_cols(const mt_param *row)
{
    return row->n_dims == 2 ? row->local_dims[1] : 1;
}

int64_t mt_param_global_cols(const mt_param *row)
{
    return row->n_dims == 2 ? row->global_dims[1] : 1;
}

void mt_param_global(const mt_param *row, int64_t flat, int64_t at_out[2])
{
    int64_t cols = mt_param_cols(row), r = flat / cols, before = row->ranges[0].count;
    bool second = row->shard_dim == 0 && r >= before;
    at_out[0] = r + (row->shard_dim == 0 ? row->ranges[second].begin - (second ? before : 0) : 0);
    at_out[1] = flat % cols + (row->shard_dim == 1 ? row->ranges[0].begin : 0);
}

static int64_t align_up(int64_t n, int64_t unit)
{
    return (n + unit - 1) / unit * unit;
}

/* Starts a unit; what follows belongs to it until end_unit, which drops a unit without rows. */
static void begin_unit(builder *b)
{
    b->out->units[b->out->n_units++] = (mt_unit){.first_row = b->out->n_rows, .begin = b->out->slab_elems};
}

static void end_unit(builder *b)
{
    mt_unit *u = &b->out->units[b->out->n_units - 1];
    u->n_rows = b->out->n_rows - u->first_row;
    if (u->n_rows == 0) {
        b->out->n_units--;
        return;
    }
    b->out->slab_elems = align_up(b->out->slab_elems, (int64_t)ROW_ALIGN_ELEMS * b->p->dp);
    u->end = b->out->slab_elems;
}

/* Glorot and Bengio 2010: uniform between -limit and limit. */
static float xavier_limit(int64_t rows, int64_t cols)
{
    return sqrtf(6.0f / (float)(rows + cols));
}

/* Adds a row and returns its number, or -1 when the model has no such tensor. */
static int add_row(builder *b, const spec *s, int layer, uint32_t stream)
{
    if (!s->present) {
        return -1;
    }
    MC_ASSERT(b->out->n_rows < b->cap_rows);
    mt_param *row = &b->out->rows[b->out->n_rows];
    *row = (mt_param){
        .n_dims = s->dims[1] ? 2 : 1,
        .global_dims = {s->dims[0], s->dims[1]},
        .layer = layer,
        .decay = s->decay,
        .init = s->init,
        .init_std = s->init == MT_INIT_XAVIER ? xavier_limit(s->dims[0], s->dims[1]) : s->std,
        .init_stream = mc_rng_stream(MC_RNG_INIT, stream),
        .grad_sum = s->sum,
    };
    if (layer >= 0) {
        snprintf(row->name, sizeof row->name, "decoder.layers.%d.%s", layer, s->name);
    } else {
        snprintf(row->name, sizeof row->name, "%s", s->name);
    }
    shard(b, s, row);
    bool first_holder = s->shard != WHOLE || b->p->tp_rank == 0;
    row->counts_in_norm = first_holder && b->p->instance == 0;
    row->writes = first_holder && b->p->dp_rank == 0;
    row->unit = b->out->n_units - 1;
    row->offset = b->out->slab_elems;
    b->out->slab_elems = align_up(row->offset + mt_param_elems(row), ROW_ALIGN_ELEMS);
    b->out->n_local += mt_param_elems(row);
    return b->out->n_rows++;
}

static void add_block(builder *b, int local_layer)
{
    const mt_model_config *c = b->c;
    int layer = b->p->first_layer + local_layer;
    /* Replicated parameters that see only this rank's rows, or only its heads. */
    mt_grad_sum rows_sum = b->p->sequence_parallel && b->p->tp > 1 ? MT_SUM_TP : MT_SUM_NONE;
    mt_grad_sum heads_sum = b->p->tp > 1 ? MT_SUM_TP : MT_SUM_NONE;
    bool layernorm = c->norm == LY_LAYERNORM;
    mt_init gamma = c->norm_one_plus_gamma ? MT_INIT_ZERO : MT_INIT_ONE;
    mt_init weight = c->init_xavier ? MT_INIT_XAVIER : MT_INIT_NORMAL;
    float std = c->init_std, out_std = c->init_std / sqrtf(2.0f * (float)c->n_layers);
    int64_t C = c->hidden, H = c->head_dim, fc1 = mt_fc1_cols(c), qkv = (int64_t)(c->heads + 2 * c->groups) * H;
    bool qkv_bias = c->linear_bias || c->qkv_bias;
    const spec specs[MT_BLOCK_PARAMS] = {
        [MT_LN1_GAMMA] = {"input_layernorm.weight", {C}, WHOLE, gamma, 0, false, true, rows_sum},
        [MT_LN1_BETA] = {"input_layernorm.bias", {C}, WHOLE, MT_INIT_ZERO, 0, false, layernorm, rows_sum},
        [MT_QKV_WEIGHT] =
            {"self_attention.linear_qkv.weight", {qkv, C}, QKV_ROWS, weight, std, true, true, MT_SUM_NONE},
        [MT_QKV_BIAS] =
            {"self_attention.linear_qkv.bias", {qkv}, QKV_ROWS, MT_INIT_ZERO, 0, false, qkv_bias, MT_SUM_NONE},
        [MT_Q_GAMMA] = {"self_attention.q_layernorm.weight", {H}, WHOLE, gamma, 0, false, c->qk_norm, heads_sum},
        [MT_Q_BETA] =
            {"self_attention.q_layernorm.bias", {H}, WHOLE, MT_INIT_ZERO, 0, false, c->qk_norm && layernorm, heads_sum},
        [MT_K_GAMMA] = {"self_attention.k_layernorm.weight", {H}, WHOLE, gamma, 0, false, c->qk_norm, heads_sum},
        [MT_K_BETA] =
            {"self_attention.k_layernorm.bias", {H}, WHOLE, MT_INIT_ZERO, 0, false, c->qk_norm && layernorm, heads_sum},
        [MT_PROJ_WEIGHT] = {"self_attention.linear_proj.weight",
                            {C, (int64_t)c->heads * H},
                            COLS,
                            weight,
                            out_std,
                            true,
                            true,
                            MT_SUM_NONE},
        [MT_PROJ_BIAS] =
            {"self_attention.linear_proj.bias", {C}, WHOLE, MT_INIT_ZERO, 0, false, c->linear_bias, rows_sum},
        [MT_LN2_GAMMA] = {"pre_mlp_layernorm.weight", {C}, WHOLE, gamma, 0, false, true, rows_sum},
        [MT_LN2_BETA] = {"pre_mlp_layernorm.bias", {C}, WHOLE, MT_INIT_ZERO, 0, false, layernorm, rows_sum},
        [MT_FC1_WEIGHT] = {"mlp.linear_fc1.weight",
                           {fc1, C},
                           c->act == LY_SWIGLU ? GATED_ROWS : ROWS,
                           weight,
                           std,
                           true,
                           true,
                           MT_SUM_NONE},
        [MT_FC1_BIAS] = {"mlp.linear_fc1.bias",
                         {fc1},
                         c->act == LY_SWIGLU ? GATED_ROWS : ROWS,
                         MT_INIT_ZERO,
                         0,
                         false,
                         c->linear_bias,
                         MT_SUM_NONE},
        [MT_FC2_WEIGHT] = {"mlp.linear_fc2.weight", {C, c->ffn}, COLS, weight, out_std, true, true, MT_SUM_NONE},
        [MT_FC2_BIAS] = {"mlp.linear_fc2.bias", {C}, WHOLE, MT_INIT_ZERO, 0, false, c->linear_bias, rows_sum},
    };
    for (int i = 0; i < MT_BLOCK_PARAMS; i++) {
        b->out->block[local_layer][i] = add_row(b, &specs[i], layer, (uint32_t)(layer * MT_BLOCK_PARAMS + i));
    }
}

/* What sets the vocabulary's tensors apart. `copy`: of a tensor that the first stage counts and stores. */
static void mark_outer(const mt_model_config *c, mt_outer_param which, bool copy, mt_param *row)
{
    if (which != MT_WORD_EMBEDDINGS && which != MT_OUTPUT_WEIGHT) {
        return;
    }
    row->decoupled_lr = true;
    if (row->init == MT_INIT_XAVIER) {
        /* By the real vocabulary: the padded one depends on the layout, initial values must not. */
        row->init_std = xavier_limit(c->vocab, c->hidden);
    }
    if (which == MT_OUTPUT_WEIGHT && copy) {
        row->counts_in_norm = false;
        row->writes = false;
    }
}

static void add_outer(builder *b, mt_outer_param which)
{
    const mt_model_config *c = b->c;
    mt_grad_sum rows_sum = b->p->sequence_parallel && b->p->tp > 1 ? MT_SUM_TP : MT_SUM_NONE;
    mt_init gamma = c->norm_one_plus_gamma ? MT_INIT_ZERO : MT_INIT_ONE;
    mt_init weight = c->init_xavier ? MT_INIT_XAVIER : MT_INIT_NORMAL;
    /* Megatron-LM's rule: embeddings follow the matrices unless they have a deviation of their own. */
    mt_init table = c->init_xavier && c->embedding_init_std == c->init_std ? MT_INIT_XAVIER : MT_INIT_NORMAL;
    int64_t C = c->hidden;
    bool embedding = mt_has_embedding(b->p), head = mt_has_head(b->p), both = embedding && head;
    /* A tied output layer is the embedding under its own name: the last stage of a pipeline holds a copy, which starts
     * from the same numbers and stays equal because both get the summed gradient. */
    bool copy = c->tied && head && !both;
    const spec specs[MT_OUTER_PARAMS] = {
        [MT_WORD_EMBEDDINGS] = {"embedding.word_embeddings.weight",
                                {c->padded_vocab, C},
                                ROWS,
                                table,
                                c->embedding_init_std,
                                true,
                                embedding,
                                MT_SUM_NONE},
        [MT_POSITION_EMBEDDINGS] = {"embedding.position_embeddings.weight",
                                    {c->max_positions, C},
                                    WHOLE,
                                    table,
                                    c->embedding_init_std,
                                    true,
                                    embedding && c->position == MT_POSITION_LEARNED,
                                    rows_sum},
        [MT_FINAL_GAMMA] = {"decoder.final_layernorm.weight", {C}, WHOLE, gamma, 0, false, head, rows_sum},
        [MT_FINAL_BETA] = {"decoder.final_layernorm.bias",
                           {C},
                           WHOLE,
                           MT_INIT_ZERO,
                           0,
                           false,
                           head && c->norm == LY_LAYERNORM,
                           rows_sum},
        [MT_OUTPUT_WEIGHT] = {c->tied ? "embedding.word_embeddings.weight" : "output_layer.weight",
                              {c->padded_vocab, C},
                              ROWS,
                              c->tied ? table : weight,
                              c->tied ? c->embedding_init_std : c->init_std,
                              true,
                              c->tied ? copy : head,
                              MT_SUM_NONE},
    };
    mt_outer_param number = which == MT_OUTPUT_WEIGHT && c->tied ? MT_WORD_EMBEDDINGS : which;
    int row = add_row(b, &specs[which], -1, OUTER_STREAM + (uint32_t)number);
    if (row >= 0) {
        mark_outer(c, which, copy, &b->out->rows[row]);
    }
    b->out->outer[which] = which == MT_OUTPUT_WEIGHT && c->tied && both ? b->out->outer[MT_WORD_EMBEDDINGS] : row;
}

static void add_outer_unit(builder *b, mt_outer_param first, mt_outer_param last)
{
    begin_unit(b);
    for (int which = (int)first; which <= (int)last; which++) {
        add_outer(b, (mt_outer_param)which);
    }
    end_unit(b);
}

mc_status mt_params_create(const mt_model_config *c, const mt_place *p, mt_params *params_out)
{
    mt_params out = {.n_layers = p->n_layers};
    builder b = {.c = c, .p = p, .out = &out, .cap_rows = p->n_layers * MT_BLOCK_PARAMS + MT_OUTER_PARAMS};
    mc_status st;
    MC_TRY_GOTO(st, MC_NEW_N(&out.rows, b.cap_rows, "parameter table"), undo_all);
    MC_TRY_GOTO(st, MC_NEW_N(&out.block, p->n_layers, "parameter table"), undo_all);
    MC_TRY_GOTO(st, MC_NEW_N(&out.units, p->n_layers + MT_OUTER_PARAMS, "parameter table"), undo_all);
    add_outer_unit(&b, MT_WORD_EMBEDDINGS, MT_WORD_EMBEDDINGS);
    add_outer_unit(&b, MT_POSITION_EMBEDDINGS, MT_POSITION_EMBEDDINGS);
    out.first_block_unit = out.n_units;
    for (int i = 0; i < p->n_layers; i++) {
        begin_unit(&b);
        add_block(&b, i);
        end_unit(&b);
    }
    add_outer_unit(&b, MT_FINAL_GAMMA, MT_FINAL_BETA);
    add_outer_unit(&b, MT_OUTPUT_WEIGHT, MT_OUTPUT_WEIGHT);
    *params_out = out;
    return MC_OK;
undo_all:
    mt_params_destroy(&out);
    return st;
}

void mt_params_destroy(mt_params *params)
{
    mc_free(params->rows);
    mc_free(params->block);
    mc_free(params->units);
    *params = (mt_params){0};
}

int64_t mt_params_count(const mt_model_config *c, bool real_vocab)
{
    int64_t C = c->hidden, H = c->head_dim, V = real_vocab ? c->vocab : c->padded_vocab;
    int64_t norm = c->norm == LY_LAYERNORM ? 2 : 1, bias = c->linear_bias;
    int64_t qkv = (int64_t)(c->heads + 2 * c->groups) * H, fc1 = mt_fc1_cols(c);
    int64_t block = 2 * norm * C + qkv * C + (bias || c->qkv_bias ? qkv : 0) + (c->qk_norm ? 2 * norm * H : 0) +
                    C * c->heads * H + bias * C + fc1 * C + bias * fc1 + C * c->ffn + bias * C;
    int64_t outer =
        V * C * (c->tied ? 1 : 2) + (c->position == MT_POSITION_LEARNED ? c->max_positions * C : 0) + norm * C;
    return block * c->n_layers + outer;
}

mc_tensor mt_params_view(const mt_params *params, int row, mc_tensor slab)
{
    if (row < 0) {
        return (mc_tensor){0};
    }
    const mt_param *r = &params->rows[row];
    void *data = (char *)slab.data + (size_t)r->offset * mc_dtype_bytes(slab.dtype);
    return r->n_dims == 2 ? mc_tensor_2d(data, slab.dtype, r->local_dims[0], r->local_dims[1])
                          : mc_tensor_1d(data, slab.dtype, r->local_dims[0]);
}

bool mt_params_clip(const mt_param *row, int64_t from, int64_t to, int64_t begin, int64_t end, int64_t *lo_out,
                    int64_t *hi_out)
{
    int64_t lo = row->offset + from, hi = row->offset + to;
    *lo_out = lo > begin ? lo : begin;
    *hi_out = hi < end ? hi : end;
    return *lo_out < *hi_out;
}

/* `count` values from global element `first` on. */
static void init_run(const mt_param *r, uint32_t seed, int64_t first, int64_t count, float *out)
{
    if (r->init == MT_INIT_NORMAL) {
        mc_rng_normal(seed, r->init_stream, (uint64_t)first, count, r->init_std, out);
    } else if (r->init == MT_INIT_XAVIER) {
        mc_rng_uniform_fill(seed, r->init_stream, (uint64_t)first, count, r->init_std, out);
    } else {
        for (int64_t i = 0; i < count; i++) {
            out[i] = r->init == MT_INIT_ONE ? 1.0f : 0.0f;
        }
    }
}

/* The same into memory of any float type, from its element `at` on. */
static void init_elems(const mt_param *r, uint32_t seed, int64_t first, int64_t count, mc_tensor part, int64_t at,
                       float *buffer)
{
    for (int64_t done = 0; done < count; done += INIT_CHUNK_ELEMS) {
        int64_t n = count - done < INIT_CHUNK_ELEMS ? count - done : INIT_CHUNK_ELEMS;
        uint16_t *half = (uint16_t *)part.data + at + done;
        float *out = part.dtype == MC_F32 ? (float *)part.data + at + done : buffer;
        init_run(r, seed, first + done, n, out);
        for (int64_t i = 0; part.dtype != MC_F32 && i < n; i++) {
            half[i] = part.dtype == MC_BF16 ? mc_bf16_from_f32(out[i]) : mc_f16_from_f32(out[i]);
        }
    }
}

typedef struct init_job {
    const mt_param *row;
    uint32_t seed;
    mc_tensor part;
    int64_t part0;    /* slab element that `part` starts with */
    int64_t from, to; /* elements of the row's local tensor, flat */
} init_job;

/* Elements [from, to) of the local tensor, a run for each of its rows; a 1-D tensor is one column. */
static void init_range(const init_job *j, int64_t from, int64_t to, float *buffer)
{
    const mt_param *r = j->row;
    int64_t cols = mt_param_cols(r), at[2];
    while (from < to) {
        int64_t row_end = (from / cols + 1) * cols, end = row_end < to ? row_end : to;
        mt_param_global(r, from, at);
        init_elems(r, j->seed, at[0] * mt_param_global_cols(r) + at[1], end - from, j->part,
                   r->offset + from - j->part0, buffer);
        from = end;
    }
}

static void init_task(void *arg, int task, int thread, void *scratch)
{
    (void)thread;
    const init_job *job = arg;
    int64_t from = job->from + (int64_t)task * INIT_CHUNK_ELEMS, to = from + INIT_CHUNK_ELEMS;
    init_range(job, from, to < job->to ? to : job->to, scratch);
}

void mt_params_init(const mt_params *params, uint32_t seed, int64_t begin, mc_tensor part, mc_pool *pool)
{
    MC_ASSERT(part.dtype == MC_F32 || part.dtype == MC_BF16 || part.dtype == MC_F16);
    MC_ASSERT(part.dtype == MC_F32 || mc_pool_scratch_bytes(pool) >= INIT_CHUNK_ELEMS * sizeof(float));
    for (int i = 0; i < params->n_rows; i++) {
        const mt_param *r = &params->rows[i];
        int64_t lo, hi;
        if (mt_params_clip(r, 0, mt_param_elems(r), begin, begin + part.dims[0], &lo, &hi)) {
            init_job job = {r, seed, part, begin, lo - r->offset, hi - r->offset};
            mc_pool_run(pool, (int)((hi - lo + INIT_CHUNK_ELEMS - 1) / INIT_CHUNK_ELEMS), init_task, &job);
        }
    }
}
