/* megac eval: loss and perplexity of a checkpoint on a dataset. */
#include <math.h>
#include <stdio.h>

#include "megac/base/clock.h"
#include "megac/train/commands/commands.h"
#include "megac/train/run.h"

/* --token-losses: a row for each window that this evaluation reads. */
static mc_status open_record(mt_engine *e, const mt_feed *feed, int64_t n_steps, mt_token_losses **record_out)
{
    const mt_setup *s = &e->setup;
    int64_t n_micros;
    if (!s->o->token_losses) {
        return MC_OK;
    }
    MC_TRY(mt_evaluation_micros(s, feed->source, n_steps, &n_micros));
    uint64_t windows = n_steps > 0 ? (uint64_t)(n_micros * s->o->micro_batch_size * s->grid.size[MC_AXIS_DP])
                                   : ds_source_epoch_samples(feed->source);
    return mt_token_losses_create(e, s->o->token_losses, windows, record_out);
}

static mc_status run(mt_engine *e, const mt_feed *feed, double started)
{
    const mt_options *o = e->setup.o;
    int64_t n_steps = mt_options_given(o, &o->eval_iters) ? o->eval_iters : 0;
    mt_token_losses *record = NULL;
    double loss, tokens;
    mc_status st;
    MC_TRY(open_record(e, feed, n_steps, &record));
    MC_TRY_GOTO(st, mt_session_started(e->world), undo_record);
    MC_TRY_GOTO(st, mt_evaluate(e, feed, n_steps, record, &loss, &tokens), undo_record);
    if (record) {
        MC_TRY_GOTO(st, mt_token_losses_finish(record), undo_record);
    }
    if (mc_world_job(e->world)->rank == 0) {
        printf("loss %.6f | perplexity %.4f | over %.0f tokens | %.1f s\n", loss, exp(loss), tokens,
               mc_now() - started);
    }
undo_record:
    mt_token_losses_destroy(record);
    return st;
}

static mc_status evaluate(mt_session *s, mt_engine **e, mt_feed *feed)
{
    double started = mc_now();
    const mt_options *o = s->o;
    MC_TRY(mt_source_open(o, DS_VALID, !mt_options_given(o, &o->split), &feed->source));
    if (!feed->source) {
        return MC_FAIL(
            MC_INVALID,
            "no data to evaluate on: give --data-path PREFIX, with --split SHARES for its validation share alone");
    }
    MC_TRY(mt_engine_create(o, MT_FOR_EVALUATION, s->world, feed->source, e));
    MC_TRY(mt_engine_load(*e, s->weights));
    mt_session_drop_weights(s);
    MC_TRY(mt_feed_open(*e, feed));
    return run(*e, feed, started);
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
    mc_status st = evaluate(&session, &e, &feed);
    mt_feed_close(&feed);
    mt_engine_destroy(e);
    mt_session_close(&session, st);
    return st;
}
