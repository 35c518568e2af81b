/* Every flag of the program as fields of a struct: o->hidden_size is --hidden-size. The fields come from the option
 * rows
 * (*_options.def); what they mean together is filled in and checked here, before any work starts.
 *
 *   mt_options_parse      defaults, --config, command line; each value checked by itself
 *   mt_options_adopt      (eval, generate, --use-checkpoint-args) the model's shape from a checkpoint
 *   mt_options_finish     derived values, contradictions */
#ifndef MEGAC_TRAIN_OPTIONS_OPTIONS_H
#define MEGAC_TRAIN_OPTIONS_OPTIONS_H

#include "megac/base/config.h"
#include "megac/train/model/recompute.h"
#include "megac/train/optim/batch.h"
#include "megac/train/optim/lr.h"
#include "pipeline/pp.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum { MT_TRAIN, MT_EVAL, MT_GENERATE, MT_PLAN } mt_command;

/* Options of the commands that build a model; the last two groups are read by one command each. Strings and lists live
 * as long as the struct. Not given: mc_given_int, mc_given_float, NULL, n == 0. */
typedef struct mt_options {
/* clang-format off */
#include "megac/base/option_fields.def"
#include "megac/base/base_options.def"
#include "megac/base/machine_options.def"
#include "tensor_parallel/tp_options.def"
#include "pipeline/pp_options.def"
#include "datasets/ds_options.def"
#include "megac/train/options/model_options.def"
#include "megac/train/options/train_options.def"
#include "megac/train/options/optim_options.def"
#include "megac/train/options/stability_options.def"
#include "megac/train/options/checkpoint_options.def"
#include "megac/train/options/log_options.def"
#include "megac/train/options/eval_options.def"
#include "megac/train/options/generate_options.def"
#include "megac/train/options/plan_options.def"
#include "megac/base/option_end.def"
    /* clang-format on */
    mt_command command;
    mc_config config_; /* rows, sources, memory */
} mt_options;

typedef struct mt_prepare_options {
/* clang-format off */
#include "megac/base/option_fields.def"
#include "megac/base/base_options.def"
#include "megac/train/options/prepare_options.def"
#include "megac/base/option_end.def"
    /* clang-format on */
    mc_config config_;
} mt_prepare_options;

typedef struct mt_inspect_options {
/* clang-format off */
#include "megac/base/option_fields.def"
#include "megac/base/base_options.def"
#include "megac/train/options/inspect_options.def"
#include "megac/base/option_end.def"
    /* clang-format on */
    mc_config config_;
} mt_inspect_options;

typedef struct mt_diff_options {
/* clang-format off */
#include "megac/base/option_fields.def"
#include "megac/base/base_options.def"
#include "megac/train/options/diff_options.def"
#include "megac/base/option_end.def"
    /* clang-format on */
    mc_config config_;
} mt_diff_options;

typedef struct mt_launch_options {
/* clang-format off */
#include "megac/base/option_fields.def"
#include "megac/base/base_options.def"
#include "megac/train/options/launch_options.def"
#include "megac/base/option_end.def"
    /* clang-format on */
    mc_config config_;
} mt_launch_options;

typedef struct mt_convert_options {
/* clang-format off */
#include "megac/base/option_fields.def"
#include "megac/base/base_options.def"
#include "megac/train/options/convert_options.def"
#include "megac/base/option_end.def"
    /* clang-format on */
    mc_config config_;
} mt_convert_options;

/* The rows of a command, for its help page and for tests. */
const mc_option_table *mt_options_table(mt_command command);

/* Reads the arguments after the command's name. *done_out: the command line asked for --help or --print-config, which
 * rank 0 has printed on standard output; then, and on failure, there is nothing to free (*out is NULL). */
mc_status mt_options_parse(mt_command command, int argc, char **argv, mt_options **out, bool *done_out) MC_MUST_CHECK;
void mt_options_free(mt_options *o); /* NULL is allowed */

/* Whether finishing needs the model's shape from --load or --pretrained-checkpoint first: mt_options_adopt with the
 * checkpoint's configuration. */
bool mt_options_need_checkpoint(const mt_options *o);
/* Takes the model's shape from `text` (mt_options_text of the run that wrote the checkpoint `where`). A flag that says
 * otherwise is overruled with a warning. */
mc_status mt_options_adopt(mt_options *o, const char *where, const char *text) MC_MUST_CHECK;

/* Lists where the model of a finished *o differs from `text`'s, as mc_config_differences. */
mc_status mt_options_differences(mt_options *o, const char *text, char *list_out, size_t cap) MC_MUST_CHECK;

/* Fills in what was not given: ffn_hidden_size, kv_channels, num_query_groups, max_position_embeddings,
 * position_embedding_type, data_parallel_size, zero, ddp_bucket_size, micro_batch_size, global_batch_size (not with a
 * step schedule), start_ and end_weight_decay, data_path from --data-args-path; and refuses what contradicts itself:
 * MC_INVALID or MC_UNSUPPORTED with value and remedy. `world_size`: ranks of the job; MT_PLAN ignores it and fills
 * o->world_size in. Call once. */
mc_status mt_options_finish(mt_options *o, int world_size) MC_MUST_CHECK;

/* The model's part of it alone, for commands that train nothing. */
mc_status mt_options_finish_model(mt_options *o) MC_MUST_CHECK;

/* Whether somebody gave the option (a member of *o): command line, file or checkpoint. */
bool mt_options_given(const mt_options *o, const void *field);
/* One "--flag value" a line, in the order of the rows: options that have a value, without those that may differ between
 * ranks. For checkpoints and for comparing ranks. Freed with mc_free. */
mc_status mt_options_text(const mt_options *o, char **text_out) MC_MUST_CHECK;

/* The flags as the batch schedule and the learning rate want them (after mt_options_finish). */
mt_batch_config mt_options_batch(const mt_options *o);
/* How the flags deal layers to stages. */
pp_partition mt_options_partition(const mt_options *o);
mt_recompute mt_options_recompute(const mt_options *o);
mt_lr_flags mt_options_lr(const mt_options *o, int64_t global_batch);

/* megac prepare, inspect, diff, launch and convert: read and checked at once; *done_out as above. */
mc_status mt_prepare_options_parse(int argc, char **argv, mt_prepare_options **out, bool *done_out) MC_MUST_CHECK;
void mt_prepare_options_free(mt_prepare_options *o);
mc_status mt_inspect_options_parse(int argc, char **argv, mt_inspect_options **out, bool *done_out) MC_MUST_CHECK;
void mt_inspect_options_free(mt_inspect_options *o);
mc_status mt_diff_options_parse(int argc, char **argv, mt_diff_options **out, bool *done_out) MC_MUST_CHECK;
void mt_diff_options_free(mt_diff_options *o);
mc_status mt_launch_options_parse(int argc, char **argv, mt_launch_options **out, bool *done_out) MC_MUST_CHECK;
void mt_launch_options_free(mt_launch_options *o);
mc_status mt_convert_options_parse(int argc, char **argv, mt_convert_options **out, bool *done_out) MC_MUST_CHECK;
void mt_convert_options_free(mt_convert_options *o);

#ifdef __cplusplus
}
#endif
#endif
