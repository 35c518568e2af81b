/* What the processes of one NCCL communicator share: a file in memory that has no name, reached through the process
 * that made it (/proc/PID/fd/N). The address travels in the unique id; when the last process that holds it ends,
 * however it ends, the memory is gone. */
#ifndef TESTS_CUDA_STANDIN_NCCL_SEGMENT_H
#define TESTS_CUDA_STANDIN_NCCL_SEGMENT_H

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>

namespace standin::nccl
{

constexpr int MAX_RANKS = 16;
constexpr int RING = 1024;                     /* calls issued ahead of their execution that are remembered */
constexpr int SPLITS = 4;                      /* splits under way: a rank is at most one ahead of another */
constexpr size_t SLOT_BYTES = (size_t)1 << 20; /* a rank's part of one step of a collective */
constexpr size_t PIPE_BYTES = (size_t)1 << 16; /* under way from one rank to another */

using Count = std::atomic<uint64_t>;

enum class Kind { all_reduce, reduce_scatter, all_gather, broadcast, reduce, send, recv };

/* What the ranks must agree on in a call. */
struct Call {
    Kind kind;
    int type, op; /* op: reductions only, else 0 */
    int root;     /* broadcast, reduce: the root; send, recv: the other rank; else -1 */
    uint64_t count;
};

/* Messages from one rank to another, each of them a run of bytes in one stream. */
struct Pipe {
    Count sends, recvs;  /* calls issued */
    Count written, read; /* bytes */
    Call send[RING], recv[RING];
    char data[PIPE_BYTES];
};

/* Where the segment of a new communicator is found. */
struct Address {
    uint64_t magic;
    int32_t pid, file;
    uint64_t nonce;
};

/* A rank's part in ncclCommSplit number `turn` - 1. */
struct SplitChoice {
    std::atomic<uint64_t> turn, opened; /* opened: as turn, once `address` holds; first rank of the new group */
    int color, key;
    Address address;
};

enum class Presence { absent, here, left, aborted };

struct Shared {
    uint64_t nonce;
    std::atomic<int> size, attached;
    std::atomic<int> failed; /* 1 + the rank that met an error first */
    std::atomic<Presence> presence[MAX_RANKS];
    std::atomic<int> pid[MAX_RANKS], world[MAX_RANKS];
    std::atomic<bool> waiting[MAX_RANKS];
    Count issued[MAX_RANKS], published[MAX_RANKS], consumed[MAX_RANKS]; /* collectives; their steps */
    SplitChoice split[SPLITS][MAX_RANKS];
    char doing[MAX_RANKS][160]; /* for reports; not ordered with anything */
    Call calls[MAX_RANKS][RING];
    Pipe pipe[MAX_RANKS][MAX_RANKS]; /* [from][to] */
    char slot[MAX_RANKS][SLOT_BYTES];
};

/* Makes a segment; the process keeps it alive until segment_forget. False: the system gave no memory. */
bool segment_make(Address *address_out);
void segment_forget(const Address &address);

/* Maps it; null with the reason. Unmapped by segment_unmap. */
Shared *segment_map(const Address &address, std::string *why_out);
void segment_unmap(Shared *shared);

/* Whether a process still runs (one that has ended and was not waited for does not). */
bool process_runs(int pid);

} // namespace standin::nccl

#endif
