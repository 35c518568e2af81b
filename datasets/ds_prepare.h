/* The engine of `megac prepare`: text to a dataset file. */
#ifndef DATASETS_DS_PREPARE_H
#define DATASETS_DS_PREPARE_H

#include <stdbool.h>
#include <stdint.h>

#include "megac/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct ds_prepare_config {
    const char *const *inputs; /* files, folders, "-" for standard input; gzip and zstd are unpacked */
    int n_inputs;
    const char *output_prefix;    /* writes output_prefix.h5; an .h5 at its end is not doubled */
    const char *const *json_keys; /* JSONL: keys whose strings are the text, joined by newlines; none: "text" */
    int n_json_keys;
    const char *tokenizer_type;  /* NULL: ByteTokenizer */
    const char *tokenizer_model; /* NULL: none */
    bool append_eod;             /* an end-of-document token after every document */
    int workers;                 /* encoding threads, >= 1; the output does not depend on it */
    /* What a document is: NULL: each text file, each JSON object; "file", "line", "blank" (paragraphs between blank
     * lines), "json". Documents without text are left out and counted. */
    const char *split_documents_on;
    const char *input_format; /* NULL or "auto": by the file's name; "text", "jsonl" */
    bool compress, overwrite;
    bool progress; /* a bar on standard error, if that is a terminal */
} ds_prepare_config;

typedef struct ds_prepare_result {
    uint64_t n_files, n_documents, n_tokens;
    uint64_t n_empty;     /* documents left out because they have no text */
    uint64_t input_bytes; /* read from the disk, packed as they lie there */
    uint64_t text_bytes;  /* of all documents */
    uint32_t vocab_size;
    int token_bytes;
    uint64_t output_bytes;
    double seconds;
    char output_path[4096];
} ds_prepare_result;

/* Memory does not depend on the size of the input. On any failure no output file appears, and an existing one stays.
 * MC_INVALID: flags, output exists. MC_NOTFOUND, MC_INPUT: the input, naming file and line. MC_UNSUPPORTED: tokenizer
 * type. MC_IO: the output cannot be written. */
mc_status ds_prepare(const ds_prepare_config *config, ds_prepare_result *result_out) MC_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
