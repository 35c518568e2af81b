/* Gradient sums over the data-parallel group, in buckets that are begun as soon as the last backward has left them. */
#ifndef MEGAC_TRAIN_DATA_PARALLEL_H
#define MEGAC_TRAIN_DATA_PARALLEL_H

#include "megac/base/comm.h"
#include "megac/train/params.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct mt_bucket {
    mc_tensor grads; /* contiguous part of the gradient slab */
    int64_t begin;   /* its first element */
    mc_request request;
} mt_bucket;

/* Buckets lie in slab order; the backward finishes them from the last to the first. */
typedef struct mt_data_parallel {
    const mc_comm *comm;
    mt_bucket *buckets;
    int n_buckets;
    int next; /* the next to begin; -1: all begun */
} mt_data_parallel;

/* Cuts the slab at tensor boundaries into buckets of at least `bucket_elems` elements (--ddp-bucket-size). In a group
 * of one they are never begun. */
mc_status mt_data_parallel_init(mt_data_parallel *d, const mc_comm *comm, const mt_params *params, mc_tensor grad_slab,
                                int64_t bucket_elems) MC_MUST_CHECK;
void mt_data_parallel_fini(mt_data_parallel *d);

/* Every gradient at or after element `from` is final: begins the buckets that lie there. An mt_grads_ready_fn. */
mc_status mt_data_parallel_ready(void *d, int64_t from) MC_MUST_CHECK;
/* Begins what is left, waits for all, and makes ready for the next step. */
mc_status mt_data_parallel_finish(mt_data_parallel *d) MC_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
