/* What code compiled with -fsanitize=thread calls, answered by the stand-in's race detector instead of libtsan.
 *
 * Compile this file without the option, compile the code under test with it, and link both without it, with
 * -Wl,--wrap=memcpy,--wrap=memmove,--wrap=memset (meson: standin_hooks_dep). One copy in each instrumented library. */
#include <cstdint>

#include "tests/cuda/standin/machine.h"

#define HOOK extern "C" __attribute__((visibility("hidden")))
#define CALLER __builtin_return_address(0)

HOOK void __tsan_init()
{
}
HOOK void __tsan_func_entry(void *)
{
}
HOOK void __tsan_func_exit()
{
}
HOOK void __tsan_vptr_read(void **)
{
}
HOOK void __tsan_vptr_update(void **, void *)
{
}
HOOK void __tsan_atomic_thread_fence(int)
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}
HOOK void __tsan_atomic_signal_fence(int)
{
}

#define ACCESS_AS(kind, bytes)                       \
    HOOK void __tsan_##kind##read##bytes(void *ptr)  \
    {                                                \
        standin::access(ptr, bytes, false, CALLER);  \
    }                                                \
    HOOK void __tsan_##kind##write##bytes(void *ptr) \
    {                                                \
        standin::access(ptr, bytes, true, CALLER);   \
    }
#define ACCESS_OF(bytes)         \
    ACCESS_AS(, bytes)           \
    ACCESS_AS(unaligned_, bytes) \
    ACCESS_AS(volatile_, bytes)
ACCESS_OF(1)
ACCESS_OF(2)
ACCESS_OF(4)
ACCESS_OF(8)
ACCESS_OF(16)

HOOK void __tsan_read_range(void *ptr, size_t bytes)
{
    standin::access(ptr, bytes, false, CALLER);
}
HOOK void __tsan_write_range(void *ptr, size_t bytes)
{
    standin::access(ptr, bytes, true, CALLER);
}

/* Atomics are done as they are and count as writes: those of two operations need an order too, or the sum depends on
 * the schedule. */
static inline void touch(const volatile void *ptr, size_t bytes, bool writes, const void *pc)
{
    standin::access(const_cast<const void *>(ptr), bytes, writes, pc);
}

#define ATOMIC_RMW(bits, type, name, builtin)                                   \
    HOOK type __tsan_atomic##bits##_##name(volatile type *ptr, type value, int) \
    {                                                                           \
        touch(ptr, sizeof *ptr, true, CALLER);                                  \
        return builtin(ptr, value, __ATOMIC_SEQ_CST);                           \
    }
#define ATOMIC_CAS(bits, type, name)                                                                                 \
    HOOK int __tsan_atomic##bits##_compare_exchange_##name(volatile type *ptr, type *expected, type value, int, int) \
    {                                                                                                                \
        touch(ptr, sizeof *ptr, true, CALLER);                                                                       \
        return __atomic_compare_exchange_n(ptr, expected, value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);         \
    }
#define ATOMICS(bits, type)                                                    \
    HOOK type __tsan_atomic##bits##_load(const volatile type *ptr, int)        \
    {                                                                          \
        touch(ptr, sizeof *ptr, false, CALLER);                                \
        return __atomic_load_n(ptr, __ATOMIC_SEQ_CST);                         \
    }                                                                          \
    HOOK void __tsan_atomic##bits##_store(volatile type *ptr, type value, int) \
    {                                                                          \
        touch(ptr, sizeof *ptr, true, CALLER);                                 \
        __atomic_store_n(ptr, value, __ATOMIC_SEQ_CST);                        \
    }                                                                          \
    ATOMIC_RMW(bits, type, exchange, __atomic_exchange_n)                      \
    ATOMIC_RMW(bits, type, fetch_add, __atomic_fetch_add)                      \
    ATOMIC_RMW(bits, type, fetch_sub, __atomic_fetch_sub)                      \
    ATOMIC_RMW(bits, type, fetch_and, __atomic_fetch_and)                      \
    ATOMIC_RMW(bits, type, fetch_or, __atomic_fetch_or)                        \
    ATOMIC_RMW(bits, type, fetch_xor, __atomic_fetch_xor)                      \
    ATOMIC_CAS(bits, type, strong)                                             \
    ATOMIC_CAS(bits, type, weak)
ATOMICS(8, uint8_t)
ATOMICS(16, uint16_t)
ATOMICS(32, uint32_t)
ATOMICS(64, uint64_t)

extern "C" {
void *__real_memcpy(void *, const void *, size_t);
void *__real_memmove(void *, const void *, size_t);
void *__real_memset(void *, int, size_t);
}
HOOK void *__wrap_memcpy(void *to, const void *from, size_t bytes)
{
    standin::access(from, bytes, false, CALLER);
    standin::access(to, bytes, true, CALLER);
    return __real_memcpy(to, from, bytes);
}
HOOK void *__wrap_memmove(void *to, const void *from, size_t bytes)
{
    standin::access(from, bytes, false, CALLER);
    standin::access(to, bytes, true, CALLER);
    return __real_memmove(to, from, bytes);
}
HOOK void *__wrap_memset(void *to, int value, size_t bytes)
{
    standin::access(to, bytes, true, CALLER);
    return __real_memset(to, value, bytes);
}
