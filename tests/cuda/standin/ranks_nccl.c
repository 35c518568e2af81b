/* ranks_nccl MODE, started by test_nccl.c: one rank of a program that uses NCCL, rightly or with a planted fault. */
#include "tests/cuda/standin/ranks_nccl.h"

#include <signal.h>
#include <stdbool.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "tests/cuda/standin/farm.h"

static void rest(double seconds)
{
    nanosleep(
        &(struct timespec){.tv_sec = (time_t)seconds, .tv_nsec = (long)((seconds - (double)(time_t)seconds) * 1e9)},
        NULL);
}

static ncclUniqueId shared_id(int rank)
{
    ncclUniqueId id;
    farm_area *area = farm_shared();
    if (rank == 0) {
        CHECK(ncclGetUniqueId(&id));
        memcpy(area->id, &id, sizeof id);
        atomic_store(&area->id_ready, 1);
    }
    while (!atomic_load(&area->id_ready)) {
        rest(0.0005);
    }
    memcpy(&id, area->id, sizeof id);
    return id;
}

static ncclResult_t settle(ncclComm_t comm)
{
    ncclResult_t result = ncclInProgress;
    while (result == ncclInProgress) {
        rest(0.0005);
        CHECK(ncclCommGetAsyncError(comm, &result));
    }
    return result;
}

static float *device_floats(size_t n, float value)
{
    float *p, host[4096];
    for (size_t i = 0; i < n; i++) {
        host[i] = value;
    }
    CHECK(cudaMalloc((void **)&p, n * sizeof *p));
    CHECK(cudaMemcpy(p, host, n * sizeof *p, cudaMemcpyHostToDevice));
    return p;
}

static float first_of(const float *device)
{
    float value;
    CHECK(cudaMemcpy(&value, device, sizeof value, cudaMemcpyDeviceToHost));
    return value;
}

static void all_reduce(const ranks_nccl *r, float *p, size_t n)
{
    CHECK(ncclAllReduce(p, p, n, ncclFloat32, ncclSum, r->comm, r->stream));
}

/* ---- right programs */

/* Odd and even ranks, keys that turn the order round; the rank in the middle belongs to no group. */
static void split(const ranks_nccl *r, float *p)
{
    ncclComm_t half, nested;
    bool outside = r->rank == 2;
    CHECK(ncclCommSplit(r->comm, outside ? NCCL_SPLIT_NOCOLOR : r->rank % 2, -r->rank, &half, NULL));
    if (outside) {
        EXPECT(half == NULL, 1);
        return;
    }
    int count, rank, members = 0, before = 0;
    for (int q = 0; q < r->n; q++) {
        members += q != 2 && q % 2 == r->rank % 2;
        before += q != 2 && q % 2 == r->rank % 2 && q > r->rank;
    }
    CHECK(ncclCommCount(half, &count));
    CHECK(ncclCommUserRank(half, &rank));
    EXPECT(count, members);
    EXPECT(rank, before);
    CHECK(ncclCommSplit(half, 7, 0, &nested, NULL));
    CHECK(ncclAllReduce(p, p, 100, ncclFloat32, ncclSum, nested, r->stream));
    CHECK(cudaStreamSynchronize(r->stream));
    EXPECT(first_of(p) == (float)members, 1);
    CHECK(ncclCommFinalize(nested));
    CHECK(ncclCommDestroy(nested));
    CHECK(ncclCommDestroy(half));
}

/* An event recorded before the communicator has told ncclSuccess marks a point before the operation. */
static void nonblocking(const ranks_nccl *r, float *p)
{
    float *early = device_floats(100, 0), *right = device_floats(100, 0);
    cudaEvent_t event;
    CHECK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    EXPECT(ncclAllReduce(p, p, 100, ncclFloat32, ncclSum, r->comm, r->stream), ncclInProgress);
    CHECK(cudaEventRecord(event, r->stream));
    CHECK(cudaStreamWaitEvent(r->other, event, 0));
    CHECK(cudaMemcpyAsync(early, p, 400, cudaMemcpyDeviceToDevice, r->other));
    CHECK(cudaStreamSynchronize(r->other));
    ncclResult_t at_first;
    CHECK(ncclCommGetAsyncError(r->comm, &at_first));
    EXPECT(at_first, ncclInProgress);
    EXPECT(settle(r->comm), ncclSuccess);
    CHECK(cudaEventRecord(event, r->stream));
    CHECK(cudaStreamWaitEvent(r->other, event, 0));
    CHECK(cudaMemcpyAsync(right, p, 400, cudaMemcpyDeviceToDevice, r->other));
    CHECK(cudaStreamSynchronize(r->other));
    EXPECT(first_of(early), 1);
    EXPECT(first_of(right), r->n);
    EXPECT(ncclCommFinalize(r->comm), ncclInProgress);
    EXPECT(settle(r->comm), ncclSuccess);
    CHECK(cudaEventDestroy(event));
    CHECK(cudaFree(early));
    CHECK(cudaFree(right));
}

/* Work of two communicators on two streams; odd ranks issue it the other way round. */
static void two(const ranks_nccl *r, float *p)
{
    float *q = device_floats(100, 1);
    ncclComm_t second;
    CHECK(ncclCommSplit(r->comm, 0, r->rank, &second, NULL));
    for (int i = 0; i < 2; i++) {
        bool first = (i + r->rank) % 2 == 0;
        CHECK(ncclAllReduce(first ? p : q, first ? p : q, 100, ncclFloat32, ncclSum, first ? r->comm : second,
                            first ? r->stream : r->other));
    }
    CHECK(cudaDeviceSynchronize());
    EXPECT(first_of(p) == (float)r->n && first_of(q) == (float)r->n, 1);
    CHECK(ncclCommDestroy(second));
    CHECK(cudaFree(q));
}

/* Captured once, replayed: each replay is another collective. */
static void replayed(const ranks_nccl *r, float *p)
{
    enum { TIMES = 3 };
    cudaGraph_t captured;
    cudaGraphExec_t ready;
    float want = 1;
    CHECK(cudaStreamBeginCapture(r->stream, cudaStreamCaptureModeThreadLocal));
    all_reduce(r, p, 100);
    CHECK(cudaStreamEndCapture(r->stream, &captured));
    CHECK(cudaGraphInstantiate(&ready, captured, 0));
    for (int i = 0; i < TIMES; i++) {
        CHECK(cudaGraphLaunch(ready, r->stream));
        want *= (float)r->n;
    }
    CHECK(cudaStreamSynchronize(r->stream));
    EXPECT(first_of(p) == want, 1);
    CHECK(cudaGraphExecDestroy(ready));
    CHECK(cudaGraphDestroy(captured));
}

/* Shared memory of communicators has no name in the file system, from the beginning. */
static void nameless(const ranks_nccl *r)
{
    char line[512];
    int seen = 0;
    FILE *maps = fopen("/proc/self/maps", "r");
    EXPECT(maps != NULL, 1);
    while (fgets(line, sizeof line, maps)) {
        EXPECT(strstr(line, "/dev/shm/") != NULL, 0);
        seen += strstr(line, "nccl-standin (deleted)") != NULL;
    }
    fclose(maps);
    EXPECT(seen > 0, 1);
    int version = 0, n = 0;
    CHECK(ncclGetVersion(&version));
    CHECK(ncclCommCount(r->comm, &n));
    EXPECT(version, NCCL_VERSION_CODE);
    EXPECT(n, r->n);
}

/* ---- planted faults */

static void deadlock(const ranks_nccl *r, float *p)
{
    int peer = r->rank ^ 1;
    CHECK(ncclSend(p, 100, ncclFloat32, peer, r->comm, r->stream));
    CHECK(ncclRecv(p + 512, 100, ncclFloat32, peer, r->comm, r->stream));
    CHECK(cudaStreamSynchronize(r->stream));
}

static void message_of_other_length(const ranks_nccl *r, float *p)
{
    if (r->rank == 0) {
        CHECK(ncclSend(p, 100, ncclFloat32, 1, r->comm, r->stream));
    } else {
        CHECK(ncclRecv(p, 101, ncclFloat32, 0, r->comm, r->stream));
    }
    CHECK(cudaStreamSynchronize(r->stream));
}

static void other_order(const ranks_nccl *r, float *p)
{
    if (r->rank == 1) {
        CHECK(ncclBroadcast(p, p, 100, ncclFloat32, 0, r->comm, r->stream));
        all_reduce(r, p, 100);
    } else {
        all_reduce(r, p, 100);
        CHECK(ncclBroadcast(p, p, 100, ncclFloat32, 0, r->comm, r->stream));
    }
    CHECK(cudaStreamSynchronize(r->stream));
}

/* A copy on another stream that does not wait for the collective. */
static void unordered(const ranks_nccl *r, float *p)
{
    all_reduce(r, p, 100);
    CHECK(cudaMemcpyAsync(p + 512, p, 400, cudaMemcpyDeviceToDevice, r->other));
    CHECK(cudaStreamSynchronize(r->other));
}

static void missing(const ranks_nccl *r, float *p)
{
    all_reduce(r, p, 100);
    CHECK(cudaStreamSynchronize(r->stream));
    if (r->rank == r->n - 1) {
        rest(3);
    } else {
        all_reduce(r, p, 50);
        CHECK(cudaStreamSynchronize(r->stream));
    }
}

/* Polls as a trainer does: an event, and the communicator's error. */
static void error_then_abort(ranks_nccl *r, float *p, ncclResult_t want)
{
    cudaEvent_t event;
    CHECK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    all_reduce(r, p, 100);
    CHECK(cudaStreamSynchronize(r->stream));
    all_reduce(r, p, 100);
    CHECK(cudaEventRecord(event, r->stream));
    ncclResult_t error = ncclSuccess;
    while (error == ncclSuccess) {
        EXPECT(cudaEventQuery(event), cudaErrorNotReady);
        CHECK(ncclCommGetAsyncError(r->comm, &error));
        rest(0.001);
    }
    EXPECT(error, want);
    EXPECT(ncclAllReduce(p, p, 1, ncclFloat32, ncclSum, r->comm, r->stream), want);
    fprintf(stderr, "last error: %s\n", ncclGetLastError(r->comm));
    CHECK(ncclCommAbort(r->comm));
    r->comm = NULL;
    CHECK(cudaStreamSynchronize(r->stream)); /* what hung on the device is gone */
    CHECK(cudaEventDestroy(event));
}

static void fault(const char *mode, ranks_nccl *r, float *p)
{
    bool last = r->rank == r->n - 1;
    if (!strcmp(mode, "deadlock")) {
        deadlock(r, p);
    } else if (!strcmp(mode, "count")) {
        all_reduce(r, p, last ? 99 : 100);
    } else if (!strcmp(mode, "type")) {
        CHECK(ncclAllReduce(p, p, 100, last ? ncclBfloat16 : ncclFloat32, ncclSum, r->comm, r->stream));
    } else if (!strcmp(mode, "length")) {
        message_of_other_length(r, p);
    } else if (!strcmp(mode, "order")) {
        other_order(r, p);
    } else if (!strcmp(mode, "unordered")) {
        unordered(r, p);
    } else if (!strcmp(mode, "missing")) {
        missing(r, p);
    } else if (!strcmp(mode, "dead")) {
        all_reduce(r, p, 100);
        CHECK(cudaStreamSynchronize(r->stream));
        if (last) {
            _exit(0);
        }
        all_reduce(r, p, 100);
    } else if (!strcmp(mode, "overlap")) {
        EXPECT(ncclAllReduce(p, p + 50, 100, ncclFloat32, ncclSum, r->comm, r->stream), ncclInvalidArgument);
    } else if (!strcmp(mode, "host")) {
        float host[4] = {0};
        EXPECT(ncclAllReduce(host, p, 4, ncclFloat32, ncclSum, r->comm, r->stream), ncclInvalidArgument);
    } else if (!strcmp(mode, "destroyed")) {
        CHECK(ncclCommDestroy(r->comm));
        EXPECT(ncclAllReduce(p, p, 4, ncclFloat32, ncclSum, r->comm, r->stream), ncclInvalidArgument);
        r->comm = NULL;
    } else if (!strcmp(mode, "injected")) {
        error_then_abort(r, p, r->rank == 1 ? ncclSystemError : ncclRemoteError);
    } else {
        fprintf(stderr, "no such mode: %s\n", mode);
        exit(2);
    }
    CHECK(cudaStreamSynchronize(r->stream));
}

/* Faults in the initialisation, and initialisation that does not block. */
static void init(ranks_nccl *r, const char *mode)
{
    ncclUniqueId id = shared_id(r->rank);
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    bool blocks = strcmp(mode, "nonblocking") != 0 && strcmp(mode, "early") != 0, last = r->rank == r->n - 1;
    config.blocking = blocks;
    config.commName = "world";
    if (last && !strcmp(mode, "absent")) {
        rest(3);
        exit(0);
    }
    if (last && !strcmp(mode, "dies_early")) {
        kill(getpid(), SIGKILL);
    }
    int size = r->n + (last && !strcmp(mode, "sizes"));
    ncclResult_t result = ncclCommInitRankConfig(&r->comm, size, id, r->rank, &config);
    if (!strcmp(mode, "early")) {
        EXPECT(result, ncclInProgress);
        int n;
        EXPECT(ncclCommCount(r->comm, &n), ncclInvalidArgument);
    }
    if (result != ncclSuccess && blocks) {
        EXPECT(r->comm == NULL, 1);
        fprintf(stderr, "initialisation: %s\n", ncclGetErrorString(result));
        exit(5);
    }
    if (!blocks) {
        EXPECT(result, ncclInProgress);
        EXPECT(settle(r->comm), ncclSuccess);
    }
}

int main(int argc, char **argv)
{
    const char *mode = argc > 1 ? argv[1] : "table";
    ranks_nccl r = {.rank = farm_rank(), .n = farm_ranks()};
    init(&r, mode);
    CHECK(cudaStreamCreateWithFlags(&r.stream, cudaStreamNonBlocking));
    CHECK(cudaStreamCreateWithFlags(&r.other, cudaStreamNonBlocking));
    float *p = device_floats(1024, 1);
    if (!strcmp(mode, "values")) {
        ranks_nccl_pipeline(&r);
        ranks_nccl_long_group(&r);
        split(&r, p);
        nameless(&r);
    } else if (!strcmp(mode, "table")) {
        ranks_nccl_table(&r);
    } else if (!strcmp(mode, "rank_order")) {
        ranks_nccl_order(&r);
    } else if (!strcmp(mode, "replayed")) {
        replayed(&r, p);
    } else if (!strcmp(mode, "two")) {
        two(&r, p);
    } else if (!strcmp(mode, "nonblocking")) {
        nonblocking(&r, p);
    } else if (strcmp(mode, "early") != 0) {
        fault(mode, &r, p);
    }
    CHECK(cudaStreamSynchronize(r.stream));
    CHECK(cudaFree(p));
    CHECK(ncclCommDestroy(r.comm));
    CHECK(cudaStreamDestroy(r.stream));
    CHECK(cudaStreamDestroy(r.other));
    return 0;
}
