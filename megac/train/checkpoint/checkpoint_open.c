/* Finding, opening and closing a checkpoint. */
#include <ctype.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "megac/base/alloc.h"
#include "megac/base/hash.h"
#include "megac/base/log.h"
#include "megac/train/checkpoint/ckpt_impl.h"

static int compare_iteration(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/* "100, 200" of the checkpoints in `dir`, newest last and at most 16 of them, or "none". Returns the newest, or -1. */
static int64_t list_iterations(const char *dir, char *out, size_t cap)
{
    enum { SHOWN = 16 };
    int64_t found[SHOWN];
    int n = 0;
    DIR *d = opendir(dir);
    for (struct dirent *e; d && (e = readdir(d));) {
        int64_t v;
        const char *suffix;
        if (!mt_i_iter_parse(e->d_name, &v, &suffix) || *suffix) {
            continue;
        }
        if (n == SHOWN && v > found[0]) {
            found[0] = v;
        } else if (n < SHOWN) {
            found[n++] = v;
        }
        qsort(found, (size_t)n, sizeof *found, compare_iteration);
    }
    if (d) {
        closedir(d);
    }
    snprintf(out, cap, "%s", n ? "" : "none");
    for (int i = 0; i < n; i++) {
        size_t used = strlen(out);
        snprintf(out + used, cap - used, "%s%lld", i ? ", " : "", (long long)found[i]);
    }
    return n ? found[n - 1] : -1;
}

static mc_status parse_latest(const char *path, const char *text, size_t bytes, const char *there, int64_t *out)
{
    int64_t v = 0;
    size_t n = bytes > 0 && text[bytes - 1] == '\n' ? bytes - 1 : bytes;
    bool ok = n > 0 && n <= 18;
    for (size_t i = 0; i < n && ok; i++) {
        ok = isdigit((unsigned char)text[i]);
        v = v * 10 + (text[i] - '0');
    }
    if (!ok) {
        return MC_FAIL(MC_INPUT, "%s does not hold an iteration number; write one of these into it, or name it: %s",
                       path, there);
    }
    *out = v;
    return MC_OK;
}

static mc_status read_latest(const char *dir, const char *there, int64_t *iteration_out)
{
    char path[MC_PATH_BYTES], *text;
    size_t bytes;
    MC_TRY(mc_path_format(path, "%s/%s", dir, MT_I_LATEST));
    if (!mc_file_exists(path)) {
        return MC_FAIL(MC_NOTFOUND, "%s has no %s; iterations there: %s", dir, MT_I_LATEST, there);
    }
    MC_TRY(mc_file_read_all(path, 4096, MT_I_LATEST, &text, &bytes));
    mc_status st = parse_latest(path, text, bytes, there, iteration_out);
    mc_free(text);
    return st;
}

/* The directory of the iteration wanted; *iteration_out is -1 where the path itself is that directory. */
static mc_status find_dir(const char *path, int64_t step, char *dir_out, int64_t *iteration_out)
{
    char there[512], metadata[MC_PATH_BYTES];
    if (!mc_file_is_dir(path)) {
        return MC_FAIL(MC_NOTFOUND, "no checkpoint directory %s; check the path", path);
    }
    MC_TRY(mc_path_format(metadata, "%s/%s", path, MT_I_METADATA));
    *iteration_out = step;
    if (mc_file_exists(metadata)) {
        return mc_path_format(dir_out, "%s", path);
    }
    int64_t newest = list_iterations(path, there, sizeof there);
    if (step < 0) {
        MC_TRY(read_latest(path, there, iteration_out));
    }
    MC_TRY(mt_i_iter_path(dir_out, path, *iteration_out, ""));
    if (mc_file_is_dir(dir_out)) {
        if (step < 0 && newest > *iteration_out) {
            MC_WARN("%s: " MT_I_LATEST
                    " names iteration %lld, though %lld is there too; to take that: --ckpt-step %lld",
                    path, (long long)*iteration_out, (long long)newest, (long long)newest);
        }
        return MC_OK;
    }
    /* A save of the same iteration may have died between two renames (ckpt_publish.c). */
    MC_TRY(mt_i_iter_path(dir_out, path, *iteration_out, ".old"));
    if (mc_file_is_dir(dir_out)) {
        return MC_OK;
    }
    return MC_FAIL(MC_NOTFOUND, "%s has no iteration %lld%s; there are: %s", path, (long long)*iteration_out,
                   step < 0 ? " (named by " MT_I_LATEST ")" : "", there);
}

static mc_status check_files(const mt_checkpoint *c)
{
    char path[MC_PATH_BYTES];
    for (int i = 0; i < c->n_files; i++) {
        const mt_i_file *f = &c->files[i];
        uint64_t bytes;
        MC_TRY(mc_path_format(path, "%s/%s", c->dir, f->name));
        if (!mc_file_exists(path)) {
            return MC_FAIL(MC_NOTFOUND, "%s is missing: the checkpoint is incomplete; use another iteration", path);
        }
        MC_TRY(mc_file_stat(path, &bytes));
        if (bytes != f->bytes) {
            return MC_FAIL(MC_INPUT, "%s has %llu bytes instead of %llu: truncated or damaged; use another iteration",
                           path, (unsigned long long)bytes, (unsigned long long)f->bytes);
        }
    }
    return MC_OK;
}

static mc_status read_tokenizer(mt_checkpoint *c)
{
    char path[MC_PATH_BYTES];
    size_t bytes;
    if (!c->tokenizer_file) {
        return MC_OK;
    }
    MC_TRY(mc_path_format(path, "%s/%s", c->dir, c->tokenizer_file));
    MC_TRY(mc_file_read_all(path, MT_I_MAX_TOKENIZER_BYTES, "a tokenizer", &c->tokenizer, &bytes));
    if (bytes != c->state.tokenizer_bytes || mc_hash(c->tokenizer, bytes) != c->tokenizer_xxh3) {
        return MC_FAIL(MC_INPUT, "%s: its checksum is wrong: damaged; use another iteration", path);
    }
    c->state.tokenizer = c->tokenizer;
    return MC_OK;
}

static mc_status read_metadata(mt_checkpoint *c)
{
    char path[MC_PATH_BYTES], *text;
    size_t bytes;
    MC_TRY(mc_path_format(path, "%s/%s", c->dir, MT_I_METADATA));
    MC_TRY(mc_file_read_all(path, MT_I_MAX_METADATA_BYTES, MT_I_METADATA, &text, &bytes));
    mc_status st = mt_i_metadata_parse(c, path, text, bytes);
    mc_free(text);
    return st;
}

mc_status mt_checkpoint_open(const char *path, int64_t step, mt_checkpoint **ckpt_out)
{
    char dir[MC_PATH_BYTES];
    int64_t iteration = -1;
    mt_checkpoint *c;
    MC_TRY(find_dir(path, step, dir, &iteration));
    MC_TRY(MC_NEW(&c, "checkpoint"));
    c->fd = c->open_file = -1;
    mc_status st = mc_strdup(dir, "checkpoint path", &c->dir);
    MC_TRY_GOTO(st, st, undo_checkpoint);
    MC_TRY_GOTO(st, mc_alloc(MT_I_CHUNK_BYTES, 1, "checkpoint buffer", (void **)&c->chunk), undo_checkpoint);
    MC_TRY_GOTO(st, read_metadata(c), undo_checkpoint);
    if (iteration >= 0 && c->state.iteration != iteration) {
        st = MC_FAIL(MC_INPUT, "%s holds iteration %lld, not %lld: renamed or copied wrongly", dir,
                     (long long)c->state.iteration, (long long)iteration);
        goto undo_checkpoint;
    }
    MC_TRY_GOTO(st, check_files(c), undo_checkpoint);
    MC_TRY_GOTO(st, read_tokenizer(c), undo_checkpoint);
    *ckpt_out = c;
    return MC_OK;
undo_checkpoint:
    mt_checkpoint_close(c);
    return st;
}

void mt_checkpoint_close(mt_checkpoint *c)
{
    if (!c) {
        return;
    }
    if (c->fd >= 0) {
        close(c->fd);
    }
    if (c->json) {
        mt_i_json_release(c->json);
    }
    mt_text_fini(&c->config);
    mc_free(c->recent);
    mc_free(c->files);
    mc_free(c->slices);
    mc_free(c->tensors);
    mc_free(c->tokenizer);
    mc_free(c->chunk);
    mc_free(c->dir);
    mc_free(c);
}

const mt_ckpt_state *mt_checkpoint_state(const mt_checkpoint *c)
{
    return &c->state;
}
