/* Pure arithmetic of the process grid: rank <-> (tp, cp, dp, pp), tp fastest, then cp, dp, pp (Megatron-LM's order
 * tp-cp-dp-pp). No communication, no environment. */
#ifndef MEGAC_BASE_GRID_H
#define MEGAC_BASE_GRID_H

#include <stdbool.h>

#include "megac/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum { MC_AXIS_TP, MC_AXIS_CP, MC_AXIS_DP, MC_AXIS_PP, MC_AXIS_COUNT } mc_axis;

typedef struct mc_grid {
    int size[MC_AXIS_COUNT]; /* degree of each axis; their product is the number of ranks */
} mc_grid;

typedef struct mc_coords {
    int at[MC_AXIS_COUNT];
} mc_coords;

/* "tp", ... */
const char *mc_axis_name(mc_axis axis);

/* Grid of the given degrees over `world` ranks; dp = 0 means "what is left". MC_INVALID when the product is not
 * `world`. */
mc_status mc_grid_init(int world, int tp, int cp, int dp, int pp, mc_grid *grid_out) MC_MUST_CHECK;
int mc_grid_ranks(const mc_grid *grid);
mc_coords mc_grid_coords(const mc_grid *grid, int rank);
int mc_grid_rank(const mc_grid *grid, mc_coords coords);

/* Group of `rank` along a set of axes (bit 1 << axis): every rank that shares the other coordinates. The group's number
 * (equal for its members, different between groups: a "colour") and the rank's place in it, in rank order. */
typedef struct mc_group {
    int color, index, size;
} mc_group;
mc_group mc_grid_group(const mc_grid *grid, int rank, unsigned axes);
/* A group cut into `parts` (which divides its size) runs of consecutive members: the run that `group`'s rank is in, or
 * with `across` the members that have its place in each run. */
mc_group mc_group_cut(mc_group group, int parts, bool across);
/* World rank of member `index` of the group that `rank` belongs to. */
int mc_grid_member(const mc_grid *grid, int rank, unsigned axes, int index);

#ifdef __cplusplus
}
#endif
#endif
