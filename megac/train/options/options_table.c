/* The rows of every command. */
#include "megac/train/options/options_impl.h"

#define MC_OPTION_MEMBER(field) field
#define ROWS(array)                                      \
    {                                                    \
        (array), (int)(sizeof(array) / sizeof(array)[0]) \
    }

/* The order of the includes counts. */
/* clang-format off */
#define MC_OPTION_STRUCT mt_options
static const mc_option common_rows[] = {
#include "megac/base/option_rows.def"
#include "megac/base/base_options.def"
#include "megac/base/machine_options.def"
#include "tensor_parallel/tp_options.def"
#include "pipeline/pp_options.def"
#include "megac/train/options/train_options.def"
#include "megac/train/options/model_options.def"
#include "megac/train/options/optim_options.def"
#include "megac/train/options/stability_options.def"
#include "datasets/ds_options.def"
#include "megac/train/options/checkpoint_options.def"
#include "megac/train/options/log_options.def"
#include "megac/base/option_end.def"
};

static const mc_option megatron_rows[] = {
#include "megac/base/option_rows.def"
#include "megac/train/options/renamed_options.def"
#include "megac/train/options/ignored_options.def"
#include "megac/train/options/refused_options.def"
#include "megac/base/option_end.def"
};

static const mc_option eval_rows[] = {
#include "megac/base/option_rows.def"
#include "megac/train/options/eval_options.def"
#include "megac/base/option_end.def"
};

static const mc_option generate_rows[] = {
#include "megac/base/option_rows.def"
#include "megac/train/options/generate_options.def"
#include "megac/base/option_end.def"
};

static const mc_option plan_rows[] = {
#include "megac/base/option_rows.def"
#include "megac/train/options/plan_options.def"
#include "megac/base/option_end.def"
};
#undef MC_OPTION_STRUCT

#define MC_OPTION_STRUCT mt_prepare_options
static const mc_option prepare_rows[] = {
#include "megac/base/option_rows.def"
#include "megac/base/base_options.def"
#include "megac/train/options/prepare_options.def"
#include "megac/base/option_end.def"
};
#undef MC_OPTION_STRUCT

#define MC_OPTION_STRUCT mt_inspect_options
static const mc_option inspect_rows[] = {
#include "megac/base/option_rows.def"
#include "megac/base/base_options.def"
#include "megac/train/options/inspect_options.def"
#include "megac/base/option_end.def"
};
#undef MC_OPTION_STRUCT

#define MC_OPTION_STRUCT mt_diff_options
static const mc_option diff_rows[] = {
#include "megac/base/option_rows.def"
#include "megac/base/base_options.def"
#include "megac/train/options/diff_options.def"
#include "megac/base/option_end.def"
};
#undef MC_OPTION_STRUCT

#define MC_OPTION_STRUCT mt_launch_options
static const mc_option launch_rows[] = {
#include "megac/base/option_rows.def"
#include "megac/base/base_options.def"
#include "megac/train/options/launch_options.def"
#include "megac/base/option_end.def"
};
#undef MC_OPTION_STRUCT

#define MC_OPTION_STRUCT mt_convert_options
static const mc_option convert_rows[] = {
#include "megac/base/option_rows.def"
#include "megac/base/base_options.def"
#include "megac/train/options/convert_options.def"
#include "megac/base/option_end.def"
};
#undef MC_OPTION_STRUCT
/* clang-format on */

/* Flags keep Megatron-LM's names and meanings. Common rows come first, so that a file or checkpoint of one command is
 * read by another. */
static const mc_option_table model_tables[] = {
    [MT_TRAIN] = {.usage = "megac train [FLAGS]",
                  .summary = "Trains a GPT or Llama model on one rank or many.",
                  .sets = {ROWS(common_rows), ROWS(megatron_rows)},
                  .n_sets = 2},
    [MT_EVAL] = {.usage = "megac eval --load DIR --data-path PREFIX [FLAGS]",
                 .summary = "Loss and perplexity of a checkpoint on a dataset.",
                 .sets = {ROWS(eval_rows), ROWS(common_rows), ROWS(megatron_rows)},
                 .n_sets = 3},
    [MT_GENERATE] = {.usage = "megac generate --load DIR [--prompt TEXT] [FLAGS]",
                     .summary = "Text from a checkpoint.",
                     .sets = {ROWS(generate_rows), ROWS(common_rows), ROWS(megatron_rows)},
                     .n_sets = 3},
    [MT_PLAN] = {.usage = "megac plan [FLAGS of megac train]",
                 .summary = "Exact memory of every rank, without a run.",
                 .sets = {ROWS(plan_rows), ROWS(common_rows), ROWS(megatron_rows)},
                 .n_sets = 3},
};

const mc_option_table mt_i_prepare_table = {
    .usage = "megac prepare --input PATH... --output-prefix PREFIX [FLAGS]",
    .summary = "Text or JSONL to a dataset.",
    .sets = {ROWS(prepare_rows)},
    .n_sets = 1,
};

const mc_option_table mt_i_inspect_table = {
    .usage = "megac inspect FILE [OTHER] [FLAGS]",
    .summary = "What is in a dataset or a checkpoint; where two checkpoints differ.",
    .sets = {ROWS(inspect_rows)},
    .n_sets = 1,
};

const mc_option_table mt_i_diff_table = {
    .usage = "megac diff A B [FLAGS]",
    .summary = "The first tensor in which two traced runs differ.",
    .sets = {ROWS(diff_rows)},
    .n_sets = 1,
};

const mc_option_table mt_i_launch_table = {
    .usage = "megac launch -n RANKS [FLAGS] -- COMMAND [FLAGS of COMMAND]",
    .summary = "Starts ranks on this machine, with torchrun's variables in their environment, and ends them together.",
    .sets = {ROWS(launch_rows)},
    .n_sets = 1,
};

const mc_option_table mt_i_convert_table = {
    .usage = "megac convert --input PATH --output PATH [FLAGS]",
    .summary = "Hugging Face directory (GPT-2, Llama, Mistral, Qwen2, Qwen3) to checkpoint, and back.",
    .sets = {ROWS(convert_rows)},
    .n_sets = 1,
};

const mc_option_table *mt_options_table(mt_command command)
{
    return &model_tables[command];
}
