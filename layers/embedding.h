/* Token and position embeddings. */
#ifndef LAYERS_EMBEDDING_H
#define LAYERS_EMBEDDING_H

#include "layers/dropout.h"
#include "megac/base/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

/* out (R,C) = table rows of tokens (R) i32; a token outside [vocab0, vocab0 + Vl) gives zeros (another rank holds it).
 * table (Vl,C). */
typedef struct ly_embedding_fwd {
    mc_tensor tokens, table, out;
    int64_t vocab0;
} ly_embedding_fwd;

/* dtable (Vl,C) f32 += dout rows by token, in row order for each table row (deterministic). */
typedef struct ly_embedding_bwd {
    mc_tensor tokens, dout, dtable;
    int64_t vocab0;
} ly_embedding_bwd;

/* h (R,C) = dropout(x + positions[row's position]); in place allowed. positions (P,C) optional. The position of local
 * row r is (dropout.row0 + r) % dropout.seq_len (both read even where p = 0). */
typedef struct ly_embed_finish_fwd {
    mc_tensor x, positions, h;
    ly_dropout dropout;
} ly_embed_finish_fwd;

/* dx (R,C) = mask . dh (may be dh itself); dpositions (P,C) f32 += per position, rows in order; optional. */
typedef struct ly_embed_finish_bwd {
    mc_tensor dh, dx, dpositions;
    ly_dropout dropout;
} ly_embed_finish_bwd;

#ifdef __cplusplus
}
#endif
#endif
