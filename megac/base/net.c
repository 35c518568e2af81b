/* Choosing the network, and its calls passed on. */
#include <string.h>

#include "megac/base/net_impl.h"

const char *mc_i_net_default(const mc_job *job)
{
    return strcmp(job->launcher, "torchrun") == 0 ? "tcp" : "mpi";
}

mc_status mc_i_net_open(const char *name, const mc_job *job, double deadline_s, mc_i_net **net_out, int **node_out)
{
    return strcmp(name, "tcp") == 0 ? mc_i_net_tcp_open(job, deadline_s, net_out, node_out)
                                    : mc_i_net_mpi_open(job, deadline_s, net_out, node_out);
}

void mc_i_net_close(mc_i_net *net)
{
    net->ops->close(net);
}

void mc_i_net_abort(mc_i_net *net, int exit_status)
{
    net->ops->abort(net, exit_status);
}

void mc_i_net_drop(mc_i_net *net)
{
    net->ops->drop(net);
}

int mc_i_net_max_tag(const mc_i_net *net)
{
    return net->ops->max_tag(net);
}

bool mc_i_net_lost(const mc_i_net *net, int rank)
{
    return net->ops->lost && net->ops->lost(net, rank);
}

mc_status mc_i_net_send(mc_i_net *net, const void *data, size_t bytes, int rank, int tag, mc_i_post *post)
{
    return net->ops->send(net, data, bytes, rank, tag, post);
}

mc_status mc_i_net_recv(mc_i_net *net, void *data, size_t bytes, int rank, int tag, mc_i_post *post)
{
    return net->ops->recv(net, data, bytes, rank, tag, post);
}

mc_status mc_i_net_test(mc_i_net *net, mc_i_post *posts, int n, bool *done_out)
{
    return net->ops->test(net, posts, n, done_out);
}
