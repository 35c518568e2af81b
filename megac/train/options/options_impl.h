/* Shared by the options_*.c files only. */
#ifndef MEGAC_TRAIN_OPTIONS_OPTIONS_IMPL_H
#define MEGAC_TRAIN_OPTIONS_OPTIONS_IMPL_H

#include "megac/train/options/options.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Rules of one area each: derived values first, then contradictions. */
mc_status mt_i_check_model(mt_options *o);
mc_status mt_i_check_attention(mt_options *o);
mc_status mt_i_check_layout(mt_options *o, int world_size);
mc_status mt_i_check_batch(mt_options *o);
mc_status mt_i_check_recompute(mt_options *o); /* after the batch */
mc_status mt_i_check_length(mt_options *o);
mc_status mt_i_check_optimizer(mt_options *o);
mc_status mt_i_check_data(mt_options *o);
mc_status mt_i_check_checkpoint(mt_options *o);
mc_status mt_i_check_command(mt_options *o);

/* Does this command line train? (--skip-train does not.) */
bool mt_i_trains(const mt_options *o);
/* Sets an int that nobody gave. */
void mt_i_derive(mt_options *o, int64_t *field, int64_t value);

extern const mc_option_table mt_i_prepare_table, mt_i_inspect_table, mt_i_diff_table, mt_i_launch_table,
    mt_i_convert_table;

#ifdef __cplusplus
}
#endif
#endif
