#include "megac/train/data_parallel.h"

#include "megac/base/alloc.h"

mc_status mt_data_parallel_init(mt_data_parallel *d, const mc_comm *comm, const mt_params *params, mc_tensor grad_slab,
                                int64_t bucket_elems)
{
    *d = (mt_data_parallel){.comm = comm};
    MC_TRY(MC_NEW_N(&d->buckets, params->n_rows + 1, "gradient buckets"));
    int64_t begin = 0;
    for (int i = 0; i < params->n_rows; i++) {
        int64_t end = i + 1 < params->n_rows ? params->rows[i + 1].offset : params->slab_elems;
        if (end - begin >= bucket_elems || i + 1 == params->n_rows) {
            mt_bucket *b = &d->buckets[d->n_buckets++];
            b->grads = mc_tensor_slice(grad_slab, 0, begin, end - begin);
            b->begin = begin;
            begin = end;
        }
    }
    d->next = d->n_buckets - 1;
    return MC_OK;
}

void mt_data_parallel_fini(mt_data_parallel *d)
{
    mc_free(d->buckets);
    *d = (mt_data_parallel){0};
}

mc_status mt_data_parallel_ready(void *arg, int64_t from)
{
    mt_data_parallel *d = arg;
    for (; d->comm->size > 1 && d->next >= 0 && d->buckets[d->next].begin >= from; d->next--) {
        mt_bucket *b = &d->buckets[d->next];
        MC_TRY(mc_comm_all_reduce_begin(d->comm, b->grads, b->grads, MC_SUM, &b->request));
    }
    return MC_OK;
}

mc_status mt_data_parallel_finish(mt_data_parallel *d)
{
    MC_TRY(mt_data_parallel_ready(d, 0));
    for (int i = d->n_buckets - 1; d->comm->size > 1 && i >= 0; i--) {
        MC_TRY(mc_comm_wait(&d->buckets[i].request));
    }
    d->next = d->n_buckets - 1;
    return MC_OK;
}
