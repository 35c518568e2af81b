/* One training step after another (DESIGN section 2). The loss is scaled here and nowhere else. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "megac/base/alloc.h"
#include "megac/base/clock.h"
#include "megac/base/log.h"
#include "megac/train/model/stage_graphs.h"
#include "megac/train/model/trace.h"
#include "megac/train/run.h"

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
 * second scaling. Summed by the hosts, over the world: every rank of a replica has its weight, a whole number. */
static mc_status total_weight(mt_run *run, double local, double *total_out)
{
    mc_tensor t = mc_tensor_1d(&local, MC_F64, 1);
    if (run->o->eod_mask_loss) {
        const mc_comm *world = mc_world_comm(run->e->world);
        MC_TRY(mc_comm_all_reduce(world, t, t, MC_SUM));
        local /= (double)world->size / run->e->place.dp;
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
    bool late = mc_given_float(minutes) && mc_now() - run->started_seconds >= 60 * minutes;
    return late || mt_stop_wanted(run->stop);
}

/* Rank 0's clock decides when hours have passed. */
static bool wants_to_save(const mt_run *run)
{
    double hours = run->o->save_interval_hours;
    return run->o->save && mc_given_float(hours) && mc_world_job(run->world)->rank == 0 &&
           mc_now() - run->saver.last_save >= 3600 * hours;
}

/* What the rest of a step is told. */
typedef struct step_outcome {
    double loss, grad_norm; /* NaN where the step was passed over */
    double loss_scale;      /* that the step ran with */
    bool updated;
    const char *finding, *decision;
} step_outcome;

/* Only a loss that is finite at a scale that can fall is a plain overflow, which the scale's own rule mends. */
static bool is_overflow(const mt_run *run, double loss, mt_finding finding)
{
    return finding == MT_NOT_FINITE && isfinite(loss) && run->scale_config.dynamic &&
           run->scale.scale > run->scale_config.min;
}

static mc_status stop_here(mt_run *run, const char *text, const char *flag)
{
    long long number = (long long)run->iteration + 1;
    mc_alloc_freeze(false);
    if (run->o->save && run->saved_iteration != run->iteration) {
        MC_TRY(mt_run_save(run, true));
    }
    MC_TRY(mt_saver_finish(run));
    return MC_FAIL(MC_NUMERIC,
                   "step %lld: %s; stopped before the update (%s stop); to go on behind it: "
                   "--iterations-to-skip %lld",
                   number, text, flag, number);
}

/* A step that must not be trained on: its update is left out, and what the policy asks for besides is done. Every rank
 * comes to the same. */
static mc_status leave_out(mt_run *run, mt_finding finding, const char *text, step_outcome *out)
{
    mt_policy policy = mt_policy_of(&run->stability.config, finding);
    const char *flag = finding == MT_NOT_FINITE ? "--nan-policy" : "--spike-policy";
    bool rewound = false;
    if (policy == MT_POLICY_STOP) {
        return stop_here(run, text, flag);
    }
    if (policy == MT_POLICY_REWIND) {
        mc_alloc_freeze(false);
        MC_TRY(mt_run_rewind(run, &rewound));
    }
    out->finding = mt_finding_name(finding);
    out->decision = rewound ? "rewind" : "skip";
    if (run->metrics.speaks) {
        MC_WARN("step %lld: %s; %s (%s %s)", (long long)run->iteration + 1, text,
                rewound                      ? "back to the last checkpoint's model, past the data since then"
                : policy == MT_POLICY_REWIND ? "no checkpoint yet to go back to: its update is left out"
                                             : "its update is left out",
                flag, mt_policy_name(policy));
    }
    return MC_OK;
}

/* From loss and norm, which are equal on all ranks, to an update or none. */
static mc_status decide(mt_run *run, double lr, step_outcome *out)
{
    char text[200];
    double scale = run->scale.scale, at = (double)run->schedule_samples;
    mt_finding finding = mt_stability_judge(&run->stability, out->loss, out->grad_norm, text, sizeof text);
    bool overflow = is_overflow(run, out->loss, finding);
    if (finding == MT_SANE || finding == MT_NOT_FINITE) {
        mt_loss_scale_update(&run->scale_config, &run->scale, finding == MT_NOT_FINITE);
    }
    if (overflow) {
        out->finding = "overflow";
        out->decision = "skip";
        if (run->metrics.speaks) {
            MC_INFO("step %lld: gradients overflow at loss scale %g; its update is left out, the scale is now %g",
                    (long long)run->iteration + 1, scale, run->scale.scale);
        }
        return MC_OK;
    }
    if (finding != MT_SANE) {
        return leave_out(run, finding, text, out);
    }
    uint64_t own = run->o->optimizer_offload_path
                       ? mc_world_own_begin(run->world, "updates with moments in", run->o->optimizer_offload_path)
                       : 0;
    MC_TRY(mt_optimizer_update(run->e->optimizer, lr, mt_decoupled_lr_at(&run->lr, at),
                               mt_weight_decay_at(&run->lr, at), 1 / scale, out->grad_norm));
    mc_world_own_end(run->world, own);
    mt_stability_accept(&run->stability, out->loss, out->grad_norm);
    out->updated = true;
    return MC_OK;
}

/* Forward, backward and update of the batch that the loader holds. */
static mc_status compute(mt_run *run, int n_micro, double weight, double lr, step_outcome *out)
{
    mt_engine *e = run->e;
    double total, scale = run->scale.scale;
    mt_step_result result;
    pp_stats stats;
    bool poisoned = run->nan_at[0] == run->iteration + 1 && run->nan_at[1] == e->place.dp_rank;
    e->stage->nan_micro = poisoned ? run->nan_at[2] : 0;
    MC_TRY(total_weight(run, weight, &total));
    MC_TRY(mt_engine_run_step(e, run->train.loader, n_micro, true, scale / total, &stats));
    MC_TRY(mt_optimizer_reduce(e->optimizer, n_micro, 1 / scale, &run->votes, &result));
    out->loss = result.loss_sum / total;
    out->grad_norm = result.grad_norm;
    return decide(run, lr, out);
}

static mc_status train_step(mt_run *run, mt_metrics_step *out)
{
    mt_engine *e = run->e;
    int64_t batch = batch_size(run);
    int n_micro = mt_setup_micros(&e->setup, batch);
    double started = mc_now(), weight;
    step_outcome outcome = {.loss = NAN, .grad_norm = NAN, .loss_scale = run->scale.scale};
    run->votes = (mt_votes){
        .stop = wants_to_stop(run),
        .save = wants_to_save(run),
        .written = mt_saver_written(&run->saver),
    };

    mc_world_set_step(run->world, run->iteration + 1);
    MC_TRY(mt_feed_next(run->world, &run->train, &weight));
    uint64_t next = run->consumed_samples + (uint64_t)batch;
    MC_TRY(ds_loader_request(run->train.loader, next,
                             mt_setup_micros(&e->setup, mt_batch_size_at(&e->setup.batch, next))));
    /* Megatron-LM moves its scheduler after an update, and by that only: the rate of a step is that of the samples that
     * were trained on before it. */
    double lr = mt_lr_at(&run->lr, (double)run->schedule_samples);
    bool trains = !passed_over(run);
    mt_trace_step(e->stage->trace, run->iteration + 1);
    MC_TRY(trains ? compute(run, n_micro, weight, lr, &outcome) : mt_optimizer_vote(e->optimizer, &run->votes));

    run->iteration++;
    run->consumed_samples = next;
    run->consumed_tokens += (uint64_t)(batch * run->o->seq_length);
    run->schedule_samples += outcome.updated ? (uint64_t)batch : 0;
    run->skipped_iterations += !outcome.updated;
    *out = (mt_metrics_step){
        .iteration = run->iteration,
        .consumed_samples = run->consumed_samples,
        .consumed_tokens = run->consumed_tokens,
        .tokens = trains ? batch * run->o->seq_length : 0,
        .loss = outcome.loss,
        .learning_rate = lr,
        .grad_norm = outcome.grad_norm,
        .loss_scale = outcome.loss_scale,
        .seconds = mc_now() - started,
        .skipped = !outcome.updated,
        .finding = outcome.finding,
        .decision = outcome.decision,
    };
    return MC_OK;
}

/* Files, and pipes that nobody empties, may block. */
static mc_status tell(mt_run *run, const mt_metrics_step *step)
{
    if (!run->metrics.speaks) {
        return MC_OK;
    }
    uint64_t own = mc_world_own_begin(run->world, "writes metrics and progress", NULL);
    mc_status st = mt_metrics_step_done(&run->metrics, step);
    mc_world_own_end(run->world, own);
    return st;
}

static mc_status evaluate_if_due(mt_run *run)
{
    const mt_options *o = run->o;
    double loss, tokens;
    if (!run->valid.loader || !mc_given_int(o->eval_interval) || run->iteration % o->eval_interval != 0) {
        return MC_OK;
    }
    MC_TRY(mt_evaluate(run->e, &run->valid, mt_eval_steps(o), NULL, &loss, &tokens));
    if (o->save_best && isfinite(loss) && (run->best_iteration == 0 || loss < run->best_loss)) {
        run->best_loss = loss;
        run->best_iteration = run->iteration;
    }
    return mt_metrics_eval_done(&run->metrics, run->iteration, "valid", loss, tokens);
}

static mc_status save_if_due(mt_run *run, bool ending)
{
    const mt_options *o = run->o;
    bool due = (mc_given_int(o->save_interval) && run->iteration % o->save_interval == 0) || run->votes.save > 0 ||
               run->best_iteration == run->iteration;
    MC_TRY(mt_saver_poll(run, (int)run->votes.written));
    if (o->save && run->saved_iteration != run->iteration && (due || ending)) {
        MC_TRY(mt_run_save(run, ending));
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

/* Tests only: MEGAC_TEST_NAN=STEP:RANK:MICRO makes the loss scale of that micro-batch (from 1 on) of that data-parallel
 * rank NaN. */
static void read_test_faults(mt_run *run)
{
    const char *at = getenv("MEGAC_TEST_NAN");
    if (at && sscanf(at, "%d:%d:%d", &run->nan_at[0], &run->nan_at[1], &run->nan_at[2]) == 3) {
        MC_WARN("MEGAC_TEST_NAN=%s: a test's fault is planted", at);
    }
}

mc_status mt_loop(mt_run *run, mt_end *end_out)
{
    bool stop = false;
    int64_t first_iteration = run->iteration;
    read_test_faults(run);
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
        double started = mc_now();
        mc_alloc_freeze(run->iteration > first_iteration);
        MC_TRY(train_step(run, &step));
        MC_TRY(tell(run, &step));
        MC_TRY(evaluate_if_due(run));
        profile_step(run, run->iteration - first_iteration, mc_now() - started);
        stop =
            run->votes.stop > 0 || (mc_given_int(run->o->exit_interval) && run->iteration % run->o->exit_interval == 0);
        mc_alloc_freeze(false); /* a checkpoint's tables are not part of a step */
        MC_TRY(save_if_due(run, stop || finished(run)));
    }
    MC_TRY(mt_shards_settle(&run->e->stage->shards)); /* the last update's parameters, which no step asked for */
    if (run->o->log_operators && run->metrics.speaks && run->profiled_seconds > 0) {
        ly_profile_print(&run->profile, run->profiled_seconds, stdout);
    }
    if (run->e->stage->graphs && run->metrics.speaks) {
        MC_INFO("--cuda-graphs: %lld launches", (long long)mt_graphs_launched(run->e->stage->graphs));
    }
    mc_alloc_stats heap = mc_alloc_get_stats();
    if (heap.after_freeze > 0) {
        MC_WARN("%zu allocations after the first step, the first for %s", heap.after_freeze, heap.first_after_freeze);
    }
    *end_out = finished(run) ? MT_FINISHED : MT_STOPPED_EARLY;
    return MC_OK;
}
