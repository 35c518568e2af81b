/* What ThreadSanitizer is told, in the build for it (LY_ON_CPU_TSAN): kernels are instrumented, the runtime is not.
 * Every CUDA thread is a TSan fiber entered without synchronisation; only barriers order them, as on a GPU. */
#ifndef TESTS_CUDA_ON_CPU_TSAN_H
#define TESTS_CUDA_ON_CPU_TSAN_H

#include "tests/cuda/on_cpu/machine.h"

#ifdef LY_ON_CPU_TSAN
#include <sanitizer/tsan_interface.h>
#include <stdlib.h>
#endif

namespace ly_on_cpu
{

#ifdef LY_ON_CPU_TSAN

/* A block takes identities other than those of the block before it: the same thread of two blocks is not one thread. */
enum { SPARE_IDENTITIES = 13, STEP_OF_IDENTITIES = 7, MAX_IDENTITIES = MAX_THREADS + SPARE_IDENTITIES };

struct tsan_state {
    void *host, *identities[MAX_IDENTITIES];
    fiber *stacks[MAX_IDENTITIES]; /* one each: reuse of a stack by another identity would look like a race */
    int n_identities, first;
    char launch, end, fence, block[2], barrier[2],
        warps[MAX_WARPS][2]; /* their addresses are what is synchronised on */
    bool blocks_apart;       /* blocks are not ordered either (LY_ON_CPU_TSAN_BLOCKS=1) */
};
extern tsan_state TSAN;

inline void tsan_read_settings()
{
    TSAN.blocks_apart = getenv("LY_ON_CPU_TSAN_BLOCKS") != nullptr;
}
inline bool tsan_blocks_apart()
{
    return TSAN.blocks_apart;
}
inline int tsan_identity(int t)
{
    return (t + TSAN.first) % TSAN.n_identities;
}
inline void tsan_become(int t)
{
    __tsan_switch_to_fiber(TSAN.identities[tsan_identity(t)], __tsan_switch_to_fiber_no_sync);
}
inline void tsan_become_host()
{
    __tsan_switch_to_fiber(TSAN.host, __tsan_switch_to_fiber_no_sync);
}
inline void tsan_release(void *tag)
{
    __tsan_release(tag);
}
inline void tsan_acquire(void *tag)
{
    __tsan_acquire(tag);
}
inline void tsan_begin_launch()
{
    TSAN.host = __tsan_get_current_fiber();
    while (TSAN.n_identities < M.n_threads + SPARE_IDENTITIES) {
        TSAN.identities[TSAN.n_identities++] = __tsan_create_fiber(0);
    }
    __tsan_release(&TSAN.launch);
}
inline void tsan_end_launch()
{
    __tsan_acquire(&TSAN.end);
}
/* What threads that will not go on have done is done before what the host does next. */
inline void tsan_abandon_threads()
{
    __tsan_release(&TSAN.end);
    for (int t = 0; t < M.n_threads; t++) {
        if (M.threads[t].state != UNSTARTED && M.threads[t].state != DONE) {
            tsan_become(t);
            __tsan_release(&TSAN.end);
        }
    }
}
/* After a failed launch: identities whose calls have not returned are of no more use. */
inline void tsan_forget()
{
    for (int i = 0; i < TSAN.n_identities; i++) {
        __tsan_destroy_fiber(TSAN.identities[i]);
        TSAN.stacks[i] = nullptr;
    }
    TSAN.n_identities = 0;
}
inline void tsan_begin_block()
{
    TSAN.first += STEP_OF_IDENTITIES;
}
inline void tsan_begin_thread()
{
    __tsan_acquire(&TSAN.launch);
    if (!TSAN.blocks_apart) {
        __tsan_acquire(&TSAN.block[~M.block & 1]);
    }
}
inline void tsan_end_thread()
{
    __tsan_release(&TSAN.end);
    if (!TSAN.blocks_apart) {
        __tsan_release(&TSAN.block[M.block & 1]);
    }
}
inline void *tsan_barrier_tag(int phase)
{
    return &TSAN.barrier[phase];
}
inline void *tsan_warp_tag(int w, int phase)
{
    return &TSAN.warps[w][phase];
}
inline void *tsan_fence_tag()
{
    return &TSAN.fence;
}

#else

inline void tsan_read_settings()
{
}
inline bool tsan_blocks_apart()
{
    return false;
}
inline void tsan_become(int)
{
}
inline void tsan_become_host()
{
}
inline void tsan_release(void *)
{
}
inline void tsan_acquire(void *)
{
}
inline void tsan_begin_launch()
{
}
inline void tsan_end_launch()
{
}
inline void tsan_abandon_threads()
{
}
inline void tsan_forget()
{
}
inline void tsan_begin_block()
{
}
inline void tsan_begin_thread()
{
}
inline void tsan_end_thread()
{
}
inline void *tsan_barrier_tag(int)
{
    return nullptr;
}
inline void *tsan_warp_tag(int, int)
{
    return nullptr;
}
inline void *tsan_fence_tag()
{
    return nullptr;
}

#endif

} // namespace ly_on_cpu

#endif
