/* A build without MPI: ranks meet over TCP only. */
#include "megac/base/net_impl.h"

mc_status mc_i_net_mpi_open(const mc_job *job, double deadline_s, mc_i_net **net_out, int **node_out)
{
    (void)deadline_s;
    (void)net_out;
    (void)node_out;
    return MC_FAIL(
        MC_UNSUPPORTED,
        "%s started %d ranks, and this megac was built without MPI; start them with `megac launch -n %d`, or "
        "give --comm tcp with MASTER_ADDR and MASTER_PORT in the environment of every rank",
        job->launcher, job->size, job->size);
}
