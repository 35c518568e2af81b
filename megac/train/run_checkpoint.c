/* From a checkpoint into a run. */
#include "megac/base/alloc.h"
#include "megac/train/ckpt_contents.h"
#include "megac/train/run.h"

/* What a checkpoint does not have (a padded vocabulary's last rows) keeps its initial value: hence the read. */
static mc_status read_items(mt_checkpoint *ckpt, mt_engine *e, bool with_optimizer)
{
    mt_contents c;
    mc_status st = mt_contents_open(&c, e, with_optimizer, false);
    for (int i = 0; i < c.n_items && st == MC_OK; i++) {
        st = mt_checkpoint_read(ckpt, &c.items[i]);
    }
    for (int i = 0; i < c.n_stores && st == MC_OK; i++) {
        st = mt_host_view_write(&c.stores[i]);
    }
    mt_contents_close(&c);
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
        run->best_loss = state->best_loss;
        run->best_iteration = state->best_iteration;
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
