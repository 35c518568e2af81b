/* One training step after another (DESIGN section 2). The loss is scaled here and nowhere else. */
#include <math.h>
#include <string.h>
#include <time.h>

#include "megac/base/alloc.h"
#include "megac/base/log.h"
#include "megac/train/run.h"
#include "megac/train/trace.h"

double mt_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int64_t batch_size(const mt_run *run)
{
    return mt_batch_size_at(&run->e->setup.batch, run->consumed_samples);
}

/* By samples, the run ends where the next step would exceed them, as mt_batch_iterations counts (Megatron-LM's rule).
 */
static bool finished(const mt_run *run)
{
    const mt_options *o = run->o;
    return mc_given_int(o->train_iters)
               ? run->iteration >= o->train_iters
               : run->consumed_samples + (uint64_t)batch_size(run) > (uint64_t)o->train_samples;
}

/* Whether --iterations-to-skip names the coming iteration. */
static bool passed_over(const mt_run *run)
{
    for (int i = 0; i < run->o->iterations_to_skip.n; i++) {
        if (run->o->iterations_to_skip.v[i] == run->iteration + 1) {
            return true;
        }
    }
    return false;
}

/* Loss weights of the global batch: masked tokens weigh nothing. Known before the backward, so that gradients need no
 * second scaling. */
static mc_status total_weight(mt_run *run, double local, double *total_out)
{
    mc_tensor t = mc_tensor_1d(&local, MC_F64, 1);
    if (run->o->eod_mask_loss) {
        MC_TRY(mc_comm_all_reduce(&run->e->groups.dp, t, t, MC_SUM));
        *total_out = local > 0 ? local : 1; /* a batch of masked tokens only: loss 0, gradient 0 */
        return MC_OK;
    }
    *total_out = local * run->e->place.dp;
    return MC_OK;
}

/* A signal, or the end of the time given. */
static bool wants_to_stop(const mt_run *run)
{
    double minutes = run->o->exit_duration_in_mins;
    bool late = mc_given_float(minutes) && mt_now() - run->started_seconds >= 60 * minutes;
    return late || mt_stop_wanted(run->stop);
}

/* Rank 0's clock decides when hours have passed. */
static bool wants_to_save(const mt_run *run)
{
    double hours = run->o->save_interval_hours;
    return run->o->save && mc_given_float(hours) && mc_world_job(run->world)->rank == 0 &&
           mt_now() - run->saver.last_save >= 3600 * hours;
}

static mc_status train_step(mt_run *run, mt_metrics_step *out)
{
    mt_engine *e = run->e;
    int64_t batch = batch_size(run);
    int n_micro = mt_setup_micros(&e->setup, batch);
    double started = mt_now(), weight, total;
    mt_votes votes = {
        .stop = wants_to_stop(run),
        .save = wants_to_save(run),
        .written = mt_saver_written(&run->saver),
    };
    mt_step_result result = {0};
    pp_stats stats;

    MC_TRY(ds_loader_next(run->train.loader, &weight));
    uint64_t next = run->consumed_samples + (uint64_t)batch;
    MC_TRY(ds_loader_request(run->train.loader, next,
                             mt_setup_micros(&e->setup, mt_batch_size_at(&e->setup.batch, next))));
    /* Megatron-LM moves its scheduler after the update: the rate of a step is that of the samples before it. */
    double at = (double)run->consumed_samples, lr = mt_lr_at(&run->lr, at);
    bool trains = !passed_over(run);
    mt_trace_step(e->stage->trace, run->iteration + 1);
    if (trains) {
        MC_TRY(total_weight(run, weight, &total));
        MC_TRY(mt_engine_run_step(e, run->train.loader, n_micro, true, 1 / total, &stats));
        MC_TRY(mt_optimizer_step(e->optimizer, lr, mt_decoupled_lr_at(&run->lr, at), mt_weight_decay_at(&run->lr, at),
                                 n_micro, &votes, &result));
        result.loss_sum /= total;
    } else {
        MC_TRY(mt_optimizer_vote(e->optimizer, &votes));
        result = (mt_step_result){.loss_sum = NAN, .grad_norm = NAN, .skipped = true};
    }
    run->votes = votes;

    run->iteration++;
    run->consumed_samples = next;
    run->consumed_tokens += (uint64_t)(batch * run->o->seq_length);
    run->skipped_iterations += result.skipped;
    *out = (mt_metrics_step){
        .iteration = run->iteration,
        .consumed_samples = run->consumed_samples,
        .consumed_tokens = run->consumed_tokens,
        .tokens = trains ? batch * run->o->seq_length : 0,
        .loss = result.loss_sum,
        .learning_rate = lr,
        .grad_norm = result.grad_norm,
        .loss_scale = 1,
        .seconds = mt_now() - started,
        .skipped = result.skipped,
    };
    return MC_OK;
}

static mc_status evaluate_if_due(mt_run *run)
{
    const mt_options *o = run->o;
    double loss, tokens;
    if (!run->valid.loader || !mc_given_int(o->eval_interval) || run->iteration % o->eval_interval != 0) {
        return MC_OK;
    }
    MC_TRY(mt_evaluate(run->e, &run->valid, mt_eval_steps(o), &loss, &tokens));
    if (o->save_best && (run->best_iteration == 0 || loss < run->best_loss)) {
        run->best_loss = loss;
        run->best_iteration = run->iteration;
        run->best_is_now = true;
    }
    return mt_metrics_eval_done(&run->metrics, run->iteration, "valid", loss, tokens);
}

static mc_status save_if_due(mt_run *run, bool ending)
{
    const mt_options *o = run->o;
    bool best = run->best_is_now;
    bool due =
        (mc_given_int(o->save_interval) && run->iteration % o->save_interval == 0) || run->votes.save > 0 || best;
    run->best_is_now = false;
    MC_TRY(mt_saver_poll(run, (int)run->votes.written));
    if (o->save && run->saved_iteration != run->iteration && (due || ending)) {
        MC_TRY(mt_run_save(run, best, ending));
    }
    return ending ? mt_saver_finish(run) : MC_OK;
}

/* Operators are timed from the third step on, in evaluations too: the first two steps warm caches and pages. */
static void profile_step(mt_run *run, int64_t steps_done, double seconds)
{
    if (run->o->log_operators && steps_done == 2) {
        ly_profile_attach(&run->profile, &run->e->stage->ly);
    } else if (steps_done > 2) {
        run->profiled_seconds += seconds;
    }
}

mc_status mt_loop(mt_run *run, mt_end *end_out)
{
    bool stop = false;
    int64_t first_iteration = run->iteration;
    if (!finished(run)) {
        MC_TRY(ds_loader_request(run->train.loader, run->consumed_samples,
                                 mt_setup_micros(&run->e->setup, batch_size(run))));
    } else if (run->metrics.speaks) {
        MC_WARN("nothing to train: the run was complete at iteration %lld, after %llu samples; raise --train-%s",
                (long long)run->iteration, (unsigned long long)run->consumed_samples,
                mc_given_int(run->o->train_iters) ? "iters" : "samples");
    }
    while (!finished(run) && !stop) {
        mt_metrics_step step;
        double started = mt_now();
        mc_alloc_freeze(run->iteration > first_iteration);
        MC_TRY(train_step(run, &step));
        MC_TRY(mt_metrics_step_done(&run->metrics, &step));
        MC_TRY(evaluate_if_due(run));
        profile_step(run, run->iteration - first_iteration, mt_now() - started);
        stop =
            run->votes.stop > 0 || (mc_given_int(run->o->exit_interval) && run->iteration % run->o->exit_interval == 0);
        mc_alloc_freeze(false); /* a checkpoint's tables are not part of a step */
        MC_TRY(save_if_due(run, stop || finished(run)));
    }
    MC_TRY(mt_shards_settle(&run->e->stage->shards)); /* the last update's parameters, which no step asked for */
    if (run->o->log_operators && run->metrics.speaks && run->profiled_seconds > 0) {
        ly_profile_print(&run->profile, run->profiled_seconds, stdout);
    }
    mc_alloc_stats heap = mc_alloc_get_stats();
    if (heap.after_freeze > 0) {
        MC_WARN("%zu allocations after the first step, the first for %s", heap.after_freeze, heap.first_after_freeze);
    }
    *end_out = finished(run) ? MT_FINISHED : MT_STOPPED_EARLY;
    return MC_OK;
}
