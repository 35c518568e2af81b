/* The commands. Each gets what follows its name on the command line, and returns a status whose exit code main uses. */
#ifndef MEGAC_TRAIN_COMMANDS_COMMANDS_H
#define MEGAC_TRAIN_COMMANDS_COMMANDS_H

#include "megac/base/world.h"
#include "megac/train/options/options.h"
#include "megac/train/weights.h"

#ifdef __cplusplus
extern "C" {
#endif

#define MT_COMMAND(name, summary) mc_status mt_cmd_##name(const mc_job *job, int argc, char **argv);
#include "megac/train/commands/commands.def"
#undef MT_COMMAND

/* Options of a command that runs on ranks, and the open world. */
typedef struct mt_session {
    mt_options *o;
    mc_world *world;
    mt_start start;      /* what the model begins with, */
    mt_weights *weights; /* open until it is loaded; NULL: initial values */
    bool done;           /* --help or --print-config was served: nothing to run */
} mt_session;

/* Parses, finishes and compares the options over all ranks. On failure everything is closed again. */
mc_status mt_session_open(mt_session *s, mt_command command, const mc_job *job, int argc, char **argv) MC_MUST_CHECK;
/* The weights are loaded: closes them. */
void mt_session_drop_weights(mt_session *s);
/* Set-up is over: what only one rank had to say is printed, and from now on every rank speaks for itself (log.h).
 * Collective. */
mc_status mt_session_started(mc_world *world) MC_MUST_CHECK;
/* Called by a rank that failed, before it ends the others: waits a moment on ranks > 0, since rank 0 most likely says
 * the same, then prints what was held back. */
void mt_let_rank_0_speak(int rank);
/* Leaves the job with the command's status. */
void mt_session_close(mt_session *s, mc_status st);

#ifdef __cplusplus
}
#endif
#endif
