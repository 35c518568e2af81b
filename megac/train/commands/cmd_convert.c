/* megac convert: between directories of Hugging Face and checkpoints. */
#include <dirent.h>
#include <fnmatch.h>
#include <stdio.h>
#include <string.h>

#include "megac/base/file.h"
#include "megac/train/checkpoint/ckpt_inspect.h"
#include "megac/train/commands/commands.h"
#include "megac/train/convert/convert.h"
#include "megac/train/convert/hf_dir.h"

typedef enum { KIND_MEGAC, KIND_HF } kind;

/* Whether the directory holds a file of PyTorch's formats, or a folder of Megatron-LM's older ones. */
static bool has_torch_files(const char *path)
{
    static const char *const patterns[] = {"*.distcp",  ".metadata",          "common.pt",
                                           "mp_rank_*", "pytorch_model*.bin", "*.pth"};
    DIR *d = opendir(path);
    bool found = false;
    for (struct dirent *e; d && (e = readdir(d));) {
        for (size_t i = 0; i < sizeof patterns / sizeof *patterns; i++) {
            found = found || fnmatch(patterns[i], e->d_name, FNM_PERIOD) == 0;
        }
    }
    if (d) {
        closedir(d);
    }
    return found;
}

/* The same for the iterations of a save directory. */
static bool is_torch(const char *path)
{
    char sub[MC_PATH_BYTES];
    DIR *d = opendir(path);
    bool found = has_torch_files(path);
    for (struct dirent *e; d && !found && (e = readdir(d));) {
        bool iteration = strncmp(e->d_name, "iter_", 5) == 0 || strcmp(e->d_name, "release") == 0;
        found = iteration && mc_path_format(sub, "%s/%s", path, e->d_name) == MC_OK && has_torch_files(sub);
    }
    if (d) {
        closedir(d);
    }
    return found;
}

static mc_status find_kind(const char *path, kind *kind_out)
{
    if (!mc_file_is_dir(path)) {
        return MC_FAIL(MC_NOTFOUND, "--input %s: there is no such directory", path);
    }
    if (mt_hf_is(path) && !mt_checkpoint_is(path)) {
        *kind_out = KIND_HF;
        return MC_OK;
    }
    if (is_torch(path)) {
        return MC_FAIL(MC_UNSUPPORTED,
                       "--input %s: PyTorch's formats, Megatron-LM's torch_dist among them, are not read; make a "
                       "Hugging Face directory of it with their tools, with safetensors",
                       path);
    }
    if (mt_checkpoint_is(path)) {
        *kind_out = KIND_MEGAC;
        return MC_OK;
    }
    return MC_FAIL(MC_INPUT,
                   "--input %s is neither a Hugging Face directory (no %s) nor a checkpoint of megac (no "
                   "latest_checkpointed_iteration.txt or metadata.json)",
                   path, MT_HF_CONFIG);
}

static mc_status convert(const mt_convert_options *o)
{
    static const char *const names[] = {[KIND_MEGAC] = "checkpoint of megac", [KIND_HF] = "Hugging Face directory"};
    kind input;
    mt_converted done = {{0}};
    MC_TRY(find_kind(o->input, &input));
    kind output = !o->to ? (input == KIND_HF ? KIND_MEGAC : KIND_HF) : strcmp(o->to, "hf") == 0 ? KIND_HF : KIND_MEGAC;
    if (output == input) {
        return MC_FAIL(MC_INVALID, "--to %s: %s is a %s already; any layout loads it as it is", o->to, o->input,
                       names[input]);
    }
    mt_convert_request r = {
        .input = o->input,
        .output = o->output,
        .step = mc_given_int(o->ckpt_step) ? o->ckpt_step : -1,
        .max_file_bytes = (uint64_t)o->max_shard_size,
    };
    if (o->dtype) {
        r.cast = true;
        r.dtype = strstr(o->dtype, "32") ? MT_ST_F32 : o->dtype[0] == 'b' ? MT_ST_BF16 : MT_ST_F16;
    }
    MC_TRY(output == KIND_HF ? mt_convert_to_hf(&r, &done) : mt_convert_to_megac(&r, &done));
    printf("%s: %s of a %s, %lld parameters, %llu bytes in %d file%s\n", o->output, names[output], done.model,
           (long long)done.n_params, (unsigned long long)done.bytes, done.n_files, done.n_files > 1 ? "s" : "");
    return MC_OK;
}

mc_status mt_cmd_convert(const mc_job *job, int argc, char **argv)
{
    mt_convert_options *o;
    bool done;
    MC_TRY(mt_convert_options_parse(argc, argv, &o, &done));
    if (done) {
        return MC_OK;
    }
    mc_status st = job->size == 1
                       ? convert(o)
                       : MC_FAIL(MC_INVALID, "megac convert is one process; start it without mpirun or srun");
    mt_convert_options_free(o);
    return st;
}
