/* NCCL groups, as the two files that work on them see them. */
#ifndef MEGAC_BASE_COMM_GROUP_NCCL_H
#define MEGAC_BASE_COMM_GROUP_NCCL_H

#include <nccl.h>
#include <time.h>

#include "megac/base/comm_impl.h"
#include "megac/base/comm_nccl.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { MC_I_NCCL_RECENT = 64, MC_I_NCCL_LANES = 3 };
enum { MC_I_NCCL_COLLECTIVES, MC_I_NCCL_DOWN, MC_I_NCCL_UP };

/* One operation: until it is waited for, and beyond that while it is among the lane's recent ones. */
typedef struct mc_i_nccl_slot {
    struct mc_i_nccl_slot *next_free;
    cudaEvent_t done;
    int kind, peer;
    uint64_t seq;
    size_t bytes;
    uint64_t ledger_id;
    bool waited, recent;
} mc_i_nccl_slot;

typedef struct mc_i_nccl_lane {
    ncclComm_t comm;
    cudaStream_t stream;
    mc_i_nccl_slot *recent[MC_I_NCCL_RECENT]; /* operation seq is at seq % MC_I_NCCL_RECENT */
    uint64_t n_ops;
    uint64_t n_complete; /* a lower bound, for the deadline */
} mc_i_nccl_lane;

struct mc_nccl {
    struct mc_nccl *next; /* of the device's groups */
    mc_cuda *cuda;
    const mc_comm *host;
    mc_i_engine *engine; /* of `host`: its ledger has this group's operations too */
    const char *name;
    double deadline;
    cudaStream_t compute;
    cudaEvent_t ready;
    mc_i_nccl_lane lanes[MC_I_NCCL_LANES];
    int n_lanes;
    mc_i_nccl_slot *free;
};
typedef struct mc_nccl mc_nccl;

/* Between two looks at NCCL. */
static inline void mc_i_nccl_nap(void)
{
    struct timespec t = {0, 20000};
    nanosleep(&t, NULL);
}
mc_status mc_i_nccl_failed(const mc_nccl *g, ncclResult_t r, const char *what) MC_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
