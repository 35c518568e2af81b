/* The report of a failure: which ranks hold the others up, and what each did last, read from their ledgers.
 *
 *   watchdog: report of rank R at step S: VERDICT
 *   watchdog: rank R, process P (STATE), step S: what it is doing
 *   watchdog: rank R did: OPERATION            the last few, oldest first
 *
 * Ranks that hold the others up come first, then ranks that wait for them, then the rank that reports. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "megac/base/clock.h"
#include "megac/base/comm_impl.h"
#include "megac/base/log.h"

enum {
    SEEN = 256, /* ranks looked at */
    REPORTED_RANKS = 8,
    REPORTED_OPS = 6,
    OTHERS_WAIT_MS = 1000, /* for the one that reports */
};
enum { NOT_YET, UNDER_WAY, PRINTED }; /* mc_i_board.report */

char mc_i_process_state(int32_t pid)
{
    if (kill(pid, 0) != 0) {
        return errno == ESRCH ? 'X' : '?';
    }
    char path[64], line[256];
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    FILE *f = fopen(path, "r");
    if (!f) {
        return errno == ENOENT ? 'X' : '?';
    }
    size_t n = fread(line, 1, sizeof line - 1, f);
    fclose(f);
    line[n] = '\0';
    const char *state = strrchr(line, ')'); /* "pid (name) S ...": the name may hold anything */
    return !state || !state[1] || !state[2] ? '?' : state[2] == 'Z' ? 'X' : state[2];
}

static const char *state_name(char state)
{
    switch (state) {
    case 'X':
        return "gone";
    case 'T':
    case 't':
        return "stopped";
    case 'D':
        return "waits for a disk";
    case 'R':
        return "runs";
    case 'S':
        return "sleeps";
    default:
        return "state not known";
    }
}

typedef struct seen {
    int rank;
    char state;
    const mc_i_ledger *ledger; /* NULL: cannot be read here */
    bool holds_up;             /* it is no more, is stopped, or waits for nobody */
    bool waits;
    mc_i_ledger_wait wait;
} seen;

typedef struct sight {
    const mc_i_engine *e;
    double now_s;
    seen ranks[SEEN];
    int n;
} sight;

static seen look(const mc_i_engine *e, int rank)
{
    seen s = {.rank = rank, .state = '?'};
    if (rank == e->rank) {
        s.ledger = e->ledger;
    } else if (e->boards && e->boards[rank]) {
        s.ledger = &e->boards[rank]->ledger;
    }
    if (e->pids && e->pids[rank] > 0) {
        s.state = mc_i_process_state(e->pids[rank]);
    }
    s.waits = s.ledger && mc_i_ledger_get_wait(s.ledger, &s.wait);
    s.holds_up = !s.waits || strchr("XTtD", s.state);
    return s;
}

static void add(sight *v, int rank)
{
    for (int i = 0; i < v->n; i++) {
        if (v->ranks[i].rank == rank) {
            return;
        }
    }
    if (rank >= 0 && rank < v->e->n_ranks && rank != v->e->rank && v->n < SEEN) {
        v->ranks[v->n++] = look(v->e, rank);
    }
}

/* Those named, those that these wait for, and so on. After a wait of the whole deadline every rank that does not wait
 * itself is of interest; where none was named and all wait, all are. */
static void look_around(sight *v, mc_i_reason why, const int *ranks, int n)
{
    bool all = why == MC_I_TIMED_OUT || why == MC_I_STUCK;
    for (int i = 0; i < n; i++) {
        add(v, ranks[i]);
    }
    for (int i = 0; i < v->n && all; i++) {
        const mc_i_ledger_wait wait = v->ranks[i].wait;
        for (int k = 0; v->ranks[i].waits && k < wait.n && k < MC_I_LEDGER_MISSING; k++) {
            add(v, wait.ranks[k]);
        }
    }
    for (int pass = 0; pass < 2 && v->e->boards && all; pass++) {
        bool nobody = v->n == 0;
        for (int r = 0; r < v->e->n_ranks; r++) {
            if (v->e->boards[r] && r != v->e->rank && (pass ? nobody : look(v->e, r).holds_up)) {
                add(v, r);
            }
        }
    }
}

static size_t append_rank(char *text, size_t used, size_t cap, int rank)
{
    return used >= cap ? used : used + (size_t)snprintf(text + used, cap - used, "%s%d", used ? ", " : "", rank);
}

/* Of all ranks seen, or of those that hold up the others. */
static int list_ranks(const sight *v, bool all, char *text, size_t cap)
{
    size_t used = 0;
    int n = 0;
    text[0] = '\0';
    for (int i = 0; i < v->n; i++) {
        if (all || v->ranks[i].holds_up) {
            used = append_rank(text, used, cap, v->ranks[i].rank);
            n++;
        }
    }
    return n;
}

static void say_verdict(const sight *v, mc_i_reason why)
{
    char who[160], text[200];
    int n = list_ranks(v, false, who, sizeof who);
    if (why == MC_I_STUCK) {
        snprintf(text, sizeof text, "its own work does not move");
    } else if (why == MC_I_TIMED_OUT && n > 0) {
        snprintf(text, sizeof text, "rank%s %s hold%s up the others", n == 1 ? "" : "s", who, n == 1 ? "s" : "");
    } else {
        n = list_ranks(v, true, who, sizeof who);
        snprintf(text, sizeof text, "rank%s %s %s", n == 1 ? "" : "s", who,
                 why == MC_I_DISAGREE ? "and this rank call different operations"
                 : why == MC_I_GONE   ? (n == 1 ? "is gone" : "are gone")
                                      : "and this rank wait for each other");
    }
    mc_log(MC_LOG_ERROR, __FILE__, __LINE__, "watchdog: report of rank %d at step %lld: %s", v->e->rank,
           (long long)mc_i_ledger_step(v->e->ledger), text);
}

/* What the rank is doing. */
static void describe(const sight *v, const seen *s, char *text, size_t cap)
{
    mc_i_ledger_row row;
    char op[2 * MC_I_LEDGER_NAME_BYTES + 64], who[80] = "";
    size_t used = 0;
    if (s->waits && mc_i_ledger_get_row(s->ledger, s->wait.id, &row)) {
        for (int i = 0; i < s->wait.n && i < MC_I_LEDGER_MISSING; i++) {
            used = append_rank(who, used, sizeof who, s->wait.ranks[i]);
        }
        mc_i_ledger_op_text(&row, op, sizeof op);
        snprintf(text, cap, "waits %.3f s in %s%s%s%s", v->now_s - s->wait.since_s, op,
                 s->wait.n == 0   ? ""
                 : s->wait.n == 1 ? " for rank "
                                  : " for ranks ",
                 who, s->wait.n > MC_I_LEDGER_MISSING ? " and more" : "");
    } else if (mc_i_ledger_get_own(s->ledger, &row)) {
        snprintf(text, cap, "%s, for %.3f s", row.name, v->now_s - row.begun_s);
    } else if (mc_i_ledger_get_row(s->ledger, mc_i_ledger_last_id(s->ledger), &row)) {
        snprintf(text, cap, "computes; its last operation %s %.3f s ago", row.done_s > 0 ? "ended" : "began",
                 v->now_s - (row.done_s > 0 ? row.done_s : row.begun_s));
    } else {
        snprintf(text, cap, "has begun nothing yet");
    }
}

static void say_rank(const sight *v, const seen *s)
{
    char text[600], process[64] = "";
    if (v->e->pids && v->e->pids[s->rank] > 0) {
        snprintf(process, sizeof process, ", process %d (%s)", (int)v->e->pids[s->rank], state_name(s->state));
    }
    if (!s->ledger) {
        mc_log(MC_LOG_ERROR, __FILE__, __LINE__,
               "watchdog: rank %d%s: what it did cannot be read from here (another machine, or no shared memory); see "
               "its own messages",
               s->rank, process);
        return;
    }
    describe(v, s, text, sizeof text);
    mc_log(MC_LOG_ERROR, __FILE__, __LINE__, "watchdog: rank %d%s, step %lld: %s%s", s->rank, process,
           (long long)mc_i_ledger_step(s->ledger), text,
           mc_i_ledger_has_left(s->ledger) ? "; it left after an error that it has told" : "");
    uint64_t last = mc_i_ledger_last_id(s->ledger), first = last > REPORTED_OPS ? last - REPORTED_OPS + 1 : 1;
    for (uint64_t id = first; id <= last; id++) {
        mc_i_ledger_row row;
        if (mc_i_ledger_get_row(s->ledger, id, &row)) {
            mc_i_ledger_row_text(&row, v->now_s, text, sizeof text);
            mc_log(MC_LOG_ERROR, __FILE__, __LINE__, "watchdog: rank %d did: %s", s->rank, text);
        }
    }
}

static void print(const mc_i_engine *e, mc_i_reason why, const int *ranks, int n)
{
    sight v = {.e = e, .now_s = mc_now()};
    int said = 0;
    look_around(&v, why, ranks, n);
    say_verdict(&v, why);
    for (int pass = 0; pass < 2; pass++) {
        for (int i = 0; i < v.n; i++) {
            if (v.ranks[i].holds_up == (pass == 0) && said < REPORTED_RANKS) {
                say_rank(&v, &v.ranks[i]);
                said++;
            }
        }
    }
    if (said < v.n) {
        mc_log(MC_LOG_ERROR, __FILE__, __LINE__, "watchdog: and %d more ranks", v.n - said);
    }
    seen me = look(e, e->rank);
    say_rank(&v, &me);
}

static bool all_left(const mc_i_engine *e, const int *ranks, int n)
{
    for (int i = 0; i < n; i++) {
        if (!e->boards || !e->boards[ranks[i]] || !mc_i_ledger_has_left(&e->boards[ranks[i]]->ledger)) {
            return false;
        }
    }
    return n > 0;
}

/* Whether this rank is the first of its machine. Otherwise waits until that one has spoken: to leave ends the others.
 */
static bool claim(const mc_i_engine *e)
{
    uint64_t expected = NOT_YET;
    if (!e->report ||
        __atomic_compare_exchange_n(e->report, &expected, UNDER_WAY, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
        return true;
    }
    for (int ms = 0; ms < OTHERS_WAIT_MS && __atomic_load_n(e->report, __ATOMIC_ACQUIRE) != PRINTED; ms++) {
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
    return false;
}

void mc_i_report(mc_i_engine *e, mc_i_reason why, const int *ranks, int n)
{
    alarm(why == MC_I_STUCK ? 1 : MC_I_END_S);
    bool told = why == MC_I_GONE && all_left(e, ranks, n);
    if (!told && !__atomic_exchange_n(&e->reported, true, __ATOMIC_ACQ_REL) && claim(e)) {
        if (e->boards) { /* no other rank of this machine reports: this one's messages must not be held back */
            mc_log_flush_held();
            mc_log_hold(false);
        }
        print(e, why, ranks, n);
        if (e->report) {
            __atomic_store_n(e->report, PRINTED, __ATOMIC_RELEASE);
        }
    }
}
