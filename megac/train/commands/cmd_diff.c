/* megac diff: the first tensor in which two traced runs differ. */
#include <stdio.h>

#include "megac/train/commands/commands.h"
#include "megac/train/model/trace.h"

mc_status mt_cmd_diff(const mc_job *job, int argc, char **argv)
{
    mt_diff_options *o;
    bool done, same = false;
    (void)job;
    MC_TRY(mt_diff_options_parse(argc, argv, &o, &done));
    if (done) {
        return MC_OK;
    }
    mc_status st = mt_trace_diff(o->a, o->b, o->tolerance, stdout, &same);
    if (st == MC_OK && !same) {
        st = MC_FAIL(MC_NUMERIC, "%s and %s differ", o->a, o->b);
    }
    mt_diff_options_free(o);
    return st;
}
