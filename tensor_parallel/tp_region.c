#include "tensor_parallel/tp.h"

static bool shards_rows(const tp_ctx *tp)
{
    return tp->sequence_parallel && tp->comm->size > 1;
}

int64_t tp_local_rows(const tp_ctx *tp, int64_t rows)
{
    if (!shards_rows(tp)) {
        return rows;
    }
    MC_ASSERT(rows % tp->comm->size == 0);
    return rows / tp->comm->size;
}

int64_t tp_first_row(const tp_ctx *tp, int64_t rows)
{
    return shards_rows(tp) ? tp_local_rows(tp, rows) * tp->comm->rank : 0;
}

mc_status tp_gather(const tp_ctx *tp, mc_tensor x, mc_tensor *full_out)
{
    if (!shards_rows(tp)) {
        *full_out = x;
        return MC_OK;
    }
    mc_tensor full = mc_arena_take_2d(tp->scratch, x.dtype, x.dims[0] * tp->comm->size, x.dims[1]);
    MC_TRY(mc_comm_all_gather(tp->comm, x, full));
    *full_out = full;
    return MC_OK;
}

mc_tensor tp_partial(const tp_ctx *tp, int64_t rows, mc_tensor out)
{
    return shards_rows(tp) ? mc_arena_take_2d(tp->scratch, out.dtype, rows, out.dims[1]) : out;
}

mc_status tp_reduce(const tp_ctx *tp, mc_tensor partial, mc_tensor out)
{
    if (shards_rows(tp)) {
        return mc_comm_reduce_scatter(tp->comm, partial, out);
    }
    return mc_comm_all_reduce(tp->comm, partial, out, MC_SUM);
}
