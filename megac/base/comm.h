/* Communicators: groups of ranks that exchange tensors. Backends are tables of functions: `self` (one rank), `host`
 * (shared memory inside a node, messages by MPI or TCP between nodes), `plan` (does nothing: for dry runs), `staged`
 * and `nccl` (memory of a device).
 *
 * Every call checks its arguments once, here, for all backends; takes tensor views, never (pointer, count) pairs; takes
 * the stream whose earlier work it must follow; and has a deadline after which it fails with MC_TIMEOUT, naming
 * operation, group, sequence number and the peers that did not come. Ranks of a group must issue the same operations in
 * the same order; where the backend can see that they do not, it fails with MC_MISMATCH, naming both.
 *
 * Reductions add in rank order, whatever the timing: all ranks get the same bits, and every run gets them again. */
#ifndef MEGAC_BASE_COMM_H
#define MEGAC_BASE_COMM_H

#include <stdbool.h>

#include "megac/base/device.h"
#include "megac/base/grid.h"
#include "megac/base/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum { MC_SUM, MC_MAX, MC_MIN } mc_reduce;

typedef struct mc_comm_ops mc_comm_ops;

/* One group, seen from one rank. `name` is the axis ("tp", "dp", "world"), used in messages. */
typedef struct mc_comm {
    const mc_comm_ops *ops;
    void *impl;
    const char *name;
    int rank, size;
    mc_stream
        stream; /* the device stream whose queued work operations follow, and which follows them from mc_comm_wait on
                 */
} mc_comm;

/* An operation under way; storage belongs to the caller and stays put until mc_comm_wait returns. The caller reads and
 * writes none of it. */
typedef struct mc_request mc_request;
struct mc_request {
    const mc_comm *comm;
    int kind;     /* which operation */
    uint64_t seq; /* sequence number in the group (send and receive: between the two ranks) */
    mc_tensor in, out;
    mc_reduce op;
    int peer; /* send, receive: the other rank; broadcast: the root */
    /* The backend's: */
    mc_request *next; /* begun after this one on the same queue */
    void *queue;
    int phase;
    uint64_t round, n_rounds;
    uint64_t ledger_id;
    bool queued, done;
};

struct mc_comm_ops {
    const char *name;
    /* Each begin starts an operation; buffers must not be touched until wait returns. In-place is in.data == out.data.
     */
    mc_status (*all_reduce_begin)(const mc_comm *c, mc_request *req);
    mc_status (*all_gather_begin)(const mc_comm *c, mc_request *req);
    mc_status (*reduce_scatter_begin)(const mc_comm *c, mc_request *req);
    mc_status (*broadcast_begin)(const mc_comm *c, mc_request *req);
    mc_status (*send_begin)(const mc_comm *c, mc_request *req);
    mc_status (*recv_begin)(const mc_comm *c, mc_request *req);
    mc_status (*wait)(const mc_comm *c, mc_request *req);
    void (*destroy)(mc_comm *c);
    /* (optional) default: none. The engine whose ledger has the group's operations. */
    struct mc_i_engine *(*engine)(const mc_comm *c);
    /* Data are never touched: buffers may be measuring arenas' addresses, and are not checked. */
    bool plans_only;
};

/* out = reduction of every rank's `in` (same shape; in place allowed, other overlaps not). f32, f64, i32; i32 sums
 * wrap. bf16 and f16 are widened to f32, reduced, and rounded to nearest even once. MC_MAX and MC_MIN of a NaN are NaN.
 */
mc_status mc_comm_all_reduce(const mc_comm *c, mc_tensor in, mc_tensor out, mc_reduce op) MC_MUST_CHECK;
/* out (size * d0, ...) = concatenation along dim 0 of every rank's in (d0, ...), in rank order. `in` may be this rank's
 * part of `out`. */
mc_status mc_comm_all_gather(const mc_comm *c, mc_tensor in, mc_tensor out) MC_MUST_CHECK;
/* out (d0, ...) = this rank's dim-0 part of the sum of every rank's in (size * d0, ...). `out` may be that part of
 * `in`. */
mc_status mc_comm_reduce_scatter(const mc_comm *c, mc_tensor in, mc_tensor out) MC_MUST_CHECK;
/* Copies `root`'s buf to every rank. */
mc_status mc_comm_broadcast(const mc_comm *c, mc_tensor buf, int root) MC_MUST_CHECK;
mc_status mc_comm_send(const mc_comm *c, mc_tensor buf, int peer) MC_MUST_CHECK;
mc_status mc_comm_recv(const mc_comm *c, mc_tensor buf, int peer) MC_MUST_CHECK;
mc_status mc_comm_barrier(const mc_comm *c) MC_MUST_CHECK;

/* The same, split: begin, then other work, then wait. Operations between two ranks are received in the order sent.
 *
 * begin never waits for a peer, unless 64 operations of the group (or of the pair of ranks) are under way already. The
 * work is done inside mc_comm_wait, of this request or of any other of the same world: while it waits it also advances
 * everything else that was begun, so that requests may be waited for in any order and a send may be waited for late,
 * after the receives that its peer's progress depends on. A send of at most 1 KiB inside a node is complete at begin.
 */
mc_status mc_comm_all_reduce_begin(const mc_comm *c, mc_tensor in, mc_tensor out, mc_reduce op,
                                   mc_request *req) MC_MUST_CHECK;
mc_status mc_comm_all_gather_begin(const mc_comm *c, mc_tensor in, mc_tensor out, mc_request *req) MC_MUST_CHECK;
mc_status mc_comm_reduce_scatter_begin(const mc_comm *c, mc_tensor in, mc_tensor out, mc_request *req) MC_MUST_CHECK;
mc_status mc_comm_send_begin(const mc_comm *c, mc_tensor buf, int peer, mc_request *req) MC_MUST_CHECK;
mc_status mc_comm_recv_begin(const mc_comm *c, mc_tensor buf, int peer, mc_request *req) MC_MUST_CHECK;
mc_status mc_comm_wait(mc_request *req) MC_MUST_CHECK;

void mc_comm_destroy(mc_comm *c);

/* For a device with memory of its own, over the host communicator `host` (which must outlive it): operations copy to
 * pinned host memory, run there, and copy back, in the order of `stream`. The host waits in every begin and wait: for
 * several ranks on one device, and where there is no NCCL. Pinned buffers are taken as first needed and kept. */
mc_status mc_comm_staged(mc_device *dev, const mc_comm *host, mc_stream stream, mc_comm *comm_out) MC_MUST_CHECK;

/* One rank, always valid; every operation is a copy or nothing. */
mc_comm mc_comm_self(const char *name);
/* Group of `size` seen from `rank` whose operations do nothing: for planning without running. */
mc_comm mc_comm_plan(const char *name, int rank, int size);

#ifdef __cplusplus
}
#endif
#endif
