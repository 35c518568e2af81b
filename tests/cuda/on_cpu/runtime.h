/* What the headers of this folder call in the runtime (block.cpp, grid.cpp). */
#ifndef TESTS_CUDA_ON_CPU_RUNTIME_H
#define TESTS_CUDA_ON_CPU_RUNTIME_H

#include <stddef.h>
#include <stdint.h>
#include <vector_types.h>

#include "tests/cuda/on_cpu/control.h"
#include "tests/cuda/on_cpu/hook.h"

/* Of the thread that runs. */
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace ly_on_cpu
{

enum { WARP = 32, MAX_THREADS = 1024 };

/* The place of a call in the kernel's source. */
struct place {
    const char *file;
    int line;
};

/* Checks the configuration, runs the launch or hands it to the hook, and frees its closure. The error is kept for
 * launched(). `function` is the kernel's address. */
void submit(const ly_on_cpu_launch &launch, const void *function);
/* The error of the last launch (a cudaError_t), which is then forgotten. */
int launched();
/* Permits more than 48 KiB of dynamic shared memory. Returns a cudaError_t. */
int allow_shared(const void *function, int bytes);
/* Runs every thread of the grid. `thread` executes the kernel for the thread that the variables above name. */
int run_grid(const ly_on_cpu_launch &launch, const void *function, void (*thread)(void *), void *argument,
             char *message_out, size_t cap);

/* --- called by the running thread --- */

/* Ends the launch with an error; does not return. */
[[noreturn]] void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
int lane();
void *dynamic_shared();

enum reduction { ANY, ALL, COUNT };
/* The barrier of the block; returns the reduction of `predicate` over its threads. */
int barrier(int predicate, reduction op, place at);

enum collective_kind { SHUFFLE, BALLOT, SYNC, CALL };
/* Meets the lanes of `mask`. SHUFFLE returns the `value` of lane `source`; BALLOT the mask of lanes with value != 0. */
uint64_t collective(collective_kind kind, uint32_t mask, uint64_t value, int source, place at);
/* Meets the whole warp; its last lane runs fn(the argument of every lane). */
void warp_call(void (*fn)(void *const *arguments), void *argument, place at);

/* What the caller did before is done before what later callers of fence() do after it. (On a GPU that needs an atomic
 * operation as well, which tells who is later.) */
void fence();

/* cp.async: a copy of `bytes` whose last `zeros` bytes are zero instead. */
void copy_async(void *to, const void *from, size_t bytes, size_t zeros, place at);
void copy_commit();
/* Completes all groups of this thread but the youngest n. */
void copy_wait(size_t n);

} // namespace ly_on_cpu

#define LY_ON_CPU_HERE (ly_on_cpu::place{__FILE__, __LINE__})

#endif
