/* MPI's own things, for the files that may include mpi.h. */
#ifndef MEGAC_BASE_NET_MPI_H
#define MEGAC_BASE_NET_MPI_H

#include <mpi.h>

#include "megac/base/world_impl.h"

struct mc_i_net {
    MPI_Comm comm; /* all ranks; errors are returned */
    int rank, size;
};

/* Logs what MPI says of `code` and returns MC_COMM. */
mc_status mc_i_mpi_fail(const char *call, int code);

#endif
