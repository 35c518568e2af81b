/* From the data flags to a source. */
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
        .shuffle = true,
    };
    MC_TRY(ds_source_open(&c, source_out));
    if (o->eod_mask_loss && ds_source_eod(*source_out) < 0) {
        MC_WARN("--eod-mask-loss has no effect: %s",
                o->mock_data ? "--mock-data has no end-of-document token"
                             : "the datasets name no end-of-document token, or different ones");
    }
    return MC_OK;
}
