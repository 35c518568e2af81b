#include "megac/train/model/stage.h"

#include <math.h>

#include "megac/base/alloc.h"
#include "megac/train/model/stage_graphs.h"
#include "megac/train/model/stage_offload.h"

static void bind_blocks(mt_stage *s)
{
    for (int i = 0; i < s->place.n_layers; i++) {
        mt_block *b = &s->blocks[i];
        b->layer = s->place.first_layer + i;
        for (int j = 0; j < MT_BLOCK_PARAMS; j++) {
            b->p[j] = mt_shards_param(&s->shards, s->params.block[i][j]);
            b->d[j] = mt_shards_grad(&s->shards, s->params.block[i][j]);
        }
    }
}

static void bind_outer(mt_stage *s)
{
    const int *row = s->params.outer;
    int64_t vocab_local = s->c->padded_vocab / s->place.tp, vocab0 = vocab_local * s->place.tp_rank;
    s->embedding = (tp_embedding){
        .table = mt_shards_param(&s->shards, row[MT_WORD_EMBEDDINGS]),
        .dtable = mt_shards_grad(&s->shards, row[MT_WORD_EMBEDDINGS]),
        .positions = mt_shards_param(&s->shards, row[MT_POSITION_EMBEDDINGS]),
        .dpositions = mt_shards_grad(&s->shards, row[MT_POSITION_EMBEDDINGS]),
        .vocab0 = vocab0,
    };
    s->head = (tp_head){
        .weight = mt_shards_param(&s->shards, row[MT_OUTPUT_WEIGHT]),
        .dweight = mt_shards_grad(&s->shards, row[MT_OUTPUT_WEIGHT]),
        .vocab0 = vocab0,
        .vocab_valid = s->c->vocab,
        .chunk_rows = s->sizes.head_chunk_rows,
    };
    s->final_gamma = mt_shards_param(&s->shards, row[MT_FINAL_GAMMA]);
    s->final_beta = mt_shards_param(&s->shards, row[MT_FINAL_BETA]);
    s->dfinal_gamma = mt_shards_grad(&s->shards, row[MT_FINAL_GAMMA]);
    s->dfinal_beta = mt_shards_grad(&s->shards, row[MT_FINAL_BETA]);
}

static mc_tensor take_rows(mt_stage *s, mc_arena *arena)
{
    int64_t rows = s->sizes.micro_batch * s->c->seq_length;
    return mc_arena_take_2d(arena, s->c->dtype, tp_local_rows(&s->x.tp, rows), s->c->hidden);
}

bool mt_stage_group(const mt_stage *s, int l, int *first_out, int *end_out)
{
    const mt_recompute *r = &s->x.recompute;
    int n = r->full_layers < s->place.n_layers ? r->full_layers : s->place.n_layers;
    if (l < 0 || l >= n) {
        return false;
    }
    *first_out = l / r->group * r->group;
    *end_out = *first_out + r->group < n ? *first_out + r->group : n;
    return true;
}

/* Block l's input on the device: its own memory, or one of the places that what an offload moves takes in turn. */
static mc_tensor take_input(mt_stage *s, int l)
{
    mc_tensor own = {0}, *place = mt_stage_offload_moves(s, l) ? mt_stage_offload_input(s, l) : &own;
    if (!mc_tensor_present(*place)) {
        *place = take_rows(s, &s->arenas->stash);
    }
    return *place;
}

/* The same for what it keeps of its forward. */
static mt_block_stash take_stash(mt_stage *s, int l)
{
    mt_block_stash own = {0}, *place = mt_stage_offload_moves(s, l) ? mt_stage_offload_stash(s, l) : &own;
    if (!mc_tensor_present(place->qkv)) {
        mt_block_stash_take(&s->x, s->sizes.micro_batch, &s->arenas->stash, s->again, place);
    }
    return *place;
}

/* The same for this rank's rows of its input, where ranks keep a part each. */
static mc_tensor take_part(mt_stage *s, int l, int64_t rows)
{
    mc_tensor own = {0}, *place = mt_stage_offload_moves(s, l) ? mt_stage_offload_part(s, l) : &own;
    if (!mc_tensor_present(*place)) {
        *place = mc_arena_take_2d(&s->arenas->stash, s->c->dtype, rows, s->c->hidden);
    }
    return *place;
}

/* A block's activations of one micro-batch: its own, or those that blocks which are computed again take in turn. Of the
 * latter only the first of a group keeps its input. Block 0's is the stage's. */
static void take_block(mt_stage *s, mt_slot *slot, int l)
{
    mt_block_stash *b = &slot->blocks[l];
    int first, end;
    if (!mt_stage_group(s, l, &first, &end)) {
        *b = take_stash(s, l);
        b->h_in = l > 0 ? take_input(s, l) : (mc_tensor){0};
        return;
    }
    *b = s->again[l - first];
    if (l == 0) {
        b->h_in = (mc_tensor){0};
    } else if (l == first && s->x.recompute.distribute) {
        slot->saved[l / s->x.recompute.group] = take_part(s, l, b->h_in.dims[0] / s->place.tp);
    } else if (l == first) {
        b->h_in = take_input(s, l);
    }
}

/* Stashes for blocks that keep none, or (selective) what blocks do not keep. The first one's input is needed only where
 * ranks keep parts of it. */
static mc_status take_again(mt_stage *s)
{
    const mt_recompute *r = &s->x.recompute;
    int n = r->full_layers > 0 ? r->group : r->core_attn || r->mlp ? 1 : 0;
    if (n == 0 || s->place.n_layers == 0) {
        return MC_OK;
    }
    n = n < s->place.n_layers ? n : s->place.n_layers;
    MC_TRY(MC_NEW_N(&s->again, n, "activations computed again"));
    for (int i = 0; i < n; i++) {
        if (r->full_layers > 0) {
            mt_block_stash_take(&s->x, s->sizes.micro_batch, &s->arenas->stash, NULL, &s->again[i]);
            s->again[i].h_in = i > 0 || r->distribute ? take_rows(s, &s->arenas->stash) : (mc_tensor){0};
        } else {
            mt_block_shared_take(&s->x, s->sizes.micro_batch, &s->arenas->stash, &s->again[i]);
        }
    }
    return MC_OK;
}

/* Without training nothing is kept: one block's activations serve all, and two buffers take turns between them. */
static void take_evaluation(mt_stage *s, mt_block_stash *blocks)
{
    mc_arena *stash = &s->arenas->stash;
    for (int l = 0; l < s->place.n_layers; l++) {
        if (l == 0) {
            mt_block_stash_take(&s->x, s->sizes.micro_batch, stash, NULL, &blocks[0]);
        } else {
            blocks[l] = blocks[0];
        }
        blocks[l].h_in = l == 0 ? (mc_tensor){0} : l > 2 ? blocks[l - 2].h_in : take_rows(s, stash);
    }
}

/* The first slot's block activations serve evaluation too, where they live no longer than one block. */
static mc_status take_slots(mt_stage *s)
{
    int n_slots = s->sizes.n_slots > 0 ? s->sizes.n_slots : 1, n_layers = s->place.n_layers;
    MC_TRY(MC_NEW_N(&s->slots, n_slots, "activation slots"));
    MC_TRY(take_again(s));
    MC_TRY(s->sizes.n_slots > 0 ? mt_stage_offload_create(s) : MC_OK);
    for (int i = 0; i < n_slots; i++) {
        MC_TRY(MC_NEW_N(&s->slots[i].blocks, n_layers, "activation slots"));
        if (s->x.recompute.distribute) {
            MC_TRY(MC_NEW_N(&s->slots[i].saved, n_layers, "activation slots"));
        }
        if (s->sizes.n_slots == 0) {
            take_evaluation(s, s->slots[i].blocks);
            continue;
        }
        for (int l = 0; l < n_layers; l++) {
            take_block(s, &s->slots[i], l);
        }
    }
    mt_stage_offload_take(s);
    return MC_OK;
}

static mc_status take_io(mt_stage *s)
{
    int64_t rows = s->sizes.micro_batch * s->c->seq_length;
    mc_arena *stash = &s->arenas->stash;
    bool ends = mt_has_embedding(&s->place) || mt_has_head(&s->place);
    MC_TRY(MC_NEW_N(&s->io, s->sizes.n_io, "activation slots"));
    for (int i = 0; i < s->sizes.n_io; i++) {
        mt_io *io = &s->io[i];
        io->h_in = take_rows(s, stash);
        io->h_out = take_rows(s, stash);
        if (ends) {
            io->tokens = mc_arena_take_1d(stash, MC_I32, rows);
            io->targets = mc_arena_take_1d(stash, MC_I32, rows);
            io->weights = mc_arena_take_1d(stash, MC_F32, rows);
        }
    }
    for (int i = 0; i < PP_GRAD_BUFFERS && s->sizes.n_slots > 0; i++) {
        /* One stage alone needs one buffer: nothing is in flight. */
        s->grads[i] = i > 0 && s->place.pp == 1 ? s->grads[0] : take_rows(s, stash);
    }
    if (mt_has_head(&s->place)) {
        s->losses = mc_arena_take_2d(stash, MC_F32, s->sizes.max_micro, rows);
        s->host_losses = mc_arena_take_2d(&s->arenas->pinned, MC_F32, s->sizes.max_micro, rows);
    }
    return MC_OK;
}

static void take_rope(mt_stage *s)
{
    int64_t half = (int64_t)(s->c->head_dim * s->c->rope.percent) / 2;
    if (s->c->position == MT_POSITION_ROPE && half > 0) {
        s->x.rope_cos = mc_arena_take_2d(&s->arenas->process, MC_F32, s->c->seq_length, half);
        s->x.rope_sin = mc_arena_take_2d(&s->arenas->process, MC_F32, s->c->seq_length, half);
    }
}

static mc_tensor take_kv(mt_stage *s)
{
    const int64_t dims[] = {s->sizes.n_texts, s->x.heads.groups, s->c->seq_length, s->c->head_dim};
    mc_tensor t = {.dtype = s->c->dtype, .n_dims = 4};
    for (int64_t i = 3, stride = 1; i >= 0; i--) {
        t.dims[i] = dims[i];
        t.strides[i] = stride;
        stride *= dims[i];
    }
    t.data = mc_arena_take(&s->arenas->cache, mc_tensor_bytes(t));
    return t;
}

/* What generation needs beside an evaluation's memory. */
static void take_generation(mt_stage *s)
{
    int64_t n_texts = s->sizes.n_texts, ids = 3 * s->c->seq_length;
    if (n_texts == 0) {
        return;
    }
    MC_ASSERT(n_texts <= s->c->seq_length);
    s->step_ids = mc_arena_take_1d(&s->arenas->cache, MC_I32, ids);
    s->host_step_ids = mc_arena_take_1d(&s->arenas->pinned, MC_I32, ids);
    if (mt_has_head(&s->place)) {
        s->host_logits = mc_arena_take_2d(&s->arenas->pinned, MC_F32, n_texts, s->c->padded_vocab);
    }
    for (int i = 0; i < s->place.n_layers && s->sizes.keeps_kv; i++) {
        s->blocks[i].k_cache = take_kv(s);
        s->blocks[i].v_cache = take_kv(s);
    }
}

static mc_status create_shards(mt_stage *s, const mt_shard_comms *dp_comms)
{
    mt_shards_config c = {
        .params = &s->params,
        .comms = *dp_comms,
        .ly = &s->ly,
        .dtype = s->c->dtype,
        .zero = s->place.zero,
        .training = s->sizes.n_slots > 0,
        .main_bf16 = s->sizes.main_bf16,
        .grads_bf16 = s->sizes.n_slots > 0 && s->sizes.grads_bf16,
        .reduce_bf16 = s->sizes.reduce_bf16,
        .bucket_elems = s->sizes.bucket_elems,
        .host_params = s->sizes.n_slots > 0 && s->sizes.offload_params,
        .dev = s->dev,
        .pinned_arena = &s->arenas->pinned,
        .params_arena = &s->arenas->params,
        .grads_arena = &s->arenas->grads,
        .optimizer_arena = &s->arenas->optimizer,
    };
    return mt_shards_create(&s->shards, &c);
}

mc_status mt_stage_create(const mt_model_config *c, const mt_place *place, const mt_stage_sizes *sizes,
                          const ly_ctx *ly, const mc_comm *tp_comm, const mt_shard_comms *dp_comms, mc_device *dev,
                          mt_arenas *arenas, mt_stage **stage_out)
{
    mt_stage *s;
    mc_status st;
    MC_TRY(MC_NEW(&s, "pipeline stage"));
    s->c = c;
    s->place = *place;
    s->sizes = *sizes;
    s->ly = *ly;
    s->dev = dev;
    s->arenas = arenas;
    s->held_slot = -1;
    s->x.c = c;
    s->x.heads = mt_heads(c, place);
    s->x.recompute = sizes->n_slots > 0 ? sizes->recompute : (mt_recompute){0};
    s->x.tp = (tp_ctx){
        .ly = &s->ly, .comm = tp_comm, .scratch = &arenas->scratch, .sequence_parallel = place->sequence_parallel};
    MC_TRY_GOTO(st, mt_params_create(c, place, &s->params), undo_stage);
    MC_TRY_GOTO(st, MC_NEW_N(&s->blocks, place->n_layers, "blocks"), undo_stage);
    MC_TRY_GOTO(st, create_shards(s, dp_comms), undo_stage);
    bind_blocks(s);
    bind_outer(s);
    MC_TRY_GOTO(st, take_slots(s), undo_stage);
    MC_TRY_GOTO(st, take_io(s), undo_stage);
    take_rope(s);
    take_generation(s);
    *stage_out = s;
    return MC_OK;
undo_stage:
    mt_stage_destroy(s);
    return st;
}

void mt_stage_destroy(mt_stage *s)
{
    if (!s) {
        return;
    }
    mt_stage_offload_destroy(s);
    for (int i = 0; s->slots && i < (s->sizes.n_slots > 0 ? s->sizes.n_slots : 1); i++) {
        mc_free(s->slots[i].blocks);
        mc_free(s->slots[i].saved);
    }
    mc_free(s->slots);
    mc_free(s->again);
    mc_free(s->io);
    mc_free(s->blocks);
    mt_graphs_destroy(s->graphs);
    mt_shards_destroy(&s->shards);
    mt_params_destroy(&s->params);
    mc_free(s);
}
