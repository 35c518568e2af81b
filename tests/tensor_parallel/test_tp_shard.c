/* Who holds what: over all ranks of a group, every head and every row of the QKV weight is held, once or by exactly the
 * ranks that replicate it. Expected owners come from counting marks, not from the formulas under test. */
#include <stdbool.h>

#include "tensor_parallel/tp_shard.h"
#include "tests/unit.h"

enum { MAX_ROWS = 4096, MAX_HEADS = 64 };

typedef struct marks {
    int rows[MAX_ROWS]; /* ranks that hold the row */
    int heads[MAX_HEADS];
} marks;

/* Kind of a row of the global weight: per group, query rows of each head, then k, then v. */
static bool is_query_row(int heads, int groups, int head_dim, int64_t row)
{
    int64_t per_group = heads / groups;
    return row % ((per_group + 2) * head_dim) < per_group * head_dim;
}

static void mark(int *counts, int64_t begin, int64_t count, int64_t limit)
{
    assert_true(begin >= 0 && count >= 0 && begin + count <= limit);
    for (int64_t i = begin; i < begin + count; i++) {
        counts[i]++;
    }
}

/* The local rows of a rank, in local order, are those of the heads that it says it holds. */
static void check_rank(int heads, int groups, int head_dim, int tp, int rank, marks *m)
{
    tp_heads h = tp_heads_of(heads, groups, head_dim, tp, rank);
    int64_t rows = (int64_t)(heads + 2 * groups) * head_dim;
    assert_int_equal(h.groups * h.queries, heads / tp);
    assert_int_equal(h.q_rows + h.kv_rows, (int64_t)h.groups * (h.queries + 2) * head_dim);
    mark(m->rows, h.q_begin, h.q_rows, rows);
    mark(m->rows, h.kv_begin, h.kv_rows, rows);
    mark(m->heads, h.head0, (int64_t)h.groups * h.queries, heads);
    /* Local query head 0 is the first query row, whatever precedes it in the global weight. */
    int64_t per_group = heads / groups, group = h.head0 / per_group, in_group = h.head0 % per_group;
    assert_int_equal(h.q_begin, (group * (per_group + 2) + in_group) * head_dim);
    if (h.replicas > 1) {
        assert_int_equal(h.kv_begin, (group * (per_group + 2) + per_group) * head_dim);
        assert_int_equal(h.replica, rank % h.replicas);
        assert_int_equal(h.groups, 1);
    } else {
        assert_int_equal(h.replica, 0);
        assert_int_equal(h.kv_rows, 0);
    }
}

static void check_all(int heads, int groups, int head_dim, int tp)
{
    marks m = {0};
    int replicas = tp > groups ? tp / groups : 1;
    int64_t rows = (int64_t)(heads + 2 * groups) * head_dim;
    assert_true(rows <= MAX_ROWS && heads <= MAX_HEADS);
    for (int rank = 0; rank < tp; rank++) {
        assert_int_equal(tp_heads_of(heads, groups, head_dim, tp, rank).replicas, replicas);
        check_rank(heads, groups, head_dim, tp, rank, &m);
    }
    for (int i = 0; i < heads; i++) {
        assert_int_equal(m.heads[i], 1);
    }
    for (int64_t row = 0; row < rows; row++) {
        assert_int_equal(m.rows[row], is_query_row(heads, groups, head_dim, row) ? 1 : replicas);
    }
}

static void test_heads_cover_the_weight(void **state)
{
    (void)state;
    int n_cases = 0;
    for (int heads = 1; heads <= 24; heads++) {
        for (int groups = 1; groups <= heads; groups++) {
            for (int tp = 1; tp <= heads; tp++) {
                if (heads % groups == 0 && heads % tp == 0 && (groups % tp == 0 || tp % groups == 0)) {
                    check_all(heads, groups, 2 * (1 + heads % 3), tp);
                    n_cases++;
                }
            }
        }
    }
    assert_true(n_cases > 200);
}

/* Ranks of one KV group stand side by side, and are numbered among themselves. */
static void test_replicas_are_neighbours(void **state)
{
    (void)state;
    for (int rank = 0; rank < 8; rank++) {
        tp_heads h = tp_heads_of(16, 2, 4, 8, rank);
        int64_t group_rows = (8 + 2) * 4;
        assert_int_equal(h.replicas, 4);
        assert_int_equal(h.replica, rank % 4);
        assert_int_equal(h.kv_begin, rank / 4 * group_rows + 8 * 4);
        assert_int_equal(h.kv_rows, 2 * 4);
        assert_int_equal(h.head0, 2 * rank);
    }
}

/* Megatron-LM's published sizes, and the rule itself. */
static void test_padded_vocabulary(void **state)
{
    (void)state;
    assert_int_equal(tp_padded_vocab(50257, 128, 1), 50304);
    assert_int_equal(tp_padded_vocab(50257, 128, 8), 51200);
    assert_int_equal(tp_padded_vocab(32000, 128, 1), 32000);
    for (int64_t vocab = 1; vocab < 200; vocab++) {
        for (int64_t by = 1; by < 20; by += 3) {
            for (int tp = 1; tp <= 6; tp++) {
                int64_t padded = tp_padded_vocab(vocab, by, tp);
                assert_true(padded >= vocab && padded - vocab < by * tp && padded % (by * tp) == 0);
            }
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_heads_cover_the_weight),
        cmocka_unit_test(test_replicas_are_neighbours),
        cmocka_unit_test(test_padded_vocabulary),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
