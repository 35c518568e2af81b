/* Processes of a job on this machine: started, watched, and ended together. */
#ifndef MEGAC_TRAIN_COMMANDS_LAUNCH_H
#define MEGAC_TRAIN_COMMANDS_LAUNCH_H

#include "megac/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct mt_launch {
    const char *program; /* path, or a name that PATH finds */
    char **argv;         /* of each rank, NULL at the end; argv[0] is the program */
    int n_local, n_nodes, node_rank;
    const char *master_addr;
    int master_port;
    int master_fd; /* a socket that listens there, for rank 0; -1: rank 0 opens its own */
} mt_launch;

/* Runs the ranks with torchrun's variables and returns when all have ended. The first that fails ends the others: a
 * moment later with SIGTERM, 5 s after that with SIGKILL; signals that ask this process to end or to do something
 * (INT, TERM, HUP, USR1, USR2) are passed on. The status has the exit status of the first rank that failed: 75
 * MC_STOPPED, 2 MC_INVALID, any other MC_COMM; a rank that a signal ended is named. */
mc_status mt_launch_run(const mt_launch *launch) MC_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
