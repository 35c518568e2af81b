/* What a network is to net.c: a table of functions, as world_impl.h describes them. */
#ifndef MEGAC_BASE_NET_IMPL_H
#define MEGAC_BASE_NET_IMPL_H

#include "megac/base/world_impl.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct mc_i_net_ops {
    void (*close)(mc_i_net *net);
    void (*abort)(mc_i_net *net, int exit_status);
    void (*drop)(mc_i_net *net);
    int (*max_tag)(const mc_i_net *net);
    bool (*lost)(const mc_i_net *net, int rank); /* (optional) default: never */
    mc_status (*send)(mc_i_net *net, const void *data, size_t bytes, int rank, int tag, mc_i_post *post);
    mc_status (*recv)(mc_i_net *net, void *data, size_t bytes, int rank, int tag, mc_i_post *post);
    mc_status (*test)(mc_i_net *net, mc_i_post *posts, int n, bool *done_out);
} mc_i_net_ops;

/* The first member of each network's own structure. */
struct mc_i_net {
    const mc_i_net_ops *ops;
};

/* Each as mc_i_net_open. Of a build without MPI the first says so (no_mpi.c). */
mc_status mc_i_net_mpi_open(const mc_job *job, double deadline_s, mc_i_net **net_out, int **node_out) MC_MUST_CHECK;
mc_status mc_i_net_tcp_open(const mc_job *job, double deadline_s, mc_i_net **net_out, int **node_out) MC_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
