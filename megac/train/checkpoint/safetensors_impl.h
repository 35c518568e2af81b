/* Inside the safetensors reader: the parsed header. */
#ifndef MEGAC_TRAIN_CHECKPOINT_SAFETENSORS_IMPL_H
#define MEGAC_TRAIN_CHECKPOINT_SAFETENSORS_IMPL_H

#include "megac/train/checkpoint/safetensors.h"

#ifdef __cplusplus
extern "C" {
#endif

struct mt_st_file {
    int fd;
    char *path;
    void *json; /* the parsed header, which owns every name */
    int n_tensors;
    mt_st_tensor *tensors; /* by begin, then end */
    const mt_st_tensor **by_name;
    uint64_t header_bytes, header_hash, file_bytes;
};

/* Parses the header text and fills json, n_tensors and tensors (unsorted, each checked alone). */
mc_status mt_i_st_parse(mt_st_file *file, const char *text, size_t bytes) MC_MUST_CHECK;
void mt_i_st_json_release(void *json);

#ifdef __cplusplus
}
#endif
#endif
