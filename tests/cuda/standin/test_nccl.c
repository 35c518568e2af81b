/* The stand-in for NCCL, run by processes: argv[1] is ranks_nccl. Fault tests check what is reported, by every rank
 * that can know, and the exit status. */
#include "tests/cuda/standin/farm.h"
#include "tests/unit.h"

static const char *program;
static farm_result result;

static void run(const char *mode, int n, const char *const *env)
{
    farm_run(program, mode, n, env, 120.0, &result);
}

#define RUN(mode, n, ...) run(mode, n, (const char *const[]){__VA_ARGS__, NULL})

static void expect_status(int first, int last, int status)
{
    for (int r = first; r <= last; r++) {
        if (result.status[r] != status) {
            farm_show(&result);
            fail_msg("rank %d ended with %d, expected %d", r, result.status[r], status);
        }
    }
}

static void expect_text(int first, int last, const char *text)
{
    for (int r = first; r <= last; r++) {
        if (!strstr(result.text[r], text)) {
            farm_show(&result);
            fail_msg("rank %d did not say \"%s\"", r, text);
        }
    }
}

static void expect_silence(int first, int last)
{
    for (int r = first; r <= last; r++) {
        if (result.text[r][0]) {
            farm_show(&result);
            fail_msg("rank %d was expected to say nothing", r);
        }
    }
}

static void expect_right(int n)
{
    expect_status(0, n - 1, 0);
    expect_silence(0, n - 1);
}

static void values_under_all_policies(void **state)
{
    (void)state;
    static const char *const policies[] = {"STANDIN_POLICY=eager", "STANDIN_POLICY=late", "STANDIN_POLICY=random:1",
                                           "STANDIN_POLICY=random:2", "STANDIN_POLICY=random:3"};
    for (size_t i = 0; i < sizeof policies / sizeof *policies; i++) {
        RUN("values", 4, policies[i]);
        expect_right(4);
    }
}

static void table(void **state)
{
    (void)state;
    static const int sizes[] = {1, 2, 5};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        RUN("table", sizes[i], i % 2 ? "STANDIN_POLICY=late" : "STANDIN_POLICY=random:7");
        expect_right(sizes[i]);
    }
}

static void sixteen_ranks(void **state)
{
    (void)state;
    RUN("two", 16, "STANDIN_POLICY=late");
    expect_right(16);
}

static void sums_in_rank_order(void **state)
{
    (void)state;
    RUN("rank_order", 4, "STANDIN_POLICY=random:5");
    expect_right(4);
}

static void initialisation_that_does_not_block(void **state)
{
    (void)state;
    RUN("nonblocking", 3, "STANDIN_POLICY=late");
    expect_right(3);
    RUN("early", 2, "STANDIN_POLICY=late");
    expect_status(0, 1, 97);
    expect_text(0, 1, "MISUSE: ncclCommCount on communicator world before ncclCommGetAsyncError has told ncclSuccess");
}

static void ranks_that_do_not_come(void **state)
{
    (void)state;
    RUN("absent", 3, "STANDIN_DEADLINE=1");
    expect_status(0, 1, 5);
    expect_text(0, 0, "initialisation of communicator world, rank 0 of 3: rank 2 did not come in 1 s");
    expect_text(0, 1, "initialisation: unhandled system error");
    RUN("dies_early", 3, "STANDIN_DEADLINE=1");
    expect_status(2, 2, 128 + 9);
    expect_status(0, 1, 5);
    expect_text(0, 1, "rank 2 did not come in 1 s");
    RUN("sizes", 3, "STANDIN_DEADLINE=1");
    expect_text(2, 2, "rank 2 says 4 ranks, another said 3");
}

static void crossed_messages(void **state)
{
    (void)state;
    RUN("deadlock", 2, "STANDIN_DEADLINE=1");
    expect_status(0, 1, 96);
    expect_text(0, 0,
                "communicator world, rank 0 of 2: Send 100 x fp32 to 1 (message 0) is not complete after 1 s; it waits "
                "for rank 1");
    expect_text(0, 0, "rank 1 (world 1): 0 collectives issued; in Send 100 x fp32 to 0 (message 0)");
    expect_text(1, 1, "rank 1 of 2: Send 100 x fp32 to 0 (message 0) is not complete after 1 s");
}

static void calls_that_do_not_fit(void **state)
{
    (void)state;
    RUN("count", 3, "STANDIN_DEADLINE=5");
    expect_status(0, 2, 96);
    expect_text(0, 1, "MISMATCH on communicator world, collective 0");
    expect_text(0, 1, "calls AllReduce 100 x fp32 sum, rank 2 calls AllReduce 99 x fp32 sum");
    expect_text(2, 2, "rank 2 calls AllReduce 99 x fp32 sum, rank ");
    RUN("type", 2, "STANDIN_DEADLINE=5");
    expect_status(0, 1, 96);
    expect_text(0, 0, "rank 0 calls AllReduce 100 x fp32 sum, rank 1 calls AllReduce 100 x bf16 sum");
    RUN("order", 2, "STANDIN_DEADLINE=5");
    expect_status(0, 1, 96);
    expect_text(0, 0, "rank 0 calls AllReduce 100 x fp32 sum, rank 1 calls Broadcast 100 x fp32 root 0");
    RUN("length", 2, "STANDIN_DEADLINE=5");
    expect_status(0, 1, 96);
    expect_text(0, 0,
                "MISMATCH on communicator world, message 0: rank 0 calls Send 100 x fp32 to 1, rank 1 calls Recv 101 x "
                "fp32 from 0");
    expect_text(1, 1, "rank 1 calls Recv 101 x fp32 from 0, rank 0 calls Send 100 x fp32 to 1");
}

static void a_call_that_is_missing(void **state)
{
    (void)state;
    RUN("missing", 3, "STANDIN_DEADLINE=1");
    expect_status(0, 1, 96);
    expect_status(2, 2, 0);
    expect_text(0, 1, "AllReduce 50 x fp32 sum (collective 1) is not complete after 1 s; it waits for rank 2");
    expect_text(0, 1, "rank 2 (world 2): 1 collectives issued, last AllReduce 100 x fp32 sum; in nothing");
}

static void a_rank_that_dies(void **state)
{
    (void)state;
    RUN("dead", 3, "STANDIN_DEADLINE=100");
    expect_status(0, 1, 96);
    expect_text(0, 1, "AllReduce 100 x fp32 sum (collective 1): rank 2 is gone");
}

static void two_communicators_in_two_orders(void **state)
{
    (void)state;
    RUN("two", 2, "STANDIN_POLICY=late");
    expect_right(2);
    RUN("two", 2, "STANDIN_NCCL_STRICT=1", "STANDIN_DEADLINE=1");
    expect_status(0, 1, 96);
    expect_text(0, 0, "communicator world, rank 0 of 2: AllReduce 100 x fp32 sum (collective 0) is not complete");
    expect_text(1, 1, "communicator world.0c0, rank 1 of 2: AllReduce 100 x fp32 sum (collective 0) is not complete");
}

static void captured_collectives(void **state)
{
    (void)state;
    RUN("replayed", 3, "STANDIN_POLICY=late");
    expect_right(3);
}

static void race_detector(void **state)
{
    (void)state;
    static const char *const right[] = {"values", "two", "replayed"};
    for (size_t i = 0; i < sizeof right / sizeof *right; i++) {
        RUN(right[i], 4, "STANDIN_RACE=1", "STANDIN_POLICY=eager");
        expect_right(4);
    }
    RUN("unordered", 2, "STANDIN_RACE=1", "STANDIN_POLICY=eager");
    expect_status(0, 1, 97);
    expect_text(0, 1, "RACE: ");
    expect_text(0, 1, "nccl AllReduce");
}

static void buffers(void **state)
{
    (void)state;
    RUN("overlap", 1, "STANDIN_POLICY=late");
    expect_status(0, 0, 97);
    expect_text(0, 0, "MISUSE: ncclAllReduce: source 0x");
    expect_text(0, 0, "overlap, and not as an operation in place");
    RUN("host", 1, "STANDIN_POLICY=late");
    expect_status(0, 0, 97);
    expect_text(0, 0, "MISUSE: ncclAllReduce: 0x");
    RUN("destroyed", 1, "STANDIN_POLICY=late");
    expect_status(0, 0, 97);
    expect_text(0, 0, "is not a live one");
}

static void errors_on_demand(void **state)
{
    (void)state;
    RUN("injected", 3, "STANDIN_NCCL_ERROR=AllReduce:2@1", "STANDIN_DEADLINE=30");
    expect_status(0, 2, 0);
    expect_text(1, 1, "last error: communicator world: AllReduce 100 x fp32 sum (collective 1) fails, as");
    expect_text(0, 0, "last error: rank 1 of communicator world met an error");
    expect_text(2, 2, "last error: rank 1 of communicator world met an error");
    /* A fault of the program becomes an error of the communicator too; who ignores it is stopped. */
    RUN("count", 2, "STANDIN_NCCL_ERROR=return", "STANDIN_DEADLINE=1");
    expect_status(0, 1, 96);
    expect_text(0, 1, "NCCL: MISMATCH on communicator world, collective 0");
    expect_text(0, 1, "communicator world has failed, and was not aborted in 1 s");
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_under_all_policies),
        cmocka_unit_test(table),
        cmocka_unit_test(sixteen_ranks),
        cmocka_unit_test(sums_in_rank_order),
        cmocka_unit_test(initialisation_that_does_not_block),
        cmocka_unit_test(ranks_that_do_not_come),
        cmocka_unit_test(crossed_messages),
        cmocka_unit_test(calls_that_do_not_fit),
        cmocka_unit_test(a_call_that_is_missing),
        cmocka_unit_test(a_rank_that_dies),
        cmocka_unit_test(two_communicators_in_two_orders),
        cmocka_unit_test(captured_collectives),
        cmocka_unit_test(race_detector),
        cmocka_unit_test(buffers),
        cmocka_unit_test(errors_on_demand),
    };
    if (argc != 2) {
        fprintf(stderr, "usage: test_nccl RANKS_NCCL\n");
        return 2;
    }
    program = argv[1];
    return cmocka_run_group_tests_name("stand-in for NCCL", tests, NULL, NULL);
}
