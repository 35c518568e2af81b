/* Folder-private parts of the world: shared segments, the network below, and the constructors of its communicators. */
#ifndef MEGAC_BASE_WORLD_IMPL_H
#define MEGAC_BASE_WORLD_IMPL_H

#include <sys/types.h>

#include "megac/base/comm_impl.h"
#include "megac/base/world.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- the network: messages between any two ranks, by MPI (net_mpi.c) or TCP (net_tcp.c) ---- */

typedef struct mc_i_net mc_i_net;

/* The network of a job whose --comm does not name one: "tcp" where the variables are torchrun's, else "mpi". */
const char *mc_i_net_default(const mc_job *job);
/* Joins the job over network `name` and finds the ranks of each node, or fails when the deadline passes. node_out[r] is
 * the lowest world rank on the node of rank r; the caller frees it with mc_free. */
mc_status mc_i_net_open(const char *name, const mc_job *job, double deadline_s, mc_i_net **net_out,
                        int **node_out) MC_MUST_CHECK;
void mc_i_net_close(mc_i_net *net);
/* Ends the whole job (mpi), or lets the others know that this rank leaves it (tcp); the launcher ends them. */
void mc_i_net_abort(mc_i_net *net, int exit_status);
/* Frees what the process holds and leaves MPI as it is: for a failure while opening. */
void mc_i_net_drop(mc_i_net *net);

/* A message under way; the network's handle inside. */
typedef struct mc_i_post {
    void *handle;
    bool under_way;
} mc_i_post;
/* Highest tag. */
int mc_i_net_max_tag(const mc_i_net *net);
/* Whether the network has seen that the rank is gone (TCP only). */
bool mc_i_net_lost(const mc_i_net *net, int rank);
/* Begin a message of `bytes` <= INT_MAX; the data stay put until it is done. None of them waits. Messages of one tag
 * between two ranks arrive in the order sent; a message may be shorter than the room that its receive has. */
mc_status mc_i_net_send(mc_i_net *net, const void *data, size_t bytes, int rank, int tag,
                        mc_i_post *post) MC_MUST_CHECK;
mc_status mc_i_net_recv(mc_i_net *net, void *data, size_t bytes, int rank, int tag, mc_i_post *post) MC_MUST_CHECK;
/* Looks at each; *done_out: none is under way any more. */
mc_status mc_i_net_test(mc_i_net *net, mc_i_post *posts, int n, bool *done_out) MC_MUST_CHECK;

/* A communicator by messages (comm_msg.c, comm_msg_pair.c). `index` distinguishes groups of the same rank, equal for
 * all members. */
mc_status mc_i_comm_msg_create(mc_i_net *net, mc_i_engine *engine, const mc_i_members *members, int index,
                               const char *name, mc_comm *comm_out) MC_MUST_CHECK;

/* ---- segments: memory of one rank that the others of its node map too (shm_segment.c) ---- */

typedef struct mc_i_segment {
    unsigned char *base;
    size_t bytes;
    int fd; /* -1 once the peers have mapped it */
    uint64_t token;
} mc_i_segment;

/* What peers need to find it. */
typedef struct mc_i_segment_card {
    int64_t pid, fd;
    uint64_t bytes, token;
} mc_i_segment_card;

/* Zero-filled; a size of 0 is rounded up. A private one cannot be mapped by peers, but may get huge pages. MC_NOMEM
 * names `what`. */
mc_status mc_i_segment_create(size_t bytes, bool private_memory, const char *what,
                              mc_i_segment *segment_out) MC_MUST_CHECK;
mc_i_segment_card mc_i_segment_card_of(const mc_i_segment *segment);
/* Maps a peer's segment; false when the system does not let us, or it is not the one the card names. */
bool mc_i_segment_map(const mc_i_segment_card *card, mc_i_segment *segment_out);
void mc_i_segment_close_fd(mc_i_segment *segment);
void mc_i_segment_unmap(mc_i_segment *segment);

/* One segment per rank: [r].base is NULL for ranks whose segment is not mapped here. */
typedef struct mc_i_shared mc_i_shared;
struct mc_i_shared {
    mc_i_segment *by_rank; /* by world rank */
    int n_ranks, self;
    bool direct; /* each of the ranks that share maps all of theirs */
    mc_i_shared *next;
};

/* Place of a buffer: which of mc_world_map's segments, and where in it. */
typedef struct mc_i_place {
    int32_t segment; /* -1: in none */
    uint64_t offset;
} mc_i_place;
mc_i_place mc_i_world_place(const mc_world *world, const void *data, size_t bytes);
/* Address here of `place` in the segment of `rank`. */
unsigned char *mc_i_world_address(const mc_world *world, mc_i_place place, int rank, size_t bytes);

/* ---- groups by shared memory (comm_shm.c, comm_shm_pair.c) ---- */

size_t mc_i_shm_group_bytes(int size); /* of one member's segment */
/* `shared` holds a segment of that many bytes for each member; the group keeps it and releases it. */
mc_status mc_i_comm_shm_create(mc_world *world, const mc_i_members *members, mc_i_shared *shared, const char *name,
                               mc_comm *comm_out) MC_MUST_CHECK;
void mc_i_shared_destroy(mc_i_shared *shared);

typedef struct mc_i_watch mc_i_watch;       /* world_watch.c */
void mc_i_watch_destroy(mc_i_watch *watch); /* NULL allowed */

struct mc_world {
    mc_job job;
    mc_i_engine engine;
    mc_i_net *net;              /* NULL: one rank */
    int *node;                  /* by world rank: lowest rank on its node */
    int32_t *pids;              /* by world rank: 0 on other nodes */
    bool wants_shm;             /* same for all ranks: the user did not forbid it */
    bool shm;                   /* ranks of my node share memory */
    mc_i_shared *shared_boards; /* one a rank, of my node's ranks */
    mc_i_board **boards;        /* the same, by world rank */
    mc_i_shared *maps;          /* newest first */
    int n_maps, n_groups;
    mc_i_watch *watch; /* NULL: none */
    mc_comm boot;      /* by messages: while opening, and the world's when it spans nodes */
    mc_comm comm;      /* the world's */
};

/* This rank's segment, and those of the other members of `with` mapped. Collective over the world, by `over`, also for
 * ranks whose `with` is one rank: they share nothing. Of all members or none `direct` is true. */
mc_status mc_i_world_share(mc_world *world, const mc_comm *over, const mc_i_members *with, size_t bytes,
                           const char *what, mc_i_shared **shared_out) MC_MUST_CHECK;
/* Fills world->pids: processes of this node whose numbers mean the same here. Collective over the world. */
mc_status mc_i_world_pids(mc_world *world, const mc_comm *over) MC_MUST_CHECK;
mc_i_bell *mc_i_world_bell(const mc_world *world, int rank);

#ifdef __cplusplus
}
#endif
#endif
