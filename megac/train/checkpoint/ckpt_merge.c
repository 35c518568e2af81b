/* Rank 0: the tables of all ranks become metadata.json. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "megac/base/alloc.h"
#include "megac/base/hash.h"
#include "megac/base/log.h"
#include "megac/train/checkpoint/ckpt_impl.h"

typedef struct row {
    char name[MT_I_NAME_BYTES];
    int rank, part, n_dims;
    char dtype[12], xxh3[MC_HASH_HEX_BYTES];
    long long global[2], begin[2], shape[2], valid_rows;
    mt_i_rect rect;
} row;

typedef struct tables {
    mt_text files; /* JSON rows of "files" */
    row *rows;
    mt_i_rect *rects; /* of the tensor at hand */
    int n_rows;
} tables;

static void parse_row(const char *line, row *r)
{
    _Static_assert(MT_I_NAME_BYTES == 192, "the width of the name below");
    int n = sscanf(line, "slice %d %d %11s %d %lld %lld %lld %lld %lld %lld %lld %16s %191s", &r->rank, &r->part,
                   r->dtype, &r->n_dims, &r->global[0], &r->global[1], &r->begin[0], &r->begin[1], &r->shape[0],
                   &r->shape[1], &r->valid_rows, r->xxh3, r->name);
    MC_ASSERT(n == 13);
    int64_t begin[2] = {r->begin[0], r->begin[1]}, shape[2] = {r->shape[0], r->shape[1]};
    r->rect = mt_i_rect_make(r->n_dims, begin, shape);
}

static void parse_file(const char *line, int world, mt_text *files)
{
    int rank;
    unsigned long long bytes;
    char hash[MC_HASH_HEX_BYTES];
    MC_ASSERT(sscanf(line, "file %d %llu %16s", &rank, &bytes, hash) == 3);
    mt_text_printf(files, "%s{\"name\": \"shard_%05d_of_%05d.safetensors\", \"bytes\": %llu, \"header_xxh3\": \"%s\"}",
                   files->bytes ? ",\n" : "", rank, world, bytes, hash);
}

static int compare_int(int64_t a, int64_t b)
{
    return (a > b) - (a < b);
}

static int compare_rows(const void *a, const void *b)
{
    const row *x = a, *y = b;
    int c = strcmp(x->name, y->name);
    c = c ? c : compare_int(x->rect.begin[0], y->rect.begin[0]);
    c = c ? c : compare_int(x->rect.begin[1], y->rect.begin[1]);
    return c ? c : compare_int(x->rank, y->rank);
}

static mc_status parse_tables(const char *text, int world, tables *t)
{
    int n = 0;
    for (const char *p = text; *p; p = strchr(p, '\n') + 1) {
        n += *p == 's';
    }
    MC_TRY(MC_NEW_N(&t->rows, n, "checkpoint slices"));
    MC_TRY(MC_NEW_N(&t->rects, n, "checkpoint slices"));
    for (const char *p = text; *p; p = strchr(p, '\n') + 1) {
        if (*p == 's') {
            parse_row(p, &t->rows[t->n_rows++]);
        } else {
            parse_file(p, world, &t->files);
        }
    }
    qsort(t->rows, (size_t)t->n_rows, sizeof *t->rows, compare_rows);
    return t->files.st;
}

/* The rows [r, r + n) are one tensor's slices: they must agree and cover it. */
static mc_status check_tensor(const row *r, int n, mt_i_rect *rects)
{
    const int64_t zero[2] = {0, 0}, global[2] = {r->global[0], r->global[1]};
    for (int i = 0; i < n; i++) {
        if (strcmp(r[i].dtype, r->dtype) != 0 || r[i].n_dims != r->n_dims || r[i].valid_rows != r->valid_rows ||
            memcmp(r[i].global, r->global, sizeof r->global) != 0) {
            return MC_FAIL(MC_MISMATCH, "%s: ranks %d and %d disagree about its type, shape or vocabulary; not saved",
                           r->name, r->rank, r[i].rank);
        }
        rects[i] = r[i].rect;
        if (i > 0 && mt_i_rect_equal(rects[i - 1], rects[i]) && r[i - 1].rank == r[i].rank) {
            return MC_FAIL(MC_MISMATCH, "%s: rank %d lists the same slice twice; not saved", r->name, r[i].rank);
        }
        if (i > 0 && mt_i_rect_equal(rects[i - 1], rects[i]) && strcmp(r[i - 1].xxh3, r[i].xxh3) != 0) {
            MC_WARN("%s: ranks %d and %d hold the same slice with different values; the first is the one that loads",
                    r->name, r[i - 1].rank, r[i].rank);
        }
    }
    if (!mt_i_rects_cover(mt_i_rect_make(r->n_dims, zero, global), rects, n, NULL)) {
        return MC_FAIL(MC_MISMATCH, "%s: the slices of all ranks overlap or leave a hole in its %lld x %lld; not saved",
                       r->name, r->global[0], r->n_dims == 2 ? r->global[1] : 1);
    }
    return MC_OK;
}

static void print_dims(mt_text *out, const char *key, const row *r, const long long *v)
{
    mt_text_printf(out, "\"%s\": [%lld", key, v[0]);
    mt_text_printf(out, r->n_dims == 2 ? ", %lld]" : "]", v[1]);
}

static void print_tensor(mt_text *out, const row *r, int n, int world)
{
    mt_text_json(out, r->name, strlen(r->name));
    mt_text_printf(out, ": {\"dtype\": \"%s\", ", r->dtype);
    print_dims(out, "shape", r, r->global);
    if (r->valid_rows > 0) {
        mt_text_printf(out, ", \"valid_rows\": %lld", r->valid_rows);
    }
    mt_text_printf(out, ", \"slices\": [");
    for (int i = 0; i < n; i++) {
        char suffix[16] = "";
        if (r[i].part >= 0) {
            snprintf(suffix, sizeof suffix, ".%d", r[i].part);
        }
        mt_text_printf(out, "%s\n  {\"file\": \"shard_%05d_of_%05d.safetensors\", \"tensor\": \"%s%s\", ", i ? "," : "",
                       r[i].rank, world, r[i].name, suffix);
        print_dims(out, "begin", r, r[i].begin);
        mt_text_printf(out, ", ");
        print_dims(out, "shape", r, r[i].shape);
        mt_text_printf(out, ", \"xxh3\": \"%s\"}", r[i].xxh3);
    }
    mt_text_printf(out, "]}");
}

/* True when a line before `line` starts with the same flag. */
static bool flag_repeated(const char *config, const char *line, size_t flag)
{
    for (const char *p = config; p < line; p += strcspn(p, "\n") + 1) {
        if (strcspn(p, " \n") == flag && memcmp(p, line, flag) == 0) {
            return true;
        }
    }
    return false;
}

/* "flag value" lines as an object. */
static mc_status print_config(const char *config, mt_text *out)
{
    mt_text_printf(out, "\"config\": {");
    bool first = true;
    for (const char *p = config ? config : ""; *p;) {
        size_t line = strcspn(p, "\n"), flag = strcspn(p, " \n");
        size_t value = flag < line ? flag + 1 : line;
        if (flag > 0) {
            if (flag_repeated(config, p, flag)) {
                return MC_FAIL(MC_INVALID, "checkpoint: the configuration has %.*s twice; not saved", (int)flag, p);
            }
            mt_text_printf(out, first ? "\n" : ",\n");
            mt_text_json(out, p, flag);
            mt_text_printf(out, ": ");
            mt_text_json(out, p + value, line - value);
            first = false;
        }
        p += line + (p[line] == '\n');
    }
    mt_text_printf(out, "},\n");
    return out->st;
}

static void print_numbers(const char *key, const double *v, int n, mt_text *out)
{
    mt_text_printf(out, "\"%s\": [", key);
    for (int i = 0; i < n; i++) {
        mt_text_printf(out, "%s%.17g", i ? ", " : "", v[i]);
    }
    mt_text_printf(out, "],\n");
}

/* What a step's decision depends on, where the run has it. */
static void print_decisions(const mt_ckpt_state *s, mt_text *out)
{
    if (s->loss_scale > 0) {
        mt_text_printf(out, "\"loss_scale\": {\"scale\": %.17g, \"good_steps\": %lld, \"hysteresis\": %lld},\n",
                       s->loss_scale, (long long)s->loss_scale_good_steps, (long long)s->loss_scale_hysteresis);
    }
    if (s->n_recent > 0) {
        print_numbers("recent_losses", s->recent_losses, s->n_recent, out);
        print_numbers("recent_grad_norms", s->recent_norms, s->n_recent, out);
    }
}

static mc_status print_state(const mt_ckpt_state *s, int world, mt_text *out)
{
    const struct {
        const char *key;
        uint64_t value;
    } rows[] = {
        {"version", MT_I_VERSION},
        {"iteration", (uint64_t)s->iteration},
        {"consumed_samples", s->consumed_samples},
        {"consumed_tokens", s->consumed_tokens},
        {"skipped_iterations", s->skipped_iterations},
        {"optimizer_steps", (uint64_t)s->optimizer_steps},
        {"schedule_samples", s->schedule_samples},
        {"best_iteration", (uint64_t)s->best_iteration},
        {"world_size", (uint64_t)world},
    };
    mt_text_printf(out, "{\n\"format\": \"%s\",\n", MT_I_FORMAT);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        if (rows[i].value > INT64_MAX) {
            return MC_FAIL(MC_INVALID, "checkpoint: %s is %llu, more than the format holds", rows[i].key,
                           (unsigned long long)rows[i].value);
        }
        mt_text_printf(out, "\"%s\": %llu,\n", rows[i].key, (unsigned long long)rows[i].value);
    }
    print_decisions(s, out);
    if (s->best_iteration > 0) {
        mt_text_printf(out, "\"best_loss\": %.17g,\n", s->best_loss);
    }
    mt_text_printf(out, "\"tokenizer\": {\"kind\": ");
    mt_text_json(out, s->tokenizer_kind ? s->tokenizer_kind : "", s->tokenizer_kind ? strlen(s->tokenizer_kind) : 0);
    if (s->tokenizer) {
        mt_text_printf(out, ", \"file\": \"%s\", \"bytes\": %llu, \"xxh3\": \"%016llx\"", MT_I_TOKENIZER,
                       (unsigned long long)s->tokenizer_bytes,
                       (unsigned long long)mc_hash(s->tokenizer, (size_t)s->tokenizer_bytes));
    }
    mt_text_printf(out, "},\n");
    return print_config(s->config, out);
}

static mc_status print_all(const mt_ckpt_state *state, int world, tables *t, mt_text *out)
{
    MC_TRY(print_state(state, world, out));
    mt_text_printf(out, "\"files\": [\n%s],\n\"tensors\": {", t->files.data ? t->files.data : "");
    for (int i = 0, n; i < t->n_rows; i += n) {
        const row *r = &t->rows[i];
        for (n = 1; i + n < t->n_rows && strcmp(r[n].name, r->name) == 0; n++) {
        }
        MC_TRY(check_tensor(r, n, t->rects));
        mt_text_printf(out, i ? ",\n" : "\n");
        print_tensor(out, r, n, world);
    }
    mt_text_printf(out, "},\n");
    MC_TRY(out->st);
    mt_text_printf(out, "\"xxh3\": \"%016llx\"\n}\n", (unsigned long long)mc_hash(out->data, out->bytes));
    return out->st;
}

mc_status mt_i_metadata_make(const mt_ckpt_state *state, int world, const char *text, mt_text *out)
{
    tables t = {0};
    mc_status st = parse_tables(text, world, &t);
    if (st == MC_OK) {
        st = print_all(state, world, &t, out);
    }
    mt_text_fini(&t.files);
    mc_free(t.rows);
    mc_free(t.rects);
    return st;
}
