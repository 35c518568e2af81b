/* The watch over a rank's own work. Where a disk hangs for one rank, the others wait for it and their deadline ends the
 * job; where it hangs for all, nobody waits for anybody, and this thread is the one that sees it. */
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "megac/base/alloc.h"
#include "megac/base/clock.h"
#include "megac/base/log.h"
#include "megac/base/world_impl.h"

struct mc_i_watch {
    mc_i_engine *engine;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool started, closing;
    uint64_t own_reads; /* bytes of /proc/self/io that this thread has read: it counts them too */
};

/* Others that wait for the same speak first. */
static const double LATER_S = 1, LEAST_PERIOD_S = 0.05, MOST_PERIOD_S = 2;

/* Bytes that the process has moved so far; 0 where the system does not tell. */
static uint64_t bytes_moved(mc_i_watch *w)
{
    static const char *const keys[] = {"rchar: ", "wchar: ", "\nread_bytes: ", "\nwrite_bytes: "};
    char text[512];
    uint64_t sum = 0;
    int fd = open("/proc/self/io", O_RDONLY | O_CLOEXEC);
    ssize_t n = fd >= 0 ? read(fd, text, sizeof text - 1) : 0;
    if (fd >= 0) {
        close(fd);
    }
    text[n > 0 ? n : 0] = '\0';
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        unsigned long long value = 0;
        const char *at = strstr(text, keys[i]);
        sum += at && sscanf(at + strlen(keys[i]), "%llu", &value) == 1 ? value : 0;
    }
    sum -= n > 0 ? w->own_reads : 0;
    w->own_reads += n > 0 ? (uint64_t)n : 0;
    return sum;
}

/* False when the watch closes. */
static bool pause_for(mc_i_watch *w, double seconds)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    double end = (double)until.tv_sec + 1e-9 * (double)until.tv_nsec + seconds;
    until.tv_sec = (time_t)end;
    until.tv_nsec = (long)((end - (double)until.tv_sec) * 1e9);
    pthread_mutex_lock(&w->lock);
    int err = 0;
    while (!w->closing && err == 0) {
        err = pthread_cond_timedwait(&w->changed, &w->lock, &until);
    }
    bool goes_on = !w->closing;
    pthread_mutex_unlock(&w->lock);
    return goes_on;
}

static void *watch(void *arg)
{
    mc_i_watch *w = arg;
    double deadline = w->engine->deadline_s, period = deadline / 8, since = mc_now();
    uint64_t last_id = 0, last_bytes = 0;
    period = period < LEAST_PERIOD_S ? LEAST_PERIOD_S : period > MOST_PERIOD_S ? MOST_PERIOD_S : period;
    while (pause_for(w, period)) {
        mc_i_ledger_row row;
        bool busy = mc_i_ledger_get_own(w->engine->ledger, &row);
        uint64_t bytes = busy ? bytes_moved(w) : 0;
        if (!busy || row.id != last_id || bytes != last_bytes) {
            since = mc_now();
            last_id = busy ? row.id : 0;
            last_bytes = bytes;
            continue;
        }
        if (mc_now() - since > deadline + LATER_S) {
            mc_log(MC_LOG_ERROR, __FILE__, __LINE__,
                   "\"%s\" has not moved for %.1f s, at step %lld; is the disk reachable? Where it is only slow, raise "
                   "--distributed-timeout-minutes",
                   row.name, mc_now() - since, (long long)row.step);
            mc_i_report(w->engine, MC_I_STUCK, NULL, 0);
            break;
        }
    }
    return NULL;
}

/* Signals are for the program's own threads. */
static int start(mc_i_watch *w)
{
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int err = pthread_create(&w->thread, NULL, watch, w);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return err;
}

mc_status mc_world_watch(mc_world *world)
{
    if (world->job.size == 1) {
        return MC_OK;
    }
    mc_i_watch *w;
    pthread_condattr_t monotonic;
    MC_TRY(MC_NEW(&w, "watch"));
    w->engine = &world->engine;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    int err = start(w);
    w->started = err == 0;
    if (err) {
        mc_i_watch_destroy(w);
        return MC_FAIL(MC_UNSUPPORTED, "the system refused the watch's thread: %s", strerror(err));
    }
    world->watch = w;
    return MC_OK;
}

void mc_i_watch_destroy(mc_i_watch *w)
{
    if (!w) {
        return;
    }
    if (w->started) {
        pthread_mutex_lock(&w->lock);
        w->closing = true;
        pthread_cond_signal(&w->changed);
        pthread_mutex_unlock(&w->lock);
        pthread_join(w->thread, NULL);
    }
    pthread_cond_destroy(&w->changed);
    pthread_mutex_destroy(&w->lock);
    mc_free(w);
}
