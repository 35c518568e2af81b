#include <math.h>

#include "megac/base/rng.h"
#include "megac/train/model/block.h"

/* Dims of a block's activations for R rows: shared by taking and viewing. */
static mt_block_stash stash_shapes(const mt_block_ctx *x, int64_t batch, int64_t seq_len)
{
    const mt_model_config *c = x->c;
    int64_t rows = batch * seq_len, local = tp_local_rows(&x->tp, rows), qkv = mt_qkv_cols(c, &x->heads);
    int64_t heads = (int64_t)x->heads.groups * x->heads.queries, tp = x->tp.comm->size;
    mt_block_stash s = {
        .stats1 = mc_tensor_2d(NULL, MC_F32, local, 2),
        .qkv = mc_tensor_2d(NULL, c->dtype, rows, qkv),
        .attn = mc_tensor_2d(NULL, c->dtype, rows, heads * c->head_dim),
        .lse = mc_tensor_3d(NULL, MC_F32, batch, heads, seq_len),
        .h_mid = mc_tensor_2d(NULL, c->dtype, local, c->hidden),
        .stats2 = mc_tensor_2d(NULL, MC_F32, local, 2),
        .fc1 = mc_tensor_2d(NULL, c->dtype, rows, mt_fc1_cols(c) / tp),
    };
    if (c->qk_norm) {
        s.qkv_raw = s.qkv;
        s.q_stats = mc_tensor_2d(NULL, MC_F32, rows * heads, 2);
        s.k_stats = mc_tensor_2d(NULL, MC_F32, rows * x->heads.groups, 2);
    }
    return s;
}

int mt_block_stash_tensors(const mt_block_ctx *x, mt_block_stash *s, bool lent, mc_tensor *out[MT_STASH_TENSORS])
{
    mc_tensor *all[MT_STASH_TENSORS] = {&s->stats1, &s->qkv, &s->attn,    &s->lse,     &s->h_mid,
                                        &s->stats2, &s->fc1, &s->qkv_raw, &s->q_stats, &s->k_stats};
    int n = 0;
    for (int i = 0; i < (x->c->qk_norm ? MT_STASH_TENSORS : 7); i++) {
        bool shared = (x->recompute.core_attn && (all[i] == &s->attn || all[i] == &s->lse)) ||
                      (x->recompute.mlp && all[i] == &s->fc1);
        if (!(lent && shared)) {
            out[n++] = all[i];
        }
    }
    return n;
}

void mt_block_stash_take(const mt_block_ctx *x, int64_t batch, mc_arena *arena, const mt_block_stash *shared,
                         mt_block_stash *stash_out)
{
    mt_block_stash s = stash_shapes(x, batch, x->c->seq_length);
    mc_tensor *own[MT_STASH_TENSORS];
    int n = mt_block_stash_tensors(x, &s, shared != NULL, own);
    for (int i = 0; i < n; i++) {
        own[i]->data = mc_arena_take(arena, mc_tensor_bytes(*own[i]));
    }
    if (shared && x->recompute.core_attn) {
        s.attn.data = shared->attn.data;
        s.lse.data = shared->lse.data;
    }
    if (shared && x->recompute.mlp) {
        s.fc1.data = shared->fc1.data;
    }
    *stash_out = s;
}

void mt_block_shared_take(const mt_block_ctx *x, int64_t batch, mc_arena *arena, mt_block_stash *shared_out)
{
    mt_block_stash s = stash_shapes(x, batch, x->c->seq_length);
    *shared_out = (mt_block_stash){0};
    if (x->recompute.core_attn) {
        shared_out->attn.data = mc_arena_take(arena, mc_tensor_bytes(s.attn));
        shared_out->lse.data = mc_arena_take(arena, mc_tensor_bytes(s.lse));
    }
    if (x->recompute.mlp) {
        shared_out->fc1.data = mc_arena_take(arena, mc_tensor_bytes(s.fc1));
    }
}

mt_block_stash mt_block_stash_view(const mt_block_ctx *x, const mt_block_stash *full, const mt_micro *m)
{
    mt_block_stash s = stash_shapes(x, m->batch, m->seq_len);
    s.h_in = mc_tensor_slice(full->h_in, 0, 0, tp_local_rows(&x->tp, m->batch * m->seq_len));
    s.stats1.data = full->stats1.data;
    s.qkv.data = full->qkv.data;
    s.qkv_raw.data = full->qkv_raw.data;
    s.q_stats.data = full->q_stats.data;
    s.k_stats.data = full->k_stats.data;
    s.attn.data = full->attn.data;
    s.lse.data = full->lse.data;
    s.h_mid.data = full->h_mid.data;
    s.stats2.data = full->stats2.data;
    s.fc1.data = full->fc1.data;
    return s;
}

/* View (R, G, r, H) of heads that start at column `first` of each group of `per_group` head slots. */
static mc_tensor heads_view(mc_tensor t, int64_t groups, int64_t per_group, int64_t first, int64_t count, int64_t size)
{
    mc_tensor v = {
        .data = (char *)t.data + (size_t)(first * size) * mc_dtype_bytes(t.dtype), .dtype = t.dtype, .n_dims = 4};
    const int64_t dims[] = {t.dims[0], groups, count, size}, strides[] = {t.strides[0], per_group * size, size, 1};
    for (int i = 0; i < 4; i++) {
        v.dims[i] = dims[i];
        v.strides[i] = strides[i];
    }
    return v;
}

mt_qkv_views mt_i_qkv_views(const mt_block_ctx *x, mc_tensor qkv)
{
    int64_t g = x->heads.groups, r = x->heads.queries, h = x->c->head_dim;
    return (mt_qkv_views){
        .q = heads_view(qkv, g, r + 2, 0, r, h),
        .k = heads_view(qkv, g, r + 2, r, 1, h),
        .v = heads_view(qkv, g, r + 2, r + 1, 1, h),
    };
}

mc_tensor mt_i_head_view(const mt_block_ctx *x, mc_tensor attn)
{
    return heads_view(attn, x->heads.groups, x->heads.queries, 0, x->heads.queries, x->c->head_dim);
}

ly_dropout mt_i_dropout(const mt_block_ctx *x, const mt_block *b, const mt_micro *m, mc_rng_kind site)
{
    float p = site == MC_RNG_DROPOUT_ATTENTION ? x->c->attention_dropout : x->c->hidden_dropout;
    return (ly_dropout){
        .p = m->dropout ? p : 0.0f,
        .seed = x->c->seed,
        .stream = mc_rng_stream(site, (uint32_t)b->layer),
        .sample0 = m->sample0,
        .row0 = tp_first_row(&x->tp, m->batch * m->seq_len),
        .seq_len = m->seq_len,
    };
}

mc_status mt_i_rope(const mt_block_ctx *x, const mt_micro *m, mc_tensor heads, bool inverse)
{
    if (!mc_tensor_present(x->rope_cos)) {
        return MC_OK;
    }
    bool gathered = m->cached && m->cached->next; /* row r of the tables is row r's */
    ly_rope a = {
        .x = heads,
        .cos = gathered ? m->cached->rope_cos : x->rope_cos,
        .sin = gathered ? m->cached->rope_sin : x->rope_sin,
        .seq_len = m->seq_len,
        .interleaved = x->c->rope.interleaved,
        .inverse = inverse,
    };
    return x->tp.ly->ops->rope(x->tp.ly, &a);
}

/* Norms of the query and key heads: raw buffer -> qkv. v is read from the raw buffer by attention. */
static mc_status qk_norm_fwd(const mt_block_ctx *x, const mt_block *b, const mt_block_stash *s)
{
    const ly_ctx *ly = x->tp.ly;
    mt_qkv_views raw = mt_i_qkv_views(x, s->qkv_raw), out = mt_i_qkv_views(x, s->qkv);
    ly_head_norm_fwd q = {
        .kind = x->c->norm,
        .one_plus_gamma = x->c->norm_one_plus_gamma,
        .eps = x->c->norm_eps,
        .x = raw.q,
        .gamma = b->p[MT_Q_GAMMA],
        .beta = b->p[MT_Q_BETA],
        .out = out.q,
        .stats = s->q_stats,
    };
    ly_head_norm_fwd k = q;
    k.x = raw.k;
    k.gamma = b->p[MT_K_GAMMA];
    k.beta = b->p[MT_K_BETA];
    k.out = out.k;
    k.stats = s->k_stats;
    MC_TRY(ly->ops->head_norm_fwd(ly, &q));
    return ly->ops->head_norm_fwd(ly, &k);
}

/* Keys and values join those of earlier tokens, which the queries of next tokens see. */
static mc_status attend_cached(const mt_block_ctx *x, const mt_block *b, const mt_cached_rows *c,
                               const ly_attention_fwd *a)
{
    const ly_ctx *ly = x->tp.ly;
    MC_TRY(ly->ops->kv_store(ly, &(ly_kv_store){a->k, a->v, c->places, b->k_cache, b->v_cache}));
    if (!c->next) {
        return ly->ops->attention_fwd(ly, a);
    }
    ly_attention_decode next = {
        .q = a->q,
        .places = c->places,
        .k_cache = b->k_cache,
        .v_cache = b->v_cache,
        .out = a->out,
        .scale = a->scale,
        .window_left = a->window_left,
    };
    return ly->ops->attention_decode(ly, &next);
}

/* n1 -> attention output (R,Nl*H) in the stash. */
static mc_status attention_fwd(const mt_block_ctx *x, const mt_block *b, const mt_micro *m, const mt_block_stash *s,
                               mc_tensor n1)
{
    mc_tensor full;
    MC_TRY(tp_gather(&x->tp, n1, &full));
    MC_TRY(tp_linear_fwd(&x->tp, full, b->p[MT_QKV_WEIGHT], b->p[MT_QKV_BIAS], x->c->qk_norm ? s->qkv_raw : s->qkv));
    if (x->c->qk_norm) {
        MC_TRY(qk_norm_fwd(x, b, s));
    }
    mt_qkv_views views = mt_i_qkv_views(x, s->qkv);
    MC_TRY(mt_i_rope(x, m, views.q, false));
    MC_TRY(mt_i_rope(x, m, views.k, false));
    return mt_i_attention_core_fwd(x, b, m, s);
}

/* qkv of the stash -> attn and lse of it. */
mc_status mt_i_attention_core_fwd(const mt_block_ctx *x, const mt_block *b, const mt_micro *m, const mt_block_stash *s)
{
    const ly_ctx *ly = x->tp.ly;
    mt_qkv_views views = mt_i_qkv_views(x, s->qkv);
    ly_attention_fwd a = {
        .q = views.q,
        .k = views.k,
        .v = x->c->qk_norm ? mt_i_qkv_views(x, s->qkv_raw).v : views.v,
        .out = mt_i_head_view(x, s->attn),
        .lse = s->lse,
        .seq_len = m->seq_len,
        .scale = 1.0f / sqrtf((float)x->c->head_dim),
        .window_left = x->c->window_left,
        .head0 = x->heads.head0,
        .dropout = mt_i_dropout(x, b, m, MC_RNG_DROPOUT_ATTENTION),
    };
    return m->cached ? attend_cached(x, b, m->cached, &a) : ly->ops->attention_fwd(ly, &a);
}

/* h_in -> h_mid, n2. */
static mc_status attention_half(const mt_block_ctx *x, const mt_block *b, const mt_micro *m, const mt_block_stash *s,
                                mc_tensor n2)
{
    const ly_ctx *ly = x->tp.ly;
    mc_tensor n1 = mc_arena_take_2d(x->tp.scratch, x->c->dtype, s->h_in.dims[0], s->h_in.dims[1]);
    ly_norm_fwd norm1 = {
        .kind = x->c->norm,
        .one_plus_gamma = x->c->norm_one_plus_gamma,
        .eps = x->c->norm_eps,
        .x = s->h_in,
        .gamma = b->p[MT_LN1_GAMMA],
        .beta = b->p[MT_LN1_BETA],
        .out = n1,
        .stats = s->stats1,
    };
    MC_TRY(ly->ops->norm_fwd(ly, &norm1));
    MC_TRY(attention_fwd(x, b, m, s, n1));
    mc_tensor y = n1; /* n1 has been used: its memory serves the output projection */
    MC_TRY(tp_row_linear_fwd(&x->tp, s->attn, b->p[MT_PROJ_WEIGHT], y));
    ly_norm_fwd norm2 = norm1;
    norm2.y = y;
    norm2.y_bias = b->p[MT_PROJ_BIAS];
    norm2.h = s->h_mid;
    norm2.gamma = b->p[MT_LN2_GAMMA];
    norm2.beta = b->p[MT_LN2_BETA];
    norm2.out = n2;
    norm2.stats = s->stats2;
    norm2.dropout = mt_i_dropout(x, b, m, MC_RNG_DROPOUT_ATTENTION_OUT);
    return ly->ops->norm_fwd(ly, &norm2);
}

/* n2 -> fc1 of the stash. */
mc_status mt_i_fc1_fwd(const mt_block_ctx *x, const mt_block *b, const mt_block_stash *s, mc_tensor n2)
{
    mc_tensor full;
    MC_TRY(tp_gather(&x->tp, n2, &full));
    return tp_linear_fwd(&x->tp, full, b->p[MT_FC1_WEIGHT], b->p[MT_FC1_BIAS], s->fc1);
}

/* n2, h_mid -> h_out. */
static mc_status mlp_half(const mt_block_ctx *x, const mt_block *b, const mt_micro *m, const mt_block_stash *s,
                          mc_tensor n2, mc_tensor h_out)
{
    const ly_ctx *ly = x->tp.ly;
    mc_tensor act = mc_arena_take_2d(x->tp.scratch, x->c->dtype, s->fc1.dims[0], x->c->ffn / x->tp.comm->size);
    MC_TRY(mt_i_fc1_fwd(x, b, s, n2));
    MC_TRY(ly->ops->act_fwd(ly, &(ly_act_fwd){x->c->act, s->fc1, act}));
    mc_tensor y = n2;
    MC_TRY(tp_row_linear_fwd(&x->tp, act, b->p[MT_FC2_WEIGHT], y));
    ly_norm_fwd add = {
        .kind = x->c->norm,
        .x = s->h_mid,
        .y = y,
        .y_bias = b->p[MT_FC2_BIAS],
        .h = h_out,
        .dropout = mt_i_dropout(x, b, m, MC_RNG_DROPOUT_MLP_OUT),
    };
    return ly->ops->norm_fwd(ly, &add);
}

mc_status mt_block_fwd(const mt_block_ctx *x, const mt_block *b, const mt_micro *m, const mt_block_stash *s,
                       mc_tensor h_out)
{
    size_t mark = mc_arena_mark(x->tp.scratch);
    mc_tensor n2 = mc_arena_take_2d(x->tp.scratch, x->c->dtype, s->h_in.dims[0], s->h_in.dims[1]);
    size_t inner = mc_arena_mark(x->tp.scratch);
    MC_TRY(attention_half(x, b, m, s, n2));
    mc_arena_rewind(x->tp.scratch, inner);
    MC_TRY(mc_tensor_present(h_out) ? mlp_half(x, b, m, s, n2, h_out) : mt_i_fc1_fwd(x, b, s, n2));
    mc_arena_rewind(x->tp.scratch, mark);
    return MC_OK;
}
