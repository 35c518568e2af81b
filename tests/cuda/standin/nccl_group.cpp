/* The calls of the stand-in for NCCL that queue work, and groups of them. */
#include <algorithm>
#include <cstdlib>
#include <map>

#include "nccl_impl.h"

using namespace standin::nccl;
using standin::Access;
using standin::Lock;
using standin::misuse;
using standin::OpRef;

namespace standin::nccl
{

/* The calls of one group on one communicator. */
struct Batch {
    Comm comm;
    std::vector<Task> tasks;
    Streams streams;
};

static thread_local int depth;
static thread_local std::vector<Batch> group;
static auto &last_of_process = *new OpRef;

static size_t src_bytes(const Comm &comm, const Task &task)
{
    size_t parts = task.kind == Kind::reduce_scatter ? static_cast<size_t>(comm->size) : 1;
    return task.src ? task.count * type_bytes(task.type) * parts : 0;
}

static size_t dst_bytes(const Comm &comm, const Task &task)
{
    size_t parts = task.kind == Kind::all_gather ? static_cast<size_t>(comm->size) : 1;
    return task.dst ? task.count * type_bytes(task.type) * parts : 0;
}

/* Source and destination are apart, or what NCCL calls in place. */
static bool placed_well(const Comm &comm, const Task &task)
{
    size_t n_src = src_bytes(comm, task), n_dst = dst_bytes(comm, task);
    if (!n_src || !n_dst || task.src + n_src <= task.dst || task.dst + n_dst <= task.src) {
        return true;
    }
    size_t part = static_cast<size_t>(comm->rank) * task.count * type_bytes(task.type);
    return task.kind == Kind::all_gather       ? task.src == task.dst + part
           : task.kind == Kind::reduce_scatter ? task.dst == task.src + part
                                               : task.src == task.dst;
}

static bool buffers_ok(const Comm &comm, const Task &task, std::vector<Access> *accesses)
{
    std::string who = std::string("nccl") + kind_name(task.kind);
    size_t n_src = src_bytes(comm, task), n_dst = dst_bytes(comm, task);
    if ((n_src && !check_range(who.c_str(), task.src, n_src, true)) ||
        (n_dst && !check_range(who.c_str(), task.dst, n_dst, true))) {
        return false;
    }
    if (!placed_well(comm, task)) {
        misuse("%s: source %s and destination %s overlap, and not as an operation in place", who.c_str(),
               describe(task.src).c_str(), describe(task.dst).c_str());
        return false;
    }
    if (n_src) {
        accesses->push_back({task.src, n_src, false});
    }
    if (n_dst) {
        accesses->push_back({task.dst, n_dst, true});
    }
    return true;
}

/* Puts a batch on its streams. */
static ncclResult_t launch(const Batch &batch)
{
    const Comm &comm = batch.comm;
    std::vector<Access> accesses;
    std::string what = "nccl";
    for (const Task &task : batch.tasks) {
        if (!buffers_ok(comm, task, &accesses)) {
            return ncclInvalidArgument;
        }
        what += std::string(" ") + kind_name(task.kind);
    }
    drop_finished(comm.get());
    if (comm->open.size() + batch.tasks.size() >= RING) { /* as much as the ranks remember of each other */
        force(comm->open[comm->open.size() / 2]);
        drop_finished(comm.get());
    }
    static const bool strict = atoi(env("STANDIN_NCCL_STRICT", "0")) != 0;
    std::vector<OpRef> after{comm->last};
    if (strict) { /* as on a device with room for one communicator's kernels at a time */
        after.push_back(last_of_process);
    }
    OpRef op = enqueue(
        batch.streams, what, [comm = comm, tasks = batch.tasks] { return make_work(comm, tasks); }, accesses, after,
        Order::internal);
    if (op) {
        comm->last = last_of_process = op;
        comm->open.push_back(op);
    }
    return ncclSuccess;
}

/* Launches the batches of a finished group. On a communicator that does not block this only begins here: the work is
 * not on the streams before ncclCommGetAsyncError has told so. */
static ncclResult_t flush()
{
    std::vector<Batch> batches;
    batches.swap(group);
    ncclResult_t result = ncclSuccess;
    for (const Batch &batch : batches) {
        if (batch.tasks.size() >= RING / 2) {
            remember_error("a group of " + std::to_string(batch.tasks.size()) + " calls is too long for this library");
            return ncclInternalError;
        }
        if (batch.comm->blocking) {
            ncclResult_t here = launch(batch);
            result = here != ncclSuccess ? here : result;
            continue;
        }
        batch.comm->progress = [batch, asked = 0]() mutable {
            ncclResult_t launched = asked++ == 0 ? ncclInProgress : launch(batch);
            return launched;
        };
        result = result == ncclSuccess ? ncclInProgress : result;
    }
    return result;
}

static bool known(const Comm &comm, const Task &task)
{
    bool rooted = task.kind >= Kind::broadcast;
    return type_bytes(task.type) != 0 && task.op >= ncclSum && task.op <= ncclAvg &&
           (!rooted || (task.peer >= 0 && task.peer < comm->size));
}

static ncclResult_t add(const char *who, ncclComm_t handle, cudaStream_t stream, Task task)
{
    Lock lock(who);
    if (lock.inject) {
        return ncclSystemError;
    }
    Comm comm;
    if (ncclResult_t result = usable(who, handle, &comm)) {
        return result;
    }
    if (!known(comm, task)) {
        remember_error(std::string(who) + ": data type, reduction or rank is not one of the communicator's");
        return ncclInvalidArgument;
    }
    bool to_root = task.kind == Kind::reduce, from_root = task.kind == Kind::broadcast;
    if (to_root && comm->rank != task.peer) {
        task.dst = nullptr;
    }
    if (from_root && comm->rank != task.peer) {
        task.src = nullptr;
    }
    bool is_message = task.kind == Kind::send || task.kind == Kind::recv;
    if (task.count != 0 || is_message) { /* NCCL drops empty collectives */
        auto it = std::find_if(group.begin(), group.end(), [&](const Batch &b) { return b.comm == comm; });
        if (it == group.end()) {
            it = group.insert(group.end(), Batch{comm, {}, {}});
        }
        it->tasks.push_back(task);
        if (std::find(it->streams.begin(), it->streams.end(), stream) == it->streams.end()) {
            it->streams.push_back(stream);
        }
    }
    return depth ? ncclSuccess : flush();
}

static const char *bytes(const void *p)
{
    return static_cast<const char *>(p);
}

static char *bytes(void *p)
{
    return static_cast<char *>(p);
}

} // namespace standin::nccl

extern "C" {

ncclResult_t ncclGroupStart()
{
    depth++;
    return ncclSuccess;
}

ncclResult_t ncclGroupEnd()
{
    Lock lock("ncclGroupEnd");
    if (depth == 0) {
        remember_error("ncclGroupEnd without ncclGroupStart");
        return ncclInvalidUsage;
    }
    return --depth ? ncclSuccess : flush();
}

ncclResult_t ncclAllReduce(const void *src, void *dst, size_t count, ncclDataType_t type, ncclRedOp_t op,
                           ncclComm_t comm, cudaStream_t stream)
{
    return add("ncclAllReduce", comm, stream, Task{Kind::all_reduce, bytes(src), bytes(dst), count, type, op, 0});
}

ncclResult_t ncclReduceScatter(const void *src, void *dst, size_t count, ncclDataType_t type, ncclRedOp_t op,
                               ncclComm_t comm, cudaStream_t stream)
{
    return add("ncclReduceScatter", comm, stream,
               Task{Kind::reduce_scatter, bytes(src), bytes(dst), count, type, op, 0});
}

ncclResult_t ncclAllGather(const void *src, void *dst, size_t count, ncclDataType_t type, ncclComm_t comm,
                           cudaStream_t stream)
{
    return add("ncclAllGather", comm, stream, Task{Kind::all_gather, bytes(src), bytes(dst), count, type, ncclSum, 0});
}

ncclResult_t ncclBroadcast(const void *src, void *dst, size_t count, ncclDataType_t type, int root, ncclComm_t comm,
                           cudaStream_t stream)
{
    return add("ncclBroadcast", comm, stream,
               Task{Kind::broadcast, bytes(src), bytes(dst), count, type, ncclSum, root});
}

ncclResult_t ncclReduce(const void *src, void *dst, size_t count, ncclDataType_t type, ncclRedOp_t op, int root,
                        ncclComm_t comm, cudaStream_t stream)
{
    return add("ncclReduce", comm, stream, Task{Kind::reduce, bytes(src), bytes(dst), count, type, op, root});
}

ncclResult_t ncclSend(const void *src, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream)
{
    return add("ncclSend", comm, stream, Task{Kind::send, bytes(src), nullptr, count, type, ncclSum, peer});
}

ncclResult_t ncclRecv(void *dst, size_t count, ncclDataType_t type, int peer, ncclComm_t comm, cudaStream_t stream)
{
    return add("ncclRecv", comm, stream, Task{Kind::recv, nullptr, bytes(dst), count, type, ncclSum, peer});
}
}
