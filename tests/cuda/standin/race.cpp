/* The race detector (STANDIN_RACE=1): two accesses to the same memory, one of them a write, that nothing orders.
 *
 * Orders are those of the program, not those of this run: streams, events, synchronisation of the host, each a join of
 * vector clocks. So the verdict does not depend on the policy and one run is enough. Memory has a cell per two bytes
 * (two 16-bit elements of one word may belong to two streams) that remembers the last write and the reads since. */
#include <array>
#include <cstdlib>
#include <cstring>
#include <execinfo.h>
#include <unordered_map>

#include "tests/cuda/standin/machine_impl.h"

namespace standin
{

static constexpr uintptr_t CELL_BYTES = 2, PAGE_CELLS = 4096;

struct Touch {
    int lane = -1; /* none yet */
    uint64_t id = 0;
    const void *pc = nullptr;
};

struct Cell {
    Touch write;
    std::vector<Touch> reads; /* one per lane */
};

using Page = std::array<Cell, PAGE_CELLS>;

/* The shadow of the two arenas, made where memory is touched. Guarded by the machine's lock. */
static std::unordered_map<uintptr_t, std::unique_ptr<Page>> &shadow()
{
    static auto *pages = new std::unordered_map<uintptr_t, std::unique_ptr<Page>>;
    return *pages;
}

void clock_join(Clock &into, const Clock &from)
{
    if (from.size() > into.size())
        into.resize(from.size());
    for (size_t i = 0; i < from.size(); i++)
        into[i] = from[i] > into[i] ? from[i] : into[i];
}

void host_follows(const OpRef &op)
{
    if (op && machine().race)
        clock_join(machine().host_clock, op->clock);
}

void clock_start(Op &op)
{
    Machine &m = machine();
    m.op_names.push_back(op.what); /* ids are dense */
    op.clock = m.host_clock;
    op.clock[0] = op.id;
}

void clock_stamp(Op &op, int lane)
{
    Machine &m = machine();
    auto l = static_cast<size_t>(lane);
    for (Clock *clock : {&op.clock, &m.issued}) {
        if (clock->size() <= l)
            clock->resize(l + 1);
        (*clock)[l] = op.id;
    }
}

/* "gelu [op 7, stream 2] at libx.so(gelu+0x12)" */
static std::string who(const Touch &touch)
{
    std::string text = touch.lane ? machine().op_names[touch.id] : "host code";
    char **symbols = touch.pc ? backtrace_symbols(const_cast<void *const *>(&touch.pc), 1) : nullptr;
    if (symbols) {
        const char *file = strrchr(symbols[0], '/');
        text += std::string(" at ") + (file ? file + 1 : symbols[0]);
        free(symbols);
    }
    return text;
}

/* Reports each pair of places once, whatever operations they belong to. */
static bool is_news(const std::string &one, const std::string &other)
{
    static auto *told = new std::set<std::pair<std::string, std::string>>;
    auto place = [](const std::string &s) {
        size_t number = s.find(" [op"), end = s.find(']', number);
        return number == std::string::npos ? s : s.substr(0, number) + s.substr(end + 1);
    };
    return told->insert({place(one), place(other)}).second;
}

static void report_race(const void *ptr, bool writes, const Touch &me, const Touch &other, bool other_writes)
{
    std::string mine = who(me), others = who(other);
    if (is_news(mine, others)) {
        misuse("RACE: %s of %s by %s is not ordered with %s by %s", writes ? "write" : "read", describe(ptr).c_str(),
               mine.c_str(), other_writes ? "the write" : "a read", others.c_str());
    }
}

static bool ordered(const Touch &before, const Touch &me, const Clock &clock)
{
    if (before.lane < 0)
        return true;
    auto lane = static_cast<size_t>(before.lane);
    bool same_lane = before.lane == me.lane && (before.lane == 0 || before.id <= me.id);
    return same_lane || (lane < clock.size() && before.id <= clock[lane]);
}

static void touch_cell(Cell &cell, uintptr_t address, bool writes, const Touch &me, const Clock &clock)
{
    auto *ptr = reinterpret_cast<const void *>(address);
    if (!ordered(cell.write, me, clock))
        report_race(ptr, writes, me, cell.write, true);
    if (writes) {
        for (const Touch &read : cell.reads) {
            if (!ordered(read, me, clock))
                report_race(ptr, writes, me, read, false);
        }
        cell.write = me;
        cell.reads.clear();
        return;
    }
    for (Touch &read : cell.reads) {
        if (read.lane == me.lane) {
            read = me;
            return;
        }
    }
    cell.reads.push_back(me);
}

static bool tracked(const void *ptr)
{
    return in_arena(ptr, Memory::device) || in_arena(ptr, Memory::pinned);
}

void access(const void *ptr, size_t bytes, bool writes, const void *pc)
{
    Machine &m = machine();
    if (!m.race || bytes == 0 || !tracked(ptr))
        return;
    std::lock_guard<std::recursive_mutex> guard(m.mutex);
    const Op *op = running;
    const Clock &clock = op ? op->clock : m.host_clock;
    Touch me{op ? op->lane : 0, op ? op->id : m.next_id, pc};
    Memory *block = find_block(ptr);
    if (!block || static_cast<const char *>(ptr) + bytes > block->ptr + block->bytes) {
        if (is_news(who(me), ""))
            misuse("%s of %zu bytes at %s by %s", writes ? "write" : "read", bytes, describe(ptr).c_str(),
                   who(me).c_str());
    }
    auto begin = reinterpret_cast<uintptr_t>(ptr) / CELL_BYTES;
    auto end = (reinterpret_cast<uintptr_t>(ptr) + bytes + CELL_BYTES - 1) / CELL_BYTES;
    Page *page = nullptr;
    for (uintptr_t cell = begin; cell < end; cell++) {
        if (!page || cell % PAGE_CELLS == 0) {
            auto &slot = shadow()[cell / PAGE_CELLS];
            if (!slot)
                slot = std::make_unique<Page>();
            page = slot.get();
        }
        touch_cell((*page)[cell % PAGE_CELLS], cell * CELL_BYTES, writes, me, clock);
    }
}

} // namespace standin
