/* Inside the stand-in for NCCL: communicators, the work of one group of calls, reports. Everything is called with the
 * machine locked. */
#ifndef TESTS_CUDA_STANDIN_NCCL_IMPL_H
#define TESTS_CUDA_STANDIN_NCCL_IMPL_H

#include <functional>
#include <memory>
#include <nccl.h>
#include <string>
#include <vector>

#include "machine.h"
#include "nccl_segment.h"

/* A communicator. It lives until it is destroyed or aborted and the last operation on it has run. */
struct ncclComm {
    ~ncclComm();

    standin::nccl::Shared *shared = nullptr;
    standin::nccl::Address address{};
    int rank = 0, size = 0;
    std::string name;
    bool blocking = true;
    bool aborted = false;
    ncclResult_t error = ncclSuccess;    /* what ncclCommGetAsyncError tells once it is not ncclSuccess */
    double failed_at = 0, looked_at = 0; /* times: of the error, of the last look for processes that are gone */

    /* What a call that returned ncclInProgress has still to do; ncclCommGetAsyncError carries it on. */
    std::function<ncclResult_t()> progress;

    uint64_t collectives = 0, steps = 0, splits = 0;                                     /* so far */
    uint64_t sends[standin::nccl::MAX_RANKS] = {}, recvs[standin::nccl::MAX_RANKS] = {}; /* messages issued, by peer */
    uint64_t sent[standin::nccl::MAX_RANKS] = {}, received[standin::nccl::MAX_RANKS] = {}; /* ... and passed on whole */
    uint64_t of_kind[7] = {};         /* operations run, by Kind: for injected errors */
    standin::OpRef last;              /* operations of a communicator run in the order of their calls */
    std::vector<standin::OpRef> open; /* not finished, oldest first */
};

namespace standin::nccl
{

using Comm = std::shared_ptr<ncclComm>;

/* One call of a collective, send or receive. */
struct Task {
    Kind kind;
    const char *src;
    char *dst;
    size_t count;
    ncclDataType_t type;
    ncclRedOp_t op;
    int peer; /* root or other rank */
};

/* nccl_report.cpp */
size_t type_bytes(ncclDataType_t type); /* 0: not one of the types known here */
const char *kind_name(Kind kind);
std::string show(const Call &call); /* "AllReduce 256 x fp32 sum" */
bool same(const Call &a, const Call &b);
Call call_of(const Task &task);
double deadline();                            /* seconds without progress; STANDIN_DEADLINE */
void remember_error(const std::string &text); /* for ncclGetLastError */
/* The communicator has failed. With STANDIN_NCCL_ERROR=return it becomes its asynchronous error, and the operation
 * stays on the device until the communicator is aborted; else the process ends with the report. */
Step fail(const Comm &comm, ncclResult_t error, const std::string &text);
/* The operation cannot go on for want of `peer`: pending, or fail() when it is past the deadline or a rank is gone that
 * had not yet published the communicator's first `steps` steps. */
Step wait_for(const Comm &comm, const std::string &label, double since, int peer, uint64_t steps);
void no_longer_waits(const Comm &comm);
/* A rank whose process ended without leaving the communicator and without publishing `steps` steps; -1: none. */
int gone_rank(const Comm &comm, uint64_t steps = UINT64_MAX);
/* Whether STANDIN_NCCL_ERROR=Kind:N[@RANK] wants this operation to fail. */
bool wants_error(const Comm &comm, Kind kind);

/* nccl_reduce.cpp: dst = the reduction of count elements of every rank, in rank order; 16-bit types in f32. */
void reduce(char *dst, const char *const *src, int ranks, size_t count, ncclDataType_t type, ncclRedOp_t op);

/* nccl_work.cpp: what the tasks of one group do on one communicator. Numbers are taken here: once for each execution.
 */
standin::Run make_work(const Comm &comm, const std::vector<Task> &tasks);

/* nccl_meet.cpp */
/* An initialisation has failed: always told, and always an error of the call or of ncclCommGetAsyncError. */
ncclResult_t refuse(ncclResult_t error, const std::string &text);
ncclResult_t enter(const Comm &comm); /* the segment at comm->address, as comm->rank of comm->size */
/* Whether all ranks have come: ncclInProgress, or an error when a rank is gone or has not come since `since`. */
ncclResult_t meet(const Comm &comm, double since);
/* Split number `turn` of a communicator: what this rank says, and the function that makes the child. */
void choose_split(const Comm &parent, uint64_t turn, int color, int key);
std::function<ncclResult_t()> make_split(const Comm &parent, const Comm &child, uint64_t turn);

/* nccl_comm.cpp */
Comm find(ncclComm_t handle); /* null: not a live one, which is reported in the name of `who` by usable() */
/* ncclSuccess if calls may be made on the handle now. */
ncclResult_t usable(const char *who, ncclComm_t handle, Comm *comm_out);
/* Carries on comm->progress until it is done; the lock is released between. Used by blocking calls, without a Lock. */
ncclResult_t finish_progress(const Comm &comm);
void drop_finished(ncclComm *comm);

} // namespace standin::nccl

#endif
