#include "tensor_parallel/tp.h"

mc_status tp_embedding_fwd(const tp_ctx *tp, const tp_embedding *e, mc_tensor tokens, mc_tensor h)
{
    const ly_ops *ops = tp->ly->ops;
    mc_tensor partial = tp_partial(tp, tokens.dims[0], h);
    MC_TRY(ops->embedding_fwd(tp->ly, &(ly_embedding_fwd){tokens, e->table, partial, e->vocab0}));
    MC_TRY(tp_reduce(tp, partial, h));
    return ops->embed_finish_fwd(tp->ly, &(ly_embed_finish_fwd){h, e->positions, h, e->dropout});
}

mc_status tp_embedding_bwd(const tp_ctx *tp, const tp_embedding *e, mc_tensor tokens, mc_tensor dh)
{
    const ly_ops *ops = tp->ly->ops;
    mc_tensor full;
    MC_TRY(ops->embed_finish_bwd(tp->ly, &(ly_embed_finish_bwd){dh, dh, e->dpositions, e->dropout}));
    MC_TRY(tp_gather(tp, dh, &full));
    return ops->embedding_bwd(tp->ly, &(ly_embedding_bwd){tokens, full, e->dtable, e->vocab0});
}
