/* Units in a step: gathering parameters, summing gradients over the data-parallel group. */
#include "megac/train/model/shards_host.h"

/* The buffer that a block's whole parameters or gradients lie in; -1 for units that lie in the store. */
static int buffer_of(const mt_shards *s, const mc_tensor *buffers, int unit)
{
    int layer = unit - s->params->first_block_unit;
    bool buffered = layer >= 0 && layer < s->params->n_layers && mc_tensor_present(buffers[0]);
    return buffered ? layer % MT_UNIT_BUFFERS : -1;
}

static mc_status fill(const mt_shards *s, mc_tensor x)
{
    return s->ly->ops->fill(s->ly, &(ly_fill){x, 0});
}

/* ---- parameters ---- */

/* Does the unit's own part, or all of it, lie in host memory? */
static bool is_away(const mt_shards *s, int unit)
{
    return s->host && buffer_of(s, s->param_buffers, unit) >= 0;
}

static mc_status wait_gather(mt_shards *s, int unit)
{
    mt_shard *d = &s->units[unit];
    if (!d->gathering) {
        return MC_OK;
    }
    d->gathering = false;
    return is_away(s, unit) && s->zero == 0 ? mt_shards_host_wait(s->host, buffer_of(s, s->param_buffers, unit))
                                            : mc_comm_wait(&d->gather);
}

/* Where a unit in host memory has its place on the device: all of it, or the own part. */
static mc_tensor landing(const mt_shards *s, const mt_shard *d)
{
    int64_t n = d->param_part.dims[0];
    return s->zero == 0 ? d->param : mc_tensor_slice(d->param, 0, s->comms.within->rank * n, n);
}

/* From the host to the buffer. The group gathers what has arrived, so its operation, which follows computation, makes
 * that wait for the own part: of a share the host's way is short. */
static mc_status begin_fetch(mt_shards *s, int b, mt_shard *d)
{
    mc_tensor to = landing(s, d);
    MC_TRY(mt_shards_host_move(s->host, b, to, d->param_part));
    if (s->zero == 0) {
        return MC_OK;
    }
    MC_TRY(mt_shards_host_wait(s->host, b));
    return mc_comm_all_gather_begin(s->comms.within, to, d->param, &d->gather);
}

/* A buffer takes another unit only when the one before has come, if nobody waited for it. */
static mc_status begin_gather(mt_shards *s, int unit)
{
    mt_shard *d = &s->units[unit];
    int b = buffer_of(s, s->param_buffers, unit);
    MC_ASSERT(!d->gathering);
    if (b >= 0) {
        MC_TRY(s->held[b] >= 0 ? wait_gather(s, s->held[b]) : MC_OK);
        s->held[b] = unit;
    }
    d->gathering = true;
    if (is_away(s, unit)) {
        return begin_fetch(s, b, d);
    }
    return mc_comm_all_gather_begin(s->comms.within, d->param_part, d->param, &d->gather);
}

mc_status mt_shards_acquire(mt_shards *s, int unit, int next)
{
    int b = buffer_of(s, s->param_buffers, unit), n = next < 0 ? -1 : buffer_of(s, s->param_buffers, next);
    if (b >= 0 && s->held[b] != unit) {
        MC_TRY(begin_gather(s, unit));
    }
    MC_TRY(wait_gather(s, unit));
    return n >= 0 && n != b && s->held[n] != next ? begin_gather(s, next) : MC_OK;
}

mc_status mt_shards_settle(mt_shards *s)
{
    for (int u = 0; u < s->params->n_units; u++) {
        MC_TRY(wait_gather(s, u));
    }
    return MC_OK;
}

/* What a unit computes with, rounded from its main parameters. */
static mc_status refresh(mt_shards *s, int unit)
{
    mt_shard *d = &s->units[unit];
    int b = buffer_of(s, s->param_buffers, unit);
    bool away = is_away(s, unit);
    mc_tensor out = away ? landing(s, d) : s->zero > 0 ? d->param_part : d->param;
    MC_TRY(away ? mt_shards_host_wait(s->host, b) : MC_OK); /* the one before has left the buffer */
    MC_TRY(s->ly->ops->cast(s->ly, &(ly_cast){.x = d->main, .out = out, .scale = 1}));
    return away ? mt_shards_host_move(s->host, b, d->param_part, out) : MC_OK;
}

mc_status mt_shards_publish(mt_shards *s, bool cast)
{
    for (int u = 0; u < s->params->n_units; u++) {
        MC_TRY(s->own_main && (cast || s->host) ? refresh(s, u) : MC_OK);
    }
    for (int b = 0; b < MT_UNIT_BUFFERS; b++) { /* what they hold is old */
        s->held[b] = -1;
    }
    for (int u = 0; u < s->params->n_units; u++) {
        if (s->zero > 0 && buffer_of(s, s->param_buffers, u) < 0) {
            MC_TRY(begin_gather(s, u));
        }
    }
    return MC_OK;
}

/* ---- one sum: from `whole` to `kept`, by way of a wire where there are any ---- */

static mc_status convert(const mt_shards *s, mc_tensor x, mc_tensor out)
{
    return s->ly->ops->cast(s->ly, &(ly_cast){.x = x, .out = out, .scale = 1});
}

/* What was exchanged becomes, or joins, what is kept. */
static mc_status take_sum(const mt_shards *s, const mt_bucket *k, bool joins)
{
    if (k->sum.data == k->kept.data) {
        return MC_OK;
    }
    if (joins && k->sum.dtype == MC_F32 && k->kept.dtype == MC_F32) {
        return s->ly->ops->add(s->ly, &(ly_add){k->kept, k->sum, k->kept});
    }
    ly_cast take = {.x = k->sum, .out = k->kept, .scale = 1, .accumulate = joins};
    return s->ly->ops->cast(s->ly, &take);
}

/* The instance's sum is there; the step's last one goes on across the instances. */
static mc_status pass_on(mt_shards *s, int bucket)
{
    mt_bucket *k = &s->buckets[bucket];
    if (k->phase != MT_SUM_WITHIN) {
        return MC_OK;
    }
    k->phase = MT_SUM_IDLE;
    MC_TRY(s->comms.within->size > 1 ? mc_comm_wait(&k->request) : MC_OK);
    MC_TRY(take_sum(s, k, k->joins));
    if (!k->last || s->comms.across->size == 1) {
        return MC_OK;
    }
    k->phase = MT_SUM_ACROSS;
    if (s->n_wires > 0 && k->kept.dtype == MC_F32) {
        MC_TRY(convert(s, k->kept, k->sum));
    } else {
        k->sum = k->kept;
    }
    return mc_comm_all_reduce_begin(s->comms.across, k->sum, k->sum, MC_SUM, &k->request);
}

static mc_status finish(mt_shards *s, int bucket)
{
    mt_bucket *k = &s->buckets[bucket];
    MC_TRY(pass_on(s, bucket));
    if (k->phase == MT_SUM_IDLE) {
        return MC_OK;
    }
    k->phase = MT_SUM_IDLE;
    MC_TRY(mc_comm_wait(&k->request));
    return take_sum(s, k, false);
}

/* What is exchanged for a bucket. A wire is free once the sum that took it before is finished, and so must be the
 * bucket's own last sum, which may be in the other wire. */
static mc_status load(mt_shards *s, int bucket, mc_tensor *x_out)
{
    const mt_bucket *k = &s->buckets[bucket];
    if (s->n_wires == 0) {
        *x_out = k->whole;
        return MC_OK;
    }
    int w = s->turn;
    s->turn = (w + 1) % s->n_wires;
    MC_TRY(finish(s, bucket));
    MC_TRY(s->on_wire[w] >= 0 ? finish(s, s->on_wire[w]) : MC_OK);
    s->on_wire[w] = bucket;
    *x_out = mc_tensor_slice(s->wires[w], 0, 0, k->whole.dims[0]);
    return convert(s, k->whole, *x_out);
}

/* Of instances, the sum that was begun before goes on across them while this one is under way, so that both overlap
 * what is computed next. */
static mc_status begin(mt_shards *s, int bucket, bool last)
{
    mt_bucket *k = &s->buckets[bucket];
    const mc_comm *c = s->comms.within;
    int64_t elems = k->kept.dims[0];
    mc_tensor x;
    MC_TRY(load(s, bucket, &x));
    k->sum = s->zero > 0 ? mc_tensor_slice(x, 0, c->rank * elems, elems) : x;
    k->last = last;
    k->phase = MT_SUM_WITHIN;
    if (c->size == 1) {
        return MC_OK;
    }
    MC_TRY(s->zero > 0 ? mc_comm_reduce_scatter_begin(c, x, k->sum, &k->request)
                       : mc_comm_all_reduce_begin(c, x, x, MC_SUM, &k->request));
    int before = s->newest;
    s->newest = last ? bucket : before;
    return last && before >= 0 && s->comms.across->size > 1 ? pass_on(s, before) : MC_OK;
}

/* ---- gradients in a step ---- */

mc_status mt_shards_begin_step(mt_shards *s)
{
    if (!s->grads_clear) {
        MC_TRY(fill(s, s->grad_store));
        MC_TRY(s->grads_bf16 ? fill(s, s->outer_grad_store) : MC_OK);
    }
    s->grads_clear = false;
    return MC_OK;
}

mc_status mt_shards_open_grads(mt_shards *s, int unit)
{
    int b = buffer_of(s, s->grad_buffers, unit);
    if (b < 0) {
        return MC_OK;
    }
    MC_TRY(s->reducing[b] >= 0 ? pass_on(s, s->reducing[b]) : MC_OK);
    s->reducing[b] = -1;
    return fill(s, s->units[unit].grad);
}

/* Begins the sums of everything from a unit on that lies in the store, last units first. */
static mc_status reduce_from(mt_shards *s, int unit)
{
    for (; s->comms.within->size > 1 && s->next >= 0 && s->buckets[s->next].first_unit >= unit; s->next--) {
        MC_TRY(s->buckets[s->next].joins ? MC_OK : begin(s, s->next, true));
    }
    return MC_OK;
}

mc_status mt_shards_close_grads(mt_shards *s, int unit, bool last)
{
    int b = buffer_of(s, s->grad_buffers, unit);
    if (b >= 0) {
        s->reducing[b] = s->n_wires > 0 ? -1 : unit; /* a wire has left the buffer free */
        MC_TRY(begin(s, unit, last));
    }
    return last ? reduce_from(s, unit) : MC_OK;
}

mc_status mt_shards_reduced(mt_shards *s)
{
    MC_TRY(reduce_from(s, 0));
    for (int i = s->n_buckets - 1; i >= 0; i--) {
        MC_TRY(pass_on(s, i));
    }
    for (int i = s->n_buckets - 1; i >= 0; i--) {
        MC_TRY(finish(s, i));
    }
    s->newest = -1;
    s->next = s->n_buckets - 1;
    return MC_OK;
}
