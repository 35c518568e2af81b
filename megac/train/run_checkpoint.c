/* What of a run goes into a checkpoint, and back. */
#include "megac/base/alloc.h"
#include "megac/train/checkpoint.h"
#include "megac/train/host_view.h"
#include "megac/train/run.h"

enum { MAX_KINDS = 3, MAX_CUTS = 3 * MT_MAX_RANGES };

/* The stores of a checkpoint as the host sees them, and their tensors. */
typedef struct contents {
    mt_host_view stores[MAX_KINDS];
    const char *prefixes[MAX_KINDS];
    int n_kinds;
    mt_ckpt_item *items;
    int n_items;
} contents;

static mc_status add_store(contents *c, mt_engine *e, const char *prefix, mc_tensor store)
{
    MC_TRY(mt_host_view_open(&c->stores[c->n_kinds], &e->dev, e->ly.stream, store, true));
    c->prefixes[c->n_kinds++] = prefix;
    return MC_OK;
}

/* The f32 parameters where there are any, else those that the model computes with; and the optimizer's moments. */
static mc_status add_stores(contents *c, mt_engine *e, bool with_optimizer)
{
    MC_TRY(add_store(c, e, "model", e->stage->shards.main_store));
    if (with_optimizer && mc_tensor_present(e->optimizer->m)) {
        MC_TRY(add_store(c, e, "optimizer.exp_avg", e->optimizer->m));
    }
    if (with_optimizer && mc_tensor_present(e->optimizer->v)) {
        MC_TRY(add_store(c, e, "optimizer.exp_avg_sq", e->optimizer->v));
    }
    return MC_OK;
}

/* Elements [from, to) of a row's local tensor, flat, as rectangles of the global one: rows in part, whole rows, a row
 * in part, of each of its ranges. `data` is where element `from` lies. */
static int cut_items(const mt_ckpt_item *whole, int64_t from, int64_t to, void *data, mc_dtype dtype, mt_ckpt_item *out)
{
    const mt_param *p = whole->param;
    int64_t cols = p->n_dims == 2 ? p->local_dims[1] : 1, first = from, boundary = to;
    int n = 0;
    if (p->shard_dim == 0 && p->n_ranges > 1 && from < p->ranges[0].count * cols) {
        boundary = p->ranges[0].count * cols < to ? p->ranges[0].count * cols : to;
    }
    while (from < to) {
        int64_t row = from / cols, col = from % cols, end = from < boundary ? boundary : to;
        bool partial = col > 0 || end - from < cols;
        int64_t line_end = (row + 1) * cols < end ? (row + 1) * cols : end;
        int64_t rows = partial ? 1 : (end - from) / cols, width = partial ? line_end - from : cols;
        int range = p->shard_dim == 0 && row >= p->ranges[0].count;
        char *at = (char *)data + (size_t)(from - first) * mc_dtype_bytes(dtype);
        mt_ckpt_item *item = &out[n];
        *item = *whole;
        item->cut = true;
        item->part = n++;
        item->local = p->n_dims == 2 ? mc_tensor_2d(at, dtype, rows, width) : mc_tensor_1d(at, dtype, rows);
        item->begin[0] = p->shard_dim == 0 ? p->ranges[range].begin + row - (range ? p->ranges[0].count : 0) : row;
        item->begin[1] = col + (p->shard_dim == 1 ? p->ranges[0].begin : 0);
        from += rows * width;
    }
    return n;
}

/* One row of the table in one store. */
static void add_items(contents *c, const mt_engine *e, int kind, int row)
{
    const mt_shards *d = &e->stage->shards;
    const mt_params *p = &e->stage->params;
    const mt_param *r = &p->rows[row];
    const mt_shard *h = &d->units[r->unit];
    mc_tensor host = c->stores[kind].host;
    bool vocabulary = row == p->outer[MT_WORD_EMBEDDINGS] || row == p->outer[MT_OUTPUT_WEIGHT];
    int64_t store_at = kind == 0 ? h->main_at : h->state_at, lo, hi;
    mt_ckpt_item item = {
        .prefix = c->prefixes[kind],
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

static void close_contents(contents *c)
{
    for (int i = 0; i < c->n_kinds; i++) {
        mt_host_view_close(&c->stores[i]);
    }
    mc_free(c->items);
    *c = (contents){0};
}

/* Every tensor of this rank as checkpoint items, holding the device's values. close_contents in any case.
 */
static mc_status open_contents(mt_engine *e, bool with_optimizer, contents *c)
{
    const mt_params *p = &e->stage->params;
    *c = (contents){0};
    MC_TRY(add_stores(c, e, with_optimizer));
    MC_TRY(MC_NEW_N(&c->items, c->n_kinds * p->n_rows * MAX_CUTS, "checkpoint items"));
    for (int k = 0; k < c->n_kinds; k++) {
        for (int i = 0; i < p->n_rows; i++) {
            add_items(c, e, k, i);
        }
    }
    return MC_OK;
}

mc_status mt_run_save(mt_run *run)
{
    contents c;
    char *config = NULL;
    const ds_info *info = ds_source_first_info(run->train.source);
    mc_status st;
    MC_TRY(mt_options_text(run->o, &config));
    MC_TRY_GOTO(st, open_contents(run->e, !run->o->no_save_optim, &c), undo_contents);
    mt_ckpt_state state = {
        .iteration = run->iteration,
        .consumed_samples = run->consumed_samples,
        .consumed_tokens = run->consumed_tokens,
        .skipped_iterations = (uint64_t)run->skipped_iterations,
        .optimizer_steps = run->e->optimizer->steps,
        .config = config,
        .tokenizer_kind = info ? info->tokenizer_kind : run->o->tokenizer_type,
    };
    st = mt_checkpoint_save(run->o->save, run->world, &state, c.items, c.n_items);
    if (st == MC_OK) {
        run->saved_iteration = run->iteration;
        if (run->metrics.speaks) {
            printf("saved %s at iteration %lld\n", run->o->save, (long long)run->iteration);
            fflush(stdout);
        }
    }
undo_contents:
    close_contents(&c);
    mc_free(config);
    return st;
}

/* What a checkpoint does not have (a padded vocabulary's last rows) keeps its initial value: hence the read. */
static mc_status read_items(mt_checkpoint *ckpt, mt_engine *e, bool with_optimizer)
{
    contents c;
    mc_status st = open_contents(e, with_optimizer, &c);
    for (int i = 0; i < c.n_items && st == MC_OK; i++) {
        st = mt_checkpoint_read(ckpt, &c.items[i]);
    }
    for (int i = 0; i < c.n_kinds && st == MC_OK; i++) {
        st = mt_host_view_write(&c.stores[i]);
    }
    close_contents(&c);
    return st == MC_OK ? mt_stage_refresh_params(e->stage) : st;
}

mc_status mt_engine_load(mt_engine *e, const char *path, int64_t step)
{
    mt_checkpoint *ckpt;
    MC_TRY(mt_checkpoint_open(path, step, &ckpt));
    mc_status st = read_items(ckpt, e, false);
    mt_checkpoint_close(ckpt);
    return st;
}

mc_status mt_run_load(mt_run *run, const char *path, int64_t step, bool weights_only)
{
    mt_checkpoint *ckpt;
    MC_TRY(mt_checkpoint_open(path, step, &ckpt));
    mc_status st = read_items(ckpt, run->e, !weights_only && !run->o->no_load_optim);
    const mt_ckpt_state *state = mt_checkpoint_state(ckpt);
    if (st == MC_OK && !weights_only) {
        run->iteration = state->iteration;
        run->consumed_samples = state->consumed_samples;
        run->consumed_tokens = state->consumed_tokens;
        run->skipped_iterations = (int64_t)state->skipped_iterations;
        run->e->optimizer->steps = run->o->no_load_optim ? 0 : state->optimizer_steps;
    }
    if (st == MC_OK && run->metrics.speaks) {
        printf("loaded %s, iteration %lld%s\n", path, (long long)state->iteration,
               weights_only ? ", weights only" : "");
        fflush(stdout);
    }
    mt_checkpoint_close(ckpt);
    return st;
}
