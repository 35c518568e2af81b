/* Threads of `megac prepare`:
 *
 *   reader: read, unpack, cut ──► ring of pieces ──► workers: encode ──► the caller's thread: hash, write, in order
 *
 * The ring bounds memory. The reader decides where pieces end and the writer joins them in the order of the input, so
 * that the output does not depend on the number of workers. Failures travel in the pieces: the first one in the order
 * of the input is told, and only that. */
#include "datasets/ds_prepare.h"

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "datasets/ds_encode.h"
#include "datasets/ds_inputs.h"
#include "datasets/ds_progress.h"
#include "datasets/ds_write.h"
#include "megac/base/alloc.h"
#include "megac/base/clock.h"

enum { MAX_WORKERS = 256 };

typedef struct slot {
    ds_i_piece piece;
    bool done; /* encoded */
} slot;

typedef struct ring {
    pthread_mutex_t lock;
    pthread_cond_t room, filled_more, done_more;
    slot *slots;
    uint64_t n, filled, taken, written; /* slots; pieces so far */
    bool eof, stop;
} ring;

typedef struct job {
    const ds_prepare_config *config;
    ds_i_inputs inputs;
    ds_i_unit text_unit;
    ds_tokenizer *tok;
    ds_i_encoder encoder;
    ds_writer *writer;
    ring ring;
    ds_i_piece *reading; /* the piece that the reader holds */
    char path[PATH_MAX];
} job;

/* ---- reader ---- */

/* Publishes `full` and waits for an empty slot; NULL when the others stopped. */
static ds_i_piece *next_piece(void *arg, ds_i_piece *full)
{
    ring *r = arg;
    ds_i_piece *piece = NULL;
    pthread_mutex_lock(&r->lock);
    if (full) {
        r->filled++;
        pthread_cond_signal(&r->filled_more);
    }
    while (!r->stop && r->filled - r->written == r->n) {
        pthread_cond_wait(&r->room, &r->lock);
    }
    if (!r->stop) {
        slot *s = &r->slots[r->filled % r->n];
        s->done = false;
        ds_i_piece_reset(&s->piece);
        piece = &s->piece;
    }
    pthread_mutex_unlock(&r->lock);
    return piece;
}

static void *reader_main(void *arg)
{
    job *j = arg;
    ds_i_cutter c = {.tok = j->tok, .sink = {next_piece, &j->ring}};
    c.piece = next_piece(&j->ring, NULL);
    mc_status st = MC_OK;
    for (size_t i = 0; i < j->inputs.n && st == MC_OK && c.piece; i++) {
        const ds_i_input *in = &j->inputs.v[i];
        ds_i_stream *stream = NULL;
        char why[DS_I_WHY_BYTES];
        st = ds_i_stream_open(in->path, &stream, why);
        if (st != MC_OK) {
            ds_i_cutter_end(&c, st, why);
            break;
        }
        const char *name = strcmp(in->path, "-") == 0 ? "standard input" : in->path;
        st = ds_i_cutter_run(&c, stream, name, in->jsonl ? DS_I_PER_JSON : j->text_unit);
        ds_i_stream_close(stream);
    }
    if (c.piece) {
        c.stream = NULL;
        ds_i_cutter_end(&c, st, "no memory for the input");
    }
    pthread_mutex_lock(&j->ring.lock);
    j->ring.eof = true;
    pthread_cond_broadcast(&j->ring.filled_more);
    pthread_cond_broadcast(&j->ring.done_more);
    pthread_mutex_unlock(&j->ring.lock);
    return NULL;
}

/* ---- workers ---- */

static void *worker_main(void *arg)
{
    job *j = arg;
    ring *r = &j->ring;
    ds_i_scratch scratch = {0};
    pthread_mutex_lock(&r->lock);
    for (;;) {
        while (!r->stop && r->taken == r->filled && !r->eof) {
            pthread_cond_wait(&r->filled_more, &r->lock);
        }
        if (r->stop || r->taken == r->filled) {
            break;
        }
        slot *s = &r->slots[r->taken++ % r->n];
        pthread_mutex_unlock(&r->lock);
        ds_i_encode(&j->encoder, &scratch, &s->piece);
        pthread_mutex_lock(&r->lock);
        s->done = true;
        pthread_cond_signal(&r->done_more);
    }
    pthread_mutex_unlock(&r->lock);
    ds_i_scratch_free(&scratch);
    return NULL;
}

/* ---- writer ---- */

static mc_status write_piece(job *j, const ds_i_piece *p, ds_prepare_result *res)
{
    MC_TRY(ds_writer_tokens(j->writer, p->tokens, p->n_tokens));
    for (size_t i = 0; i < p->n_ends; i++) {
        MC_TRY(ds_writer_end_document(j->writer, p->n_tokens - p->ends[i]));
    }
    res->n_empty += p->n_empty;
    res->text_bytes += p->text_bytes;
    res->input_bytes = p->raw_bytes;
    return p->st == MC_OK ? MC_OK : MC_FAIL(p->st, "%s", p->why);
}

static mc_status write_all(job *j, ds_prepare_result *res)
{
    ring *r = &j->ring;
    ds_i_progress bar;
    ds_i_progress_begin(&bar, j->config->progress, j->inputs.all_sizes_known ? j->inputs.bytes : 0);
    mc_status st = MC_OK;
    pthread_mutex_lock(&r->lock);
    while (st == MC_OK) {
        slot *s = &r->slots[r->written % r->n];
        while (!(r->written < r->filled && s->done) && !(r->eof && r->written == r->filled)) {
            pthread_cond_wait(&r->done_more, &r->lock);
        }
        if (r->written == r->filled) {
            break;
        }
        pthread_mutex_unlock(&r->lock);
        ds_i_progress_show(&bar, s->piece.raw_bytes, ds_writer_n_tokens(j->writer));
        st = write_piece(j, &s->piece, res);
        if (st != MC_OK) {
            ds_i_progress_end(&bar);
        }
        pthread_mutex_lock(&r->lock);
        r->written++;
        r->stop = st != MC_OK;
        pthread_cond_signal(&r->room);
    }
    r->stop = r->stop || st != MC_OK;
    pthread_cond_broadcast(&r->room);
    pthread_cond_broadcast(&r->filled_more);
    pthread_mutex_unlock(&r->lock);
    ds_i_progress_end(&bar);
    return st;
}

/* ---- set-up ---- */

static void ring_init(ring *r)
{
    pthread_mutex_init(&r->lock, NULL);
    pthread_cond_init(&r->room, NULL);
    pthread_cond_init(&r->filled_more, NULL);
    pthread_cond_init(&r->done_more, NULL);
}

static mc_status ring_fill(ring *r, uint64_t n)
{
    MC_TRY(MC_NEW_N(&r->slots, n, "ring of pieces"));
    for (r->n = 0; r->n < n; r->n++) {
        MC_TRY(ds_i_piece_init(&r->slots[r->n].piece));
    }
    return MC_OK;
}

static void ring_fini(ring *r)
{
    for (uint64_t i = 0; i < r->n; i++) {
        ds_i_piece_fini(&r->slots[i].piece);
    }
    mc_free(r->slots);
    pthread_mutex_destroy(&r->lock);
    pthread_cond_destroy(&r->room);
    pthread_cond_destroy(&r->filled_more);
    pthread_cond_destroy(&r->done_more);
}

static mc_status run_threads(job *j, ds_prepare_result *res)
{
    pthread_t reader, workers[MAX_WORKERS];
    int n = 0, err = 0;
    mc_status st = MC_OK;
    bool have_reader = false;
    for (; n < j->config->workers && !err; n += !err) {
        err = pthread_create(&workers[n], NULL, worker_main, j);
    }
    if (!err) {
        err = pthread_create(&reader, NULL, reader_main, j);
        have_reader = !err;
    }
    if (err) {
        st = MC_FAIL(MC_UNSUPPORTED, "--workers %d: the system refused a thread (error %d); use fewer",
                     j->config->workers, err);
        pthread_mutex_lock(&j->ring.lock);
        j->ring.stop = true;
        pthread_cond_broadcast(&j->ring.filled_more);
        pthread_mutex_unlock(&j->ring.lock);
    } else {
        st = write_all(j, res);
    }
    if (have_reader) {
        pthread_join(reader, NULL);
    }
    for (int i = 0; i < n; i++) {
        pthread_join(workers[i], NULL);
    }
    return st;
}

static mc_status parse_unit(const char *text, ds_i_unit *unit_out, bool *json_out)
{
    static const struct {
        const char *name;
        ds_i_unit unit;
    } names[] = {
        {"file", DS_I_PER_FILE}, {"line", DS_I_PER_LINE}, {"blank", DS_I_PER_PARAGRAPH}, {"json", DS_I_PER_JSON}};
    *unit_out = DS_I_PER_FILE;
    *json_out = false;
    if (!text) {
        return MC_OK;
    }
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strcmp(text, names[i].name) == 0) {
            *unit_out = names[i].unit;
            *json_out = names[i].unit == DS_I_PER_JSON;
            return MC_OK;
        }
    }
    return MC_FAIL(MC_INVALID, "--split-documents-on \"%s\": give file, line, blank or json", text);
}

/* Flags that contradict the inputs. */
static mc_status check_inputs(const job *j, bool want_json)
{
    const ds_prepare_config *c = j->config;
    size_t n_json = 0;
    for (size_t i = 0; i < j->inputs.n; i++) {
        n_json += j->inputs.v[i].jsonl;
        if (c->split_documents_on && j->inputs.v[i].jsonl != want_json) {
            return MC_FAIL(MC_INVALID,
                           "--split-documents-on %s does not fit %s, which is read as %s; set --input-format",
                           c->split_documents_on, j->inputs.v[i].path, want_json ? "text" : "JSON lines");
        }
    }
    if (c->n_json_keys > 0 && n_json == 0) {
        return MC_FAIL(MC_INVALID, "--json-keys %s: no input is read as JSON lines (%s, ...); add --input-format jsonl",
                       c->json_keys[0], j->inputs.v[0].path);
    }
    return MC_OK;
}

static mc_status set_up(job *j)
{
    static const char *const text_key[] = {"text"};
    const ds_prepare_config *c = j->config;
    bool want_json;
    if (c->workers < 1 || c->workers > MAX_WORKERS) {
        return MC_FAIL(MC_INVALID, "--workers %d: give 1 to %d", c->workers, MAX_WORKERS);
    }
    if (!c->output_prefix || !*c->output_prefix) {
        return MC_FAIL(MC_INVALID, "no output; give --output-prefix PATH");
    }
    size_t len = strlen(c->output_prefix);
    bool ends = len > 3 && strcmp(c->output_prefix + len - 3, ".h5") == 0;
    if ((size_t)snprintf(j->path, sizeof j->path, "%s%s", c->output_prefix, ends ? "" : ".h5") >= sizeof j->path) {
        return MC_FAIL(MC_INVALID, "--output-prefix is longer than %d bytes; give a shorter one", PATH_MAX);
    }
    MC_TRY(parse_unit(c->split_documents_on, &j->text_unit, &want_json));
    MC_TRY(ds_tokenizer_open(c->tokenizer_type ? c->tokenizer_type : "ByteTokenizer", c->tokenizer_model, &j->tok));
    if (c->append_eod && j->tok->eod_id < 0) {
        return MC_FAIL(MC_INVALID, "--append-eod: tokenizer %s has no end-of-document token", j->tok->ops->name);
    }
    MC_TRY(ds_i_inputs_list(c->inputs, c->n_inputs, c->input_format, c->n_json_keys > 0, &j->inputs));
    MC_TRY(check_inputs(j, want_json));
    ds_writer_config w = {.path = j->path,
                          .vocab_size = j->tok->vocab_size,
                          .eod_id = j->tok->eod_id,
                          .tokenizer_kind = j->tok->ops->name,
                          .tokenizer = j->tok->model,
                          .tokenizer_bytes = j->tok->model_bytes,
                          .compress = c->compress,
                          .overwrite = c->overwrite};
    MC_TRY(ds_writer_create(&w, &j->writer));
    j->encoder = (ds_i_encoder){.tok = j->tok,
                                .json_keys = c->n_json_keys > 0 ? c->json_keys : text_key,
                                .n_json_keys = c->n_json_keys > 0 ? c->n_json_keys : 1,
                                .append_eod = c->append_eod,
                                .token_bytes = ds_writer_token_bytes(j->writer)};
    return ring_fill(&j->ring, 2 * (uint64_t)c->workers + 2);
}

mc_status ds_prepare(const ds_prepare_config *config, ds_prepare_result *result_out)
{
    double start = mc_now();
    ds_prepare_result res = {0};
    job *j;
    MC_TRY(MC_NEW(&j, "prepare job"));
    j->config = config;
    ring_init(&j->ring);
    mc_status st = set_up(j);
    st = st == MC_OK ? run_threads(j, &res) : st;
    st = st == MC_OK ? ds_writer_finish(j->writer) : st;
    struct stat sb;
    if (st == MC_OK && stat(j->path, &sb) == 0) {
        res.n_files = j->inputs.n;
        res.n_documents = ds_writer_n_documents(j->writer);
        res.n_tokens = ds_writer_n_tokens(j->writer);
        res.vocab_size = j->tok->vocab_size;
        res.token_bytes = j->encoder.token_bytes;
        res.output_bytes = (uint64_t)sb.st_size;
        res.seconds = mc_now() - start;
        snprintf(res.output_path, sizeof res.output_path, "%s", j->path);
        *result_out = res;
    }
    ds_writer_destroy(j->writer);
    ds_tokenizer_close(j->tok);
    ds_i_inputs_free(&j->inputs);
    ring_fini(&j->ring);
    mc_free(j);
    return st;
}
