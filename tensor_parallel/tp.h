/* Layers sharded over the tensor-parallel group, built from operators and two region functions.
 *
 * Rows are the flattened (B, T) of a micro-batch: R in all. Outside the linear layers a rank holds Rl of them: all R,
 * or with sequence parallelism the contiguous R / tp rows number rank * Rl onwards. Inside, it holds all rows of its
 * own columns.
 *
 *      (Rl,C) --tp_gather--> (R,C) --column linear--> (R,Cl) ... --row linear--> (R,C) partial --tp_reduce--> (Rl,C)
 *
 * tp_gather is an all-gather with sequence parallelism and nothing without; tp_reduce is a reduce-scatter with it and
 * an all-reduce without. Each is the other's backward (Korthikanti et al. 2022, section 4.2.2; Megatron-LM's mappings).
 */
#ifndef TENSOR_PARALLEL_TP_H
#define TENSOR_PARALLEL_TP_H

#include <stdbool.h>

#include "layers/ops.h"
#include "megac/base/arena.h"
#include "megac/base/comm.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct tp_ctx {
    const ly_ctx *ly;
    const mc_comm *comm; /* the tp group */
    mc_arena *scratch;   /* rewound by the caller */
    bool sequence_parallel;
} tp_ctx;

/* Rows that this rank holds outside the linears, of `rows` in all, and the number of its first. */
int64_t tp_local_rows(const tp_ctx *tp, int64_t rows);
int64_t tp_first_row(const tp_ctx *tp, int64_t rows);

/* x (Rl,C) -> *full_out (R,C): scratch, or x itself where nothing is gathered. */
mc_status tp_gather(const tp_ctx *tp, mc_tensor x, mc_tensor *full_out) MC_MUST_CHECK;
/* Sum over the group of partial (R,C) -> out (Rl,C). `partial` may be `out` where Rl = R, and is destroyed. */
mc_status tp_reduce(const tp_ctx *tp, mc_tensor partial, mc_tensor out) MC_MUST_CHECK;
/* Where the caller should compute a partial sum that tp_reduce will bring to `out` (Rl,C): `out` itself where Rl = R,
 * else `rows` rows of scratch. */
mc_tensor tp_partial(const tp_ctx *tp, int64_t rows, mc_tensor out);

/* Linear layers. w is (out,in): column-parallel holds rows of the global weight (out/tp,in), row-parallel columns
 * (out,in/tp). x, w, bias, y, dy and dx of one type T; dw and dbias f32 (layers/ops.h); y may be f32.
 *   forward        y (R,out_l) = x (R,in_l) w^T + bias; bias optional
 *   backward input dx (R,in_l) = dy (R,out_l) w
 *   backward weight dw += dy^T x; dbias += column sums of dy; dbias optional */
mc_status tp_linear_fwd(const tp_ctx *tp, mc_tensor x, mc_tensor w, mc_tensor bias, mc_tensor y) MC_MUST_CHECK;
mc_status tp_linear_bwd_input(const tp_ctx *tp, mc_tensor dy, mc_tensor w, mc_tensor dx) MC_MUST_CHECK;
mc_status tp_linear_bwd_weight(const tp_ctx *tp, mc_tensor dy, mc_tensor x, mc_tensor dw,
                               mc_tensor dbias) MC_MUST_CHECK;
/* Row-parallel forward: out (Rl,C) = reduce(x w^T); the bias belongs to what follows the reduction. */
mc_status tp_row_linear_fwd(const tp_ctx *tp, mc_tensor x, mc_tensor w, mc_tensor out) MC_MUST_CHECK;
/* Column-parallel backward: dx (Rl,C) = reduce(dy w). */
mc_status tp_col_linear_bwd_input(const tp_ctx *tp, mc_tensor dy, mc_tensor w, mc_tensor dx) MC_MUST_CHECK;

/* Vocabulary-parallel embedding: table (Vl,C) holds rows [vocab0, vocab0 + Vl). tokens (R); h (Rl,C) = dropout(rows +
 * positions); positions (P,C) optional; dropout.row0 and seq_len as in layers/dropout.h. */
typedef struct tp_embedding {
    mc_tensor table, positions, dtable, dpositions;
    int64_t vocab0;
    ly_dropout dropout;
} tp_embedding;
mc_status tp_embedding_fwd(const tp_ctx *tp, const tp_embedding *e, mc_tensor tokens, mc_tensor h) MC_MUST_CHECK;
/* dh (Rl,C) is overwritten. */
mc_status tp_embedding_bwd(const tp_ctx *tp, const tp_embedding *e, mc_tensor tokens, mc_tensor dh) MC_MUST_CHECK;

/* Vocabulary-parallel output layer and cross entropy, by chunks of rows: full logits never exist. Logits are f32; their
 * gradient has the type of the weight. */
typedef struct tp_head {
    mc_tensor weight, dweight; /* (Vl,C) */
    int64_t vocab0, vocab_valid;
    int64_t chunk_rows;
} tp_head;
/* Rows per chunk that keep a chunk's logits near `budget_bytes`; at least one, nearly equal chunks. */
int64_t tp_head_chunk_rows(int64_t rows, int64_t vocab_local, int64_t budget_bytes);
/* Loss of n (Rl,C): losses (R). With `dn` present (training) also dn (Rl,C) = gradient of scale * sum of weighted
 * losses, and dweight +=. targets (R), weights (R) optional. The weight gradient of a chunk comes with its logits, so
 * these exist once. */
mc_status tp_head_loss(const tp_ctx *tp, const tp_head *h, mc_tensor n, mc_tensor targets, mc_tensor weights,
                       float scale, mc_tensor losses, mc_tensor dn) MC_MUST_CHECK;
/* Logits of a few rows: n (rows,C), equal on every rank -> *gathered_out (tp, rows, Vl) in scratch, equal on every
 * rank. For generation. */
mc_status tp_head_logits(const tp_ctx *tp, const tp_head *h, mc_tensor n, mc_tensor *gathered_out) MC_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
