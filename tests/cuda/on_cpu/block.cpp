/* The threads of a block: which runs next, barriers, warp collectives, and the errors that only these can see. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/cuda/on_cpu/machine.h"
#include "tests/cuda/on_cpu/tsan.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace ly_on_cpu
{

machine M;

/* Fibers without a thread, and all of them. Under ThreadSanitizer all are made before a kernel runs: what a CUDA
 * thread allocates is its own. */
enum { MAX_FIBERS = MAX_THREADS + 64 };
static struct {
    fiber *idle[MAX_FIBERS], *all[MAX_FIBERS];
    int n_idle, n_all;
} pool;

#ifdef LY_ON_CPU_TSAN
tsan_state TSAN = {};
#endif

uint64_t random_bits()
{
    M.random ^= M.random << 13;
    M.random ^= M.random >> 7;
    M.random ^= M.random << 17;
    return M.random;
}

/* --- which thread runs --- */

static bool same_place(place a, place b)
{
    return a.line == b.line && (a.file == b.file || strcmp(a.file, b.file) == 0);
}

static void set_ready(int t)
{
    M.warps[t / WARP].ready |= 1u << t % WARP;
    M.ready_warps |= 1u << t / WARP;
}

static void clear_ready(int t)
{
    if ((M.warps[t / WARP].ready &= ~(1u << t % WARP)) == 0) {
        M.ready_warps &= ~(1u << t / WARP);
    }
}

static int choose_bit(uint32_t mask)
{
    if (M.order == LY_ON_CPU_FORWARD) {
        return __builtin_ctz(mask);
    }
    if (M.order == LY_ON_CPU_REVERSE) {
        return 31 - __builtin_clz(mask);
    }
    int by = static_cast<int>(random_bits() % 32);
    uint32_t turned = mask >> by | mask << (32 - by) % 32;
    return (by + __builtin_ctz(turned)) % 32;
}

/* -1 where none can run. The warp that runs goes on as long as it can, unless the order is random. */
static int next_thread()
{
    if (!M.ready_warps) {
        return -1;
    }
    int w = M.current / WARP;
    if (M.order == LY_ON_CPU_RANDOM || !M.warps[w].ready) {
        w = choose_bit(M.ready_warps);
    }
    return w * WARP + choose_bit(M.warps[w].ready);
}

static void switch_to(fiber *f)
{
    fiber *from = M.running;
    if (f != from) {
        M.running = f;
        fiber_switch(from, f);
    }
}

static void leave()
{
    tsan_abandon_threads();
    tsan_become_host();
    switch_to(&M.host);
}

void fail(const char *format, ...)
{
    int n = 0;
    if (M.running != &M.host) {
        n = snprintf(M.error, sizeof M.error, "kernel %s, block (%u,%u,%u), thread (%u,%u,%u): ", M.kernel, blockIdx.x,
                     blockIdx.y, blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z);
    }
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(M.error + n, sizeof M.error - static_cast<size_t>(n), format, arguments);
    va_end(arguments);
    if (M.running == &M.host || getenv("LY_ON_CPU_ABORT")) {
        fprintf(stderr, "%s\n", M.error);
        abort();
    }
    leave();
    abort(); /* an abandoned fiber is not resumed */
}

static void worker();

static fiber *new_fiber()
{
    fiber *f = fiber_create(worker);
    pool.all[pool.n_all++] = f;
    return f;
}

/* A fiber on which thread t may start. */
static fiber *fiber_for(int t)
{
#ifdef LY_ON_CPU_TSAN
    return TSAN.stacks[tsan_identity(t)];
#else
    (void)t;
    return pool.n_idle ? pool.idle[--pool.n_idle] : new_fiber();
#endif
}

static void give_back_fiber()
{
#ifndef LY_ON_CPU_TSAN
    pool.idle[pool.n_idle++] = M.running;
#endif
}

static void destroy_fibers()
{
    for (int i = 0; i < pool.n_all; i++) {
        fiber_destroy(pool.all[i]);
    }
    pool = {};
    tsan_forget();
}

/* Nobody can run: says who waits for whom. */
[[noreturn]] static void fail_deadlock()
{
    int n_waiting = 0;
    place at = {};
    for (int t = 0; t < M.n_threads; t++) {
        const cuda_thread &thread = M.threads[t];
        if (thread.state == AT_WARP) {
            const warp &w = M.warps[t / WARP];
            for (int i = 0; i < w.n_meetings; i++) {
                const meeting &m = w.meetings[i];
                if (m.arrived >> t % WARP & 1) {
                    fail("warp collective at %s:%d: mask %08x, but only lanes %08x arrived (the others wait elsewhere)",
                         m.at.file, m.at.line, m.mask, m.arrived);
                }
            }
        }
        if (thread.state == AT_BARRIER) {
            n_waiting++;
            at = thread.at;
        }
    }
    fail("__syncthreads at %s:%d reached by %d of %d threads (the others returned)", at.file, at.line, n_waiting,
         M.n_threads);
}

/* The running thread waits or has returned: another goes on. Returns when this fiber is needed again. */
static void go_on()
{
    int t = next_thread();
    if (t < 0) {
        fail_deadlock();
    }
    fiber *f = M.threads[t].state == UNSTARTED ? fiber_for(t) : M.threads[t].on;
    M.current = t;
    threadIdx = M.threads[t].index;
    switch_to(f);
}

static void wait_as(thread_state state, place at)
{
    int t = M.current;
    M.threads[t].state = state;
    M.threads[t].at = at;
    clear_ready(t);
    go_on();
    M.current = t;
    threadIdx = M.threads[t].index;
    M.threads[t].state = READY;
    tsan_become(t);
    clear_ready(t);
}

static void wake(int t)
{
    M.threads[t].state = READY;
    set_ready(t);
}

/* --- blocks --- */

static void begin_block()
{
    uint64_t b = nth_block(M.block);
    blockIdx.x = static_cast<unsigned>(b % gridDim.x);
    blockIdx.y = static_cast<unsigned>(b / gridDim.x % gridDim.y);
    blockIdx.z = static_cast<unsigned>(b / gridDim.x / gridDim.y);
    M.n_done = 0;
    M.current = 0;
    M.barrier.n_waiting = 0;
    M.ready_warps = 0;
    for (int w = 0; w < M.n_warps; w++) {
        int n = M.n_threads - w * WARP;
        M.warps[w].ready = M.warps[w].live = n >= WARP ? ~0u : (1u << n) - 1;
        M.warps[w].n_meetings = 0;
        M.ready_warps |= 1u << w;
    }
    for (int t = 0; t < M.n_threads; t++) {
        M.threads[t].state = UNSTARTED;
        reset_copies(t);
    }
    poison_shared();
    tsan_begin_block();
}

static void complete(int w, int i);

static void end_thread()
{
    int t = M.current;
    warp &w = M.warps[t / WARP];
    M.threads[t].state = DONE;
    M.n_done++;
    w.live &= ~(1u << t % WARP);
    /* A meeting that waited for this lane only may now be complete. */
    for (int i = 0; i < w.n_meetings;) {
        if (w.meetings[i].arrived == (w.meetings[i].mask & w.live)) {
            complete(t / WARP, i);
            i = 0;
        } else {
            i++;
        }
    }
}

/* Whether another block follows. */
static bool end_block()
{
    check_shared();
    if (++M.block == M.n_blocks) {
        return false;
    }
    begin_block();
    return true;
}

static void worker()
{
    fiber_entered();
    for (;;) { /* M.current has not started */
        int t = M.current;
        M.threads[t].state = READY;
        M.threads[t].on = M.running;
        clear_ready(t);
        threadIdx = M.threads[t].index;
        tsan_become(t);
        tsan_begin_thread();
        M.thread(M.argument);
        tsan_end_thread();
        end_thread();
        bool last = M.n_done == M.n_threads && !end_block();
        give_back_fiber();
        if (last) {
            leave();
        } else {
            go_on(); /* the fiber just given back is often taken again: then nothing is switched */
        }
    }
}

void run_blocks()
{
    M.running = &M.host;
#if defined(__SANITIZE_ADDRESS__)
    fiber_adopt(&M.host);
#endif
    for (int t = 0; t < M.n_threads; t++) {
        unsigned u = static_cast<unsigned>(t);
        M.threads[t].index = {u % blockDim.x, u / blockDim.x % blockDim.y, u / blockDim.x / blockDim.y};
    }
    M.block = 0;
    tsan_begin_launch();
#ifdef LY_ON_CPU_TSAN
    for (int i = 0; i < TSAN.n_identities; i++) {
        TSAN.stacks[i] = TSAN.stacks[i] ? TSAN.stacks[i] : new_fiber();
    }
#endif
    begin_block();
    int t = M.current = next_thread();
    switch_to(fiber_for(t));
    tsan_end_launch();
    M.running = &M.host;
    if (M.error[0]) {
        destroy_fibers();
    }
}

/* --- barriers and warp collectives --- */

int lane()
{
    return M.current % WARP;
}

int barrier(int predicate, reduction op, place at)
{
    block_barrier &b = M.barrier;
    int t = M.current, phase = b.phase;
    if (b.n_waiting && !same_place(at, b.at)) {
        fail("__syncthreads at %s:%d while other threads of the block wait at %s:%d", at.file, at.line, b.at.file,
             b.at.line);
    }
    if (b.n_waiting == 0) {
        b.at = at;
        b.accumulated[ANY] = b.accumulated[COUNT] = 0;
        b.accumulated[ALL] = 1;
    }
    b.accumulated[ANY] |= predicate;
    b.accumulated[ALL] &= predicate;
    b.accumulated[COUNT] += predicate;
    tsan_release(tsan_barrier_tag(phase));
    if (++b.n_waiting < M.n_threads) {
        wait_as(AT_BARRIER, at);
    } else {
        b.n_waiting = 0;
        b.phase ^= 1;
        memcpy(b.result, b.accumulated, sizeof b.result);
        for (int i = 0; i < M.n_threads; i++) {
            if (i != t) {
                wake(i);
            }
        }
    }
    tsan_acquire(tsan_barrier_tag(phase));
    return b.result[op];
}

void fence()
{
    tsan_acquire(tsan_fence_tag());
    tsan_release(tsan_fence_tag());
}

static void call_together(const warp &w)
{
    void *arguments[WARP];
    void (*fn)(void *const *) = nullptr;
    for (int j = 0; j < WARP; j++) {
        void **pair = reinterpret_cast<void **>(w.in[j]);
        fn = reinterpret_cast<void (*)(void *const *)>(pair[0]);
        arguments[j] = pair[1];
    }
    fn(arguments);
}

/* All lanes of meeting i are there: results for all, and those that wait can run. */
static void complete(int number, int i)
{
    warp &w = M.warps[number];
    meeting m = w.meetings[i];
    uint32_t ballot = 0;
    for (int j = 0; j < WARP; j++) {
        ballot |= static_cast<uint32_t>((m.arrived >> j & 1) && w.in[j]) << j;
    }
    if (m.kind == CALL) {
        call_together(w);
    }
    for (int j = 0; j < WARP; j++) {
        if (!(m.arrived >> j & 1)) {
            continue;
        }
        if (m.kind == SHUFFLE && !(m.arrived >> w.source[j] & 1)) {
            fail("shuffle at %s:%d: lane %d reads lane %d, which does not take part", m.at.file, m.at.line, j,
                 w.source[j]);
        }
        w.out[j] = m.kind == SHUFFLE ? w.in[w.source[j]] : ballot;
        int t = number * WARP + j;
        if (M.threads[t].state == AT_WARP) {
            wake(t);
        }
    }
    if (m.kind == SYNC) {
        w.phase ^= 1;
    }
    w.meetings[i] = w.meetings[--w.n_meetings];
}

/* The meeting of `mask` in warp w, made if it has not begun. */
static int find_meeting(warp &w, uint32_t mask, collective_kind kind, place at)
{
    for (int i = 0; i < w.n_meetings; i++) {
        const meeting &m = w.meetings[i];
        if (m.mask == mask) {
            if (m.kind != kind || !same_place(m.at, at)) {
                fail("warp collective at %s:%d while other lanes of its mask wait at %s:%d", at.file, at.line,
                     m.at.file, m.at.line);
            }
            return i;
        }
        if (m.mask & mask) {
            fail("warp collective at %s:%d: mask %08x overlaps mask %08x that waits at %s:%d", at.file, at.line, mask,
                 m.mask, m.at.file, m.at.line);
        }
    }
    w.meetings[w.n_meetings] = {mask, 0, kind, at};
    return w.n_meetings++;
}

uint64_t collective(collective_kind kind, uint32_t mask, uint64_t value, int source, place at)
{
    int number = M.current / WARP, own = M.current % WARP;
    warp &w = M.warps[number];
    if (!(mask >> own & 1)) {
        fail("warp collective at %s:%d: lane %d calls with mask %08x, which lacks it", at.file, at.line, own, mask);
    }
    int i = find_meeting(w, mask, kind, at), phase = w.phase;
    w.in[own] = value;
    w.source[own] = source;
    w.meetings[i].arrived |= 1u << own;
    if (kind == SYNC) {
        tsan_release(tsan_warp_tag(number, phase));
    }
    if (w.meetings[i].arrived == (mask & w.live)) {
        complete(number, i);
    } else {
        wait_as(AT_WARP, at);
    }
    if (kind == SYNC) {
        tsan_acquire(tsan_warp_tag(number, phase));
    }
    return w.out[own];
}

void warp_call(void (*fn)(void *const *arguments), void *argument, place at)
{
    if (M.warps[M.current / WARP].live != ~0u) {
        fail("a call of the whole warp at %s:%d, some lanes of which do not exist or have returned", at.file, at.line);
    }
    void *pair[2] = {reinterpret_cast<void *>(fn), argument};
    collective(CALL, ~0u, reinterpret_cast<uint64_t>(pair), 0, at);
}

} // namespace ly_on_cpu
