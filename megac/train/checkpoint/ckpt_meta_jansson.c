/* metadata.json, parsed by jansson and checked against itself: after this, indices, sizes and rectangles can be
 * trusted. */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "megac/base/alloc.h"
#include "megac/base/hash.h"
#include "megac/train/checkpoint/ckpt_impl.h"

/* The last line is "xxh3": of every byte before it. */
static mc_status check_sum(const char *path, const char *text, size_t bytes)
{
    static const char key[] = "\"xxh3\": \"", end[] = "\"\n}\n";
    const size_t tail = sizeof key - 1 + MC_HASH_HEX_BYTES - 1 + sizeof end - 1;
    char hex[MC_HASH_HEX_BYTES] = {0};
    uint64_t stored;
    if (bytes > tail) {
        memcpy(hex, text + bytes - tail + sizeof key - 1, sizeof hex - 1);
    }
    if (bytes <= tail || memcmp(text + bytes - tail, key, sizeof key - 1) != 0 ||
        memcmp(text + bytes - (sizeof end - 1), end, sizeof end - 1) != 0 || !mc_hash_parse(hex, &stored)) {
        return MC_FAIL(MC_INPUT, "%s does not end with its checksum: truncated or damaged; use another iteration",
                       path);
    }
    if (stored != mc_hash(text, bytes - tail)) {
        return MC_FAIL(MC_INPUT, "%s: its checksum is wrong: damaged or edited; use another iteration", path);
    }
    return MC_OK;
}

static mc_status get_count(const json_t *o, const char *key, const char *path, uint64_t *out)
{
    const json_t *v = json_object_get(o, key);
    if (!json_is_integer(v) || json_integer_value(v) < 0) {
        return MC_FAIL(MC_INPUT, "%s: \"%s\" is not a number >= 0", path, key);
    }
    *out = (uint64_t)json_integer_value(v);
    return MC_OK;
}

static mc_status get_string(const json_t *o, const char *key, const char *path, const char **out)
{
    *out = json_string_value(json_object_get(o, key));
    return *out ? MC_OK : MC_FAIL(MC_INPUT, "%s: \"%s\" is missing or not a string", path, key);
}

static mc_status get_hash(const json_t *o, const char *key, const char *path, uint64_t *out)
{
    const char *text;
    MC_TRY(get_string(o, key, path, &text));
    return mc_hash_parse(text, out) ? MC_OK
                                    : MC_FAIL(MC_INPUT, "%s: \"%s\": \"%s\" is not a checksum", path, key, text);
}

static mc_status get_dims(const json_t *o, const char *key, const char *path, int n_dims, int64_t *out)
{
    const json_t *list = json_object_get(o, key);
    if (!json_is_array(list) || json_array_size(list) != (size_t)n_dims) {
        return MC_FAIL(MC_INPUT, "%s: \"%s\" is not a list of %d numbers", path, key, n_dims);
    }
    for (int i = 0; i < n_dims; i++) {
        const json_t *v = json_array_get(list, (size_t)i);
        if (!json_is_integer(v) || json_integer_value(v) < 0) {
            return MC_FAIL(MC_INPUT, "%s: \"%s\" is not a list of numbers >= 0", path, key);
        }
        out[i] = json_integer_value(v);
    }
    return MC_OK;
}

/* A list of numbers into c->recent from `first` on. */
static mc_status get_numbers(mt_checkpoint *c, const json_t *list, int first, int n, const char *path)
{
    for (int i = 0; i < n; i++) {
        const json_t *v = json_array_get(list, (size_t)i);
        if (!json_is_number(v)) {
            return MC_FAIL(MC_INPUT,
                           "%s: losses and gradient norms of the last steps are not lists of equally many "
                           "numbers",
                           path);
        }
        c->recent[first + i] = json_number_value(v);
    }
    return MC_OK;
}

/* What a step's decision depends on; absent where the run had none of it. */
static mc_status parse_decisions(mt_checkpoint *c, const json_t *root, const char *path)
{
    mt_ckpt_state *s = &c->state;
    const json_t *scale = json_object_get(root, "loss_scale"), *losses = json_object_get(root, "recent_losses");
    s->schedule_samples = s->consumed_samples;
    if (json_object_get(root, "schedule_samples")) {
        MC_TRY(get_count(root, "schedule_samples", path, &s->schedule_samples));
    }
    if (scale) {
        const json_t *good = json_object_get(scale, "good_steps"), *left = json_object_get(scale, "hysteresis");
        s->loss_scale = json_number_value(json_object_get(scale, "scale"));
        s->loss_scale_good_steps = json_integer_value(good);
        s->loss_scale_hysteresis = json_integer_value(left);
        if (!(s->loss_scale > 0) || !json_is_integer(good) || !json_is_integer(left)) {
            return MC_FAIL(MC_INPUT, "%s: \"loss_scale\" is not a scale with its counts", path);
        }
    }
    if (losses) {
        s->n_recent = (int)json_array_size(losses);
        MC_TRY(MC_NEW_N(&c->recent, 2 * (size_t)s->n_recent + 1, "losses and norms of the last steps"));
        MC_TRY(get_numbers(c, losses, 0, s->n_recent, path));
        MC_TRY(get_numbers(c, json_object_get(root, "recent_grad_norms"), s->n_recent, s->n_recent, path));
        s->recent_losses = c->recent;
        s->recent_norms = c->recent + s->n_recent;
    }
    return MC_OK;
}

static mc_status parse_state(mt_checkpoint *c, const json_t *root, const char *path)
{
    mt_ckpt_state *s = &c->state;
    uint64_t version = 0, iteration = 0, steps = 0, world = 0, best = 0;
    const char *format;
    MC_TRY(get_string(root, "format", path, &format));
    MC_TRY(get_count(root, "version", path, &version));
    if (strcmp(format, MT_I_FORMAT) != 0 || version != MT_I_VERSION) {
        return MC_FAIL(MC_UNSUPPORTED, "%s: format \"%s\" version %llu; this program reads \"%s\" version %d", path,
                       format, (unsigned long long)version, MT_I_FORMAT, MT_I_VERSION);
    }
    MC_TRY(get_count(root, "iteration", path, &iteration));
    MC_TRY(get_count(root, "consumed_samples", path, &s->consumed_samples));
    MC_TRY(get_count(root, "consumed_tokens", path, &s->consumed_tokens));
    MC_TRY(get_count(root, "skipped_iterations", path, &s->skipped_iterations));
    MC_TRY(get_count(root, "optimizer_steps", path, &steps));
    MC_TRY(get_count(root, "world_size", path, &world));
    if (json_object_get(root, "best_iteration")) {
        MC_TRY(get_count(root, "best_iteration", path, &best));
        s->best_loss = json_number_value(json_object_get(root, "best_loss"));
    }
    s->iteration = (int64_t)iteration;
    s->best_iteration = (int64_t)best;
    s->optimizer_steps = (int64_t)steps;
    MC_TRY(parse_decisions(c, root, path));
    c->world = world <= INT32_MAX ? (int)world : INT32_MAX;
    const json_t *tokenizer = json_object_get(root, "tokenizer");
    MC_TRY(get_string(tokenizer, "kind", path, &s->tokenizer_kind));
    if (json_object_get(tokenizer, "file")) {
        MC_TRY(get_string(tokenizer, "file", path, &c->tokenizer_file));
        MC_TRY(get_count(tokenizer, "bytes", path, &s->tokenizer_bytes));
        MC_TRY(get_hash(tokenizer, "xxh3", path, &c->tokenizer_xxh3));
        if (strchr(c->tokenizer_file, '/')) {
            return MC_FAIL(MC_INPUT, "%s: tokenizer file \"%s\" is outside the checkpoint", path, c->tokenizer_file);
        }
    }
    return MC_OK;
}

static mc_status parse_config(mt_checkpoint *c, json_t *config, const char *path)
{
    const char *flag;
    json_t *value;
    if (!json_is_object(config)) {
        return MC_FAIL(MC_INPUT, "%s: \"config\" is missing", path);
    }
    json_object_foreach(config, flag, value)
    {
        const char *text = json_string_value(value);
        if (!text) {
            return MC_FAIL(MC_INPUT, "%s: value of option %s is not a string", path, flag);
        }
        mt_text_printf(&c->config, "%s%s%s\n", flag, *text ? " " : "", text);
    }
    mt_text_add(&c->config, "", 0);
    c->state.config = c->config.data;
    return c->config.st;
}

static int compare_file(const void *a, const void *b)
{
    return strcmp(((const mt_i_file *)a)->name, ((const mt_i_file *)b)->name);
}

static mc_status parse_files(mt_checkpoint *c, const json_t *list, const char *path)
{
    if (!json_is_array(list) || json_array_size(list) > INT32_MAX) {
        return MC_FAIL(MC_INPUT, "%s: \"files\" is missing", path);
    }
    c->n_files = (int)json_array_size(list);
    MC_TRY(MC_NEW_N(&c->files, c->n_files, "checkpoint files"));
    for (int i = 0; i < c->n_files; i++) {
        const json_t *o = json_array_get(list, (size_t)i);
        mt_i_file *f = &c->files[i];
        MC_TRY(get_string(o, "name", path, &f->name));
        MC_TRY(get_count(o, "bytes", path, &f->bytes));
        MC_TRY(get_hash(o, "header_xxh3", path, &f->header_xxh3));
        f->first_slice = -1;
        if (strchr(f->name, '/')) {
            return MC_FAIL(MC_INPUT, "%s: file \"%s\" is outside the checkpoint", path, f->name);
        }
    }
    qsort(c->files, (size_t)c->n_files, sizeof *c->files, compare_file);
    return MC_OK;
}

static mc_status parse_slice(mt_checkpoint *c, const json_t *o, int tensor, mt_i_slice *s, const char *path)
{
    const mt_i_tensor *t = &c->tensors[tensor];
    mt_i_file key = {0};
    int64_t begin[2] = {0}, shape[2] = {0};
    MC_TRY(get_string(o, "file", path, &key.name));
    MC_TRY(get_string(o, "tensor", path, &s->name));
    MC_TRY(get_dims(o, "begin", path, t->n_dims, begin));
    MC_TRY(get_dims(o, "shape", path, t->n_dims, shape));
    MC_TRY(get_hash(o, "xxh3", path, &s->xxh3));
    for (int d = 0; d < t->n_dims; d++) {
        if (begin[d] > t->shape[d] || shape[d] > t->shape[d] - begin[d]) {
            return MC_FAIL(MC_INPUT, "%s: a slice of \"%s\" is outside its shape", path, t->name);
        }
    }
    mt_i_file *f = bsearch(&key, c->files, (size_t)c->n_files, sizeof *c->files, compare_file);
    if (!f) {
        return MC_FAIL(MC_INPUT, "%s: a slice of \"%s\" lies in \"%s\", which is not listed", path, t->name, key.name);
    }
    s->tensor = tensor;
    s->file = (int)(f - c->files);
    s->rect = mt_i_rect_make(t->n_dims, begin, shape);
    s->next_in_file = f->first_slice;
    f->first_slice = (int)(s - c->slices);
    f->n_slices++;
    return MC_OK;
}

static mc_status check_cover(mt_checkpoint *c, const mt_i_tensor *t, const char *path)
{
    const int64_t zero[2] = {0, 0};
    mt_i_rect *rects;
    bool *spare = NULL;
    MC_TRY(MC_NEW_N(&rects, t->n_slices, "slices of a tensor"));
    mc_status st = MC_NEW_N(&spare, t->n_slices, "slices of a tensor");
    if (st == MC_OK) {
        for (int i = 0; i < t->n_slices; i++) {
            rects[i] = c->slices[t->first_slice + i].rect;
        }
        if (!mt_i_rects_cover(mt_i_rect_make(t->n_dims, zero, t->shape), rects, t->n_slices, spare)) {
            st = MC_FAIL(MC_INPUT, "%s: the slices of \"%s\" overlap or leave a hole", path, t->name);
        }
        for (int i = 0; i < t->n_slices; i++) {
            c->slices[t->first_slice + i].spare = spare[i];
        }
    }
    mc_free(spare);
    mc_free(rects);
    return st;
}

static mc_status parse_tensor(mt_checkpoint *c, const char *name, const json_t *o, mt_i_tensor *t, const char *path)
{
    const char *dtype;
    const json_t *shape = json_object_get(o, "shape"), *slices = json_object_get(o, "slices");
    uint64_t bytes, valid_rows = 0;
    MC_TRY(get_string(o, "dtype", path, &dtype));
    t->name = name;
    t->n_dims = (int)json_array_size(shape);
    if (!mt_st_dtype_parse(dtype, &t->dtype) || t->n_dims < 1 || t->n_dims > 2) {
        return MC_FAIL(MC_INPUT, "%s: \"%s\": type \"%s\" of %d dims is unknown", path, name, dtype, t->n_dims);
    }
    MC_TRY(get_dims(o, "shape", path, t->n_dims, t->shape));
    if (!mt_st_tensor_bytes(t->dtype, t->n_dims, t->shape, &bytes) || bytes > INT64_MAX) {
        return MC_FAIL(MC_INPUT, "%s: shape of \"%s\" is too large", path, name);
    }
    if (json_object_get(o, "valid_rows")) {
        MC_TRY(get_count(o, "valid_rows", path, &valid_rows));
        t->valid_rows = (int64_t)valid_rows;
    }
    t->first_slice = c->n_slices;
    t->n_slices = (int)json_array_size(slices);
    for (int i = 0; i < t->n_slices; i++) {
        mt_i_slice *s = &c->slices[c->n_slices++];
        MC_TRY(parse_slice(c, json_array_get(slices, (size_t)i), (int)(t - c->tensors), s, path));
    }
    return check_cover(c, t, path);
}

static mc_status parse_tensors(mt_checkpoint *c, json_t *object, const char *path)
{
    const char *name;
    json_t *o;
    size_t n_slices = 0;
    if (!json_is_object(object)) {
        return MC_FAIL(MC_INPUT, "%s: \"tensors\" is missing", path);
    }
    json_object_foreach(object, name, o)
    {
        n_slices += json_array_size(json_object_get(o, "slices"));
    }
    if (n_slices > INT32_MAX) {
        return MC_FAIL(MC_INPUT, "%s: %zu slices are too many", path, n_slices);
    }
    MC_TRY(MC_NEW_N(&c->tensors, json_object_size(object), "checkpoint tensors"));
    MC_TRY(MC_NEW_N(&c->slices, n_slices, "checkpoint slices"));
    json_object_foreach(object, name, o)
    {
        MC_TRY(parse_tensor(c, name, o, &c->tensors[c->n_tensors], path));
        c->n_tensors++;
        if (c->n_tensors > 1 && strcmp(c->tensors[c->n_tensors - 2].name, name) >= 0) {
            return MC_FAIL(MC_INPUT, "%s: \"tensors\" is not in order of names at \"%s\"", path, name);
        }
    }
    return MC_OK;
}

mc_status mt_i_metadata_parse(mt_checkpoint *c, const char *path, const char *text, size_t bytes)
{
    json_error_t err;
    MC_TRY(check_sum(path, text, bytes));
    json_t *root = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &err);
    if (!root) {
        return json_error_code(&err) == json_error_out_of_memory
                   ? MC_FAIL(MC_NOMEM, "no memory for %s (%zu bytes)", path, bytes)
                   : MC_FAIL(MC_INPUT, "%s, line %d: %s; damaged", path, err.line, err.text);
    }
    c->json = root;
    MC_TRY(parse_state(c, root, path));
    MC_TRY(parse_config(c, json_object_get(root, "config"), path));
    MC_TRY(parse_files(c, json_object_get(root, "files"), path));
    return parse_tensors(c, json_object_get(root, "tensors"), path);
}

const char *mt_checkpoint_option(const mt_checkpoint *c, const char *flag)
{
    return json_string_value(json_object_get(json_object_get(c->json, "config"), flag));
}

void mt_i_json_release(void *json)
{
    json_decref(json);
}

static int compare_tensor(const void *key, const void *element)
{
    return strcmp(key, ((const mt_i_tensor *)element)->name);
}

const mt_i_tensor *mt_i_tensor_find(const mt_checkpoint *c, const char *name)
{
    return bsearch(name, c->tensors, (size_t)c->n_tensors, sizeof *c->tensors, compare_tensor);
}
