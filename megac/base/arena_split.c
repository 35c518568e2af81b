/* One allocation for every tensor of an arena, for tests. */
#include <stdlib.h>
#include <string.h>

#include "megac/base/alloc.h"
#include "megac/base/arena.h"

typedef struct block {
    size_t offset, bytes;
    void *data;
    struct block *next;
} block;

struct mc_arena_split {
    mc_device *dev;
    mc_mem kind;
    mc_stream stream;
    void *ones; /* MC_ARENA_ALIGN bytes of 0xff where the host can write */
    block *blocks;
};

bool mc_arena_split_wanted(void)
{
    const char *value = getenv("MC_ARENA_SPLIT");
    return value && *value && strcmp(value, "0") != 0;
}

mc_status mc_arena_split_create(mc_device *dev, mc_mem kind, mc_stream stream, mc_arena_split **split_out)
{
    mc_arena_split *split;
    MC_TRY(MC_NEW(&split, "split arena"));
    *split = (mc_arena_split){.dev = dev, .kind = kind, .stream = stream};
    mc_status st = dev->ops->alloc(dev, MC_MEM_PINNED_HOST, MC_ARENA_ALIGN, "pattern of split arenas", &split->ones);
    if (st != MC_OK) {
        mc_free(split);
        return st;
    }
    memset(split->ones, 0xff, MC_ARENA_ALIGN);
    *split_out = split;
    return MC_OK;
}

void mc_arena_split_destroy(mc_arena_split *split)
{
    if (!split) {
        return;
    }
    while (split->blocks) {
        block *b = split->blocks;
        split->blocks = b->next;
        split->dev->ops->free(split->dev, split->kind, b->data, b->bytes);
        mc_free(b);
    }
    split->dev->ops->free(split->dev, MC_MEM_PINNED_HOST, split->ones, MC_ARENA_ALIGN);
    mc_free(split);
}

void *mc_arena_split_take(mc_arena_split *split, const char *arena, size_t offset, size_t bytes)
{
    for (block *b = split->blocks; b; b = b->next) {
        if (b->offset == offset && b->bytes == bytes) {
            return b->data;
        }
    }
    block *b = NULL;
    mc_status st = MC_NEW(&b, "block of a split arena");
    MC_ASSERT(st == MC_OK);
    st = split->dev->ops->alloc(split->dev, split->kind, bytes, arena, &b->data);
    MC_ASSERT(st == MC_OK);
    b->offset = offset;
    b->bytes = bytes;
    b->next = split->blocks;
    split->blocks = b;
    return b->data;
}

/* An error is the device's: whoever uses it next reports it. */
static void spoil(const mc_arena_split *split, const block *b)
{
    mc_device *dev = split->dev;
    size_t done = b->bytes < MC_ARENA_ALIGN ? b->bytes : MC_ARENA_ALIGN;
    mc_status st = dev->ops->copy(dev, b->data, split->ones, done, split->stream);
    while (st == MC_OK && done < b->bytes) {
        size_t n = done < b->bytes - done ? done : b->bytes - done;
        st = dev->ops->copy(dev, (char *)b->data + done, b->data, n, split->stream);
        done += n;
    }
}

void mc_arena_split_spoil(mc_arena_split *split, size_t begin, size_t end)
{
    for (const block *b = split->blocks; b; b = b->next) {
        if (b->offset >= begin && b->offset < end) {
            spoil(split, b);
        }
    }
}
