/* The directory that a conversion makes, and the files that it carries along as they are. */
#ifndef MEGAC_TRAIN_CONVERT_CONVERT_OUTPUT_H
#define MEGAC_TRAIN_CONVERT_CONVERT_OUTPUT_H

#include "megac/base/file.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Folder of a converted checkpoint's save directory that holds the tokenizer's files and config.json as they came. */
#define MT_CARRIED "huggingface"

typedef struct mt_output {
    char path[MC_PATH_BYTES]; /* as asked for, without slashes at its end */
    char tmp[MC_PATH_BYTES];  /* where it is built */
} mt_output;

/* MC_INVALID when there is something at `path`. Leftovers of a conversion that died are removed. */
mc_status mt_output_begin(mt_output *out, const char *path) MC_MUST_CHECK;
/* Durable, and in its place. */
mc_status mt_output_publish(const mt_output *out) MC_MUST_CHECK;
/* After a failure: removes what was built. */
void mt_output_undo(const mt_output *out);

/* A new durable file `name` of the output. */
mc_status mt_output_write(const mt_output *out, const char *name, const void *data, size_t bytes) MC_MUST_CHECK;

/* Copies the files of tokenizers and generation settings, and with `config` config.json, from `dir` (which may be
 * missing) to `to`, which is made when there is one to copy. */
mc_status mt_carry(const char *dir, bool config, const char *to) MC_MUST_CHECK;
/* Where a model keeps such files: out (MC_PATH_BYTES) = a directory of Hugging Face itself, the MT_CARRIED of a save
 * directory, also where an iteration of it is named. It may be missing. */
mc_status mt_carried_dir(const char *model, char *out) MC_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
