/* Rules of the grid of ranks: what divides what. */
#include <string.h>

#include "megac/base/alloc.h"
#include "megac/base/log.h"
#include "megac/train/options/options_impl.h"
#include "pipeline/pp.h"

/* Ranks of one replica of the model. */
static int64_t replica_ranks(const mt_options *o)
{
    return o->tensor_model_parallel_size * o->pipeline_model_parallel_size * o->context_parallel_size;
}

static mc_status set_world(mt_options *o, int world_size, int64_t *world_out)
{
    const int64_t most = 1 << 24;
    int64_t replica = replica_ranks(o), dp = mc_given_int(o->data_parallel_size) ? o->data_parallel_size : 1;
    if (replica > most || dp > most / replica) {
        return MC_FAIL(MC_INVALID, "--tp %lld x --pp %lld x --cp %lld x --dp %lld: more than %lld ranks; lower one",
                       (long long)o->tensor_model_parallel_size, (long long)o->pipeline_model_parallel_size,
                       (long long)o->context_parallel_size, (long long)dp, (long long)most);
    }
    if (o->command == MT_PLAN) {
        mt_i_derive(o, &o->world_size, replica * dp);
        *world_out = o->world_size;
    } else {
        MC_ASSERT(world_size > 0);
        *world_out = world_size;
    }
    return MC_OK;
}

static mc_status check_world(mt_options *o, int world_size)
{
    int64_t world = 0, replica = replica_ranks(o);
    MC_TRY(set_world(o, world_size, &world));
    if (world % replica != 0) {
        return MC_FAIL(
            MC_INVALID,
            "%lld ranks are no multiple of --tensor-model-parallel-size %lld x --pipeline-model-parallel-size "
            "%lld x --context-parallel-size %lld = %lld; start %lld ranks or change the layout",
            (long long)world, (long long)o->tensor_model_parallel_size, (long long)o->pipeline_model_parallel_size,
            (long long)o->context_parallel_size, (long long)replica, (long long)((world / replica + 1) * replica));
    }
    mt_i_derive(o, &o->data_parallel_size, world / replica);
    if (o->data_parallel_size != world / replica) {
        return MC_FAIL(
            MC_INVALID,
            "--data-parallel-size %lld: %lld ranks over a replica of %lld make %lld; start %lld ranks or leave "
            "the flag out",
            (long long)o->data_parallel_size, (long long)world, (long long)replica, (long long)(world / replica),
            (long long)(o->data_parallel_size * replica));
    }
    int64_t per_rank = 1000000 * o->data_parallel_size; /* Megatron-LM's: buckets grow with the ring */
    mt_i_derive(o, &o->ddp_bucket_size, per_rank > 40000000 ? per_rank : 40000000);
    return MC_OK;
}

/* --zero, from the flags that say the same in more words. */
static mc_status set_zero(mt_options *o)
{
    static const char *const names[] = {"no_shard", "optim", "optim_grads", "optim_grads_params"};
    const char *strategy = o->data_parallel_sharding_strategy;
    int64_t stage = 0;
    while (strcmp(strategy, names[stage]) != 0) {
        stage++;
    }
    stage = stage == 0 && o->use_distributed_optimizer ? 1 : stage;
    bool told = stage > 0; /* no_shard is what a configuration says that says nothing */
    mt_i_derive(o, &o->zero, stage);
    if (told && o->zero != stage) {
        return MC_FAIL(MC_INVALID, "--zero %lld contradicts %s, which is stage %lld; leave one out", (long long)o->zero,
                       o->use_distributed_optimizer && stage == 1 ? "--use-distributed-optimizer"
                                                                  : "--data-parallel-sharding-strategy",
                       (long long)stage);
    }
    return MC_OK;
}

/* Hybrid sharding: instances of more than one replica each. */
static mc_status check_instances(const mt_options *o)
{
    int64_t n = o->num_distributed_optimizer_instances, dp = o->data_parallel_size;
    if (n == 1 || !(mt_i_trains(o) || o->command == MT_PLAN)) {
        return MC_OK;
    }
    if (o->zero == 0) {
        return MC_FAIL(MC_INVALID,
                       "--num-distributed-optimizer-instances %lld: with --zero 0 every replica keeps everything; give "
                       "--zero 1, 2 or 3, or leave the flag out",
                       (long long)n);
    }
    if (dp % n != 0 || dp == n) {
        return MC_FAIL(MC_INVALID,
                       "--num-distributed-optimizer-instances %lld: %lld replicas do not make so many groups of equal "
                       "size, two or more each; give a smaller divisor of %lld",
                       (long long)n, (long long)dp, (long long)dp);
    }
    return MC_OK;
}

static void check_reduction(mt_options *o)
{
    if (o->grad_reduce_in_bf16 && o->data_parallel_size == 1) {
        if (mt_options_given(o, &o->grad_reduce_in_bf16)) {
            MC_WARN("--grad-reduce-in-bf16: there is one replica, which reduces nothing; switched off");
        }
        o->grad_reduce_in_bf16 = false;
    }
}

static mc_status check_tensor(mt_options *o)
{
    int64_t tp = o->tensor_model_parallel_size, heads = o->num_attention_heads, groups = o->num_query_groups;
    if (heads % tp != 0) {
        return MC_FAIL(MC_INVALID,
                       "--num-attention-heads %lld is no multiple of --tensor-model-parallel-size %lld; change one",
                       (long long)heads, (long long)tp);
    }
    if (groups % tp != 0 && tp % groups != 0) {
        return MC_FAIL(MC_INVALID,
                       "--num-query-groups %lld is neither a multiple nor a divisor of --tensor-model-parallel-size "
                       "%lld; change one",
                       (long long)groups, (long long)tp);
    }
    if (o->ffn_hidden_size % tp != 0) {
        return MC_FAIL(MC_INVALID,
                       "--ffn-hidden-size %lld is no multiple of --tensor-model-parallel-size %lld; change one",
                       (long long)o->ffn_hidden_size, (long long)tp);
    }
    if (o->sequence_parallel && tp == 1) {
        if (mt_options_given(o, &o->sequence_parallel)) {
            MC_WARN("--sequence-parallel: there is one tensor-parallel rank; switched off");
        }
        o->sequence_parallel = false;
    }
    if (o->sequence_parallel && o->seq_length % tp != 0) {
        return MC_FAIL(MC_INVALID,
                       "--seq-length %lld is no multiple of --tensor-model-parallel-size %lld, as --sequence-parallel "
                       "needs; change one",
                       (long long)o->seq_length, (long long)tp);
    }
    return MC_OK;
}

pp_partition mt_options_partition(const mt_options *o)
{
    return (pp_partition){
        .n_layers = (int)o->num_layers,
        .n_stages = (int)o->pipeline_model_parallel_size,
        .first_layers =
            mc_given_int(o->decoder_first_pipeline_num_layers) ? (int)o->decoder_first_pipeline_num_layers : -1,
        .last_layers =
            mc_given_int(o->decoder_last_pipeline_num_layers) ? (int)o->decoder_last_pipeline_num_layers : -1,
        .account_embedding = o->account_for_embedding_in_pipeline_split,
        .account_loss = o->account_for_loss_in_pipeline_split,
    };
}

static mc_status check_stages(const mt_options *o)
{
    int stages = (int)o->pipeline_model_parallel_size, *layers;
    pp_partition p = mt_options_partition(o);
    MC_TRY(MC_NEW_N(&layers, 2 * (int64_t)stages, "layers of the stages"));
    mc_status st = pp_partition_layers(&p, layers, layers + stages);
    mc_free(layers);
    return st;
}

mc_status mt_i_check_layout(mt_options *o, int world_size)
{
    if (o->context_parallel_size != 1) {
        return MC_FAIL(MC_UNSUPPORTED,
                       "--context-parallel-size %lld: context parallelism is not available yet; use 1, and --tp with "
                       "--sequence-parallel for long sequences",
                       (long long)o->context_parallel_size);
    }
    MC_TRY(check_world(o, world_size));
    MC_TRY(set_zero(o));
    MC_TRY(check_instances(o));
    check_reduction(o);
    MC_TRY(check_tensor(o));
    return check_stages(o);
}
