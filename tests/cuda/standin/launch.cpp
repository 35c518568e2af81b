/* Launches of kernels that were compiled for the CPU, and what libcudart says of kernels. */
#include <cstring>

#include "tests/cuda/on_cpu/hook.h"
#include "tests/cuda/standin/machine_impl.h"

using namespace standin;

static constexpr size_t SHARED_UNASKED_BYTES = 48 << 10;

/* Dynamic shared memory that kernels may have, by address. Guarded by the machine's lock. */
static std::map<const void *, size_t> &shared_limits()
{
    static auto *limits = new std::map<const void *, size_t>;
    return *limits;
}

static size_t shared_limit(const void *func)
{
    auto found = shared_limits().find(func);
    if (!func)
        return device_shared_bytes(); /* its launcher has checked */
    return found == shared_limits().end() ? SHARED_UNASKED_BYTES : found->second;
}

static void check_pointers(const Launch &kernel)
{
    for (const Access &access : kernel.accesses) {
        const Memory *block = access.ptr ? find_block(access.ptr) : nullptr;
        if (access.ptr && (!block || !block->live)) {
            misuse("kernel %s: pointer argument %s is neither device nor pinned memory", kernel.name,
                   describe(access.ptr).c_str());
        }
    }
}

cudaError_t standin::launch(const Launch &kernel)
{
    Lock lock(nullptr);
    if (cudaError_t error = device_error())
        return set_error(error);
    STANDIN_NEEDS(!strikes(kernel.name, "launch"), cudaErrorLaunchOutOfResources);
    STANDIN_NEEDS(live_stream(kernel.stream), cudaErrorInvalidResourceHandle);
    if (cudaError_t error = device_accepts(kernel.grid, kernel.block))
        return set_error(error);
    STANDIN_NEEDS(kernel.shared_bytes <= shared_limit(kernel.func), cudaErrorInvalidValue);
    check_pointers(kernel);
    std::function<int()> run = kernel.run;
    enqueue({kernel.stream}, kernel.name, always([run] { return run() ? Step::failed : Step::done; }), kernel.accesses);
    return cudaSuccess;
}

/* From the kernels' library (tests/cuda/on_cpu/hook.h). */
extern "C" int ly_on_cpu_launch_hook(const ly_on_cpu_launch *launch)
{
    std::shared_ptr<void> closure(launch->closure, launch->release); /* freed after the last run */
    Launch kernel{launch->kernel,
                  nullptr,
                  {launch->grid[0], launch->grid[1], launch->grid[2]},
                  {launch->block[0], launch->block[1], launch->block[2]},
                  launch->shared_bytes,
                  static_cast<cudaStream_t>(launch->stream),
                  {},
                  {}};
    for (int i = 0; i < launch->n_pointers; i++)
        kernel.accesses.push_back({launch->pointers[i].address, 0, launch->pointers[i].writes != 0});
    auto *run = launch->run;
    kernel.run = [closure, run] {
        char message[1024] = "";
        int error = run(closure.get(), message, sizeof message);
        if (error)
            misuse("%s: %s", running->what.c_str(), message);
        return error;
    };
    return standin::launch(kernel);
}

STANDIN_API cudaFuncSetAttribute(const void *func, cudaFuncAttribute attribute, int value)
{
    STANDIN_ENTER(cudaFuncSetAttribute);
    STANDIN_NEEDS(func, cudaErrorInvalidDeviceFunction);
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize)
        return cudaSuccess; /* hints */
    STANDIN_NEEDS(value >= 0 && static_cast<size_t>(value) <= device_shared_bytes(), cudaErrorInvalidValue);
    shared_limits()[func] = static_cast<size_t>(value);
    return cudaSuccess;
}

STANDIN_API cudaFuncGetAttributes(cudaFuncAttributes *attributes, const void *func)
{
    STANDIN_ENTER(cudaFuncGetAttributes);
    STANDIN_NEEDS(func, cudaErrorInvalidDeviceFunction);
    if (cudaError_t error = device_accepts(dim3(1), dim3(1)))
        return set_error(error);
    memset(attributes, 0, sizeof *attributes);
    attributes->maxThreadsPerBlock = 1024;
    attributes->maxDynamicSharedSizeBytes = static_cast<int>(shared_limit(func));
    return cudaSuccess;
}
