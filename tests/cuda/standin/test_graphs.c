/* The faults of faults_graphs.c, by their numbers there. Arguments: the program, its instrumented build. */
#include "tests/cuda/standin/planted.h"

enum { N_FAULTS = 15, N_SEEDS = 20 };

static planted_programs PROGRAMS;

static const planted ROWS[] = {
    {1, LATE, PLANTED_WRONG, "WRONG"},
    {1, RACE, PLANTED_MISUSE, "RACE: read of"},
    {2, LATE, PLANTED_WRONG, "WRONG"},
    {2, RACE, PLANTED_MISUSE, "is not ordered with a read by memcpy"},
    {3, EAGER, PLANTED_CLEAN, "ok"},
    {3, LATE, PLANTED_WRONG, "WRONG"},
    {3, RACE, PLANTED_MISUSE, "RACE:"},
    {4, ALL, PLANTED_FAULT, "cudaGraphLaunch: memcpy uses"},
    {5, ALL, PLANTED_MISUSE, "a stream was not joined again"},
    {6, ALL, PLANTED_MISUSE, "something in it may not be captured"},
    {7, ALL, PLANTED_MISUSE, "something in it may not be captured"},
    /* 8 is permitted. */
    {9, ALL, PLANTED_MISUSE, "something in it may not be captured"},
    /* 10 to 13 end with an error that the program expects. */
    {14, ALL, PLANTED_MISUSE, "never destroyed: 0 streams, 0 events, 1 graphs"},
};

static void check_table(void **state)
{
    (void)state;
    for (int fault = 0; fault < N_FAULTS; fault++) {
        planted_check(&PROGRAMS, ROWS, sizeof ROWS / sizeof *ROWS, fault);
    }
}

static void check_seeds(void **state)
{
    (void)state;
    assert_int_equal(planted_seeds(PROGRAMS.plain, 0, N_SEEDS, true), 0);
    for (int fault = 1; fault <= 3; fault++) {
        int n_found = planted_seeds(PROGRAMS.plain, fault, N_SEEDS, false);
        print_message("fault %d: %d of %d seeds\n", fault, n_found, N_SEEDS);
        assert_true(n_found > 0);
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
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
