/* megac convert: a directory of Hugging Face to a checkpoint, and back. Memory: one tensor and a few chunks. */
#ifndef MEGAC_TRAIN_CONVERT_CONVERT_H
#define MEGAC_TRAIN_CONVERT_CONVERT_H

#include "megac/train/checkpoint/safetensors.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct mt_convert_request {
    const char *input, *output;
    int64_t step;            /* of a checkpoint, -1: the latest */
    bool cast;               /* to `dtype`; otherwise each tensor keeps its type */
    mt_st_dtype dtype;       /* F32, BF16 or F16 */
    uint64_t max_file_bytes; /* to Hugging Face: of one file's tensors */
} mt_convert_request;

/* What was made, for people. */
typedef struct mt_converted {
    char model[64]; /* class of Hugging Face */
    int n_files;
    uint64_t bytes; /* of tensors */
    int64_t n_params;
} mt_converted;

/* The output is written beside its place, made durable, and renamed: it appears whole or not at all. It must not exist,
 * or be an empty directory. Everything that can be checked about the input is checked before anything is written. */
mc_status mt_convert_to_megac(const mt_convert_request *r, mt_converted *done_out) MC_MUST_CHECK;
mc_status mt_convert_to_hf(const mt_convert_request *r, mt_converted *done_out) MC_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
