/* Jobs that go wrong end soon, with the right status and a message that says what happened; on all paths. */
#include <stdbool.h>
#include <sys/wait.h>
#include <time.h>

#include "tests/unit.h"

/* tests/ranks, the program and megac, from the build. */
static const char *runner, *program, *megac;

typedef enum { SHARED_MEMORY, MESSAGES, TCP } path; /* the last: messages too, under megac launch */

typedef struct outcome {
    int exit_status;
    double seconds;
    char text[16384];
} outcome;

static void run(outcome *o, int n, const char *fault, path p)
{
    char command[1024];
    snprintf(command, sizeof command,
             "MEGAC_NO_SHM=%d RANKS_MEGAC='%s' RANKS_TIMEOUT=25 '%s' %d '%s' %s 2>&1 </dev/null", p != SHARED_MEMORY,
             p == TCP ? megac : "", runner, n, program, fault);
    struct timespec a, b;
    clock_gettime(CLOCK_MONOTONIC, &a);
    FILE *f = popen(command, "r");
    assert_non_null(f);
    size_t used = fread(o->text, 1, sizeof o->text - 1, f);
    o->text[used] = '\0';
    char rest[4096];
    while (fread(rest, 1, sizeof rest, f) > 0) {
    }
    int status = pclose(f);
    clock_gettime(CLOCK_MONOTONIC, &b);
    o->exit_status = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    o->seconds = (double)(b.tv_sec - a.tv_sec) + 1e-9 * (double)(b.tv_nsec - a.tv_nsec);
}

static void expect(const outcome *o, const char *text)
{
    if (!strstr(o->text, text)) {
        fail_msg("\"%s\" is missing from:\n%s", text, o->text);
    }
}

/* Each row: the fault, ranks, exit status (-1: any but 0), what must be said. */
typedef struct fault_case {
    const char *fault;
    int n, exit_status;
    const char *says[5];
} fault_case;

static const fault_case cases[] = {
    {"never-comes",
     3,
     1,
     {"rank 0: TIMEOUT", "all_reduce of world #", "(400000 bytes) waited ", "for rank 2;", "last operations"}},
    {"nobody-sends", 2, 1, {"rank 0: TIMEOUT", "receive of world #0 (32 bytes)", "for rank 1;"}},
    {"other-size",
     2,
     2,
     {"MISMATCH", "all_reduce sum of 1200 bytes f32", "all_reduce sum of 800 bytes f32", "in the same order"}},
    {"other-operation", 2, 2, {"MISMATCH", "broadcast from member 0 of 800 bytes", "all_reduce sum of 800 bytes"}},
    {"other-message", 2, 2, {"rank 1: MISMATCH", "send of 400 bytes f32", "rank 0 at send of 800 bytes f32"}},
    {"other-value", 3, 2, {"rank 0: MISMATCH", "--hidden-size 64 on rank 0, 128 on rank 1 (and 1 more ranks differ)"}},
    {"other-lines", 2, 2, {"rank 0: MISMATCH", "\"--swiglu\" on rank 0, \"\" on rank 1"}},
    {"one-fails", 3, 1, {"rank 1: NUMERIC", "the loss is not finite"}},
    {"other-grid", 2, 2, {"rank 0: INVALID", "the grid has 16 ranks, the job 2"}},
};

/* Before the ranks have met. */
static const fault_case mpi_cases[] = {
    {"never-opens", 2, 1, {"rank 0: TIMEOUT", "not all of the 2 ranks started within 1.0 s", "MPI_Init"}},
    {"wrong-size", 2, 2, {"INVALID", "mpirun started rank", "of 3, but MPI sees rank", "start under mpirun"}},
};
/* What TCP and the launcher do differently. */
static const fault_case tcp_cases[] = {
    {"never-opens",
     2,
     1,
     {"rank 0: TIMEOUT", "ranks started within 1.0 s: rank 0 waits at 127.0.0.1 port", "for rank 1;"}},
    {"one-fails", 3, 1, {"rank 1: NUMERIC", "the loss is not finite"}},
    {"other-message", 2, 2, {"rank 1: MISMATCH", "send of 400 bytes f32", "rank 0 at send of 800 bytes f32"}},
};
#define COUNT(array) (sizeof(array) / sizeof(array)[0])

static void check(const fault_case *c, path p)
{
    static outcome o;
    run(&o, c->n, c->fault, p);
    for (int k = 0; k < 5 && c->says[k]; k++) {
        expect(&o, c->says[k]);
    }
    if (o.exit_status != c->exit_status || o.seconds > 15) {
        fail_msg("%s: exit status %d after %.1f s:\n%s", c->fault, o.exit_status, o.seconds, o.text);
    }
}

static void check_all(path p)
{
    for (size_t i = 0; i < COUNT(cases); i++) {
        check(&cases[i], p);
    }
    for (size_t i = 0; i < COUNT(mpi_cases); i++) {
        check(&mpi_cases[i], p);
    }
}

static void test_shared_memory(void **state)
{
    (void)state;
    check_all(SHARED_MEMORY);
}

static void test_messages(void **state)
{
    (void)state;
    check_all(MESSAGES);
}

static void test_tcp(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(tcp_cases); i++) {
        check(&tcp_cases[i], TCP);
    }
}

/* The launcher sees the death too and ends the job by itself: whoever is first, it is within seconds. */
static void test_dead_peer(void **state)
{
    (void)state;
    static outcome o;
    run(&o, 3, "dies", SHARED_MEMORY);
    expect(&o, "rank 2 (process ");
    expect(&o, "is gone while barrier of world #");
    assert_true(o.exit_status > 0 && o.seconds < 15);
}

int main(int argc, char **argv)
{
    if (argc != 4) {
        fprintf(stderr, "usage: test_comm_faults TESTS/RANKS RANKS_FAULT MEGAC\n");
        return 2;
    }
    runner = argv[1];
    program = argv[2];
    megac = argv[3];
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shared_memory),
        cmocka_unit_test(test_messages),
        cmocka_unit_test(test_tcp),
        cmocka_unit_test(test_dead_peer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
