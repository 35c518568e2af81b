/* The state of the runtime: one grid runs at a time, one of its blocks at a time. Private to the .cpp files here. */
#ifndef TESTS_CUDA_ON_CPU_MACHINE_H
#define TESTS_CUDA_ON_CPU_MACHINE_H

#include "tests/cuda/on_cpu/fiber.h"
#include "tests/cuda/on_cpu/runtime.h"

namespace ly_on_cpu
{

enum { MAX_WARPS = MAX_THREADS / WARP, SHARED_GUARD_BYTES = 256, SHARED_GUARD = 0xa5 };

enum thread_state : uint8_t { UNSTARTED, READY, AT_WARP, AT_BARRIER, DONE };

struct cuda_thread {
    thread_state state;
    fiber *on; /* once it has started */
    place at;  /* where it waits */
    uint3 index;
};

/* Lanes that wait for the rest of a mask. */
struct meeting {
    uint32_t mask, arrived;
    collective_kind kind;
    place at;
};

struct warp {
    uint32_t ready, live; /* lanes that can run (or start); that have not returned */
    int n_meetings;
    meeting meetings[WARP];
    uint64_t in[WARP], out[WARP];
    int source[WARP];
    int phase; /* of __syncwarp, for ThreadSanitizer */
};

struct block_barrier {
    int n_waiting, phase;
    place at;
    int accumulated[3], result[3]; /* by reduction */
};

struct machine {
    const char *kernel;
    void (*thread)(void *);
    void *argument;
    ly_on_cpu_order order;
    uint64_t random;

    uint64_t n_blocks, block; /* block: how many have ended */
    int n_threads, n_warps, n_done, current;
    uint32_t ready_warps; /* with ready lanes */
    cuda_thread threads[MAX_THREADS];
    warp warps[MAX_WARPS];
    block_barrier barrier;

    fiber host, *running; /* running: host while no kernel runs */
    char *shared;         /* dynamic, of the block that runs: shared_bytes and a guard */
    size_t shared_bytes;
    char *shared_base; /* one block's after the other, or the same for all */
    size_t shared_stride;
    char *static_shared; /* the module's thread-local data */
    size_t static_shared_bytes;
    char error[1024];
};

extern machine M;

/* Runs all blocks; returns when the last one has ended or M.error says why it did not. */
void run_blocks();
uint64_t random_bits();
/* Which block of the grid is the `n`th to run. */
uint64_t nth_block(uint64_t n);
/* Fills shared memory with NaN before a block. */
void poison_shared();
/* Ends the launch if the block wrote past its dynamic shared memory. */
void check_shared();
/* Forgets the copies of thread t. */
void reset_copies(int t);

} // namespace ly_on_cpu

#endif
