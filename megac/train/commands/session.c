/* What commands that run on ranks begin and end with. */
#include <string.h>
#include <time.h>

#include "megac/base/alloc.h"
#include "megac/base/log.h"
#include "megac/train/commands/commands.h"
#include "megac/train/stop.h"

static mc_status compare(const mt_session *s)
{
    char *text;
    MC_TRY(mt_options_text(s->o, &text));
    mc_status st = mc_world_agree(s->world, text);
    mc_free(text);
    return st;
}

static void set_log_level(const char *name)
{
    static const char *const names[] = {"error", "warning", "info", "debug"};
    for (int i = 0; i < 4; i++) {
        if (strcmp(name, names[i]) == 0) {
            mc_log_set_level((mc_log_level)i);
        }
    }
}

/* The model's shape from the checkpoint, where the command wants it from there. */
static mc_status adopt(mt_session *s)
{
    return mt_options_need_checkpoint(s->o) && s->weights
               ? mt_options_adopt(s->o, s->start.path, mt_weights_config(s->weights))
               : MC_OK;
}

static mc_status open_weights(mt_session *s)
{
    s->start = mt_start_of(s->o);
    return s->start.path ? mt_weights_open(s->start.path, s->start.step, &s->weights) : MC_OK;
}

void mt_session_drop_weights(mt_session *s)
{
    mt_weights_close(s->weights);
    s->weights = NULL;
}

/* A run goes on with the model that it began with: another activation or fewer layers would load without a word. Only
 * --finetune may change what the shapes of the tensors allow. */
static mc_status check_same_model(const mt_session *s)
{
    mt_options *o = s->o;
    char list[1024] = "";
    if (o->command == MT_TRAIN && s->weights && !o->use_checkpoint_args) {
        MC_TRY(mt_options_differences(o, mt_weights_config(s->weights), list, sizeof list));
    }
    if (!list[0]) {
        return MC_OK;
    }
    if (o->finetune) {
        MC_WARN("--finetune: the model differs from %s: %s", s->start.path, list);
        return MC_OK;
    }
    return MC_FAIL(MC_MISMATCH,
                   "the model differs from %s %s: %s; give the flags that it was trained with, or "
                   "--use-checkpoint-args",
                   s->start.flag, s->start.path, list);
}

/* The hosts' communicator: under NCCL the launcher's. */
static const char *host_comm(const mt_options *o)
{
    return o->comm && strcmp(o->comm, "nccl") == 0 ? NULL : o->comm;
}

mc_status mt_session_open(mt_session *s, mt_command command, const mc_job *job, int argc, char **argv)
{
    *s = (mt_session){0};
    mc_status st;
    MC_TRY(mt_options_parse(command, argc, argv, &s->o, &s->done));
    if (s->done) {
        return MC_OK;
    }
    set_log_level(s->o->log_level);
    MC_TRY_GOTO(st, open_weights(s), undo_session);
    MC_TRY_GOTO(st, adopt(s), undo_session);
    MC_TRY_GOTO(st, mt_options_finish(s->o, job->size), undo_session);
    MC_TRY_GOTO(st, check_same_model(s), undo_session);
    MC_TRY_GOTO(st, mc_world_open(job, host_comm(s->o), 60.0 * s->o->distributed_timeout_minutes, &s->world),
                undo_session);
    MC_TRY_GOTO(st, compare(s), undo_session);
    MC_TRY_GOTO(st, mc_world_watch(s->world), undo_session);
    return MC_OK;
undo_session:
    mt_session_close(s, st);
    return st;
}

mc_status mt_session_started(mc_world *world)
{
    char said[MC_LOG_HELD_BYTES];
    mc_log_copy_held(said);
    MC_TRY(mc_comm_broadcast(mc_world_comm(world), mc_tensor_1d(said, MC_U8, sizeof said), 0));
    mc_log_drop_held(said);
    mc_log_flush_held();
    mc_log_hold(false);
    return MC_OK;
}

void mt_let_rank_0_speak(int rank)
{
    if (rank > 0) {
        mt_stop_unblock(); /* nothing is left to save: a launcher may end this rank before it repeats what rank 0 says
                            */
        nanosleep(&(struct timespec){.tv_nsec = 300 * 1000 * 1000}, NULL);
        mc_log_flush_held();
    }
}

void mt_session_close(mt_session *s, mc_status st)
{
    if (s->world && st != MC_OK && st != MC_STOPPED) {
        mt_let_rank_0_speak(mc_world_job(s->world)->rank); /* ending the job ends the others' messages */
    }
    if (s->world) {
        mc_world_close(s->world, st != MC_OK && st != MC_STOPPED, mc_status_exit(st));
    }
    mt_session_drop_weights(s);
    mt_options_free(s->o);
    *s = (mt_session){0};
}
