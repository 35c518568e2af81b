/* All ranks of the job: who am I, how do we reach each other, do we agree.
 *
 *   mc_job_from_env   reads the launcher's variables, no communication
 *   mc_world_open     meets the other ranks (MPI_Init for mpi, MASTER_ADDR and MASTER_PORT for tcp), with a deadline
 *   mc_world_agree    every rank compares its configuration with rank 0's before any other collective
 *   mc_world_group    the communicator of this rank along a set of grid axes */
#ifndef MEGAC_BASE_WORLD_H
#define MEGAC_BASE_WORLD_H

#include <stdbool.h>

#include "megac/base/comm.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct mc_job {
    int rank, size, local_rank, local_size;
    const char *launcher; /* "none", "mpirun", "torchrun", "slurm" */
} mc_job;

/* From OMPI_COMM_WORLD_*, else RANK/WORLD_SIZE/LOCAL_RANK/LOCAL_WORLD_SIZE, else SLURM_PROCID/SLURM_STEP_NUM_TASKS/
 * SLURM_LOCALID; none of them: one rank. MC_INVALID names a variable that is not a number, out of range, or contradicts
 * another. */
mc_status mc_job_from_env(mc_job *job_out) MC_MUST_CHECK;

typedef struct mc_world mc_world;

/* Inside a node ranks talk through shared memory and across nodes by messages: MPI's, or over TCP, which needs no MPI.
 * MEGAC_NO_SHM=1 in the environment (of every rank) forbids the former: for comparisons, and where the system shares
 * memory but wrongly. MEGAC_NODE_RANKS=N treats each N consecutive ranks as a node of its own: to try a layout of
 * several nodes on one machine.
 *
 * Joins the job over communicator `name`: "self" (size 1 only), "mpi" or "tcp"; NULL chooses self for one rank, tcp for
 * ranks with torchrun's variables (`megac launch` sets them too), else mpi. MC_INVALID when the launcher's size and
 * MPI's differ (says how to start it); MC_UNSUPPORTED: mpi in a build without it; MC_TIMEOUT names the ranks missing.
 */
mc_status mc_world_open(const mc_job *job, const char *name, double deadline_seconds,
                        mc_world **world_out) MC_MUST_CHECK;
/* Leaves the job; its other communicators have been destroyed by then. After an error pass `failed`: the other ranks
 * are ended too (MPI_Abort; over TCP by the launcher) with `exit_status`. */
void mc_world_close(mc_world *world, bool failed, int exit_status);

/* local_rank and local_size are those of the node as the ranks found it. */
const mc_job *mc_world_job(const mc_world *world);
/* The communicator of all ranks ("world"). */
const mc_comm *mc_world_comm(const mc_world *world);

/* `text` is this rank's configuration, one "name value" a line. MC_MISMATCH on every rank when one differs from rank
 * 0's, naming the first differing line and the rank. Collective. */
mc_status mc_world_agree(mc_world *world, const char *text) MC_MUST_CHECK;

/* Communicator over the members of this rank's group along `axes` (mc_grid_group); `name` is kept. Collective over the
 * world: every rank calls it in the same order, size-1 groups included. */
mc_status mc_world_group(mc_world *world, const mc_grid *grid, unsigned axes, const char *name,
                         mc_comm *comm_out) MC_MUST_CHECK;
/* Communicator of the ranks that pass the same color >= 0, in world-rank order; color < 0: this rank takes no part and
 * gets mc_comm_self. Collective over the world. */
mc_status mc_world_split(mc_world *world, int color, const char *name, mc_comm *comm_out) MC_MUST_CHECK;

/* Memory for tensors that will be communicated: ranks of one node can read each other's directly, which saves copies;
 * any other memory works too. 4096-byte aligned, zero-filled, freed by mc_world_close. Collective over the world;
 * `bytes` may differ by rank. */
mc_status mc_world_map(mc_world *world, size_t bytes, const char *what, void **out) MC_MUST_CHECK;

/* ---- what a report of a failure tells of this rank (README, "When a rank dies or hangs") ---- */

/* The ledger of a rank holds its recent operations, and can be read by the other ranks of its machine. One thread of a
 * rank writes it: the one that calls its communicators. */

/* The training step under way, from 1; 0 before training. */
void mc_world_set_step(mc_world *world, int64_t step);
/* The rank does something of its own that may take long, and that others may come to wait for: "reads data", or "saves"
 * with the path of a file (NULL: none). Ends with the number that begin returned; 0: nothing. */
uint64_t mc_world_own_begin(mc_world *world, const char *what, const char *path);
void mc_world_own_end(mc_world *world, uint64_t id);
/* From now on work of this rank's own in which nothing has moved for the deadline (no byte read or written) ends the
 * process, with a report: on a disk that hangs for all ranks no rank waits for another. Nothing for one rank. */
mc_status mc_world_watch(mc_world *world) MC_MUST_CHECK;

/* The ledger of this rank, newest last; at most `cap` bytes. */
void mc_world_ledger(const mc_world *world, char *text_out, size_t cap);

#ifdef __cplusplus
}
#endif
#endif
