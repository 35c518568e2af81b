#include "megac/base/grid.h"

const char *mc_axis_name(mc_axis axis)
{
    static const char *const names[] = {"tp", "cp", "dp", "pp"};
    return (unsigned)axis < MC_AXIS_COUNT ? names[axis] : "?";
}

mc_status mc_grid_init(int world, int tp, int cp, int dp, int pp, mc_grid *grid_out)
{
    if (world < 1 || tp < 1 || cp < 1 || pp < 1 || dp < 0) {
        return MC_FAIL(MC_INVALID, "parallel sizes must be positive: world %d, tp %d, cp %d, dp %d, pp %d", world, tp,
                       cp, dp, pp);
    }
    long model = (long)tp * cp * pp;
    if (world % model != 0) {
        return MC_FAIL(MC_INVALID,
                       "%d ranks cannot be divided into TP %d x CP %d x PP %d = %ld; start a multiple of %ld ranks or "
                       "change the sizes",
                       world, tp, cp, pp, model, model);
    }
    int left = (int)(world / model);
    if (dp != 0 && dp != left) {
        return MC_FAIL(MC_INVALID,
                       "--dp %d: %d ranks over TP %d x CP %d x PP %d leave DP %d; start %ld ranks or drop --dp", dp,
                       world, tp, cp, pp, left, model * dp);
    }
    *grid_out = (mc_grid){.size = {[MC_AXIS_TP] = tp, [MC_AXIS_CP] = cp, [MC_AXIS_DP] = left, [MC_AXIS_PP] = pp}};
    return MC_OK;
}

int mc_grid_ranks(const mc_grid *grid)
{
    int n = 1;
    for (int a = 0; a < MC_AXIS_COUNT; a++) {
        n *= grid->size[a];
    }
    return n;
}

mc_coords mc_grid_coords(const mc_grid *grid, int rank)
{
    MC_ASSERT(rank >= 0 && rank < mc_grid_ranks(grid));
    mc_coords c;
    for (int a = 0; a < MC_AXIS_COUNT; a++) {
        c.at[a] = rank % grid->size[a];
        rank /= grid->size[a];
    }
    return c;
}

int mc_grid_rank(const mc_grid *grid, mc_coords coords)
{
    int rank = 0;
    for (int a = MC_AXIS_COUNT - 1; a >= 0; a--) {
        MC_ASSERT(coords.at[a] >= 0 && coords.at[a] < grid->size[a]);
        rank = rank * grid->size[a] + coords.at[a];
    }
    return rank;
}

mc_group mc_grid_group(const mc_grid *grid, int rank, unsigned axes)
{
    mc_coords c = mc_grid_coords(grid, rank);
    mc_group g = {0, 0, 1};
    int colors = 1;
    for (int a = 0; a < MC_AXIS_COUNT; a++) {
        if (axes & 1u << a) {
            g.index += c.at[a] * g.size;
            g.size *= grid->size[a];
        } else {
            g.color += c.at[a] * colors;
            colors *= grid->size[a];
        }
    }
    return g;
}

mc_group mc_group_cut(mc_group g, int parts, bool across)
{
    MC_ASSERT(parts > 0 && g.size % parts == 0);
    int length = g.size / parts, run = g.index / length, place = g.index % length;
    return across ? (mc_group){.color = g.color * length + place, .index = run, .size = parts}
                  : (mc_group){.color = g.color * parts + run, .index = place, .size = length};
}

int mc_grid_member(const mc_grid *grid, int rank, unsigned axes, int index)
{
    mc_coords c = mc_grid_coords(grid, rank);
    for (int a = 0; a < MC_AXIS_COUNT; a++) {
        if (axes & 1u << a) {
            c.at[a] = index % grid->size[a];
            index /= grid->size[a];
        }
    }
    MC_ASSERT(index == 0);
    return mc_grid_rank(grid, c);
}
