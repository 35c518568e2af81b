#include "megac/train/optimizer.h"

#include <math.h>

#include "megac/base/alloc.h"
#include "megac/train/trace.h"

static int64_t row_elems(const mt_param *r)
{
    return r->local_dims[0] * (r->n_dims == 2 ? r->local_dims[1] : 1);
}

/* Elements of a row before its second range: query rows, where key/value rows are replicated. */
static int64_t own_elems(const mt_param *r)
{
    return r->ranges[0].count * (r->n_dims == 2 ? r->local_dims[1] : 1);
}

static int count_segments(const mt_params *p)
{
    int n = 0;
    for (int i = 0; i < p->n_rows; i++) {
        n += p->rows[i].grad_sum == MT_SUM_KV_REPLICAS ? 2 : 1;
    }
    return n;
}

static mc_status upload_segments(mt_optimizer *o)
{
    mt_stage *s = o->stage;
    return s->dev->ops->copy(s->dev, o->device_segments, o->segments, (size_t)o->n_segments * sizeof *o->segments,
                             s->ly.stream);
}

/* Query rows count once; replicated key and value rows belong to the first replica in the norm. */
static void fill_segments(mt_optimizer *o)
{
    const mt_params *p = &o->stage->params;
    bool first_replica = o->stage->x.heads.replica == 0;
    for (int i = 0, n = 0; i < p->n_rows; i++) {
        const mt_param *r = &p->rows[i];
        bool replicated = r->grad_sum == MT_SUM_KV_REPLICAS;
        ly_segment s = {
            .begin = r->offset,
            .end = r->offset + (replicated ? own_elems(r) : row_elems(r)),
            .lr_mult = 1,
            .decay_mult = r->decay ? 1.0f : 0.0f,
            .norm_weight = r->counts_in_norm ? 1.0f : 0.0f,
        };
        o->segments[n++] = s;
        if (replicated) {
            s.begin = s.end;
            s.end = r->offset + row_elems(r);
            s.norm_weight = first_replica ? s.norm_weight : 0.0f;
            o->segments[n++] = s;
        }
    }
}

/* The tables' memory; their values once it is there. */
static mc_status make_segments(mt_optimizer *o)
{
    mt_arenas *a = o->stage->arenas;
    o->n_segments = count_segments(&o->stage->params);
    size_t bytes = (size_t)o->n_segments * sizeof *o->segments;
    o->segments = mc_arena_take(&a->pinned, bytes);
    o->device_segments = mc_arena_take(&a->process, bytes);
    if (!a->pinned.bound) {
        return MC_OK;
    }
    fill_segments(o);
    return upload_segments(o);
}

static int64_t packed_elems(const mt_params *p)
{
    int64_t n = 0;
    for (int i = 0; i < p->n_rows; i++) {
        n += p->rows[i].grad_sum == MT_SUM_TP ? row_elems(&p->rows[i]) : 0;
    }
    return n;
}

/* Moments start at 0, as the CPU's fresh pages do already: the first update touches those, in parallel. */
static mc_status clear_moments(const mt_optimizer *o)
{
    const mt_stage *s = o->stage;
    const mc_tensor both[2] = {o->m, o->v};
    for (int i = 0; i < 2 && s->arenas->optimizer.bound && !s->dev->ops->host_memory; i++) {
        if (mc_tensor_present(both[i])) {
            MC_TRY(s->dev->ops->clear(s->dev, both[i].data, mc_tensor_bytes(both[i]), s->ly.stream));
        }
    }
    return MC_OK;
}

mc_status mt_optimizer_create(const mt_optimizer_config *config, mt_stage *stage, const mc_comm *dp,
                              const mt_grad_comms *comms, int64_t bucket_elems, mt_optimizer **optimizer_out)
{
    mt_optimizer *o;
    mc_status st;
    MC_TRY(MC_NEW(&o, "optimizer"));
    o->config = *config;
    o->stage = stage;
    o->comms = *comms;
    MC_TRY_GOTO(st, make_segments(o), undo_optimizer);
    MC_TRY_GOTO(st, mt_data_parallel_init(&o->dp, dp, &stage->params, stage->grad_slab, bucket_elems), undo_optimizer);
    mc_arena *arena = &stage->arenas->optimizer;
    int64_t n = stage->params.slab_elems, packed = packed_elems(&stage->params);
    if (config->kind == MT_ADAM || config->momentum > 0) {
        o->m = mc_arena_take_1d(arena, MC_F32, n);
    }
    if (config->kind == MT_ADAM) {
        o->v = mc_arena_take_1d(arena, MC_F32, n);
    }
    if (packed > 0) {
        o->sum_pack = mc_arena_take_1d(&stage->arenas->grads, MC_F32, packed);
    }
    o->norm_out = mc_arena_take_1d(&stage->arenas->process, MC_F64, 1);
    o->host_norm = mc_arena_take_1d(&stage->arenas->pinned, MC_F64, 1);
    MC_TRY_GOTO(st, clear_moments(o), undo_optimizer);
    *optimizer_out = o;
    return MC_OK;
undo_optimizer:
    mt_optimizer_destroy(o);
    return st;
}

void mt_optimizer_destroy(mt_optimizer *o)
{
    if (!o) {
        return;
    }
    mt_data_parallel_fini(&o->dp);
    mc_free(o);
}

/* Copies the tp-summed gradients into the pack, or back. */
static mc_status pack(mt_optimizer *o, bool back)
{
    mt_stage *s = o->stage;
    int64_t at = 0;
    for (int i = 0; i < s->params.n_rows; i++) {
        const mt_param *r = &s->params.rows[i];
        if (r->grad_sum != MT_SUM_TP) {
            continue;
        }
        int64_t n = row_elems(r);
        mc_tensor grad = mc_tensor_slice(s->grad_slab, 0, r->offset, n),
                  packed = mc_tensor_slice(o->sum_pack, 0, at, n);
        MC_TRY(s->dev->ops->copy(s->dev, back ? grad.data : packed.data, back ? packed.data : grad.data,
                                 mc_tensor_bytes(grad), s->ly.stream));
        at += n;
    }
    return MC_OK;
}

static mc_status sum_kv_replicas(mt_optimizer *o)
{
    mt_stage *s = o->stage;
    for (int i = 0; i < s->params.n_rows; i++) {
        const mt_param *r = &s->params.rows[i];
        if (r->grad_sum == MT_SUM_KV_REPLICAS) {
            int64_t own = own_elems(r);
            mc_tensor kv = mc_tensor_slice(s->grad_slab, 0, r->offset + own, row_elems(r) - own);
            MC_TRY(mc_comm_all_reduce(o->comms.kv_replicas, kv, kv, MC_SUM));
        }
    }
    return MC_OK;
}

/* The output layer's gradient on the last stage and the embedding's on the first become their sum on both. */
static mc_status sum_tied(mt_optimizer *o)
{
    mt_stage *s = o->stage;
    if (!s->c->tied || s->place.pp == 1 || !(mt_has_embedding(&s->place) || mt_has_head(&s->place))) {
        return MC_OK;
    }
    mc_tensor grad = mt_has_embedding(&s->place) ? s->embedding.dtable : s->head.dweight;
    return mc_comm_all_reduce(o->comms.embedding, grad, grad, MC_SUM);
}

static mc_status finish_reductions(mt_optimizer *o)
{
    MC_TRY(mt_data_parallel_finish(&o->dp));
    MC_TRY(sum_tied(o));
    if (mc_tensor_present(o->sum_pack)) {
        MC_TRY(pack(o, false));
        MC_TRY(mc_comm_all_reduce(o->comms.tp, o->sum_pack, o->sum_pack, MC_SUM));
        MC_TRY(pack(o, true));
    }
    return sum_kv_replicas(o);
}

static mc_status square_norm(mt_optimizer *o)
{
    mt_stage *s = o->stage;
    ly_sq_norm norm = {s->grad_slab, o->norm_out, o->device_segments, o->n_segments};
    return s->ly.ops->sq_norm(&s->ly, &norm);
}

/* One exchange for both: every parameter counts once over tp and pp (data-parallel ranks hold the same sums), and every
 * micro-batch's loss once, on the last stage's first tensor-parallel rank. */
static mc_status global_sums(mt_optimizer *o, int n_micro, double *loss_out, double *sq_norm_out)
{
    mt_stage *s = o->stage;
    double sums[2];
    MC_TRY(square_norm(o));
    MC_TRY(s->dev->ops->copy(s->dev, o->host_norm.data, o->norm_out.data, mc_tensor_bytes(o->norm_out), s->ly.stream));
    MC_TRY(mt_stage_fetch_losses(s, n_micro));
    MC_TRY(s->dev->ops->stream_sync(s->dev, s->ly.stream));
    sums[0] = s->place.tp_rank == 0 ? mt_stage_loss_sum(s, n_micro) : 0;
    sums[1] = s->place.dp_rank == 0 ? *(const double *)o->host_norm.data : 0;
    mc_tensor t = mc_tensor_1d(sums, MC_F64, 2);
    MC_TRY(mc_comm_all_reduce(o->comms.world, t, t, MC_SUM));
    *loss_out = sums[0];
    *sq_norm_out = sums[1];
    return MC_OK;
}

static mc_status update(mt_optimizer *o, double lr, double weight_decay, double grad_scale)
{
    mt_stage *s = o->stage;
    mc_tensor model = s->main_slab.data == s->param_slab.data ? (mc_tensor){0} : s->param_slab;
    if (o->config.kind == MT_SGD) {
        ly_sgd a = {
            .param = s->main_slab,
            .grad = s->grad_slab,
            .m = o->m,
            .model = model,
            .segments = o->device_segments,
            .n_segments = o->n_segments,
            .lr = (float)lr,
            .momentum = o->config.momentum,
            .weight_decay = (float)weight_decay,
            .grad_scale = (float)grad_scale,
        };
        return s->ly.ops->sgd(&s->ly, &a);
    }
    ly_adamw a = {
        .param = s->main_slab,
        .grad = s->grad_slab,
        .m = o->m,
        .v = o->v,
        .model = model,
        .segments = o->device_segments,
        .n_segments = o->n_segments,
        .lr = (float)lr,
        .beta1 = o->config.beta1,
        .beta2 = o->config.beta2,
        .eps = o->config.eps,
        .weight_decay = (float)weight_decay,
        .grad_scale = (float)grad_scale,
        .step = o->steps,
        .clear_grad = 1,
    };
    MC_TRY(s->ly.ops->adamw(&s->ly, &a));
    s->grads_clear = true;
    return MC_OK;
}

mc_status mt_optimizer_dry_run(mt_optimizer *o)
{
    MC_TRY(square_norm(o));
    return update(o, 0, 0, 1);
}

/* Embedding and output layer may have a learning rate of their own: segments carry the ratio to the rate that comes
 * out, which is `lr` unless that is 0. The host's table may be rewritten: global_sums waited for every earlier copy of
 * it. */
static mc_status set_lr_ratio(mt_optimizer *o, double lr, double decoupled_lr, double *base_out)
{
    double base = lr > 0 ? lr : decoupled_lr;
    bool changed = false;
    float own = base > 0 ? (float)(decoupled_lr / base) : 1, others = lr > 0 ? 1 : 0;
    const mt_params *p = &o->stage->params;
    for (int i = 0, seg = 0; i < p->n_rows; i++) {
        for (int n = p->rows[i].grad_sum == MT_SUM_KV_REPLICAS ? 2 : 1; n > 0; n--) {
            float mult = p->rows[i].decoupled_lr ? own : others;
            changed = changed || o->segments[seg].lr_mult != mult;
            o->segments[seg++].lr_mult = mult;
        }
    }
    *base_out = base;
    return changed ? upload_segments(o) : MC_OK;
}

mc_status mt_optimizer_step(mt_optimizer *o, double lr, double decoupled_lr, double weight_decay, int n_micro,
                            mt_step_result *result_out)
{
    mt_stage *s = o->stage;
    double sq_norm, loss, base;
    MC_TRY(finish_reductions(o));
    MC_TRY(mt_trace_gradients(s->trace, &s->params, &s->place, s->c->vocab, s->x.heads.replica == 0, s->grad_slab));
    MC_TRY(global_sums(o, n_micro, &loss, &sq_norm));
    double norm = sqrt(sq_norm), clip = o->config.clip_grad;
    *result_out = (mt_step_result){.loss_sum = loss, .grad_norm = norm, .skipped = !isfinite(norm)};
    if (result_out->skipped) {
        return MC_OK;
    }
    o->steps++;
    MC_TRY(set_lr_ratio(o, lr, decoupled_lr, &base));
    return update(o, base, weight_decay, clip > 0 && norm > clip ? clip / (norm + 1e-6) : 1.0);
}
