/* CUDA's keywords and the launch of a kernel, for g++. */
#ifndef TESTS_CUDA_ON_CPU_LAUNCH_H
#define TESTS_CUDA_ON_CPU_LAUNCH_H

#include <driver_types.h>
#include <tuple>
#include <type_traits>
#include <vector_functions.h>

#include "tests/cuda/on_cpu/runtime.h"

/* Static shared memory. One block runs at a time, so that one copy will do. As thread-local data it is one range of the
 * module (also in templates, where g++ ignores a section attribute), which the runtime fills with NaN before every
 * block. The sanitizers know plain statics better: they have red zones and names. */
#undef __shared__
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define __shared__ static
#else
#define __shared__ static thread_local
#endif
#undef __launch_bounds__
#define __launch_bounds__(...)

static const int warpSize = ly_on_cpu::WARP;

namespace ly_on_cpu
{

/* A kernel with its arguments, copied at the launch. */
template <class... P> struct bound_call {
    ly_on_cpu_launch launch;
    void (*kernel)(P...);
    std::tuple<P...> arguments;

    static void thread(void *self)
    {
        auto *call = static_cast<bound_call *>(self);
        std::apply(call->kernel, call->arguments);
    }
    static int run(void *self, char *message_out, size_t cap)
    {
        auto *call = static_cast<bound_call *>(self);
        return run_grid(call->launch, reinterpret_cast<const void *>(call->kernel), thread, self, message_out, cap);
    }
    static void release(void *self)
    {
        delete static_cast<bound_call *>(self);
    }
};

template <class T> inline void list_pointer(ly_on_cpu_pointer *list, int &n, int position, const T &argument)
{
    if constexpr (std::is_pointer_v<T>) {
        list[n++] = {static_cast<const void *>(argument), !std::is_const_v<std::remove_pointer_t<T>>, position};
    }
}

/* `function` again: only its type deduces P, so that arguments convert as in a call. */
template <class... P, class... A>
inline void launch_kernel(const char *name, dim3 grid, dim3 block, size_t shared_bytes, void *stream,
                          void (*kernel)(P...), const A &...arguments)
{
    static_assert(sizeof...(P) == sizeof...(A), "a kernel gets as many arguments as it has parameters");
    static_assert((std::is_convertible_v<A, P> && ...), "an argument does not convert to its parameter");
    static_assert((std::is_trivially_copyable_v<P> && ...), "kernel parameters are copied byte by byte");
    static_assert((sizeof(P) + ... + 0) <= 4096, "at most 4 KiB of kernel parameters");
    using call = bound_call<P...>;
    ly_on_cpu_pointer pointers[sizeof...(P) + 1];
    int n_pointers = 0, position = 0;
    auto *bound = new call{{}, kernel, std::tuple<P...>(static_cast<P>(arguments)...)};
    std::apply([&](auto &...x) { (list_pointer(pointers, n_pointers, position++, x), ...); }, bound->arguments);
    bound->launch = {name,
                     {grid.x, grid.y, grid.z},
                     {block.x, block.y, block.z},
                     shared_bytes,
                     stream,
                     pointers,
                     n_pointers,
                     call::run,
                     call::release,
                     bound};
    ly_on_cpu_launch launch = bound->launch;
    bound->launch.pointers = nullptr;
    submit(launch, reinterpret_cast<const void *>(kernel));
}

template <class... P> inline cudaError_t set_attribute(void (*kernel)(P...), cudaFuncAttribute attribute, int value)
{
    return attribute == cudaFuncAttributeMaxDynamicSharedMemorySize
               ? static_cast<cudaError_t>(allow_shared(reinterpret_cast<const void *>(kernel), value))
               : cudaSuccess; /* a hint: carve-out, cluster preferences */
}

} // namespace ly_on_cpu

#define LY_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
    ly_on_cpu::launch_kernel(#kernel, (grid), (block), (shared_bytes), (stream), (kernel)__VA_OPT__(, ) __VA_ARGS__)
#define LY_SHARED_DYN(T, name) T *name = reinterpret_cast<T *>(ly_on_cpu::dynamic_shared())
#define cudaFuncSetAttribute ly_on_cpu::set_attribute

static inline int ly_launched()
{
    return ly_on_cpu::launched();
}

#endif
