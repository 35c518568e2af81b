/* Writes a dataset file: tokens are streamed, sizes are known at the end, memory is constant (8 bytes for each MiB of
 * output). The file appears under its name by rename when it is complete, or not at all. */
#ifndef DATASETS_DS_WRITE_H
#define DATASETS_DS_WRITE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "megac/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct ds_writer ds_writer;

typedef struct ds_writer_config {
    const char *path; /* final name, with .h5 */
    uint32_t vocab_size;
    int64_t eod_id; /* -1: none */
    const char *tokenizer_kind;
    const void *tokenizer; /* the tokenizer file, NULL when it has none; kept until ds_writer_destroy */
    uint64_t tokenizer_bytes;
    bool compress;  /* chunks with shuffle, deflate and fletcher32 instead of contiguous data */
    bool overwrite; /* replace an existing file (at the rename, not before) */
} ds_writer_config;

/* Opens `path`.tmp-PID in the same folder. MC_INVALID when `path` exists and overwrite is off; MC_IO when the folder
 * cannot be written. */
mc_status ds_writer_create(const ds_writer_config *config, ds_writer **writer_out) MC_MUST_CHECK;
/* 2 (vocabulary <= 65,536) or 4: bytes of a token in the file and in ds_writer_tokens. */
int ds_writer_token_bytes(const ds_writer *writer);
/* Appends n tokens, uint16 or uint32, to the current document. Token values are not checked. MC_IO. */
mc_status ds_writer_tokens(ds_writer *writer, const void *tokens, uint64_t n) MC_MUST_CHECK;
/* Ends the current document after the tokens so far, less `tokens_after` already appended ones that belong to later
 * documents: so a batch of tokens with many ends is appended first and its ends are told afterwards, in order. */
mc_status ds_writer_end_document(ds_writer *writer, uint64_t tokens_after) MC_MUST_CHECK;
uint64_t ds_writer_n_tokens(const ds_writer *writer);
uint64_t ds_writer_n_documents(const ds_writer *writer);
/* Completes the file and renames it. The last document must have been ended; MC_INPUT when there is none. */
mc_status ds_writer_finish(ds_writer *writer) MC_MUST_CHECK;
/* Frees; removes the temporary file when the writer was not finished. NULL allowed. */
void ds_writer_destroy(ds_writer *writer);

#ifdef __cplusplus
}
#endif
#endif
