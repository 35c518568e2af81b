/* JSON files of Hugging Face: loading, the element type in config.json, the index of shards. */
#include <jansson.h>
#include <string.h>

#include "megac/base/alloc.h"
#include "megac/train/convert/hf_impl.h"

mc_status mt_i_hf_json(const char *path, const char *text, size_t bytes, void **root_out)
{
    json_error_t err;
    json_t *root = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &err);
    if (!root && json_error_code(&err) == json_error_out_of_memory) {
        return MC_FAIL(MC_NOMEM, "no memory for %s (%zu bytes)", path, bytes);
    }
    if (!json_is_object(root)) {
        json_decref(root);
        return MC_FAIL(MC_INPUT, "%s is not a JSON object: %s", path, root ? "" : err.text);
    }
    *root_out = root;
    return MC_OK;
}

mc_status mt_hf_config_with_dtype(const char *path, const char *text, size_t bytes, mt_st_dtype dtype, mt_text *out)
{
    json_t *root;
    MC_TRY(mt_i_hf_json(path, text, bytes, (void **)&root));
    const char *key = json_object_get(root, "dtype") ? "dtype" : "torch_dtype", *name = mt_hf_dtype_name(dtype);
    const char *before = json_string_value(json_object_get(root, key));
    if (before && strcmp(before, name) == 0) {
        mt_text_add(out, text, bytes);
    } else {
        bool set = json_object_set_new(root, key, json_string(name)) == 0;
        size_t n = set ? json_dumpb(root, NULL, 0, JSON_INDENT(2)) : 0;
        char *changed = NULL;
        mc_status st = mc_alloc(n + 1, 1, "config.json", (void **)&changed);
        if (st == MC_OK && (n == 0 || json_dumpb(root, changed, n, JSON_INDENT(2)) != n)) {
            st = MC_FAIL(MC_NOMEM, "no memory for %s", path);
        }
        mt_text_add(out, changed, st == MC_OK ? n : 0);
        mt_text_add(out, "\n", 1);
        out->st = st == MC_OK ? out->st : st;
        mc_free(changed);
    }
    json_decref(root);
    return out->st;
}

mc_status mt_hf_index_parse(const char *path, const char *text, size_t bytes, mt_hf_entry **entries_out, int *n_out,
                            void **json_out)
{
    json_t *root, *v;
    const char *name;
    mt_hf_entry *entries = NULL;
    int n = 0;
    MC_TRY(mt_i_hf_json(path, text, bytes, (void **)&root));
    json_t *map = json_object_get(root, "weight_map");
    mc_status st = json_is_object(map) ? MC_NEW_N(&entries, json_object_size(map), "index of tensors")
                                       : MC_FAIL(MC_INPUT, "%s has no \"weight_map\"", path);
    json_object_foreach(map, name, v)
    {
        const char *file = json_string_value(v);
        if (st == MC_OK && (!file || strchr(file, '/'))) {
            st = MC_FAIL(MC_INPUT, "%s: \"%s\" does not name a file beside it", path, name);
        }
        if (st == MC_OK) {
            entries[n++] = (mt_hf_entry){name, file};
        }
    }
    if (st != MC_OK) {
        mc_free(entries);
        json_decref(root);
        return st;
    }
    *entries_out = entries;
    *n_out = n;
    *json_out = root;
    return MC_OK;
}

void mt_hf_json_release(void *json)
{
    json_decref(json);
}
