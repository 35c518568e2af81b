/* Inside the reader of Hugging Face directories: what opening found. */
#ifndef MEGAC_TRAIN_CONVERT_HF_IMPL_H
#define MEGAC_TRAIN_CONVERT_HF_IMPL_H

#include "megac/train/checkpoint/ckpt_impl.h"
#include "megac/train/convert/hf_config.h"
#include "megac/train/convert/hf_dir.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Where a tensor of the map lies. */
typedef struct mt_i_hf_place {
    const mt_st_file *file;
    const mt_st_tensor *tensor;
} mt_i_hf_place;

struct mt_hf {
    char *path;
    mt_options *o;     /* of the model */
    char *config_text; /* of o */
    mt_hf_map map;
    mt_st_file **files;
    const char **file_names;
    int n_files;
    mt_hf_entry *index; /* NULL: one file */
    int n_index;
    void *index_json;
    mt_i_hf_place *places; /* by number in map.tensors */
    char *chunk;           /* MT_I_CHUNK_BYTES as stored; behind it four times that for wider elements */
};

/* Parses text that has to be a JSON object; *root_out is released by mt_hf_json_release. */
mc_status mt_i_hf_json(const char *path, const char *text, size_t bytes, void **root_out) MC_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
