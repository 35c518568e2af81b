/* What a dataset file holds, for people and for scripts. */
#include "datasets/ds_inspect.h"

#include <string.h>

#include "datasets/ds_impl.h"
#include "datasets/ds_report.h"
#include "datasets/ds_tokenizer.h"
#include "megac/base/alloc.h"

/* Length of the valid UTF-8 sequence at s[0, n), 0 when there is none (Unicode 15, table 3-7). */
static size_t utf8_length(const unsigned char *s, size_t n)
{
    unsigned char c = s[0], low = 0x80, high = 0xbf;
    size_t len = c < 0x80                 ? 1
                 : c >= 0xc2 && c <= 0xdf ? 2
                 : c >= 0xe0 && c <= 0xef ? 3
                 : c >= 0xf0 && c <= 0xf4 ? 4
                                          : 0;
    if (len == 0 || len > n) {
        return 0;
    }
    low = c == 0xe0 ? 0xa0 : c == 0xf0 ? 0x90 : low;
    high = c == 0xed ? 0x9f : c == 0xf4 ? 0x8f : high;
    for (size_t i = 1; i < len; i++) {
        if (s[i] < low || s[i] > high) {
            return 0;
        }
        low = 0x80;
        high = 0xbf;
    }
    return len;
}

/* Text that a terminal and a JSON string can hold: control characters and bytes that are no UTF-8 become \n, \t, \xNN.
 */
static mc_status printable(const char *text, size_t n, char **out)
{
    char *p;
    MC_TRY(mc_alloc(4 * n + 1, 1, "printable text", (void **)&p));
    size_t used = 0;
    const unsigned char *s = (const unsigned char *)text;
    for (size_t i = 0; i < n;) {
        size_t len = utf8_length(s + i, n - i);
        if (s[i] == '\n' || s[i] == '\t' || s[i] == '\\') {
            p[used++] = '\\';
            p[used++] = s[i] == '\n' ? 'n' : s[i] == '\t' ? 't' : '\\';
            i++;
        } else if (len == 0 || s[i] < ' ' || s[i] == 0x7f) {
            used += (size_t)snprintf(p + used, 5, "\\x%02x", s[i]);
            i++;
        } else {
            memcpy(p + used, s + i, len);
            used += len;
            i += len;
        }
    }
    p[used] = '\0';
    *out = p;
    return MC_OK;
}

/* Text of the first tokens; NULL when this build does not have the tokenizer. */
static mc_status first_text(const ds_file *f, const int32_t *tokens, int n, char **text_out)
{
    void *model;
    uint64_t n_model;
    ds_tokenizer *tok;
    char *raw = NULL;
    *text_out = NULL;
    MC_TRY(ds_file_tokenizer(f, &model, &n_model));
    mc_status st = ds_tokenizer_open_stored(ds_file_info(f)->tokenizer_kind, model, n_model, &tok);
    mc_free(model);
    if (st != MC_OK) {
        return st == MC_NOMEM ? st : MC_OK; /* the ids are shown all the same; the log says why there is no text */
    }
    size_t bytes = ds_tokenizer_decode(tok, tokens, (size_t)n, NULL, 0);
    st = mc_alloc(bytes, 1, "decoded text", (void **)&raw);
    if (st == MC_OK) {
        ds_tokenizer_decode(tok, tokens, (size_t)n, raw, bytes);
        st = printable(raw, bytes, text_out);
    }
    mc_free(raw);
    ds_tokenizer_close(tok);
    return st;
}

static void print_lengths(const ds_i_lengths *l, FILE *out)
{
    uint64_t most = 0;
    fprintf(out, "document lengths  min %llu, mean %.1f, median %llu, p90 %llu, max %llu tokens\n",
            (unsigned long long)l->min, l->mean, (unsigned long long)l->median, (unsigned long long)l->p90,
            (unsigned long long)l->max);
    for (int b = 0; b < DS_I_LENGTH_BINS; b++) {
        most = l->bins[b] > most ? l->bins[b] : most;
    }
    for (int b = 0; b < DS_I_LENGTH_BINS; b++) {
        if (l->bins[b]) {
            int width = (int)(40.0 * (double)l->bins[b] / (double)most + 0.5);
            fprintf(out, "  from %12llu  %12llu  %.*s\n", (unsigned long long)(b ? (uint64_t)1 << (b - 1) : 0),
                    (unsigned long long)l->bins[b], width < 1 ? 1 : width, "########################################");
        }
    }
}

static mc_status print_text(const ds_i_report *r, FILE *out)
{
    const ds_info *i = r->info;
    fprintf(out, "dataset           %s\n", r->path);
    fprintf(out, "tokens            %llu (%d bytes each)\n", (unsigned long long)i->n_tokens, i->token_bytes);
    fprintf(out, "documents         %llu\n", (unsigned long long)i->n_documents);
    fprintf(out, "vocabulary        %u\n", i->vocab_size);
    fprintf(out, "end of document   %lld%s\n", (long long)i->eod_id, i->eod_id < 0 ? " (none)" : "");
    fprintf(out, "tokenizer         %s%s%s\n", i->tokenizer_kind, i->tokenizer_sha256[0] ? ", SHA-256 " : "",
            i->tokenizer_sha256);
    fprintf(out, "storage           %s, %llu bytes\n", i->compressed ? "chunked, compressed" : "contiguous",
            (unsigned long long)r->file_bytes);
    fprintf(out, "checksums         %s\n",
            r->verified        ? "verified: every byte is as written"
            : r->has_checksums ? "present (check with --verify)"
                               : "none");
    print_lengths(&r->lengths, out);
    fprintf(out, "first tokens     ");
    for (int t = 0; t < r->n_tokens; t++) {
        fprintf(out, " %d", r->tokens[t]);
    }
    fprintf(out, "\nas text           %s\n", r->text ? r->text : "(this build does not have the tokenizer)");
    return fflush(out) == 0 && !ferror(out)
               ? MC_OK
               : MC_FAIL(MC_IO, "cannot write the report of %s; is the disk full or the pipe closed?", r->path);
}

static mc_status inspect(const ds_file *f, bool verify, bool json, int n_tokens, FILE *out)
{
    ds_i_report r = {.path = f->path, .file_bytes = f->file_bytes, .info = &f->info, .has_checksums = f->has_sums};
    int32_t *tokens = NULL;
    char *text = NULL;
    if (verify) {
        MC_TRY(ds_file_verify(f));
        r.verified = true;
    }
    MC_TRY(ds_i_lengths_measure(f, &r.lengths));
    r.n_tokens = (uint64_t)n_tokens < f->info.n_tokens ? n_tokens : (int)f->info.n_tokens;
    MC_TRY(MC_NEW_N(&tokens, r.n_tokens, "first tokens"));
    mc_status st = ds_file_read(f, 0, (uint64_t)r.n_tokens, tokens);
    st = st == MC_OK ? first_text(f, tokens, r.n_tokens, &text) : st;
    r.tokens = tokens;
    r.text = text;
    if (st == MC_OK) {
        st = json ? ds_i_report_json(&r, out) : print_text(&r, out);
    }
    mc_free(text);
    mc_free(tokens);
    return st;
}

mc_status ds_inspect(const char *path, bool verify, bool json, int n_tokens, FILE *out)
{
    ds_file *f;
    if (n_tokens < 0 || n_tokens > 1000000) {
        return MC_FAIL(MC_INVALID, "%d first tokens asked for; give 0 to 1000000", n_tokens);
    }
    MC_TRY(ds_file_open(path, &f));
    mc_status st = inspect(f, verify, json, n_tokens, out);
    ds_file_close(f);
    return st;
}
