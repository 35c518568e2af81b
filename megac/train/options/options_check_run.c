/* Rules of the run: batch, length, learning rate, data, checkpoints. */
#include <string.h>

#include "megac/base/log.h"
#include "megac/train/options/options_impl.h"

/* A run counted in steps has steps of one size. */
static mc_status check_ramp_unit(const mt_options *o)
{
    const int64_t *v = o->rampup_batch_size.v;
    if (!mc_given_int(o->train_iters)) {
        return MC_OK;
    }
    if (o->rampup_batch_size.n == 3) {
        return MC_FAIL(
            MC_INVALID,
            "--rampup-batch-size %lld %lld %lld: does not go with --train-iters, as steps differ in size; use "
            "--train-samples instead",
            (long long)v[0], (long long)v[1], (long long)v[2]);
    }
    if (o->step_batch_size_schedule) {
        return MC_FAIL(
            MC_INVALID,
            "--step-batch-size-schedule \"%s\": does not go with --train-iters, as steps differ in size; use "
            "--train-samples instead",
            o->step_batch_size_schedule);
    }
    return MC_OK;
}

mc_status mt_i_check_batch(mt_options *o)
{
    if (!mc_given_int(o->micro_batch_size) && (o->command == MT_TRAIN || o->command == MT_PLAN)) {
        return MC_FAIL(MC_INVALID, "--micro-batch-size is missing; give it, for example --micro-batch-size 4");
    }
    mt_i_derive(o, &o->micro_batch_size, 1);
    int n = o->rampup_batch_size.n;
    if (n != 0 && n != 3) {
        return MC_FAIL(MC_INVALID, "--rampup-batch-size: takes START INCREMENT SAMPLES and got %d numbers", n);
    }
    if (n == 3 && !mc_given_int(o->global_batch_size)) {
        return MC_FAIL(MC_INVALID, "--rampup-batch-size needs --global-batch-size, the size that it grows to");
    }
    MC_TRY(check_ramp_unit(o));
    if (!o->step_batch_size_schedule) {
        mt_i_derive(o, &o->global_batch_size, o->micro_batch_size * o->data_parallel_size);
    }
    if (o->command == MT_EVAL || o->command == MT_GENERATE) {
        return MC_OK; /* what was trained with need not fit the ranks of an evaluation */
    }
    mt_batch batch = {0};
    mt_batch_config config = mt_options_batch(o);
    mc_status st = mt_batch_init(&batch, &config);
    mt_batch_fini(&batch);
    return st;
}

/* Options that count steps do not go with --train-samples, and the other way round. */
static mc_status check_units(const mt_options *o)
{
    bool by_samples = mc_given_int(o->train_samples);
    const struct {
        const char *flag, *instead;
        bool wrong;
    } units[] = {
        {"--lr-decay-iters", "--lr-decay-samples", by_samples && mc_given_int(o->lr_decay_iters)},
        {"--lr-warmup-iters", "--lr-warmup-samples", by_samples && o->lr_warmup_iters > 0},
        {"--lr-wsd-decay-iters", "--lr-wsd-decay-samples", by_samples && mc_given_int(o->lr_wsd_decay_iters)},
        {"--lr-decay-samples", "--lr-decay-iters", !by_samples && mc_given_int(o->lr_decay_samples)},
        {"--lr-warmup-samples", "--lr-warmup-iters", !by_samples && o->lr_warmup_samples > 0},
        {"--lr-wsd-decay-samples", "--lr-wsd-decay-iters", !by_samples && mc_given_int(o->lr_wsd_decay_samples)},
    };
    for (size_t i = 0; i < sizeof units / sizeof units[0]; i++) {
        if (units[i].wrong) {
            return MC_FAIL(MC_INVALID, "%s does not go with --train-%s; use %s", units[i].flag,
                           by_samples ? "samples" : "iters", units[i].instead);
        }
    }
    return MC_OK;
}

/* lr.c has the rule in samples; here it names the flag. */
static mc_status check_warmup(const mt_options *o)
{
    bool by_samples = mc_given_int(o->train_samples);
    int64_t run = by_samples ? o->train_samples : o->train_iters;
    int64_t decay = by_samples ? o->lr_decay_samples : o->lr_decay_iters;
    int64_t warmup = by_samples ? o->lr_warmup_samples : o->lr_warmup_iters;
    const char *unit = by_samples ? "samples" : "iters";
    decay = mc_given_int(decay) ? decay : run;
    if (warmup >= decay) {
        return MC_FAIL(MC_INVALID,
                       "--lr-warmup-%s %lld: warm-up must be shorter than the decay of the learning rate, %lld "
                       "(--lr-decay-%s, else --train-%s); shorten it",
                       unit, (long long)warmup, (long long)decay, unit, unit);
    }
    return MC_OK;
}

static mc_status check_overflow(const mt_options *o)
{
    int64_t steps = mc_given_int(o->train_iters) ? o->train_iters : 1, tokens;
    int64_t samples = mc_given_int(o->train_samples) ? o->train_samples : o->global_batch_size;
    if (__builtin_mul_overflow(steps, samples, &tokens) || __builtin_mul_overflow(tokens, o->seq_length, &tokens)) {
        return MC_FAIL(MC_INVALID, "--train-%s %lld: the tokens of the run exceed 64 bits; train for less",
                       mc_given_int(o->train_iters) ? "iters" : "samples",
                       (long long)(mc_given_int(o->train_iters) ? o->train_iters : o->train_samples));
    }
    return MC_OK;
}

mc_status mt_i_check_length(mt_options *o)
{
    bool iters = mc_given_int(o->train_iters), samples = mc_given_int(o->train_samples);
    if (iters && samples) {
        return MC_FAIL(MC_INVALID, "--train-iters %lld and --train-samples %lld: the run has one length; keep one",
                       (long long)o->train_iters, (long long)o->train_samples);
    }
    if (!mt_i_trains(o)) {
        return MC_OK;
    }
    if (!iters && !samples) {
        return MC_FAIL(MC_INVALID, "the run has no length; give --train-iters or --train-samples");
    }
    MC_TRY(check_units(o));
    MC_TRY(check_warmup(o));
    return check_overflow(o);
}

/* Megatron-LM's rule: constant has one value, the other styles need both ends. */
static mc_status check_weight_decay(mt_options *o)
{
    bool start = mc_given_float(o->start_weight_decay), end = mc_given_float(o->end_weight_decay);
    bool constant = strcmp(o->weight_decay_incr_style, "constant") == 0;
    if (!constant && (!start || !end)) {
        return MC_FAIL(MC_INVALID, "--weight-decay-incr-style %s needs --start-weight-decay and --end-weight-decay",
                       o->weight_decay_incr_style);
    }
    if (constant && (start || end) &&
        !(o->start_weight_decay == o->weight_decay && o->end_weight_decay == o->weight_decay)) {
        return MC_FAIL(MC_INVALID,
                       "%s %g: --weight-decay-incr-style is constant, with --weight-decay %g; choose linear or cosine",
                       start ? "--start-weight-decay" : "--end-weight-decay",
                       start ? o->start_weight_decay : o->end_weight_decay, o->weight_decay);
    }
    if (constant) {
        o->start_weight_decay = o->end_weight_decay = o->weight_decay;
        mc_config_set_source(&o->config_, &o->start_weight_decay, MC_FROM_DERIVED);
        mc_config_set_source(&o->config_, &o->end_weight_decay, MC_FROM_DERIVED);
    }
    return MC_OK;
}

/* A loss scale belongs to 16-bit types; Megatron-LM takes its flags without effect in fp32 too. */
static void warn_loss_scale(const mt_options *o)
{
    /* Other values than the rows' own: a file of printed options gives them all. */
    bool dynamic = o->initial_loss_scale != 4294967296.0 || o->min_loss_scale != 1 || o->loss_scale_window != 1000 ||
                   o->hysteresis != 2 || o->consecutive_hysteresis;
    bool fixed = mc_given_float(o->loss_scale);
    if (fixed && !o->fp16 && !o->bf16) {
        MC_WARN("--loss-scale %g: no effect, fp32 needs no loss scale", o->loss_scale);
    } else if (dynamic && (fixed || !o->fp16)) {
        MC_WARN("--initial-loss-scale, --min-loss-scale, --loss-scale-window, --hysteresis, --consecutive-hysteresis: "
                "no effect %s",
                fixed ? "with a static --loss-scale" : "without --fp16");
    }
}

/* A rewind needs a checkpoint of everything that it takes back. */
static mc_status check_stability(const mt_options *o)
{
    bool spikes = strcmp(o->spike_policy, "rewind") == 0, rewinds = spikes || strcmp(o->nan_policy, "rewind") == 0;
    const char *flag = spikes ? "--spike-policy rewind" : "--nan-policy rewind";
    if (rewinds && !(o->save && mc_given_int(o->save_interval))) {
        return MC_FAIL(MC_INVALID, "%s: there is no checkpoint to go back to; give --save DIR --save-interval N", flag);
    }
    if (rewinds && (o->no_save_optim || o->no_load_optim)) {
        return MC_FAIL(MC_INVALID, "%s: a rewind needs the optimizer's state; leave %s out", flag,
                       o->no_save_optim ? "--no-save-optim" : "--no-load-optim");
    }
    if (o->fp16 && !mc_given_float(o->loss_scale) && o->min_loss_scale > o->initial_loss_scale) {
        return MC_FAIL(MC_INVALID, "--min-loss-scale %g is above --initial-loss-scale %g; lower it", o->min_loss_scale,
                       o->initial_loss_scale);
    }
    return MC_OK;
}

/* 16-bit states of the optimizer. */
static mc_status check_state_types(const mt_options *o)
{
    bool params = strcmp(o->main_params_dtype, "bf16") == 0, grads = strcmp(o->main_grads_dtype, "bf16") == 0;
    bool moments = strcmp(o->exp_avg_dtype, "fp32") != 0 || strcmp(o->exp_avg_sq_dtype, "fp32") != 0;
    if ((params || grads) && !o->bf16) {
        return MC_FAIL(MC_INVALID, "--main-%s-dtype bf16 goes with --bf16; give that, or leave it out",
                       params ? "params" : "grads");
    }
    if ((params || moments) && strcmp(o->optimizer, "adam") != 0) {
        return MC_FAIL(MC_INVALID,
                       "--optimizer %s keeps fp32 states; leave --main-params-dtype, --exp-avg-dtype and "
                       "--exp-avg-sq-dtype out",
                       o->optimizer);
    }
    if ((o->optimizer_cpu_offload || o->optimizer_offload_path) && strcmp(o->optimizer, "adam") != 0) {
        return MC_FAIL(MC_INVALID, "--optimizer %s has no moments to offload; leave %s out", o->optimizer,
                       o->optimizer_cpu_offload ? "--optimizer-cpu-offload" : "--optimizer-offload-path");
    }
    if (o->optimizer_cpu_offload && o->optimizer_offload_path) {
        return MC_FAIL(MC_INVALID,
                       "--optimizer-cpu-offload and --optimizer-offload-path %s: one place or the other; leave "
                       "one out",
                       o->optimizer_offload_path);
    }
    if (grads && o->data_parallel_size > 1 && o->zero < 2) {
        return MC_FAIL(MC_INVALID,
                       "--main-grads-dtype bf16: %lld replicas sum in fp32 with --zero 2 or 3 only; give that",
                       (long long)o->data_parallel_size);
    }
    return MC_OK;
}

/* Parameters in host memory are copies: of main parameters, whole or this rank's part. */
static mc_status check_offloaded_params(const mt_options *o)
{
    bool copies = (o->bf16 || o->fp16) && strcmp(o->main_params_dtype, "bf16") != 0;
    if (o->cpu_offloading_weights && !copies) {
        return MC_FAIL(
            MC_INVALID,
            "--cpu-offloading-weights: the optimizer updates %s parameters where they are used; use --bf16 or "
            "--fp16 with --main-params-dtype fp32, or leave it out",
            o->bf16 ? "bf16" : "fp32");
    }
    if (o->cpu_offloading_weights && o->data_parallel_size > 1 && (o->zero == 1 || o->zero == 2)) {
        return MC_FAIL(
            MC_INVALID,
            "--cpu-offloading-weights with --zero %lld: replicas share out parameters with --zero 3 only; use "
            "that, or 0",
            (long long)o->zero);
    }
    return MC_OK;
}

mc_status mt_i_check_optimizer(mt_options *o)
{
    MC_TRY(check_weight_decay(o));
    if (mc_given_float(o->decoupled_min_lr) && !mc_given_float(o->decoupled_lr)) {
        return MC_FAIL(MC_INVALID, "--decoupled-min-lr %g: needs --decoupled-lr", o->decoupled_min_lr);
    }
    bool phase = mc_given_int(o->lr_wsd_decay_iters) || mc_given_int(o->lr_wsd_decay_samples);
    if (phase && strcmp(o->lr_decay_style, "WSD") != 0) {
        return MC_FAIL(MC_INVALID, "%s needs --lr-decay-style WSD, not %s",
                       mc_given_int(o->lr_wsd_decay_iters) ? "--lr-wsd-decay-iters" : "--lr-wsd-decay-samples",
                       o->lr_decay_style);
    }
    if (o->command == MT_TRAIN || o->command == MT_PLAN) {
        MC_TRY(check_state_types(o));
        MC_TRY(check_offloaded_params(o));
    }
    if (!mt_i_trains(o)) {
        return MC_OK;
    }
    warn_loss_scale(o);
    MC_TRY(check_stability(o));
    mt_batch batch = {0};
    mt_batch_config sizes = mt_options_batch(o);
    MC_TRY(mt_batch_init(&batch, &sizes));
    mt_lr_flags flags = mt_options_lr(o, mt_batch_max(&batch));
    mt_batch_fini(&batch);
    mt_lr_config lr;
    return mt_lr_init(&lr, &flags);
}

mc_status mt_i_check_checkpoint(mt_options *o)
{
    const struct {
        const char *flag;
        bool given;
    } needs_load[] = {
        {"--finetune", o->finetune},
        {"--ckpt-step", mc_given_int(o->ckpt_step)},
        {"--override-ckpt-iteration", mc_given_int(o->override_ckpt_iteration)},
        {"--use-checkpoint-args", o->use_checkpoint_args && !o->pretrained_checkpoint},
        {"--load-if-exists", o->load_if_exists},
    };
    for (size_t i = 0; i < sizeof needs_load / sizeof needs_load[0]; i++) {
        if (needs_load[i].given && !o->load) {
            return MC_FAIL(MC_INVALID, "%s needs --load DIR", needs_load[i].flag);
        }
    }
    if (mc_given_int(o->override_ckpt_iteration) && (o->finetune || o->command != MT_TRAIN)) {
        return MC_FAIL(MC_INVALID, "--override-ckpt-iteration %lld: %s", (long long)o->override_ckpt_iteration,
                       o->finetune ? "--finetune starts at iteration 0; leave one of the two out"
                                   : "steps are counted by megac train alone; leave the flag out");
    }
    if (!o->load && (o->command == MT_EVAL || o->command == MT_GENERATE)) {
        return MC_FAIL(MC_INVALID, "--load is missing; give the directory of a checkpoint");
    }
    if (o->pretrained_checkpoint && (o->command == MT_EVAL || o->command == MT_GENERATE)) {
        return MC_FAIL(MC_INVALID, "--pretrained-checkpoint %s: is read by megac train; give it to --load here",
                       o->pretrained_checkpoint);
    }
    if (o->load_if_exists && o->command != MT_TRAIN) {
        return MC_FAIL(MC_INVALID, "--load-if-exists: without a checkpoint there is nothing to do; leave the flag out");
    }
    return MC_OK;
}

mc_status mt_i_check_command(mt_options *o)
{
    if (o->command != MT_GENERATE) {
        return MC_OK;
    }
    if (o->prompt && o->prompts) {
        return MC_FAIL(MC_INVALID, "--prompt and --prompts %s: keep one of the two", o->prompts);
    }
    if (o->greedy && mt_options_given(o, &o->temperature) && o->temperature > 0) {
        return MC_FAIL(MC_INVALID, "--greedy and --temperature %g contradict each other; keep one", o->temperature);
    }
    const char *always = o->greedy ? "--greedy" : o->temperature > 0 ? NULL : "--temperature 0";
    if (always && o->top_k > 0) {
        return MC_FAIL(MC_INVALID,
                       "%s always takes the likeliest token: --top-k %lld has nothing to choose from; "
                       "leave one out",
                       always, (long long)o->top_k);
    }
    if (always && o->top_p > 0) {
        return MC_FAIL(MC_INVALID,
                       "%s always takes the likeliest token: --top-p %g has nothing to choose from; "
                       "leave one out",
                       always, o->top_p);
    }
    return MC_OK;
}
