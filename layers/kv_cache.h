/* Keys and values of earlier tokens, kept for the attention of later ones (generation).
 *
 * Shapes: S sequences, P positions, G local KV groups, r query heads a group, H head size. A cache is a contiguous
 * (S, G, P, H). A place, sequence * P + position, says where in it one token of one sequence lies. */
#ifndef LAYERS_KV_CACHE_H
#define LAYERS_KV_CACHE_H

#include "megac/base/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

/* k_cache, v_cache (S, G, P, H) at places[i] = row i of k, v (R, G, 1, H: views as in attention.h); the rest of the
 * caches is left alone. places (R) i32, all different, in [0, S P). */
typedef struct ly_kv_store {
    mc_tensor k, v, places, k_cache, v_cache;
} ly_kv_store;

/* Attention of one query for each of R tokens, at places (R) i32: the query at position p of its sequence sees the
 * cached positions max(0, p - window_left) .. p, its own included (stored before). window_left < 0: no limit.
 * out (R, G, r, H) = softmax(scale q k^T) v; q and out are views as in attention.h; scale is positive. Nothing is read
 * of the cache but what is seen. A row's result depends on its own query and sequence alone, and not on the number of
 * threads. */
typedef struct ly_attention_decode {
    mc_tensor q, places, k_cache, v_cache, out;
    float scale;
    int64_t window_left;
} ly_attention_decode;

#ifdef __cplusplus
}
#endif
#endif
