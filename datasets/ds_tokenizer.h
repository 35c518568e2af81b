/* Tokenizers: text to token ids and back. One table row and one file each (README, "Adding a tokenizer"). */
#ifndef DATASETS_DS_TOKENIZER_H
#define DATASETS_DS_TOKENIZER_H

#include <stddef.h>
#include <stdint.h>

#include "megac/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct ds_tokenizer ds_tokenizer;

typedef struct ds_tokenizer_ops {
    const char *name; /* Megatron-LM's --tokenizer-type; stored as tokenizer_kind */
    int needs_model;  /* 1: made from a model file */
    /* Fills tok->impl, vocab_size and eod_id from the model file's bytes, which stay valid while tok is open.
     * MC_INPUT. */
    mc_status (*open)(ds_tokenizer *tok);
    void (*close)(ds_tokenizer *tok); /* (optional) default: nothing to free */
    /* Ids of n_bytes of text into ids_out, which has room for max_ids(n_bytes); returns how many. Thread-safe. Any
     * bytes are allowed, valid UTF-8 or not. */
    size_t (*encode)(const ds_tokenizer *tok, const unsigned char *text, size_t n_bytes, uint32_t *ids_out);
    size_t (*max_ids)(const ds_tokenizer *tok, size_t n_bytes);
    /* (optional) The most bytes at the front of `text` whose ids do not depend on what follows, so that a long document
     * can be encoded in pieces; 0: none. Default: all of them. */
    size_t (*cut)(const ds_tokenizer *tok, const unsigned char *text, size_t n_bytes);
    /* Text of n ids: writes at most `cap` bytes, returns how many the whole text has. The end-of-document id has none.
     */
    size_t (*decode)(const ds_tokenizer *tok, const int32_t *ids, size_t n, char *text_out, size_t cap);
} ds_tokenizer_ops;

struct ds_tokenizer {
    const ds_tokenizer_ops *ops;
    void *impl;
    void *model; /* the tokenizer file, NULL when it has none */
    uint64_t model_bytes;
    uint32_t vocab_size;
    int64_t eod_id; /* -1: none */
};

/* By type ("ByteTokenizer") and model file (NULL: none). MC_UNSUPPORTED lists the known types; MC_INVALID when a model
 * is missing or given without use; MC_NOTFOUND, MC_INPUT for the file. */
mc_status ds_tokenizer_open(const char *type, const char *model_path, ds_tokenizer **tok_out) MC_MUST_CHECK;
/* By the kind and the bytes that a dataset or checkpoint stores (copied). */
mc_status ds_tokenizer_open_stored(const char *kind, const void *model, uint64_t model_bytes,
                                   ds_tokenizer **tok_out) MC_MUST_CHECK;
void ds_tokenizer_close(ds_tokenizer *tok); /* NULL allowed */

size_t ds_tokenizer_encode(const ds_tokenizer *tok, const void *text, size_t n_bytes, uint32_t *ids_out);
size_t ds_tokenizer_max_ids(const ds_tokenizer *tok, size_t n_bytes);
size_t ds_tokenizer_cut(const ds_tokenizer *tok, const void *text, size_t n_bytes);
size_t ds_tokenizer_decode(const ds_tokenizer *tok, const int32_t *ids, size_t n, char *text_out, size_t cap);

#ifdef __cplusplus
}
#endif
#endif
