/* A progress bar on standard error: one line, redrawn a few times a second, only when that is a terminal. */
#ifndef DATASETS_DS_PROGRESS_H
#define DATASETS_DS_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct ds_i_progress {
    bool on;
    uint64_t total_bytes; /* 0: not known */
    double start, last;   /* seconds, monotonic */
} ds_i_progress;

void ds_i_progress_begin(ds_i_progress *p, bool wanted, uint64_t total_bytes);
void ds_i_progress_show(ds_i_progress *p, uint64_t done_bytes, uint64_t n_tokens);
/* Clears the line. */
void ds_i_progress_end(ds_i_progress *p);

#ifdef __cplusplus
}
#endif
#endif
