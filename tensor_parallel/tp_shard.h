/* Who holds what of a sharded tensor: pure arithmetic, used by initialisation, checkpoint and model alike. */
#ifndef TENSOR_PARALLEL_TP_SHARD_H
#define TENSOR_PARALLEL_TP_SHARD_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The smallest multiple of make_divisible_by * tp that is >= vocab (Megatron-LM's padding rule). */
int64_t tp_padded_vocab(int64_t vocab, int64_t make_divisible_by, int tp);

/* Attention heads of one tensor-parallel rank. The global QKV weight is laid out per KV group: [q heads of the group,
 * k, v], each of head_dim rows (Megatron-LM). With groups >= tp a rank holds whole groups; with fewer groups than ranks
 * a rank holds a share of one group's query heads and a copy of its k and v. */
typedef struct tp_heads {
    int groups;                /* local KV groups */
    int queries;               /* query heads per local group */
    int head0;                 /* global number of the first local query head */
    int replicas;              /* ranks that hold the same k and v (1: not replicated) */
    int replica;               /* place of this rank among them */
    int64_t q_begin, q_rows;   /* rows of the global QKV weight: whole groups, or only query rows where replicated */
    int64_t kv_begin, kv_rows; /* rows of k and v where replicated; else 0, 0 */
} tp_heads;

/* heads % tp = 0, and groups % tp = 0 or tp % groups = 0 (asserted: options are checked before). */
tp_heads tp_heads_of(int heads, int groups, int head_dim, int tp, int rank);

#ifdef __cplusplus
}
#endif
#endif
