/* Communicators of the stand-in for NCCL: how ranks meet, part and ask for errors.
 *
 * Whatever takes time is a function in comm->progress that is called until it no longer returns ncclInProgress: by the
 * call itself on a blocking communicator, by ncclCommGetAsyncError on the others. */
#include <algorithm>
#include <climits>
#include <cstdio>
#include <cstring>
#include <map>
#include <unistd.h>

#include "nccl_impl.h"

using namespace standin::nccl;

ncclComm::~ncclComm()
{
    if (shared) {
        segment_unmap(shared);
    }
}

namespace standin::nccl
{

/* Never destroyed: the machine's thread may look at it while the process ends. */
static auto &comms = *new std::map<ncclComm_t, Comm>;

Comm find(ncclComm_t handle)
{
    auto it = comms.find(handle);
    return it == comms.end() ? nullptr : it->second;
}

ncclResult_t usable(const char *who, ncclComm_t handle, Comm *comm_out)
{
    *comm_out = find(handle);
    if (!*comm_out) {
        misuse("%s: communicator handle %p is not a live one", who, static_cast<void *>(handle));
        return ncclInvalidArgument;
    }
    if ((*comm_out)->progress) {
        misuse("%s on communicator %s before ncclCommGetAsyncError has told ncclSuccess of the call before", who,
               (*comm_out)->name.c_str());
        return ncclInvalidArgument;
    }
    return (*comm_out)->error;
}

void drop_finished(ncclComm *comm)
{
    auto first_open = std::find_if(comm->open.begin(), comm->open.end(), [](const OpRef &op) { return !done(op); });
    comm->open.erase(comm->open.begin(), first_open);
}

/* The oldest operation of a communicator on which some other rank waits. */
static OpRef demanded()
{
    for (auto &[handle, comm] : comms) {
        if (!comm->shared) {
            continue;
        }
        drop_finished(handle);
        for (int r = 0; !comm->open.empty() && r < comm->size; r++) {
            if (r != comm->rank && comm->shared->waiting[r]) {
                return comm->open[0];
            }
        }
    }
    return nullptr;
}

ncclResult_t finish_progress(const Comm &comm)
{
    for (;;) {
        {
            Lock lock("");
            ncclResult_t result = comm->progress ? comm->progress() : comm->error;
            if (result != ncclInProgress) {
                comm->progress = nullptr;
                comm->error = result;
                return result;
            }
        }
        usleep(200);
    }
}

static void set_config(const Comm &comm, const ncclConfig_t *config)
{
    if (config && config->blocking != NCCL_CONFIG_UNDEF_INT) {
        comm->blocking = config->blocking != 0;
    }
    if (config && config->commName) {
        comm->name = config->commName;
    }
}

static void keep(const Comm &comm)
{
    comms[comm.get()] = comm;
    static bool once = (add_demand_source(demanded), true);
    static_cast<void>(once);
}

static std::string hex(uint64_t number)
{
    char text[20];
    snprintf(text, sizeof text, "%08llx", static_cast<unsigned long long>(number & 0xffffffff));
    return text;
}

static bool bad_config(const ncclConfig_t *config)
{
    return config && (config->magic != 0xcafebeef || config->size < offsetof(ncclConfig_t, cgaClusterSize));
}

/* Asynchronous error of a communicator, as ncclCommGetAsyncError tells it. */
static ncclResult_t async_error(const Comm &comm)
{
    if (comm->progress) {
        ncclResult_t result = comm->progress();
        if (result == ncclInProgress) {
            return result;
        }
        comm->progress = nullptr;
        comm->error = result;
    }
    if (comm->error == ncclSuccess && comm->shared->failed != 0) {
        comm->error = ncclRemoteError;
        comm->failed_at = now();
        remember_error("rank " + std::to_string(comm->shared->failed - 1) + " of communicator " + comm->name +
                       " met an error");
    }
    return comm->error;
}

/* Ends a communicator: what is left on the device runs with nobody to ask. */
static void leave(const Comm &comm, Presence presence)
{
    if (comm->shared) {
        comm->shared->presence[comm->rank] = presence;
        comm->shared->waiting[comm->rank] = false;
    }
    segment_forget(comm->address);
    comm->progress = nullptr;
    comm->aborted = true;
    comms.erase(comm.get());
}

static ncclResult_t run_all(const Comm &comm)
{
    for (const OpRef &op : std::vector<OpRef>(comm->open)) {
        force(op);
    }
    drop_finished(comm.get());
    return comm->error;
}

} // namespace standin::nccl

using standin::Lock;
using standin::misuse;

/* A blocking call that makes a communicator: none where it fails. */
static ncclResult_t finish_init(const Comm &comm, ncclComm_t *handle)
{
    ncclResult_t result = finish_progress(comm);
    if (result != ncclSuccess) {
        Lock lock("ncclCommAbort");
        leave(comm, Presence::aborted);
        *handle = nullptr;
    }
    return result;
}

extern "C" {

ncclResult_t ncclGetUniqueId(ncclUniqueId *id)
{
    Lock lock("ncclGetUniqueId");
    Address address;
    if (lock.inject || !segment_make(&address)) {
        return ncclSystemError;
    }
    static_assert(sizeof address <= sizeof *id, "the address fits into the unique id");
    memset(id, 0, sizeof *id);
    memcpy(id, &address, sizeof address);
    return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t *handle, int size, ncclUniqueId id, int rank, ncclConfig_t *config)
{
    Comm comm = std::make_shared<ncclComm>();
    {
        Lock lock("ncclCommInitRank");
        *handle = nullptr;
        if (lock.inject) {
            return ncclSystemError;
        }
        if (size < 1 || size > MAX_RANKS || rank < 0 || rank >= size || bad_config(config)) {
            return refuse(ncclInvalidArgument, "ncclCommInitRank: rank " + std::to_string(rank) + " of " +
                                                   std::to_string(size) + " (at most " + std::to_string(MAX_RANKS) +
                                                   " here), or a configuration without NCCL_CONFIG_INITIALIZER");
        }
        memcpy(&comm->address, &id, sizeof comm->address);
        comm->rank = rank;
        comm->size = size;
        comm->name = hex(comm->address.nonce);
        set_config(comm, config);
        if (ncclResult_t result = enter(comm)) {
            return result;
        }
        comm->progress = [weak = comm.get(), since = standin::now()] { return meet(find(weak), since); };
        keep(comm);
        *handle = comm.get();
        if (!comm->blocking) {
            return ncclInProgress;
        }
    }
    return finish_init(comm, handle);
}

ncclResult_t ncclCommInitRank(ncclComm_t *handle, int size, ncclUniqueId id, int rank)
{
    return ncclCommInitRankConfig(handle, size, id, rank, nullptr);
}

ncclResult_t ncclCommSplit(ncclComm_t handle, int color, int key, ncclComm_t *out, ncclConfig_t *config)
{
    Comm child = std::make_shared<ncclComm>();
    {
        Lock lock("ncclCommSplit");
        *out = nullptr;
        Comm parent;
        if (ncclResult_t result = usable("ncclCommSplit", handle, &parent)) {
            return result;
        }
        if (lock.inject || (color < 0 && color != NCCL_SPLIT_NOCOLOR) || bad_config(config)) {
            return lock.inject ? ncclSystemError : ncclInvalidArgument;
        }
        uint64_t turn = parent->splits++;
        choose_split(parent, turn, color, key);
        if (color == NCCL_SPLIT_NOCOLOR) {
            return ncclSuccess;
        }
        child->name = parent->name + "." + std::to_string(turn) + "c" + std::to_string(color);
        child->blocking = parent->blocking;
        set_config(child, config);
        child->progress = make_split(parent, child, turn);
        keep(child);
        *out = child.get();
        if (!child->blocking) {
            return ncclInProgress;
        }
    }
    return finish_init(child, out);
}

ncclResult_t ncclCommFinalize(ncclComm_t handle)
{
    Lock lock("ncclCommFinalize");
    Comm comm;
    if (ncclResult_t result = usable("ncclCommFinalize", handle, &comm)) {
        return result;
    }
    if (comm->blocking) {
        return run_all(comm);
    }
    comm->progress = [handle] { return run_all(find(handle)); };
    return ncclInProgress;
}

ncclResult_t ncclCommDestroy(ncclComm_t handle)
{
    Lock lock("ncclCommDestroy");
    if (!handle) {
        return ncclSuccess;
    }
    Comm comm;
    ncclResult_t result = usable("ncclCommDestroy", handle, &comm);
    if (result != ncclSuccess) {
        if (comm && comm->error != ncclSuccess) {
            misuse("ncclCommDestroy on communicator %s, which has failed: only ncclCommAbort ends it",
                   comm->name.c_str());
        }
        return result;
    }
    result = run_all(comm);
    leave(comm, Presence::left);
    return result;
}

ncclResult_t ncclCommAbort(ncclComm_t handle)
{
    Lock lock("ncclCommAbort");
    if (!handle) {
        return ncclSuccess;
    }
    Comm comm = find(handle);
    if (!comm) {
        misuse("ncclCommAbort: communicator handle %p is not a live one", static_cast<void *>(handle));
        return ncclInvalidArgument;
    }
    leave(comm, Presence::aborted);
    return ncclSuccess;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t handle, ncclResult_t *error)
{
    Lock lock("ncclCommGetAsyncError");
    Comm comm = find(handle);
    if (!comm) {
        misuse("ncclCommGetAsyncError: communicator handle %p is not a live one", static_cast<void *>(handle));
        return ncclInvalidArgument;
    }
    *error = async_error(comm);
    return ncclSuccess;
}

ncclResult_t ncclCommCount(const ncclComm_t handle, int *count)
{
    Lock lock("ncclCommCount");
    Comm comm;
    ncclResult_t result = usable("ncclCommCount", handle, &comm);
    if (result == ncclSuccess) {
        *count = comm->size;
    }
    return result;
}

ncclResult_t ncclCommUserRank(const ncclComm_t handle, int *rank)
{
    Lock lock("ncclCommUserRank");
    Comm comm;
    ncclResult_t result = usable("ncclCommUserRank", handle, &comm);
    if (result == ncclSuccess) {
        *rank = comm->rank;
    }
    return result;
}

ncclResult_t ncclCommCuDevice(const ncclComm_t, int *device)
{
    return cudaGetDevice(device) == cudaSuccess ? ncclSuccess : ncclUnhandledCudaError;
}

ncclResult_t ncclMemAlloc(void **ptr, size_t size)
{
    return cudaMalloc(ptr, size) == cudaSuccess ? ncclSuccess : ncclUnhandledCudaError;
}

ncclResult_t ncclMemFree(void *ptr)
{
    return cudaFree(ptr) == cudaSuccess ? ncclSuccess : ncclUnhandledCudaError;
}

ncclResult_t ncclGetVersion(int *version)
{
    *version = NCCL_VERSION_CODE;
    return ncclSuccess;
}

const char *ncclGetErrorString(ncclResult_t result)
{
    static const char *const texts[] = {
        "no error",
        "unhandled cuda error",
        "unhandled system error",
        "internal error",
        "invalid argument",
        "invalid usage",
        "a remote process has exited or met an error",
        "operation in progress",
    };
    return result >= 0 && result < ncclNumResults ? texts[result] : "unknown result code";
}
}
