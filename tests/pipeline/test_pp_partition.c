/* Layers to stages: hand-made splits, Megatron-LM's rules, and remedies that really work. */
#include "pipeline/pp.h"
#include "tests/unit.h"

enum { MAX_STAGES = 12 };

static void expect_split(pp_partition p, const int *counts)
{
    int first[MAX_STAGES], count[MAX_STAGES], next = 0;
    assert_int_equal(pp_partition_layers(&p, first, count), MC_OK);
    for (int s = 0; s < p.n_stages; s++) {
        assert_int_equal(count[s], counts[s]);
        assert_int_equal(first[s], next);
        next += counts[s];
    }
    assert_int_equal(next, p.n_layers);
}

#define EVEN(layers, stages) .n_layers = (layers), .n_stages = (stages), .first_layers = -1, .last_layers = -1
#define SPLIT(...) ((const int[]){__VA_ARGS__})

static void test_splits(void **state)
{
    (void)state;
    expect_split((pp_partition){EVEN(8, 4)}, SPLIT(2, 2, 2, 2));
    expect_split((pp_partition){EVEN(5, 1)}, SPLIT(5));
    expect_split((pp_partition){EVEN(3, 3)}, SPLIT(1, 1, 1));
    expect_split((pp_partition){.n_layers = 7, .n_stages = 3, .first_layers = -1, .last_layers = 1}, SPLIT(3, 3, 1));
    expect_split((pp_partition){.n_layers = 7, .n_stages = 3, .first_layers = -1, .last_layers = 3}, SPLIT(2, 2, 3));
    expect_split((pp_partition){.n_layers = 7, .n_stages = 3, .first_layers = 3, .last_layers = -1}, SPLIT(3, 2, 2));
    expect_split((pp_partition){.n_layers = 10, .n_stages = 4, .first_layers = 1, .last_layers = 3}, SPLIT(1, 3, 3, 3));
    expect_split((pp_partition){.n_layers = 5, .n_stages = 2, .first_layers = 2, .last_layers = 3}, SPLIT(2, 3));
    expect_split((pp_partition){EVEN(7, 4), .account_loss = true}, SPLIT(2, 2, 2, 1));
    expect_split((pp_partition){EVEN(7, 4), .account_embedding = true}, SPLIT(1, 2, 2, 2));
    expect_split((pp_partition){EVEN(6, 4), .account_embedding = true, .account_loss = true}, SPLIT(1, 2, 2, 1));
    expect_split((pp_partition){EVEN(5, 1), .account_embedding = true, .account_loss = true}, SPLIT(5));
    expect_split((pp_partition){EVEN(2, 4), .account_embedding = true, .account_loss = true}, SPLIT(0, 1, 1, 0));
}

static void refused(pp_partition p, const char *text)
{
    int first[MAX_STAGES] = {-9}, count[MAX_STAGES] = {-9};
    char seen[2048];
    mc_status st = MC_OK;
    UNIT_CAPTURE(seen, st = pp_partition_layers(&p, first, count));
    if (st != MC_INVALID || strstr(seen, text) == NULL) {
        fail_msg("expected \"%s\", got %s: \"%s\"", text, mc_status_name(st), seen);
    }
    assert_true(first[0] == -9 && count[0] == -9);
}

static void test_refused(void **state)
{
    (void)state;
    refused((pp_partition){EVEN(7, 3)}, "--decoder-last-pipeline-num-layers alone: 1");
    refused((pp_partition){EVEN(7, 3)}, "--decoder-first-pipeline-num-layers alone: 1");
    refused((pp_partition){EVEN(7, 3)}, "both --account-for-embedding-in-pipeline-split and --account-for-loss");
    refused((pp_partition){EVEN(7, 3)}, "--num-layers 7 over --pipeline-model-parallel-size 3");
    refused((pp_partition){EVEN(7, 4)}, "--account-for-loss-in-pipeline-split alone");
    refused((pp_partition){EVEN(2, 4)}, "--num-layers 4");
    refused((pp_partition){.n_layers = 7, .n_stages = 3, .first_layers = 2, .last_layers = -1},
            "with the same --decoder-first-pipeline-num-layers also --decoder-last-pipeline-num-layers");
    refused((pp_partition){.n_layers = 7, .n_stages = 2, .first_layers = 2, .last_layers = 3}, "2 layers left");
    refused((pp_partition){.n_layers = 4, .n_stages = 3, .first_layers = 2, .last_layers = 2}, "0 layers left");
    refused((pp_partition){.n_layers = 4, .n_stages = 3, .first_layers = 9, .last_layers = -1}, "-5 layers left");
    refused((pp_partition){.n_layers = 4, .n_stages = 1, .first_layers = 4, .last_layers = -1}, "at least 2");
    refused((pp_partition){.n_layers = 4, .n_stages = 2, .first_layers = -1, .last_layers = 0}, "at least one layer");
    refused((pp_partition){.n_layers = 4, .n_stages = 2, .first_layers = 2, .last_layers = -1, .account_loss = true},
            "drop one of the two");
    refused((pp_partition){EVEN(0, 2)}, "must be at least 1");
}

/* The number behind `flag` in a message, or -1. */
static int number_behind(const char *text, const char *flag)
{
    const char *at = strstr(text, flag);
    return at == NULL ? -1 : atoi(at + strlen(flag));
}

/* What the message proposes is accepted. */
static void test_remedies_work(void **state)
{
    (void)state;
    int n_checked = 0;
    for (int layers = 1; layers <= 40; layers++) {
        for (int stages = 2; stages <= MAX_STAGES; stages++) {
            int first[MAX_STAGES], count[MAX_STAGES];
            char text[2048];
            mc_status st = MC_OK;
            UNIT_CAPTURE(text, st = pp_partition_layers(&(pp_partition){EVEN(layers, stages)}, first, count));
            if (st == MC_OK) {
                assert_int_equal(layers % stages, 0);
                continue;
            }
            int last = number_behind(text, "--decoder-last-pipeline-num-layers alone: ");
            if (layers >= stages) { /* a split with one uneven stage exists always */
                assert_true(last > 0);
            }
            if (last > 0) {
                pp_partition p = {.n_layers = layers, .n_stages = stages, .first_layers = -1, .last_layers = last};
                assert_int_equal(pp_partition_layers(&p, first, count), MC_OK);
                p.last_layers = -1, p.first_layers = last;
                assert_int_equal(pp_partition_layers(&p, first, count), MC_OK);
                n_checked++;
            }
            if (strstr(text, "--account-for-loss-in-pipeline-split alone") != NULL) {
                pp_partition p = {EVEN(layers, stages), .account_loss = true};
                assert_int_equal(pp_partition_layers(&p, first, count), MC_OK);
            }
            pp_partition p = {EVEN(0, stages)};
            const char *at = strstr(text, "or --num-layers ");
            p.n_layers = number_behind(at != NULL ? at : strstr(text, "use "), "--num-layers ");
            assert_int_equal(pp_partition_layers(&p, first, count), MC_OK);
        }
    }
    assert_true(n_checked > 200);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_splits),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_remedies_work),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
