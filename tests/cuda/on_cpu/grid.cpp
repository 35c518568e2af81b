/* A launch: its configuration, the order of its blocks, shared memory, errors, and the hook of a stand-in runtime. */
#include <algorithm>
#include <atomic>
#include <driver_types.h>
#include <link.h>
#include <map>
#include <mutex>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vector>

#include "tests/cuda/on_cpu/machine.h"
#include "tests/cuda/on_cpu/tsan.h"

namespace ly_on_cpu
{

/* Limits of every GPU that the kernels are compiled for. Dynamic shared memory beyond 48 KiB must be asked for; the
 * most is that of sm_80 (163 KiB), the smallest of them. */
enum { MAX_GRID_YZ = 65535, MAX_BLOCK_Z = 64, SHARED_UNASKED = 48 << 10, SHARED_MOST = 163 << 10, SHARED_ALIGN = 128 };

struct settings {
    ly_on_cpu_order order;
    uint64_t seed;
};

static struct {
    std::mutex running; /* one grid at a time */
    std::mutex lock;    /* of what follows */
    std::map<const void *, int> shared_allowed;
    char first_error[sizeof M.error];
    settings next;
    bool has_settings;
} S;
static std::atomic<int> last_error, n_launches;
static std::vector<uint64_t> permutation;

/* --- settings --- */

static settings settings_of_environment()
{
    const char *text = getenv("LY_ON_CPU_ORDER");
    unsigned long long seed = 1;
    if (!text || strcmp(text, "forward") == 0) {
        return {LY_ON_CPU_FORWARD, 0};
    }
    if (strcmp(text, "reverse") == 0) {
        return {LY_ON_CPU_REVERSE, 0};
    }
    if (sscanf(text, "random:%llu", &seed) == 1) {
        return {LY_ON_CPU_RANDOM, seed};
    }
    fprintf(stderr, "on_cpu: LY_ON_CPU_ORDER=%s is none of forward, reverse, random:SEED\n", text);
    abort();
}

static settings current_settings()
{
    std::lock_guard<std::mutex> guard(S.lock);
    if (!S.has_settings) {
        S.next = settings_of_environment();
        S.has_settings = true;
    }
    return S.next;
}

static void keep_error(const char *text)
{
    std::lock_guard<std::mutex> guard(S.lock);
    if (!S.first_error[0]) {
        snprintf(S.first_error, sizeof S.first_error, "%s", text);
    }
}

/* --- launches --- */

static int allowed_shared(const void *function)
{
    std::lock_guard<std::mutex> guard(S.lock);
    auto found = S.shared_allowed.find(function);
    return found == S.shared_allowed.end() ? SHARED_UNASKED : std::max<int>(found->second, SHARED_UNASKED);
}

int allow_shared(const void *function, int bytes)
{
    if (bytes < 0 || bytes > SHARED_MOST) {
        return cudaErrorInvalidValue;
    }
    std::lock_guard<std::mutex> guard(S.lock);
    S.shared_allowed[function] = bytes;
    return cudaSuccess;
}

static int check_configuration(const ly_on_cpu_launch &l, const void *function)
{
    const unsigned *g = l.grid, *b = l.block;
    uint64_t threads = static_cast<uint64_t>(b[0]) * b[1] * b[2];
    char text[512] = "";
    int error = cudaErrorInvalidConfiguration;
    if (g[0] < 1 || g[1] < 1 || g[2] < 1 || g[0] > 0x7fffffffu || g[1] > MAX_GRID_YZ || g[2] > MAX_GRID_YZ) {
        snprintf(text, sizeof text, "kernel %s: a grid of (%u,%u,%u) blocks; 1 to (2147483647,65535,65535)", l.kernel,
                 g[0], g[1], g[2]);
    } else if (threads < 1 || threads > MAX_THREADS || b[0] > MAX_THREADS || b[1] > MAX_THREADS || b[2] > MAX_BLOCK_Z) {
        snprintf(text, sizeof text, "kernel %s: a block of (%u,%u,%u) threads; 1 to 1024 in all, 64 in z", l.kernel,
                 b[0], b[1], b[2]);
    } else if (l.shared_bytes > static_cast<size_t>(allowed_shared(function))) {
        error = cudaErrorInvalidValue;
        snprintf(text, sizeof text, "kernel %s: %zu bytes of dynamic shared memory; cudaFuncSetAttribute allowed %d",
                 l.kernel, l.shared_bytes, allowed_shared(function));
    }
    if (!text[0]) {
        return cudaSuccess;
    }
    keep_error(text);
    return error;
}

void submit(const ly_on_cpu_launch &launch, const void *function)
{
    int error = check_configuration(launch, function);
    if (error) {
        launch.release(launch.closure);
    } else if (ly_on_cpu_launch_hook) {
        error = ly_on_cpu_launch_hook(&launch);
    } else {
        char message[sizeof M.error];
        error = launch.run(launch.closure, message, sizeof message);
        launch.release(launch.closure);
    }
    if (error) {
        last_error = error;
    }
}

int launched()
{
    return last_error.exchange(0);
}

/* --- shared memory --- */

/* Not memset: the sanitizers watch that. All bits set is NaN in every floating-point type. */
static void fill(char *to, size_t n, int byte)
{
    asm volatile("rep stosb" : "+D"(to), "+c"(n) : "a"(byte) : "memory");
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(LY_ON_CPU_TSAN)
extern "C" void *__tls_get_addr(size_t module_and_offset[2]);

/* Finds the thread-local data of the module that holds a kernel: its static shared memory, and nothing else. */
static int find_static_shared(dl_phdr_info *info, size_t, void *function)
{
    uintptr_t at = *static_cast<uintptr_t *>(function);
    const ElfW(Phdr) *tls = nullptr;
    bool inside = false;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) &h = info->dlpi_phdr[i];
        inside |= h.p_type == PT_LOAD && at - (info->dlpi_addr + h.p_vaddr) < h.p_memsz;
        tls = h.p_type == PT_TLS ? &h : tls;
    }
    if (inside && tls) {
        size_t start[2] = {info->dlpi_tls_modid, 0}; /* allocates the data where this OS thread has none yet */
        M.static_shared = static_cast<char *>(info->dlpi_tls_data ? info->dlpi_tls_data : __tls_get_addr(start));
        M.static_shared_bytes = tls->p_memsz;
    }
    return inside;
}
#endif

static void open_shared(const ly_on_cpu_launch &l, const void *function)
{
    M.static_shared = nullptr;
    M.static_shared_bytes = 0;
#if !defined(__SANITIZE_ADDRESS__) && !defined(LY_ON_CPU_TSAN)
    uintptr_t at = reinterpret_cast<uintptr_t>(function);
    dl_iterate_phdr(find_static_shared, &at);
#else
    (void)function;
#endif
    M.shared_bytes = l.shared_bytes;
    M.shared_base = nullptr;
    if (l.shared_bytes) {
        M.shared_stride = (l.shared_bytes + SHARED_GUARD_BYTES + SHARED_ALIGN - 1) / SHARED_ALIGN * SHARED_ALIGN;
#if defined(__SANITIZE_ADDRESS__)
        size_t bytes = l.shared_bytes; /* its red zone is exact */
#else
        size_t bytes = M.shared_stride * (tsan_blocks_apart() ? M.n_blocks : 1);
#endif
        void *block = nullptr;
        if (posix_memalign(&block, SHARED_ALIGN, bytes) != 0) {
            fprintf(stderr, "on_cpu: no memory for %zu bytes of shared memory\n", bytes);
            abort();
        }
        M.shared_base = static_cast<char *>(block);
    }
}

void *dynamic_shared()
{
    return M.shared;
}

void poison_shared()
{
    fill(M.static_shared, M.static_shared_bytes, 0xff);
    M.shared = nullptr;
    if (M.shared_base) {
        M.shared = M.shared_base + M.shared_stride * (tsan_blocks_apart() ? M.block : 0);
        fill(M.shared, M.shared_bytes, 0xff);
#if !defined(__SANITIZE_ADDRESS__)
        fill(M.shared + M.shared_bytes, SHARED_GUARD_BYTES, SHARED_GUARD);
#endif
    }
}

void check_shared()
{
#if !defined(__SANITIZE_ADDRESS__)
    if (!M.shared) {
        return;
    }
    const unsigned char *guard = reinterpret_cast<unsigned char *>(M.shared) + M.shared_bytes;
    for (int i = 0; i < SHARED_GUARD_BYTES; i++) {
        if (guard[i] != SHARED_GUARD) {
            fail("byte %d past the %zu bytes of dynamic shared memory was written", i, M.shared_bytes);
        }
    }
#endif
}

/* --- running --- */

uint64_t nth_block(uint64_t n)
{
    return M.order == LY_ON_CPU_FORWARD ? n : M.order == LY_ON_CPU_REVERSE ? M.n_blocks - 1 - n : permutation[n];
}

static void choose_order()
{
    settings s = current_settings();
    M.order = s.order;
    M.random = s.seed * 0x9e3779b97f4a7c15ull | 1;
    if (M.order == LY_ON_CPU_RANDOM) {
        permutation.resize(M.n_blocks);
        for (uint64_t i = 0; i < M.n_blocks; i++) {
            permutation[i] = i;
        }
        for (uint64_t i = M.n_blocks; i > 1; i--) {
            std::swap(permutation[i - 1], permutation[random_bits() % i]);
        }
    }
}

int run_grid(const ly_on_cpu_launch &l, const void *function, void (*thread)(void *), void *argument, char *message_out,
             size_t cap)
{
    std::lock_guard<std::mutex> guard(S.running);
    gridDim = dim3(l.grid[0], l.grid[1], l.grid[2]);
    blockDim = dim3(l.block[0], l.block[1], l.block[2]);
    threadIdx = blockIdx = {0, 0, 0};
    M.kernel = l.kernel;
    M.thread = thread;
    M.argument = argument;
    M.error[0] = '\0';
    M.n_threads = static_cast<int>(l.block[0] * l.block[1] * l.block[2]);
    M.n_warps = (M.n_threads + WARP - 1) / WARP;
    M.n_blocks = static_cast<uint64_t>(l.grid[0]) * l.grid[1] * l.grid[2];
    choose_order();
    tsan_read_settings();
    open_shared(l, function);
    run_blocks();
    free(M.shared_base);
    n_launches++;
    snprintf(message_out, cap, "%s", M.error);
    if (M.error[0]) {
        keep_error(M.error);
        return cudaErrorLaunchFailure;
    }
    return cudaSuccess;
}

} // namespace ly_on_cpu

extern "C" {

void ly_on_cpu_set_order(ly_on_cpu_order order, uint64_t seed)
{
    std::lock_guard<std::mutex> guard(ly_on_cpu::S.lock);
    ly_on_cpu::S.next = {order, seed};
    ly_on_cpu::S.has_settings = true;
}

void ly_on_cpu_reset(void)
{
    std::lock_guard<std::mutex> guard(ly_on_cpu::S.lock);
    ly_on_cpu::S.first_error[0] = '\0';
    ly_on_cpu::n_launches = 0;
}

const char *ly_on_cpu_error(void)
{
    return ly_on_cpu::S.first_error;
}

int ly_on_cpu_n_launches(void)
{
    return ly_on_cpu::n_launches;
}
}
