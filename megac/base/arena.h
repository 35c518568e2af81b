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

#include "megac/base/device.h"
#include "megac/base/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { MC_ARENA_ALIGN = 256 };

typedef struct mc_arena_split mc_arena_split;

typedef struct mc_arena {
    const char *name;    /* "model", "stash", ... as the plan prints it */
    unsigned char *base; /* NULL while measuring */
    size_t cap_bytes, used_bytes, peak_bytes;
    bool bound;
    mc_arena_split *split; /* where takes come from instead of `base`; NULL but in tests */
} mc_arena;

/* A measuring arena: unlimited, without memory. */
void mc_arena_init(mc_arena *arena, const char *name);
/* Gives the arena its memory (MC_ARENA_ALIGN aligned, kept until the arena is no longer used) and rewinds it to empty.
 */
void mc_arena_bind(mc_arena *arena, void *base, size_t bytes);

/* For tests (MC_ARENA_SPLIT=1): a block hides a tensor that runs over its end into the next one, and what is used after
 * a rewind. Bound to a split, an arena takes every tensor from the device itself, exactly as long as asked for; the
 * same place and length after a rewind is the same allocation again. A rewind fills the tensors beyond the mark with
 * ones in every bit, NaN in each floating type, in the order of `stream`. Takes of a bound arena cannot fail, so want
 * of memory is asserted. mc_arena_split_wanted reads the environment; destroy frees all, once the stream is idle, and
 * takes NULL.
 */
bool mc_arena_split_wanted(void);
mc_status mc_arena_split_create(mc_device *dev, mc_mem kind, mc_stream stream,
                                mc_arena_split **split_out) MC_MUST_CHECK;
void mc_arena_split_destroy(mc_arena_split *split);
void mc_arena_bind_split(mc_arena *arena, mc_arena_split *split, size_t bytes);
/* The allocation of `bytes` at `offset`; for mc_arena_take. */
void *mc_arena_split_take(mc_arena_split *split, const char *arena, size_t offset, size_t bytes);
/* Spoils the allocations from offset `begin` to before `end`; for mc_arena_rewind. */
void mc_arena_split_spoil(mc_arena_split *split, size_t begin, size_t end);

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
