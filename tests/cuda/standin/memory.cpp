/* Memory of the device and pinned memory: two reserved ranges of addresses, each allocation ending at a guard page.
 *
 * Freed memory and guard pages map an empty file: a touch is SIGBUS whatever the protection, so that one call opens or
 * closes all memory of the device. The file's offsets follow the addresses, so that neighbours merge into one mapping
 * and the kernel's count of mappings follows the live allocations only. Memory of the device has a protection key,
 * which is opened by a write to a register of the thread; without keys by mprotect, which walks all pages: half of a
 * run. */
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <execinfo.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tests/cuda/standin/machine_impl.h"

namespace standin
{

/* Addresses for all that is ever allocated. ThreadSanitizer reserves a multiple of it for itself. */
#ifdef __SANITIZE_THREAD__
static constexpr size_t ARENA_BYTES = size_t{1} << 32;
#else
static constexpr size_t ARENA_BYTES = size_t{1} << 40;
#endif
static constexpr size_t PAGE_BYTES = 4096, ALIGNMENT = 256;

/* NaN in every floating type, -1 in every integer. */
static constexpr int POISON = 0xff;
/* Around an allocation: 195.26 as a float, 195 as bf16, 3.63 as a half. Not the poison: a NaN that is read past one end
 * and written past another would change nothing. Nor something huge: `-= 5` would change nothing. */
static constexpr int SLACK = 0x43;

static size_t round_up(size_t n, size_t unit)
{
    return (n + unit - 1) / unit * unit;
}

static bool inside(const Arena &arena, const void *ptr)
{
    auto *p = static_cast<const char *>(ptr);
    return p >= arena.begin && p < arena.begin + ARENA_BYTES;
}

bool in_arena(const void *ptr, Memory::Kind kind)
{
    return inside(machine().arenas[kind], ptr);
}

const char *kind_name(Memory::Kind kind)
{
    return kind == Memory::device ? "device" : kind == Memory::pinned ? "pinned" : "registered";
}

/* The last block that begins at or below the address. */
static Memory *block_below(const void *ptr)
{
    auto &blocks = machine().blocks;
    auto next = blocks.upper_bound(static_cast<char *>(const_cast<void *>(ptr)));
    return next == blocks.begin() ? nullptr : &std::prev(next)->second;
}

Memory *find_block(const void *ptr)
{
    Memory *block = block_below(ptr);
    return block && static_cast<const char *>(ptr) < block->ptr + block->bytes ? block : nullptr;
}

std::string describe(const void *ptr)
{
    const Memory *block = block_below(ptr);
    bool reserved = in_arena(ptr, Memory::device) || in_arena(ptr, Memory::pinned);
    auto *p = static_cast<const char *>(ptr);
    char text[200];
    if (!block || !(reserved || p < block->ptr + block->bytes)) {
        snprintf(text, sizeof text, "%p (pageable host memory)", ptr);
        return text;
    }
    snprintf(text, sizeof text, "%p = %s %s allocation #%d (%zu bytes)%+td%s", ptr, block->live ? "live" : "FREED",
             kind_name(block->kind), block->number, block->bytes, p - block->ptr,
             p >= block->ptr + block->bytes ? " PAST ITS END" : "");
    return text;
}

bool check_range(const char *who, const void *ptr, size_t bytes, bool need_device)
{
    const Memory *block = find_block(ptr);
    bool pageable = !block && !in_arena(ptr, Memory::device) && !in_arena(ptr, Memory::pinned);
    if (pageable && !need_device)
        return true;
    if (!block || !block->live || (need_device && block->kind != Memory::device)) {
        misuse("%s: %s is not %s memory", who, describe(ptr).c_str(), need_device ? "device" : "live");
        return false;
    }
    if (static_cast<const char *>(ptr) + bytes > block->ptr + block->bytes) {
        misuse("%s: %zu bytes at %s run past its end", who, bytes, describe(ptr).c_str());
        return false;
    }
    return true;
}

/* Whether this thread may touch memory of the device, by the protection key. */
static thread_local bool open_here;

bool memory_is_open()
{
    const Machine &m = machine();
    return m.protection_key >= 0 ? open_here : m.memory_open;
}

void memory_open(bool open)
{
    Machine &m = machine();
    const Arena &arena = m.arenas[Memory::device];
    if (m.host_guard != HostGuard::none && open != memory_is_open()) {
        if (m.protection_key >= 0)
            pkey_set(m.protection_key, open ? 0 : PKEY_DISABLE_ACCESS);
        else if (arena.top > arena.begin)
            mprotect(arena.begin, static_cast<size_t>(arena.top - arena.begin),
                     open ? PROT_READ | PROT_WRITE : PROT_NONE);
        m.n_switches++;
    }
    m.memory_open = open_here = open;
}

/* Makes pages of the arena that nobody can touch. */
static void close_for_good(const Arena &arena, char *begin, size_t bytes)
{
    if (mmap(begin, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, machine().empty_file,
             begin - arena.begin) == MAP_FAILED)
        die(2, "mmap of %zu guard bytes fails: %s", bytes, strerror(errno));
}

void *memory_take(size_t bytes, Memory::Kind kind)
{
    Machine &m = machine();
    Arena &arena = m.arenas[kind];
    size_t rounded = round_up(bytes ? bytes : 1, ALIGNMENT), mapping_bytes = round_up(rounded, PAGE_BYTES);
    char *mapping = arena.top;
    if (mapping + mapping_bytes + PAGE_BYTES > arena.begin + ARENA_BYTES ||
        mmap(mapping, mapping_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) ==
            MAP_FAILED)
        return nullptr;
    close_for_good(arena, mapping + mapping_bytes, PAGE_BYTES);
    arena.top = mapping + mapping_bytes + PAGE_BYTES;
    char *ptr = mapping + mapping_bytes - rounded;
    memset(mapping, SLACK, mapping_bytes);
    memset(ptr, POISON, bytes);
    if (kind == Memory::device) {
        if (m.protection_key >= 0)
            pkey_mprotect(mapping, mapping_bytes, PROT_READ | PROT_WRITE, m.protection_key);
        else if (m.host_guard != HostGuard::none && !m.memory_open)
            mprotect(mapping, mapping_bytes + PAGE_BYTES, PROT_NONE);
        m.used += rounded;
        m.peak = m.used > m.peak ? m.used : m.peak;
        m.n_allocations++;
    }
    m.blocks[ptr] = Memory{ptr, bytes, mapping, mapping_bytes, m.next_block++, kind, true};
    return ptr;
}

void memory_give(Memory &block)
{
    Machine &m = machine();
    bool was_open = memory_is_open();
    memory_open(true);
    check_slack(block);
    close_for_good(m.arenas[block.kind], block.mapping, block.mapping_bytes);
    block.live = false;
    if (block.kind == Memory::device)
        m.used -= round_up(block.bytes, ALIGNMENT);
    memory_open(was_open);
}

/* The first byte of [begin, end) that is not slack, made slack again; or null. */
static char *changed_byte(char *begin, char *end)
{
    char *found = nullptr;
    for (char *p = begin; p < end; p++) {
        if (*p != static_cast<char>(SLACK)) {
            found = found ? found : p;
            *p = static_cast<char>(SLACK);
        }
    }
    return found;
}

void check_slack(const Memory &block)
{
    if (!block.live || !block.mapping)
        return;
    char *before = changed_byte(block.mapping, block.ptr);
    char *after = changed_byte(block.ptr + block.bytes, block.mapping + block.mapping_bytes);
    char *found = after ? after : before;
    if (found) {
        misuse("write outside %s allocation #%d (%zu bytes): the byte at offset %+td changed%s%s",
               kind_name(block.kind), block.number, block.bytes, found - block.ptr, running ? " by " : "",
               running ? running->what.c_str() : "");
    }
}

static bool touches(const Access &access, const Memory &block)
{
    auto *begin = static_cast<const char *>(access.ptr);
    bool reaches = access.bytes ? begin + access.bytes > block.ptr : begin >= block.ptr;
    return begin < block.ptr + block.bytes && reaches;
}

Op *user_of(const Memory &block)
{
    for (const OpRef &op : machine().pending) {
        for (const Access &access : op->accesses) {
            if (touches(access, block))
                return op.get();
        }
    }
    return nullptr;
}

/* A touch of an arena that is not allowed: names who did it to what. Others fault as without us. */
static void on_fault(int signal_number, siginfo_t *info, void *)
{
    void *address = info->si_addr, *frames[40];
    if (in_arena(address, Memory::device) || in_arena(address, Memory::pinned)) {
        bool on_host = !running || in_host_function;
        say("FAULT", "%s%s%s touched %s", on_host ? "host code" : "operation", running ? " " : "",
            running ? running->what.c_str() : "", describe(address).c_str());
        backtrace_symbols_fd(frames, backtrace(frames, 40), STDERR_FILENO);
        _exit(98);
    }
    signal(signal_number, SIG_DFL);
    raise(signal_number);
}

void memory_start(Machine &m)
{
    for (Arena &arena : m.arenas) {
        void *range = mmap(nullptr, ARENA_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (range == MAP_FAILED)
            die(2, "cannot reserve %zu bytes of addresses: %s", ARENA_BYTES, strerror(errno));
        arena.begin = arena.top = static_cast<char *>(range);
    }
    if (m.host_guard == HostGuard::keys_or_mprotect)
        m.protection_key = pkey_alloc(0, PKEY_DISABLE_ACCESS);
    m.empty_file = memfd_create("standin_guard", MFD_CLOEXEC);
    if (m.empty_file < 0)
        die(2, "memfd_create fails: %s", strerror(errno));
    static char signal_stack[1 << 16];
    stack_t stack = {};
    stack.ss_sp = signal_stack;
    stack.ss_size = sizeof signal_stack;
    sigaltstack(&stack, nullptr);
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &action, nullptr);
    sigaction(SIGBUS, &action, nullptr);
    void *frame[1];
    backtrace(frame, 1); /* loads what it needs now, not in the handler */
}

} // namespace standin
