/* megac prepare: text to a dataset. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "datasets/ds_prepare.h"
#include "megac/train/commands/commands.h"

static mc_status prepare(const mt_prepare_options *o)
{
    bool keys_given = mc_config_source(&o->config_, &o->json_keys) != MC_FROM_DEFAULT;
    ds_prepare_config c = {
        .inputs = o->input.v,
        .n_inputs = o->input.n,
        .output_prefix = o->output_prefix,
        .json_keys = o->json_keys.v,
        .n_json_keys = keys_given ? o->json_keys.n : 0, /* 0: "text" where the input is JSON lines */
        .tokenizer_type = o->tokenizer_type,
        .tokenizer_model = o->tokenizer_model,
        .append_eod = o->append_eod,
        .workers = (int)o->workers,
        .split_documents_on =
            o->split_documents_on && strcmp(o->split_documents_on, "blank-line") == 0 ? "blank" : o->split_documents_on,
        .input_format = o->input_format,
        .compress = o->compress,
        .overwrite = o->overwrite,
        .progress = isatty(STDERR_FILENO) == 1,
    };
    ds_prepare_result r;
    MC_TRY(ds_prepare(&c, &r));
    printf("%s: %" PRIu64 " tokens in %" PRIu64 " documents from %" PRIu64 " bytes of text in %" PRIu64
           " files, %.1f s (%.1f MB/s)\n",
           r.output_path, r.n_tokens, r.n_documents, r.text_bytes, r.n_files, r.seconds,
           (double)r.text_bytes * 1e-6 / (r.seconds > 0 ? r.seconds : 1e-9));
    if (r.n_empty > 0) {
        printf("%" PRIu64 " documents had no text and were left out\n", r.n_empty);
    }
    return MC_OK;
}

mc_status mt_cmd_prepare(const mc_job *job, int argc, char **argv)
{
    mt_prepare_options *o;
    bool done;
    (void)job;
    MC_TRY(mt_prepare_options_parse(argc, argv, &o, &done));
    if (done) {
        return MC_OK;
    }
    mc_status st = prepare(o);
    mt_prepare_options_free(o);
    return st;
}
