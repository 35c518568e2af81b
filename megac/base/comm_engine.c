/* Advances the operations under way of one world, and waits: some microseconds of spinning, then giving the core away,
 * then sleeping until a peer rings; always against the deadline and with an eye on the peers' lives. */
#include <linux/futex.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "megac/base/clock.h"
#include "megac/base/comm_impl.h"

enum {
    SPINS = 60,           /* about 2 us of pause instructions */
    YIELDS = 30,          /* then sleep, where peers can wake us */
    YIELDS_ALONE = 500,   /* with a core for each rank: waking takes longer than most waits, some 100 us */
    YIELDS_POLLED = 2000, /* looking again costs more than a yield there, but less than a sleep */
    SLEEP_NS = 50000000,  /* a wake-up can be missed by a dying peer only; the deadline and lives are looked at */
    SLEEP_POLLED_NS = 50000,
    MISSING_NAMED = 16,
};
static const double LIFE_SIGN_S = 0.1;

static void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#else
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
#endif
}

/* Shared between processes: no FUTEX_PRIVATE_FLAG. */
static void futex_wait(uint32_t *word, uint32_t seen, long ns)
{
    struct timespec t = {ns / 1000000000, ns % 1000000000};
    syscall(SYS_futex, word, FUTEX_WAIT, seen, &t, NULL, 0);
}

void mc_i_bell_ring(mc_i_bell *bell)
{
    if (__atomic_load_n(&bell->asleep, __ATOMIC_RELAXED)) {
        __atomic_fetch_add(&bell->count, 1, __ATOMIC_SEQ_CST);
        syscall(SYS_futex, &bell->count, FUTEX_WAKE, 1, NULL, NULL, 0);
    }
}

void mc_i_engine_init(mc_i_engine *e, double deadline_s, int local_size)
{
    cpu_set_t cpus;
    int n_cpus = sched_getaffinity(0, sizeof cpus, &cpus) == 0 ? CPU_COUNT(&cpus) : 1;
    *e = (mc_i_engine){.deadline_s = deadline_s, .n_spins = local_size <= n_cpus ? SPINS : 0, .n_ranks = 1};
    e->ledger = &e->own;
}

static void append(mc_i_engine *e, mc_i_queue *q, mc_request *req)
{
    if (q->head) {
        q->tail->next = req;
        q->tail = req;
        return;
    }
    q->head = q->tail = req;
    q->prev = NULL;
    q->next = e->busy;
    if (e->busy) {
        e->busy->prev = q;
    }
    e->busy = q;
    e->n_polled += q->ops->polled;
}

static void pop(mc_i_engine *e, mc_i_queue *q)
{
    mc_request *req = q->head;
    q->head = req->next;
    req->queued = false;
    req->done = true;
    mc_i_ledger_done(e->ledger, req);
    if (q->head) {
        return;
    }
    q->tail = NULL;
    *(q->prev ? &q->prev->next : &e->busy) = q->next;
    if (q->next) {
        q->next->prev = q->prev;
    }
    e->n_polled -= q->ops->polled;
}

/* A message failed. Ranks that disagree have been reported. */
static void report_lost(mc_i_engine *e, mc_i_queue *q)
{
    int ranks[MISSING_NAMED], n = q->ops->missing(q, q->head, ranks, MISSING_NAMED);
    if (e->failed == MC_COMM) {
        mc_i_report(e, MC_I_GONE, ranks, n < MISSING_NAMED ? n : MISSING_NAMED);
    }
}

/* True when something moved. A queue that fails fails the world. */
static bool advance_queue(mc_i_engine *e, mc_i_queue *q)
{
    bool moved = false;
    while (q->head && e->failed == MC_OK) {
        mc_status st = MC_OK;
        mc_i_progress p = q->ops->step(q, q->head, &st);
        if (p == MC_I_IDLE) {
            break;
        }
        moved = true;
        if (p == MC_I_DONE) {
            pop(e, q);
        } else if (p == MC_I_FAILED) {
            e->failed = st;
            report_lost(e, q);
        }
    }
    return moved;
}

static bool advance_all(mc_i_engine *e)
{
    bool moved = false;
    for (mc_i_queue *q = e->busy, *next; q; q = next) {
        next = q->next;
        moved |= advance_queue(e, q);
    }
    return moved;
}

mc_status mc_i_engine_push(mc_i_engine *e, mc_i_queue *q, mc_request *req)
{
    if (req->ledger_id == 0) {
        mc_i_ledger_begun(e->ledger, req);
    }
    req->queue = q;
    req->queued = true;
    req->next = NULL;
    append(e, q, req);
    advance_queue(e, q);
    return e->failed;
}

typedef struct waiting {
    mc_i_queue *q;
    mc_request *req;
    mc_i_ready_fn ready;
    long rounds;
    double begun_s, looked_s;
    bool shown; /* in the ledger */
} waiting;

/* The request that keeps this one: the queue's oldest. */
static const mc_request *blocker(const waiting *w)
{
    return w->req->queued && w->q->head ? w->q->head : w->req;
}

static mc_status time_is_up(mc_i_engine *e, const waiting *w, double now)
{
    int ranks[MISSING_NAMED], n = w->q->ops->missing(w->q, blocker(w), ranks, MISSING_NAMED);
    char who[160] = "";
    size_t used = 0;
    for (int i = 0; i < n && i < MISSING_NAMED && used < sizeof who; i++) {
        used += (size_t)snprintf(who + used, sizeof who - used, "%s%d", i ? ", " : "", ranks[i]);
    }
    const mc_request *req = w->req;
    mc_status st = MC_FAIL(MC_TIMEOUT,
                           "%s of %s #%llu (%zu bytes) waited %.1f s for rank%s %s%s, at step %lld; the report says "
                           "where it is; raise --distributed-timeout-minutes if it is only slow",
                           mc_i_kind_name(req->kind), req->comm->name, (unsigned long long)req->seq,
                           mc_i_request_bytes(req), now - w->begun_s, n == 1 ? "" : "s", n ? who : "(none: all came)",
                           n > MISSING_NAMED ? " and more" : "", (long long)mc_i_ledger_step(e->ledger));
    mc_i_report(e, MC_I_TIMED_OUT, ranks, n < MISSING_NAMED ? n : MISSING_NAMED);
    return st;
}

static mc_status check_lives(mc_i_engine *e, const waiting *w)
{
    int ranks[MISSING_NAMED], n = w->q->ops->missing(w->q, blocker(w), ranks, MISSING_NAMED);
    mc_i_ledger_waits(e->ledger, blocker(w)->ledger_id, w->begun_s, ranks, n);
    for (int i = 0; e->pids && i < n && i < MISSING_NAMED; i++) {
        int32_t pid = e->pids[ranks[i]];
        if (pid <= 0 || mc_i_process_state(pid) != 'X') {
            continue;
        }
        /* It may have done its part of this operation just before it left. */
        advance_all(e);
        if (e->failed != MC_OK || w->ready(w->q, w->req)) {
            return e->failed;
        }
        const mc_request *req = w->req;
        mc_status st =
            MC_FAIL(MC_COMM,
                    "rank %d (process %d) is gone while %s of %s #%llu (%zu bytes) waits for it, at step "
                    "%lld; see its last messages",
                    ranks[i], (int)pid, mc_i_kind_name(req->kind), req->comm->name, (unsigned long long)req->seq,
                    mc_i_request_bytes(req), (long long)mc_i_ledger_step(e->ledger));
        mc_i_report(e, MC_I_GONE, &ranks[i], 1);
        return st;
    }
    return MC_OK;
}

static void sleep_a_while(mc_i_engine *e, const waiting *w, double left_s)
{
    long ns = e->n_polled ? SLEEP_POLLED_NS : SLEEP_NS;
    if (left_s < 1e-9 * (double)ns) {
        ns = left_s > 0 ? (long)(left_s * 1e9) + 1 : 1;
    }
    if (!e->bell) {
        nanosleep(&(struct timespec){.tv_nsec = ns}, NULL);
        return;
    }
    __atomic_store_n(&e->bell->asleep, 1, __ATOMIC_SEQ_CST);
    uint32_t seen = __atomic_load_n(&e->bell->count, __ATOMIC_SEQ_CST);
    /* What changed before the peers could see `asleep` is seen here. */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (!advance_all(e) && !w->ready(w->q, w->req)) {
        futex_wait(&e->bell->count, seen, ns);
    }
    __atomic_store_n(&e->bell->asleep, 0, __ATOMIC_SEQ_CST);
}

static mc_status idle(mc_i_engine *e, waiting *w)
{
    long round = w->rounds++, yields = e->n_polled ? YIELDS_POLLED : e->n_spins ? YIELDS_ALONE : YIELDS;
    if (round < e->n_spins) {
        relax();
        return MC_OK;
    }
    if (round == e->n_spins && w->begun_s == 0) {
        w->begun_s = w->looked_s = mc_now();
    }
    if (round < e->n_spins + yields) {
        sched_yield();
        return MC_OK;
    }
    double now = mc_now(), left_s = w->begun_s + e->deadline_s - now;
    mc_status st = MC_OK;
    if (now - w->looked_s > LIFE_SIGN_S) {
        w->looked_s = now;
        w->shown = true;
        st = check_lives(e, w);
    }
    if (st == MC_OK && left_s <= 0) {
        st = time_is_up(e, w, now);
    }
    if (st == MC_OK) {
        sleep_a_while(e, w, left_s);
    } else {
        e->failed = st;
    }
    return st;
}

mc_status mc_i_engine_until(mc_i_engine *e, mc_i_queue *q, mc_request *req, mc_i_ready_fn ready)
{
    waiting w = {.q = q, .req = req, .ready = ready};
    if (e->failed != MC_OK) {
        return e->failed;
    }
    advance_queue(e, q);
    while (e->failed == MC_OK && !ready(q, req)) {
        if (advance_all(e)) {
            w.rounds = 0;
        } else {
            MC_TRY(idle(e, &w));
        }
    }
    if (w.shown) {
        mc_i_ledger_waits(e->ledger, 0, 0, NULL, 0);
    }
    return e->failed;
}

static bool is_done(const mc_i_queue *q, const mc_request *req)
{
    (void)q;
    return req->done;
}

mc_status mc_i_engine_wait(mc_i_engine *e, mc_request *req)
{
    if (req->done) {
        return MC_OK;
    }
    MC_ASSERT(req->queued);
    return mc_i_engine_until(e, req->queue, req, is_done);
}
