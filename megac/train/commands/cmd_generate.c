/* megac generate: text from a checkpoint. */
#include <stdio.h>
#include <string.h>

#include "datasets/ds_tokenizer.h"
#include "megac/base/alloc.h"
#include "megac/base/clock.h"
#include "megac/base/file.h"
#include "megac/base/log.h"
#include "megac/train/commands/commands.h"
#include "megac/train/generate.h"
#include "megac/train/run.h"

enum { MAX_PROMPTS_BYTES = 64 << 20 };

typedef struct writer {
    mt_session *session;
    mt_options *o;
    mc_world *world;
    mt_engine *e;
    ds_tokenizer *tokenizer;
    char *file;           /* the text of --prompts, cut into lines in place */
    const char **prompts; /* (n_prompts) */
    int64_t n_prompts;
    int64_t n_written; /* tokens */
} writer;

/* The tokenizer that the checkpoint was trained with. */
static mc_status open_tokenizer(writer *w)
{
    const mt_checkpoint *ckpt = mt_weights_checkpoint(w->session->weights);
    mt_ckpt_state state = ckpt ? *mt_checkpoint_state(ckpt) : (mt_ckpt_state){0};
    const char *kind = w->o->tokenizer_type ? w->o->tokenizer_type : state.tokenizer_kind;
    if (!kind || !*kind) {
        return MC_FAIL(MC_INVALID, "--load %s does not say which tokenizer it was trained with; give --tokenizer-type",
                       w->o->load);
    }
    return ds_tokenizer_open_stored(kind, state.tokenizer, state.tokenizer_bytes, &w->tokenizer);
}

/* Prints the prompt and what follows it. */
static mc_status print_text(writer *w, const int32_t *tokens, int64_t n)
{
    size_t bytes = ds_tokenizer_decode(w->tokenizer, tokens, (size_t)n, NULL, 0);
    char *text;
    MC_TRY(mc_alloc(bytes + 1, 1, "generated text", (void **)&text));
    ds_tokenizer_decode(w->tokenizer, tokens, (size_t)n, text, bytes);
    fwrite(text, 1, bytes, stdout);
    fputc('\n', stdout);
    mc_free(text);
    return MC_OK;
}

/* --prompts' lines that are not empty, or --prompt. */
static mc_status read_prompts(writer *w)
{
    const char *path = w->o->prompts;
    size_t bytes, lines = 1;
    if (path) {
        MC_TRY(mc_file_read_all(path, MAX_PROMPTS_BYTES, "prompts", &w->file, &bytes));
        for (const char *c = w->file; *c; c++) {
            lines += *c == '\n';
        }
    }
    MC_TRY(MC_NEW_N(&w->prompts, lines, "prompts"));
    if (!path) {
        w->prompts[w->n_prompts++] = w->o->prompt ? w->o->prompt : "";
        return MC_OK;
    }
    char *rest = w->file;
    for (char *line; (line = strsep(&rest, "\n")) != NULL;) {
        if (*line) {
            w->prompts[w->n_prompts++] = line;
        }
    }
    return MC_OK;
}

/* Tokens of a prompt in a new block with room for `more` after them. */
static mc_status encode(const writer *w, const char *prompt, int64_t more, int32_t **tokens_out, int64_t *n_out)
{
    size_t bytes = strlen(prompt), cap = ds_tokenizer_max_ids(w->tokenizer, bytes) + 1;
    uint32_t *ids;
    MC_TRY(MC_NEW_N(&ids, (int64_t)cap + more, "tokens of a text"));
    size_t n = ds_tokenizer_encode(w->tokenizer, prompt, bytes, ids);
    if (n == 0) { /* no text: the start of a document */
        ids[n++] = w->tokenizer->eod_id >= 0 ? (uint32_t)w->tokenizer->eod_id : 0;
    }
    *tokens_out = (int32_t *)ids;
    *n_out = (int64_t)n;
    return MC_OK;
}

/* Before any work: the model looks back no further than its positions, so that a longer prompt would lose its front. */
static mc_status check_prompts(const writer *w)
{
    for (int64_t i = 0; i < w->n_prompts; i++) {
        int32_t *tokens;
        int64_t n;
        MC_TRY(encode(w, w->prompts[i], 0, &tokens, &n));
        mc_free(tokens);
        if (n > w->o->seq_length) {
            return MC_FAIL(MC_INVALID,
                           "prompt %lld has %lld tokens, more than --seq-length %lld of the model; shorten it, or give "
                           "a --seq-length up to --max-position-embeddings %lld",
                           (long long)i + 1, (long long)n, (long long)w->o->seq_length,
                           (long long)w->o->max_position_embeddings);
        }
    }
    return MC_OK;
}

static mc_status print_texts(writer *w, const mt_text *texts, int n)
{
    mc_status st = MC_OK;
    for (int i = 0; i < n && st == MC_OK; i++) {
        w->n_written += texts[i].n - texts[i].n_prompt;
        if (mc_world_job(w->world)->rank == 0) {
            st = print_text(w, texts[i].tokens, texts[i].n);
        }
    }
    return st;
}

/* Prompts [first, first + n): continued together, printed in order. */
static mc_status continue_group(writer *w, int64_t first, int n)
{
    const mt_options *o = w->o;
    mt_generation g = {
        .max_new = o->max_new_tokens,
        .stop_token = w->tokenizer->eod_id,
        .sampling = {.temperature = o->greedy ? 0 : o->temperature,
                     .seed = (uint32_t)o->sampling_seed,
                     .top_k = (int)o->top_k,
                     .top_p = o->top_p},
    };
    mt_text *texts = NULL;
    mc_status st;
    MC_TRY_GOTO(st, MC_NEW_N(&texts, n, "texts"), undo_texts);
    MC_TRY_GOTO(st, MC_NEW_N(&g.sampling.scratch, w->e->setup.model.vocab, "choice of a token"), undo_texts);
    for (int i = 0; i < n; i++) {
        texts[i].number = (uint64_t)(first + i);
        MC_TRY_GOTO(st, encode(w, w->prompts[first + i], g.max_new, &texts[i].tokens, &texts[i].n_prompt), undo_texts);
    }
    MC_TRY_GOTO(st, mt_generate(w->e, &g, texts, n), undo_texts);
    st = print_texts(w, texts, n);
undo_texts:
    for (int i = 0; texts && i < n; i++) {
        mc_free(texts[i].tokens);
    }
    mc_free(texts);
    mc_free(g.sampling.scratch);
    return st;
}

static mc_status continue_all(writer *w)
{
    int64_t at_once = w->e->stage->sizes.n_texts;
    double started = mc_now();
    for (int64_t first = 0; first < w->n_prompts; first += at_once) {
        MC_TRY(continue_group(w, first, (int)(w->n_prompts - first < at_once ? w->n_prompts - first : at_once)));
    }
    double seconds = mc_now() - started;
    if (mc_world_job(w->world)->rank == 0) {
        MC_INFO("%lld tokens in %.2f s: %.1f tokens/s", (long long)w->n_written, seconds,
                (double)w->n_written / seconds);
    }
    return MC_OK;
}

static mc_status generate(writer *w)
{
    mt_options *o = w->o;
    MC_TRY(read_prompts(w));
    MC_TRY(open_tokenizer(w));
    MC_TRY(check_prompts(w));
    if (o->inference_max_requests > w->n_prompts) { /* no cache for texts that will not come */
        o->inference_max_requests = w->n_prompts > 0 ? w->n_prompts : 1;
    }
    MC_TRY(mt_engine_create(o, MT_FOR_GENERATION, w->world, NULL, &w->e));
    if (w->tokenizer->vocab_size > w->e->setup.model.vocab) {
        return MC_FAIL(MC_MISMATCH, "the tokenizer %s has %u tokens, the model %lld", w->tokenizer->ops->name,
                       w->tokenizer->vocab_size, (long long)w->e->setup.model.vocab);
    }
    MC_TRY(mt_engine_load(w->e, w->session->weights));
    mt_session_drop_weights(w->session);
    MC_TRY(mt_session_started(w->world));
    return continue_all(w);
}

mc_status mt_cmd_generate(const mc_job *job, int argc, char **argv)
{
    mt_session session;
    MC_TRY(mt_session_open(&session, MT_GENERATE, job, argc, argv));
    if (session.done) {
        return MC_OK;
    }
    writer w = {.session = &session, .o = session.o, .world = session.world};
    mc_status st = generate(&w);
    mc_free(w.prompts);
    mc_free(w.file);
    ds_tokenizer_close(w.tokenizer);
    mt_engine_destroy(w.e);
    mt_session_close(&session, st);
    return st;
}
