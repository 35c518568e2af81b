/* Saving a run: in the foreground, or (--async-save) from a snapshot in a thread while training goes on; and which
 * checkpoints stay. */
#ifndef MEGAC_TRAIN_CHECKPOINT_SAVER_H
#define MEGAC_TRAIN_CHECKPOINT_SAVER_H

#include <pthread.h>

#include "megac/train/checkpoint/ckpt_contents.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The save under way. */
typedef struct mt_saver {
    mt_ckpt_writer *writer; /* NULL: none */
    mt_contents contents;
    char *config;
    double *recent; /* the last steps' losses, then their norms */
    int64_t iteration;
    int64_t best_iteration; /* as it was when the save began */
    pthread_t thread;
    bool threaded;
    int done;            /* the thread has written this rank's shard */
    mc_status written;   /* how that went */
    double begun, wrote; /* clock */
    double waited;       /* seconds that training stood still */
    double last_save;    /* clock of the last begin, or of the run's start */
    int lock;            /* of the save directory, rank 0; -1: none */
} mt_saver;

struct mt_run;

/* Rank 0 locks SAVE for the life of the run. MC_INVALID where another run has it. */
mc_status mt_saver_open(struct mt_run *run) MC_MUST_CHECK;
/* After an error a save under way is given up. */
void mt_saver_close(struct mt_run *run);

/* Begins to save the run as it stands, after what is still under way. With `now` it is complete on return, otherwise
 * with --async-save once mt_saver_poll has seen all ranks done. Collective. */
mc_status mt_run_save(struct mt_run *run, bool now) MC_MUST_CHECK;
/* Whether this rank's part of a save in the background is written. */
bool mt_saver_written(const mt_saver *s);
/* `n_written`: ranks that said so in the step's exchange. Completes the save when these are all. Collective. */
mc_status mt_saver_poll(struct mt_run *run, int n_written) MC_MUST_CHECK;
/* Waits for a save under way. Collective. */
mc_status mt_saver_finish(struct mt_run *run) MC_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
