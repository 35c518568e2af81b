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
    block *blocks;
};

bool mc_arena_split_wanted(void)
{
    const char *value = getenv("MC_ARENA_SPLIT");
    return value && *value && strcmp(value, "0") != 0;
}

mc_status mc_arena_split_create(mc_device *dev, mc_mem kind, mc_arena_split **split_out)
{
    mc_arena_split *split;
    MC_TRY(MC_NEW(&split, "split arena"));
    split->dev = dev;
    split->kind = kind;
    *split_out = split;
    return MC_OK;
}

void mc_arena_split_destroy(mc_arena_split *split)
{
    while (split && split->blocks) {
        block *b = split->blocks;
        split->blocks = b->next;
        split->dev->ops->free(split->dev, split->kind, b->data, b->bytes);
        mc_free(b);
    }
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
