/* The grid against counting: tp fastest, then cp, dp, pp. */
#include <stdbool.h>

#include "megac/base/grid.h"
#include "tests/unit.h"

static mc_grid grid_of(int tp, int cp, int dp, int pp)
{
    mc_grid g;
    assert_int_equal(mc_grid_init(tp * cp * dp * pp, tp, cp, dp, pp, &g), MC_OK);
    return g;
}

static void test_order(void **state)
{
    (void)state;
    static const int sizes[][4] = {{1, 1, 1, 1}, {2, 1, 2, 2}, {3, 2, 1, 4}, {1, 3, 5, 2}};
    for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++) {
        const int *n = sizes[s];
        mc_grid g = grid_of(n[0], n[1], n[2], n[3]);
        int rank = 0;
        for (int pp = 0; pp < n[3]; pp++) {
            for (int dp = 0; dp < n[2]; dp++) {
                for (int cp = 0; cp < n[1]; cp++) {
                    for (int tp = 0; tp < n[0]; tp++, rank++) {
                        mc_coords c = mc_grid_coords(&g, rank);
                        assert_int_equal(c.at[MC_AXIS_TP], tp);
                        assert_int_equal(c.at[MC_AXIS_CP], cp);
                        assert_int_equal(c.at[MC_AXIS_DP], dp);
                        assert_int_equal(c.at[MC_AXIS_PP], pp);
                        assert_int_equal(mc_grid_rank(&g, c), rank);
                    }
                }
            }
        }
        assert_int_equal(mc_grid_ranks(&g), rank);
    }
}

/* Groups by their definition: ranks that share every coordinate outside `axes`, in rank order. */
static void test_groups(void **state)
{
    (void)state;
    mc_grid g = grid_of(2, 3, 2, 2);
    int n = mc_grid_ranks(&g);
    for (unsigned axes = 0; axes < 1u << MC_AXIS_COUNT; axes++) {
        for (int r = 0; r < n; r++) {
            mc_group group = mc_grid_group(&g, r, axes);
            int members = 0;
            for (int q = 0; q < n; q++) {
                mc_coords a = mc_grid_coords(&g, r), b = mc_grid_coords(&g, q);
                bool together = true;
                for (int x = 0; x < MC_AXIS_COUNT; x++) {
                    together = together && ((axes & 1u << x) || a.at[x] == b.at[x]);
                }
                assert_int_equal(together, mc_grid_group(&g, q, axes).color == group.color);
                if (together) {
                    assert_int_equal(mc_grid_member(&g, r, axes, members), q);
                    assert_int_equal(mc_grid_group(&g, q, axes).index, members);
                    members++;
                }
            }
            assert_int_equal(group.size, members);
        }
    }
}

/* Each group cut into runs: by the definition, over all pairs of ranks. */
static void test_cut(void **state)
{
    (void)state;
    mc_grid g = grid_of(2, 1, 12, 2);
    for (int parts = 1; parts <= 12; parts++) {
        for (int r = 0; 12 % parts == 0 && r < mc_grid_ranks(&g); r++) {
            int length = 12 / parts;
            mc_group dp = mc_grid_group(&g, r, 1u << MC_AXIS_DP);
            mc_group run = mc_group_cut(dp, parts, false), across = mc_group_cut(dp, parts, true);
            assert_int_equal(run.size, length);
            assert_int_equal(across.size, parts);
            assert_int_equal(run.index + across.index * length, dp.index);
            for (int q = 0; q < mc_grid_ranks(&g); q++) {
                mc_group other = mc_grid_group(&g, q, 1u << MC_AXIS_DP);
                bool same = other.color == dp.color;
                assert_int_equal(mc_group_cut(other, parts, false).color == run.color,
                                 same && other.index / length == dp.index / length);
                assert_int_equal(mc_group_cut(other, parts, true).color == across.color,
                                 same && other.index % length == dp.index % length);
            }
        }
    }
}

static void test_bad_sizes(void **state)
{
    (void)state;
    mc_grid g = {{-7, -7, -7, -7}};
    char said[1024];
    mc_status st;
    UNIT_CAPTURE(said, st = mc_grid_init(6, 4, 1, 0, 1, &g));
    assert_int_equal(st, MC_INVALID);
    assert_non_null(strstr(said, "6 ranks cannot be divided into TP 4"));
    UNIT_CAPTURE(said, st = mc_grid_init(8, 2, 1, 3, 2, &g));
    assert_int_equal(st, MC_INVALID);
    assert_non_null(strstr(said, "leave DP 2"));
    UNIT_CAPTURE(said, st = mc_grid_init(8, 0, 1, 0, 2, &g));
    assert_int_equal(st, MC_INVALID);
    assert_int_equal(g.size[0], -7); /* written only on success */
    assert_int_equal(mc_grid_init(8, 2, 1, 0, 2, &g), MC_OK);
    assert_int_equal(g.size[MC_AXIS_DP], 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_order),
        cmocka_unit_test(test_groups),
        cmocka_unit_test(test_cut),
        cmocka_unit_test(test_bad_sizes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
