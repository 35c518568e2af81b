/* Messages: levels, rank, held messages of other ranks, long lines. */
#include "megac/base/log.h"
#include "tests/unit.h"

static int reset(void **state)
{
    (void)state;
    char text[16384];
    mc_log_hold(false);
    UNIT_CAPTURE(text, mc_log_flush_held());
    mc_log_set_rank(-1);
    mc_log_set_level(MC_LOG_INFO);
    return 0;
}

static void levels_choose_what_is_printed(void **state)
{
    (void)state;
    char text[1024];
    UNIT_CAPTURE(text, MC_DEBUG("hidden"); MC_INFO("seen %d", 1); MC_WARN("seen %d", 2));
    assert_string_equal(text, "megac: info: seen 1\nmegac: warning: seen 2\n");

    mc_log_set_level(MC_LOG_ERROR);
    UNIT_CAPTURE(text, MC_WARN("hidden"); (void)MC_FAIL(MC_IO, "seen"));
    assert_null(strstr(text, "hidden"));
    assert_non_null(strstr(text, "megac: error: seen (test_log.c:"));

    mc_log_set_level(MC_LOG_DEBUG);
    UNIT_CAPTURE(text, MC_DEBUG("seen"));
    assert_non_null(strstr(text, "megac: debug: seen (test_log.c:"));
}

static void rank_is_shown_where_it_helps(void **state)
{
    (void)state;
    char text[256];
    mc_log_set_rank(3);
    UNIT_CAPTURE(text, MC_WARN("a"));
    assert_string_equal(text, "megac[rank 3]: warning: a\n");
    mc_log_set_rank(0);
    UNIT_CAPTURE(text, MC_WARN("b"));
    assert_string_equal(text, "megac: warning: b\n");
    mc_log_set_level(MC_LOG_DEBUG);
    UNIT_CAPTURE(text, MC_WARN("c"));
    assert_non_null(strstr(text, "megac[rank 0]: warning: c"));
}

static void held_messages_come_at_the_flush(void **state)
{
    (void)state;
    char text[512];
    bool any = true;
    mc_log_set_rank(2);
    mc_log_hold(true);
    UNIT_CAPTURE(text, MC_WARN("first"); MC_WARN("second"));
    assert_string_equal(text, "");
    UNIT_CAPTURE(text, any = mc_log_flush_held());
    assert_true(any);
    assert_string_equal(text, "megac[rank 2]: warning: first\nmegac[rank 2]: warning: second\n");
    UNIT_CAPTURE(text, any = mc_log_flush_held());
    assert_false(any);
    assert_string_equal(text, "");

    mc_log_hold(false);
    UNIT_CAPTURE(text, MC_WARN("at once"));
    assert_string_equal(text, "megac[rank 2]: warning: at once\n");
}

static void rank_0_is_never_held(void **state)
{
    (void)state;
    char text[256];
    mc_log_hold(true);
    mc_log_set_rank(0);
    UNIT_CAPTURE(text, MC_WARN("a"));
    assert_string_equal(text, "megac: warning: a\n");
    mc_log_set_rank(-1);
    UNIT_CAPTURE(text, MC_WARN("b"));
    assert_string_equal(text, "megac: warning: b\n");
}

static void what_rank_0_said_is_dropped_elsewhere(void **state)
{
    (void)state;
    char text[512], said[MC_LOG_HELD_BYTES];
    mc_log_hold(true);
    mc_log_set_rank(0);
    UNIT_CAPTURE(text, MC_WARN("--x: off"); MC_WARN("only 0: here"));
    mc_log_copy_held(said);
    assert_string_equal(said, "megac: warning: --x: off\nmegac: warning: only 0: here\n");
    UNIT_CAPTURE(text, assert_false(mc_log_flush_held()));
    assert_string_equal(text, "");

    mc_log_set_rank(12);
    UNIT_CAPTURE(text, MC_WARN("only 12"); MC_WARN("--x: off"); MC_INFO("--x: off"); MC_WARN("--x: of"));
    mc_log_drop_held(said);
    UNIT_CAPTURE(text, assert_true(mc_log_flush_held()));
    assert_string_equal(text, "megac[rank 12]: warning: only 12\nmegac[rank 12]: info: --x: off\n"
                              "megac[rank 12]: warning: --x: of\n");

    UNIT_CAPTURE(text, MC_WARN("--x: off"));
    mc_log_drop_held(said);
    UNIT_CAPTURE(text, assert_false(mc_log_flush_held()));
    assert_string_equal(text, "");
}

/* More than the buffer holds: every line is printed, held or at once, and none twice. */
static void no_held_message_is_lost(void **state)
{
    (void)state;
    enum { LINES = 300 };
    static char text[65536];
    mc_log_set_rank(1);
    mc_log_hold(true);
    int saved = unit_capture_begin();
    for (int i = 0; i < LINES; i++) {
        MC_WARN("a message of some length, number <%d>", i);
    }
    mc_log_flush_held();
    unit_capture_end(saved, text, sizeof text);
    for (int i = 0; i < LINES; i++) {
        char number[16];
        snprintf(number, sizeof number, "<%d>", i);
        const char *at = strstr(text, number);
        assert_non_null(at);
        assert_null(strstr(at + 1, number));
    }
}

static void long_messages_are_cut_to_one_line(void **state)
{
    (void)state;
    static char text[8192], big[5000];
    memset(big, 'x', sizeof big - 1);
    UNIT_CAPTURE(text, (void)MC_FAIL(MC_INVALID, "%s", big); MC_WARN("next"));
    const char *newline = strchr(text, '\n');
    assert_non_null(newline);
    assert_true(newline - text > 1000 && newline - text < 2048);
    assert_string_equal(newline + 1, "megac: warning: next\n");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(levels_choose_what_is_printed, reset),
        cmocka_unit_test_setup(rank_is_shown_where_it_helps, reset),
        cmocka_unit_test_setup(held_messages_come_at_the_flush, reset),
        cmocka_unit_test_setup(rank_0_is_never_held, reset),
        cmocka_unit_test_setup(what_rank_0_said_is_dropped_elsewhere, reset),
        cmocka_unit_test_setup(no_held_message_is_lost, reset),
        cmocka_unit_test_setup(long_messages_are_cut_to_one_line, reset),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
