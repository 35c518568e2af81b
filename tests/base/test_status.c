/* Result codes: names, exit statuses, the macros that pass them on, and the message of the first detector. */
#include <sys/wait.h>

#include "megac/base/log.h"
#include "megac/base/status.h"
#include "tests/unit.h"

static void names_and_exit_statuses(void **state)
{
    (void)state;
    assert_string_equal(mc_status_name(MC_OK), "OK");
    assert_string_equal(mc_status_name(MC_NOMEM), "NOMEM");
    assert_string_equal(mc_status_name(MC_STATUS_COUNT), "?");
    assert_string_equal(mc_status_text((mc_status)-1), "?");
    assert_int_equal(mc_status_exit(MC_OK), 0);
    assert_int_equal(mc_status_exit(MC_STOPPED), 75);
    assert_int_equal(mc_status_exit((mc_status)1000), 1);
    for (int st = MC_OK + 1; st < MC_STATUS_COUNT; st++) {
        int code = mc_status_exit((mc_status)st);
        assert_true(code == 1 || code == 2 || code == 75);
        assert_true(strlen(mc_status_text((mc_status)st)) > 5);
        for (int other = MC_OK; other < st; other++) {
            assert_string_not_equal(mc_status_name((mc_status)st), mc_status_name((mc_status)other));
        }
    }
}

static void bad_input_exits_with_2(void **state)
{
    (void)state;
    const mc_status bad[] = {MC_INVALID, MC_INPUT, MC_NOTFOUND, MC_UNSUPPORTED, MC_MISMATCH};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        assert_int_equal(mc_status_exit(bad[i]), 2);
    }
}

static mc_status count_and_return(int *calls, mc_status st)
{
    ++*calls;
    return st;
}

static mc_status try_three(int *calls, mc_status second)
{
    MC_TRY(count_and_return(calls, MC_OK));
    MC_TRY(count_and_return(calls, second));
    return count_and_return(calls, MC_STOPPED);
}

static mc_status try_with_cleanup(int *calls, mc_status first, mc_status cleanup)
{
    mc_status st;
    MC_TRY_GOTO(st, count_and_return(calls, first), undo_all);
    ++*calls;
undo_all:
    MC_KEEP_FIRST(st, count_and_return(calls, cleanup));
    return st;
}

static void macros_pass_the_first_error_on(void **state)
{
    (void)state;
    int calls = 0;
    assert_int_equal(try_three(&calls, MC_OK), MC_STOPPED);
    assert_int_equal(calls, 3);
    calls = 0;
    assert_int_equal(try_three(&calls, MC_IO), MC_IO);
    assert_int_equal(calls, 2);

    calls = 0;
    assert_int_equal(try_with_cleanup(&calls, MC_OK, MC_OK), MC_OK);
    assert_int_equal(calls, 3);
    assert_int_equal(try_with_cleanup(&calls, MC_OK, MC_COMM), MC_COMM);
    calls = 0;
    assert_int_equal(try_with_cleanup(&calls, MC_IO, MC_COMM), MC_IO);
    assert_int_equal(calls, 2);
}

static void fail_logs_once_and_returns_the_code(void **state)
{
    (void)state;
    char text[512], expected[256];
    mc_status st = MC_OK;
    int saved = unit_capture_begin();
    int line = __LINE__ + 1;
    st = MC_FAIL(MC_INVALID, "--lr: \"%s\" is not a number", "fast");
    unit_capture_end(saved, text, sizeof text);
    assert_int_equal(st, MC_INVALID);
    snprintf(expected, sizeof expected, "megac: error: --lr: \"fast\" is not a number (test_status.c:%d)\n", line);
    assert_string_equal(text, expected);
}

static void propagation_is_silent(void **state)
{
    (void)state;
    char text[64];
    int calls = 0;
    mc_status st = MC_OK;
    UNIT_CAPTURE(text, st = try_three(&calls, MC_IO));
    assert_int_equal(st, MC_IO);
    assert_string_equal(text, "");
}

static void broken_invariant_aborts_with_its_text(void **state)
{
    (void)state;
    char text[512];
    int how = 0;
    int saved = unit_capture_begin();
    pid_t child = fork();
    if (child == 0) {
        int zero = 0;
        MC_ASSERT(zero == 1);
        _exit(0);
    }
    waitpid(child, &how, 0);
    unit_capture_end(saved, text, sizeof text);
    assert_true(WIFSIGNALED(how) && WTERMSIG(how) == SIGABRT);
    assert_non_null(strstr(text, "broken invariant: zero == 1"));
    assert_non_null(strstr(text, "test_status.c:"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_and_exit_statuses),        cmocka_unit_test(bad_input_exits_with_2),
        cmocka_unit_test(macros_pass_the_first_error_on), cmocka_unit_test(fail_logs_once_and_returns_the_code),
        cmocka_unit_test(propagation_is_silent),          cmocka_unit_test(broken_invariant_aborts_with_its_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
