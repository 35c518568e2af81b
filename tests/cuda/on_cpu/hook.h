/* How a launch on the CPU reaches a CUDA runtime that stands in for NVIDIA's.
 *
 * A library that defines ly_on_cpu_launch_hook (the stand-in libcudart.so.13) gets every launch of a process that loads
 * it: it queues the launch on its stream and calls `run` when the stream gets there. The kernels refer to the function
 * weakly: without one, LY_LAUNCH runs the grid at once on the calling thread. Plain C; no header of CUDA is needed. */
#ifndef TESTS_CUDA_ON_CPU_HOOK_H
#define TESTS_CUDA_ON_CPU_HOOK_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* A pointer argument of the kernel: where it points, whether its type lets the kernel write there, and which argument
 * it is (from 0). The extent is not known. */
typedef struct ly_on_cpu_pointer {
    const void *address;
    int writes, position;
} ly_on_cpu_pointer;

typedef struct ly_on_cpu_launch {
    const char *kernel; /* as written in LY_LAUNCH, "(norm_fwd<float, 8>)"; lives as long as the kernels' library */
    unsigned grid[3], block[3];
    size_t shared_bytes; /* dynamic */
    void *stream;        /* cudaStream_t */
    const ly_on_cpu_pointer *pointers;
    int n_pointers;
    /* Runs the whole grid on the calling thread and returns a cudaError_t; message_out says why it is not 0. May be
     * called again (replay of a graph), from any thread; runs of one process follow one another. Arguments were copied
     * when the kernel was launched. */
    int (*run)(void *closure, char *message_out, size_t cap);
    /* Frees the closure, once, after its last run. The hook's duty, also where it returns an error. */
    void (*release)(void *closure);
    void *closure;
} ly_on_cpu_launch;

/* Queues the launch and returns what cudaLaunchKernel would (0: success). The struct and `pointers` live until it
 * returns; `closure` until `release`. The configuration was checked before. */
int ly_on_cpu_launch_hook(const ly_on_cpu_launch *launch) __attribute__((weak));

#ifdef __cplusplus
}
#endif
#endif
