#include "megac/train/model/memory.h"

#include <string.h>

#include "megac/base/alloc.h"

static void measuring(mt_arenas *a)
{
    mc_arena_init(&a->params, "parameters");
    mc_arena_init(&a->grads, "gradients");
    mc_arena_init(&a->optimizer, "optimizer");
    mc_arena_init(&a->stash, "activations");
    mc_arena_init(&a->scratch, "scratch");
    mc_arena_init(&a->process, "process");
    mc_arena_init(&a->cache, "keys and values");
    mc_arena_init(&a->pinned, "pinned");
}

size_t mt_memory_total(const mt_memory_plan *p)
{
    return p->params + p->grads + p->optimizer + p->stash + p->scratch + p->process + p->cache + p->workspace +
           p->pinned + p->host;
}

size_t mt_memory_on_device(const mt_memory_plan *p, const char *device)
{
    return mt_memory_total(p) - (strcmp(device, "cpu") == 0 ? 0 : p->pinned + p->host);
}

/* The longest text begun, and all texts continued. */
static mc_status run_dry_generation(mt_stage *stage)
{
    const mt_token_step steps[] = {
        {stage->sizes.keeps_kv ? MT_STEP_BEGIN : MT_STEP_WHOLE, stage->c->seq_length},
        {MT_STEP_NEXT, stage->sizes.n_texts},
    };
    size_t mark = mc_arena_mark(&stage->arenas->scratch);
    for (int i = 0; i < (stage->sizes.keeps_kv ? 2 : 1); i++) {
        mc_tensor logits;
        MC_TRY(mt_stage_forward_tokens(stage, steps[i], &logits));
        mc_arena_rewind(&stage->arenas->scratch, mark);
    }
    return MC_OK;
}

/* One micro-batch forward and backward, and one for evaluation, or the steps of generation, with operators and groups
 * that do nothing: what remains is the sequence of takes from scratch, whose peak is the plan. */
static mc_status run_dry(mt_stage *stage, mt_optimizer *optimizer)
{
    if (stage->sizes.n_texts > 0) {
        return run_dry_generation(stage);
    }
    if (stage->sizes.n_slots > 0) {
        stage->training = true;
        MC_TRY(mt_stage_ops.forward(stage, 0, 0));
        MC_TRY(mt_stage_ops.backward(stage, PP_BWD, 0, 0, 0, true));
        MC_TRY(mt_optimizer_dry_run(optimizer));
    }
    stage->training = false;
    return mt_stage_ops.forward(stage, 0, 0);
}

static size_t align_up(size_t bytes)
{
    return (bytes + MC_ARENA_ALIGN - 1) / MC_ARENA_ALIGN * MC_ARENA_ALIGN;
}

mc_status mt_memory_measure(const mt_memory_request *rq, mt_memory_plan *plan_out)
{
    const mt_place *p = &rq->place;
    mt_arenas a;
    size_t workspace = 0;
    ly_ctx ly = {.workspace_peak = &workspace};
    mc_device dev;
    mc_device_ops ops; /* the CPU's, but for where memory lies */
    mt_stage *stage = NULL;
    mt_optimizer *optimizer = NULL;
    mc_status st;
    measuring(&a);
    int within = p->dp / p->instances;
    mc_comm tp = mc_comm_plan("tp", p->tp_rank, p->tp);
    mc_comm dp = mc_comm_plan("dp", p->dp_rank % within, within),
            across = mc_comm_plan("dp-across", p->instance, p->instances);
    mt_shard_comms replicas = {&dp, &across};
    mt_grad_comms comms = {&tp, &tp, &tp, &tp};
    MC_TRY(mc_device_open("cpu", 0, &dev));
    ops = *dev.ops;
    ops.host_memory = strcmp(rq->device, "cpu") == 0;
    dev.ops = &ops;
    MC_TRY_GOTO(st, ly_ops_get("plan", &ly.ops), undo_stage);
    MC_TRY_GOTO(st, mt_stage_create(rq->model, p, &rq->sizes, &ly, &tp, &replicas, &dev, &a, &stage), undo_stage);
    if (rq->sizes.n_slots > 0) {
        MC_TRY_GOTO(st, mt_optimizer_create(&rq->optimizer, stage, &comms, &optimizer), undo_stage);
    }
    MC_TRY_GOTO(st, run_dry(stage, optimizer), undo_stage);
    *plan_out = (mt_memory_plan){
        .params = a.params.peak_bytes,
        .grads = a.grads.peak_bytes,
        .optimizer = a.optimizer.peak_bytes,
        .stash = a.stash.peak_bytes,
        .scratch = a.scratch.peak_bytes,
        .process = a.process.peak_bytes,
        .cache = a.cache.peak_bytes,
        .workspace = strcmp(rq->device, "cpu") == 0 ? 0 : align_up(workspace),
        .pinned = a.pinned.peak_bytes,
        .gathers_params = p->zero > 0,
        .host = mc_pool_plan_bytes(rq->n_threads, LY_POOL_SCRATCH_BYTES) + rq->loader_bytes,
    };
undo_stage:
    mt_optimizer_destroy(optimizer);
    mt_stage_destroy(stage);
    mc_device_close(&dev);
    return st;
}

/* Hands the next `bytes` of a block to an arena. */
static void carve(char **at, mc_arena *arena, size_t bytes)
{
    mc_arena_bind(arena, *at, bytes);
    *at += bytes;
}

static mc_status take_memory(mt_memory *m, bool shares, mc_world *world, void **exchanged_out)
{
    const mt_memory_plan *p = &m->plan;
    mc_device *dev = m->dev;
    size_t shared = (p->gathers_params ? p->params : 0) + p->grads + p->stash + p->scratch;
    size_t own = (p->gathers_params ? 0 : p->params) + p->optimizer + p->process + p->cache + p->workspace;
    m->own_bytes = own + (shares ? 0 : shared);
    MC_TRY(dev->ops->alloc(dev, MC_MEM_DEVICE, m->own_bytes, "parameters, optimizer and activations", &m->own));
    MC_TRY(dev->ops->alloc(dev, MC_MEM_PINNED_HOST, p->pinned, "host side of copies", &m->pinned));
    return shares ? mc_world_map(world, shared, "activations and gradients", exchanged_out) : MC_OK;
}

/* Every tensor an allocation of its own, besides the slabs that were reserved. */
static mc_status split(mt_memory *m, mt_arenas *a, mc_stream stream)
{
    mc_arena *all[MT_N_ARENAS] = {&a->params,  &a->grads,   &a->optimizer, &a->stash,
                                  &a->scratch, &a->process, &a->cache,     &a->pinned};
    for (int i = 0; i < MT_N_ARENAS; i++) {
        mc_mem kind = all[i] == &a->pinned ? MC_MEM_PINNED_HOST : MC_MEM_DEVICE;
        MC_TRY(mc_arena_split_create(m->dev, kind, stream, &m->splits[i]));
        mc_arena_bind_split(all[i], m->splits[i], all[i]->cap_bytes);
    }
    return MC_OK;
}

mc_status mt_memory_reserve(mt_memory *memory, const mt_memory_plan *plan, mc_device *dev, mc_stream stream,
                            mc_world *world, mt_arenas *arenas)
{
    mt_memory m = {.plan = *plan, .dev = dev};
    bool shares = dev->ops->host_memory && mc_world_job(world)->size > 1;
    void *exchanged = NULL;
    measuring(arenas);
    mc_status st = take_memory(&m, shares, world, &exchanged);
    if (st != MC_OK) {
        mt_memory_release(&m);
        return st;
    }
    char *at = m.own;
    if (!plan->gathers_params) {
        carve(&at, &arenas->params, plan->params);
    }
    carve(&at, &arenas->optimizer, plan->optimizer);
    carve(&at, &arenas->process, plan->process);
    carve(&at, &arenas->cache, plan->cache);
    m.workspace = plan->workspace > 0 ? at : NULL;
    at += plan->workspace;
    at = shares ? exchanged : at;
    if (plan->gathers_params) {
        carve(&at, &arenas->params, plan->params);
    }
    carve(&at, &arenas->grads, plan->grads);
    carve(&at, &arenas->stash, plan->stash);
    carve(&at, &arenas->scratch, plan->scratch);
    mc_arena_bind(&arenas->pinned, m.pinned, plan->pinned);
    if (mc_arena_split_wanted() && !shares) {
        st = split(&m, arenas, stream);
        if (st != MC_OK) {
            mt_memory_release(&m);
            return st;
        }
    }
    *memory = m;
    return MC_OK;
}

void mt_memory_release(mt_memory *m)
{
    for (int i = 0; i < MT_N_ARENAS; i++) {
        mc_arena_split_destroy(m->splits[i]);
    }
    if (m->own) {
        m->dev->ops->free(m->dev, MC_MEM_DEVICE, m->own, m->own_bytes);
    }
    if (m->pinned) {
        m->dev->ops->free(m->dev, MC_MEM_PINNED_HOST, m->pinned, m->plan.pinned);
    }
    *m = (mt_memory){0};
}
