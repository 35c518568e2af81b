/* A pool of CPU threads that runs numbered tasks. The caller takes part; tasks are handed out by an atomic counter, so
 * that when the machine takes a core away the other threads do its share. What a task computes must depend on its
 * number only, never on the thread that runs it. Idle threads spin for some microseconds, then sleep on a futex:
 * nothing spins for ever. One pool serves one caller thread at a time; tasks must not start tasks. */
#ifndef MEGAC_BASE_POOL_H
#define MEGAC_BASE_POOL_H

#include <stddef.h>

#include "megac/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct mc_pool mc_pool;

/* `thread` in [0, mc_pool_threads()); `scratch` is that thread's own, `scratch_bytes` long, 64-byte aligned, not
 * cleared. */
typedef void (*mc_task_fn)(void *arg, int task, int thread, void *scratch);

/* Starts n_threads - 1 threads (n_threads >= 1), each with its scratch. MC_NOMEM, or MC_UNSUPPORTED when the system
 * refuses a thread. */
mc_status mc_pool_create(int n_threads, size_t scratch_bytes, mc_pool **pool_out) MC_MUST_CHECK;
void mc_pool_destroy(mc_pool *pool); /* NULL allowed */

int mc_pool_threads(const mc_pool *pool);
size_t mc_pool_scratch_bytes(const mc_pool *pool);
/* The scratch of all threads, one after another. What a run's tasks leave there lasts until the next run's tasks write
 * their own. */
void *mc_pool_scratch(mc_pool *pool);
/* Bytes the pool occupies: what `megac plan` reports for it. */
size_t mc_pool_plan_bytes(int n_threads, size_t scratch_bytes);

/* Runs fn(arg, 0 .. n_tasks - 1); returns when all are done. With one thread or one task it is a plain loop. */
void mc_pool_run(mc_pool *pool, int n_tasks, mc_task_fn fn, void *arg);

/* Splits [0, n) into `parts` nearly equal ranges on multiples of `unit`; writes range `part`. */
void mc_pool_range(long n, int parts, int part, long unit, long *begin_out, long *end_out);

#ifdef __cplusplus
}
#endif
#endif
