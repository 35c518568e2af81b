/* A checkpoint of any layout to a directory of Hugging Face, tensor by tensor. */
#include <stdio.h>
#include <string.h>

#include "megac/base/alloc.h"
#include "megac/base/log.h"
#include "megac/train/convert/convert.h"
#include "megac/train/convert/convert_output.h"
#include "megac/train/convert/hf_impl.h"
#include "megac/train/setup.h"

typedef struct job {
    const mt_convert_request *r;
    mt_checkpoint *ckpt;
    mt_options *o; /* of the model */
    mt_hf_map map;
    mt_output out;
    char carried[MC_PATH_BYTES]; /* where the checkpoint keeps files of Hugging Face, if it does */
    mt_st_tensor *tensors;       /* as written, by number in map.tensors */
    int *first_tensor;           /* of each file */
    int n_files;
    uint64_t total_bytes;
    void *memory;   /* of the largest tensor */
    mt_text config; /* config.json */
} job;

/* Of the model's optimizer nothing goes over; of the model, everything has to. */
static mc_status check_all_used(const job *j)
{
    for (int i = 0; i < j->ckpt->n_tensors; i++) {
        const char *name = j->ckpt->tensors[i].name;
        bool used = strncmp(name, "model.", 6) != 0;
        for (int k = 0; k < j->map.params.n_rows && !used; k++) {
            used = strcmp(name + 6, j->map.params.rows[k].name) == 0;
        }
        if (!used) {
            return MC_FAIL(MC_MISMATCH, "%s: its configuration describes a model without the tensor \"%s\"",
                           j->r->input, name);
        }
    }
    return MC_OK;
}

static mc_status plan_tensors(job *j)
{
    uint64_t largest = 0;
    MC_TRY(MC_NEW_N(&j->tensors, j->map.n_tensors, "tensors to convert"));
    MC_TRY(MC_NEW_N(&j->first_tensor, j->map.n_tensors + 1, "files to write"));
    uint64_t in_file = 0;
    for (int i = 0; i < j->map.n_tensors; i++) {
        const mt_hf_tensor *t = &j->map.tensors[i];
        char name[MT_I_NAME_BYTES];
        uint64_t bytes;
        snprintf(name, sizeof name, "model.%s", j->map.params.rows[t->param].name);
        const mt_i_tensor *stored = mt_i_tensor_find(j->ckpt, name);
        if (!stored) {
            return MC_FAIL(MC_NOTFOUND, "%s has no tensor \"%s\", which its configuration asks for", j->r->input, name);
        }
        j->tensors[i] = (mt_st_tensor){.name = t->name, .n_dims = t->n_dims};
        j->tensors[i].dtype = j->r->cast ? j->r->dtype : stored->dtype;
        memcpy(j->tensors[i].shape, t->dims, sizeof t->dims);
        if (!mt_st_tensor_bytes(j->tensors[i].dtype, t->n_dims, t->dims, &bytes)) {
            return MC_FAIL(MC_INVALID, "tensor \"%s\" is too large", t->name);
        }
        if (i == 0 || in_file + bytes > j->r->max_file_bytes) {
            j->first_tensor[j->n_files++] = i;
            in_file = 0;
        }
        in_file += bytes;
        j->total_bytes += bytes;
        largest = bytes > largest ? bytes : largest;
    }
    j->first_tensor[j->n_files] = j->map.n_tensors;
    return mc_alloc((size_t)largest, 1, "tensor under conversion", &j->memory);
}

/* Rows of the parameter to where the tensor has them. */
static mc_status read_span(job *j, int tensor, const mt_hf_span *s, mc_dtype dtype)
{
    const mt_hf_tensor *t = &j->map.tensors[tensor];
    const mt_param *p = &j->map.params.rows[t->param];
    bool vocabulary =
        t->param == j->map.params.outer[MT_WORD_EMBEDDINGS] || t->param == j->map.params.outer[MT_OUTPUT_WEIGHT];
    int64_t cols = t->n_dims == 1 ? 1 : t->dims[1];
    mt_ckpt_item item = {
        .prefix = "model",
        .param = p,
        .cut = true,
        .begin = {s->param_row, 0},
        .valid_rows = vocabulary ? j->map.model.vocab : 0,
    };
    char *at = (char *)j->memory + (size_t)(s->hf_row * (t->transposed ? 1 : cols)) * mc_dtype_bytes(dtype);
    if (t->n_dims == 1) {
        item.local = mc_tensor_1d(at, dtype, s->n_rows);
    } else {
        item.local = mc_tensor_2d(at, dtype, s->n_rows, p->global_dims[1]);
        item.local.strides[0] = t->transposed ? 1 : cols;
        item.local.strides[1] = t->transposed ? cols : 1;
    }
    return mt_checkpoint_read(j->ckpt, &item);
}

static mc_status write_tensor(job *j, mt_st_writer *w, int tensor)
{
    const mt_st_tensor *t = &j->tensors[tensor];
    mc_dtype dtype;
    mt_hf_span s;
    if (!mt_st_dtype_to_mc(t->dtype, &dtype)) {
        return MC_FAIL(MC_UNSUPPORTED, "%s: tensors of type %s are not written; give --dtype", j->r->input,
                       mt_st_dtype_name(t->dtype));
    }
    for (int i = 0; mt_hf_map_span(&j->map, &j->map.tensors[tensor], i, &s); i++) {
        MC_TRY(read_span(j, tensor, &s, dtype));
    }
    return mt_st_writer_append(w, j->memory, (size_t)(t->end - t->begin));
}

static void file_name(const job *j, int file, char *out, size_t cap)
{
    if (j->n_files == 1) {
        snprintf(out, cap, "%s", MT_HF_SINGLE);
    } else {
        snprintf(out, cap, "model-%05d-of-%05d.safetensors", file + 1, j->n_files);
    }
}

static mc_status write_file(job *j, int file)
{
    char path[MC_PATH_BYTES], name[64];
    static const char *const metadata[] = {"format", "pt"};
    int first = j->first_tensor[file], end = j->first_tensor[file + 1];
    mt_st_writer *w;
    file_name(j, file, name, sizeof name);
    MC_TRY(mc_path_format(path, "%s/%s", j->out.tmp, name));
    MC_TRY(mt_st_writer_create(path, j->tensors + first, end - first, metadata, 1, &w));
    mc_status st = MC_OK;
    for (int i = first; i < end && st == MC_OK; i++) {
        st = write_tensor(j, w, i);
    }
    if (st == MC_OK) {
        st = mt_st_writer_finish(w);
    }
    mt_st_writer_destroy(w);
    return st;
}

static mc_status write_index(const job *j)
{
    mt_text t = {0};
    char name[64];
    mt_text_printf(&t, "{\n  \"metadata\": {\n    \"total_size\": %llu\n  },\n  \"weight_map\": {",
                   (unsigned long long)j->total_bytes);
    for (int f = 0; f < j->n_files; f++) {
        file_name(j, f, name, sizeof name);
        for (int i = j->first_tensor[f]; i < j->first_tensor[f + 1]; i++) {
            mt_text_printf(&t, "%s\n    \"%s\": \"%s\"", i ? "," : "", j->tensors[i].name, name);
        }
    }
    mt_text_printf(&t, "\n  }\n}\n");
    mc_status st = t.st == MC_OK ? mt_output_write(&j->out, MT_HF_INDEX, t.data, t.bytes) : t.st;
    mt_text_fini(&t);
    return st;
}

/* Whether the config.json that the model came with, as flags, describes the model that the checkpoint holds. */
static mc_status describes_model(const job *j, const char *path, mt_hf_arch theirs, const mt_text *their_flags,
                                 bool *same_out)
{
    mt_text own = {0}, flags = {0};
    mt_hf_arch arch;
    mt_hf_config_write(theirs, j->o, j->tensors[0].dtype, &own);
    mc_status st = own.st == MC_OK ? mt_hf_config_parse(path, own.data, own.bytes, &arch, &flags) : own.st;
    *same_out = st == MC_OK && arch == theirs && strcmp(flags.data, their_flags->data) == 0;
    mt_text_fini(&own);
    mt_text_fini(&flags);
    return st;
}

/* The config.json that the model came with, where it still describes the model: it says more than flags do (names of
 * special tokens, say). Otherwise nothing. */
static mc_status take_carried_config(job *j, const char *path, const char *text, size_t bytes)
{
    mt_text flags = {0};
    mt_hf_arch arch;
    bool same = false;
    mc_status st = mt_hf_config_parse(path, text, bytes, &arch, &flags);
    if (st == MC_OK) {
        st = describes_model(j, path, arch, &flags, &same);
    }
    if (st == MC_OK && same) {
        st = mt_hf_config_with_dtype(path, text, bytes, j->tensors[0].dtype, &j->config);
    } else if (st == MC_OK) {
        MC_WARN("%s describes another model than the checkpoint: a new one is written", path);
    }
    mt_text_fini(&flags);
    return st;
}

/* The config.json to write, before anything is written: a carried one may be damaged. */
static mc_status plan_config(job *j)
{
    char path[MC_PATH_BYTES], *text;
    size_t bytes;
    MC_TRY(mc_path_format(path, "%s/%s", j->carried, MT_HF_CONFIG));
    if (mc_file_exists(path)) {
        MC_TRY(mc_file_read_all(path, MT_HF_MAX_CONFIG_BYTES, MT_HF_CONFIG, &text, &bytes));
        mc_status st = take_carried_config(j, path, text, bytes);
        mc_free(text);
        MC_TRY(st);
    }
    if (j->config.bytes == 0) {
        mt_hf_config_write(j->map.arch, j->o, j->tensors[0].dtype, &j->config);
    }
    return j->config.st;
}

static mc_status write_all(job *j)
{
    for (int f = 0; f < j->n_files; f++) {
        MC_TRY(write_file(j, f));
    }
    if (j->n_files > 1) {
        MC_TRY(write_index(j));
    }
    MC_TRY(mt_output_write(&j->out, MT_HF_CONFIG, j->config.data, j->config.bytes));
    MC_TRY(mt_carry(j->carried, false, j->out.tmp));
    return mt_output_publish(&j->out);
}

static mc_status open_all(job *j)
{
    mt_hf_arch arch;
    mt_model_config model;
    MC_TRY(mt_checkpoint_open(j->r->input, j->r->step, &j->ckpt));
    MC_TRY(mt_hf_options(j->r->input, mt_checkpoint_state(j->ckpt)->config, &j->o));
    MC_TRY(mt_hf_config_choose(j->r->input, j->o, &arch));
    MC_TRY(mt_model_config_from(j->o, NULL, &model));
    j->o->vocab_size = model.vocab;
    MC_TRY(mt_hf_map_create(arch, &model, &j->map));
    MC_TRY(check_all_used(j));
    MC_TRY(plan_tensors(j));
    MC_TRY(mt_carried_dir(j->r->input, j->carried));
    return plan_config(j);
}

mc_status mt_convert_to_hf(const mt_convert_request *r, mt_converted *done_out)
{
    job j = {.r = r};
    mc_status st = open_all(&j);
    if (st == MC_OK) {
        st = mt_output_begin(&j.out, r->output);
    }
    if (st == MC_OK) {
        st = write_all(&j);
        if (st != MC_OK) {
            mt_output_undo(&j.out);
        } else {
            *done_out = (mt_converted){
                .n_files = j.n_files, .bytes = j.total_bytes, .n_params = mt_params_count(&j.map.model, true)};
            snprintf(done_out->model, sizeof done_out->model, "%s", mt_hf_class(j.map.arch));
        }
    }
    mt_text_fini(&j.config);
    mc_free(j.memory);
    mc_free(j.first_tensor);
    mc_free(j.tensors);
    mt_hf_map_destroy(&j.map);
    mt_options_free(j.o);
    mt_checkpoint_close(j.ckpt);
    return st;
}
