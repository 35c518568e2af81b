/* The nine faults of faults_streams.c: what each way to run the program finds. Arguments: the program, its instrumented
 * build. */
#include "tests/cuda/standin/planted.h"

enum { N_SEEDS = 20 };

static planted_programs PROGRAMS;

static const planted ROWS[] = {
    {1, LATE, PLANTED_WRONG, "WRONG"},
    {1, RACE, PLANTED_MISUSE, "read of"},
    {2, LATE, PLANTED_WRONG, "WRONG"},
    {2, RACE, PLANTED_MISUSE, "is not ordered with a read by memcpy"},
    {3, LATE, PLANTED_WRONG, "WRONG"},
    {3, RACE, PLANTED_MISUSE, "by host code at faults_streams_race"},
    /* 4 is an order that another one implies: nobody may complain. */
    {5, LATE, PLANTED_WRONG, "WRONG"},
    {5, RACE, PLANTED_MISUSE, "RACE: read of"},
    {6, LATE, PLANTED_WRONG, "WRONG"},
    {6, RACE, PLANTED_MISUSE, "RACE: read of"},
    {7, LATE, PLANTED_WRONG, "WRONG"},
    {7, RACE, PLANTED_MISUSE, "is not ordered with the write by memset"},
    {8, RACE, PLANTED_MISUSE, "RACE: write of"}, /* operations never interleave here: only the detector sees it */
    {9, LATE, PLANTED_WRONG, "WRONG"},
    {9, RACE, PLANTED_MISUSE, "RACE: read of"},
};

static void check_table(void **state)
{
    (void)state;
    for (int fault = 0; fault <= 9; fault++) {
        planted_check(&PROGRAMS, ROWS, sizeof ROWS / sizeof *ROWS, fault);
    }
}

static void check_seeds(void **state)
{
    (void)state;
    for (int fault = 0; fault <= 9; fault++) {
        bool hidden = fault == 0 || fault == 4 || fault == 8;
        int n_found = planted_seeds(PROGRAMS.plain, fault, N_SEEDS, hidden);
        print_message("fault %d: %d of %d seeds\n", fault, n_found, N_SEEDS);
        /* A seed orders a handful of operations: half of them at least show a fault that eager never shows. */
        if (hidden ? n_found != 0 : n_found < N_SEEDS / 2) {
            fail_msg("fault %d: %d of %d seeds find it", fault, n_found, N_SEEDS);
        }
    }
}

/* The report of a race does not depend on the order in which operations happened to run. */
static void check_policies(void **state)
{
    (void)state;
    for (int seed = 0; seed <= 3; seed++) {
        char policy[64];
        snprintf(policy, sizeof policy, seed ? "STANDIN_POLICY=random:%d" : "STANDIN_POLICY=late", seed);
        const char *const env[] = {policy, "STANDIN_RACE=1", NULL};
        const farm_result *clean = planted_run(PROGRAMS.race, 0, env);
        assert_int_equal(clean->status[0], 0);
        assert_null(strstr(clean->text[0], "standin["));
        const farm_result *racy = planted_run(PROGRAMS.race, 8, env);
        assert_int_equal(racy->status[0], PLANTED_MISUSE);
        assert_non_null(strstr(racy->text[0], "RACE:"));
    }
}

int main(int argc, char **argv)
{
    if (argc != 3) {
        return 2;
    }
    PROGRAMS = (planted_programs){argv[1], argv[2]};
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(check_table),
        cmocka_unit_test(check_seeds),
        cmocka_unit_test(check_policies),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
