#include "megac/base/arena.h"

#include <stdint.h>

void mc_arena_init(mc_arena *arena, const char *name)
{
    *arena = (mc_arena){.name = name, .cap_bytes = SIZE_MAX / 2};
}

void mc_arena_bind(mc_arena *arena, void *base, size_t bytes)
{
    MC_ASSERT((uintptr_t)base % MC_ARENA_ALIGN == 0 && base);
    *arena = (mc_arena){.name = arena->name, .base = base, .cap_bytes = bytes, .bound = true};
}

void mc_arena_bind_split(mc_arena *arena, mc_arena_split *split, size_t bytes)
{
    *arena = (mc_arena){.name = arena->name, .cap_bytes = bytes, .bound = true, .split = split};
}

void *mc_arena_take(mc_arena *arena, size_t bytes)
{
    MC_ASSERT(bytes <= SIZE_MAX / 2); /* a negative count, or a sum that wraps around */
    size_t need = (bytes + MC_ARENA_ALIGN - 1) / MC_ARENA_ALIGN * MC_ARENA_ALIGN;
    MC_ASSERT(need <= arena->cap_bytes - arena->used_bytes);
    /* While measuring, addresses start at one alignment unit: never NULL, which means "absent". */
    uintptr_t base = arena->bound ? (uintptr_t)arena->base : (uintptr_t)MC_ARENA_ALIGN;
    void *out = arena->split ? mc_arena_split_take(arena->split, arena->name, arena->used_bytes, bytes)
                             : (void *)(base + arena->used_bytes);
    arena->used_bytes += need;
    arena->peak_bytes = arena->used_bytes > arena->peak_bytes ? arena->used_bytes : arena->peak_bytes;
    return out;
}

mc_tensor mc_arena_take_1d(mc_arena *arena, mc_dtype dtype, int64_t d0)
{
    return mc_tensor_1d(mc_arena_take(arena, (size_t)d0 * mc_dtype_bytes(dtype)), dtype, d0);
}

mc_tensor mc_arena_take_2d(mc_arena *arena, mc_dtype dtype, int64_t d0, int64_t d1)
{
    return mc_tensor_2d(mc_arena_take(arena, (size_t)(d0 * d1) * mc_dtype_bytes(dtype)), dtype, d0, d1);
}

size_t mc_arena_mark(const mc_arena *arena)
{
    return arena->used_bytes;
}

void mc_arena_rewind(mc_arena *arena, size_t mark)
{
    MC_ASSERT(mark <= arena->used_bytes);
    if (arena->split) {
        mc_arena_split_spoil(arena->split, mark, arena->used_bytes);
    }
    arena->used_bytes = mark;
}
