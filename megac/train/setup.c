#include "megac/train/setup.h"

#include <sched.h>
#include <string.h>
#include <unistd.h>

#include "megac/base/alloc.h"

/* Logits of one chunk of the output layer: small beside the activations, large enough that a matrix product over the
 * chunk outweighs reading the weight. */
static const int64_t HEAD_CHUNK_BYTES = 128 << 20;

static mc_status set_layers(mt_setup *s)
{
    int pp = s->grid.size[MC_AXIS_PP];
    pp_partition p = mt_options_partition(s->o);
    MC_TRY(MC_NEW_N(&s->first_layer, pp, "layers of the stages"));
    MC_TRY(MC_NEW_N(&s->n_layers, pp, "layers of the stages"));
    return pp_partition_layers(&p, s->first_layer, s->n_layers);
}

static mc_status set_batch(mt_setup *s)
{
    mt_batch_config c = mt_options_batch(s->o);
    if (s->purpose != MT_FOR_TRAINING) {
        /* The batch that was trained with need not fit these ranks: the nearest smaller one that does. */
        int64_t unit = c.micro_batch * c.data_parallel, fits = c.global_batch / unit;
        c = (mt_batch_config){.global_batch = (fits > 1 ? fits : 1) * unit,
                              .micro_batch = c.micro_batch,
                              .data_parallel = c.data_parallel};
    }
    MC_TRY(mt_batch_init(&s->batch, &c));
    int64_t samples = s->o->train_samples;
    if (s->purpose == MT_FOR_TRAINING && mc_given_int(samples) && !s->o->skip_train &&
        mt_batch_iterations(&s->batch, 0, (uint64_t)samples) == 0) {
        return MC_FAIL(MC_INVALID, "--train-samples %lld: fewer than the first step's batch of %lld; train for more",
                       (long long)samples, (long long)mt_batch_size_at(&s->batch, 0));
    }
    s->max_micro = mt_setup_micros(s, mt_batch_max(&s->batch));
    return MC_OK;
}

static mc_dtype moment_type(const char *name)
{
    return strcmp(name, "bf16") == 0 ? MC_BF16 : strcmp(name, "fp16") == 0 ? MC_F16 : MC_F32;
}

static mt_optimizer_config optimizer_config(const mt_options *o)
{
    return (mt_optimizer_config){
        .kind = strcmp(o->optimizer, "sgd") == 0 ? MT_SGD : MT_ADAM,
        .beta1 = (float)o->adam_beta1,
        .beta2 = (float)o->adam_beta2,
        .eps = (float)o->adam_eps,
        .momentum = (float)o->sgd_momentum,
        .clip_grad = o->clip_grad,
        .exp_avg = moment_type(o->exp_avg_dtype),
        .exp_avg_sq = moment_type(o->exp_avg_sq_dtype),
        .offload = o->optimizer_cpu_offload || o->optimizer_offload_path,
        .offload_dir = o->optimizer_offload_path,
        .snapshots = o->save && o->async_save,
    };
}

static int threads(const mt_options *o, int local_size)
{
    long share = sysconf(_SC_NPROCESSORS_ONLN) / (local_size > 0 ? local_size : 1);
    cpu_set_t own; /* a launcher or a batch system may have bound this rank to fewer cores than its share */
    if (sched_getaffinity(0, sizeof own, &own) == 0 && CPU_COUNT(&own) < share) {
        share = CPU_COUNT(&own);
    }
    return o->num_threads > 0 ? (int)o->num_threads : share < 1 ? 1 : (int)share;
}

mc_status mt_setup_init(mt_setup *s, const mt_options *o, mt_purpose purpose, int world_size, int local_size,
                        const ds_source *data)
{
    *s = (mt_setup){.o = o, .purpose = purpose, .world_size = world_size};
    s->device = strcmp(o->device, "cuda") == 0 ? "cuda" : "cpu";
    mc_status st;
    MC_TRY_GOTO(st,
                mc_grid_init(world_size, (int)o->tensor_model_parallel_size, (int)o->context_parallel_size, 0,
                             (int)o->pipeline_model_parallel_size, &s->grid),
                undo_setup);
    s->n_threads = threads(o, local_size);
    s->optimizer = optimizer_config(o);
    MC_TRY_GOTO(st, pp_schedule_find(o->pipeline_schedule, &s->schedule), undo_setup);
    MC_TRY_GOTO(st, set_layers(s), undo_setup);
    MC_TRY_GOTO(st, set_batch(s), undo_setup);
    MC_TRY_GOTO(st, mt_model_config_from(o, data, &s->model), undo_setup);
    return MC_OK;
undo_setup:
    mt_setup_fini(s);
    return st;
}

void mt_setup_fini(mt_setup *s)
{
    mt_batch_fini(&s->batch);
    mc_free(s->first_layer);
    mc_free(s->n_layers);
    *s = (mt_setup){0};
}

mt_place mt_setup_place(const mt_setup *s, int rank)
{
    mc_coords at = mc_grid_coords(&s->grid, rank);
    int stage = at.at[MC_AXIS_PP], dp = s->grid.size[MC_AXIS_DP];
    int zero = s->purpose == MT_FOR_TRAINING && dp > 1 ? (int)s->o->zero : 0;
    int instances = zero > 0 ? (int)s->o->num_distributed_optimizer_instances : 1;
    return (mt_place){
        .tp = s->grid.size[MC_AXIS_TP],
        .tp_rank = at.at[MC_AXIS_TP],
        .dp = dp,
        .dp_rank = at.at[MC_AXIS_DP],
        .pp = s->grid.size[MC_AXIS_PP],
        .zero = zero,
        .instances = instances,
        .instance = at.at[MC_AXIS_DP] / (dp / instances),
        .stage = stage,
        /* Generation runs sequences of any length: their rows need not divide. */
        .sequence_parallel = s->o->sequence_parallel && s->purpose != MT_FOR_GENERATION,
        .first_layer = s->first_layer[stage],
        .n_layers = s->n_layers[stage],
    };
}

int mt_setup_micros(const mt_setup *s, int64_t global_batch)
{
    return (int)(global_batch / (s->o->micro_batch_size * s->grid.size[MC_AXIS_DP]));
}

ds_loader_config mt_setup_loader(const mt_setup *s, int rank, const ds_source *source)
{
    return (ds_loader_config){
        .source = source,
        .seq_length = s->o->seq_length,
        .micro_batch = (int)s->o->micro_batch_size,
        .max_micro = s->max_micro,
        .dp_rank = mc_grid_coords(&s->grid, rank).at[MC_AXIS_DP],
        .dp_size = s->grid.size[MC_AXIS_DP],
        .eod_mask_id = s->o->eod_mask_loss && source ? ds_source_eod(source) : -1,
    };
}

bool mt_setup_evaluates(const mt_options *o)
{
    bool data = o->mock_data || o->data_path.n > 0 || o->valid_data_path.n > 0;
    return data && (o->eval_iters > 0 || o->full_validation) && (mc_given_int(o->eval_interval) || o->skip_train);
}

int64_t mt_eval_steps(const mt_options *o)
{
    return o->full_validation ? 0 : o->eval_iters;
}

/* A training run that evaluates reads ahead from two sets. */
static size_t loader_bytes(const mt_setup *s, int rank)
{
    ds_loader_config c = mt_setup_loader(s, rank, NULL);
    switch (s->purpose) {
    case MT_FOR_TRAINING:
        return ds_loader_plan_bytes(&c) * (mt_setup_evaluates(s->o) ? 2 : 1);
    case MT_FOR_EVALUATION:
        return ds_loader_plan_bytes(&c);
    case MT_FOR_GENERATION:
        break;
    }
    return 0;
}

/* A step's rows must fit where a text of seq_length tokens does. */
static int n_texts(const mt_options *o)
{
    int64_t n = o->inference_max_requests > 1 ? o->inference_max_requests : 1;
    return (int)(n < o->seq_length ? n : o->seq_length);
}

mt_memory_request mt_setup_memory(const mt_setup *s, int rank)
{
    mt_place place = mt_setup_place(s, rank);
    pp_shape train = {.n_stages = place.pp, .stage = place.stage, .n_micro = s->max_micro}, eval = train;
    eval.forward_only = true;
    bool training = s->purpose == MT_FOR_TRAINING;
    bool generates = s->purpose == MT_FOR_GENERATION;
    int n_slots = training ? s->schedule->n_slots(&train) : 0, eval_slots = generates ? 1 : s->schedule->n_slots(&eval);
    int64_t micro = generates ? 1 : s->o->micro_batch_size, rows = micro * s->o->seq_length;
    int64_t chunk = s->o->head_chunk_tokens;
    return (mt_memory_request){
        .model = &s->model,
        .place = place,
        .sizes =
            {
                .micro_batch = micro,
                .n_slots = n_slots,
                .n_io = n_slots > eval_slots ? n_slots : eval_slots,
                .max_micro = generates ? 1 : s->max_micro,
                .bucket_elems = s->o->ddp_bucket_size,
                .recompute = mt_options_recompute(s->o),
                .offload_layers = (int)s->o->cpu_offloading_num_layers,
                .offload_params = s->o->cpu_offloading_weights,
                .main_bf16 = strcmp(s->o->main_params_dtype, "bf16") == 0,
                .grads_bf16 = strcmp(s->o->main_grads_dtype, "bf16") == 0,
                .reduce_bf16 = s->o->grad_reduce_in_bf16,
                .n_texts = generates ? n_texts(s->o) : 0,
                .keeps_kv = generates && !s->o->no_kv_cache,
                .head_chunk_rows =
                    chunk > 0 ? chunk : tp_head_chunk_rows(rows, s->model.padded_vocab / place.tp, HEAD_CHUNK_BYTES),
            },
        .optimizer = s->optimizer,
        .n_threads = s->n_threads,
        .loader_bytes = loader_bytes(s, rank),
        .device = s->device,
    };
}

mc_status mt_setup_lr(const mt_setup *s, mt_lr_config *lr_out)
{
    mt_lr_flags flags = mt_options_lr(s->o, mt_batch_max(&s->batch));
    return mt_lr_init(lr_out, &flags);
}

mt_loss_scale_config mt_setup_loss_scale(const mt_setup *s)
{
    const mt_options *o = s->o;
    bool fixed = mc_given_float(o->loss_scale),
         scaled = s->model.dtype != MC_F32 && (fixed || s->model.dtype == MC_F16);
    return (mt_loss_scale_config){
        .dynamic = scaled && !fixed,
        .initial = !scaled ? 1
                   : fixed ? o->loss_scale
                           : o->initial_loss_scale,
        .min = o->min_loss_scale,
        .window = o->loss_scale_window,
        .hysteresis = o->hysteresis,
        .consecutive = o->consecutive_hysteresis,
    };
}

static mt_policy policy_named(const char *name)
{
    return strcmp(name, "rewind") == 0 ? MT_POLICY_REWIND : strcmp(name, "stop") == 0 ? MT_POLICY_STOP : MT_POLICY_SKIP;
}

mt_stability_config mt_setup_stability(const mt_setup *s)
{
    const mt_options *o = s->o;
    return (mt_stability_config){
        .norm_limit = mc_given_float(o->grad_norm_limit) ? o->grad_norm_limit : 0,
        .norm_factor = o->check_for_large_grads ? o->spike_factor : 0,
        .loss_factor = o->check_for_spiky_loss ? o->spike_factor : 0,
        .z_score = mc_given_float(o->loss_z_score) ? o->loss_z_score : 0,
        .window = (int)o->spike_window,
        .spike_policy = policy_named(o->spike_policy),
        .nan_policy = policy_named(o->nan_policy),
    };
}

mt_flops mt_setup_flops(const mt_setup *s)
{
    const mt_model_config *c = &s->model;
    mt_flops_shape shape = {
        .n_layers = c->n_layers,
        .hidden = c->hidden,
        .ffn = c->ffn,
        .heads = c->heads,
        .groups = c->groups,
        .head_dim = c->head_dim,
        .gated = c->act == LY_SWIGLU,
        .seq_length = c->seq_length,
        .window_left = c->window_left,
        .vocab = c->padded_vocab,
    };
    return mt_flops_per_token(&shape);
}
