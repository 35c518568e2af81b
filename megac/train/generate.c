/* A round continues every text by one token: those that have their keys and values in the cache in one step of a row
 * each; the others (new ones, those longer than the positions, all without a cache) in a step of their own. */
#include "megac/train/generate.h"

#include <string.h>

/* The rank that chooses. */
static bool chooses(const mt_engine *e)
{
    return mc_world_job(e->world)->rank == mt_engine_speaker(e, 0);
}

/* Logits (tp, m, Vl) of the ranks' shards -> rows (m, padded vocabulary) on the host of the rank that chooses. */
static mc_status collect(mt_engine *e, mc_tensor logits)
{
    mt_stage *s = e->stage;
    int64_t shards = logits.dims[0], rows = logits.dims[1], local = logits.dims[2];
    size_t bytes = (size_t)local * sizeof(float);
    if (!chooses(e)) {
        return MC_OK;
    }
    if (shards == 1) {
        return e->dev.ops->copy(&e->dev, s->host_logits.data, logits.data, (size_t)rows * bytes, e->ly.stream);
    }
    for (int64_t shard = 0; shard < shards; shard++) {
        for (int64_t r = 0; r < rows; r++) {
            float *to = (float *)s->host_logits.data + r * s->c->padded_vocab + shard * local;
            const float *from = (const float *)logits.data + (shard * rows + r) * local;
            MC_TRY(e->dev.ops->copy(&e->dev, to, from, bytes, e->ly.stream));
        }
    }
    return MC_OK;
}

/* The rows in host_step_ids through all stages; the last one has their logits in host_logits then. Waits, so that
 * host_step_ids may be written again. */
static mc_status run_step(mt_engine *e, mt_token_step step)
{
    mt_stage *s = e->stage;
    const mc_comm *pp = &e->groups.pp;
    size_t mark = mc_arena_mark(&e->arenas.scratch), bytes = 3 * (size_t)step.n * sizeof(int32_t);
    mc_tensor logits;
    MC_TRY(e->dev.ops->copy(&e->dev, s->step_ids.data, s->host_step_ids.data, bytes, e->ly.stream));
    if (!mt_has_embedding(&s->place)) {
        MC_TRY(mc_comm_recv(pp, mt_stage_token_input(s, step.n), s->place.stage - 1));
    }
    MC_TRY(mt_stage_forward_tokens(s, step, &logits));
    if (mt_has_head(&s->place)) {
        MC_TRY(collect(e, logits));
    } else {
        MC_TRY(mc_comm_send(pp, mt_stage_token_output(s, step.n), s->place.stage + 1));
    }
    mc_arena_rewind(&e->arenas.scratch, mark);
    return e->dev.ops->stream_sync(&e->dev, e->ly.stream);
}

/* Row i of a step of n. */
static void put_row(mt_stage *s, int64_t n, int64_t i, int32_t token, int64_t text, int64_t position)
{
    int32_t *ids = s->host_step_ids.data;
    ids[i] = token;
    ids[n + i] = (int32_t)(text * s->c->seq_length + position);
    ids[2 * n + i] = (int32_t)position;
}

/* The token that follows `t`, from row i of the logits; told to all by tell(). */
static mc_status choose(mt_engine *e, const mt_generation *g, const mt_text *t, int64_t i)
{
    mt_stage *s = e->stage;
    if (!chooses(e)) {
        return MC_OK;
    }
    const float *logits = (const float *)s->host_logits.data + i * s->c->padded_vocab;
    int32_t token = mt_sample(&g->sampling, logits, (int)s->c->vocab, t->number, (uint64_t)t->n);
    if (token < 0) {
        return MC_FAIL(MC_NUMERIC, "no logit after %lld tokens is a number: the weights are damaged or diverged",
                       (long long)t->n);
    }
    ((int32_t *)s->host_step_ids.data)[i] = token;
    return MC_OK;
}

/* Every rank learns the n chosen tokens. */
static mc_status tell(mt_engine *e, int64_t n)
{
    return mc_comm_broadcast(mc_world_comm(e->world), mc_tensor_slice(e->stage->host_step_ids, 0, 0, n),
                             mt_engine_speaker(e, 0));
}

static void append(const mt_generation *g, mt_text *t, int32_t token)
{
    bool stop = token == g->stop_token;
    if (!stop) {
        t->tokens[t->n++] = token;
    }
    t->ended = stop || t->n == t->n_prompt + g->max_new;
}

/* Whether the keys and values of all tokens but the last are in the cache, and the last has a position. */
static bool is_cached(const mt_stage *s, const mt_text *t)
{
    return s->sizes.keeps_kv && !t->ended && t->n > t->n_prompt && t->n <= s->c->seq_length;
}

/* One token for every text that goes on from the cache. */
static mc_status next_of_cached(mt_engine *e, const mt_generation *g, mt_text *texts, int n_texts)
{
    mt_stage *s = e->stage;
    int64_t n = 0, row = 0;
    for (int i = 0; i < n_texts; i++) {
        n += is_cached(s, &texts[i]);
    }
    if (n == 0) {
        return MC_OK;
    }
    for (int i = 0; i < n_texts; i++) {
        if (is_cached(s, &texts[i])) {
            put_row(s, n, row++, texts[i].tokens[texts[i].n - 1], i, texts[i].n - 1);
        }
    }
    MC_TRY(run_step(e, (mt_token_step){MT_STEP_NEXT, n}));
    row = 0;
    for (int i = 0; i < n_texts; i++) {
        if (is_cached(s, &texts[i])) {
            MC_TRY(choose(e, g, &texts[i], row++));
        }
    }
    MC_TRY(tell(e, n));
    row = 0;
    for (int i = 0; i < n_texts; i++) {
        if (is_cached(s, &texts[i])) {
            append(g, &texts[i], ((const int32_t *)s->host_step_ids.data)[row++]);
        }
    }
    return MC_OK;
}

/* One token for text i from all of its tokens, or as many of the last as there are positions. */
static mc_status next_of_whole(mt_engine *e, const mt_generation *g, mt_text *texts, int i)
{
    mt_stage *s = e->stage;
    mt_text *t = &texts[i];
    int64_t positions = s->c->seq_length, n = t->n < positions ? t->n : positions;
    for (int64_t r = 0; r < n; r++) {
        put_row(s, n, r, t->tokens[t->n - n + r], i, r);
    }
    bool begin = s->sizes.keeps_kv && t->n == t->n_prompt;
    MC_TRY(run_step(e, (mt_token_step){begin ? MT_STEP_BEGIN : MT_STEP_WHOLE, n}));
    MC_TRY(choose(e, g, t, 0));
    MC_TRY(tell(e, 1));
    append(g, t, *(const int32_t *)s->host_step_ids.data);
    return MC_OK;
}

static mc_status check_prompt(const mt_engine *e, const mt_text *t)
{
    MC_ASSERT(t->n_prompt >= 1 && t->n_prompt <= e->setup.model.seq_length);
    for (int64_t i = 0; i < t->n_prompt; i++) {
        if (t->tokens[i] < 0 || t->tokens[i] >= e->setup.model.vocab) {
            return MC_FAIL(MC_INVALID, "token %d of the prompt is outside the model's vocabulary of %lld", t->tokens[i],
                           (long long)e->setup.model.vocab);
        }
    }
    return MC_OK;
}

mc_status mt_generate(mt_engine *e, const mt_generation *g, mt_text *texts, int n_texts)
{
    const mt_stage *s = e->stage;
    MC_ASSERT(n_texts <= s->sizes.n_texts);
    for (int i = 0; i < n_texts; i++) {
        MC_TRY(check_prompt(e, &texts[i]));
        texts[i].n = texts[i].n_prompt;
        texts[i].ended = g->max_new == 0;
    }
    for (bool left = n_texts > 0; left;) {
        MC_TRY(next_of_cached(e, g, texts, n_texts));
        left = false;
        for (int i = 0; i < n_texts; i++) {
            if (!texts[i].ended && !is_cached(s, &texts[i])) {
                MC_TRY(next_of_whole(e, g, texts, i));
            }
            left = left || !texts[i].ended;
        }
    }
    return MC_OK;
}
