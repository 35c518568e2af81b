#include "megac/train/generate.h"

#include <string.h>

/* World rank that broadcasts: the last stage of the first replica, tensor-parallel rank 0. */
static int speaker(const mt_engine *e)
{
    return mc_grid_rank(&e->setup.grid, (mc_coords){.at = {[MC_AXIS_PP] = e->setup.grid.size[MC_AXIS_PP] - 1}});
}

/* Logits (tp, 1, Vl) of the ranks' shards, side by side on the host. */
static mc_status collect(mt_engine *e, mc_tensor logits, float *out)
{
    MC_TRY(e->dev.ops->copy(&e->dev, out, logits.data, mc_tensor_bytes(logits), e->ly.stream));
    return e->dev.ops->stream_sync(&e->dev, e->ly.stream);
}

static mc_status move(const mc_comm *pp, mc_tensor t, int peer, bool send)
{
    mc_request request;
    MC_TRY(send ? mc_comm_send_begin(pp, t, peer, &request) : mc_comm_recv_begin(pp, t, peer, &request));
    return mc_comm_wait(&request);
}

/* One forward of the context through all stages; the last one chooses the token that follows, all learn it. */
static mc_status next_token(mt_engine *e, const mt_generation *g, const int32_t *context, int64_t len, int64_t position,
                            int32_t *token_out)
{
    mt_stage *s = e->stage;
    const mc_comm *pp = &e->groups.pp;
    size_t mark = mc_arena_mark(&e->arenas.scratch);
    mc_tensor logits;
    if (mt_has_embedding(&s->place)) {
        size_t bytes = (size_t)len * sizeof *context;
        memcpy(g->context, context, bytes); /* the device is idle: the last token's logits were waited for */
        MC_TRY(e->dev.ops->copy(&e->dev, s->io[0].tokens.data, g->context, bytes, e->ly.stream));
    } else {
        MC_TRY(move(pp, mt_stage_token_input(s, len), s->place.stage - 1, false));
    }
    MC_TRY(mt_stage_forward_tokens(s, len, &logits));
    int32_t token = 0;
    if (mt_has_head(&s->place)) {
        MC_TRY(collect(e, logits, g->logits));
        token = mt_sample(&g->sampling, g->logits, (int)s->c->vocab, g->number, (uint64_t)position);
        if (token < 0) {
            return MC_FAIL(MC_NUMERIC, "no logit after %lld tokens is a number: the weights are damaged or diverged",
                           (long long)position);
        }
    } else {
        MC_TRY(move(pp, mt_stage_token_output(s, len), s->place.stage + 1, true));
    }
    mc_arena_rewind(&e->arenas.scratch, mark);
    MC_TRY(mc_comm_broadcast(mc_world_comm(e->world), mc_tensor_1d(&token, MC_I32, 1), speaker(e)));
    *token_out = token;
    return MC_OK;
}

mc_status mt_generation_memory(mt_engine *e, mt_generation *g, bool give_back)
{
    const mc_device_ops *ops = e->dev.ops;
    size_t logits = (size_t)e->setup.model.padded_vocab * sizeof *g->logits;
    size_t context = (size_t)e->setup.model.seq_length * sizeof *g->context;
    void *memory;
    if (give_back) {
        if (g->logits) {
            ops->free(&e->dev, MC_MEM_PINNED_HOST, g->logits, logits + context);
        }
        g->logits = NULL;
        return MC_OK;
    }
    MC_TRY(ops->alloc(&e->dev, MC_MEM_PINNED_HOST, logits + context, "logits and context", &memory));
    g->logits = memory;
    g->context = (int32_t *)(g->logits + e->setup.model.padded_vocab);
    return MC_OK;
}

mc_status mt_generate(mt_engine *e, const mt_generation *g, int64_t *n_out)
{
    int64_t window = e->setup.model.seq_length, n = g->n_prompt;
    for (int64_t i = 0; i < g->n_prompt; i++) {
        if (g->prompt[i] < 0 || g->prompt[i] >= e->setup.model.vocab) {
            return MC_FAIL(MC_INVALID, "token %d of the prompt is outside the model's vocabulary of %lld", g->prompt[i],
                           (long long)e->setup.model.vocab);
        }
        g->tokens[i] = g->prompt[i];
    }
    for (; n < g->n_prompt + g->max_new; n++) {
        int64_t len = n < window ? n : window;
        MC_TRY(next_token(e, g, g->tokens + n - len, len, n, &g->tokens[n]));
        if (g->tokens[n] == g->stop_token) {
            break;
        }
    }
    *n_out = n;
    return MC_OK;
}
