/* Arithmetic of slices: rectangles, their intersection, and whether they cover a tensor. */
#include "megac/train/checkpoint/ckpt_impl.h"

mt_i_rect mt_i_rect_make(int n_dims, const int64_t *begin, const int64_t *shape)
{
    if (n_dims == 1) {
        return (mt_i_rect){{0, begin[0]}, {1, shape[0]}};
    }
    return (mt_i_rect){{begin[0], begin[1]}, {shape[0], shape[1]}};
}

bool mt_i_rect_intersect(mt_i_rect a, mt_i_rect b, mt_i_rect *out)
{
    for (int d = 0; d < 2; d++) {
        int64_t lo = a.begin[d] > b.begin[d] ? a.begin[d] : b.begin[d];
        int64_t a_end = a.begin[d] + a.count[d], b_end = b.begin[d] + b.count[d];
        out->begin[d] = lo;
        out->count[d] = (a_end < b_end ? a_end : b_end) - lo;
    }
    return out->count[0] > 0 && out->count[1] > 0;
}

bool mt_i_rect_equal(mt_i_rect a, mt_i_rect b)
{
    return a.begin[0] == b.begin[0] && a.begin[1] == b.begin[1] && a.count[0] == b.count[0] && a.count[1] == b.count[1];
}

int64_t mt_i_rect_elems(mt_i_rect r)
{
    return r.count[0] * r.count[1];
}

bool mt_i_rects_cover(mt_i_rect whole, const mt_i_rect *rects, int n, bool *spare_out)
{
    int64_t covered = 0;
    mt_i_rect both;
    for (int i = 0; i < n; i++) {
        if (!mt_i_rect_intersect(whole, rects[i], &both) || !mt_i_rect_equal(both, rects[i])) {
            return false;
        }
        bool spare = i > 0 && mt_i_rect_equal(rects[i - 1], rects[i]);
        if (spare_out) {
            spare_out[i] = spare;
        }
        if (spare) {
            continue;
        }
        covered += mt_i_rect_elems(rects[i]);
        /* Sorted by first row: those after the last row of i cannot touch it. */
        for (int k = i + 1; k < n && rects[k].begin[0] < rects[i].begin[0] + rects[i].count[0]; k++) {
            if (!mt_i_rect_equal(rects[i], rects[k]) && mt_i_rect_intersect(rects[i], rects[k], &both)) {
                return false;
            }
        }
    }
    return covered == mt_i_rect_elems(whole);
}
