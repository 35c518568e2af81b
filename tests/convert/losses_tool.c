/* The loss of every token, for the check against transformers: flags of `megac eval`. Prints a line for each window of
 * the data, its tokens, a colon, and their losses. */
#include <stdio.h>

#include "megac/train/commands.h"
#include "megac/train/run.h"

static void print_window(const int32_t *tokens, const float *losses, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        printf("%d ", tokens[i]);
    }
    printf(":");
    for (int64_t i = 0; i < n; i++) {
        printf(" %.9g", (double)losses[i]);
    }
    printf("\n");
}

/* Window by window: one micro-batch of one sample. */
static mc_status evaluate(const mt_options *o, mc_world *world, mt_engine **engine, mt_feed *feed)
{
    MC_TRY(mt_source_open(o, DS_VALID, true, &feed->source));
    MC_TRY(mt_engine_create(o, MT_FOR_EVALUATION, world, feed->source, engine));
    MC_TRY(mt_engine_load(*engine, o->load, -1));
    MC_TRY(mt_feed_open(*engine, feed));
    uint64_t n = ds_source_epoch_samples(feed->source);
    for (uint64_t i = 0; i < n; i++) {
        double weight, sum;
        pp_stats stats;
        MC_TRY(ds_loader_request_last(feed->loader, i, n, 1));
        MC_TRY(ds_loader_next(feed->loader, &weight));
        MC_TRY(mt_engine_run_step(*engine, feed->loader, 1, false, 0, &stats));
        MC_TRY(mt_engine_loss_sum(*engine, 1, &sum));
        print_window(ds_loader_batch(feed->loader, 0).tokens, (*engine)->stage->host_losses.data, o->seq_length);
    }
    return MC_OK;
}

int main(int argc, char **argv)
{
    mc_job job = {.rank = 0, .size = 1, .local_size = 1, .launcher = "none"};
    mt_session session;
    mt_engine *engine = NULL;
    mt_feed feed = {0};
    mc_status st = mt_session_open(&session, MT_EVAL, &job, argc - 1, argv + 1);
    if (st == MC_OK) {
        st = evaluate(session.o, session.world, &engine, &feed);
        mt_feed_close(&feed);
        mt_engine_destroy(engine);
        mt_session_close(&session, st);
    }
    return mc_status_exit(st);
}
