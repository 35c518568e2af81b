/* Jobs that go wrong end soon, with the right status and a message that says what happened; on all paths. */
#include <stdbool.h>
#include <sys/wait.h>
#include <time.h>

#include "tests/unit.h"

/* tests/ranks, the program and megac, from the build. */
static const char *runner, *program, *megac;

/* The last two under megac launch, which starts ranks faster than mpirun: short deadlines are for them. */
typedef enum { SHARED_MEMORY, MESSAGES, TCP_SHARED_MEMORY, TCP_MESSAGES } path;

typedef struct outcome {
    int exit_status;
    double seconds;
    char text[16384];
} outcome;

static void run(outcome *o, int n, const char *fault, path p)
{
    char command[1024];
    snprintf(command, sizeof command,
             "MEGAC_NO_SHM=%d RANKS_MEGAC='%s' RANKS_TIMEOUT=25 '%s' %d '%s' %s 2>&1 </dev/null",
             p == MESSAGES || p == TCP_MESSAGES, p >= TCP_SHARED_MEMORY ? megac : "", runner, n, program, fault);
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

/* Each row: the fault, ranks, exit status, what must be said. */
typedef struct fault_case {
    const char *fault;
    int n, exit_status;
    const char *says[5];
} fault_case;

static const fault_case cases[] = {
    {"never-comes", 3, 1, {": TIMEOUT", "all_reduce of world #", "(400000 bytes) waited ", "for rank 2, at step"}},
    {"nobody-sends", 2, 1, {"rank 0: TIMEOUT", "receive of world #0 (32 bytes)", "for rank 1, at step 0"}},
    {"other-size",
     2,
     2,
     {"MISMATCH", "all_reduce sum of 1200 bytes f32", "all_reduce sum of 800 bytes f32", "in the same order",
      "and this rank call different operations"}},
    {"other-operation", 2, 2, {"MISMATCH", "broadcast from member 0 of 800 bytes", "all_reduce sum of 800 bytes"}},
    {"other-message", 2, 2, {"rank 1: MISMATCH", "send of 400 bytes f32", "rank 0 at send of 800 bytes f32"}},
    {"other-value", 3, 2, {"rank 0: MISMATCH", "--hidden-size 64 on rank 0, 128 on rank 1 (and 1 more ranks differ)"}},
    {"other-lines", 2, 2, {"rank 0: MISMATCH", "\"--swiglu\" on rank 0, \"\" on rank 1"}},
    {"one-fails", 3, 1, {"rank 1: NUMERIC", "the loss is not finite"}},
    {"other-grid", 2, 2, {"rank 0: INVALID", "the grid has 16 ranks, the job 2"}},
};

/* What is read from the ledgers of the other ranks, which need shared memory. */
static const fault_case ledger_cases[] = {
    {"chain",
     3,
     1,
     {"at step 3: rank 2 holds up the others", "(stopped), step 3: saves iteration 3: run/iter_0000003.tmp/shard, for",
      "watchdog: rank 2 did: world #0 barrier, 0 bytes i32, step 3", "step 3: waits "}},
    {"deadlock",
     2,
     1,
     {"and this rank wait for each other", "watchdog: rank 0, process", "watchdog: rank 1, process",
      "in world #0 receive from member 0, 32 bytes f32 for rank 0",
      "in world #0 receive from member 1, 32 bytes f32 for rank 1"}},
    {"own-work",
     2,
     1,
     {"megac[rank 1]: error: \"reads data\" has not moved for 2.",
      "report of rank 1 at step 0: its own work does not move", "(sleeps), step 0: reads data, for",
      "(sleeps), step 0: writes slowly, for"}},
    /* The launcher sees the death too and ends the job by itself. */
    {"dies",
     3,
     1,
     {"is gone while barrier of world #", "rank 2 is gone", "watchdog: rank 2, process ", "(gone), step 0: computes",
      "watchdog: rank 2 did: world #"}},
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
    {"dies",
     3,
     1,
     {"rank 2 is gone", "watchdog: rank 2", "what it did cannot be read from here", "see its own messages"}},
    {"other-message", 2, 2, {"rank 1: MISMATCH", "send of 400 bytes f32", "rank 0 at send of 800 bytes f32"}},
};
#define COUNT(array) (sizeof(array) / sizeof(array)[0])

static void check(const fault_case *c, path p, outcome *o)
{
    run(o, c->n, c->fault, p);
    for (int k = 0; k < 5 && c->says[k]; k++) {
        expect(o, c->says[k]);
    }
    if (o->exit_status != c->exit_status || o->seconds > 15) {
        fail_msg("%s: exit status %d after %.1f s:\n%s", c->fault, o->exit_status, o->seconds, o->text);
    }
}

static void check_all(path p)
{
    static outcome o;
    for (size_t i = 0; i < COUNT(cases); i++) {
        check(&cases[i], p, &o);
    }
    for (size_t i = 0; i < COUNT(mpi_cases); i++) {
        check(&mpi_cases[i], p, &o);
    }
}

static void test_shared_memory(void **state)
{
    (void)state;
    check_all(SHARED_MEMORY);
}

static int count(const char *text, const char *part)
{
    int n = 0;
    for (const char *at = text; (at = strstr(at, part)) != NULL; at++) {
        n++;
    }
    return n;
}

/* One rank of the machine reports, however many see the fault. */
static void test_ledgers(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(ledger_cases); i++) {
        const fault_case *c = &ledger_cases[i];
        static outcome o;
        check(c, TCP_SHARED_MEMORY, &o);
        assert_int_equal(count(o.text, "watchdog: report"), 1);
    }
}

static void test_messages(void **state)
{
    (void)state;
    check_all(MESSAGES);
}

static void test_tcp(void **state)
{
    (void)state;
    static outcome o;
    for (size_t i = 0; i < COUNT(tcp_cases); i++) {
        check(&tcp_cases[i], TCP_MESSAGES, &o);
    }
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
        cmocka_unit_test(test_ledgers),
        cmocka_unit_test(test_messages),
        cmocka_unit_test(test_tcp),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
