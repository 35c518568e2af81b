/* config.json of Hugging Face's transformers and megac's model flags, each from the other. */
#ifndef MEGAC_TRAIN_CONVERT_HF_CONFIG_H
#define MEGAC_TRAIN_CONVERT_HF_CONFIG_H

#include "megac/train/checkpoint/ckpt_text.h"
#include "megac/train/checkpoint/safetensors.h"
#include "megac/train/convert/convert_map.h"
#include "megac/train/options/options.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Tokens per sample that a converted model proposes (--seq-length), where its longest sequence is not shorter: what it
 * allows may be more than memory holds. */
enum { MT_HF_SEQ_LENGTH = 4096, MT_HF_MAX_CONFIG_BYTES = 16 << 20 };

/* The architecture and the model as "--flag value" lines (mt_options_adopt), from the text of the config.json at
 * `path`. A field that megac does not know is refused by name unless it is null or false, as are values that ask for a
 * computation that megac does not have: MC_UNSUPPORTED. MC_INPUT: missing or ill-typed fields, no JSON. */
mc_status mt_hf_config_parse(const char *path, const char *text, size_t bytes, mt_hf_arch *arch_out,
                             mt_text *flags) MC_MUST_CHECK;

/* Options of a model alone, finished, from such lines; `where` begins the messages. Freed with mt_options_free. */
mc_status mt_hf_options(const char *where, const char *flags, mt_options **out) MC_MUST_CHECK;

/* The architecture whose models compute what `o` says: Llama where several do. MC_UNSUPPORTED names the flag that none
 * has. `where` begins the message. */
mc_status mt_hf_config_choose(const char *where, const mt_options *o, mt_hf_arch *arch_out) MC_MUST_CHECK;
/* Appends the config.json of the model; `dtype` is of its tensors. */
void mt_hf_config_write(mt_hf_arch arch, const mt_options *o, mt_st_dtype dtype, mt_text *out);
/* "float32", "bfloat16", ... as config.json has it. */
const char *mt_hf_dtype_name(mt_st_dtype dtype);
/* Appends the text of a config.json, its element type put in. */
mc_status mt_hf_config_with_dtype(const char *path, const char *text, size_t bytes, mt_st_dtype dtype,
                                  mt_text *out) MC_MUST_CHECK;

/* model.safetensors.index.json: tensor by tensor, in order of names, the file that holds it. The strings live as long
 * as *json_out (mt_hf_json_release). */
typedef struct mt_hf_entry {
    const char *tensor, *file;
} mt_hf_entry;
mc_status mt_hf_index_parse(const char *path, const char *text, size_t bytes, mt_hf_entry **entries_out, int *n_out,
                            void **json_out) MC_MUST_CHECK;
void mt_hf_json_release(void *json); /* NULL allowed */

#ifdef __cplusplus
}
#endif
#endif
