/* Loss on the validation data, inside a run and for megac eval. */
#include "megac/train/run.h"

/* One forward pass over a batch of n_micro micro-batches that starts at sample `first`, samples `end` and later left
 * out; adds to the sums of this rank, and where wanted to the record. */
static mc_status add_batch(mt_engine *e, const mt_feed *feed, uint64_t first, uint64_t end, int n_micro,
                           mt_token_losses *record, double sums[2])
{
    double weight;
    pp_stats stats;
    MC_TRY(ds_loader_request_last(feed->loader, first, end, n_micro));
    MC_TRY(mt_feed_next(e->world, feed, &weight));
    MC_TRY(mt_engine_run_step(e, feed->loader, n_micro, false, 0, &stats));
    bool counts = mt_has_head(&e->place) && e->place.tp_rank == 0;
    double loss;
    MC_TRY(mt_engine_loss_sum(e, n_micro, &loss));
    sums[0] += counts ? loss : 0;
    sums[1] += counts ? weight : 0;
    return record ? mt_token_losses_add(record, n_micro) : MC_OK;
}

mc_status mt_evaluation_micros(const mt_setup *s, const ds_source *source, int64_t n_steps, int64_t *n_out)
{
    int64_t per_micro = s->o->micro_batch_size * s->grid.size[MC_AXIS_DP];
    int64_t n_windows = (int64_t)ds_source_epoch_samples(source);
    int64_t n_micros = n_steps > 0 ? n_steps * s->max_micro : (n_windows + per_micro - 1) / per_micro;
    if (n_micros == 0 && s->o->mock_data) {
        return MC_FAIL(MC_INVALID, "--mock-data has no end that an evaluation of all of it could reach; give "
                                   "--eval-iters N, without --full-validation");
    }
    if (n_micros == 0) {
        return MC_FAIL(MC_INPUT,
                       "the evaluation data has no window of %lld tokens; use a smaller --seq-length or a larger share "
                       "of --split",
                       (long long)s->o->seq_length);
    }
    *n_out = n_micros;
    return MC_OK;
}

mc_status mt_evaluate(mt_engine *e, const mt_feed *feed, int64_t n_steps, mt_token_losses *record, double *loss_out,
                      double *tokens_out)
{
    const mt_setup *s = &e->setup;
    int64_t per_micro = s->o->micro_batch_size * s->grid.size[MC_AXIS_DP], n_micros;
    MC_TRY(mt_evaluation_micros(s, feed->source, n_steps, &n_micros));
    uint64_t end = n_steps > 0 ? UINT64_MAX : ds_source_epoch_samples(feed->source);
    double sums[2] = {0, 0};
    for (int64_t done = 0; done < n_micros; done += s->max_micro) {
        int n = n_micros - done < s->max_micro ? (int)(n_micros - done) : s->max_micro;
        MC_TRY(add_batch(e, feed, (uint64_t)(done * per_micro), end, n, record, sums));
    }
    mc_tensor t = mc_tensor_1d(sums, MC_F64, 2);
    MC_TRY(mc_comm_all_reduce(mc_world_comm(e->world), t, t, MC_SUM));
    *loss_out = sums[1] > 0 ? sums[0] / sums[1] : 0;
    *tokens_out = sums[1];
    return MC_OK;
}
