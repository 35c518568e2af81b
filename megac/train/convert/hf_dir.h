/* A model directory of Hugging Face: config.json, and model.safetensors or the shards that model.safetensors.index.json
 * lists. Read like a checkpoint, tensor by tensor, in any layout. */
#ifndef MEGAC_TRAIN_CONVERT_HF_DIR_H
#define MEGAC_TRAIN_CONVERT_HF_DIR_H

#include "megac/train/checkpoint/checkpoint.h"
#include "megac/train/convert/convert_map.h"
#include "megac/train/options/options.h"

#ifdef __cplusplus
extern "C" {
#endif

#define MT_HF_CONFIG "config.json"
#define MT_HF_SINGLE "model.safetensors"
#define MT_HF_INDEX "model.safetensors.index.json"

typedef struct mt_hf mt_hf;

/* True when `path` looks like one: a directory with config.json. Says nothing about its state. */
bool mt_hf_is(const char *path);
/* Reads config.json and the headers of all files. Every tensor of the model must be there in its shape, and no other
 * but computed buffers and, with tied embeddings, the output layer. MC_NOTFOUND, MC_INPUT, MC_MISMATCH, MC_UNSUPPORTED.
 */
mc_status mt_hf_open(const char *path, mt_hf **hf_out) MC_MUST_CHECK;
void mt_hf_close(mt_hf *hf); /* NULL allowed */
/* Valid until close. */
const mt_hf_map *mt_hf_get_map(const mt_hf *hf);
/* "--flag value" lines, as mt_options_text of a run of this model. */
const char *mt_hf_config_text(const mt_hf *hf);
/* Element type that holds row `param` of the map's table without loss: the tensors' own, f32 where they differ. */
mc_dtype mt_hf_param_dtype(const mt_hf *hf, int param);
/* Fills item->local, as mt_checkpoint_read does. Besides it, takes one chunk of memory, for the life of `hf`. */
mc_status mt_hf_read(mt_hf *hf, const mt_ckpt_item *item) MC_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
