/* What of a run goes into a checkpoint, and back. */
#include "megac/base/alloc.h"
#include "megac/train/checkpoint.h"
#include "megac/train/run.h"

enum { MAX_KINDS = 3 };

/* The parameter slab and, with an optimizer, its moments. */
static int list_slabs(const mt_engine *e, bool with_optimizer, const char *prefixes[MAX_KINDS],
                      mc_tensor slabs[MAX_KINDS])
{
    int n = 0;
    prefixes[n] = "model";
    slabs[n++] = e->stage->param_slab;
    if (with_optimizer && mc_tensor_present(e->optimizer->m)) {
        prefixes[n] = "optimizer.exp_avg";
        slabs[n++] = e->optimizer->m;
    }
    if (with_optimizer && mc_tensor_present(e->optimizer->v)) {
        prefixes[n] = "optimizer.exp_avg_sq";
        slabs[n++] = e->optimizer->v;
    }
    return n;
}

/* Every tensor of this rank as checkpoint items, freed by the caller. */
static mc_status list_items(const mt_engine *e, bool with_optimizer, mt_ckpt_item **items_out, int *n_out)
{
    const char *prefixes[MAX_KINDS];
    mc_tensor slabs[MAX_KINDS];
    const mt_params *p = &e->stage->params;
    int n_kinds = list_slabs(e, with_optimizer, prefixes, slabs), n = 0;
    mt_ckpt_item *items;
    MC_TRY(MC_NEW_N(&items, n_kinds * p->n_rows, "checkpoint items"));
    for (int k = 0; k < n_kinds; k++) {
        for (int i = 0; i < p->n_rows; i++) {
            bool vocabulary = i == p->outer[MT_WORD_EMBEDDINGS] || i == p->outer[MT_OUTPUT_WEIGHT];
            items[n++] = (mt_ckpt_item){
                .prefix = prefixes[k],
                .param = &p->rows[i],
                .local = mt_params_view(p, i, slabs[k]),
                .valid_rows = vocabulary ? e->setup.model.vocab : 0,
            };
        }
    }
    *items_out = items;
    *n_out = n;
    return MC_OK;
}

mc_status mt_run_save(mt_run *run)
{
    mt_ckpt_item *items = NULL;
    char *config = NULL;
    const ds_info *info = ds_source_first_info(run->train.source);
    int n_items = 0;
    mc_status st;
    MC_TRY(mt_options_text(run->o, &config));
    MC_TRY_GOTO(st, list_items(run->e, !run->o->no_save_optim, &items, &n_items), undo_config);
    mt_ckpt_state state = {
        .iteration = run->iteration,
        .consumed_samples = run->consumed_samples,
        .consumed_tokens = run->consumed_tokens,
        .skipped_iterations = (uint64_t)run->skipped_iterations,
        .optimizer_steps = run->e->optimizer->steps,
        .config = config,
        .tokenizer_kind = info ? info->tokenizer_kind : run->o->tokenizer_type,
    };
    st = mt_checkpoint_save(run->o->save, run->world, &state, items, n_items);
    if (st == MC_OK) {
        run->saved_iteration = run->iteration;
        if (run->metrics.speaks) {
            printf("saved %s at iteration %lld\n", run->o->save, (long long)run->iteration);
            fflush(stdout);
        }
    }
undo_config:
    mc_free(items);
    mc_free(config);
    return st;
}

static mc_status read_items(mt_checkpoint *ckpt, const mt_engine *e, bool with_optimizer)
{
    mt_ckpt_item *items;
    int n;
    mc_status st = MC_OK;
    MC_TRY(list_items(e, with_optimizer, &items, &n));
    for (int i = 0; i < n && st == MC_OK; i++) {
        st = mt_checkpoint_read(ckpt, &items[i]);
    }
    mc_free(items);
    return st;
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
