/* Barriers, warp collectives and atomics. Each names its place in the source, so that an error can. */
#ifndef TESTS_CUDA_ON_CPU_SYNC_H
#define TESTS_CUDA_ON_CPU_SYNC_H

#include <string.h>
#include <type_traits>

#include "tests/cuda/on_cpu/runtime.h"

#define __syncthreads() ((void)ly_on_cpu::barrier(0, ly_on_cpu::ANY, LY_ON_CPU_HERE))
#define __syncthreads_or(p) ly_on_cpu::barrier(!!(p), ly_on_cpu::ANY, LY_ON_CPU_HERE)
#define __syncthreads_and(p) ly_on_cpu::barrier(!!(p), ly_on_cpu::ALL, LY_ON_CPU_HERE)
#define __syncthreads_count(p) ly_on_cpu::barrier(!!(p), ly_on_cpu::COUNT, LY_ON_CPU_HERE)

/* The width argument is optional. */
#define __shfl_sync(mask, value, ...) ly_on_cpu::shuffle(ly_on_cpu::INDEX, LY_ON_CPU_HERE, mask, value, __VA_ARGS__)
#define __shfl_up_sync(mask, value, ...) ly_on_cpu::shuffle(ly_on_cpu::UP, LY_ON_CPU_HERE, mask, value, __VA_ARGS__)
#define __shfl_down_sync(mask, value, ...) ly_on_cpu::shuffle(ly_on_cpu::DOWN, LY_ON_CPU_HERE, mask, value, __VA_ARGS__)
#define __shfl_xor_sync(mask, value, ...) ly_on_cpu::shuffle(ly_on_cpu::XOR, LY_ON_CPU_HERE, mask, value, __VA_ARGS__)
#define __ballot_sync(mask, p) \
    static_cast<unsigned>(ly_on_cpu::collective(ly_on_cpu::BALLOT, mask, !!(p), 0, LY_ON_CPU_HERE))
#define __any_sync(mask, p) (__ballot_sync(mask, p) != 0)
#define __all_sync(mask, p) (__ballot_sync(mask, !(p)) == 0)
/* __syncwarp(), __syncwarp(mask) */
#define __syncwarp ly_on_cpu::warp_barrier{LY_ON_CPU_HERE}.meet
#define __threadfence() ly_on_cpu::fence()
#define __threadfence_system() ly_on_cpu::fence()
#define __threadfence_block() ((void)0)

namespace ly_on_cpu
{

enum shuffle_mode { INDEX, UP, DOWN, XOR };

template <class T> inline uint64_t to_bits(T x)
{
    static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>, "at most 8 bytes");
    uint64_t bits = 0;
    memcpy(&bits, &x, sizeof x);
    return bits;
}

template <class T> inline T from_bits(uint64_t bits)
{
    T x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* The lane read: within its segment of `width` lanes, or the own lane. */
inline int shuffle_source(shuffle_mode mode, int own, int by, int width)
{
    int first = own & ~(width - 1);
    int source = mode == INDEX  ? first + (by & (width - 1))
                 : mode == UP   ? own - by
                 : mode == DOWN ? own + by
                                : own ^ by;
    return source < first || source >= first + width ? own : source;
}

template <class T> inline T shuffle(shuffle_mode mode, place at, uint32_t mask, T value, int by, int width = WARP)
{
    if (width < 1 || width > WARP || (width & (width - 1)) != 0) {
        fail("shuffle at %s:%d: a width of %d is no power of two up to 32", at.file, at.line, width);
    }
    return from_bits<T>(collective(SHUFFLE, mask, to_bits(value), shuffle_source(mode, lane(), by, width), at));
}

struct warp_barrier {
    place at;
    void meet(uint32_t mask = 0xffffffffu) const
    {
        collective(SYNC, mask, 0, 0, at);
    }
};

/* One OS thread runs all blocks: plain code would do, but ThreadSanitizer must know that these may race. */
template <class T, class F> inline T atomic_update(T *p, F next)
{
    using word = std::conditional_t<sizeof(T) == 2, uint16_t, std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>>;
    word *at = reinterpret_cast<word *>(p);
    word before = __atomic_load_n(at, __ATOMIC_RELAXED);
    for (;;) {
        T old = from_bits<T>(before);
        word after = static_cast<word>(to_bits<T>(next(old)));
        if (__atomic_compare_exchange_n(at, &before, after, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
            return old;
        }
    }
}

} // namespace ly_on_cpu

template <class T, class V> static inline T atomicAdd(T *p, V x)
{
    return ly_on_cpu::atomic_update(p, [=](T old) { return static_cast<T>(old + static_cast<T>(x)); });
}
template <class T, class V> static inline T atomicSub(T *p, V x)
{
    return ly_on_cpu::atomic_update(p, [=](T old) { return static_cast<T>(old - static_cast<T>(x)); });
}
template <class T, class V> static inline T atomicMax(T *p, V x)
{
    return ly_on_cpu::atomic_update(p, [=](T old) { return old < static_cast<T>(x) ? static_cast<T>(x) : old; });
}
template <class T, class V> static inline T atomicMin(T *p, V x)
{
    return ly_on_cpu::atomic_update(p, [=](T old) { return static_cast<T>(x) < old ? static_cast<T>(x) : old; });
}
template <class T, class V> static inline T atomicOr(T *p, V x)
{
    return ly_on_cpu::atomic_update(p, [=](T old) { return static_cast<T>(old | static_cast<T>(x)); });
}
template <class T, class V> static inline T atomicAnd(T *p, V x)
{
    return ly_on_cpu::atomic_update(p, [=](T old) { return static_cast<T>(old & static_cast<T>(x)); });
}
template <class T, class V> static inline T atomicExch(T *p, V x)
{
    return ly_on_cpu::atomic_update(p, [=](T) { return static_cast<T>(x); });
}
template <class T, class U, class V> static inline T atomicCAS(T *p, U expected, V x)
{
    return ly_on_cpu::atomic_update(p,
                                    [=](T old) { return old == static_cast<T>(expected) ? static_cast<T>(x) : old; });
}
/* Counts up to `limit`, then starts again at 0: how the last block of a grid is found. */
static inline unsigned atomicInc(unsigned *p, unsigned limit)
{
    return ly_on_cpu::atomic_update(p, [=](unsigned old) { return old >= limit ? 0u : old + 1; });
}

#endif
