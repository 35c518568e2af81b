/* What the two files of the TCP network share: a connection to every other rank, made by net_tcp_meet.c and used by
 * net_tcp.c. */
#ifndef MEGAC_BASE_NET_TCP_H
#define MEGAC_BASE_NET_TCP_H

#include "megac/base/net_impl.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Connects every two ranks. Rank 0 listens at MASTER_ADDR:MASTER_PORT (at the port after it where torchrun's agent
 * holds that one), all others connect to it and learn from it where the rest listen. fds_out[r] is a non-blocking
 * socket to rank r, -1 for this rank; nodes_out[r] is equal for ranks of one machine and of no others. MC_INVALID:
 * variables that are missing or wrong, ranks that contradict each other; MC_TIMEOUT names the ranks that did not come.
 * On failure no socket is left open. */
mc_status mc_i_tcp_meet(const mc_job *job, double deadline_s, int *fds_out, uint64_t *nodes_out) MC_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
