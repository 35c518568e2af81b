/* megac train: trains, evaluates and saves. */
#include <stdio.h>
#include <string.h>

#include "megac/base/alloc.h"
#include "megac/base/clock.h"
#include "megac/base/file.h"
#include "megac/base/log.h"
#include "megac/train/commands/commands.h"
#include "megac/train/convert/convert_output.h"
#include "megac/train/model/trace.h"
#include "megac/train/run.h"

/* Whether the set is large enough shows now, not at the first evaluation. */
static mc_status open_valid(mt_run *run)
{
    const mt_options *o = run->o;
    int64_t n_micros;
    MC_TRY(mt_source_open(o, DS_VALID, false, &run->valid.source));
    if (!run->valid.source) {
        return MC_OK;
    }
    MC_TRY(mt_evaluation_micros(&run->e->setup, run->valid.source, mt_eval_steps(o), &n_micros));
    return mt_feed_open(run->e, &run->valid);
}

/* The path of the metrics file: the flag's, else in the directory of checkpoints, else none. */
static mc_status open_metrics(mt_run *run)
{
    const mt_options *o = run->o;
    bool speaks = mc_world_job(run->world)->rank == 0;
    char path[4096];
    const char *file = o->metrics_file;
    if (!file && o->save) {
        int n = snprintf(path, sizeof path, "%s/metrics.jsonl", o->save);
        if (n < 0 || (size_t)n >= sizeof path) {
            return MC_FAIL(MC_INVALID, "--save: the path is longer than %zu bytes", sizeof path - 16);
        }
        file = path;
    }
    MC_TRY(mt_saver_open(run));
    MC_TRY(mt_metrics_open(&run->metrics, file, speaks));
    const mt_setup *s = &run->e->setup;
    mt_flops flops = mt_setup_flops(s);
    double peak = mc_given_float(o->peak_tflops) ? 1e12 * o->peak_tflops : mt_measure_peak(run->e->pool);
    run->metrics.flops_per_token_causal = flops.causal;
    run->metrics.flops_per_token_full = flops.full;
    run->metrics.peak_flops = peak * s->world_size;
    if (!o->skip_train) {
        run->metrics.total_iterations = mc_given_int(o->train_iters)
                                            ? o->train_iters
                                            : mt_batch_iterations(&s->batch, 0, (uint64_t)o->train_samples);
    }
    run->metrics.log_interval = o->log_interval;
    return MC_OK;
}

/* The tokenizer's files that a model of Hugging Face came with stay with its checkpoints. */
static mc_status carry_files(const char *from, const char *save)
{
    char dir[MC_PATH_BYTES], to[MC_PATH_BYTES];
    MC_TRY(mt_carried_dir(from, dir));
    MC_TRY(mc_path_format(to, "%s/%s", save, MT_CARRIED));
    return mc_file_exists(to) ? MC_OK : mt_carry(dir, true, to);
}

/* --override-ckpt-iteration, Megatron-LM's rule: the place in the data follows from the iteration, by this run's batch
 * sizes; what was learned, and how far the learning rate has come, stay the checkpoint's. */
static void override_iteration(mt_run *run)
{
    run->iteration = run->o->override_ckpt_iteration;
    run->consumed_samples = mt_batch_samples(&run->e->setup.batch, 0, run->iteration);
    run->consumed_tokens = run->consumed_samples * (uint64_t)run->o->seq_length;
    run->skipped_iterations = 0;
    if (run->metrics.speaks) {
        MC_INFO("--override-ckpt-iteration: the next step is %lld, from sample %llu on", (long long)run->iteration + 1,
                (unsigned long long)run->consumed_samples);
    }
}

static mc_status load(mt_run *run, mt_session *s)
{
    const mt_options *o = run->o;
    bool override = mc_given_int(o->override_ckpt_iteration);
    if (override && (!s->weights || s->start.weights_only) && run->metrics.speaks) {
        MC_WARN("--override-ckpt-iteration %lld has no effect: --load %s has no checkpoint yet; the run starts at "
                "iteration 0",
                (long long)o->override_ckpt_iteration, o->load);
    }
    if (s->weights) {
        MC_TRY(mt_run_load(run, s->weights, s->start.weights_only));
        mt_session_drop_weights(s);
        if (override && !s->start.weights_only) {
            override_iteration(run);
        }
        return o->save && run->metrics.speaks ? carry_files(s->start.path, o->save) : MC_OK;
    }
    if (o->load && run->metrics.speaks) {
        MC_INFO("--load %s: no checkpoint there yet; starting from scratch (--load-if-exists)", o->load);
    }
    return MC_OK;
}

static void say_hello(const mt_run *run)
{
    const mt_setup *s = &run->e->setup;
    const int *g = s->grid.size;
    if (!run->metrics.speaks) {
        return;
    }
    printf("megac %s: %lld parameters, %d rank%s (TP %d x CP %d x DP %d x PP %d), %d thread%s a rank, %s operators\n",
           MEGAC_VERSION, (long long)mt_params_count(&s->model, true), s->world_size, s->world_size > 1 ? "s" : "",
           g[MC_AXIS_TP], g[MC_AXIS_CP], g[MC_AXIS_DP], g[MC_AXIS_PP], s->n_threads, s->n_threads > 1 ? "s" : "",
           run->e->ly.ops->backend);
    printf(
        "rank 0 reserves %.1f MiB: parameters %.1f, gradients %.1f, optimizer %.1f, activations %.1f, scratch %.1f\n",
        (double)mt_memory_total(&run->e->memory.plan) / 1048576, (double)run->e->memory.plan.params / 1048576,
        (double)run->e->memory.plan.grads / 1048576, (double)run->e->memory.plan.optimizer / 1048576,
        (double)run->e->memory.plan.stash / 1048576, (double)run->e->memory.plan.scratch / 1048576);
    fflush(stdout);
}

static mc_status train(mt_run *run, mt_session *s, mt_end *end_out)
{
    mt_options *o = s->o;
    uint64_t own = mc_world_own_begin(run->world, "opens the data", NULL);
    MC_TRY(mt_source_open(o, DS_TRAIN, false, &run->train.source));
    mc_world_own_end(run->world, own);
    if (!run->train.source) {
        return MC_FAIL(MC_INVALID,
                       "no training data: give --data-path PREFIX (made by `megac prepare`) or --mock-data");
    }
    MC_TRY(mt_engine_create(o, MT_FOR_TRAINING, run->world, run->train.source, &run->e));
    o->vocab_size = run->e->setup.model.vocab; /* a checkpoint's configuration states it, whoever said it here */
    if (!o->skip_train) {                      /* an evaluation needs neither length nor learning rate */
        MC_TRY(mt_setup_lr(&run->e->setup, &run->lr));
    }
    mt_stability_config stability = mt_setup_stability(&run->e->setup);
    MC_TRY(mt_stability_init(&run->stability, &stability));
    run->scale_config = mt_setup_loss_scale(&run->e->setup);
    run->scale = mt_loss_scale_start(&run->scale_config);
    run->metrics.scaled = run->scale.scale != 1;
    MC_TRY(mt_feed_open(run->e, &run->train));
    if (o->trace_tensors) {
        MC_TRY(mt_trace_open(o->trace_tensors, mc_world_job(run->world)->rank, &run->e->dev, run->e->ly.stream,
                             &run->e->stage->trace));
    }
    if (mt_setup_evaluates(o)) {
        MC_TRY(open_valid(run));
    }
    MC_TRY(open_metrics(run));
    say_hello(run);
    MC_TRY(load(run, s));
    MC_TRY(mt_session_started(run->world));
    if (o->skip_train) {
        double loss, tokens;
        *end_out = MT_FINISHED;
        if (!run->valid.loader) {
            return MC_FAIL(MC_INVALID, "--skip-train: nothing to evaluate on; give validation data (--split, "
                                       "--valid-data-path) and --eval-iters above 0 or --full-validation");
        }
        MC_TRY(mt_evaluate(run->e, &run->valid, mt_eval_steps(o), NULL, &loss, &tokens));
        return mt_metrics_eval_done(&run->metrics, run->iteration, "valid", loss, tokens);
    }
    return mt_loop(run, end_out);
}

mc_status mt_cmd_train(const mc_job *job, int argc, char **argv)
{
    mt_session session;
    mt_run run = {.started_seconds = mc_now(), .saved_iteration = -1, .loaded_iteration = -1, .saver = {.lock = -1}};
    mt_end end = MT_FINISHED;
    mt_stop_block(); /* before any thread exists */
    MC_TRY(mt_session_open(&session, MT_TRAIN, job, argc, argv));
    if (session.done) {
        return MC_OK;
    }
    run.o = session.o;
    run.world = session.world;
    if (!run.o->save) {
        mt_stop_unblock();
    }
    mc_status st = run.o->save ? mt_stop_open(&run.stop) : MC_OK;
    if (st == MC_OK) {
        st = train(&run, &session, &end);
    }
    mt_stop_close(run.stop);
    mt_saver_close(&run);
    MC_KEEP_FIRST(st, mt_metrics_close(&run.metrics));
    mt_stability_fini(&run.stability);
    mt_feed_close(&run.train);
    mt_feed_close(&run.valid);
    if (run.e && run.e->stage) {
        MC_KEEP_FIRST(st, mt_trace_close(run.e->stage->trace));
    }
    mt_engine_destroy(run.e);
    if (st == MC_OK && end == MT_STOPPED_EARLY && run.saved_iteration >= 0) {
        st = MC_STOPPED;
    }
    mt_session_close(&session, st);
    return st;
}
