/* Bump arenas: every tensor of a run lies in one of a few named slabs, planned before they are reserved.
 *
 *   measure:  mc_arena_init()                       no memory; takes return addresses that must not be touched, sizes
 * add up bind:     mc_arena_bind(arena, base, bytes)     the same takes, in the same order, now return real addresses
 *
 * A component lays out its buffers by one function that is run twice, so the plan's bytes are the run's bytes by
 * construction (DESIGN, Law 2). Scratch is a bump arena with mark and rewind; its peak is the plan. */
#ifndef MEGAC_BASE_ARENA_H
#define MEGAC_BASE_ARENA_H

#include <stdbool.h>
#include <stddef.h>

#include "megac/base/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { MC_ARENA_ALIGN = 256 };

typedef struct mc_arena {
    const char *name;    /* "model", "stash", ... as the plan prints it */
    unsigned char *base; /* NULL while measuring */
    size_t cap_bytes, used_bytes, peak_bytes;
    bool bound;
} mc_arena;

/* A measuring arena: unlimited, without memory. */
void mc_arena_init(mc_arena *arena, const char *name);
/* Gives the arena its memory (MC_ARENA_ALIGN aligned, kept until the arena is no longer used) and rewinds it to empty.
 */
void mc_arena_bind(mc_arena *arena, void *base, size_t bytes);

/* `bytes` rounded up to MC_ARENA_ALIGN. Running out of a bound arena is a broken plan (asserted). */
void *mc_arena_take(mc_arena *arena, size_t bytes);
mc_tensor mc_arena_take_1d(mc_arena *arena, mc_dtype dtype, int64_t d0);
mc_tensor mc_arena_take_2d(mc_arena *arena, mc_dtype dtype, int64_t d0, int64_t d1);

size_t mc_arena_mark(const mc_arena *arena);
void mc_arena_rewind(mc_arena *arena, size_t mark);

#ifdef __cplusplus
}
#endif
#endif
