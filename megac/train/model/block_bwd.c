#include <math.h>

#include "megac/base/rng.h"
#include "megac/train/model/block.h"

/* Gradient of the branch that was added to the residual: dropout mask . dh where there is dropout (scratch), else dh
 * itself; and the branch bias's gradient. Only the MLP branch needs this call: the attention branch's mask rides on
 * norm2's backward. */
static mc_status branch_grad(const mt_block_ctx *x, const mt_block *b, const mt_micro *m, mc_tensor dh,
                             mc_tensor *dy_out)
{
    const ly_ctx *ly = x->tp.ly;
    ly_norm_bwd a = {
        .kind = x->c->norm,
        .dskip = dh,
        .dh = dh,
        .dy_bias = b->d[MT_FC2_BIAS],
        .dropout = mt_i_dropout(x, b, m, MC_RNG_DROPOUT_MLP_OUT),
    };
    if (a.dropout.p > 0) {
        a.dy = mc_arena_take_2d(x->tp.scratch, x->c->dtype, dh.dims[0], dh.dims[1]);
    }
    *dy_out = a.dropout.p > 0 ? a.dy : dh;
    return a.dropout.p > 0 || mc_tensor_present(a.dy_bias) ? ly->ops->norm_bwd(ly, &a) : MC_OK;
}

/* The forward's fc1 again, from h_mid: its norm reads what was rounded to the stash, so every bit is the same. */
static mc_status fc1_again(const mt_block_ctx *x, const mt_block *b, const mt_block_stash *s)
{
    const ly_ctx *ly = x->tp.ly;
    size_t mark = mc_arena_mark(x->tp.scratch);
    ly_norm_fwd norm = {
        .kind = x->c->norm,
        .one_plus_gamma = x->c->norm_one_plus_gamma,
        .eps = x->c->norm_eps,
        .x = s->h_mid,
        .gamma = b->p[MT_LN2_GAMMA],
        .beta = b->p[MT_LN2_BETA],
        .out = mc_arena_take_2d(x->tp.scratch, x->c->dtype, s->h_mid.dims[0], s->h_mid.dims[1]),
        .stats = s->stats2,
    };
    MC_TRY(ly->ops->norm_fwd(ly, &norm));
    MC_TRY(mt_i_fc1_fwd(x, b, s, norm.out));
    mc_arena_rewind(x->tp.scratch, mark);
    return MC_OK;
}

/* dh of h_out -> dh of h_mid (in place) and *dy_out, the gradient of the attention branch. */
static mc_status mlp_bwd(const mt_block_ctx *x, const mt_block *b, const mt_micro *m, const mt_block_stash *s,
                         mc_tensor dh, mc_tensor *dy_out)
{
    const ly_ctx *ly = x->tp.ly;
    mc_arena *scratch = x->tp.scratch;
    mc_tensor dy2, dy2_full, n2_full;
    MC_TRY(x->recompute.mlp ? fc1_again(x, b, s) : MC_OK);
    MC_TRY(branch_grad(x, b, m, dh, &dy2));
    MC_TRY(tp_gather(&x->tp, dy2, &dy2_full));
    mc_tensor act = mc_arena_take_2d(scratch, x->c->dtype, s->fc1.dims[0], x->c->ffn / x->tp.comm->size);
    MC_TRY(tp_linear_bwd_input(&x->tp, dy2_full, b->p[MT_FC2_WEIGHT], act));
    /* act holds d(act) and becomes the activation again; fc1 becomes d(fc1). */
    MC_TRY(ly->ops->act_bwd(ly, &(ly_act_bwd){x->c->act, s->fc1, act, s->fc1, act}));
    MC_TRY(tp_linear_bwd_weight(&x->tp, dy2_full, act, b->d[MT_FC2_WEIGHT], (mc_tensor){0}));
    mc_tensor dn2 = mc_arena_take_2d(scratch, x->c->dtype, dh.dims[0], dh.dims[1]);
    mc_tensor n2 = mc_arena_take_2d(scratch, x->c->dtype, dh.dims[0], dh.dims[1]);
    MC_TRY(tp_col_linear_bwd_input(&x->tp, s->fc1, b->p[MT_FC1_WEIGHT], dn2));
    ly_norm_bwd norm = {
        .kind = x->c->norm,
        .one_plus_gamma = x->c->norm_one_plus_gamma,
        .dout = dn2,
        .h = s->h_mid,
        .stats = s->stats2,
        .gamma = b->p[MT_LN2_GAMMA],
        .beta = b->p[MT_LN2_BETA],
        .dskip = dh,
        .dh = dh,
        .out = n2,
        .dgamma = b->d[MT_LN2_GAMMA],
        .dbeta = b->d[MT_LN2_BETA],
        .dy_bias = b->d[MT_PROJ_BIAS],
        .dropout = mt_i_dropout(x, b, m, MC_RNG_DROPOUT_ATTENTION_OUT),
    };
    if (norm.dropout.p > 0) {
        norm.dy = *dy_out;
    } else {
        *dy_out = dh;
    }
    MC_TRY(ly->ops->norm_bwd(ly, &norm));
    MC_TRY(tp_gather(&x->tp, n2, &n2_full));
    return tp_linear_bwd_weight(&x->tp, s->fc1, n2_full, b->d[MT_FC1_WEIGHT], b->d[MT_FC1_BIAS]);
}

/* Back through the q and k norms: gradients of the normed heads become gradients of the raw ones, in place. */
static mc_status qk_norm_bwd(const mt_block_ctx *x, const mt_block *b, const mt_block_stash *s, mt_qkv_views d)
{
    const ly_ctx *ly = x->tp.ly;
    mt_qkv_views raw = mt_i_qkv_views(x, s->qkv_raw);
    ly_head_norm_bwd q = {
        .kind = x->c->norm,
        .one_plus_gamma = x->c->norm_one_plus_gamma,
        .dout = d.q,
        .x = raw.q,
        .stats = s->q_stats,
        .gamma = b->p[MT_Q_GAMMA],
        .dx = d.q,
        .dgamma = b->d[MT_Q_GAMMA],
        .dbeta = b->d[MT_Q_BETA],
    };
    ly_head_norm_bwd k = q;
    k.dout = k.dx = d.k;
    k.x = raw.k;
    k.stats = s->k_stats;
    k.gamma = b->p[MT_K_GAMMA];
    k.dgamma = b->d[MT_K_GAMMA];
    k.dbeta = b->d[MT_K_BETA];
    MC_TRY(ly->ops->head_norm_bwd(ly, &q));
    return ly->ops->head_norm_bwd(ly, &k);
}

/* dattn (R,Nl*H) -> dqkv (R,Q), the gradient of the QKV projection's output. */
static mc_status attention_core_bwd(const mt_block_ctx *x, const mt_block *b, const mt_micro *m,
                                    const mt_block_stash *s, mc_tensor dattn, mc_tensor dqkv)
{
    const ly_ctx *ly = x->tp.ly;
    mt_qkv_views views = mt_i_qkv_views(x, s->qkv), d = mt_i_qkv_views(x, dqkv);
    mc_tensor delta = mc_tensor_3d(mc_arena_take(x->tp.scratch, mc_tensor_bytes(s->lse)), MC_F32, s->lse.dims[0],
                                   s->lse.dims[1], s->lse.dims[2]);
    ly_attention_bwd a = {
        .q = views.q,
        .k = views.k,
        .v = x->c->qk_norm ? mt_i_qkv_views(x, s->qkv_raw).v : views.v,
        .out = mt_i_head_view(x, s->attn),
        .lse = s->lse,
        .dout = mt_i_head_view(x, dattn),
        .delta = delta,
        .dq = d.q,
        .dk = d.k,
        .dv = d.v,
        .seq_len = m->seq_len,
        .scale = 1.0f / sqrtf((float)x->c->head_dim),
        .window_left = x->c->window_left,
        .head0 = x->heads.head0,
        .dropout = mt_i_dropout(x, b, m, MC_RNG_DROPOUT_ATTENTION),
    };
    MC_TRY(ly->ops->attention_bwd(ly, &a));
    MC_TRY(mt_i_rope(x, m, d.q, true));
    MC_TRY(mt_i_rope(x, m, d.k, true));
    return x->c->qk_norm ? qk_norm_bwd(x, b, s, d) : MC_OK;
}

/* dh of h_mid (and dy, the gradient of the attention branch) -> dh of h_in, in place. */
static mc_status attention_bwd(const mt_block_ctx *x, const mt_block *b, const mt_micro *m, const mt_block_stash *s,
                               mc_tensor dh, mc_tensor dy)
{
    const ly_ctx *ly = x->tp.ly;
    mc_arena *scratch = x->tp.scratch;
    mc_tensor dy_full, n1_full;
    MC_TRY(x->recompute.core_attn ? mt_i_attention_core_fwd(x, b, m, s) : MC_OK);
    MC_TRY(tp_gather(&x->tp, dy, &dy_full));
    mc_tensor dattn = mc_arena_take_2d(scratch, x->c->dtype, s->attn.dims[0], s->attn.dims[1]);
    mc_tensor dqkv = mc_arena_take_2d(scratch, x->c->dtype, s->qkv.dims[0], s->qkv.dims[1]);
    MC_TRY(tp_linear_bwd_input(&x->tp, dy_full, b->p[MT_PROJ_WEIGHT], dattn));
    MC_TRY(tp_linear_bwd_weight(&x->tp, dy_full, s->attn, b->d[MT_PROJ_WEIGHT], (mc_tensor){0}));
    MC_TRY(attention_core_bwd(x, b, m, s, dattn, dqkv));
    mc_tensor dn1 = mc_arena_take_2d(scratch, x->c->dtype, dh.dims[0], dh.dims[1]);
    mc_tensor n1 = mc_arena_take_2d(scratch, x->c->dtype, dh.dims[0], dh.dims[1]);
    MC_TRY(tp_col_linear_bwd_input(&x->tp, dqkv, b->p[MT_QKV_WEIGHT], dn1));
    ly_norm_bwd norm = {
        .kind = x->c->norm,
        .one_plus_gamma = x->c->norm_one_plus_gamma,
        .dout = dn1,
        .h = s->h_in,
        .stats = s->stats1,
        .gamma = b->p[MT_LN1_GAMMA],
        .beta = b->p[MT_LN1_BETA],
        .dskip = dh,
        .dh = dh,
        .out = n1,
        .dgamma = b->d[MT_LN1_GAMMA],
        .dbeta = b->d[MT_LN1_BETA],
    };
    MC_TRY(ly->ops->norm_bwd(ly, &norm));
    MC_TRY(tp_gather(&x->tp, n1, &n1_full));
    return tp_linear_bwd_weight(&x->tp, dqkv, n1_full, b->d[MT_QKV_WEIGHT], b->d[MT_QKV_BIAS]);
}

mc_status mt_block_bwd(const mt_block_ctx *x, const mt_block *b, const mt_micro *m, const mt_block_stash *s,
                       mc_tensor dh)
{
    size_t mark = mc_arena_mark(x->tp.scratch);
    mc_tensor dy = {0};
    if (m->dropout && x->c->hidden_dropout > 0) {
        dy = mc_arena_take_2d(x->tp.scratch, x->c->dtype, dh.dims[0], dh.dims[1]);
    }
    size_t inner = mc_arena_mark(x->tp.scratch);
    MC_TRY(mlp_bwd(x, b, m, s, dh, &dy));
    mc_arena_rewind(x->tp.scratch, inner);
    MC_TRY(attention_bwd(x, b, m, s, dh, dy));
    mc_arena_rewind(x->tp.scratch, mark);
    return MC_OK;
}
