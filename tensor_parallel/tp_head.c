#include "tensor_parallel/tp.h"

int64_t tp_head_chunk_rows(int64_t rows, int64_t vocab_local, int64_t budget_bytes)
{
    int64_t fits = budget_bytes / (vocab_local * (int64_t)sizeof(float));
    int64_t chunks = fits < 1 ? rows : (rows + fits - 1) / fits;
    return (rows + chunks - 1) / chunks;
}

/* Loss, and with dx present the gradients, of rows [row0, row0 + x.dims[0]). x and dx are the full rows' parts. */
static mc_status head_chunk(const tp_ctx *tp, const tp_head *h, mc_tensor x, mc_tensor targets, mc_tensor weights,
                            float scale, mc_tensor losses, mc_tensor dx)
{
    const ly_ops *ops = tp->ly->ops;
    int64_t rows = x.dims[0];
    mc_tensor logits = mc_arena_take_2d(tp->scratch, MC_F32, rows, h->weight.dims[0]);
    mc_tensor stats = mc_arena_take_2d(tp->scratch, MC_F32, rows, 3), all = stats;
    MC_TRY(tp_linear_fwd(tp, x, h->weight, (mc_tensor){0}, logits));
    MC_TRY(ops->xent_stats(tp->ly, &(ly_xent_stats){logits, targets, stats, h->vocab0, h->vocab_valid}));
    if (tp->comm->size > 1) {
        all = mc_arena_take_2d(tp->scratch, MC_F32, tp->comm->size * rows, 3);
        MC_TRY(mc_comm_all_gather(tp->comm, stats, all));
    }
    ly_xent_grad grad = {
        .logits = logits,
        .targets = targets,
        .all_stats = mc_tensor_3d(all.data, MC_F32, tp->comm->size, rows, 3),
        .losses = losses,
        .weights = weights,
        .vocab0 = h->vocab0,
        .vocab_valid = h->vocab_valid,
        .scale = scale,
        .write_grad = mc_tensor_present(dx),
    };
    mc_tensor dlogits = logits;
    if (grad.write_grad && x.dtype != MC_F32) {
        grad.dlogits = dlogits = mc_arena_take_2d(tp->scratch, x.dtype, rows, h->weight.dims[0]);
    }
    MC_TRY(ops->xent_grad(tp->ly, &grad));
    if (grad.write_grad) {
        MC_TRY(tp_linear_bwd_input(tp, dlogits, h->weight, dx));
        MC_TRY(tp_linear_bwd_weight(tp, dlogits, x, h->dweight, (mc_tensor){0}));
    }
    return MC_OK;
}

mc_status tp_head_loss(const tp_ctx *tp, const tp_head *h, mc_tensor n, mc_tensor targets, mc_tensor weights,
                       float scale, mc_tensor losses, mc_tensor dn)
{
    bool train = mc_tensor_present(dn);
    int64_t rows = targets.dims[0];
    mc_tensor x, dx = {0};
    MC_TRY(tp_gather(tp, n, &x));
    if (train) {
        dx = tp_partial(tp, rows, dn);
    }
    for (int64_t row = 0; row < rows; row += h->chunk_rows) {
        int64_t count = rows - row < h->chunk_rows ? rows - row : h->chunk_rows;
        size_t mark = mc_arena_mark(tp->scratch);
        mc_tensor w = mc_tensor_present(weights) ? mc_tensor_slice(weights, 0, row, count) : weights;
        MC_TRY(head_chunk(tp, h, mc_tensor_slice(x, 0, row, count), mc_tensor_slice(targets, 0, row, count), w, scale,
                          mc_tensor_slice(losses, 0, row, count), train ? mc_tensor_slice(dx, 0, row, count) : dx));
        mc_arena_rewind(tp->scratch, mark);
    }
    return train ? tp_reduce(tp, dx, dn) : MC_OK;
}

mc_status tp_head_logits(const tp_ctx *tp, const tp_head *h, mc_tensor n, mc_tensor *gathered_out)
{
    int64_t rows = n.dims[0], vl = h->weight.dims[0];
    mc_tensor logits = mc_arena_take_2d(tp->scratch, MC_F32, rows, vl), all = logits;
    MC_TRY(tp_linear_fwd(tp, n, h->weight, (mc_tensor){0}, logits));
    if (tp->comm->size > 1) {
        all = mc_arena_take_2d(tp->scratch, MC_F32, tp->comm->size * rows, vl);
        MC_TRY(mc_comm_all_gather(tp->comm, logits, all));
    }
    *gathered_out = mc_tensor_3d(all.data, MC_F32, tp->comm->size, rows, vl);
    return MC_OK;
}
