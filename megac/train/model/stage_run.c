/* Forward and backward of a stage: what pp_exec calls. */
#include <math.h>

#include "megac/base/rng.h"
#include "megac/train/model/stage.h"
#include "megac/train/model/stage_graphs.h"
#include "megac/train/model/stage_offload.h"
#include "megac/train/model/trace.h"

static mt_micro micro_of(const mt_stage *s, int micro)
{
    return (mt_micro){
        .batch = s->sizes.micro_batch,
        .seq_len = s->c->seq_length,
        .sample0 = s->loader ? ds_loader_batch(s->loader, micro).sample0 : 0,
        .dropout = s->training,
    };
}

/* Tokens and targets of the micro-batch to the device. */
static mc_status fetch(mt_stage *s, int micro, mt_io *io)
{
    if (!s->loader || !mc_tensor_present(io->tokens)) {
        return MC_OK;
    }
    ds_batch b = ds_loader_batch(s->loader, micro);
    MC_TRY(s->dev->ops->copy(s->dev, io->tokens.data, b.tokens, mc_tensor_bytes(io->tokens), s->ly.stream));
    MC_TRY(s->dev->ops->copy(s->dev, io->targets.data, b.targets, mc_tensor_bytes(io->targets), s->ly.stream));
    return s->dev->ops->copy(s->dev, io->weights.data, b.weights, mc_tensor_bytes(io->weights), s->ly.stream);
}

static tp_embedding embedding_of(const mt_stage *s, const mt_micro *m)
{
    tp_embedding e = s->embedding;
    e.dropout = (ly_dropout){
        .p = m->dropout ? s->c->hidden_dropout : 0.0f,
        .seed = s->c->seed,
        .stream = mc_rng_stream(MC_RNG_DROPOUT_EMBEDDING, 0),
        .sample0 = m->sample0,
        .row0 = tp_first_row(&s->x.tp, m->batch * m->seq_len),
        .seq_len = m->seq_len,
    };
    if (m->cached && m->cached->next) {
        e.positions = m->cached->positions; /* row r of them is row r's */
    }
    return e;
}

/* Rows (Rl,C) that this rank alone holds, or that it answers for among those that hold them all. */
static bool counts_rows(const mt_stage *s)
{
    return s->place.sequence_parallel || s->place.tp_rank == 0;
}

/* Parameters of block l; those of block `next` follow, where there is one. */
static mc_status acquire_block(mt_stage *s, int l, int next)
{
    int unit0 = s->params.first_block_unit;
    return mt_shards_acquire(&s->shards, unit0 + l, next >= 0 && next < s->place.n_layers ? unit0 + next : -1);
}

/* Parameters of units [from, to), outside the blocks. */
static mc_status acquire_outer(mt_stage *s, int from, int to)
{
    for (int u = from; u < to; u++) {
        MC_TRY(mt_shards_acquire(&s->shards, u, -1));
    }
    return MC_OK;
}

/* The first unit behind the blocks. */
static int head_unit(const mt_stage *s)
{
    return s->params.first_block_unit + s->place.n_layers;
}

/* The first stage's input; nothing on the others, where it was received. */
static mc_status embed(mt_stage *s, const mt_micro *m, mc_tensor tokens, mc_tensor h)
{
    if (!mt_has_embedding(&s->place)) {
        return MC_OK;
    }
    size_t mark = mc_arena_mark(&s->arenas->scratch);
    tp_embedding e = embedding_of(s, m);
    MC_TRY(acquire_outer(s, 0, s->params.first_block_unit));
    MC_TRY(tp_embedding_fwd(&s->x.tp, &e, mc_tensor_slice(tokens, 0, 0, m->batch * m->seq_len), h));
    mc_arena_rewind(&s->arenas->scratch, mark);
    return mt_trace_tensor(s->training ? s->trace : NULL, MT_TRACE_EMBEDDING, -1, (int64_t)m->sample0, counts_rows(s),
                           h);
}

static ly_norm_fwd final_norm(const mt_stage *s, mc_tensor h, mc_tensor n, mc_tensor stats)
{
    return (ly_norm_fwd){
        .kind = s->c->norm,
        .one_plus_gamma = s->c->norm_one_plus_gamma,
        .eps = s->c->norm_eps,
        .x = h,
        .gamma = s->final_gamma,
        .beta = s->final_beta,
        .out = n,
        .stats = stats,
    };
}

/* Of the micro-batch's loss: the step's, or NaN where a test asks for it. */
static float loss_scale_of(const mt_stage *s, int micro)
{
    return micro + 1 == s->nan_micro ? NAN : s->loss_scale;
}

/* Loss of the stage's output; with `dh` (training) its gradient too. */
static mc_status head(mt_stage *s, int micro, const mt_io *io, mc_tensor h, mc_tensor dh)
{
    mc_arena *scratch = &s->arenas->scratch;
    size_t mark = mc_arena_mark(scratch);
    bool train = mc_tensor_present(dh);
    mc_tensor n = mc_arena_take_2d(scratch, s->c->dtype, h.dims[0], h.dims[1]);
    mc_tensor stats = mc_arena_take_2d(scratch, MC_F32, h.dims[0], 2);
    mc_tensor losses = mc_tensor_flat(mc_tensor_slice(s->losses, 0, micro, 1));
    mc_tensor dn = {0};
    if (train) {
        dn = mc_arena_take_2d(scratch, s->c->dtype, h.dims[0], h.dims[1]);
    }
    float scale = loss_scale_of(s, micro);
    ly_norm_fwd norm = final_norm(s, h, n, stats);
    MC_TRY(acquire_outer(s, head_unit(s), s->params.n_units));
    MC_TRY(s->ly.ops->norm_fwd(&s->ly, &norm));
    MC_TRY(tp_head_loss(&s->x.tp, &s->head, n, io->targets, io->weights, scale, losses, dn));
    if (train) {
        ly_norm_bwd back = {
            .kind = s->c->norm,
            .one_plus_gamma = s->c->norm_one_plus_gamma,
            .dout = dn,
            .h = h,
            .stats = stats,
            .gamma = s->final_gamma,
            .beta = s->final_beta,
            .dh = dh,
            .dgamma = s->dfinal_gamma,
            .dbeta = s->dfinal_beta,
        };
        MC_TRY(s->ly.ops->norm_bwd(&s->ly, &back));
    }
    mc_arena_rewind(scratch, mark);
    return MC_OK;
}

/* What a block's forward left in its stash, and its output. Columns are each rank's own, but for replicated key and
 * value heads. */
static mc_status trace_block(const mt_stage *s, const mt_micro *m, int l, const mt_block_stash *stash, mc_tensor out)
{
    int layer = s->place.first_layer + l;
    int64_t sample = (int64_t)m->sample0;
    bool rows = counts_rows(s);
    mt_trace *t = s->training ? s->trace : NULL;
    MC_TRY(mt_trace_tensor(t, MT_TRACE_QKV, layer, sample, s->x.heads.replicas == 1, stash->qkv));
    MC_TRY(mt_trace_tensor(t, MT_TRACE_ATTENTION, layer, sample, true, stash->attn));
    MC_TRY(mt_trace_tensor(t, MT_TRACE_AFTER_ATTENTION, layer, sample, rows, stash->h_mid));
    MC_TRY(mt_trace_tensor(t, MT_TRACE_FC1, layer, sample, true, stash->fc1));
    return mt_trace_tensor(t, MT_TRACE_OUTPUT, layer, sample, rows, out);
}

/* With recompute.distribute: this rank's rows of the input of a group of blocks, which all tensor-parallel ranks hold.
 */
static mc_status keep_rows(mt_stage *s, const mt_slot *slot, int l, mc_tensor h_in)
{
    int first, end;
    if (!s->loader || !s->training || l == 0 || !s->x.recompute.distribute || !mt_stage_group(s, l, &first, &end) ||
        l != first) {
        return MC_OK;
    }
    mc_tensor saved = slot->saved[l / s->x.recompute.group];
    mc_tensor mine = mc_tensor_slice(h_in, 0, s->place.tp_rank * saved.dims[0], saved.dims[0]);
    return s->dev->ops->copy(s->dev, saved.data, mine.data, mc_tensor_bytes(saved), s->ly.stream);
}

/* The blocks whose turn in s->again block l takes: its group; itself where blocks keep a part (selective). */
static bool turn_of(const mt_stage *s, int l, int *first_out, int *end_out)
{
    if (s->x.recompute.core_attn || s->x.recompute.mlp) {
        *first_out = l;
        *end_out = l + 1;
        return true;
    }
    return mt_stage_group(s, l, first_out, end_out);
}

/* After block l's forward: what s->again holds from now on. A dry run computes all again, as a first stage does. */
static void note_held(mt_stage *s, const mt_slot *slot, int l)
{
    int first, end;
    if (turn_of(s, l, &first, &end)) {
        s->held_slot = s->training && s->loader ? (int)(slot - s->slots) : -1;
        s->held_first = first;
    }
}

/* h_in of the first block -> h_out, through the slot's stashes; each block's output is the next one's input. */
static mc_status run_blocks(mt_stage *s, const mt_micro *m, const mt_slot *slot, mc_tensor h_in, mc_tensor h_out)
{
    const mt_block_stash *stashes = slot->blocks;
    int64_t local = tp_local_rows(&s->x.tp, m->batch * m->seq_len);
    if (s->place.n_layers == 0) { /* embedding or head alone: a dropout of nothing is a copy */
        ly_embed_finish_fwd copy = {
            .x = mc_tensor_slice(h_in, 0, 0, local),
            .h = mc_tensor_slice(h_out, 0, 0, local),
            .dropout = {.seq_len = m->seq_len},
        };
        return s->ly.ops->embed_finish_fwd(&s->ly, &copy);
    }
    for (int l = 0; l < s->place.n_layers; l++) {
        MC_TRY(acquire_block(s, l, l + 1));
        MC_TRY(mt_stage_offload_room(s, l));
        mt_block_stash full = stashes[l];
        full.h_in = l == 0 ? h_in : full.h_in;
        mt_block_stash view = mt_block_stash_view(&s->x, &full, m);
        MC_TRY(keep_rows(s, slot, l, view.h_in));
        mc_tensor out = l + 1 < s->place.n_layers ? stashes[l + 1].h_in : h_out;
        out = mc_tensor_slice(out, 0, 0, local);
        MC_TRY(mt_block_fwd(&s->x, &s->blocks[l], m, &view, out));
        MC_TRY(trace_block(s, m, l, &view, out));
        MC_TRY(mt_stage_offload_store(s, (int)(slot - s->slots), l));
        note_held(s, slot, l);
    }
    return MC_OK;
}

static mc_status forward_body(mt_stage *s, const mt_graph_key *key)
{
    mt_micro m = micro_of(s, key->micro);
    mt_io *io = &s->io[key->slot];
    MC_TRY(embed(s, &m, io->tokens, io->h_in));
    return run_blocks(s, &m, &s->slots[s->training ? key->slot : 0], io->h_in, io->h_out);
}

static mc_status stage_forward(void *arg, int micro, int slot)
{
    mt_stage *s = arg;
    mt_io *io = &s->io[slot];
    mt_graph_key key = {.micro = micro, .slot = slot};
    MC_TRY(fetch(s, micro, io));
    MC_TRY(mt_graphs_run(s->training ? s->graphs : NULL, s, &key, forward_body));
    /* Training computes the loss at the head of the backward, where the logits serve the gradient as well. */
    return mt_has_head(&s->place) && !s->training ? head(s, micro, io, io->h_out, (mc_tensor){0}) : MC_OK;
}

static mt_block_stash stash_of(const mt_stage *s, int slot, int l)
{
    mt_block_stash stash = s->slots[slot].blocks[l];
    stash.h_in = l == 0 ? s->io[slot].h_in : stash.h_in;
    return stash;
}

/* Before the backward of the last block of a group that keeps no stashes: its forward again, without what only the last
 * one's output needs. */
static mc_status run_group_again(mt_stage *s, const mt_micro *m, int slot, int l)
{
    int first, end;
    if (!mt_stage_group(s, l, &first, &end) || l != end - 1) {
        return MC_OK;
    }
    if (first > 0 && s->x.recompute.distribute) {
        mc_tensor saved = s->slots[slot].saved[first / s->x.recompute.group];
        MC_TRY(mc_comm_all_gather(s->x.tp.comm, saved, stash_of(s, slot, first).h_in));
    }
    for (int k = first; k < end; k++) {
        mt_block_stash stash = stash_of(s, slot, k);
        mc_tensor out = k + 1 < end ? stash_of(s, slot, k + 1).h_in : (mc_tensor){0};
        MC_TRY(acquire_block(s, k, k + 1 < end ? k + 1 : -1));
        MC_TRY(mt_block_fwd(&s->x, &s->blocks[k], m, &stash, out));
    }
    return MC_OK;
}

/* Whether s->again holds what block l's backward needs of it: nothing ran between its forward and this. Ends that. */
static bool use_held(mt_stage *s, int slot, int l)
{
    int first, end;
    if (!turn_of(s, l, &first, &end)) {
        return false;
    }
    bool held = slot == s->held_slot && first == s->held_first;
    s->held_slot = -1;
    return held;
}

/* The block whose parameters are needed first when block l's backward is done: one before it, or the first of the group
 * that is computed again. */
static int block_after(const mt_stage *s, int l)
{
    int first, end;
    return l > 0 && mt_stage_group(s, l - 1, &first, &end) && l == end ? first : l - 1;
}

/* Gradient of block l's output -> of its input, in place. */
static mc_status backward_block(mt_stage *s, const mt_micro *m, int slot, int l, mc_tensor dh)
{
    mt_block_stash stash = stash_of(s, slot, l);
    mt_block_ctx x = s->x;
    MC_TRY(mt_stage_offload_use(s, slot, l));
    if (use_held(s, slot, l)) {
        x.recompute = (mt_recompute){0};
    } else {
        MC_TRY(run_group_again(s, m, slot, l));
    }
    MC_TRY(acquire_block(s, l, block_after(s, l)));
    MC_TRY(mt_shards_open_grads(&s->shards, s->params.first_block_unit + l));
    MC_TRY(mt_block_bwd(&x, &s->blocks[l], m, &stash, dh));
    mt_stage_offload_done(s, l);
    return MC_OK;
}

static mc_status run_backward(mt_stage *s, const mt_graph_key *key, bool last)
{
    int micro = key->micro, slot = key->slot;
    mt_micro m = micro_of(s, micro);
    mt_io *io = &s->io[slot];
    mc_tensor dh = s->grads[key->buffer];
    int unit0 = s->params.first_block_unit;
    MC_TRY(mt_stage_offload_use(s, slot, s->place.n_layers));
    if (mt_has_head(&s->place)) {
        MC_TRY(head(s, micro, io, io->h_out, dh));
        MC_TRY(mt_trace_tensor(s->trace, MT_TRACE_LOSSES, -1, (int64_t)m.sample0, s->place.tp_rank == 0,
                               mc_tensor_flat(mc_tensor_slice(s->losses, 0, micro, 1))));
        MC_TRY(mt_shards_close_grads(&s->shards, head_unit(s), last));
    }
    for (int l = s->place.n_layers - 1; l >= 0; l--) {
        MC_TRY(mt_trace_tensor(s->trace, MT_TRACE_D_OUTPUT, s->place.first_layer + l, (int64_t)m.sample0,
                               counts_rows(s), dh));
        MC_TRY(backward_block(s, &m, slot, l, dh));
        MC_TRY(mt_shards_close_grads(&s->shards, unit0 + l, last));
    }
    if (mt_has_embedding(&s->place)) {
        size_t mark = mc_arena_mark(&s->arenas->scratch);
        MC_TRY(mt_trace_tensor(s->trace, MT_TRACE_D_EMBEDDING, -1, (int64_t)m.sample0, counts_rows(s), dh));
        tp_embedding e = embedding_of(s, &m);
        MC_TRY(tp_embedding_bwd(&s->x.tp, &e, io->tokens, dh));
        mc_arena_rewind(&s->arenas->scratch, mark);
        MC_TRY(mt_shards_close_grads(&s->shards, 0, last));
    }
    return MC_OK;
}

static mc_status backward_body(mt_stage *s, const mt_graph_key *key)
{
    return run_backward(s, key, false);
}

/* The last one of a step begins the sums over replicas as it goes, which is not work of one stream. */
static mc_status stage_backward(void *arg, pp_kind kind, int micro, int slot, int buffer, bool last)
{
    mt_stage *s = arg;
    MC_ASSERT(kind == PP_BWD && s->training);
    mt_graph_key key = {true, micro, slot, buffer, loss_scale_of(s, micro)};
    if (last && s->place.dp > 1) {
        return run_backward(s, &key, true);
    }
    return mt_graphs_run(s->graphs, s, &key, backward_body);
}

static mc_tensor stage_input(void *arg, int slot)
{
    return ((mt_stage *)arg)->io[slot].h_in;
}

static mc_tensor stage_output(void *arg, int slot)
{
    return ((mt_stage *)arg)->io[slot].h_out;
}

static mc_tensor stage_grad(void *arg, int buffer)
{
    return ((mt_stage *)arg)->grads[buffer];
}

const pp_stage_ops mt_stage_ops = {
    .forward = stage_forward,
    .backward = stage_backward,
    .input = stage_input,
    .output = stage_output,
    .grad = stage_grad,
};

mc_tensor mt_stage_token_input(mt_stage *s, int64_t n)
{
    return mc_tensor_slice(s->io[0].h_in, 0, 0, tp_local_rows(&s->x.tp, n));
}

mc_tensor mt_stage_token_output(mt_stage *s, int64_t n)
{
    return mc_tensor_slice(s->io[0].h_out, 0, 0, tp_local_rows(&s->x.tp, n));
}

/* Rows of a table, in scratch; absent where the table is. */
static mc_status gather_rows(mt_stage *s, mc_tensor numbers, mc_tensor table, mc_tensor *rows_out)
{
    *rows_out = (mc_tensor){0};
    if (!mc_tensor_present(table)) {
        return MC_OK;
    }
    *rows_out = mc_arena_take_2d(&s->arenas->scratch, table.dtype, numbers.dims[0], table.dims[1]);
    return s->ly.ops->embedding_fwd(&s->ly, &(ly_embedding_fwd){.tokens = numbers, .table = table, .out = *rows_out});
}

static mc_status cached_rows(mt_stage *s, mt_token_step step, mt_cached_rows *rows_out)
{
    mt_cached_rows r = {.places = mc_tensor_slice(s->step_ids, 0, step.n, step.n), .next = step.kind == MT_STEP_NEXT};
    if (r.next) {
        mc_tensor positions = mc_tensor_slice(s->step_ids, 0, 2 * step.n, step.n);
        MC_TRY(gather_rows(s, positions, s->x.rope_cos, &r.rope_cos));
        MC_TRY(gather_rows(s, positions, s->x.rope_sin, &r.rope_sin));
        MC_TRY(gather_rows(s, positions, s->embedding.positions, &r.positions));
    }
    *rows_out = r;
    return MC_OK;
}

mc_status mt_stage_forward_tokens(mt_stage *s, mt_token_step step, mc_tensor *logits_out)
{
    mt_cached_rows cached;
    mt_micro m = {.batch = 1, .seq_len = step.n, .cached = step.kind == MT_STEP_WHOLE ? NULL : &cached};
    mc_arena *scratch = &s->arenas->scratch;
    mc_tensor h_in = mt_stage_token_input(s, step.n), h_out = mt_stage_token_output(s, step.n), full;
    MC_TRY(cached_rows(s, step, &cached));
    MC_TRY(embed(s, &m, s->step_ids, h_in));
    MC_TRY(run_blocks(s, &m, &s->slots[0], h_in, h_out));
    if (!mt_has_head(&s->place)) {
        return MC_OK;
    }
    MC_TRY(tp_gather(&s->x.tp, h_out, &full));
    mc_tensor rows = step.kind == MT_STEP_NEXT ? full : mc_tensor_slice(full, 0, step.n - 1, 1);
    mc_tensor n = mc_arena_take_2d(scratch, s->c->dtype, rows.dims[0], s->c->hidden);
    ly_norm_fwd norm = final_norm(s, rows, n, mc_arena_take_2d(scratch, MC_F32, rows.dims[0], 2));
    MC_TRY(s->ly.ops->norm_fwd(&s->ly, &norm));
    return tp_head_logits(&s->x.tp, &s->head, n, logits_out);
}
