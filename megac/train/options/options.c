#include "megac/train/options/options.h"

#include <string.h>
#include <unistd.h>

#include "megac/base/alloc.h"
#include "megac/base/world.h"
#include "megac/train/options/options_impl.h"

/* Every rank reads the same command line; one of them prints. */
static bool prints(void)
{
    mc_job job;
    return mc_job_from_env(&job) == MC_OK && job.rank == 0;
}

/* Reads file and command line into a fresh config. On failure, and when --help or --print-config was served, the config
 * is closed again. */
static mc_status read_all(mc_config *config, const mc_option_table *table, void *target, int argc, char **argv,
                          bool *done_out)
{
    if (mc_config_peek_switch(table, argc, argv, "--help")) {
        *done_out = true;
        return prints() ? mc_config_help(table, stdout) : MC_OK;
    }
    MC_TRY(mc_config_init(config, table, target));
    const char *file = mc_config_peek_value(table, argc, argv, "--config");
    mc_status st = file ? mc_config_file(config, file) : MC_OK;
    if (st == MC_OK) {
        st = mc_config_args(config, argc, argv);
    }
    bool printing = st == MC_OK && mc_config_peek_switch(table, argc, argv, "--print-config");
    if (printing && prints()) {
        st = mc_config_print(config, stdout);
    }
    if (st != MC_OK || printing) {
        mc_config_fini(config);
    }
    *done_out = printing;
    return st;
}

/* Nothing is left for the caller when there is nothing to run. */
static mc_status read_or_free(mc_config *config, const mc_option_table *table, void *target, int argc, char **argv,
                              bool *done_out)
{
    mc_status st = read_all(config, table, target, argc, argv, done_out);
    if (st != MC_OK || *done_out) {
        mc_free(target);
    }
    return st;
}

mc_status mt_options_parse(mt_command command, int argc, char **argv, mt_options **out, bool *done_out)
{
    mt_options *o;
    bool done = false;
    *out = NULL;
    MC_TRY(MC_NEW(&o, "options"));
    /* Rows of other commands keep these. */
    o->command = command;
    o->world_size = MC_UNSET_INT;
    MC_TRY(read_or_free(&o->config_, mt_options_table(command), o, argc, argv, &done));
    *out = done ? NULL : o;
    *done_out = done;
    return MC_OK;
}

void mt_options_free(mt_options *o)
{
    if (o) {
        mc_config_fini(&o->config_);
        mc_free(o);
    }
}

bool mt_options_given(const mt_options *o, const void *field)
{
    mc_source source = mc_config_source(&o->config_, field);
    return source == MC_FROM_ARGS || source == MC_FROM_FILE || source == MC_FROM_CHECKPOINT;
}

mc_status mt_options_text(const mt_options *o, char **text_out)
{
    return mc_config_text(&o->config_, MC_OPTION_LOCAL, text_out);
}

bool mt_options_need_checkpoint(const mt_options *o)
{
    return (o->load || o->pretrained_checkpoint) &&
           (o->use_checkpoint_args || o->command == MT_EVAL || o->command == MT_GENERATE);
}

mc_status mt_options_adopt(mt_options *o, const char *where, const char *text)
{
    return mc_config_adopt(&o->config_, where, text);
}

mc_status mt_options_differences(mt_options *o, const char *text, char *list_out, size_t cap)
{
    return mc_config_differences(&o->config_, text, list_out, cap);
}

mc_status mt_prepare_options_parse(int argc, char **argv, mt_prepare_options **out, bool *done_out)
{
    mt_prepare_options *o;
    bool done = false;
    *out = NULL;
    MC_TRY(MC_NEW(&o, "options"));
    MC_TRY(read_or_free(&o->config_, &mt_i_prepare_table, o, argc, argv, &done));
    *done_out = done;
    if (done) {
        return MC_OK;
    }
    mc_status st = MC_OK;
    if (o->input.n == 0) {
        st = MC_FAIL(MC_INVALID, "--input is missing; give text or JSONL files, folders, or - for standard input");
    } else if (!o->output_prefix) {
        st = MC_FAIL(MC_INVALID, "--output-prefix is missing; give the path of the dataset without .h5");
    } else if (o->tokenizer_model) {
        st = MC_FAIL(MC_INVALID, "--tokenizer-model %s: %s has no file; leave the flag out", o->tokenizer_model,
                     o->tokenizer_type);
    }
    if (st != MC_OK) {
        mt_prepare_options_free(o);
        return st;
    }
    if (!mc_given_int(o->workers)) {
        long cores = sysconf(_SC_NPROCESSORS_ONLN);
        o->workers = cores > 0 ? cores : 1;
    }
    *out = o;
    return MC_OK;
}

void mt_prepare_options_free(mt_prepare_options *o)
{
    if (o) {
        mc_config_fini(&o->config_);
        mc_free(o);
    }
}

mc_status mt_inspect_options_parse(int argc, char **argv, mt_inspect_options **out, bool *done_out)
{
    mt_inspect_options *o;
    bool done = false;
    *out = NULL;
    MC_TRY(MC_NEW(&o, "options"));
    MC_TRY(read_or_free(&o->config_, &mt_i_inspect_table, o, argc, argv, &done));
    *done_out = done;
    if (!done && !o->file) {
        mt_inspect_options_free(o);
        return MC_FAIL(MC_INVALID, "nothing to inspect; usage: %s", mt_i_inspect_table.usage);
    }
    *out = done ? NULL : o;
    return MC_OK;
}

void mt_inspect_options_free(mt_inspect_options *o)
{
    if (o) {
        mc_config_fini(&o->config_);
        mc_free(o);
    }
}

mc_status mt_diff_options_parse(int argc, char **argv, mt_diff_options **out, bool *done_out)
{
    mt_diff_options *o;
    bool done = false;
    *out = NULL;
    MC_TRY(MC_NEW(&o, "options"));
    MC_TRY(read_or_free(&o->config_, &mt_i_diff_table, o, argc, argv, &done));
    *done_out = done;
    if (!done && (!o->a || !o->b)) {
        mt_diff_options_free(o);
        return MC_FAIL(MC_INVALID, "two traces are compared; usage: %s", mt_i_diff_table.usage);
    }
    *out = done ? NULL : o;
    return MC_OK;
}

void mt_diff_options_free(mt_diff_options *o)
{
    if (o) {
        mc_config_fini(&o->config_);
        mc_free(o);
    }
}

mc_status mt_launch_options_parse(int argc, char **argv, mt_launch_options **out, bool *done_out)
{
    mt_launch_options *o;
    bool done = false;
    *out = NULL;
    MC_TRY(MC_NEW(&o, "options"));
    MC_TRY(read_or_free(&o->config_, &mt_i_launch_table, o, argc, argv, &done));
    *done_out = done;
    if (!done && !mc_given_int(o->nproc_per_node)) {
        mt_launch_options_free(o);
        return MC_FAIL(MC_INVALID, "-n (--nproc-per-node) is missing; usage: %s", mt_i_launch_table.usage);
    }
    *out = done ? NULL : o;
    return MC_OK;
}

void mt_launch_options_free(mt_launch_options *o)
{
    if (o) {
        mc_config_fini(&o->config_);
        mc_free(o);
    }
}

mc_status mt_convert_options_parse(int argc, char **argv, mt_convert_options **out, bool *done_out)
{
    mt_convert_options *o;
    bool done = false;
    *out = NULL;
    MC_TRY(MC_NEW(&o, "options"));
    MC_TRY(read_or_free(&o->config_, &mt_i_convert_table, o, argc, argv, &done));
    *done_out = done;
    if (!done && (!o->input || !o->output)) {
        const char *missing = o->input ? "--output" : "--input";
        mt_convert_options_free(o);
        return MC_FAIL(MC_INVALID, "%s is missing; usage: %s", missing, mt_i_convert_table.usage);
    }
    *out = done ? NULL : o;
    return MC_OK;
}

void mt_convert_options_free(mt_convert_options *o)
{
    if (o) {
        mc_config_fini(&o->config_);
        mc_free(o);
    }
}
