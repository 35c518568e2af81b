/* Encoding of a piece of input text into tokens and document ends. */
#ifndef DATASETS_DS_ENCODE_H
#define DATASETS_DS_ENCODE_H

#include "datasets/ds_pieces.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What all workers share, constant. */
typedef struct ds_i_encoder {
    const ds_tokenizer *tok;
    const char *const *json_keys;
    int n_json_keys;
    bool append_eod;
    int token_bytes;
} ds_i_encoder;

/* A worker's own memory. */
typedef struct ds_i_scratch {
    char *text;
    size_t n, cap;
} ds_i_scratch;

/* Fills the piece's tokens and ends. A failure is stored in the piece. */
void ds_i_encode(const ds_i_encoder *encoder, ds_i_scratch *scratch, ds_i_piece *piece);
void ds_i_scratch_free(ds_i_scratch *scratch);

#ifdef __cplusplus
}
#endif
#endif
