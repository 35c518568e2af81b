/* Where units lie: the stores, this rank's parts, and the buffers of whole blocks. */
#include "megac/train/model/shards.h"

#include "megac/base/alloc.h"
#include "megac/train/model/shards_host.h"

static bool is_block(const mt_shards *s, int unit)
{
    return unit >= s->params->first_block_unit && unit < s->params->first_block_unit + s->params->n_layers;
}

static int64_t unit_elems(const mt_shards *s, int unit)
{
    return s->params->units[unit].end - s->params->units[unit].begin;
}

/* A store that holds units whole, or of blocks only own parts. */
static int64_t store_elems(const mt_shards *s, bool whole_blocks)
{
    int64_t n = 0;
    for (int u = 0; u < s->params->n_units; u++) {
        n += unit_elems(s, u) / (whole_blocks || !is_block(s, u) ? 1 : s->comms.within->size);
    }
    return n;
}

/* Units outside the blocks. */
static int64_t outer_elems(const mt_shards *s)
{
    int64_t n = 0;
    for (int u = 0; u < s->params->n_units; u++) {
        n += is_block(s, u) ? 0 : unit_elems(s, u);
    }
    return n;
}

int64_t mt_shards_state_elems(const mt_shards *s)
{
    return s->zero > 0 ? s->params->slab_elems / s->comms.within->size : s->params->slab_elems;
}

/* Blocks take `count` buffers in turn; a stage of one block needs one. */
static void take_buffers(const mt_shards *s, mc_dtype dtype, mc_arena *arena, int count, mc_tensor *buffers)
{
    int64_t most = 0;
    for (int l = 0; l < s->params->n_layers; l++) {
        int64_t n = unit_elems(s, s->params->first_block_unit + l);
        most = n > most ? n : most;
    }
    for (int i = 0; i < MT_UNIT_BUFFERS && i < s->params->n_layers; i++) {
        buffers[i] = i < count ? mc_arena_take_1d(arena, dtype, most) : buffers[0];
    }
}

static bool wired(const mt_shards_config *c)
{
    return c->training && c->reduce_bf16 && c->comms.within->size > 1;
}

static mc_status take_stores(mt_shards *s, const mt_shards_config *c)
{
    int64_t params = store_elems(s, s->zero < 3), away = c->host_params ? params - outer_elems(s) : 0;
    MC_TRY(c->host_params ? mt_shards_host_create(c, away, &s->host) : MC_OK);
    s->param_store = mc_arena_take_1d(c->params_arena, c->dtype, params - away);
    s->main_store = s->param_store;
    if (s->zero == 3 || s->host) {
        take_buffers(s, c->dtype, c->params_arena, MT_UNIT_BUFFERS, s->param_buffers);
    }
    if (!c->training) {
        return MC_OK;
    }
    s->own_main = c->dtype != MC_F32 && !c->main_bf16;
    if (s->own_main) {
        s->main_store = mc_arena_take_1d(c->optimizer_arena, MC_F32, mt_shards_state_elems(s));
    }
    int64_t grads = store_elems(s, s->zero < 2), outer = s->grads_bf16 ? outer_elems(s) : 0;
    if (s->grads_bf16) {
        s->outer_grad_store = mc_arena_take_1d(c->grads_arena, MC_F32, outer);
    }
    s->grad_store = mc_arena_take_1d(c->grads_arena, s->grads_bf16 ? MC_BF16 : MC_F32, grads - outer);
    if (s->zero >= 2 || s->grads_bf16) {
        take_buffers(s, MC_F32, c->grads_arena, wired(c) ? 1 : MT_UNIT_BUFFERS, s->grad_buffers);
    }
    return MC_OK;
}

/* The unit's whole and own part, one of so many, of a store, in which it starts at *at; whole blocks may lie in buffers
 * instead. */
static void place(const mt_shards *s, int unit, int64_t n_parts, mc_tensor store, const mc_tensor *buffers, int64_t *at,
                  mc_tensor *whole_out, mc_tensor *part_out)
{
    int64_t n = unit_elems(s, unit), part = n / n_parts;
    bool buffered = is_block(s, unit) && mc_tensor_present(buffers[0]);
    if (buffered) {
        mc_tensor buffer = buffers[(unit - s->params->first_block_unit) % MT_UNIT_BUFFERS];
        *whole_out = mc_tensor_slice(buffer, 0, 0, n);
        *part_out = mc_tensor_slice(store, 0, *at, part);
        *at += part;
    } else {
        *whole_out = mc_tensor_slice(store, 0, *at, n);
        *part_out = mc_tensor_slice(*whole_out, 0, s->comms.within->rank * part, part);
        *at += n;
    }
}

static void place_units(mt_shards *s, bool training)
{
    int64_t param_at = 0, host_at = 0, grad_at = 0, outer_at = 0, size = s->comms.within->size;
    size_t elem = mc_dtype_bytes(s->param_store.dtype);
    for (int u = 0; u < s->params->n_units; u++) {
        const mt_unit *unit = &s->params->units[u];
        mt_shard *d = &s->units[u];
        int64_t n = unit_elems(s, u);
        d->elems = n / size;
        d->begin = unit->begin + s->comms.within->rank * d->elems;
        bool away = s->host && is_block(s, u);
        place(s, u, away && s->zero == 0 ? 1 : size, away ? s->host->store : s->param_store, s->param_buffers,
              away ? &host_at : &param_at, &d->param, &d->param_part);
        if (training) {
            bool outer = s->grads_bf16 && !is_block(s, u);
            place(s, u, size, outer ? s->outer_grad_store : s->grad_store, s->grad_buffers,
                  outer ? &outer_at : &grad_at, &d->grad, &d->grad_part);
        }
        mc_tensor updated = s->zero > 0 ? d->param_part : d->param;
        d->state_at = s->zero > 0 ? unit->begin / size : unit->begin;
        d->main_at = d->state_at;
        if (!s->own_main) {
            d->main_at = ((char *)updated.data - (char *)s->param_store.data) / (int64_t)elem;
        }
        d->main = mc_tensor_slice(s->main_store, 0, d->main_at, updated.dims[0]);
    }
}

/* One for each unit; in stage 0 for consecutive units, at least bucket_elems elements each, the last may have fewer. */
static mc_status make_buckets(mt_shards *s, int64_t bucket_elems)
{
    bool joined = s->zero == 0 && !s->grads_bf16;
    MC_TRY(MC_NEW_N(&s->buckets, s->params->n_units, "gradient buckets"));
    for (int u = 0, first = 0; u < s->params->n_units; u++) {
        int64_t begin = s->params->units[first].begin, end = s->params->units[u].end;
        const mt_shard *d = &s->units[u];
        mt_bucket *k = &s->buckets[s->n_buckets];
        if (!joined) {
            bool buffered = is_block(s, u) && mc_tensor_present(s->grad_buffers[0]);
            *k = (mt_bucket){.whole = d->grad, .kept = d->grad_part, .first_unit = u, .joins = buffered};
        } else if (end - begin >= bucket_elems || u + 1 == s->params->n_units) {
            k->whole = k->kept = mc_tensor_slice(s->grad_store, 0, begin, end - begin);
            k->first_unit = first;
        } else {
            continue;
        }
        s->n_buckets++;
        first = u + 1;
    }
    return MC_OK;
}

static void take_wires(mt_shards *s, mc_arena *arena)
{
    int64_t most = 0;
    for (int i = 0; i < s->n_buckets; i++) {
        most = s->buckets[i].whole.dims[0] > most ? s->buckets[i].whole.dims[0] : most;
    }
    while (s->n_wires < MT_UNIT_BUFFERS && s->n_wires < s->n_buckets) {
        s->wires[s->n_wires++] = mc_arena_take_1d(arena, MC_BF16, most);
    }
}

mc_status mt_shards_create(mt_shards *s, const mt_shards_config *c)
{
    MC_ASSERT(c->zero >= 0 && c->zero <= 3 && (c->zero == 0 || (c->training && c->comms.within->size > 1)));
    MC_ASSERT(c->comms.across->size == 1 || c->zero > 0);
    MC_ASSERT(!c->host_params ||
              ((c->zero == 0 || c->zero == 3) && c->training && c->dtype != MC_F32 && !c->main_bf16));
    MC_ASSERT(!c->grads_bf16 || c->zero >= 2 || c->comms.within->size == 1);
    *s = (mt_shards){.params = c->params,
                     .comms = c->comms,
                     .ly = c->ly,
                     .zero = c->zero,
                     .grads_bf16 = c->grads_bf16,
                     .newest = -1};
    MC_TRY(MC_NEW_N(&s->units, c->params->n_units, "parameter units"));
    for (int i = 0; i < MT_UNIT_BUFFERS; i++) {
        s->held[i] = s->reducing[i] = s->on_wire[i] = -1;
    }
    MC_TRY(take_stores(s, c));
    place_units(s, c->training);
    MC_TRY(c->training ? make_buckets(s, c->bucket_elems) : MC_OK);
    if (wired(c)) {
        take_wires(s, c->grads_arena);
    }
    s->next = s->n_buckets - 1;
    return MC_OK;
}

void mt_shards_destroy(mt_shards *s)
{
    mt_shards_host_destroy(s->host);
    mc_free(s->units);
    mc_free(s->buckets);
    *s = (mt_shards){0};
}

static mc_tensor row_view(const mt_param *r, mc_tensor unit, int64_t unit_begin)
{
    mc_tensor flat = mc_tensor_slice(unit, 0, r->offset - unit_begin, mt_param_elems(r));
    return r->n_dims == 2 ? mc_tensor_2d(flat.data, flat.dtype, r->local_dims[0], r->local_dims[1]) : flat;
}

mc_tensor mt_shards_param(const mt_shards *s, int row)
{
    if (row < 0) {
        return (mc_tensor){0};
    }
    const mt_param *r = &s->params->rows[row];
    return row_view(r, s->units[r->unit].param, s->params->units[r->unit].begin);
}

mc_tensor mt_shards_grad(const mt_shards *s, int row)
{
    if (row < 0 || !mc_tensor_present(s->grad_store)) {
        return (mc_tensor){0};
    }
    const mt_param *r = &s->params->rows[row];
    return row_view(r, s->units[r->unit].grad, s->params->units[r->unit].begin);
}

mc_tensor mt_shards_summed(const mt_shards *s, int row, int64_t from, int64_t to)
{
    const mt_param *r = &s->params->rows[row];
    const mt_shard *d = &s->units[r->unit];
    int64_t begin = s->zero > 0 ? d->begin : s->params->units[r->unit].begin, lo, hi;
    mc_tensor held = s->zero > 0 ? d->grad_part : d->grad;
    if (!mt_params_clip(r, from, to, begin, begin + held.dims[0], &lo, &hi)) {
        return mc_tensor_slice(held, 0, 0, 0);
    }
    return mc_tensor_slice(held, 0, lo - begin, hi - lo);
}
