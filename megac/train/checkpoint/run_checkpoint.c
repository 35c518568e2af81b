/* From a checkpoint into a run. */
#include "megac/base/alloc.h"
#include "megac/train/checkpoint/ckpt_contents.h"
#include "megac/train/run.h"

/* What a checkpoint does not have (a padded vocabulary's last rows) keeps its initial value: hence the read. */
static mc_status read_items(mt_weights *w, mt_engine *e, bool with_optimizer)
{
    uint64_t own = mc_world_own_begin(e->world, "loads", mt_weights_path(w));
    mt_contents c;
    mc_status st = mt_contents_open(&c, e, with_optimizer, false);
    for (int i = 0; i < c.n_items && st == MC_OK; i++) {
        st = mt_weights_read(w, &c.items[i]);
    }
    for (int i = 0; i < c.n_stores && st == MC_OK; i++) {
        st = mt_host_view_write(&c.stores[i]);
    }
    mt_contents_close(&c);
    mc_world_own_end(e->world, own);
    return st == MC_OK ? mt_stage_refresh_params(e->stage) : st;
}

mc_status mt_engine_load(mt_engine *e, mt_weights *w)
{
    return read_items(w, e, false);
}

/* A fixed scale is the flag's. */
static void load_decisions(mt_run *run, const mt_ckpt_state *state)
{
    run->schedule_samples = state->schedule_samples;
    if (run->scale_config.dynamic && state->loss_scale > 0) {
        run->scale = (mt_loss_scale){state->loss_scale, state->loss_scale_good_steps, state->loss_scale_hysteresis};
    }
    mt_stability_restore(&run->stability, state->recent_losses, state->recent_norms, state->n_recent);
}

mc_status mt_run_load(mt_run *run, mt_weights *w, bool weights_only)
{
    const mt_checkpoint *ckpt = mt_weights_checkpoint(w);
    if (!ckpt && !weights_only) {
        return MC_FAIL(MC_INVALID,
                       "--load %s is a directory of Hugging Face, which has nothing to go on from; give it to "
                       "--pretrained-checkpoint",
                       mt_weights_path(w));
    }
    MC_TRY(read_items(w, run->e, !weights_only && !run->o->no_load_optim));
    const mt_ckpt_state *state = ckpt ? mt_checkpoint_state(ckpt) : NULL;
    if (!weights_only) {
        run->iteration = state->iteration;
        run->consumed_samples = state->consumed_samples;
        run->consumed_tokens = state->consumed_tokens;
        run->skipped_iterations = (int64_t)state->skipped_iterations;
        run->best_loss = state->best_loss;
        run->best_iteration = state->best_iteration;
        run->e->optimizer->steps = run->o->no_load_optim ? 0 : state->optimizer_steps;
        run->loaded_iteration = state->iteration;
        load_decisions(run, state);
    }
    if (run->metrics.speaks) {
        char iteration[40] = "";
        if (state) {
            snprintf(iteration, sizeof iteration, ", iteration %lld", (long long)state->iteration);
        }
        printf("loaded %s%s%s\n", mt_weights_path(w), iteration, weights_only ? ", weights only" : "");
        fflush(stdout);
    }
    return MC_OK;
}

mc_status mt_run_rewind(mt_run *run, bool *done_out)
{
    bool own = run->saved_iteration >= 0;
    int64_t from = own ? run->saved_iteration : run->loaded_iteration;
    *done_out = from >= 0;
    if (!*done_out) {
        return MC_OK;
    }
    MC_TRY(mt_saver_finish(run));
    mt_run now = *run;
    mt_weights *w;
    MC_TRY(mt_weights_open(own ? run->o->save : run->o->load, from, &w));
    mc_status st = mt_run_load(run, w, false);
    mt_weights_close(w);
    run->iteration = now.iteration;
    run->consumed_samples = now.consumed_samples;
    run->consumed_tokens = now.consumed_tokens;
    run->skipped_iterations = now.skipped_iterations;
    run->best_loss = now.best_loss;
    run->best_iteration = now.best_iteration;
    run->loaded_iteration = now.loaded_iteration;
    return st;
}
