/* The stream machine of the stand-in CUDA runtime (libcudart.so.13): what the other stand-in libraries (NCCL, cuBLASLt,
 * cuDNN) and the launcher of kernels use of it. README.md has the model.
 *
 * Work is queued with enqueue() and runs later, when somebody waits for it or when the policy likes, one operation at a
 * time in any thread that holds the machine. An operation never blocks: it says that it is pending and is stepped
 * again. Everything here is called with the machine locked: by a Lock at the head of each function of the imitated
 * library, or from inside an operation.
 *
 *     libraryStatus_t libraryDoubleIt(float *x, size_t n, cudaStream_t stream)
 *     {
 *         standin::Lock lock("libraryDoubleIt");
 *         if (lock.inject)
 *             return LIBRARY_FAILED;
 *         if (!standin::check_range("libraryDoubleIt", x, n * sizeof *x, true))
 *             return LIBRARY_BAD_ARGUMENT;
 *         standin::enqueue({stream}, "doubleIt", standin::always([=] { ...; return standin::Step::done; }),
 *                          {{x, n * sizeof *x, false}, {x, n * sizeof *x, true}});
 *         return LIBRARY_OK;
 *     }
 */
#ifndef TESTS_CUDA_STANDIN_MACHINE_H
#define TESTS_CUDA_STANDIN_MACHINE_H

#include <cstddef>
#include <cuda_runtime_api.h>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace standin
{

/* What one step of an operation came to. pending: it waits for another process, and is stepped again later. failed: the
 * device is lost; every later call of the process returns an error, as after a fault on the device. */
enum class Step { done, pending, failed };

/* One execution of an operation, stepped until it is no longer pending. The memory of the device is open meanwhile. */
using Run = std::function<Step()>;

/* Makes the Run. Called once when the work is queued or, under stream capture, once for every launch of the graph: what
 * each execution must have for itself (a sequence number, progress) begins here. */
using Maker = std::function<Run()>;

/* The Maker of a Run that keeps nothing between its steps. */
inline Maker always(Run run)
{
    return [run] { return run; };
}

/* Memory that an operation reads or writes. bytes == 0: the extent is unknown (pointer argument of a kernel); such a
 * pointer keeps its allocation in use, but is nothing that the race detector can judge. */
struct Access {
    const void *ptr;
    size_t bytes;
    bool writes;
};

struct Op;
using OpRef = std::shared_ptr<Op>;
using Streams = std::vector<cudaStream_t>;

/* What the dependencies `after` of an operation mean to the race detector: they order the user's data, or they only
 * keep a library's own book in order and no user may count on them. */
enum class Order { data, internal };

/* Queues an operation behind all that is queued on `streams` (at least one; with several, each of them then waits for
 * it, as for a NCCL group) and behind `after`. `what` is its name in reports. While a stream is being captured it
 * becomes a node of the graph and the result is null; so it is when a stream is not a live one, which is reported. */
OpRef enqueue(const Streams &streams, const std::string &what, Maker make, std::vector<Access> accesses = {},
              std::vector<OpRef> after = {}, Order order = Order::data);

/* Whether an operation is finished; null is. */
bool done(const OpRef &op);

/* Runs what `op` needs, and `op`; returns when it is finished. The lock is released while it waits for other processes.
 * The host now follows the operation, also for the race detector. */
void force(const OpRef &op);

/* Whether work queued on the stream now becomes a node of a graph. */
bool capturing(cudaStream_t stream);

/* Asked by a thread of the machine, locked, every 200 microseconds: an operation that another process waits for, or
 * null. It is then run as far as it goes, whatever this process's main thread does. */
void add_demand_source(std::function<OpRef()> source);

/* Reports an error of the program under test: one line on standard error, `standin[RANK] MISUSE: ...`. The process will
 * end with status 97. */
void misuse(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Ends the process at once: `standin[RANK] FATAL: ...`. Status 96: processes disagree or one of them is late. */
[[noreturn]] void die(int status, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Keeps an error for cudaGetLastError, unless it is cudaSuccess, and returns it. */
cudaError_t set_error(cudaError_t error);

/* Whether [ptr, ptr + bytes) lies in one live allocation; if not, reports it in the name of the function `who`.
 * need_device: of the device; else pinned memory is good too, and pageable memory is not looked at. */
bool check_range(const char *who, const void *ptr, size_t bytes, bool need_device);

/* "0x7f.. = live device allocation #3 (4096 bytes)+16", for reports. */
std::string describe(const void *ptr);

/* Race detector: an access to [ptr, ptr + bytes) by the running operation or, outside operations, by host code at the
 * address `pc` (may be null). Operations need not call it for what they declared to enqueue. */
void access(const void *ptr, size_t bytes, bool writes, const void *pc);

/* Seconds of a clock that never goes back. */
double now();

/* An environment variable, or `preset` where it is unset or empty. */
const char *env(const char *name, const char *preset);

/* Rank of this process as its launcher numbers it (0 without one), in the job and on this node; for reports and seeds.
 */
int rank();
int local_rank();

/* Held by every function of an imitated library: locks the machine and, when the last one goes, closes the memory of
 * the device to host code. inject: this call is the one that STANDIN_FAIL=api:nth wants to see fail. */
struct Lock {
    explicit Lock(const char *api);
    ~Lock();
    Lock(const Lock &) = delete;
    Lock &operator=(const Lock &) = delete;
    bool inject;
};

/* A launch of a kernel on the CPU. func: the kernel's address, as given to cudaFuncSetAttribute. run: executes all
 * blocks and returns 0, or another number when the kernel did what no kernel may (it has reported what). accesses: the
 * pointer arguments, with bytes == 0. */
struct Launch {
    const char *name;
    const void *func;
    dim3 grid, block;
    size_t shared_bytes;
    cudaStream_t stream;
    std::function<int()> run;
    std::vector<Access> accesses;
};

/* Queues it. Takes the lock itself. The errors are those of a launch on a device: cudaErrorInvalidConfiguration for bad
 * dimensions, cudaErrorInvalidValue for more dynamic shared memory than the kernel was allowed; also to be had from
 * cudaGetLastError. */
cudaError_t launch(const Launch &kernel);

} // namespace standin

#endif
