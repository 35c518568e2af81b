/* Folder-private parts of the communicators: the kinds of operation, the engine that advances them, and the
 * constructors of the backends.
 *
 * Every begun operation sits in a queue (one per group for collectives, one per peer and direction for send and
 * receive) until it is complete; only a queue's head advances. A wait advances the heads of *all* queues of the world
 * until its own request is done. So no order of waits can deadlock that an order of begins would not. */
#ifndef MEGAC_BASE_COMM_IMPL_H
#define MEGAC_BASE_COMM_IMPL_H

#include "megac/base/comm_ledger.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    MC_I_BARRIER, /* an all-reduce of nothing */
    MC_I_ALL_REDUCE,
    MC_I_ALL_GATHER,
    MC_I_REDUCE_SCATTER,
    MC_I_BROADCAST,
    MC_I_SEND,
    MC_I_RECV,
    MC_I_OWN, /* no operation of a group: what a rank does on its own, in its ledger */
};
const char *mc_i_kind_name(int kind);

enum {
    MC_I_INLINE_BYTES = 4096, /* collectives up to here carry their payload in their announcement */
    MC_I_STAGE_BYTES = 1 << 20,
};

/* Bytes of this rank's contribution: `in`, or the buffer of a broadcast, send or receive. */
size_t mc_i_request_bytes(const mc_request *req);

/* ---- reductions (comm_reduce.c) ---- */

/* out = in[0] op in[1] op ... in[n - 1], left to right, over `elems` elements; `out` may be one of `in`. */
void mc_i_reduce(mc_dtype dtype, mc_reduce op, void *out, const void *const *in, int n, size_t elems);
/* The same result written to n_out places. */
void mc_i_reduce_to(mc_dtype dtype, mc_reduce op, void *const *out, int n_out, const void *const *in, int n,
                    size_t elems);

/* ---- engine (comm_engine.c) ---- */

typedef struct mc_i_engine mc_i_engine;
/* The engine of a host communicator; NULL: it needs none. */
mc_i_engine *mc_i_comm_engine(const mc_comm *c);

typedef enum { MC_I_IDLE, MC_I_MOVED, MC_I_DONE, MC_I_FAILED } mc_i_progress;

typedef struct mc_i_queue mc_i_queue;
typedef struct mc_i_queue_ops {
    /* Peers cannot wake us: look again and again. */
    bool polled;
    /* Does what can be done for the head without waiting. On MC_I_FAILED the reason was logged and *st_out says it. */
    mc_i_progress (*step)(mc_i_queue *q, mc_request *req, mc_status *st_out);
    /* World ranks that the request waits for; writes at most `cap`, returns how many there are. */
    int (*missing)(const mc_i_queue *q, const mc_request *req, int *ranks_out, int cap);
} mc_i_queue_ops;

struct mc_i_queue {
    const mc_i_queue_ops *ops;
    void *group;
    int peer; /* of a send or receive queue */
    mc_request *head, *tail;
    mc_i_queue *prev, *next; /* among the queues that are not empty */
};

/* A rank's doorbell, in memory its peers can write. A rank that goes to sleep sets `asleep` and looks once more; a peer
 * that changed something it may wait for and sees `asleep` changes `count` and wakes it. */
typedef struct mc_i_bell {
    uint32_t count, asleep;
} mc_i_bell;
void mc_i_bell_ring(mc_i_bell *bell);

/* What a rank shows the others of its machine. */
typedef struct mc_i_board {
    mc_i_bell bell;
    uint64_t unused[7]; /* the bell has a cache line of its own */
    uint64_t report;    /* on the machine's lowest rank: one rank of the machine reports (comm_report.c) */
    mc_i_ledger ledger;
} mc_i_board;

struct mc_i_engine {
    double deadline_s;
    int n_spins;
    mc_status failed; /* a world that failed once stays failed: requests may have left the stack */
    mc_i_queue *busy; /* queues with operations under way */
    int n_polled;
    mc_i_bell *bell; /* mine; NULL: no shared memory */
    int rank, n_ranks;
    const int32_t *pids;       /* by world rank; 0: not on this node */
    mc_i_board *const *boards; /* by world rank, NULL for those that cannot be read here; NULL: no shared memory */
    uint64_t *report;          /* this machine's; NULL: no shared memory */
    mc_i_ledger *ledger;       /* on my board, else `own` */
    mc_i_ledger own;
    bool reported;
};

void mc_i_engine_init(mc_i_engine *e, double deadline_s, int local_size);
/* Notes the request in the ledger, queues it and does at once what needs no waiting. */
mc_status mc_i_engine_push(mc_i_engine *e, mc_i_queue *q, mc_request *req) MC_MUST_CHECK;
/* Waits until ready(q, req); MC_TIMEOUT and MC_COMM (a peer is gone) say for whom. */
typedef bool (*mc_i_ready_fn)(const mc_i_queue *q, const mc_request *req);
mc_status mc_i_engine_until(mc_i_engine *e, mc_i_queue *q, mc_request *req, mc_i_ready_fn ready) MC_MUST_CHECK;
mc_status mc_i_engine_wait(mc_i_engine *e, mc_request *req) MC_MUST_CHECK;

/* What a rank announces of a collective or a message; ranks compare. */
typedef struct mc_i_call {
    int32_t kind, dtype, op, root;
    uint64_t bytes, seq;
} mc_i_call;
mc_i_call mc_i_call_of(const mc_request *req);
/* MC_MISMATCH naming both sides, and a report, when `theirs`, announced by world rank `rank`, does not fit `mine`. */
mc_status mc_i_call_compare(mc_i_engine *e, const mc_comm *c, const mc_i_call *mine, const mc_i_call *theirs,
                            int rank) MC_MUST_CHECK;

/* ---- the report of a failure (comm_report.c) ---- */

/* State of a process of this machine as /proc shows it: 'T' stopped, 'D' waits for a disk, ...; 'X': it has ended (it
 * need not have been collected); '?': not known. */
char mc_i_process_state(int32_t pid);

typedef enum { MC_I_TIMED_OUT, MC_I_GONE, MC_I_DISAGREE, MC_I_STUCK /* this rank itself */ } mc_i_reason;

/* Reports what the ranks that hold this one up did last: `ranks` (world ranks that it waits for, or that called
 * something else; none: not known, look at all of this machine), those that these wait for, and this rank; one report a
 * machine. Does nothing where they left after
 * errors of their own. From here on the process has MC_I_END_S seconds to end, then SIGALRM ends it: what it would wait
 * for on its way out may never come. */
enum { MC_I_END_S = 10 };
void mc_i_report(mc_i_engine *e, mc_i_reason why, const int *ranks, int n);

/* ---- what a group is made from ---- */

typedef struct mc_i_members {
    int rank, size;
    const int *world; /* world rank of each member; copied by the constructors */
} mc_i_members;

#ifdef __cplusplus
}
#endif
#endif
