#include "megac/train/optim/optimizer.h"

#include <math.h>

#include "megac/base/alloc.h"
#include "megac/train/model/trace.h"

/* Elements of a row before its second range, if it has one: query rows, where key/value rows are replicated; gates. */
static int64_t own_elems(const mt_param *r)
{
    return r->ranges[0].count * mt_param_cols(r);
}

/* ---- segments: which elements of a piece of the slab are whose ---- */

static mc_status upload_segments(mt_optimizer *o)
{
    mt_stage *s = o->stage;
    return s->dev->ops->copy(s->dev, o->device_segments, o->segments, (size_t)o->n_segments * sizeof *o->segments,
                             s->ly.stream);
}

/* Where element `flat` of a row's local tensor, and those that follow it in its range, stand in the global tensor. */
static void locate(const mt_param *r, int64_t flat, ly_segment *out)
{
    int64_t at[2];
    mt_param_global(r, flat, at);
    out->tensor = r->init_stream & 0xffffff;
    out->global0 = at[0] * mt_param_global_cols(r) + at[1];
    out->cols = mt_param_cols(r);
    out->gap = mt_param_global_cols(r) - out->cols;
    out->col0 = flat % out->cols;
}

/* Elements [from, to) of a row, all of one range, as one segment of the piece, which starts at slab element `begin`;
 * nothing where the piece does not hold them. Returns the number of segments; only that where `out` is NULL. */
static int row_segment(const mt_optimizer *o, const mt_param *r, int64_t from, int64_t to, bool counts, int64_t begin,
                       int64_t elems, ly_segment *out)
{
    int64_t lo, hi;
    if (!mt_params_clip(r, from, to, begin, begin + elems, &lo, &hi)) {
        return 0;
    }
    if (out) {
        *out = (ly_segment){
            .begin = lo - begin,
            .end = hi - begin,
            .lr_mult = o->lr_mult[r->decoupled_lr],
            .decay_mult = r->decay ? 1.0f : 0.0f,
            .norm_weight = r->counts_in_norm && counts ? 1.0f : 0.0f,
        };
        locate(r, lo - r->offset, out);
    }
    return 1;
}

/* Segments of the piece [begin, begin + elems) of the slab. Query rows count once in the norm; replicated key and value
 * rows belong to the first replica. */
static int piece_segments(const mt_optimizer *o, int64_t begin, int64_t elems, ly_segment *out)
{
    const mt_params *p = &o->stage->params;
    bool first_replica = o->stage->x.heads.replica == 0;
    int n = 0;
    for (int i = 0; i < p->n_rows; i++) {
        const mt_param *r = &p->rows[i];
        int64_t all = mt_param_elems(r), first = r->n_ranges > 1 ? own_elems(r) : all;
        bool counts = r->grad_sum != MT_SUM_KV_REPLICAS || first_replica;
        n += row_segment(o, r, 0, first, true, begin, elems, out ? out + n : NULL);
        n += row_segment(o, r, first, all, counts, begin, elems, out ? out + n : NULL);
    }
    return n;
}

/* Fills the tables of all pieces, or with `count` only counts them. */
static void fill_segments(mt_optimizer *o, bool count)
{
    o->n_segments = 0;
    for (int i = 0; i < o->n_pieces; i++) {
        mt_piece *q = &o->pieces[i];
        q->first_segment = o->n_segments;
        q->n_segments = piece_segments(o, q->begin, q->grad.dims[0], count ? NULL : o->segments + o->n_segments);
        o->n_segments += q->n_segments;
    }
}

/* The tables' memory; their values once it is there. */
static mc_status make_segments(mt_optimizer *o)
{
    mt_arenas *a = o->stage->arenas;
    fill_segments(o, true);
    size_t bytes = (size_t)o->n_segments * sizeof *o->segments;
    o->segments = mc_arena_take(&a->pinned, bytes);
    o->device_segments = mc_arena_take(&a->process, bytes);
    if (!a->pinned.bound) {
        return MC_OK;
    }
    fill_segments(o, false);
    return upload_segments(o);
}

/* ---- pieces: what operators work on ---- */

static mc_tensor part_of(mc_tensor x, int64_t at, int64_t elems)
{
    return mc_tensor_present(x) ? mc_tensor_slice(x, 0, at, elems) : x;
}

/* With an offload the update goes by chunks, each a piece of its own behind those that there are. */
static mc_status cut_pieces(mt_optimizer *o, int64_t n_chunks)
{
    int first = o->first_update, end = o->n_pieces;
    MC_TRY(MC_NEW_N(&o->chunks, n_chunks, "optimizer chunks"));
    o->first_update = end;
    for (int i = first; i < end; i++) {
        const mt_piece *q = &o->pieces[i];
        for (int64_t at = 0, left = q->grad.dims[0]; left > 0; at += MT_OFFLOAD_CHUNK, left -= MT_OFFLOAD_CHUNK) {
            int64_t n = left < MT_OFFLOAD_CHUNK ? left : MT_OFFLOAD_CHUNK;
            MC_ASSERT(o->n_pieces - end < n_chunks);
            o->chunks[o->n_pieces - end] = (mt_offload_chunk){q->state_at + at, n};
            o->pieces[o->n_pieces++] = (mt_piece){
                .begin = q->begin + at,
                .state_at = q->state_at + at,
                .grad = part_of(q->grad, at, n),
                .main = part_of(q->main, at, n),
                .model = part_of(q->model, at, n),
            };
        }
    }
    return MC_OK;
}

/* Own parts of all units, whose norms add up to the global norm in every stage of ZeRO; these are what is updated, but
 * for stage 0, which updates everything as one more piece unless gradients are of two types. */
static mc_status make_pieces(mt_optimizer *o)
{
    const mt_shards *d = &o->stage->shards;
    bool separate = d->own_main && !d->host; /* else they are rounded when they are published */
    int n_units = d->params->n_units;
    int64_t n_chunks = o->offload ? mt_shards_state_elems(d) / MT_OFFLOAD_CHUNK + n_units + 1 : 0;
    MC_TRY(MC_NEW_N(&o->pieces, n_units + 1 + n_chunks, "optimizer pieces"));
    for (int u = 0; u < n_units; u++) {
        const mt_shard *h = &d->units[u];
        o->pieces[o->n_pieces++] = (mt_piece){
            .begin = h->begin,
            .state_at = h->state_at,
            .grad = h->grad_part,
            .main = h->main,
            .m = part_of(o->m, h->state_at, h->elems),
            .v = part_of(o->v, h->state_at, h->elems),
            .model = separate ? h->param_part : (mc_tensor){0},
        };
    }
    o->n_norm_pieces = o->n_pieces;
    bool whole = d->zero == 0 && !d->grads_bf16;
    o->first_update = whole ? o->n_pieces : 0;
    if (whole) {
        o->pieces[o->n_pieces++] = (mt_piece){
            .grad = d->grad_store,
            .main = d->main_store,
            .m = o->m,
            .v = o->v,
            .model = separate ? d->param_store : (mc_tensor){0},
        };
    }
    return o->offload ? cut_pieces(o, n_chunks) : MC_OK;
}

/* Elements of this rank's summed gradients that are then summed over tp. */
static int64_t packed_elems(const mt_stage *s)
{
    int64_t n = 0;
    for (int i = 0; i < s->params.n_rows; i++) {
        const mt_param *r = &s->params.rows[i];
        n += r->grad_sum == MT_SUM_TP ? mt_shards_summed(&s->shards, i, 0, mt_param_elems(r)).dims[0] : 0;
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

/* Where Adam's moments lie, or SGD's momentum. */
static mc_status take_moments(mt_optimizer *o)
{
    const mt_optimizer_config *c = &o->config;
    mt_stage *s = o->stage;
    const mt_place *p = &s->place;
    int64_t n = mt_shards_state_elems(&s->shards);
    if (c->offload) {
        mt_offload_config off = {
            .dev = s->dev,
            .stream = s->ly.stream,
            .dir = c->offload_dir,
            .rank = (p->stage * p->dp + p->dp_rank) * p->tp + p->tp_rank,
            .elems = n,
            .types = {c->exp_avg, c->exp_avg_sq},
            .pinned = &s->arenas->pinned,
            .process = &s->arenas->process,
        };
        return mt_offload_create(&off, &o->offload);
    }
    if (c->kind == MT_ADAM || c->momentum > 0) {
        o->m = mc_arena_take_1d(&s->arenas->optimizer, c->exp_avg, n);
    }
    if (c->kind == MT_ADAM) {
        o->v = mc_arena_take_1d(&s->arenas->optimizer, c->exp_avg_sq, n);
    }
    return MC_OK;
}

static void take_snapshots(mt_optimizer *o)
{
    int64_t n = mt_shards_state_elems(&o->stage->shards);
    mc_tensor m = o->offload ? mc_tensor_1d(o, o->config.exp_avg, n) : o->m;
    mc_tensor v = o->offload ? mc_tensor_1d(o, o->config.exp_avg_sq, n) : o->v;
    const mc_tensor stores[MT_SNAPSHOTS] = {o->stage->shards.main_store, m, v}; /* for their shapes */
    for (int i = 0; i < MT_SNAPSHOTS && o->config.snapshots; i++) {
        if (mc_tensor_present(stores[i])) {
            o->snapshots[i] = mc_arena_take_1d(&o->stage->arenas->pinned, stores[i].dtype, stores[i].dims[0]);
        }
    }
}

mc_status mt_optimizer_create(const mt_optimizer_config *config, mt_stage *stage, const mt_grad_comms *comms,
                              mt_optimizer **optimizer_out)
{
    mt_optimizer *o;
    mc_status st;
    MC_TRY(MC_NEW(&o, "optimizer"));
    o->config = *config;
    o->stage = stage;
    o->comms = *comms;
    o->lr_mult[0] = o->lr_mult[1] = 1;
    int64_t packed = packed_elems(stage);
    MC_TRY_GOTO(st, take_moments(o), undo_optimizer);
    take_snapshots(o);
    MC_TRY_GOTO(st, make_pieces(o), undo_optimizer);
    MC_TRY_GOTO(st, make_segments(o), undo_optimizer);
    if (packed > 0) {
        o->sum_pack = mc_arena_take_1d(&stage->arenas->grads, MC_F32, packed);
    }
    o->norms = mc_arena_take_1d(&stage->arenas->process, MC_F64, o->n_norm_pieces);
    o->host_norms = mc_arena_take_1d(&stage->arenas->pinned, MC_F64, o->n_norm_pieces);
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
    mt_offload_destroy(o->offload);
    mc_free(o->chunks);
    mc_free(o->pieces);
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
        mc_tensor grad = mt_shards_summed(&s->shards, i, 0, mt_param_elems(r));
        mc_tensor packed = mc_tensor_slice(o->sum_pack, 0, at, grad.dims[0]);
        if (grad.dims[0] > 0) {
            ly_cast move = {.x = back ? packed : grad, .out = back ? grad : packed, .scale = 1};
            MC_TRY(s->ly.ops->cast(&s->ly, &move));
        }
        at += grad.dims[0];
    }
    return MC_OK;
}

static mc_status sum_kv_replicas(mt_optimizer *o)
{
    mt_stage *s = o->stage;
    for (int i = 0; i < s->params.n_rows; i++) {
        const mt_param *r = &s->params.rows[i];
        if (r->grad_sum == MT_SUM_KV_REPLICAS) {
            mc_tensor kv = mt_shards_summed(&s->shards, i, own_elems(r), mt_param_elems(r));
            MC_TRY(kv.dims[0] > 0 ? mc_comm_all_reduce(o->comms.kv_replicas, kv, kv, MC_SUM) : MC_OK);
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
    int row = s->params.outer[mt_has_embedding(&s->place) ? MT_WORD_EMBEDDINGS : MT_OUTPUT_WEIGHT];
    mc_tensor grad = mt_shards_summed(&s->shards, row, 0, mt_param_elems(&s->params.rows[row]));
    return grad.dims[0] > 0 ? mc_comm_all_reduce(o->comms.embedding, grad, grad, MC_SUM) : MC_OK;
}

static mc_status finish_reductions(mt_optimizer *o)
{
    MC_TRY(mt_shards_reduced(&o->stage->shards));
    MC_TRY(sum_tied(o));
    if (mc_tensor_present(o->sum_pack)) {
        MC_TRY(pack(o, false));
        MC_TRY(mc_comm_all_reduce(o->comms.tp, o->sum_pack, o->sum_pack, MC_SUM));
        MC_TRY(pack(o, true));
    }
    return sum_kv_replicas(o);
}

static mc_status square_norms(mt_optimizer *o)
{
    mt_stage *s = o->stage;
    for (int i = 0; i < o->n_norm_pieces; i++) {
        const mt_piece *q = &o->pieces[i];
        ly_sq_norm norm = {q->grad, mc_tensor_slice(o->norms, 0, i, 1), o->device_segments + q->first_segment,
                           q->n_segments};
        MC_TRY(s->ly.ops->sq_norm(&s->ly, &norm));
    }
    return MC_OK;
}

/* One exchange for both: every element of a gradient counts once, on the rank whose part it is in, and every
 * micro-batch's loss once, on the last stage's first tensor-parallel rank. */
static mc_status global_sums(mt_optimizer *o, int n_micro, mt_votes *votes, double *loss_out, double *sq_norm_out)
{
    mt_stage *s = o->stage;
    double sums[5] = {0, 0, votes->stop, votes->save, votes->written};
    MC_TRY(square_norms(o));
    MC_TRY(s->dev->ops->copy(s->dev, o->host_norms.data, o->norms.data, mc_tensor_bytes(o->norms), s->ly.stream));
    MC_TRY(mt_stage_fetch_losses(s, n_micro));
    MC_TRY(s->dev->ops->stream_sync(s->dev, s->ly.stream));
    sums[0] = s->place.tp_rank == 0 ? mt_stage_loss_sum(s, n_micro) : 0;
    for (int i = 0; i < o->n_norm_pieces; i++) {
        sums[1] += ((const double *)o->host_norms.data)[i];
    }
    mc_tensor t = mc_tensor_1d(sums, MC_F64, 5);
    MC_TRY(mc_comm_all_reduce(o->comms.world, t, t, MC_SUM));
    *loss_out = sums[0];
    *sq_norm_out = sums[1];
    *votes = (mt_votes){sums[2], sums[3], sums[4]};
    return MC_OK;
}

mc_status mt_optimizer_vote(mt_optimizer *o, mt_votes *votes)
{
    double sums[3] = {votes->stop, votes->save, votes->written};
    mc_tensor t = mc_tensor_1d(sums, MC_F64, 3);
    MC_TRY(mc_comm_all_reduce(o->comms.world, t, t, MC_SUM));
    *votes = (mt_votes){sums[0], sums[1], sums[2]};
    return MC_OK;
}

static mc_status update_piece(mt_optimizer *o, const mt_piece *q, double lr, double weight_decay, double grad_scale)
{
    const ly_ctx *ly = &o->stage->ly;
    const ly_segment *segments = o->device_segments + q->first_segment;
    if (o->config.kind == MT_SGD) {
        ly_sgd a = {
            .param = q->main,
            .grad = q->grad,
            .m = q->m,
            .model = q->model,
            .segments = segments,
            .n_segments = q->n_segments,
            .lr = (float)lr,
            .momentum = o->config.momentum,
            .weight_decay = (float)weight_decay,
            .grad_scale = (float)grad_scale,
        };
        return ly->ops->sgd(ly, &a);
    }
    ly_adamw a = {
        .param = q->main,
        .grad = q->grad,
        .m = q->m,
        .v = q->v,
        .model = q->model,
        .segments = segments,
        .n_segments = q->n_segments,
        .seed = o->stage->c->seed,
        .lr = (float)lr,
        .beta1 = o->config.beta1,
        .beta2 = o->config.beta2,
        .eps = o->config.eps,
        .weight_decay = (float)weight_decay,
        .grad_scale = (float)grad_scale,
        .step = o->steps,
        .clear_grad = 1,
    };
    return ly->ops->adamw(ly, &a);
}

static mc_status update(mt_optimizer *o, double lr, double weight_decay, double grad_scale)
{
    mt_shards *d = &o->stage->shards;
    MC_TRY(mt_shards_settle(d)); /* what an earlier update sent out has been read */
    MC_TRY(o->offload ? mt_offload_begin(o->offload, o->chunks, o->n_pieces - o->first_update) : MC_OK);
    for (int i = o->first_update; i < o->n_pieces; i++) {
        mt_piece q = o->pieces[i];
        MC_TRY(o->offload ? mt_offload_fetch(o->offload, i - o->first_update, &q.m, &q.v) : MC_OK);
        MC_TRY(update_piece(o, &q, lr, weight_decay, grad_scale));
        MC_TRY(o->offload ? mt_offload_store(o->offload, i - o->first_update) : MC_OK);
    }
    MC_TRY(o->offload ? mt_offload_end(o->offload) : MC_OK);
    d->grads_clear = o->config.kind == MT_ADAM && d->zero == 0 && !d->grads_bf16;
    return mt_shards_publish(d, false);
}

mc_status mt_optimizer_dry_run(mt_optimizer *o)
{
    MC_TRY(square_norms(o));
    return update(o, 0, 0, 1);
}

/* Embedding and output layer may have a learning rate of their own: segments carry the ratio to the rate that comes
 * out, which is `lr` unless that is 0. The host's table may be rewritten: global_sums waited for every earlier copy of
 * it. */
static mc_status set_lr_ratio(mt_optimizer *o, double lr, double decoupled_lr, double *base_out)
{
    double base = lr > 0 ? lr : decoupled_lr;
    float own = base > 0 ? (float)(decoupled_lr / base) : 1, others = lr > 0 ? 1 : 0;
    bool changed = o->lr_mult[0] != others || o->lr_mult[1] != own;
    *base_out = base;
    if (!changed) {
        return MC_OK;
    }
    o->lr_mult[0] = others;
    o->lr_mult[1] = own;
    fill_segments(o, false);
    return upload_segments(o);
}

mc_status mt_optimizer_reduce(mt_optimizer *o, int n_micro, double grad_scale, mt_votes *votes,
                              mt_step_result *result_out)
{
    mt_stage *s = o->stage;
    double sq_norm, loss;
    MC_TRY(finish_reductions(o));
    MC_TRY(mt_trace_gradients(s->trace, &s->shards, &s->place, s->c->vocab, s->x.heads.replica == 0));
    MC_TRY(global_sums(o, n_micro, votes, &loss, &sq_norm));
    *result_out = (mt_step_result){.loss_sum = loss, .grad_norm = sqrt(sq_norm) * grad_scale};
    return MC_OK;
}

mc_status mt_optimizer_update(mt_optimizer *o, double lr, double decoupled_lr, double weight_decay, double grad_scale,
                              double grad_norm)
{
    double base, clip = o->config.clip_grad;
    o->steps++;
    MC_TRY(set_lr_ratio(o, lr, decoupled_lr, &base));
    return update(o, base, weight_decay, grad_scale * (clip > 0 && grad_norm > clip ? clip / (grad_norm + 1e-6) : 1.0));
}
