#include "megac/base/pool.h"

#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "megac/base/alloc.h"

/* Spins of about 10 ns each before a thread goes to sleep: longer than the serial gaps inside a step, far shorter than
 * a time slice. */
enum { SPINS = 2000, LINE = 64, CLOSED = 0x7fffffff };

typedef struct worker {
    struct mc_pool *pool;
    pthread_t thread;
    int index;
    void *scratch;
} worker;

struct mc_pool {
    int n_threads, n_started;
    size_t scratch_bytes;
    unsigned char *slab;
    worker *workers;
    /* The current job. `ticket` packs (generation << 32 | next task), so that a thread which wakes late can never take
     * a task of a job it has not seen. */
    _Alignas(LINE) _Atomic uint64_t ticket;
    _Alignas(LINE) _Atomic uint32_t generation; /* futex: workers sleep on it */
    _Atomic uint32_t sleepers;
    _Alignas(LINE) _Atomic uint32_t unfinished; /* futex: the caller sleeps on it */
    _Atomic uint32_t caller_sleeps;
    _Atomic int n_tasks;
    mc_task_fn fn;
    void *arg;
    _Atomic int stop;
};

static void futex_wait(_Atomic uint32_t *word, uint32_t seen)
{
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}

static void futex_wake(_Atomic uint32_t *word)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

static inline void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Takes tasks of generation `gen` until there are none left. */
static void work(mc_pool *pool, uint32_t gen, int thread, void *scratch)
{
    uint64_t t = atomic_load_explicit(&pool->ticket, memory_order_acquire);
    for (;;) {
        if ((uint32_t)(t >> 32) != gen) {
            return;
        }
        int task = (int)(uint32_t)t;
        if (task >= atomic_load_explicit(&pool->n_tasks, memory_order_relaxed)) {
            return;
        }
        if (!atomic_compare_exchange_weak_explicit(&pool->ticket, &t, t + 1, memory_order_acq_rel,
                                                   memory_order_acquire)) {
            continue;
        }
        pool->fn(pool->arg, task, thread, scratch);
        if (atomic_fetch_sub(&pool->unfinished, 1) == 1 && atomic_load(&pool->caller_sleeps)) {
            futex_wake(&pool->unfinished);
        }
        t = atomic_load_explicit(&pool->ticket, memory_order_acquire);
    }
}

static void *worker_main(void *arg)
{
    worker *w = arg;
    mc_pool *pool = w->pool;
    uint32_t seen = 0;
    for (;;) {
        for (int i = 0; i < SPINS && atomic_load(&pool->generation) == seen; i++) {
            relax();
        }
        while (atomic_load(&pool->generation) == seen) {
            atomic_fetch_add(&pool->sleepers, 1);
            futex_wait(&pool->generation, seen);
            atomic_fetch_sub(&pool->sleepers, 1);
        }
        if (atomic_load(&pool->stop)) {
            return NULL;
        }
        seen = atomic_load(&pool->generation);
        work(pool, seen, w->index, w->scratch);
    }
}

size_t mc_pool_plan_bytes(int n_threads, size_t scratch_bytes)
{
    size_t rounded = (scratch_bytes + LINE - 1) / LINE * LINE;
    return (size_t)n_threads * rounded;
}

mc_status mc_pool_create(int n_threads, size_t scratch_bytes, mc_pool **pool_out)
{
    MC_ASSERT(n_threads >= 1);
    mc_pool *pool = NULL;
    MC_TRY(MC_NEW(&pool, "thread pool"));
    pool->scratch_bytes = (scratch_bytes + LINE - 1) / LINE * LINE;
    pool->n_threads = n_threads;
    mc_status st;
    MC_TRY_GOTO(st, MC_NEW_N(&pool->workers, n_threads, "thread pool workers"), undo_pool);
    MC_TRY_GOTO(st, MC_NEW_N(&pool->slab, mc_pool_plan_bytes(n_threads, scratch_bytes), "thread pool scratch"),
                undo_pool);
    for (int i = 0; i < n_threads; i++) {
        pool->workers[i] = (worker){.pool = pool, .index = i, .scratch = pool->slab + (size_t)i * pool->scratch_bytes};
    }
    for (pool->n_started = 1; pool->n_started < n_threads; pool->n_started++) {
        worker *w = &pool->workers[pool->n_started];
        int err = pthread_create(&w->thread, NULL, worker_main, w);
        if (err) {
            st = MC_FAIL(MC_UNSUPPORTED, "--num-threads %d: the system refused thread %d (error %d); use fewer threads",
                         n_threads, pool->n_started, err);
            goto undo_pool;
        }
    }
    *pool_out = pool;
    return MC_OK;
undo_pool:
    mc_pool_destroy(pool);
    return st;
}

void mc_pool_destroy(mc_pool *pool)
{
    if (!pool) {
        return;
    }
    atomic_store(&pool->stop, 1);
    atomic_fetch_add(&pool->generation, 1);
    futex_wake(&pool->generation);
    for (int i = 1; i < pool->n_started; i++) {
        pthread_join(pool->workers[i].thread, NULL);
    }
    mc_free(pool->slab);
    mc_free(pool->workers);
    mc_free(pool);
}

int mc_pool_threads(const mc_pool *pool)
{
    return pool->n_threads;
}

size_t mc_pool_scratch_bytes(const mc_pool *pool)
{
    return pool->scratch_bytes;
}

void *mc_pool_scratch(mc_pool *pool)
{
    return pool->slab;
}

/* Waits until every task of the current job is done: spins, then sleeps. */
static void await_finish(mc_pool *pool)
{
    for (int i = 0; i < SPINS && atomic_load(&pool->unfinished); i++) {
        relax();
    }
    uint32_t left;
    while ((left = atomic_load(&pool->unfinished)) != 0) {
        atomic_store(&pool->caller_sleeps, 1);
        futex_wait(&pool->unfinished, left);
        atomic_store(&pool->caller_sleeps, 0);
    }
}

void mc_pool_run(mc_pool *pool, int n_tasks, mc_task_fn fn, void *arg)
{
    if (pool->n_threads == 1 || n_tasks <= 1) {
        for (int i = 0; i < n_tasks; i++) {
            fn(arg, i, 0, pool->workers[0].scratch);
        }
        return;
    }
    uint32_t gen = atomic_load(&pool->generation) + 1;
    /* Close the old job first: a worker still leaving it must not pair its ticket with the new number of tasks. */
    atomic_store(&pool->ticket, (uint64_t)gen << 32 | CLOSED);
    atomic_store(&pool->n_tasks, n_tasks);
    pool->fn = fn;
    pool->arg = arg;
    atomic_store(&pool->unfinished, (uint32_t)n_tasks);
    atomic_store(&pool->ticket, (uint64_t)gen << 32);
    atomic_store(&pool->generation, gen);
    if (atomic_load(&pool->sleepers)) {
        futex_wake(&pool->generation);
    }
    work(pool, gen, 0, pool->workers[0].scratch);
    await_finish(pool);
}

void mc_pool_range(long n, int parts, int part, long unit, long *begin_out, long *end_out)
{
    long units = (n + unit - 1) / unit, each = units / parts, more = units % parts;
    long first = part * each + (part < more ? part : more);
    long last = first + each + (part < more ? 1 : 0);
    *begin_out = first * unit < n ? first * unit : n;
    *end_out = last * unit < n ? last * unit : n;
}
