/* What the files of the stand-in CUDA runtime share: the state of the machine, and the functions that each file offers
 * to the others. */
#ifndef TESTS_CUDA_STANDIN_MACHINE_IMPL_H
#define TESTS_CUDA_STANDIN_MACHINE_IMPL_H

#include <cstdint>
#include <list>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "tests/cuda/standin/machine.h"

namespace standin
{

/* Vector clock: per lane the number of the last operation known to have happened before. Lane 0 is the host, whose
 * entry is the number of the next operation at the time; lane 1 + stream number belongs to the stream. */
using Clock = std::vector<uint64_t>;

struct Op {
    uint64_t id;       /* in order of issue, from 1 */
    uint64_t priority; /* random order */
    std::string what;
    int lane;
    Run run;
    std::vector<OpRef> deps; /* unfinished when issued */
    std::vector<Access> accesses;
    Clock clock;
    bool finished = false;
    double finished_at = 0;           /* now() */
    std::list<OpRef>::iterator place; /* in Machine::pending */
    uint64_t mark = 0;                /* equals Machine::mark while in the cone that is being run */
    int n_waits = 0;                  /* unfinished dependencies, counted for a sweep */
    std::vector<Op *> followers;      /* of the cone, for a sweep */
};

/* Operations of a captured graph. deps: positions of earlier nodes. */
struct Node {
    std::string what;
    Maker make;
    std::vector<int> deps;
    std::vector<Access> accesses;
    int lane;
};

} // namespace standin

/* The opaque types of NVIDIA's headers. */
struct CUgraph_st {
    std::vector<standin::Node> nodes;
    cudaStream_t origin;
    cudaStreamCaptureMode mode;
    std::set<cudaStream_t> joined;
    bool broken = false;
};

struct CUgraphExec_st {
    std::vector<standin::Node> nodes;
    standin::OpRef last; /* the end of the last launch: launches of one graph follow one another */
};

struct CUstream_st {
    int number; /* 0: the legacy stream */
    unsigned flags;
    int priority;
    standin::OpRef tail;
    CUgraph_st *capture = nullptr;
    std::vector<int> capture_tail; /* nodes that the next one depends on */
    int queries = 0;
};

struct CUevent_st {
    unsigned flags;
    standin::OpRef op;
    CUgraph_st *capture = nullptr;
    std::vector<int> capture_nodes;
    int queries = 0;
};

namespace standin
{

enum class Policy { eager, late, random };
enum class Driver { present, none, old, no_device };

struct Memory {
    enum Kind { device, pinned, registered };
    char *ptr;
    size_t bytes;
    char *mapping; /* null: registered, it is the user's */
    size_t mapping_bytes;
    int number;
    Kind kind;
    bool live;
};

/* One range of addresses for device memory and one for pinned memory; no address is used twice. */
struct Arena {
    char *begin = nullptr, *top = nullptr;
};

/* STANDIN_FAIL=name:nth[@rank] */
struct Failure {
    std::string name;
    int nth = 0;   /* 0: none is asked for */
    int calls = 0; /* that matched so far */
};

/* How memory of the device is closed to host code. */
enum class HostGuard { none, keys_or_mprotect, mprotect };

struct Machine {
    std::recursive_mutex mutex; /* guards all that follows, but what never changes after the start */
    int depth = 0;              /* times the holder has locked it through Lock */
    int pid;                    /* of the process that started: a forked child reports nothing */

    Policy policy;
    uint64_t seed;
    bool race, trace, stats;
    HostGuard host_guard;
    Driver driver;
    size_t max_pending;
    double deadline; /* seconds */
    Failure failure;

    std::list<OpRef> pending; /* in order of issue */
    uint64_t next_id = 1, mark = 0, n_run = 0;
    CUstream_st legacy{0, 0, 0, nullptr, nullptr, {}, 0};
    OpRef last_legacy;
    std::set<CUstream_st *> streams;
    std::set<CUevent_st *> events;
    std::set<CUgraph_st *> graphs;
    std::set<CUgraphExec_st *> execs;
    std::set<CUgraph_st *> captures; /* in progress */
    int n_lanes = 2;                 /* the host's and the legacy stream's */
    std::vector<std::function<OpRef()>> demand_sources;
    bool helper_runs = false;

    cudaError_t lost = cudaSuccess; /* the device failed, for good */
    int n_misuses = 0;

    Arena arenas[2];                 /* Memory::device, Memory::pinned */
    std::map<char *, Memory> blocks; /* by address; dead ones stay, for reports */
    int empty_file;
    int protection_key = -1; /* of memory of the device; -1: none */
    bool memory_open = false;
    size_t capacity, used = 0, peak = 0;
    int next_block = 1;
    uint64_t n_allocations = 0, n_switches = 0;

    Clock host_clock, issued;              /* race detector */
    std::vector<std::string> op_names{""}; /* by id */

    int device = 0;
    bool device_used = false;
};

/* The machine of this process; started by the first call, never destroyed. */
Machine &machine();

/* --- machine.cpp --- */

/* The operation that this thread runs, whether it is a host function, and what cudaGetLastError will say. */
extern thread_local Op *running;
extern thread_local bool in_host_function;
extern thread_local cudaError_t last_error;

/* Whether the failure that is asked for strikes now: a call of the function `name`, of a group of functions ("*": any
 * of a library, "launch": any launch, "async": any operation when it runs). */
bool strikes(const char *name, const char *group);

uint64_t mix(uint64_t x);
/* Stream 0 and its aliases are the legacy stream. */
CUstream_st *resolve(cudaStream_t stream);
/* Whether the handle is a live stream; reported if not. */
bool live_stream(cudaStream_t stream);
/* A new operation of a lane that is not tied to a stream (node of a graph) behind `after`. */
OpRef issue(int lane, const std::string &what, Maker make, std::vector<Access> accesses,
            const std::vector<OpRef> &after);
/* force() for several; returns Machine::lost. Null ones are finished. */
cudaError_t force_all(std::vector<OpRef> ops);
/* Whatever is queued anywhere. */
cudaError_t force_everything();
/* Lets a query make progress: runs the cone of `op` without waiting. Returns whether `op` is finished. */
bool poll(const OpRef &op, int &queries);
/* A Maker of nothing, for marks in a stream. */
Maker nothing();

/* --- memory.cpp --- */

void memory_start(Machine &m);
/* Lets operations touch memory of the device; what runs afterwards in host code may not. */
void memory_open(bool open);
bool memory_is_open();
Memory *find_block(const void *ptr);
bool in_arena(const void *ptr, Memory::Kind kind);
/* Poisoned memory, or null when the machine has none left. Memory::device or Memory::pinned. */
void *memory_take(size_t bytes, Memory::Kind kind);
void memory_give(Memory &block);
/* Reports a write next to the block. */
void check_slack(const Memory &block);
/* A pending operation that declared to touch the block, or null. */
Op *user_of(const Memory &block);
const char *kind_name(Memory::Kind kind);

/* --- race.cpp --- */

void clock_join(Clock &into, const Clock &from);
/* The host has waited for the operation. */
void host_follows(const OpRef &op);
/* Gives a new operation its clock; its dependencies are joined afterwards. */
void clock_start(Op &op);
/* The operation is the last one of the lane. */
void clock_stamp(Op &op, int lane);

/* --- report.cpp --- */

void report_start();
/* `standin[RANK] TAG: text` on standard error, one write. */
void say(const char *tag, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* --- graphs.cpp --- */

/* Whether a call that must not happen while a stream is being captured breaks a capture; if so it is invalid now. */
bool breaks_capture();

/* --- device.cpp --- */

void device_start(Machine &m);
/* The error that every call returns where there is no driver or no device, or once the device is lost; or cudaSuccess.
 */
cudaError_t device_error();
/* The device is in use from now on: another one may not be chosen any more. */
void device_touch();
/* What a launch of these dimensions meets on the device: cudaSuccess, cudaErrorNoKernelImageForDevice (older than
 * everything that megac is built for), cudaErrorInvalidConfiguration. */
cudaError_t device_accepts(dim3 grid, dim3 block);
/* Dynamic shared memory in bytes that the device can give a block. */
size_t device_shared_bytes();

} // namespace standin

/* At the head of functions of libcudart: locks, returns the error of a missing driver, and the injected failure. */
#define STANDIN_API extern "C" __attribute__((visibility("default"))) cudaError_t
#define STANDIN_ENTER_FAILING(name, injected)         \
    standin::Lock lock_(#name);                       \
    if (cudaError_t error_ = standin::device_error()) \
        return standin::set_error(error_);            \
    if (lock_.inject)                                 \
    return standin::set_error(injected)
#define STANDIN_ENTER(name) STANDIN_ENTER_FAILING(name, cudaErrorUnknown)
#define STANDIN_NEEDS(condition, error) \
    if (!(condition))                   \
    return standin::set_error(error)

#endif
