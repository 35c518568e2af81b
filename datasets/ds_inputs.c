/* Walks the inputs of megac prepare. */
#include "datasets/ds_inputs.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "megac/base/alloc.h"
#include "megac/base/log.h"

/* Deeper nesting is a link that leads back. */
enum { MAX_DEPTH = 64 };

typedef struct walk {
    ds_i_inputs *list;
    const char *format;
    bool json_keys_given;
} walk;

static bool ends_with(const char *text, size_t n, const char *ending)
{
    size_t m = strlen(ending);
    return n >= m && memcmp(text + n - m, ending, m) == 0;
}

static bool is_jsonl(const walk *w, const char *path)
{
    if (w->format && strcmp(w->format, "auto") != 0) {
        return strcmp(w->format, "jsonl") == 0;
    }
    if (strcmp(path, "-") == 0) {
        return w->json_keys_given;
    }
    size_t n = strlen(path);
    n -= ends_with(path, n, ".gz") ? 3 : ends_with(path, n, ".zst") ? 4 : 0;
    return ends_with(path, n, ".jsonl") || ends_with(path, n, ".ndjson") || ends_with(path, n, ".json");
}

static mc_status add(walk *w, const char *path)
{
    ds_i_inputs *l = w->list;
    if (l->n == l->cap) {
        size_t cap = l->cap ? 2 * l->cap : 16;
        MC_TRY(MC_MORE(&l->v, l->n, cap, "input list"));
        l->cap = cap;
    }
    MC_TRY(mc_strdup(path, "input name", &l->v[l->n].path));
    l->v[l->n++].jsonl = is_jsonl(w, path);
    return MC_OK;
}

/* By bytes, so that the order does not depend on the locale. */
static int by_bytes(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

typedef struct names {
    char **v;
    size_t n, cap;
} names;

static void names_free(names *l)
{
    for (size_t i = 0; i < l->n; i++) {
        mc_free(l->v[i]);
    }
    mc_free(l->v);
}

static mc_status names_add(names *l, const char *name)
{
    if (l->n == l->cap) {
        size_t cap = l->cap ? 2 * l->cap : 64;
        MC_TRY(MC_MORE(&l->v, l->n, cap, "folder entries"));
        l->cap = cap;
    }
    MC_TRY(mc_strdup(name, "folder entry", &l->v[l->n]));
    l->n++;
    return MC_OK;
}

/* The entries that are not hidden, sorted. */
static mc_status list_folder(const char *path, names *l)
{
    DIR *dir = opendir(path);
    if (!dir) {
        return MC_FAIL(MC_INPUT, "cannot list input folder %s: %s", path, strerror(errno));
    }
    mc_status st = MC_OK;
    errno = 0;
    for (const struct dirent *e; st == MC_OK && (e = readdir(dir)) != NULL; errno = 0) {
        st = e->d_name[0] == '.' ? MC_OK : names_add(l, e->d_name);
    }
    if (st == MC_OK && errno) {
        st = MC_FAIL(MC_INPUT, "cannot list input folder %s: %s", path, strerror(errno));
    }
    closedir(dir);
    if (l->n) {
        qsort(l->v, l->n, sizeof *l->v, by_bytes);
    }
    return st;
}

static mc_status visit(walk *w, const char *path, int depth);

static mc_status visit_folder(walk *w, const char *path, int depth)
{
    names list = {0};
    if (depth > MAX_DEPTH) {
        return MC_FAIL(MC_INPUT, "input %s lies more than %d folders deep; is there a link that leads back?", path,
                       MAX_DEPTH);
    }
    mc_status st = list_folder(path, &list);
    for (size_t i = 0; i < list.n && st == MC_OK; i++) {
        char full[PATH_MAX];
        int len = snprintf(full, sizeof full, "%s%s%s", path, ends_with(path, strlen(path), "/") ? "" : "/", list.v[i]);
        if (len < 0 || (size_t)len >= sizeof full) {
            st = MC_FAIL(MC_INPUT, "a path below input folder %s is longer than %d bytes", path, PATH_MAX);
        }
        st = st == MC_OK ? visit(w, full, depth + 1) : st;
    }
    names_free(&list);
    return st;
}

static mc_status visit(walk *w, const char *path, int depth)
{
    struct stat sb;
    if (strcmp(path, "-") == 0) {
        w->list->all_sizes_known = false;
        return add(w, path);
    }
    if (stat(path, &sb) != 0) {
        int err = errno;
        return MC_FAIL(err == ENOENT ? MC_NOTFOUND : MC_INPUT, "input %s: %s; check --input", path, strerror(err));
    }
    if (S_ISDIR(sb.st_mode)) {
        return visit_folder(w, path, depth);
    }
    if (!S_ISREG(sb.st_mode)) {
        if (depth > 0) {
            MC_WARN("input %s is no regular file; left out", path);
            return MC_OK;
        }
        w->list->all_sizes_known = false; /* a pipe, as from a shell's <(...) */
    }
    w->list->bytes += (uint64_t)sb.st_size;
    return add(w, path);
}

mc_status ds_i_inputs_list(const char *const *paths, int n_paths, const char *format, bool json_keys_given,
                           ds_i_inputs *inputs_out)
{
    *inputs_out = (ds_i_inputs){.all_sizes_known = true};
    if (format && strcmp(format, "auto") != 0 && strcmp(format, "text") != 0 && strcmp(format, "jsonl") != 0) {
        return MC_FAIL(MC_INVALID, "--input-format \"%s\": give auto, text or jsonl", format);
    }
    if (n_paths < 1) {
        return MC_FAIL(MC_INVALID, "no input; give --input PATH..., or --input - for standard input");
    }
    walk w = {inputs_out, format, json_keys_given};
    for (int i = 0; i < n_paths; i++) {
        MC_TRY(visit(&w, paths[i], 0));
    }
    if (inputs_out->n == 0) {
        return MC_FAIL(MC_INPUT, "input %s holds no file (hidden ones are left out); check --input", paths[0]);
    }
    return MC_OK;
}

void ds_i_inputs_free(ds_i_inputs *inputs)
{
    for (size_t i = 0; i < inputs->n; i++) {
        mc_free(inputs->v[i].path);
    }
    mc_free(inputs->v);
    *inputs = (ds_i_inputs){0};
}
