/* libcudart: allocation of device memory and of pinned memory, and what is known of a pointer. */
#include <cstring>

#include "tests/cuda/standin/machine_impl.h"

using namespace standin;

static cudaError_t take_device(void **ptr_out, size_t bytes)
{
    Machine &m = machine();
    device_touch();
    STANDIN_NEEDS(ptr_out, cudaErrorInvalidValue);
    STANDIN_NEEDS(!breaks_capture(), cudaErrorStreamCaptureUnsupported);
    *ptr_out = nullptr;
    if (bytes == 0)
        return cudaSuccess;
    void *ptr = bytes <= m.capacity - m.used ? memory_take(bytes, Memory::device) : nullptr;
    STANDIN_NEEDS(ptr, cudaErrorMemoryAllocation);
    *ptr_out = ptr;
    return cudaSuccess;
}

STANDIN_API cudaMalloc(void **ptr, size_t bytes)
{
    STANDIN_ENTER_FAILING(cudaMalloc, cudaErrorMemoryAllocation);
    return take_device(ptr, bytes);
}

STANDIN_API cudaMallocAsync(void **ptr, size_t bytes, cudaStream_t stream)
{
    STANDIN_ENTER_FAILING(cudaMallocAsync, cudaErrorMemoryAllocation);
    STANDIN_NEEDS(live_stream(stream), cudaErrorInvalidResourceHandle);
    cudaError_t error = take_device(ptr, bytes);
    /* The memory is the stream's: for the race detector its birth there is a write. */
    if (error == cudaSuccess && *ptr)
        enqueue({stream}, "allocation", nothing(), {{*ptr, bytes, true}});
    return error;
}

static cudaError_t take_pinned(void **ptr_out, size_t bytes)
{
    device_touch();
    STANDIN_NEEDS(ptr_out, cudaErrorInvalidValue);
    STANDIN_NEEDS(!breaks_capture(), cudaErrorStreamCaptureUnsupported);
    *ptr_out = nullptr;
    if (bytes == 0)
        return cudaSuccess;
    void *ptr = memory_take(bytes, Memory::pinned);
    STANDIN_NEEDS(ptr, cudaErrorMemoryAllocation);
    *ptr_out = ptr;
    return cudaSuccess;
}

STANDIN_API cudaMallocHost(void **ptr, size_t bytes)
{
    STANDIN_ENTER_FAILING(cudaMallocHost, cudaErrorMemoryAllocation);
    return take_pinned(ptr, bytes);
}

STANDIN_API cudaHostAlloc(void **ptr, size_t bytes, unsigned)
{
    STANDIN_ENTER_FAILING(cudaHostAlloc, cudaErrorMemoryAllocation);
    return take_pinned(ptr, bytes);
}

/* The live block of this kind that begins at ptr, or null after a report. */
static Memory *block_to_free(const char *who, void *ptr, Memory::Kind kind)
{
    Memory *block = find_block(ptr);
    if (block && block->live && block->ptr == ptr && block->kind == kind)
        return block;
    misuse("%s(%s): not the start of a live %s allocation", who, describe(ptr).c_str(), kind_name(kind));
    return nullptr;
}

static cudaError_t free_block(const char *who, void *ptr, Memory::Kind kind)
{
    if (!ptr)
        return cudaSuccess;
    STANDIN_NEEDS(!breaks_capture(), cudaErrorStreamCaptureUnsupported);
    Memory *block = block_to_free(who, ptr, kind);
    STANDIN_NEEDS(block, cudaErrorInvalidValue);
    if (const Op *user = user_of(*block)) {
        misuse("%s: %s allocation #%d (%zu bytes) is still used by %s", who, kind_name(kind), block->number,
               block->bytes, user->what.c_str());
        if (kind == Memory::device)
            force_everything(); /* as the device does; pinned memory goes at once */
    }
    access(ptr, block->bytes, true, __builtin_return_address(0));
    memory_give(*block);
    return cudaSuccess;
}

STANDIN_API cudaFree(void *ptr)
{
    STANDIN_ENTER(cudaFree);
    return free_block("cudaFree", ptr, Memory::device);
}

STANDIN_API cudaFreeHost(void *ptr)
{
    STANDIN_ENTER(cudaFreeHost);
    return free_block("cudaFreeHost", ptr, Memory::pinned);
}

STANDIN_API cudaFreeAsync(void *ptr, cudaStream_t stream)
{
    STANDIN_ENTER(cudaFreeAsync);
    STANDIN_NEEDS(live_stream(stream), cudaErrorInvalidResourceHandle);
    if (!ptr)
        return cudaSuccess;
    Memory *block = block_to_free("cudaFreeAsync", ptr, Memory::device);
    STANDIN_NEEDS(block, cudaErrorInvalidValue);
    enqueue({stream}, "free", always([=] {
                if (block->live)
                    memory_give(*block);
                return Step::done;
            }),
            {{ptr, block->bytes, true}});
    return cudaSuccess;
}

STANDIN_API cudaHostRegister(void *ptr, size_t bytes, unsigned)
{
    STANDIN_ENTER(cudaHostRegister);
    Machine &m = machine();
    STANDIN_NEEDS(ptr && bytes, cudaErrorInvalidValue);
    auto *begin = static_cast<char *>(ptr);
    auto next = m.blocks.lower_bound(begin + bytes);
    bool overlaps = next != m.blocks.begin() && std::prev(next)->second.ptr + std::prev(next)->second.bytes > begin;
    STANDIN_NEEDS(!overlaps, cudaErrorHostMemoryAlreadyRegistered);
    m.blocks[begin] = Memory{begin, bytes, nullptr, 0, m.next_block++, Memory::registered, true};
    return cudaSuccess;
}

STANDIN_API cudaHostUnregister(void *ptr)
{
    STANDIN_ENTER(cudaHostUnregister);
    Memory *block = find_block(ptr);
    STANDIN_NEEDS(block && block->ptr == ptr && block->kind == Memory::registered, cudaErrorHostMemoryNotRegistered);
    if (const Op *user = user_of(*block))
        misuse("cudaHostUnregister: %s is still used by %s", describe(ptr).c_str(), user->what.c_str());
    machine().blocks.erase(block->ptr); /* the address is the user's and may come again */
    return cudaSuccess;
}

STANDIN_API cudaHostGetDevicePointer(void **device_ptr, void *host_ptr, unsigned)
{
    STANDIN_ENTER(cudaHostGetDevicePointer);
    const Memory *block = find_block(host_ptr);
    STANDIN_NEEDS(block && block->live && block->kind != Memory::device, cudaErrorInvalidValue);
    *device_ptr = host_ptr;
    return cudaSuccess;
}

STANDIN_API cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes)
{
    STANDIN_ENTER(cudaMemGetInfo);
    device_touch();
    *free_bytes = machine().capacity - machine().used;
    *total_bytes = machine().capacity;
    return cudaSuccess;
}

STANDIN_API cudaPointerGetAttributes(cudaPointerAttributes *attributes, const void *ptr)
{
    STANDIN_ENTER(cudaPointerGetAttributes);
    const Memory *block = find_block(ptr);
    bool known = block && block->live, on_device = known && block->kind == Memory::device;
    memset(attributes, 0, sizeof *attributes);
    attributes->type = on_device ? cudaMemoryTypeDevice : known ? cudaMemoryTypeHost : cudaMemoryTypeUnregistered;
    attributes->device = known ? machine().device : -2;
    attributes->devicePointer = known ? const_cast<void *>(ptr) : nullptr;
    attributes->hostPointer = on_device ? nullptr : const_cast<void *>(ptr);
    return cudaSuccess;
}
