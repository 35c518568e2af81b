/* The faults of faults_memory.c, by their numbers there. Arguments: the program, its instrumented build. */
#include "tests/cuda/standin/planted.h"

enum { N_FAULTS = 26, N_SEEDS = 3 };

static planted_programs PROGRAMS;

static const planted ROWS[] = {
    /* A staging buffer overwritten, freed. */
    {1, LATE, PLANTED_WRONG, "WRONG"},
    {1, RACE, PLANTED_MISUSE, "RACE: write of"},
    {2, LATE, PLANTED_FAULT,
     "cudaFreeHost: pinned allocation #4 (1024 bytes) is still used by memcpy [op 1, stream 1]"},
    {2, RACE, PLANTED_MISUSE, "is not ordered with a read by memcpy [op 1, stream 1]"},
    /* A buffer of the device overwritten. */
    {3, LATE, PLANTED_WRONG, "WRONG"},
    {3, RACE, PLANTED_MISUSE, "is not ordered with a read by memcpy [op 8, stream 2]"},
    /* Host and device take each other's pointers. */
    {4, ALL, PLANTED_FAULT, "FAULT: host code touched"},
    {5, ALL, PLANTED_FAULT, "live device allocation #1 (1024 bytes)+12"},
    {6, ALL, PLANTED_MISUSE, "(pageable host memory) is neither device nor pinned memory"},
    /* Freed in a stream that does not follow the user. */
    {7, LATE, PLANTED_FAULT, "touched"},
    {7, RACE, PLANTED_MISUSE, "by free [op 5, stream 2] is not ordered with the write by memcpy [op 4, stream 1]"},
    /* Kernels beyond the ends. */
    {8, ALL, PLANTED_FAULT, "live device allocation #2 (1024 bytes)+1024 PAST ITS END"},
    {9, EAGER | LATE, PLANTED_MISUSE, "write outside device allocation #3 (1000 bytes): the byte at offset +100"},
    {9, RACE, PLANTED_MISUSE, "write of 4 bytes at"},
    {10, ALL, PLANTED_MISUSE, "write outside device allocation #3 (1000 bytes): the byte at offset -"},
    {11, RACE, PLANTED_MISUSE, "(1000 bytes)+1000 PAST ITS END by subtract"},
    {12, ALL, PLANTED_WRONG, "WRONG"},
    {13, ALL, PLANTED_WRONG, "ALLOCATED"},
    /* Arguments of copies. */
    {14, ALL, PLANTED_MISUSE, "cudaMemcpyAsync: kind 3 does not fit destination"},
    {15, EAGER | RACE, PLANTED_MISUSE, "(pageable host memory) in an asynchronous copy"},
    {15, LATE, PLANTED_MISUSE, "WRONG"},
    {16, LATE, PLANTED_MISUSE, "cudaFree: device allocation #7 (1024 bytes) is still used by memcpy [op 4, stream 1]"},
    {16, RACE, PLANTED_MISUSE, "is not ordered with the write by memcpy [op 4, stream 1]"},
    {17, ALL, PLANTED_FAULT, "FREED device allocation #6 (1024 bytes)+0 is neither device nor pinned memory"},
    {18, ALL, PLANTED_MISUSE, "live device allocation #1 (1024 bytes)+4 run past its end"},
    {19, ALL, PLANTED_MISUSE, "FREED device allocation #6 (1024 bytes)+0 is not live memory"},
    {20, ALL, PLANTED_MISUSE, "FREED device allocation #6 (1024 bytes)+0): not the start of a live device allocation"},
    {21, ALL, PLANTED_MISUSE, "live device allocation #6 (1024 bytes)+256): not the start of a live device allocation"},
    {22, LATE, PLANTED_MISUSE, "cudaHostUnregister:"},
    {23, ALL, PLANTED_MISUSE, "cudaStreamQuery is called inside a host function"},
    {24, ALL, PLANTED_MISUSE, "is not a live stream"},
    {25, LATE, PLANTED_MISUSE, "cudaFree: device allocation #3 (1000 bytes) is still used by memset"},
    {25, RACE, PLANTED_MISUSE, "is not ordered with the write by memset"},
};

static void check_table(void **state)
{
    (void)state;
    for (int fault = 0; fault < N_FAULTS; fault++) {
        planted_check(&PROGRAMS, ROWS, sizeof ROWS / sizeof *ROWS, fault);
    }
}

static void check_correct_program(void **state)
{
    (void)state;
    assert_int_equal(planted_seeds(PROGRAMS.plain, 0, 20, true), 0);
}

/* Without the guard the host reaches the memory of the device, as it does on machines whose devices share it. */
static void check_guard_off(void **state)
{
    (void)state;
    const farm_result *got = planted_run(PROGRAMS.plain, 5, (const char *[]){"STANDIN_HOSTGUARD=0", NULL});
    assert_int_equal(got->status[0], 0);
}

/* By mprotect, as on processors without protection keys. */
static void check_guard_without_keys(void **state)
{
    (void)state;
    const farm_result *got = planted_run(PROGRAMS.plain, 5, (const char *[]){"STANDIN_HOSTGUARD=2", NULL});
    assert_int_equal(got->status[0], 98);
    assert_non_null(strstr(got->text[0], "FAULT: host code"));
    got = planted_run(PROGRAMS.plain, 0, (const char *[]){"STANDIN_HOSTGUARD=2", NULL});
    assert_int_equal(got->status[0], 0);
}

int main(int argc, char **argv)
{
    if (argc != 3) {
        return 2;
    }
    PROGRAMS = (planted_programs){argv[1], argv[2]};
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(check_table),
        cmocka_unit_test(check_correct_program),
        cmocka_unit_test(check_guard_off),
        cmocka_unit_test(check_guard_without_keys),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
