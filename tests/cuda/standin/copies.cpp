/* libcudart: copies and fills. */
#include <cstring>

#include "tests/cuda/standin/machine_impl.h"

using namespace standin;

/* Two areas of `rows` rows of `width` bytes, `to_pitch` and `from_pitch` bytes apart. */
struct Area {
    void *to;
    size_t to_pitch;
    const void *from;
    size_t from_pitch, width, rows;
};

static size_t extent(size_t pitch, const Area &a)
{
    return pitch * (a.rows - 1) + a.width;
}

static bool on_device(const void *ptr)
{
    return in_arena(ptr, Memory::device);
}

/* Whether the kind of the copy says what the pointers are. */
static bool fits_kind(const char *who, const Area &a, cudaMemcpyKind kind)
{
    if (kind == cudaMemcpyDefault)
        return true;
    bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    if (on_device(a.to) == to_device && on_device(a.from) == from_device)
        return true;
    misuse("%s: kind %d does not fit destination %s, source %s", who, static_cast<int>(kind), describe(a.to).c_str(),
           describe(a.from).c_str());
    return false;
}

static bool copy_is_good(const char *who, const Area &a, cudaMemcpyKind kind, bool async)
{
    for (const void *ptr : {const_cast<const void *>(a.to), a.from}) {
        if (async && !on_device(ptr) && !in_arena(ptr, Memory::pinned) && !find_block(ptr)) {
            misuse("%s: %s in an asynchronous copy: whether the call waits for it is not defined", who,
                   describe(ptr).c_str());
        }
    }
    return fits_kind(who, a, kind) && check_range(who, a.to, extent(a.to_pitch, a), false) &&
           check_range(who, a.from, extent(a.from_pitch, a), false);
}

/* The rows, or one range where they lie close together. */
static void list_rows(std::vector<Access> &accesses, const void *ptr, size_t pitch, const Area &a, bool writes)
{
    if (pitch == a.width || a.rows == 1) {
        accesses.push_back({ptr, extent(pitch, a), writes});
        return;
    }
    for (size_t row = 0; row < a.rows; row++)
        accesses.push_back({static_cast<const char *>(ptr) + row * pitch, a.width, writes});
}

static OpRef enqueue_copy(const char *what, const Area &a, cudaStream_t stream)
{
    std::vector<Access> accesses;
    list_rows(accesses, a.from, a.from_pitch, a, false);
    list_rows(accesses, a.to, a.to_pitch, a, true);
    Run run = [a] {
        for (size_t row = 0; row < a.rows; row++) {
            memcpy(static_cast<char *>(a.to) + row * a.to_pitch, static_cast<const char *>(a.from) + row * a.from_pitch,
                   a.width);
        }
        return Step::done;
    };
    return enqueue({stream}, what, always(run), accesses);
}

static cudaError_t copy_async(const char *who, const char *what, const Area &a, cudaMemcpyKind kind,
                              cudaStream_t stream)
{
    STANDIN_NEEDS(live_stream(stream), cudaErrorInvalidResourceHandle);
    STANDIN_NEEDS(a.width <= a.to_pitch && a.width <= a.from_pitch, cudaErrorInvalidPitchValue);
    if (a.width == 0 || a.rows == 0)
        return cudaSuccess;
    STANDIN_NEEDS(copy_is_good(who, a, kind, true), cudaErrorInvalidValue);
    enqueue_copy(what, a, stream);
    return cudaSuccess;
}

/* In the legacy stream. The host waits, but for a copy inside the device. */
static cudaError_t copy_sync(const char *who, const char *what, const Area &a, cudaMemcpyKind kind)
{
    STANDIN_NEEDS(a.width <= a.to_pitch && a.width <= a.from_pitch, cudaErrorInvalidPitchValue);
    STANDIN_NEEDS(!breaks_capture(), cudaErrorStreamCaptureUnsupported);
    if (a.width == 0 || a.rows == 0)
        return cudaSuccess;
    STANDIN_NEEDS(copy_is_good(who, a, kind, false), cudaErrorInvalidValue);
    OpRef op = enqueue_copy(what, a, nullptr);
    return on_device(a.to) && on_device(a.from) ? cudaSuccess : set_error(force_all({op}));
}

STANDIN_API cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream)
{
    STANDIN_ENTER(cudaMemcpyAsync);
    return copy_async("cudaMemcpyAsync", "memcpy", {to, bytes, from, bytes, bytes, 1}, kind, stream);
}

STANDIN_API cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind)
{
    STANDIN_ENTER(cudaMemcpy);
    return copy_sync("cudaMemcpy", "sync memcpy", {to, bytes, from, bytes, bytes, 1}, kind);
}

STANDIN_API cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t rows,
                              cudaMemcpyKind kind, cudaStream_t stream)
{
    STANDIN_ENTER(cudaMemcpy2DAsync);
    return copy_async("cudaMemcpy2DAsync", "memcpy2D", {to, to_pitch, from, from_pitch, width, rows}, kind, stream);
}

STANDIN_API cudaMemcpy2D(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t rows,
                         cudaMemcpyKind kind)
{
    STANDIN_ENTER(cudaMemcpy2D);
    return copy_sync("cudaMemcpy2D", "sync memcpy2D", {to, to_pitch, from, from_pitch, width, rows}, kind);
}

static cudaError_t fill(const char *who, const char *what, void *ptr, int value, size_t pitch, size_t width,
                        size_t rows, cudaStream_t stream)
{
    STANDIN_NEEDS(live_stream(stream), cudaErrorInvalidResourceHandle);
    STANDIN_NEEDS(width <= pitch, cudaErrorInvalidPitchValue);
    if (width == 0 || rows == 0)
        return cudaSuccess;
    Area a{ptr, pitch, nullptr, 0, width, rows};
    const Memory *block = find_block(ptr);
    bool pinned = block && block->kind != Memory::device;
    STANDIN_NEEDS(check_range(who, ptr, extent(pitch, a), !pinned), cudaErrorInvalidValue);
    std::vector<Access> accesses;
    list_rows(accesses, ptr, pitch, a, true);
    Run run = [a, value] {
        for (size_t row = 0; row < a.rows; row++)
            memset(static_cast<char *>(a.to) + row * a.to_pitch, value, a.width);
        return Step::done;
    };
    enqueue({stream}, what, always(run), accesses);
    return cudaSuccess;
}

STANDIN_API cudaMemsetAsync(void *ptr, int value, size_t bytes, cudaStream_t stream)
{
    STANDIN_ENTER(cudaMemsetAsync);
    return fill("cudaMemsetAsync", "memset", ptr, value, bytes, bytes, 1, stream);
}

/* Asynchronous to the host, in spite of its name, as on the device. */
STANDIN_API cudaMemset(void *ptr, int value, size_t bytes)
{
    STANDIN_ENTER(cudaMemset);
    return fill("cudaMemset", "memset", ptr, value, bytes, bytes, 1, nullptr);
}

STANDIN_API cudaMemset2DAsync(void *ptr, size_t pitch, int value, size_t width, size_t rows, cudaStream_t stream)
{
    STANDIN_ENTER(cudaMemset2DAsync);
    return fill("cudaMemset2DAsync", "memset2D", ptr, value, pitch, width, rows, stream);
}

STANDIN_API cudaMemset2D(void *ptr, size_t pitch, int value, size_t width, size_t rows)
{
    STANDIN_ENTER(cudaMemset2D);
    return fill("cudaMemset2D", "memset2D", ptr, value, pitch, width, rows, nullptr);
}
