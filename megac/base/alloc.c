#include "megac/base/alloc.h"

#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "megac/base/log.h"

/* Every block is preceded by this header, linked so that a leak can be named; its size keeps the block aligned. */
typedef struct block {
    struct block *prev, *next;
    const char *what;
    size_t bytes;
    uint64_t magic;
    uint64_t pad[3];
} block;
_Static_assert(sizeof(block) == MC_ALLOC_ALIGN, "the header keeps the block aligned");

static const uint64_t LIVE = 0x6d656761634c4956u, DEAD = 0x6d65676163444541u;

static struct {
    pthread_mutex_t lock;
    block *head;
    mc_alloc_stats stats;
    bool frozen;
    size_t fail_at;
} heap = {.lock = PTHREAD_MUTEX_INITIALIZER};

static void link_block(block *b)
{
    pthread_mutex_lock(&heap.lock);
    b->next = heap.head;
    if (heap.head) {
        heap.head->prev = b;
    }
    heap.head = b;
    mc_alloc_stats *s = &heap.stats;
    s->live_blocks++;
    s->total_blocks++;
    s->live_bytes += b->bytes;
    s->peak_bytes = s->live_bytes > s->peak_bytes ? s->live_bytes : s->peak_bytes;
    if (heap.frozen) {
        s->first_after_freeze = s->after_freeze++ ? s->first_after_freeze : b->what;
    }
    pthread_mutex_unlock(&heap.lock);
}

static bool must_fail(void)
{
    pthread_mutex_lock(&heap.lock);
    bool fail = heap.fail_at > 0 && --heap.fail_at == 0;
    pthread_mutex_unlock(&heap.lock);
    return fail;
}

mc_status mc_alloc(size_t count, size_t bytes, const char *what, void **out)
{
    size_t total = 0;
    void *raw = NULL;
    if (!__builtin_mul_overflow(count, bytes, &total) && total <= SIZE_MAX / 2 && !must_fail()) {
        if (posix_memalign(&raw, MC_ALLOC_ALIGN, sizeof(block) + total) != 0) {
            raw = NULL;
        }
    }
    if (!raw) {
        return MC_FAIL(MC_NOMEM, "no memory for %s (%zu x %zu bytes)", what, count, bytes);
    }
    block *b = memset(raw, 0, sizeof(block) + total);
    b->what = what;
    b->bytes = total;
    b->magic = LIVE;
    link_block(b);
    *out = b + 1;
    return MC_OK;
}

mc_status mc_alloc_more(size_t used, size_t count, size_t bytes, const char *what, void **grown)
{
    void *more;
    MC_ASSERT(used <= count && (*grown || used == 0));
    MC_TRY(mc_alloc(count, bytes, what, &more));
    if (used > 0) {
        memcpy(more, *grown, used * bytes);
    }
    mc_free(*grown);
    *grown = more;
    return MC_OK;
}

void mc_free(void *ptr)
{
    if (!ptr) {
        return;
    }
    block *b = (block *)ptr - 1;
    MC_ASSERT(b->magic == LIVE);
    b->magic = DEAD;
    pthread_mutex_lock(&heap.lock);
    *(b->prev ? &b->prev->next : &heap.head) = b->next;
    if (b->next) {
        b->next->prev = b->prev;
    }
    heap.stats.live_blocks--;
    heap.stats.live_bytes -= b->bytes;
    pthread_mutex_unlock(&heap.lock);
    free(b);
}

mc_status mc_strdup(const char *text, const char *what, char **out)
{
    size_t n = strlen(text) + 1;
    char *copy;
    MC_TRY(mc_alloc(n, 1, what, (void **)&copy));
    memcpy(copy, text, n);
    *out = copy;
    return MC_OK;
}

mc_alloc_stats mc_alloc_get_stats(void)
{
    pthread_mutex_lock(&heap.lock);
    mc_alloc_stats s = heap.stats;
    pthread_mutex_unlock(&heap.lock);
    return s;
}

void mc_alloc_freeze(bool frozen)
{
    pthread_mutex_lock(&heap.lock);
    heap.frozen = frozen;
    pthread_mutex_unlock(&heap.lock);
}

void mc_alloc_fail_at(size_t nth)
{
    pthread_mutex_lock(&heap.lock);
    heap.fail_at = nth;
    pthread_mutex_unlock(&heap.lock);
}

size_t mc_alloc_report_leaks(void)
{
    size_t n = 0;
    pthread_mutex_lock(&heap.lock);
    for (block *b = heap.head; b; b = b->next, n++) {
        MC_WARN("leaked %zu bytes: %s", b->bytes, b->what);
    }
    pthread_mutex_unlock(&heap.lock);
    return n;
}
