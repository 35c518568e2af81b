/* Units in a step: gathering parameters, summing gradients over the data-parallel group. */
#include "megac/train/model/shards.h"

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

static mc_status wait_gather(mt_shard *d)
{
    if (!d->gathering) {
        return MC_OK;
    }
    d->gathering = false;
    return mc_comm_wait(&d->gather);
}

/* A buffer takes another unit only when the one before has come, if nobody waited for it. */
static mc_status begin_gather(mt_shards *s, int unit)
{
    mt_shard *d = &s->units[unit];
    int b = buffer_of(s, s->param_buffers, unit);
    MC_ASSERT(!d->gathering);
    if (b >= 0) {
        MC_TRY(s->held[b] >= 0 ? wait_gather(&s->units[s->held[b]]) : MC_OK);
        s->held[b] = unit;
    }
    d->gathering = true;
    return mc_comm_all_gather_begin(s->comm, d->param_part, d->param, &d->gather);
}

mc_status mt_shards_acquire(mt_shards *s, int unit, int next)
{
    int b = buffer_of(s, s->param_buffers, unit), n = next < 0 ? -1 : buffer_of(s, s->param_buffers, next);
    if (b >= 0 && s->held[b] != unit) {
        MC_TRY(begin_gather(s, unit));
    }
    MC_TRY(wait_gather(&s->units[unit]));
    return n >= 0 && n != b && s->held[n] != next ? begin_gather(s, next) : MC_OK;
}

mc_status mt_shards_settle(mt_shards *s)
{
    for (int u = 0; u < s->params->n_units; u++) {
        MC_TRY(wait_gather(&s->units[u]));
    }
    return MC_OK;
}

mc_status mt_shards_publish(mt_shards *s, bool cast)
{
    for (int u = 0; u < s->params->n_units; u++) {
        mt_shard *d = &s->units[u];
        if (cast && s->own_main) {
            mc_tensor out = s->zero > 0 ? d->param_part : d->param;
            MC_TRY(s->ly->ops->cast(s->ly, &(ly_cast){.x = d->main, .out = out, .scale = 1}));
        }
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

/* ---- gradients ---- */

mc_status mt_shards_begin_step(mt_shards *s)
{
    if (!s->grads_clear) {
        MC_TRY(fill(s, s->grad_store));
        MC_TRY(s->grads_bf16 ? fill(s, s->outer_grad_store) : MC_OK);
    }
    s->grads_clear = false;
    return MC_OK;
}

/* The group's sum of a block's gradient of one micro-batch joins the own part's. */
static mc_status absorb(mt_shards *s, int buffer)
{
    int unit = s->reducing[buffer];
    if (unit < 0) {
        return MC_OK;
    }
    mt_shard *d = &s->units[unit];
    s->reducing[buffer] = -1;
    MC_TRY(s->comm->size > 1 ? mc_comm_wait(&d->reduce) : MC_OK);
    mc_tensor sum = mc_tensor_slice(d->grad, 0, s->comm->rank * d->elems, d->elems);
    if (s->grads_bf16) {
        ly_cast add = {.x = sum, .out = d->grad_part, .scale = 1, .accumulate = 1};
        return s->ly->ops->cast(s->ly, &add);
    }
    return s->ly->ops->add(s->ly, &(ly_add){d->grad_part, sum, d->grad_part});
}

mc_status mt_shards_open_grads(mt_shards *s, int unit)
{
    int b = buffer_of(s, s->grad_buffers, unit);
    if (b < 0) {
        return MC_OK;
    }
    MC_TRY(absorb(s, b));
    return fill(s, s->units[unit].grad);
}

static mc_status begin_reduce_scatter(mt_shards *s, int unit)
{
    mt_shard *d = &s->units[unit];
    mc_tensor part = mc_tensor_slice(d->grad, 0, s->comm->rank * d->elems, d->elems);
    if (s->comm->size == 1) {
        return MC_OK;
    }
    return mc_comm_reduce_scatter_begin(s->comm, d->grad, part, &d->reduce);
}

/* Begins the sums of everything from a unit on that lies in the store, last units first. */
static mc_status reduce_from(mt_shards *s, int unit)
{
    if (s->zero == 0) {
        for (; s->comm->size > 1 && s->next >= 0 && s->buckets[s->next].first_unit >= unit; s->next--) {
            mt_bucket *b = &s->buckets[s->next];
            MC_TRY(mc_comm_all_reduce_begin(s->comm, b->grads, b->grads, MC_SUM, &b->request));
        }
        return MC_OK;
    }
    for (; s->next >= unit; s->next--) {
        if (buffer_of(s, s->grad_buffers, s->next) < 0) {
            MC_TRY(begin_reduce_scatter(s, s->next));
        }
    }
    return MC_OK;
}

mc_status mt_shards_close_grads(mt_shards *s, int unit, bool last)
{
    int b = buffer_of(s, s->grad_buffers, unit);
    if (b >= 0) {
        s->reducing[b] = unit;
        MC_TRY(begin_reduce_scatter(s, unit));
    }
    return last ? reduce_from(s, unit) : MC_OK;
}

mc_status mt_shards_reduced(mt_shards *s)
{
    MC_TRY(reduce_from(s, 0));
    for (int i = s->n_buckets - 1; s->comm->size > 1 && i >= 0; i--) {
        MC_TRY(mc_comm_wait(&s->buckets[i].request));
    }
    for (int u = s->params->n_units - 1; s->zero > 0 && u >= 0; u--) {
        if (buffer_of(s, s->grad_buffers, u) < 0) {
            MC_TRY(mc_comm_wait(&s->units[u].reduce));
        }
    }
    for (int b = 0; b < MT_UNIT_BUFFERS; b++) {
        MC_TRY(absorb(s, b));
    }
    s->next = (s->zero == 0 ? s->n_buckets : s->params->n_units) - 1;
    return MC_OK;
}
