/* Signals that ask a run to save and stop: SIGTERM, SIGUSR1, SIGINT. The first one is noted, for the loop to see after
 * the step under way; a second one ends the process at once, as it does without this. */
#ifndef MEGAC_TRAIN_STOP_H
#define MEGAC_TRAIN_STOP_H

#include <stdbool.h>

#include "megac/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* In the calling thread and those that it will start these signals wait: call before any thread exists, so that they
 * reach the watcher and no one else. */
void mt_stop_block(void);
/* Undoes that in the calling thread: they end the process again. */
void mt_stop_unblock(void);

typedef struct mt_stop mt_stop;

/* Starts the watching thread. MC_IO. */
mc_status mt_stop_open(mt_stop **stop_out) MC_MUST_CHECK;
/* NULL allowed. */
void mt_stop_close(mt_stop *stop);
/* Whether a signal came. False for NULL. */
bool mt_stop_wanted(const mt_stop *stop);

#ifdef __cplusplus
}
#endif
#endif
