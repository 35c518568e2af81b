/* Communicators: groups of ranks that exchange tensors. Backends are tables of functions: `self` (one rank), `mpi` (CPU
 * ranks; shared memory inside a node), `plan` (does nothing: for dry runs), later `nccl`.
 *
 * Every call checks its arguments once, here, for all backends; takes tensor views, never (pointer, count) pairs; takes
 * the stream whose earlier work it must follow; and has a deadline after which it fails with MC_TIMEOUT, naming
 * operation, group, sequence number and the peers that did not come. Ranks of a group must issue the same operations in
 * the same order; where the backend can see that they do not, it fails with MC_MISMATCH, naming both.
 *
 * Reductions add in rank order, whatever the timing: all ranks get the same bits, and every run gets them again. */
#ifndef MEGAC_BASE_COMM_H
#define MEGAC_BASE_COMM_H

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
    mc_stream stream; /* where this group's operations run on devices with streams */
} mc_comm;

/* An operation under way; storage belongs to the caller and stays put until mc_comm_wait returns. */
typedef struct mc_request {
    const mc_comm *comm;
    int kind;        /* backend's */
    uint64_t seq;    /* sequence number in the group */
    void *handle[2]; /* backend's */
    mc_tensor in, out;
    mc_reduce op;
    int peer;
} mc_request;

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
};

/* out = reduction of every rank's `in` (same shape; in place allowed). f32, f64, i32. */
mc_status mc_comm_all_reduce(const mc_comm *c, mc_tensor in, mc_tensor out, mc_reduce op) MC_MUST_CHECK;
/* out (size * d0, ...) = concatenation along dim 0 of every rank's in (d0, ...), in rank order. `in` may be this rank's
 * part of `out`. */
mc_status mc_comm_all_gather(const mc_comm *c, mc_tensor in, mc_tensor out) MC_MUST_CHECK;
/* out (d0, ...) = this rank's dim-0 part of the sum of every rank's in (size * d0, ...). `out` may be that part of
 * `in`. */
mc_status mc_comm_reduce_scatter(const mc_comm *c, mc_tensor in, mc_tensor out) MC_MUST_CHECK;
/* Copies `root`'s buf to every rank. */
mc_status mc_comm_broadcast(const mc_comm *c, mc_tensor buf, int root) MC_MUST_CHECK;
mc_status mc_comm_barrier(const mc_comm *c) MC_MUST_CHECK;

/* The same, split: begin, then other work, then wait. Operations between two ranks are received in the order sent. */
mc_status mc_comm_all_reduce_begin(const mc_comm *c, mc_tensor in, mc_tensor out, mc_reduce op,
                                   mc_request *req) MC_MUST_CHECK;
mc_status mc_comm_all_gather_begin(const mc_comm *c, mc_tensor in, mc_tensor out, mc_request *req) MC_MUST_CHECK;
mc_status mc_comm_reduce_scatter_begin(const mc_comm *c, mc_tensor in, mc_tensor out, mc_request *req) MC_MUST_CHECK;
mc_status mc_comm_send_begin(const mc_comm *c, mc_tensor buf, int peer, mc_request *req) MC_MUST_CHECK;
mc_status mc_comm_recv_begin(const mc_comm *c, mc_tensor buf, int peer, mc_request *req) MC_MUST_CHECK;
mc_status mc_comm_wait(mc_request *req) MC_MUST_CHECK;

void mc_comm_destroy(mc_comm *c);

/* One rank, always valid; every operation is a copy or nothing. */
mc_comm mc_comm_self(const char *name);
/* Group of `size` seen from `rank` whose operations do nothing: for planning without running. */
mc_comm mc_comm_plan(const char *name, int rank, int size);

#ifdef __cplusplus
}
#endif
#endif
