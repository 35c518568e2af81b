/* Who am I in this job: what the launcher says in the environment. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "megac/base/world.h"

/* A launcher's variables. Slurm has no number of ranks on this node: it is read from a list. */
typedef struct launcher {
    const char *name, *rank, *size, *local_rank, *local_size;
    bool needs_both; /* rank without size is a mistake, not another launcher's leftover */
} launcher;

static const launcher launchers[] = {
    {"mpirun", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK",
     "OMPI_COMM_WORLD_LOCAL_SIZE", true},
    {"torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", true},
    /* A batch script has SLURM_PROCID too, but is no step of several tasks. */
    {"slurm", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", NULL, false},
};
enum { N_LAUNCHERS = sizeof launchers / sizeof launchers[0] };

/* An empty variable counts as absent. */
static const char *text_of(const char *name)
{
    const char *text = name ? getenv(name) : NULL;
    return text && *text ? text : NULL;
}

/* Whole number in [low, high]; *out is untouched when the variable is absent. */
static mc_status read_number(const char *name, long low, long high, int *out)
{
    const char *text = text_of(name);
    if (!text) {
        return MC_OK;
    }
    char *end;
    errno = 0;
    long value = strtol(text, &end, 10);
    if (end == text || *end != '\0' || errno != 0) {
        return MC_FAIL(MC_INVALID,
                       "%s=\"%s\" in the environment is not a number; unset it or start with mpirun or srun", name,
                       text);
    }
    if (value < low || value > high) {
        return MC_FAIL(MC_INVALID,
                       "%s=%ld in the environment is out of range [%ld, %ld]; the launcher's variables "
                       "contradict each other",
                       name, value, low, high);
    }
    *out = (int)value;
    return MC_OK;
}

/* Tasks on node SLURM_NODEID from a list such as "3,1" or "8(x4),2"; 0 when it cannot be told. */
static int slurm_local_size(void)
{
    const char *list = text_of("SLURM_STEP_TASKS_PER_NODE"), *node_text = text_of("SLURM_NODEID");
    if (!list || !node_text) {
        return 0;
    }
    long node = strtol(node_text, NULL, 10);
    for (const char *p = list; *p;) {
        char *end;
        long tasks = strtol(p, &end, 10), repeat = 1;
        if (end == p) {
            return 0;
        }
        if (strncmp(end, "(x", 2) == 0) {
            repeat = strtol(end + 2, &end, 10);
            end += *end == ')';
        }
        if (node < repeat) {
            return tasks > 0 && tasks <= 1 << 20 ? (int)tasks : 0;
        }
        node -= repeat;
        p = *end == ',' ? end + 1 : "";
    }
    return 0;
}

static mc_status read_launcher(const launcher *l, mc_job *job_out)
{
    enum { MOST = 1 << 20 };
    mc_job job = {.launcher = l->name, .local_rank = -1};
    MC_TRY(read_number(l->size, 1, MOST, &job.size));
    MC_TRY(read_number(l->rank, 0, job.size - 1, &job.rank));
    job.local_size = l->local_size ? 0 : slurm_local_size();
    if (l->local_size) {
        MC_TRY(read_number(l->local_size, 1, job.size, &job.local_size));
    }
    if (job.local_size == 0) {
        job.local_size = job.size; /* until mc_world_open has seen the nodes */
    }
    MC_TRY(read_number(l->local_rank, 0, job.local_size - 1, &job.local_rank));
    if (job.local_rank < 0) {
        if (job.local_size != job.size) {
            return MC_FAIL(MC_INVALID, "%s is set (%d of %d ranks are on this node) but %s is not; set both",
                           l->local_size ? l->local_size : "SLURM_STEP_TASKS_PER_NODE", job.local_size, job.size,
                           l->local_rank);
        }
        job.local_rank = job.rank;
    }
    *job_out = job;
    return MC_OK;
}

mc_status mc_job_from_env(mc_job *job_out)
{
    const launcher *chosen = NULL;
    for (int i = 0; i < N_LAUNCHERS; i++) {
        const launcher *l = &launchers[i];
        bool rank = text_of(l->rank), size = text_of(l->size);
        if (rank != size && l->needs_both) {
            return MC_FAIL(MC_INVALID, "%s is set in the environment but %s is not; set both or unset it",
                           rank ? l->rank : l->size, rank ? l->size : l->rank);
        }
        if (!rank || !size) {
            continue;
        }
        if (!chosen) {
            chosen = l;
            MC_TRY(read_launcher(l, job_out));
            continue;
        }
        /* Slurm's variables are per mpirun daemon or per torchrun agent where another launcher started us. */
        if (l->needs_both) {
            mc_job other;
            MC_TRY(read_launcher(l, &other));
            if (other.rank != job_out->rank || other.size != job_out->size) {
                return MC_FAIL(MC_INVALID,
                               "%s=%d of %s=%d but %s=%d of %s=%d; unset the variables of the launcher that did not "
                               "start this process",
                               chosen->rank, job_out->rank, chosen->size, job_out->size, l->rank, other.rank, l->size,
                               other.size);
            }
        }
    }
    if (!chosen) {
        *job_out = (mc_job){.size = 1, .local_size = 1, .launcher = "none"};
    }
    return MC_OK;
}
