/* The header of a safetensors file, parsed by jansson. */
#include <jansson.h>
#include <string.h>

#include "megac/base/alloc.h"
#include "megac/train/checkpoint/safetensors_impl.h"

static mc_status parse_shape(const mt_st_file *f, const char *name, const json_t *shape, mt_st_tensor *t)
{
    if (!json_is_array(shape) || json_array_size(shape) > MT_ST_MAX_DIMS) {
        return MC_FAIL(MC_INPUT, "%s: tensor \"%s\": \"shape\" must be a list of at most %d numbers; damaged file",
                       f->path, name, MT_ST_MAX_DIMS);
    }
    t->n_dims = (int)json_array_size(shape);
    for (int i = 0; i < t->n_dims; i++) {
        const json_t *v = json_array_get(shape, (size_t)i);
        if (!json_is_integer(v) || json_integer_value(v) < 0) {
            return MC_FAIL(MC_INPUT, "%s: tensor \"%s\": dim %d of its shape is not a number >= 0; damaged file",
                           f->path, name, i);
        }
        t->shape[i] = json_integer_value(v);
    }
    return MC_OK;
}

static mc_status parse_tensor(const mt_st_file *f, const char *name, const json_t *entry, mt_st_tensor *t)
{
    const char *dtype = json_string_value(json_object_get(entry, "dtype"));
    const json_t *offsets = json_object_get(entry, "data_offsets");
    const json_t *begin = json_array_get(offsets, 0), *end = json_array_get(offsets, 1);
    if (!json_is_object(entry) || json_object_size(entry) != 3) {
        return MC_FAIL(MC_INPUT, "%s: tensor \"%s\" needs exactly dtype, shape and data_offsets; damaged file", f->path,
                       name);
    }
    if (!dtype || !mt_st_dtype_parse(dtype, &t->dtype)) {
        return MC_FAIL(MC_INPUT, "%s: tensor \"%s\": element type \"%s\" is unknown; damaged file or a newer format",
                       f->path, name, dtype ? dtype : "(none)");
    }
    MC_TRY(parse_shape(f, name, json_object_get(entry, "shape"), t));
    if (json_array_size(offsets) != 2 || !json_is_integer(begin) || !json_is_integer(end) ||
        json_integer_value(begin) < 0 || json_integer_value(end) < json_integer_value(begin)) {
        return MC_FAIL(MC_INPUT,
                       "%s: tensor \"%s\": \"data_offsets\" must be two numbers 0 <= begin <= end; damaged file",
                       f->path, name);
    }
    t->name = name;
    t->begin = (uint64_t)json_integer_value(begin);
    t->end = (uint64_t)json_integer_value(end);
    uint64_t bytes, data_bytes = f->file_bytes - f->header_bytes;
    if (!mt_st_tensor_bytes(t->dtype, t->n_dims, t->shape, &bytes) || bytes != t->end - t->begin) {
        return MC_FAIL(MC_INPUT, "%s: tensor \"%s\": offsets %llu..%llu do not fit its type and shape; damaged file",
                       f->path, name, (unsigned long long)t->begin, (unsigned long long)t->end);
    }
    if (t->end > data_bytes) {
        return MC_FAIL(MC_INPUT, "%s: tensor \"%s\" ends at byte %llu of %llu bytes of data; the file is truncated",
                       f->path, name, (unsigned long long)t->end, (unsigned long long)data_bytes);
    }
    return MC_OK;
}

static mc_status check_metadata(const mt_st_file *f, json_t *metadata)
{
    const char *key;
    json_t *value;
    if (!json_is_object(metadata)) {
        return MC_FAIL(MC_INPUT, "%s: \"__metadata__\" is not an object; damaged file", f->path);
    }
    json_object_foreach(metadata, key, value)
    {
        if (!json_is_string(value)) {
            return MC_FAIL(MC_INPUT, "%s: \"__metadata__\": value of \"%s\" is not a string; damaged file", f->path,
                           key);
        }
    }
    return MC_OK;
}

mc_status mt_i_st_parse(mt_st_file *f, const char *text, size_t bytes)
{
    json_error_t err;
    json_t *root = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &err);
    if (!root && json_error_code(&err) == json_error_out_of_memory) {
        return MC_FAIL(MC_NOMEM, "no memory for the header of %s (%zu bytes)", f->path, bytes);
    }
    f->json = root;
    if (!json_is_object(root)) {
        return MC_FAIL(MC_INPUT, "%s: the header is not a JSON object: %s; damaged, or not a safetensors file", f->path,
                       root ? "" : err.text);
    }
    MC_TRY(MC_NEW_N(&f->tensors, json_object_size(root), "safetensors header"));
    const char *key;
    json_t *value;
    json_object_foreach(root, key, value)
    {
        if (strcmp(key, "__metadata__") == 0) {
            MC_TRY(check_metadata(f, value));
            continue;
        }
        MC_TRY(parse_tensor(f, key, value, &f->tensors[f->n_tensors]));
        f->n_tensors++;
    }
    return MC_OK;
}

const char *mt_st_metadata(const mt_st_file *f, const char *key)
{
    return json_string_value(json_object_get(json_object_get(f->json, "__metadata__"), key));
}

void mt_i_st_json_release(void *json)
{
    json_decref(json);
}
