/* One pre-norm transformer block: forward and backward from operators and tensor-parallel layers.
 *
 *   n1 = norm(h_in)                                         (Rl,C)
 *   qkv = gather(n1) Wqkv^T + b     [q, k norms]  rope       (R, G (r + 2) H)    column-parallel
 *   attn = softmax(q k^T) v                                 (R, G r H)
 *   h_mid = h_in + dropout(reduce(attn Wproj^T) + b)        (Rl,C)               row-parallel
 *   n2 = norm(h_mid);  fc1 = gather(n2) W1^T + b            (R, Fl or 2 Fl)      column-parallel
 *   h_out = h_mid + dropout(reduce(act(fc1) W2^T) + b)      (Rl,C)               row-parallel
 *
 * What the backward needs of a micro-batch is its stash; norm outputs and activations are not kept but computed again
 * inside backward passes that read their inputs anyway, at no extra pass over memory. Everything else is scratch of one
 * call. Generation stores keys and values in a cache, and attends a next token's query to it. */
#ifndef MEGAC_TRAIN_MODEL_BLOCK_H
#define MEGAC_TRAIN_MODEL_BLOCK_H

#include "megac/base/rng.h"
#include "megac/train/model/params.h"
#include "megac/train/model/recompute.h"
#include "tensor_parallel/tp.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Parameter and gradient views of one block, by mt_block_param; absent ones have data NULL. */
typedef struct mt_block {
    mc_tensor p[MT_BLOCK_PARAMS], d[MT_BLOCK_PARAMS];
    mc_tensor k_cache, v_cache; /* of kv_cache.h; absent but in generation with a cache */
    int layer;                  /* global number */
} mt_block;

/* Activations of one block and micro-batch. h_in is the previous block's h_out. */
typedef struct mt_block_stash {
    mc_tensor h_in, stats1; /* (Rl,C) (Rl,2) */
    mc_tensor qkv;          /* (R,Q) as attention reads it; with q, k norms its v part is unused */
    mc_tensor qkv_raw;      /* (R,Q) before the q, k norms; absent without them */
    mc_tensor q_stats, k_stats;
    mc_tensor attn, lse; /* (R,Nl*H) (B,Nl,T) */
    mc_tensor h_mid, stats2;
    mc_tensor fc1; /* (R, Fl or 2 Fl) */
} mt_block_stash;

enum { MT_STASH_TENSORS = 10 }; /* besides h_in */

/* What a block computes with: the same for all blocks of a stage. */
typedef struct mt_block_ctx {
    const mt_model_config *c;
    tp_ctx tp;
    tp_heads heads;
    mt_recompute recompute;       /* core_attn and mlp are a block's business, the rest is its stage's */
    mc_tensor rope_cos, rope_sin; /* (T, D/2); absent without rotary positions */
} mt_block_ctx;

/* Generation with a cache of keys and values: where the micro-batch's R tokens lie in it. */
typedef struct mt_cached_rows {
    mc_tensor places; /* (R) i32 */
    bool next; /* each row is the next token of a text of its own, which sees its cached ones; else the rows begin
                  one text, and see each other */
    /* For `next`, gathered by each row's position; absent where the model has no such table. */
    mc_tensor rope_cos, rope_sin; /* (R, D/2) */
    mc_tensor positions;          /* (R,C) */
} mt_cached_rows;

/* The micro-batch at hand. */
typedef struct mt_micro {
    int64_t batch, seq_len;       /* B, T: R = B T rows */
    uint64_t sample0;             /* global number of its first sample */
    bool dropout;                 /* off in evaluation */
    const mt_cached_rows *cached; /* (optional) default: no cache */
} mt_micro;

/* Takes the stash of R rows (max_batch x seq_length) from an arena; h_in is the caller's. What x->recompute says is not
 * kept lies in `shared`'s memory, where that is given. */
void mt_block_stash_take(const mt_block_ctx *x, int64_t batch, mc_arena *arena, const mt_block_stash *shared,
                         mt_block_stash *stash_out);
/* The tensors of a stash besides h_in, in the order that they are taken in; returns their number. `lent`: without what
 * lies in `shared`'s memory. */
int mt_block_stash_tensors(const mt_block_ctx *x, mt_block_stash *s, bool lent, mc_tensor *out[MT_STASH_TENSORS]);
/* Takes only what blocks share when x->recompute says that they do not keep it; the rest of *shared_out is absent. */
void mt_block_shared_take(const mt_block_ctx *x, int64_t batch, mc_arena *arena, mt_block_stash *shared_out);
/* The stash for a smaller micro-batch: the same memory, fewer rows. */
mt_block_stash mt_block_stash_view(const mt_block_ctx *x, const mt_block_stash *full, const mt_micro *m);

/* h_out absent: computes the stash alone, without the work that only the output needs. */
mc_status mt_block_fwd(const mt_block_ctx *x, const mt_block *b, const mt_micro *m, const mt_block_stash *s,
                       mc_tensor h_out) MC_MUST_CHECK;
/* dh (Rl,C): gradient of h_out in, of h_in out. Weight gradients accumulate in b->d. The stash is destroyed. */
mc_status mt_block_bwd(const mt_block_ctx *x, const mt_block *b, const mt_micro *m, const mt_block_stash *s,
                       mc_tensor dh) MC_MUST_CHECK;

/* Folder-private, shared by block_fwd.c and block_bwd.c: the per-head views of a (R,Q) buffer, the dropout of a site,
 * the attention and rotary arguments. */
typedef struct mt_qkv_views {
    mc_tensor q, k, v; /* (R,G,r,H) (R,G,1,H) (R,G,1,H) */
} mt_qkv_views;
mc_status mt_i_attention_core_fwd(const mt_block_ctx *x, const mt_block *b, const mt_micro *m,
                                  const mt_block_stash *s) MC_MUST_CHECK;
mc_status mt_i_fc1_fwd(const mt_block_ctx *x, const mt_block *b, const mt_block_stash *s, mc_tensor n2) MC_MUST_CHECK;
mt_qkv_views mt_i_qkv_views(const mt_block_ctx *x, mc_tensor qkv);
mc_tensor mt_i_head_view(const mt_block_ctx *x, mc_tensor attn);
ly_dropout mt_i_dropout(const mt_block_ctx *x, const mt_block *b, const mt_micro *m, mc_rng_kind site);
mc_status mt_i_rope(const mt_block_ctx *x, const mt_micro *m, mc_tensor heads, bool inverse) MC_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
