#include "megac/train/checkpoint/ckpt_contents.h"

#include <string.h>

#include "megac/base/alloc.h"

/* Rectangles of one row of the table that a rank may keep. */
enum { MAX_CUTS = 3 * MT_MAX_RANGES };

static mc_status add_store(mt_contents *c, mt_engine *e, const char *prefix, mc_tensor store, mc_tensor snapshot)
{
    mt_host_view *v = &c->stores[c->n_stores];
    MC_TRY(mc_tensor_present(snapshot) ? mt_host_view_snapshot(v, &e->dev, e->ly.stream, store, snapshot)
                                       : mt_host_view_open(v, &e->dev, e->ly.stream, store, true));
    c->prefixes[c->n_stores++] = prefix;
    return MC_OK;
}

/* Moments that are not on the device. */
static mc_status add_offloaded(mt_contents *c, mt_engine *e, const mc_tensor *copies)
{
    static const char *const prefixes[2] = {"optimizer.exp_avg", "optimizer.exp_avg_sq"};
    mc_tensor stores[2];
    MC_TRY(mt_offload_open(e->optimizer->offload, stores));
    c->offload = e->optimizer->offload;
    for (int i = 0; i < 2; i++) {
        if (mc_tensor_present(copies[i])) {
            memcpy(copies[i].data, stores[i].data, mc_tensor_bytes(stores[i]));
            stores[i] = copies[i];
        }
        c->stores[c->n_stores] = mt_host_view_wrap(stores[i]);
        c->prefixes[c->n_stores++] = prefixes[i];
    }
    return MC_OK;
}

/* The f32 parameters where there are any, else those that the model computes with; and the optimizer's moments. */
static mc_status add_stores(mt_contents *c, mt_engine *e, bool with_optimizer, bool snapshot)
{
    static const mc_tensor none[MT_SNAPSHOTS];
    const mc_tensor *copies = snapshot ? e->optimizer->snapshots : none;
    MC_TRY(add_store(c, e, "model", e->stage->shards.main_store, copies[0]));
    if (with_optimizer && e->optimizer->offload) {
        return add_offloaded(c, e, copies + 1);
    }
    if (with_optimizer && mc_tensor_present(e->optimizer->m)) {
        MC_TRY(add_store(c, e, "optimizer.exp_avg", e->optimizer->m, copies[1]));
    }
    if (with_optimizer && mc_tensor_present(e->optimizer->v)) {
        MC_TRY(add_store(c, e, "optimizer.exp_avg_sq", e->optimizer->v, copies[2]));
    }
    return MC_OK;
}

/* Elements [from, to) of a row's local tensor, flat, as rectangles of the global one: rows in part, whole rows, a row
 * in part, of each of its ranges. `data` is where element `from` lies. */
static int cut_items(const mt_ckpt_item *whole, int64_t from, int64_t to, void *data, mc_dtype dtype, mt_ckpt_item *out)
{
    const mt_param *p = whole->param;
    int64_t cols = mt_param_cols(p), first = from, boundary = to;
    int n = 0;
    if (p->shard_dim == 0 && p->n_ranges > 1 && from < p->ranges[0].count * cols) {
        boundary = p->ranges[0].count * cols < to ? p->ranges[0].count * cols : to;
    }
    while (from < to) {
        int64_t row = from / cols, col = from % cols, end = from < boundary ? boundary : to;
        bool partial = col > 0 || end - from < cols;
        int64_t line_end = (row + 1) * cols < end ? (row + 1) * cols : end;
        int64_t rows = partial ? 1 : (end - from) / cols, width = partial ? line_end - from : cols;
        char *at = (char *)data + (size_t)(from - first) * mc_dtype_bytes(dtype);
        mt_ckpt_item *item = &out[n];
        *item = *whole;
        item->cut = true;
        item->part = n++;
        item->local = p->n_dims == 2 ? mc_tensor_2d(at, dtype, rows, width) : mc_tensor_1d(at, dtype, rows);
        mt_param_global(p, from, item->begin);
        from += rows * width;
    }
    return n;
}

/* One row of the table in one store. */
static void add_items(mt_contents *c, const mt_engine *e, int store, int row)
{
    const mt_shards *d = &e->stage->shards;
    const mt_params *p = &e->stage->params;
    const mt_param *r = &p->rows[row];
    const mt_shard *h = &d->units[r->unit];
    mc_tensor host = c->stores[store].host;
    bool vocabulary = row == p->outer[MT_WORD_EMBEDDINGS] || row == p->outer[MT_OUTPUT_WEIGHT];
    int64_t store_at = store == 0 ? h->main_at : h->state_at, lo, hi;
    mt_ckpt_item item = {
        .prefix = c->prefixes[store],
        .param = r,
        .valid_rows = vocabulary ? e->setup.model.vocab : 0,
    };
    if (d->zero == 0) {
        item.local = mt_params_view(p, row, host);
        c->items[c->n_items++] = item;
    } else if (mt_params_clip(r, 0, mt_param_elems(r), h->begin, h->begin + h->elems, &lo, &hi)) {
        char *data = (char *)host.data + (size_t)(store_at + lo - h->begin) * mc_dtype_bytes(host.dtype);
        c->n_items += cut_items(&item, lo - r->offset, hi - r->offset, data, host.dtype, c->items + c->n_items);
    }
}

void mt_contents_close(mt_contents *c)
{
    for (int i = 0; i < c->n_stores; i++) {
        mt_host_view_close(&c->stores[i]);
    }
    if (c->offload) {
        mt_offload_close(c->offload);
    }
    mc_free(c->items);
    *c = (mt_contents){0};
}

mc_status mt_contents_open(mt_contents *c, mt_engine *e, bool with_optimizer, bool snapshot)
{
    const mt_params *p = &e->stage->params;
    *c = (mt_contents){0};
    MC_TRY(add_stores(c, e, with_optimizer, snapshot));
    MC_TRY(MC_NEW_N(&c->items, c->n_stores * p->n_rows * MAX_CUTS, "checkpoint items"));
    for (int k = 0; k < c->n_stores; k++) {
        for (int i = 0; i < p->n_rows; i++) {
            add_items(c, e, k, i);
        }
    }
    return MC_OK;
}
