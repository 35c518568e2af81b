/* megac generate: text from a checkpoint. */
#include <stdio.h>
#include <string.h>

#include "datasets/ds_tokenizer.h"
#include "megac/base/alloc.h"
#include "megac/base/file.h"
#include "megac/train/commands.h"
#include "megac/train/generate.h"
#include "megac/train/run.h"
#include "megac/train/weights.h"

enum { MAX_PROMPTS_BYTES = 64 << 20 };

typedef struct writer {
    const mt_options *o;
    mc_world *world;
    mt_engine *e;
    ds_tokenizer *tokenizer;
    char *prompts; /* the text of --prompts, cut into lines in place */
} writer;

/* The tokenizer that the checkpoint was trained with. */
static mc_status open_tokenizer(writer *w, int64_t step)
{
    mt_weights *weights;
    MC_TRY(mt_weights_open(w->o->load, step, &weights));
    const mt_checkpoint *ckpt = mt_weights_checkpoint(weights);
    mt_ckpt_state state = ckpt ? *mt_checkpoint_state(ckpt) : (mt_ckpt_state){0};
    const char *kind = w->o->tokenizer_type ? w->o->tokenizer_type : state.tokenizer_kind;
    mc_status st = MC_OK;
    if (!kind || !*kind) {
        st = MC_FAIL(MC_INVALID, "--load %s does not say which tokenizer it was trained with; give --tokenizer-type",
                     w->o->load);
    } else {
        st = ds_tokenizer_open_stored(kind, state.tokenizer, state.tokenizer_bytes, &w->tokenizer);
    }
    mt_weights_close(weights);
    return st;
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

static mc_status continue_prompt(writer *w, const char *prompt, uint64_t number)
{
    const mt_options *o = w->o;
    size_t bytes = strlen(prompt), cap = ds_tokenizer_max_ids(w->tokenizer, bytes) + 1;
    uint32_t *ids = NULL;
    mt_generation g = {
        .max_new = o->max_new_tokens,
        .stop_token = w->tokenizer->eod_id,
        .sampling = {.temperature = o->greedy ? 0 : o->temperature, .seed = (uint32_t)o->sampling_seed},
        .number = number,
    };
    int64_t n = 0;
    mc_status st;
    MC_TRY(MC_NEW_N(&ids, cap, "prompt tokens"));
    size_t n_ids = ds_tokenizer_encode(w->tokenizer, prompt, bytes, ids);
    if (n_ids == 0) {
        /* No text: the start of a document. */
        ids[n_ids++] = w->tokenizer->eod_id >= 0 ? (uint32_t)w->tokenizer->eod_id : 0;
    }
    g.prompt = (const int32_t *)ids;
    g.n_prompt = (int64_t)n_ids;
    MC_TRY_GOTO(st, mt_generation_memory(w->e, &g, false), undo_prompt);
    MC_TRY_GOTO(st, MC_NEW_N(&g.tokens, g.n_prompt + g.max_new, "generated tokens"), undo_prompt);
    MC_TRY_GOTO(st, mt_generate(w->e, &g, &n), undo_prompt);
    if (mc_world_job(w->world)->rank == 0) {
        st = print_text(w, g.tokens, n);
    }
undo_prompt:
    mc_free(g.tokens);
    MC_KEEP_FIRST(st, mt_generation_memory(w->e, &g, true));
    mc_free(ids);
    return st;
}

static mc_status continue_all(writer *w)
{
    if (!w->o->prompts) {
        return continue_prompt(w, w->o->prompt ? w->o->prompt : "", 0);
    }
    size_t bytes;
    MC_TRY(mc_file_read_all(w->o->prompts, MAX_PROMPTS_BYTES, "prompts", &w->prompts, &bytes));
    uint64_t number = 0;
    char *rest = w->prompts;
    for (char *line; (line = strsep(&rest, "\n")) != NULL;) {
        if (*line) {
            MC_TRY(continue_prompt(w, line, number++));
        }
    }
    return MC_OK;
}

static mc_status generate(writer *w)
{
    int64_t step = mc_given_int(w->o->ckpt_step) ? w->o->ckpt_step : -1;
    MC_TRY(open_tokenizer(w, step));
    MC_TRY(mt_engine_create(w->o, MT_FOR_GENERATION, w->world, NULL, &w->e));
    if (w->tokenizer->vocab_size > w->e->setup.model.vocab) {
        return MC_FAIL(MC_MISMATCH, "the tokenizer %s has %u tokens, the model %lld", w->tokenizer->ops->name,
                       w->tokenizer->vocab_size, (long long)w->e->setup.model.vocab);
    }
    MC_TRY(mt_engine_load(w->e, w->o->load, step));
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
    writer w = {.o = session.o, .world = session.world};
    mc_status st = generate(&w);
    mc_free(w.prompts);
    ds_tokenizer_close(w.tokenizer);
    mt_engine_destroy(w.e);
    mt_session_close(&session, st);
    return st;
}
