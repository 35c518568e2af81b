/* Starting and ending MPI. MPI_Init has no deadline of its own: a thread runs it while the caller waits for so long and
 * no longer. From then on one thread at a time calls MPI. */
#include <mpi.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "megac/base/alloc.h"
#include "megac/base/log.h"
#include "megac/base/net_impl.h"

typedef struct mpi_net {
    mc_i_net base;
    MPI_Comm comm; /* all ranks; errors are returned */
} mpi_net;
_Static_assert(sizeof(MPI_Request) <= sizeof(void *), "a request fits the handle of a post");

static MPI_Comm comm_of(const mc_i_net *net)
{
    return ((const mpi_net *)net)->comm;
}

static mc_status mpi_fail(const char *call, int code)
{
    char text[MPI_MAX_ERROR_STRING] = "";
    int n = 0;
    MPI_Error_string(code, text, &n);
    return MC_FAIL(MC_COMM, "%s: %s", call, text);
}

/* Lives until the thread is done, even when the opener gave up: the thread is the last to let go then. */
typedef struct meeting {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool done, abandoned;
    int rank, size, want_size;
    int *node; /* by rank, of want_size */
    int error;
    const char *call; /* that failed */
    MPI_Comm comm;
} meeting;

#define STEP(m, name, expr)              \
    do {                                 \
        (m)->call = name;                \
        (m)->error = (expr);             \
        if ((m)->error != MPI_SUCCESS) { \
            return;                      \
        }                                \
    } while (0)

static void meet(meeting *m)
{
    int provided, lowest;
    MPI_Comm node_comm;
    STEP(m, "MPI_Init_thread", MPI_Init_thread(NULL, NULL, MPI_THREAD_SERIALIZED, &provided));
    STEP(m, "MPI_Comm_set_errhandler", MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN));
    STEP(m, "MPI_Comm_rank", MPI_Comm_rank(MPI_COMM_WORLD, &m->rank));
    STEP(m, "MPI_Comm_size", MPI_Comm_size(MPI_COMM_WORLD, &m->size));
    if (m->size != m->want_size) {
        return; /* the opener compares */
    }
    STEP(m, "MPI_Comm_dup", MPI_Comm_dup(MPI_COMM_WORLD, &m->comm));
    STEP(m, "MPI_Comm_split_type",
         MPI_Comm_split_type(m->comm, MPI_COMM_TYPE_SHARED, m->rank, MPI_INFO_NULL, &node_comm));
    lowest = m->rank; /* of the node's first rank: keys are world ranks */
    STEP(m, "MPI_Bcast", MPI_Bcast(&lowest, 1, MPI_INT, 0, node_comm));
    STEP(m, "MPI_Allgather", MPI_Allgather(&lowest, 1, MPI_INT, m->node, 1, MPI_INT, m->comm));
    STEP(m, "MPI_Comm_free", MPI_Comm_free(&node_comm));
}

static void release(meeting *m)
{
    pthread_mutex_destroy(&m->lock);
    pthread_cond_destroy(&m->changed);
    mc_free(m->node);
    mc_free(m);
}

static void *meet_thread(void *arg)
{
    meeting *m = arg;
    meet(m);
    pthread_mutex_lock(&m->lock);
    m->done = true;
    bool mine = m->abandoned;
    pthread_cond_signal(&m->changed);
    pthread_mutex_unlock(&m->lock);
    if (mine) {
        release(m);
    }
    return NULL;
}

/* Signals stay with the program's own threads: MPI's threads inherit the mask. */
static int start_thread(meeting *m)
{
    sigset_t all, old;
    pthread_t thread;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int err = pthread_create(&thread, NULL, meet_thread, m);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (err == 0) {
        pthread_detach(thread);
    }
    return err;
}

/* False when the time is up; the meeting is then the thread's. */
static bool wait_for(meeting *m, double seconds)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    double end = (double)until.tv_sec + 1e-9 * (double)until.tv_nsec + seconds;
    until.tv_sec = (time_t)end;
    until.tv_nsec = (long)((end - (double)until.tv_sec) * 1e9);
    int err = 0;
    pthread_mutex_lock(&m->lock);
    while (!m->done && err == 0) {
        err = pthread_cond_timedwait(&m->changed, &m->lock, &until);
    }
    m->abandoned = !m->done;
    bool done = m->done;
    pthread_mutex_unlock(&m->lock);
    return done;
}

/* MPI ends the process by itself, with words that help nobody, when srun offers no interface that it knows. */
static mc_status check_launcher(const mc_job *job)
{
    if (strcmp(job->launcher, "slurm") == 0 && job->size > 1 && !getenv("PMIX_RANK") && !getenv("PMI_RANK") &&
        !getenv("PMI_FD")) {
        return MC_FAIL(MC_INVALID, "srun started %d tasks without an interface that MPI can use; use srun --mpi=pmix",
                       job->size);
    }
    return MC_OK;
}

static const char *remedy(const mc_job *job)
{
    return strcmp(job->launcher, "slurm") == 0 ? "use srun --mpi=pmix"
                                               : "start under mpirun (of the MPI library that megac was built with)";
}

static mc_status check_meeting(const mc_job *job, const meeting *m)
{
    if (m->error != MPI_SUCCESS) {
        return mpi_fail(m->call, m->error);
    }
    if (m->size != job->size || m->rank != job->rank) {
        return MC_FAIL(MC_INVALID, "%s started rank %d of %d, but MPI sees rank %d of %d; %s", job->launcher, job->rank,
                       job->size, m->rank, m->size, remedy(job));
    }
    return MC_OK;
}

static void net_close(mc_i_net *net)
{
    int code = MPI_Comm_free(&((mpi_net *)net)->comm);
    if (code == MPI_SUCCESS) {
        code = MPI_Finalize();
    }
    if (code != MPI_SUCCESS) {
        MC_WARN("MPI did not end cleanly (code %d)", code);
    }
    mc_free(net);
}

static void net_abort(mc_i_net *net, int exit_status)
{
    MPI_Abort(comm_of(net), exit_status);
    mc_free(net);
}

static void net_drop(mc_i_net *net)
{
    mc_free(net);
}

static int net_max_tag(const mc_i_net *net)
{
    int *highest, known = 0;
    MPI_Comm_get_attr(comm_of(net), MPI_TAG_UB, &highest, &known);
    return known ? *highest : 32767; /* the least that the standard allows */
}

static mc_status posted(const char *call, int code, const MPI_Request *request, mc_i_post *post)
{
    if (code != MPI_SUCCESS) {
        return mpi_fail(call, code);
    }
    memcpy(&post->handle, request, sizeof *request);
    post->under_way = true;
    return MC_OK;
}

static mc_status net_send(mc_i_net *net, const void *data, size_t bytes, int rank, int tag, mc_i_post *post)
{
    MPI_Request request = MPI_REQUEST_NULL;
    int code = MPI_Isend(data, (int)bytes, MPI_BYTE, rank, tag, comm_of(net), &request);
    return posted("MPI_Isend", code, &request, post);
}

static mc_status net_recv(mc_i_net *net, void *data, size_t bytes, int rank, int tag, mc_i_post *post)
{
    MPI_Request request = MPI_REQUEST_NULL;
    int code = MPI_Irecv(data, (int)bytes, MPI_BYTE, rank, tag, comm_of(net), &request);
    return posted("MPI_Irecv", code, &request, post);
}

static mc_status net_test(mc_i_net *net, mc_i_post *posts, int n, bool *done_out)
{
    (void)net;
    bool done = true;
    for (int i = 0; i < n; i++) {
        if (!posts[i].under_way) {
            continue;
        }
        MPI_Request request;
        int flag = 0;
        memcpy(&request, &posts[i].handle, sizeof request);
        int code = MPI_Test(&request, &flag, MPI_STATUS_IGNORE);
        if (code != MPI_SUCCESS) {
            return mpi_fail("MPI_Test", code);
        }
        memcpy(&posts[i].handle, &request, sizeof request);
        posts[i].under_way = !flag;
        done = done && flag;
    }
    *done_out = done;
    return MC_OK;
}

mc_status mc_i_net_mpi_open(const mc_job *job, double deadline_s, mc_i_net **net_out, int **node_out)
{
    static const mc_i_net_ops ops = {
        .close = net_close,
        .abort = net_abort,
        .drop = net_drop,
        .max_tag = net_max_tag,
        .send = net_send,
        .recv = net_recv,
        .test = net_test,
    };
    MC_TRY(check_launcher(job));
    mpi_net *net;
    meeting *m;
    mc_status st;
    MC_TRY(MC_NEW(&net, "network"));
    MC_TRY_GOTO(st, MC_NEW(&m, "start of MPI"), undo_net);
    pthread_mutex_init(&m->lock, NULL);
    pthread_cond_init(&m->changed, NULL);
    m->want_size = job->size;
    MC_TRY_GOTO(st, MC_NEW_N(&m->node, job->size, "nodes of ranks"), undo_meeting);
    int err = start_thread(m);
    if (err != 0) {
        st = MC_FAIL(MC_UNSUPPORTED, "cannot start a thread: %s", strerror(err));
        goto undo_meeting;
    }
    if (!wait_for(m, deadline_s)) {
        st = MC_FAIL(MC_TIMEOUT,
                     "not all of the %d ranks started within %.1f s: this one (rank %d) waits in MPI_Init; see that "
                     "the others run (%s), or raise --distributed-timeout-minutes",
                     job->size, deadline_s, job->rank, remedy(job));
        goto undo_net;
    }
    MC_TRY_GOTO(st, check_meeting(job, m), undo_meeting);
    *net = (mpi_net){.base = {&ops}, .comm = m->comm};
    *net_out = &net->base;
    *node_out = m->node;
    m->node = NULL;
    release(m);
    return MC_OK;

undo_meeting:
    release(m);
undo_net:
    mc_free(net);
    return st;
}
