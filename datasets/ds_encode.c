/* Encodes one piece of text: what the worker threads of ds_prepare do. */
#include "datasets/ds_encode.h"

#include <stdio.h>
#include <string.h>

#include "datasets/ds_json.h"
#include "megac/base/alloc.h"

/* Ids are made as 32-bit numbers in `tokens` and narrowed in place at the end. */
static mc_status reserve_tokens(ds_i_piece *p, size_t more)
{
    size_t want = p->n_tokens + more, cap = p->cap_tokens;
    if (want <= cap) {
        return MC_OK;
    }
    cap = want + want / 4;
    uint32_t *tokens;
    MC_TRY(MC_NEW_N(&tokens, cap, "encoded piece"));
    if (p->n_tokens) {
        memcpy(tokens, p->tokens, p->n_tokens * sizeof *tokens);
    }
    mc_free(p->tokens);
    p->tokens = tokens;
    p->cap_tokens = cap;
    return MC_OK;
}

static mc_status encode(const ds_i_encoder *e, ds_i_piece *p, const void *text, size_t n)
{
    MC_TRY(reserve_tokens(p, ds_tokenizer_max_ids(e->tok, n) + 1)); /* and an EOD */
    p->n_tokens += ds_tokenizer_encode(e->tok, text, n, (uint32_t *)p->tokens + p->n_tokens);
    return MC_OK;
}

static mc_status end_document(const ds_i_encoder *e, ds_i_piece *p)
{
    if (e->append_eod) {
        MC_TRY(reserve_tokens(p, 1));
        ((uint32_t *)p->tokens)[p->n_tokens++] = (uint32_t)e->tok->eod_id;
    }
    if (p->n_ends == p->cap_ends) {
        size_t cap = p->cap_ends ? 2 * p->cap_ends : 64, *ends;
        MC_TRY(MC_NEW_N(&ends, cap, "document ends of a piece"));
        if (p->n_ends) {
            memcpy(ends, p->ends, p->n_ends * sizeof *ends);
        }
        mc_free(p->ends);
        p->ends = ends;
        p->cap_ends = cap;
    }
    p->ends[p->n_ends++] = p->n_tokens;
    return MC_OK;
}

/* The text of a JSON object's keys, gathered in a buffer that is kept between objects. */
typedef struct gather {
    ds_i_scratch *s;
} gather;

static mc_status gather_put(void *arg, const char *text, size_t n)
{
    ds_i_scratch *s = ((gather *)arg)->s;
    if (s->n + n > s->cap) {
        size_t cap = s->n + n + (s->n + n) / 2;
        MC_TRY(MC_MORE(&s->text, s->n, cap, "text of a JSON object"));
        s->cap = cap;
    }
    if (n) {
        memcpy(s->text + s->n, text, n);
    }
    s->n += n;
    return MC_OK;
}

static bool only_white(const unsigned char *text, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (text[i] != ' ' && text[i] != '\t' && text[i] != '\r') {
            return false;
        }
    }
    return true;
}

static mc_status encode_json(const ds_i_encoder *e, ds_i_scratch *s, ds_i_piece *p, size_t from, const ds_i_mark *m,
                             char *why, size_t cap)
{
    const unsigned char *line = p->text + from;
    if (only_white(line, m->end - from)) {
        return MC_OK;
    }
    gather g = {s};
    s->n = 0;
    MC_TRY(ds_i_json_text((const char *)line, m->end - from, e->json_keys, e->n_json_keys, gather_put, &g, why, cap));
    size_t least = (size_t)e->n_json_keys - 1; /* the newlines between keys are no text */
    if (s->n <= least) {
        p->n_empty++;
        return MC_OK;
    }
    p->text_bytes += s->n;
    MC_TRY(encode(e, p, s->text, s->n));
    return end_document(e, p);
}

static void narrow(ds_i_piece *p)
{
    uint32_t *wide = p->tokens;
    uint16_t *thin = p->tokens;
    for (size_t i = 0; i < p->n_tokens; i++) {
        uint16_t t = (uint16_t)wide[i];
        memcpy(&thin[i], &t, sizeof t); /* same memory, two types */
    }
}

void ds_i_encode(const ds_i_encoder *e, ds_i_scratch *s, ds_i_piece *p)
{
    mc_status st = MC_OK;
    size_t from = 0;
    char why[DS_I_WHY_BYTES / 2] = "out of memory";
    p->text_bytes = 0;
    for (size_t i = 0; i < p->n_marks && st == MC_OK; i++) {
        const ds_i_mark *m = &p->marks[i];
        if (p->json) {
            st = encode_json(e, s, p, from, m, why, sizeof why);
        } else {
            p->text_bytes += m->end - from;
            st = encode(e, p, p->text + from, m->end - from);
            if (st == MC_OK && m->ends_document) {
                st = end_document(e, p);
            }
        }
        if (st != MC_OK) {
            p->st = st; /* comes before whatever the cutter had to say about the text behind it */
            snprintf(p->why, sizeof p->why, "%s:%llu: %s", p->path, (unsigned long long)m->line, why);
        }
        from = m->end;
    }
    if (e->token_bytes == 2) {
        narrow(p);
    }
}

void ds_i_scratch_free(ds_i_scratch *s)
{
    mc_free(s->text);
    *s = (ds_i_scratch){0};
}
