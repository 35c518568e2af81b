/* Derived values and contradictions, area by area; the rules of batch sizes, learning rates and stages stand with their
 * owners (batch.c, lr.c, pp_partition.c) and are called from here, so that a mistake shows before any work starts. */
#include "megac/base/log.h"
#include "megac/train/options/options_impl.h"

bool mt_i_trains(const mt_options *o)
{
    return o->command == MT_TRAIN && !o->skip_train;
}

void mt_i_derive(mt_options *o, int64_t *field, int64_t value)
{
    if (!mc_given_int(*field)) {
        *field = value;
        mc_config_set_source(&o->config_, field, MC_FROM_DERIVED);
    }
}

mt_batch_config mt_options_batch(const mt_options *o)
{
    return (mt_batch_config){
        .global_batch = mc_given_int(o->global_batch_size) ? o->global_batch_size : 0,
        .micro_batch = o->micro_batch_size,
        .data_parallel = o->data_parallel_size,
        .rampup = o->rampup_batch_size.n > 0 ? o->rampup_batch_size.v : NULL,
        .step_schedule = o->step_batch_size_schedule,
        .seq_length = o->seq_length,
        .decrease_if_needed = o->decrease_batch_size_if_needed,
    };
}

/* mt_lr_init takes a negative number for "not given". */
static int64_t or_negative(int64_t v)
{
    return mc_given_int(v) ? v : -1;
}

mt_lr_flags mt_options_lr(const mt_options *o, int64_t global_batch)
{
    return (mt_lr_flags){
        .lr = o->lr,
        .min_lr = o->min_lr,
        .lr_warmup_init = o->lr_warmup_init,
        .decoupled_lr = o->decoupled_lr,
        .decoupled_min_lr = o->decoupled_min_lr,
        .weight_decay = o->weight_decay,
        .start_weight_decay = o->start_weight_decay,
        .end_weight_decay = o->end_weight_decay,
        .lr_warmup_fraction = o->lr_warmup_fraction,
        .train_iters = or_negative(o->train_iters),
        .lr_decay_iters = or_negative(o->lr_decay_iters),
        .lr_warmup_iters = o->lr_warmup_iters,
        .lr_wsd_decay_iters = or_negative(o->lr_wsd_decay_iters),
        .train_samples = or_negative(o->train_samples),
        .lr_decay_samples = or_negative(o->lr_decay_samples),
        .lr_warmup_samples = o->lr_warmup_samples,
        .lr_wsd_decay_samples = or_negative(o->lr_wsd_decay_samples),
        .global_batch = global_batch,
        .lr_decay_style = o->lr_decay_style,
        .lr_wsd_decay_style = o->lr_wsd_decay_style,
        .weight_decay_incr_style = o->weight_decay_incr_style,
    };
}

mc_status mt_options_finish_model(mt_options *o)
{
    MC_TRY(mt_i_check_model(o));
    return mt_i_check_attention(o);
}

mc_status mt_options_finish(mt_options *o, int world_size)
{
    MC_TRY(mt_i_check_command(o));
    MC_TRY(mt_i_check_checkpoint(o));
    MC_TRY(mt_options_finish_model(o));
    MC_TRY(mt_i_check_layout(o, world_size));
    MC_TRY(mt_i_check_batch(o));
    MC_TRY(mt_i_check_recompute(o));
    MC_TRY(mt_i_check_length(o));
    MC_TRY(mt_i_check_optimizer(o));
    return mt_i_check_data(o);
}
