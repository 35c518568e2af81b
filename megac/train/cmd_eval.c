/* megac eval: loss and perplexity of a checkpoint on a dataset. */
#include <math.h>
#include <stdio.h>

#include "megac/train/commands.h"
#include "megac/train/run.h"

static mc_status evaluate(const mt_options *o, mc_world *world, mt_engine **e, mt_feed *feed)
{
    double loss, tokens, started = mt_now();
    int64_t step = mc_given_int(o->ckpt_step) ? o->ckpt_step : -1;
    MC_TRY(mt_source_open(o, DS_VALID, !mt_options_given(o, &o->split), &feed->source));
    if (!feed->source) {
        return MC_FAIL(
            MC_INVALID,
            "no data to evaluate on: give --data-path PREFIX, with --split SHARES for its validation share alone");
    }
    MC_TRY(mt_engine_create(o, MT_FOR_EVALUATION, world, feed->source, e));
    MC_TRY(mt_engine_load(*e, o->load, step));
    MC_TRY(mt_feed_open(*e, feed));
    MC_TRY(mt_session_started(world));
    MC_TRY(mt_evaluate(*e, feed, mt_options_given(o, &o->eval_iters) ? o->eval_iters : 0, &loss, &tokens));
    if (mc_world_job(world)->rank == 0) {
        printf("loss %.6f | perplexity %.4f | over %.0f tokens | %.1f s\n", loss, exp(loss), tokens,
               mt_now() - started);
    }
    return MC_OK;
}

mc_status mt_cmd_eval(const mc_job *job, int argc, char **argv)
{
    mt_session session;
    mt_engine *e = NULL;
    mt_feed feed = {0};
    MC_TRY(mt_session_open(&session, MT_EVAL, job, argc, argv));
    if (session.done) {
        return MC_OK;
    }
    mc_status st = evaluate(session.o, session.world, &e, &feed);
    mt_feed_close(&feed);
    mt_engine_destroy(e);
    mt_session_close(&session, st);
    return st;
}
