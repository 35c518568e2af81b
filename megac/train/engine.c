#include "megac/train/engine.h"

#include <stdio.h>
#include <string.h>

#include "megac/base/alloc.h"
#include "megac/base/log.h"
#include "megac/train/model/stage_graphs.h"

/* First and last stage of this rank's pipeline share a group where a tied embedding is held twice. */
static mc_status embedding_group(mt_engine *e)
{
    mc_world *w = e->world;
    mc_group pipe = mc_grid_group(&e->setup.grid, mc_world_job(w)->rank, 1u << MC_AXIS_PP);
    bool end = pipe.index == 0 || pipe.index == pipe.size - 1;
    return mc_world_split(w, end && pipe.size > 1 ? pipe.color : -1, "embedding", &e->groups.embedding);
}

static mc_status kv_group(mt_engine *e)
{
    mc_world *w = e->world;
    tp_heads h = mt_heads(&e->setup.model, &e->place);
    mc_group tp = mc_grid_group(&e->setup.grid, mc_world_job(w)->rank, 1u << MC_AXIS_TP);
    int shared = tp.color * e->place.tp + e->place.tp_rank / h.replicas;
    return mc_world_split(w, h.replicas > 1 ? shared : -1, "kv-replicas", &e->groups.kv_replicas);
}

/* On a device whose memory the host does not address, a group of ranks exchanges tensors by communicators of the device
 * (NCCL), or by the host's with copies (--comm mpi and tcp). */
static mc_status device_group(mt_engine *e, mc_comm *group)
{
    const mt_options *o = e->setup.o;
    if (e->dev.ops->host_memory || group->size == 1) {
        return MC_OK;
    }
    mc_comm *host = &e->host_groups[e->n_host_groups++], made;
    *host = *group;
    *group = (mc_comm){0};
    if (e->dev.ops->comm_create && (!o->comm || strcmp(o->comm, "nccl") == 0)) {
        MC_TRY(e->dev.ops->comm_create(&e->dev, host, e->ly.stream, group == &e->groups.pp,
                                       60.0 * o->distributed_timeout_minutes, &made));
    } else {
        MC_TRY(mc_comm_staged(&e->dev, host, e->ly.stream, &made));
    }
    *group = made;
    return MC_OK;
}

/* The replicas, or of several instances those of this rank's and those that keep the same parts in each. */
static mc_status replica_groups(mt_engine *e)
{
    const unsigned axes = 1u << MC_AXIS_DP | 1u << MC_AXIS_CP;
    int n = e->place.instances;
    if (n == 1) {
        e->groups.across = mc_comm_self("dp-across");
        return mc_world_group(e->world, &e->setup.grid, axes, "dp", &e->groups.dp);
    }
    mc_group all = mc_grid_group(&e->setup.grid, mc_world_job(e->world)->rank, axes);
    MC_TRY(mc_world_split(e->world, mc_group_cut(all, n, false).color, "dp", &e->groups.dp));
    return mc_world_split(e->world, mc_group_cut(all, n, true).color, "dp-across", &e->groups.across);
}

static mc_status host_groups(mt_engine *e)
{
    const mc_grid *grid = &e->setup.grid;
    MC_TRY(mc_world_group(e->world, grid, 1u << MC_AXIS_TP, "tp", &e->groups.tp));
    MC_TRY(replica_groups(e));
    MC_TRY(mc_world_group(e->world, grid, 1u << MC_AXIS_PP, "pp", &e->groups.pp));
    MC_TRY(kv_group(e));
    return embedding_group(e);
}

/* In one order on every rank. */
static mc_status open_groups(mt_engine *e)
{
    MC_TRY(host_groups(e));
    mc_comm *all[MT_N_GROUPS] = {&e->groups.tp,          &e->groups.dp,     &e->groups.pp,
                                 &e->groups.kv_replicas, &e->groups.across, &e->groups.embedding};
    for (int i = 0; i < MT_N_GROUPS; i++) {
        MC_TRY(device_group(e, all[i]));
    }
    return MC_OK;
}

static mc_status open_plans(mt_engine *e)
{
    pp_shape shape = {.n_stages = e->place.pp, .stage = e->place.stage, .n_micro = e->setup.max_micro};
    MC_TRY(pp_plan_init(&e->train_plan, e->setup.max_micro));
    MC_TRY(pp_plan_init(&e->eval_plan, e->setup.max_micro));
    MC_TRY(pp_plan_make(&e->train_plan, e->setup.schedule, &shape));
    shape.forward_only = true;
    return pp_plan_make(&e->eval_plan, e->setup.schedule, &shape);
}

/* Where they cannot be, rank 0 says why. */
static mc_status open_graphs(mt_engine *e)
{
    const mt_options *o = e->setup.o;
    if (!o->cuda_graphs) {
        return MC_OK;
    }
    const char *why = o->log_operators   ? "--log-operators times operators one by one"
                      : o->trace_tensors ? "--trace-tensors looks at tensors in between"
                                         : mt_graphs_unfit(e->stage);
    if (!why) {
        return mt_graphs_create(e->stage, &e->stage->graphs);
    }
    if (mc_world_job(e->world)->rank == 0) {
        MC_WARN("--cuda-graphs: off: %s", why);
    }
    return MC_OK;
}

/* Plan, reserve, lay out for real. */
static mc_status open_model(mt_engine *e)
{
    const mt_setup *s = &e->setup;
    mt_memory_plan plan;
    mt_memory_request rq = mt_setup_memory(s, mc_world_job(e->world)->rank);
    MC_TRY(mt_memory_measure(&rq, &plan));
    MC_TRY(mt_memory_reserve(&e->memory, &plan, &e->dev, e->ly.stream, e->world, &e->arenas));
    e->ly.workspace = e->memory.workspace;
    e->ly.workspace_bytes = plan.workspace;
    mt_shard_comms replicas = {&e->groups.dp, &e->groups.across};
    MC_TRY(mt_stage_create(&s->model, &e->place, &rq.sizes, &e->ly, &e->groups.tp, &replicas, &e->dev, &e->arenas,
                           &e->stage));
    MC_TRY(mt_stage_init_values(e->stage, e->pool));
    if (s->purpose != MT_FOR_TRAINING) {
        return MC_OK;
    }
    MC_TRY(open_graphs(e));
    mt_grad_comms comms = {&e->groups.tp, &e->groups.kv_replicas, &e->groups.embedding, mc_world_comm(e->world)};
    return mt_optimizer_create(&s->optimizer, e->stage, &comms, &e->optimizer);
}

static mc_status open_device(mt_engine *e, const char *name)
{
    MC_TRY(mc_device_open(name, mc_world_job(e->world)->local_rank, &e->dev));
    e->setup.device = e->dev.ops->name;
    if (strcmp(name, "auto") == 0) { /* each rank chose for itself */
        char text[64];
        snprintf(text, sizeof text, "device %s\n", e->dev.ops->name);
        MC_TRY(mc_world_agree(e->world, text));
    }
    MC_TRY(mc_pool_create(e->setup.n_threads, LY_POOL_SCRATCH_BYTES, &e->pool));
    e->ly.pool = e->pool;
    e->ly.backend = e->dev.impl;
    e->ly.tf32 = e->setup.o->allow_tf32;
    e->ly.ops = e->dev.ops->operators;
    if (!e->ly.ops) {
        MC_TRY(ly_ops_get("cpu", &e->ly.ops));
    }
    return e->dev.ops->stream_create(&e->dev, &e->ly.stream);
}

/* Before anything is reserved. */
static mc_status check_cuda_flags(const mt_engine *e)
{
    const char *comm = e->setup.o->comm;
    if (e->setup.o->allow_tf32 && e->dev.ops->host_memory) {
        return MC_FAIL(MC_UNSUPPORTED,
                       "--allow-tf32: only tensor cores have TF32, and the CPU's products are fp32; use "
                       "--device cuda, or leave the flag out");
    }
    if (e->setup.o->cuda_graphs && e->dev.ops->host_memory) {
        return MC_FAIL(MC_UNSUPPORTED,
                       "--cuda-graphs: the CPU launches nothing; use --device cuda, or leave the flag out");
    }
    if (comm && strcmp(comm, "nccl") == 0 && e->dev.ops->host_memory && e->setup.world_size > 1) {
        return MC_FAIL(MC_UNSUPPORTED, "--comm nccl is for --device cuda; leave the flag out");
    }
    return MC_OK;
}

/* Accepted without effect. */
static void warn_of_offload(const mt_engine *e)
{
    const mt_options *o = e->setup.o;
    bool asks = e->setup.purpose == MT_FOR_TRAINING && (o->cpu_offloading_num_layers > 0 || o->cpu_offloading_weights);
    if (asks && e->dev.ops->host_memory && mc_world_job(e->world)->rank == 0) {
        MC_WARN("%s: the CPU's memory is the host's: copies go there and back, and nothing is saved",
                o->cpu_offloading_weights ? "--cpu-offloading-weights" : "--cpu-offloading-num-layers");
    }
}

static mc_status create(mt_engine *e, const mt_options *o, mt_purpose purpose, const ds_source *data)
{
    const mc_job *job = mc_world_job(e->world);
    MC_TRY(mt_setup_init(&e->setup, o, purpose, job->size, job->local_size, data));
    e->place = mt_setup_place(&e->setup, job->rank);
    MC_TRY(open_device(e, o->device));
    MC_TRY(check_cuda_flags(e));
    warn_of_offload(e);
    MC_TRY(open_groups(e));
    MC_TRY(open_plans(e));
    return open_model(e);
}

mc_status mt_engine_create(const mt_options *o, mt_purpose purpose, mc_world *world, const ds_source *data,
                           mt_engine **engine_out)
{
    mt_engine *e;
    MC_TRY(MC_NEW(&e, "engine"));
    e->world = world;
    mc_status st = create(e, o, purpose, data);
    if (st != MC_OK) {
        mt_engine_destroy(e);
        return st;
    }
    *engine_out = e;
    return MC_OK;
}

void mt_engine_destroy(mt_engine *e)
{
    if (!e) {
        return;
    }
    if (e->dev.ops && e->ly.stream.handle) { /* after an error work may be under way: what it uses must outlive it */
        (void)e->dev.ops->stream_sync(&e->dev, e->ly.stream);
    }
    /* Before the memory: after an error an operation may still wait for another rank. */
    mc_comm *all[MT_N_GROUPS] = {&e->groups.embedding, &e->groups.across, &e->groups.kv_replicas,
                                 &e->groups.pp,        &e->groups.dp,     &e->groups.tp};
    for (int i = 0; i < MT_N_GROUPS; i++) {
        if (all[i]->ops) {
            mc_comm_destroy(all[i]);
        }
    }
    mt_optimizer_destroy(e->optimizer);
    mt_stage_destroy(e->stage);
    mt_memory_release(&e->memory);
    pp_plan_fini(&e->train_plan);
    pp_plan_fini(&e->eval_plan);
    mc_pool_destroy(e->pool);
    while (e->n_host_groups > 0) {
        mc_comm_destroy(&e->host_groups[--e->n_host_groups]);
    }
    if (e->ly.stream.handle) {
        e->dev.ops->stream_destroy(&e->dev, e->ly.stream);
    }
    mc_device_close(&e->dev);
    mt_setup_fini(&e->setup);
    mc_free(e);
}

mc_status mt_engine_run_step(mt_engine *e, const ds_loader *loader, int n_micro, bool training, double loss_scale,
                             pp_stats *stats_out)
{
    mt_stage *s = e->stage;
    pp_plan *plan = training ? &e->train_plan : &e->eval_plan;
    if (plan->shape.n_micro != n_micro) {
        pp_shape shape = plan->shape;
        shape.n_micro = n_micro;
        MC_TRY(pp_plan_make(plan, e->setup.schedule, &shape));
    }
    s->loader = loader;
    s->training = training;
    s->loss_scale = (float)loss_scale;
    if (training) {
        MC_TRY(mt_shards_begin_step(&s->shards));
    }
    return pp_exec(plan, &e->groups.pp, &mt_stage_ops, s, stats_out);
}

int mt_engine_speaker(const mt_engine *e, int replica)
{
    const mc_grid *g = &e->setup.grid;
    return mc_grid_rank(g, (mc_coords){.at = {[MC_AXIS_DP] = replica, [MC_AXIS_PP] = g->size[MC_AXIS_PP] - 1}});
}

mc_status mt_engine_loss_sum(mt_engine *e, int n_micro, double *sum_out)
{
    MC_TRY(mt_stage_fetch_losses(e->stage, n_micro));
    MC_TRY(e->dev.ops->stream_sync(&e->dev, e->ly.stream));
    *sum_out = mt_stage_loss_sum(e->stage, n_micro);
    return MC_OK;
}
