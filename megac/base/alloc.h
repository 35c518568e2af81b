/* Named heap allocations for the host: counted, so that leaks and allocations after the first step are seen, and
 * failing on demand, so that tests can walk every out-of-memory path. Tensors live in arenas (arena.h), not here. */
#ifndef MEGAC_BASE_ALLOC_H
#define MEGAC_BASE_ALLOC_H

#include <stdbool.h>
#include <stddef.h>

#include "megac/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { MC_ALLOC_ALIGN = 64 };

/* Zero-filled memory, aligned to MC_ALLOC_ALIGN, of `count` x `bytes`; the product is checked. `what` names it in the
 * error and in the leak report and must outlive the block (a literal). Returns MC_NOMEM; *out is written only on
 * success. count or bytes of 0 give a valid pointer. */
mc_status mc_alloc(size_t count, size_t bytes, const char *what, void **out) MC_MUST_CHECK;
/* Makes *grown, of `used` elements (NULL: none), one of `count` elements that begins with them; the rest is zero. On
 * failure it stays as it is. */
mc_status mc_alloc_more(size_t used, size_t count, size_t bytes, const char *what, void **grown) MC_MUST_CHECK;
/* NULL is allowed. */
void mc_free(void *ptr);
/* A named copy of a string. */
mc_status mc_strdup(const char *text, const char *what, char **out) MC_MUST_CHECK;

typedef struct mc_alloc_stats {
    size_t live_blocks, live_bytes, peak_bytes;
    size_t total_blocks;            /* ever allocated */
    size_t after_freeze;            /* allocated while frozen */
    const char *first_after_freeze; /* name of the first such block, or NULL */
} mc_alloc_stats;

mc_alloc_stats mc_alloc_get_stats(void);
/* From now on every allocation counts as a violation (Law 2: nothing is allocated after step 1). */
void mc_alloc_freeze(bool frozen);
/* The nth allocation from now fails with MC_NOMEM (1 = the next); 0 switches it off. */
void mc_alloc_fail_at(size_t nth);
/* Logs every live block's name and size at warning level; returns how many. */
size_t mc_alloc_report_leaks(void);

/* mc_alloc with the type's size: MC_NEW(&p, "what") and MC_NEW_N(&p, n, "what"). */
#define MC_NEW(out, what) mc_alloc(1, sizeof **(out), what, (void **)(out))
#define MC_NEW_N(out, count, what) mc_alloc((size_t)(count), sizeof **(out), what, (void **)(out))
/* mc_alloc_more in the same way: MC_MORE(&p, used, count, "what"). */
#define MC_MORE(block, used, count, what) \
    mc_alloc_more((size_t)(used), (size_t)(count), sizeof **(block), what, (void **)(block))

#ifdef __cplusplus
}
#endif
#endif
