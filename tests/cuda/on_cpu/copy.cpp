/* cp.async: a queue of copies per thread, in groups. */
#include <string.h>

#include "tests/cuda/on_cpu/machine.h"

namespace ly_on_cpu
{

enum { MAX_PENDING = 256 };

struct pending_copy {
    void *to;
    const void *from;
    size_t bytes, zeros;
    int group;
};

static struct {
    pending_copy copies[MAX_PENDING];
    int first, n, group; /* group: the one being filled */
} queues[MAX_THREADS];

/* Called, never expanded in place: race detectors see copies through these functions. */
static void *(*volatile copy_bytes)(void *, const void *, size_t) = memcpy;
static void *(*volatile set_bytes)(void *, int, size_t) = memset;

static void copy_now(const pending_copy &c)
{
    copy_bytes(c.to, c.from, c.bytes - c.zeros);
    if (c.zeros) {
        set_bytes(static_cast<char *>(c.to) + c.bytes - c.zeros, 0, c.zeros);
    }
}

void reset_copies(int t)
{
    queues[t].first = queues[t].n = queues[t].group = 0;
}

void copy_async(void *to, const void *from, size_t bytes, size_t zeros, place at)
{
    auto &q = queues[M.current];
    bool aligned = reinterpret_cast<uintptr_t>(to) % bytes == 0 && reinterpret_cast<uintptr_t>(from) % bytes == 0;
    if ((bytes != 4 && bytes != 8 && bytes != 16) || zeros > bytes || !aligned) {
        fail("asynchronous copy at %s:%d: %zu bytes (%zu zeros) from %p to %p; 4, 8 or 16 bytes, aligned to as many",
             at.file, at.line, bytes, zeros, from, to);
    }
    pending_copy c = {to, from, bytes, zeros, q.group};
    bool early = M.order == LY_ON_CPU_REVERSE || (M.order == LY_ON_CPU_RANDOM && random_bits() % 2);
    if (early) {
        copy_now(c);
        return;
    }
    if (q.n == MAX_PENDING) {
        fail("asynchronous copy at %s:%d: %d copies of this thread are pending", at.file, at.line, q.n);
    }
    q.copies[(q.first + q.n++) % MAX_PENDING] = c;
}

void copy_commit()
{
    queues[M.current].group++;
}

void copy_wait(size_t n)
{
    auto &q = queues[M.current];
    while (q.n && q.copies[q.first].group < q.group - static_cast<int>(n)) {
        copy_now(q.copies[q.first]);
        q.first = (q.first + 1) % MAX_PENDING;
        q.n--;
    }
}

} // namespace ly_on_cpu
