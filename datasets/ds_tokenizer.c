/* The table of tokenizers. */
#include "datasets/ds_tokenizer.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "datasets/ds_impl.h"
#include "megac/base/alloc.h"

extern const ds_tokenizer_ops ds_i_tokenizer_byte;

static const ds_tokenizer_ops *const table[] = {
    &ds_i_tokenizer_byte,
};
enum { N_TOKENIZERS = sizeof table / sizeof *table };

static mc_status find_ops(const char *type, const ds_tokenizer_ops **ops_out)
{
    char known[512] = "";
    for (int i = 0; i < N_TOKENIZERS; i++) {
        if (strcmp(table[i]->name, type) == 0) {
            *ops_out = table[i];
            return MC_OK;
        }
        size_t used = strlen(known);
        snprintf(known + used, sizeof known - used, "%s%s", i ? ", " : "", table[i]->name);
    }
    return MC_FAIL(MC_UNSUPPORTED, "--tokenizer-type \"%s\" is not known; this build has: %s", type, known);
}

static mc_status read_model(const char *path, void **bytes_out, uint64_t *n_out)
{
    struct stat sb;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &sb) != 0 || !S_ISREG(sb.st_mode)) {
        mc_status st = MC_FAIL(fd < 0 && errno == ENOENT ? MC_NOTFOUND : MC_INPUT, "--tokenizer-model %s: %s", path,
                               fd < 0 ? strerror(errno) : "not a regular file");
        if (fd >= 0) {
            close(fd);
        }
        return st;
    }
    void *bytes = NULL;
    mc_status st = mc_alloc(1, (size_t)sb.st_size, "tokenizer model", &bytes);
    if (st == MC_OK) {
        st = ds_i_pread_all(fd, path, bytes, (size_t)sb.st_size, 0);
    }
    close(fd);
    if (st != MC_OK) {
        mc_free(bytes);
        return st;
    }
    *bytes_out = bytes;
    *n_out = (uint64_t)sb.st_size;
    return MC_OK;
}

/* Takes over `model`. */
static mc_status open_with(const ds_tokenizer_ops *ops, void *model, uint64_t model_bytes, ds_tokenizer **tok_out)
{
    ds_tokenizer *tok = NULL;
    mc_status st = MC_NEW(&tok, "tokenizer");
    if (st != MC_OK) {
        mc_free(model);
        return st;
    }
    *tok = (ds_tokenizer){.ops = ops, .model = model, .model_bytes = model_bytes, .eod_id = -1};
    st = ops->open(tok);
    if (st != MC_OK) {
        mc_free(model);
        mc_free(tok);
        return st;
    }
    *tok_out = tok;
    return MC_OK;
}

mc_status ds_tokenizer_open(const char *type, const char *model_path, ds_tokenizer **tok_out)
{
    const ds_tokenizer_ops *ops;
    MC_TRY(find_ops(type, &ops));
    if (ops->needs_model != (model_path != NULL)) {
        return MC_FAIL(MC_INVALID,
                       ops->needs_model ? "--tokenizer-type %s needs --tokenizer-model FILE"
                                        : "--tokenizer-type %s has no model file; leave --tokenizer-model out",
                       ops->name);
    }
    void *model = NULL;
    uint64_t n = 0;
    if (model_path) {
        MC_TRY(read_model(model_path, &model, &n));
    }
    return open_with(ops, model, n, tok_out);
}

mc_status ds_tokenizer_open_stored(const char *kind, const void *model, uint64_t model_bytes, ds_tokenizer **tok_out)
{
    const ds_tokenizer_ops *ops;
    MC_TRY(find_ops(kind, &ops));
    if (ops->needs_model != (model_bytes > 0)) {
        return MC_FAIL(MC_INPUT, "tokenizer kind %s with a stored model of %llu bytes: %s", kind,
                       (unsigned long long)model_bytes, ops->needs_model ? "it needs one" : "it has none");
    }
    void *copy = NULL;
    if (model_bytes) {
        MC_TRY(mc_alloc(1, model_bytes, "tokenizer model", &copy));
        memcpy(copy, model, model_bytes);
    }
    return open_with(ops, copy, model_bytes, tok_out);
}

void ds_tokenizer_close(ds_tokenizer *tok)
{
    if (!tok) {
        return;
    }
    if (tok->ops->close) {
        tok->ops->close(tok);
    }
    mc_free(tok->model);
    mc_free(tok);
}

size_t ds_tokenizer_encode(const ds_tokenizer *tok, const void *text, size_t n_bytes, uint32_t *ids_out)
{
    return tok->ops->encode(tok, text, n_bytes, ids_out);
}

size_t ds_tokenizer_max_ids(const ds_tokenizer *tok, size_t n_bytes)
{
    return tok->ops->max_ids(tok, n_bytes);
}

size_t ds_tokenizer_cut(const ds_tokenizer *tok, const void *text, size_t n_bytes)
{
    return tok->ops->cut ? tok->ops->cut(tok, text, n_bytes) : n_bytes;
}

size_t ds_tokenizer_decode(const ds_tokenizer *tok, const int32_t *ids, size_t n, char *text_out, size_t cap)
{
    return tok->ops->decode(tok, ids, n, text_out, cap);
}
