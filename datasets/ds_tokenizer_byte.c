/* ByteTokenizer: a token is a byte, 256 ends a document. */
#include "datasets/ds_tokenizer.h"

enum { EOD = 256, VOCAB = 257 };

static mc_status open_byte(ds_tokenizer *tok)
{
    tok->vocab_size = VOCAB;
    tok->eod_id = EOD;
    return MC_OK;
}

static size_t encode(const ds_tokenizer *tok, const unsigned char *text, size_t n_bytes, uint32_t *ids_out)
{
    (void)tok;
    for (size_t i = 0; i < n_bytes; i++) {
        ids_out[i] = text[i];
    }
    return n_bytes;
}

static size_t max_ids(const ds_tokenizer *tok, size_t n_bytes)
{
    (void)tok;
    return n_bytes;
}

static size_t decode(const ds_tokenizer *tok, const int32_t *ids, size_t n, char *text_out, size_t cap)
{
    (void)tok;
    size_t bytes = 0;
    for (size_t i = 0; i < n; i++) {
        if (ids[i] < 0 || ids[i] >= EOD) { /* padded vocabularies have ids without text too */
            continue;
        }
        if (bytes < cap) {
            text_out[bytes] = (char)(unsigned char)ids[i];
        }
        bytes++;
    }
    return bytes;
}

extern const ds_tokenizer_ops ds_i_tokenizer_byte;
const ds_tokenizer_ops ds_i_tokenizer_byte = {
    .name = "ByteTokenizer",
    .open = open_byte,
    .encode = encode,
    .max_ids = max_ids,
    .decode = decode,
};
