/* Reports of the stand-in for NCCL: calls that do not fit, ranks that do not come, errors that a test asks for. */
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <unistd.h>

#include "nccl_impl.h"

namespace standin::nccl
{

size_t type_bytes(ncclDataType_t type)
{
    switch (type) {
    case ncclInt8:
    case ncclUint8:
        return 1;
    case ncclFloat16:
    case ncclBfloat16:
        return 2;
    case ncclInt32:
    case ncclUint32:
    case ncclFloat32:
        return 4;
    case ncclInt64:
    case ncclUint64:
    case ncclFloat64:
        return 8;
    default:
        return 0;
    }
}

const char *kind_name(Kind kind)
{
    static const char *const names[] = {"AllReduce", "ReduceScatter", "AllGather", "Broadcast",
                                        "Reduce",    "Send",          "Recv"};
    return names[static_cast<int>(kind)];
}

static bool reduces(Kind kind)
{
    return kind == Kind::all_reduce || kind == Kind::reduce_scatter || kind == Kind::reduce;
}

Call call_of(const Task &task)
{
    bool rooted = task.kind >= Kind::broadcast;
    return Call{task.kind, task.type, reduces(task.kind) ? task.op : 0, rooted ? task.peer : -1, task.count};
}

std::string show(const Call &call)
{
    static const char *const types[] = {"int8",   "uint8", "int32", "uint32", "int64",
                                        "uint64", "fp16",  "fp32",  "fp64",   "bf16"};
    static const char *const ops[] = {"sum", "prod", "max", "min", "avg"};
    std::string text = std::string(kind_name(call.kind)) + " " + std::to_string(call.count) + " x " + types[call.type];
    if (reduces(call.kind)) {
        text += std::string(" ") + ops[call.op];
    }
    if (call.root >= 0) {
        text += (call.kind == Kind::send   ? " to "
                 : call.kind == Kind::recv ? " from "
                                           : " root ") +
                std::to_string(call.root);
    }
    return text;
}

bool same(const Call &a, const Call &b)
{
    return a.kind == b.kind && a.type == b.type && a.op == b.op && a.root == b.root && a.count == b.count;
}

double deadline()
{
    static const double seconds = atof(env("STANDIN_DEADLINE", "20"));
    return seconds;
}

/* The text lives as long as the program: ncclGetLastError hands out a pointer. */
static char last_error[512];

void remember_error(const std::string &text)
{
    snprintf(last_error, sizeof last_error, "%s", text.c_str());
}

Step fail(const Comm &comm, ncclResult_t error, const std::string &text)
{
    if (comm->error != ncclSuccess) {
        return Step::pending; /* told already */
    }
    comm->error = error;
    comm->failed_at = now();
    remember_error(text);
    int nobody = 0;
    comm->shared->failed.compare_exchange_strong(nobody, comm->rank + 1);
    if (strcmp(env("STANDIN_NCCL_ERROR", "exit"), "exit") == 0) {
        usleep(200000); /* a moment for the other ranks to report their side before a launcher ends them */
        die(96, "%s", text.c_str());
    }
    fprintf(stderr, "standin[%d] NCCL: %s\n", standin::rank(), text.c_str());
    return Step::pending;
}

int gone_rank(const Comm &comm, uint64_t steps)
{
    auto here = [&](int r) { return comm->shared->presence[r] == Presence::here; };
    for (int r = 0; r < comm->size; r++) {
        bool needed = comm->shared->published[r] < steps;
        if (needed && here(r) && !process_runs(comm->shared->pid[r]) &&
            here(r)) { /* it may have left between the two looks */
            return r;
        }
    }
    return -1;
}

static std::string where_everybody_is(const Comm &comm)
{
    const Shared *shared = comm->shared;
    std::string text;
    for (int r = 0; r < comm->size; r++) {
        uint64_t issued = shared->issued[r];
        char doing[sizeof shared->doing[0]];
        snprintf(doing, sizeof doing, "%.*s", (int)sizeof doing - 1, shared->doing[r]);
        text += "\n    rank " + std::to_string(r) + " (world " + std::to_string(shared->world[r]) +
                "): " + std::to_string(issued) + " collectives issued";
        if (issued > 0) {
            text += ", last " + show(shared->calls[r][(issued - 1) % RING]);
        }
        Presence presence = shared->presence[r];
        text += presence == Presence::absent    ? "; has not come"
                : presence == Presence::left    ? "; has destroyed the communicator"
                : presence == Presence::aborted ? "; has aborted the communicator"
                : doing[0]                      ? std::string("; in ") + doing
                                                : "; in nothing";
    }
    return text;
}

Step wait_for(const Comm &comm, const std::string &label, double since, int peer, uint64_t steps)
{
    Shared *shared = comm->shared;
    if (!shared->waiting[comm->rank]) {
        snprintf(shared->doing[comm->rank], sizeof shared->doing[0], "%s", label.c_str());
        shared->waiting[comm->rank] = true;
    }
    if (comm->error != ncclSuccess) { /* stays on the device until somebody aborts the communicator */
        if (now() - comm->failed_at > deadline()) {
            die(96, "communicator %s has failed, and was not aborted in %g s", comm->name.c_str(), deadline());
        }
        return Step::pending;
    }
    int gone = -1;
    if (now() - comm->looked_at > 0.01) { /* asking the system for every rank is slow */
        gone = gone_rank(comm, steps);
        comm->looked_at = now();
    }
    bool is_late = now() - since > deadline();
    if (gone < 0 && !is_late) {
        return Step::pending;
    }
    char seconds[32];
    snprintf(seconds, sizeof seconds, "%g", deadline());
    std::string text = "communicator " + comm->name + ", rank " + std::to_string(comm->rank) + " of " +
                       std::to_string(comm->size) + ": " + label;
    text += gone >= 0
                ? ": rank " + std::to_string(gone) + " is gone"
                : std::string(" is not complete after ") + seconds + " s; it waits for rank " + std::to_string(peer);
    return fail(comm, gone >= 0 ? ncclRemoteError : ncclSystemError, text + where_everybody_is(comm));
}

void no_longer_waits(const Comm &comm)
{
    comm->shared->waiting[comm->rank] = false;
    comm->shared->doing[comm->rank][0] = '\0';
}

/* The parts of STANDIN_NCCL_ERROR=Kind:N[@RANK]. */
struct Injection {
    std::string kind;
    uint64_t nth = 0;
    int rank = -1;
};

static Injection parse_injection()
{
    Injection wanted;
    std::string text = env("STANDIN_NCCL_ERROR", "");
    size_t colon = text.find(':'), at = text.find('@');
    if (colon != std::string::npos) {
        wanted.kind = text.substr(0, colon);
        wanted.nth = strtoull(text.c_str() + colon + 1, nullptr, 10);
        wanted.rank = at == std::string::npos ? -1 : atoi(text.c_str() + at + 1);
    }
    return wanted;
}

bool wants_error(const Comm &comm, Kind kind)
{
    static const Injection wanted = parse_injection();
    uint64_t nth = ++comm->of_kind[static_cast<int>(kind)];
    return wanted.kind == kind_name(kind) && wanted.nth == nth && (wanted.rank < 0 || wanted.rank == standin::rank());
}

} // namespace standin::nccl

extern "C" const char *ncclGetLastError(ncclComm_t)
{
    return standin::nccl::last_error;
}
