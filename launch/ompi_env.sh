#!/usr/bin/env bash
# What OpenMPI needs to run megac's ranks; sourced by quickstart.sh, mpirun.sh and tests/run.sh.
# Every variable that is set already wins.

# More ranks than cores: a waiting rank gives its core away. Without this a barrier of 8 ranks on 2 cores takes a
# thousand times as long.
export OMPI_MCA_mpi_yield_when_idle=${OMPI_MCA_mpi_yield_when_idle:-1}
export OMPI_MCA_rmaps_base_oversubscribe=${OMPI_MCA_rmaps_base_oversubscribe:-1}
# megac has its own threads: a rank bound to one core would run all of them there.
export OMPI_MCA_hwloc_base_binding_policy=${OMPI_MCA_hwloc_base_binding_policy:-none}
# Containers often forbid reading another process's memory (ptrace); OpenMPI then prints an error for each message.
export OMPI_MCA_btl_vader_single_copy_mechanism=${OMPI_MCA_btl_vader_single_copy_mechanism:-none}
# OpenMPI refuses root unless told twice; in containers root is the usual user.
if [ "$(id -u)" -eq 0 ]; then
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi
