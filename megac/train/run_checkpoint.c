/* What of a run goes into a checkpoint, and back. */
#include "megac/base/alloc.h"
#include "megac/train/checkpoint.h"
#include "megac/train/host_view.h"
#include "megac/train/run.h"

enum { MAX_KINDS = 3 };

/* The slabs of a checkpoint as the host sees them, and their tensors. */
typedef struct contents {
    mt_host_view slabs[MAX_KINDS];
    const char *prefixes[MAX_KINDS];
    int n_kinds;
    mt_ckpt_item *items;
    int n_items;
} contents;

static mc_status add_slab(contents *c, mt_engine *e, const char *prefix, mc_tensor slab)
{
    MC_TRY(mt_host_view_open(&c->slabs[c->n_kinds], &e->dev, e->ly.stream, slab, true));
    c->prefixes[c->n_kinds++] = prefix;
    return MC_OK;
}

/* The f32 parameters where there are any, else those that the model computes with; and the optimizer's moments. */
static mc_status add_slabs(contents *c, mt_engine *e, bool with_optimizer)
{
    const mt_stage *s = e->stage;
    MC_TRY(add_slab(c, e, "model", mc_tensor_present(s->main_slab) ? s->main_slab : s->param_slab));
    if (with_optimizer && mc_tensor_present(e->optimizer->m)) {
        MC_TRY(add_slab(c, e, "optimizer.exp_avg", e->optimizer->m));
    }
    if (with_optimizer && mc_tensor_present(e->optimizer->v)) {
        MC_TRY(add_slab(c, e, "optimizer.exp_avg_sq", e->optimizer->v));
    }
    return MC_OK;
}

static void close_contents(contents *c)
{
    for (int i = 0; i < c->n_kinds; i++) {
        mt_host_view_close(&c->slabs[i]);
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
    MC_TRY(add_slabs(c, e, with_optimizer));
    MC_TRY(MC_NEW_N(&c->items, c->n_kinds * p->n_rows, "checkpoint items"));
    for (int k = 0; k < c->n_kinds; k++) {
        for (int i = 0; i < p->n_rows; i++) {
            bool vocabulary = i == p->outer[MT_WORD_EMBEDDINGS] || i == p->outer[MT_OUTPUT_WEIGHT];
            c->items[c->n_items++] = (mt_ckpt_item){
                .prefix = c->prefixes[k],
                .param = &p->rows[i],
                .local = mt_params_view(p, i, c->slabs[k].host),
                .valid_rows = vocabulary ? e->setup.model.vocab : 0,
            };
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
        st = mt_host_view_write(&c.slabs[i]);
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
