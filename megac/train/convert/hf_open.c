/* Opening a directory of Hugging Face: nothing is read from the tensors, everything is checked about them. */
#include <stdio.h>
#include <string.h>

#include "megac/base/alloc.h"
#include "megac/train/convert/hf_impl.h"
#include "megac/train/setup.h"

bool mt_hf_is(const char *path)
{
    char name[MC_PATH_BYTES];
    return strlen(path) + 64 < MC_PATH_BYTES && snprintf(name, sizeof name, "%s/%s", path, MT_HF_CONFIG) > 0 &&
           mc_file_is_dir(path) && mc_file_exists(name);
}

static mc_status read_config(mt_hf *hf)
{
    char path[MC_PATH_BYTES], *text;
    size_t bytes;
    mt_text flags = {0};
    mt_hf_arch arch = MT_HF_LLAMA;
    mt_model_config model;
    MC_TRY(mc_path_format(path, "%s/%s", hf->path, MT_HF_CONFIG));
    MC_TRY(mc_file_read_all(path, MT_HF_MAX_CONFIG_BYTES, MT_HF_CONFIG, &text, &bytes));
    mc_status st = mt_hf_config_parse(path, text, bytes, &arch, &flags);
    MC_TRY_GOTO(st, st, undo_text);
    MC_TRY_GOTO(st, mt_hf_options(path, flags.data, &hf->o), undo_text);
    MC_TRY_GOTO(st, mt_options_text(hf->o, &hf->config_text), undo_text);
    MC_TRY_GOTO(st, mt_model_config_from(hf->o, NULL, &model), undo_text);
    st = mt_hf_map_create(arch, &model, &hf->map);
undo_text:
    mt_text_fini(&flags);
    mc_free(text);
    return st;
}

static int find_file(const mt_hf *hf, const char *name)
{
    for (int i = 0; i < hf->n_files; i++) {
        if (strcmp(hf->file_names[i], name) == 0) {
            return i;
        }
    }
    return -1;
}

static mc_status open_file(mt_hf *hf, const char *name)
{
    char path[MC_PATH_BYTES];
    MC_TRY(mc_path_format(path, "%s/%s", hf->path, name));
    MC_TRY(mt_st_open(path, &hf->files[hf->n_files]));
    hf->file_names[hf->n_files++] = name;
    return MC_OK;
}

static mc_status open_single(mt_hf *hf)
{
    char path[MC_PATH_BYTES];
    MC_TRY(mc_path_format(path, "%s/%s", hf->path, MT_HF_SINGLE));
    if (!mc_file_exists(path)) {
        return MC_FAIL(MC_NOTFOUND,
                       "%s has neither %s nor %s; save the model from transformers once more, with "
                       "safe_serialization",
                       hf->path, MT_HF_SINGLE, MT_HF_INDEX);
    }
    MC_TRY(MC_NEW_N(&hf->files, 1, "safetensors files"));
    MC_TRY(MC_NEW_N(&hf->file_names, 1, "safetensors files"));
    return open_file(hf, MT_HF_SINGLE);
}

static mc_status open_files(mt_hf *hf)
{
    char path[MC_PATH_BYTES], *text;
    size_t bytes;
    MC_TRY(mc_path_format(path, "%s/%s", hf->path, MT_HF_INDEX));
    if (!mc_file_exists(path)) {
        return open_single(hf);
    }
    MC_TRY(mc_file_read_all(path, MT_ST_MAX_HEADER_BYTES, MT_HF_INDEX, &text, &bytes));
    mc_status st = mt_hf_index_parse(path, text, bytes, &hf->index, &hf->n_index, &hf->index_json);
    mc_free(text);
    MC_TRY(st);
    MC_TRY(MC_NEW_N(&hf->files, hf->n_index, "safetensors files"));
    MC_TRY(MC_NEW_N(&hf->file_names, hf->n_index, "safetensors files"));
    for (int i = 0; i < hf->n_index; i++) {
        if (find_file(hf, hf->index[i].file) < 0) {
            MC_TRY(open_file(hf, hf->index[i].file));
        }
    }
    return MC_OK;
}

/* The tensor by that name in the file that the index says. */
static mt_i_hf_place look_up(const mt_hf *hf, const char *name)
{
    int file = hf->index ? -1 : 0;
    for (int i = 0; i < hf->n_index && file < 0; i++) {
        if (strcmp(hf->index[i].tensor, name) == 0) {
            file = find_file(hf, hf->index[i].file);
        }
    }
    return file < 0 ? (mt_i_hf_place){0} : (mt_i_hf_place){hf->files[file], mt_st_find(hf->files[file], name)};
}

static void print_dims(char *out, size_t cap, int n, const int64_t *dims)
{
    size_t used = 0;
    out[0] = '\0';
    for (int i = 0; i < n && used < cap; i++) {
        used += (size_t)snprintf(out + used, cap - used, "%s%lld", i ? " x " : "", (long long)dims[i]);
    }
}

static mc_status check_tensor(const mt_hf *hf, const mt_hf_tensor *t, const mt_st_tensor *found)
{
    char have[160], want[64];
    bool fits = found->n_dims == t->n_dims;
    for (int i = 0; i < t->n_dims && fits; i++) {
        fits = found->shape[i] == t->dims[i];
    }
    if (!fits) {
        print_dims(have, sizeof have, found->n_dims, found->shape);
        print_dims(want, sizeof want, t->n_dims, t->dims);
        return MC_FAIL(MC_MISMATCH, "%s: tensor \"%s\" is %s, by %s it should be %s", hf->path, found->name, have,
                       MT_HF_CONFIG, want);
    }
    if (!mt_i_cast(found->dtype, MC_F32)) {
        return MC_FAIL(MC_UNSUPPORTED,
                       "%s: tensor \"%s\" has elements of type %s; quantized models are not read, only F64, F32, BF16 "
                       "and F16",
                       hf->path, found->name, mt_st_dtype_name(found->dtype));
    }
    return MC_OK;
}

static mc_status place_tensors(mt_hf *hf)
{
    const char *prefix = mt_hf_prefix(hf->map.arch);
    size_t len = strlen(prefix);
    MC_TRY(MC_NEW_N(&hf->places, hf->map.n_tensors, "places of tensors"));
    for (int i = 0; i < hf->map.n_tensors; i++) {
        const mt_hf_tensor *t = &hf->map.tensors[i];
        mt_i_hf_place *p = &hf->places[i];
        *p = look_up(hf, t->name);
        if (!p->tensor && strncmp(t->name, prefix, len) == 0) {
            *p = look_up(hf, t->name + len);
        }
        if (!p->tensor) {
            return MC_FAIL(MC_NOTFOUND, "%s: tensor \"%s\" is missing; the model is incomplete, or not what %s says",
                           hf->path, t->name, MT_HF_CONFIG);
        }
        MC_TRY(check_tensor(hf, t, p->tensor));
    }
    return MC_OK;
}

/* What is left over would be lost without a word. */
static mc_status check_spare(const mt_hf *hf, const char *name)
{
    char whole[2 * MT_NAME_BYTES];
    snprintf(whole, sizeof whole, "%s%s", mt_hf_prefix(hf->map.arch), name);
    bool copy = hf->map.model.tied && strcmp(name, "lm_head.weight") == 0;
    if (copy || mt_hf_is_buffer(name) || mt_hf_map_find(&hf->map, name) || mt_hf_map_find(&hf->map, whole)) {
        return MC_OK;
    }
    return MC_FAIL(MC_UNSUPPORTED, "%s: tensor \"%s\" is no part of a %s as %s describes it", hf->path, name,
                   mt_hf_class(hf->map.arch), MT_HF_CONFIG);
}

static mc_status open_all(mt_hf *hf)
{
    MC_TRY(read_config(hf));
    MC_TRY(open_files(hf));
    MC_TRY(place_tensors(hf));
    for (int f = 0; f < hf->n_files; f++) {
        for (int i = 0; i < mt_st_count(hf->files[f]); i++) {
            MC_TRY(check_spare(hf, mt_st_at(hf->files[f], i)->name));
        }
    }
    return mc_alloc(5, MT_I_CHUNK_BYTES, "conversion buffer", (void **)&hf->chunk);
}

mc_status mt_hf_open(const char *path, mt_hf **hf_out)
{
    mt_hf *hf;
    MC_TRY(MC_NEW(&hf, "Hugging Face directory"));
    mc_status st = mc_strdup(path, "path of a model", &hf->path);
    if (st == MC_OK) {
        st = open_all(hf);
    }
    if (st != MC_OK) {
        mt_hf_close(hf);
        return st;
    }
    *hf_out = hf;
    return MC_OK;
}

void mt_hf_close(mt_hf *hf)
{
    if (!hf) {
        return;
    }
    for (int i = 0; i < hf->n_files; i++) {
        mt_st_close(hf->files[i]);
    }
    mt_hf_map_destroy(&hf->map);
    mt_options_free(hf->o);
    mt_hf_json_release(hf->index_json);
    mc_free(hf->config_text);
    mc_free(hf->index);
    mc_free(hf->files);
    mc_free(hf->file_names);
    mc_free(hf->places);
    mc_free(hf->chunk);
    mc_free(hf->path);
    mc_free(hf);
}

const mt_hf_map *mt_hf_get_map(const mt_hf *hf)
{
    return &hf->map;
}

const char *mt_hf_config_text(const mt_hf *hf)
{
    return hf->config_text;
}

mc_dtype mt_hf_param_dtype(const mt_hf *hf, int param)
{
    mc_dtype dtype = MC_F32;
    bool first = true;
    for (int i = 0; i < hf->map.n_tensors; i++) {
        if (hf->map.tensors[i].param == param) {
            mc_dtype own = MC_F32;
            bool known = mt_st_dtype_to_mc(hf->places[i].tensor->dtype, &own);
            MC_ASSERT(known); /* check_tensor */
            dtype = first || own == dtype ? own : own == MC_F64 || dtype == MC_F64 ? MC_F64 : MC_F32;
            first = false;
        }
    }
    return dtype;
}
