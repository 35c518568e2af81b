#include "megac/train/checkpoint/saver.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "megac/base/alloc.h"
#include "megac/base/clock.h"
#include "megac/base/file.h"
#include "megac/train/checkpoint/ckpt_retain.h"
#include "megac/train/run.h"

mc_status mt_saver_open(mt_run *run)
{
    char path[MC_PATH_BYTES];
    mt_saver *s = &run->saver;
    s->last_save = run->started_seconds;
    s->lock = -1;
    if (!run->o->save || mc_world_job(run->world)->rank != 0) {
        return MC_OK;
    }
    MC_TRY(mc_file_make_dirs(run->o->save));
    MC_TRY(mc_path_format(path, "%s/.lock", run->o->save));
    return mc_file_lock(path, "--save: another run writes to this directory", &s->lock);
}

static void drop(mt_saver *s)
{
    mt_ckpt_writer_destroy(s->writer);
    s->writer = NULL;
    mt_contents_close(&s->contents);
    mc_free(s->config);
    s->config = NULL;
    mc_free(s->recent);
    s->recent = NULL;
}

static void join(mt_saver *s)
{
    if (s->threaded) { /* which may never end, on a disk that hangs */
        pthread_join(s->thread, NULL);
        s->threaded = false;
    }
}

void mt_saver_close(mt_run *run)
{
    mt_saver *s = &run->saver;
    join(s);
    drop(s);
    if (s->lock >= 0) {
        close(s->lock);
        s->lock = -1;
    }
}

static void *write_behind(void *arg)
{
    mt_saver *s = arg;
    s->written = mt_ckpt_write(s->writer);
    s->wrote = mc_now();
    __atomic_store_n(&s->done, 1, __ATOMIC_RELEASE);
    return NULL;
}

bool mt_saver_written(const mt_saver *s)
{
    return s->writer && __atomic_load_n(&s->done, __ATOMIC_ACQUIRE);
}

static mc_status begin(mt_run *run, bool snapshot)
{
    mt_saver *s = &run->saver;
    const ds_info *info = ds_source_first_info(run->train.source);
    MC_TRY(mt_options_text(run->o, &s->config));
    int window = run->stability.config.window;
    MC_TRY(MC_NEW_N(&s->recent, 2 * (size_t)window, "losses and norms of the last steps"));
    int n_recent = mt_stability_history(&run->stability, s->recent, s->recent + window);
    MC_TRY(mt_contents_open(&s->contents, run->e, !run->o->no_save_optim, snapshot));
    mt_ckpt_state state = {
        .iteration = run->iteration,
        .consumed_samples = run->consumed_samples,
        .consumed_tokens = run->consumed_tokens,
        .skipped_iterations = (uint64_t)run->skipped_iterations,
        .optimizer_steps = run->e->optimizer->steps,
        .schedule_samples = run->schedule_samples,
        .loss_scale = run->scale_config.dynamic ? run->scale.scale : 0,
        .loss_scale_good_steps = run->scale.good_steps,
        .loss_scale_hysteresis = run->scale.hysteresis_left,
        .recent_losses = s->recent,
        .recent_norms = s->recent + window,
        .n_recent = n_recent,
        .best_loss = run->best_loss,
        .best_iteration = run->best_iteration,
        .config = s->config,
        .tokenizer_kind = info ? info->tokenizer_kind : run->o->tokenizer_type,
    };
    return mt_ckpt_begin(run->o->save, run->world, &state, s->contents.items, s->contents.n_items, &s->writer);
}

/* What follows a durable checkpoint, on rank 0. */
static mc_status settle(mt_run *run)
{
    const mt_options *o = run->o;
    const mt_saver *s = &run->saver;
    bool best = o->save_best && s->best_iteration == s->iteration;
    if (mc_world_job(run->world)->rank != 0) {
        return MC_OK;
    }
    mt_retain policy = {
        .newest = s->iteration,
        .keep_last = mc_given_int(o->keep_last)              ? o->keep_last
                     : mc_given_int(o->save_retain_interval) ? 1
                                                             : 0,
        .interval = mc_given_int(o->save_retain_interval) ? o->save_retain_interval : 0,
        .best = o->save_best ? s->best_iteration : -1,
    };
    if (best) {
        MC_TRY(mt_checkpoint_mark_best(o->save, s->iteration));
    }
    uint64_t own = mc_world_own_begin(run->world, "removes old checkpoints of", o->save);
    mt_checkpoint_retain(o->save, &policy);
    mc_world_own_end(run->world, own);
    if (!run->metrics.speaks) {
        return MC_OK;
    }
    printf("saved %s at iteration %lld", o->save, (long long)s->iteration);
    if (s->waited >= 0) {
        printf(" (written in %.3f s behind training, which waited %.3f s)", s->wrote - s->begun, s->waited);
    }
    printf("%s\n", best ? ", the best so far" : "");
    fflush(stdout);
    return MC_OK;
}

static mc_status commit(mt_run *run)
{
    mt_saver *s = &run->saver;
    double started = mc_now();
    uint64_t own = mt_ckpt_note(s->writer);
    join(s);
    mc_world_own_end(run->world, own);
    mc_status st = mt_ckpt_commit(s->writer, s->written);
    drop(s);
    if (s->waited >= 0) {
        s->waited += mc_now() - started;
    }
    return st == MC_OK ? settle(run) : st;
}

mc_status mt_run_save(mt_run *run, bool now)
{
    mt_saver *s = &run->saver;
    bool behind = run->o->async_save && !now;
    MC_TRY(mt_saver_finish(run));
    s->begun = s->last_save = mc_now();
    s->iteration = run->iteration;
    s->best_iteration = run->best_iteration;
    s->done = 0;
    mc_status st = begin(run, behind);
    if (st != MC_OK) {
        drop(s);
        return st;
    }
    run->saved_iteration = run->iteration;
    if (!behind) {
        uint64_t own = mt_ckpt_note(s->writer);
        s->written = mt_ckpt_write(s->writer);
        mc_world_own_end(run->world, own);
        s->waited = -1;
        return commit(run);
    }
    s->threaded = pthread_create(&s->thread, NULL, write_behind, s) == 0;
    if (!s->threaded) { /* a rank without a thread writes at once, and commits when the others do */
        uint64_t own = mt_ckpt_note(s->writer);
        write_behind(s);
        mc_world_own_end(run->world, own);
    }
    s->waited = mc_now() - s->begun;
    return MC_OK;
}

mc_status mt_saver_poll(mt_run *run, int n_written)
{
    return run->saver.writer && n_written == mc_world_job(run->world)->size ? commit(run) : MC_OK;
}

mc_status mt_saver_finish(mt_run *run)
{
    return run->saver.writer ? commit(run) : MC_OK;
}
