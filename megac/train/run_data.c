/* From the data flags to a source, and from there to batches. */
#include "megac/base/log.h"
#include "megac/train/run.h"

mc_status mt_source_open(const mt_options *o, ds_split which, bool whole, ds_source **source_out)
{
    const mc_string_list *own[DS_SPLIT_COUNT] = {&o->train_data_path, &o->valid_data_path, &o->test_data_path};
    const mc_string_list *paths = own[which]->n > 0 ? own[which] : &o->data_path;
    *source_out = NULL;
    if (paths->n == 0 && !o->mock_data) {
        return MC_OK;
    }
    int64_t mock_vocab = mc_given_int(o->vocab_size) ? o->vocab_size : 257;
    ds_source_config c = {
        .paths = paths->v,
        .n_paths = paths->n,
        .split = o->split,
        .whole = whole || own[which]->n > 0,
        .which = which,
        .seq_length = o->seq_length,
        .seed = (uint32_t)o->seed,
        .mock = o->mock_data,
        .mock_vocab_size = (uint32_t)mock_vocab,
        .shuffle = !o->token_losses,
    };
    MC_TRY(ds_source_open(&c, source_out));
    if (o->eod_mask_loss && ds_source_eod(*source_out) < 0) {
        MC_WARN("--eod-mask-loss has no effect: %s",
                o->mock_data ? "--mock-data has no end-of-document token"
                             : "the datasets name no end-of-document token, or different ones");
    }
    return MC_OK;
}

mc_status mt_feed_open(mt_engine *e, mt_feed *feed)
{
    if (!feed->source) {
        return MC_OK;
    }
    ds_loader_config c = mt_setup_loader(&e->setup, mc_world_job(e->world)->rank, feed->source);
    if (!e->dev.ops->host_memory) {
        feed->dev = &e->dev;
        feed->stream = e->ly.stream;
        feed->pinned_bytes = ds_loader_memory_bytes(&c);
        MC_TRY(e->dev.ops->alloc(&e->dev, MC_MEM_PINNED_HOST, feed->pinned_bytes, "batches read ahead", &feed->pinned));
        c.memory = feed->pinned;
    }
    return ds_loader_create(&c, &feed->loader);
}

mc_status mt_feed_next(mc_world *world, const mt_feed *feed, double *weight_out)
{
    uint64_t own = mc_world_own_begin(world, "reads data", NULL);
    mc_status st = ds_loader_next(feed->loader, weight_out);
    mc_world_own_end(world, own);
    return st;
}

void mt_feed_close(mt_feed *feed)
{
    ds_loader_destroy(feed->loader);
    ds_source_close(feed->source);
    if (feed->pinned) { /* after an error copies may be under way */
        (void)feed->dev->ops->stream_sync(feed->dev, feed->stream);
        feed->dev->ops->free(feed->dev, MC_MEM_PINNED_HOST, feed->pinned, feed->pinned_bytes);
    }
    *feed = (mt_feed){0};
}
