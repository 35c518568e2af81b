/* megac inspect: what is in a dataset or a checkpoint; where two checkpoints differ. */
#include <stdio.h>

#include "datasets/ds_inspect.h"
#include "megac/train/checkpoint/ckpt_inspect.h"
#include "megac/train/commands/commands.h"

mc_status mt_cmd_inspect(const mc_job *job, int argc, char **argv)
{
    mt_inspect_options *o;
    bool done;
    (void)job;
    MC_TRY(mt_inspect_options_parse(argc, argv, &o, &done));
    if (done) {
        return MC_OK;
    }
    mc_status st;
    if (o->other && (!mt_checkpoint_is(o->file) || !mt_checkpoint_is(o->other))) {
        const char *neither = mt_checkpoint_is(o->file) ? o->other : o->file;
        st =
            MC_FAIL(MC_INVALID, "%s is no checkpoint: two checkpoints can be compared, or one file looked at", neither);
    } else if (o->other) {
        st = mt_checkpoint_compare(o->file, o->other, o->verify, o->json, stdout);
    } else if (mt_checkpoint_is(o->file)) {
        st = mt_checkpoint_inspect(o->file, o->verify, o->json, stdout);
    } else {
        st = ds_inspect(o->file, o->verify, o->json, (int)o->tokens, stdout);
    }
    mt_inspect_options_free(o);
    return st;
}
