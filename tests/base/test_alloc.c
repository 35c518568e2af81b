/* Named allocations: alignment, zero fill, counters, leak report, failure on demand, the freeze after step 1. */
#include <pthread.h>

#include "megac/base/alloc.h"
#include "megac/base/log.h"
#include "tests/unit.h"

static int reset(void **state)
{
    (void)state;
    mc_alloc_freeze(false);
    mc_alloc_fail_at(0);
    return 0;
}

static int no_leaks(void **state)
{
    reset(state);
    return mc_alloc_report_leaks() == 0 ? 0 : -1;
}

static void blocks_are_aligned_and_zero(void **state)
{
    (void)state;
    for (size_t bytes = 0; bytes < 300; bytes += 7) {
        unsigned char *p = NULL;
        assert_int_equal(mc_alloc(1, bytes, "block", (void **)&p), MC_OK);
        assert_non_null(p);
        assert_int_equal((uintptr_t)p % MC_ALLOC_ALIGN, 0);
        for (size_t i = 0; i < bytes; i++) {
            assert_int_equal(p[i], 0);
        }
        memset(p, 0xa5, bytes); /* so that a block which comes back must be cleared */
        mc_free(p);
    }
}

/* What was there comes along, the rest is zero, and a block that cannot grow stays. */
static void blocks_grow(void **state)
{
    (void)state;
    int *p = NULL;
    assert_int_equal(MC_MORE(&p, 0, 3, "numbers"), MC_OK);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(p[i], 0);
        p[i] = i + 1;
    }
    assert_int_equal(MC_MORE(&p, 2, 500, "numbers"), MC_OK);
    for (int i = 0; i < 500; i++) {
        assert_int_equal(p[i], i < 2 ? i + 1 : 0);
    }
    int *same = p;
    mc_alloc_fail_at(1);
    assert_int_equal(MC_MORE(&p, 500, 1000, "numbers"), MC_NOMEM);
    assert_ptr_equal(p, same);
    assert_int_equal(p[1], 2);
    mc_free(p);
}

static void counters_follow(void **state)
{
    (void)state;
    mc_alloc_stats before = mc_alloc_get_stats();
    double *a = NULL;
    char *text = NULL;
    assert_int_equal(MC_NEW_N(&a, 1000, "numbers"), MC_OK);
    assert_int_equal(mc_strdup("seven b", "text", &text), MC_OK);
    mc_alloc_stats now = mc_alloc_get_stats();
    assert_int_equal(now.live_blocks - before.live_blocks, 2);
    assert_int_equal(now.live_bytes - before.live_bytes, 8008);
    assert_int_equal(now.total_blocks - before.total_blocks, 2);
    assert_true(now.peak_bytes >= now.live_bytes);
    mc_free(a);
    now = mc_alloc_get_stats();
    assert_int_equal(now.live_blocks - before.live_blocks, 1);
    assert_int_equal(now.live_bytes - before.live_bytes, 8);
    assert_true(now.peak_bytes >= before.live_bytes + 8008);
    assert_string_equal(text, "seven b");
    mc_free(text);
    mc_free(NULL);
    now = mc_alloc_get_stats();
    assert_int_equal(now.live_blocks, before.live_blocks);
    assert_int_equal(now.live_bytes, before.live_bytes);
}

static void too_much_is_nomem_with_its_name(void **state)
{
    (void)state;
    const size_t wants[][2] = {{SIZE_MAX, 2}, {SIZE_MAX / 2, 1}, {SIZE_MAX / 4, 3}, {SIZE_MAX, SIZE_MAX}};
    for (size_t i = 0; i < sizeof wants / sizeof wants[0]; i++) {
        char text[512];
        void *p = &text;
        mc_status st = MC_OK;
        UNIT_CAPTURE(text, st = mc_alloc(wants[i][0], wants[i][1], "the giant", &p));
        assert_int_equal(st, MC_NOMEM);
        assert_ptr_equal(p, &text);
        assert_non_null(strstr(text, "the giant"));
    }
}

static void the_nth_allocation_fails(void **state)
{
    (void)state;
    char text[512];
    for (size_t nth = 1; nth <= 4; nth++) {
        void *p[5] = {NULL};
        size_t failed_at = 0;
        mc_alloc_fail_at(nth);
        for (size_t i = 1; i <= 4; i++) {
            mc_status st = MC_OK;
            UNIT_CAPTURE(text, st = mc_alloc(1, 16, "step", &p[i]));
            if (st != MC_OK) {
                assert_int_equal(st, MC_NOMEM);
                assert_int_equal(failed_at, 0); /* only one fails */
                failed_at = i;
            }
        }
        assert_int_equal(failed_at, nth);
        for (size_t i = 1; i <= 4; i++) {
            assert_true((p[i] == NULL) == (i == nth));
            mc_free(p[i]);
        }
    }
}

static void allocations_while_frozen_are_counted(void **state)
{
    (void)state;
    void *a = NULL, *b = NULL, *c = NULL;
    size_t before = mc_alloc_get_stats().after_freeze;
    assert_int_equal(mc_alloc(1, 1, "before", &a), MC_OK);
    assert_int_equal(mc_alloc_get_stats().after_freeze, before);
    mc_alloc_freeze(true);
    assert_int_equal(mc_alloc(1, 1, "the culprit", &b), MC_OK);
    assert_int_equal(mc_alloc(1, 1, "a later one", &c), MC_OK);
    mc_alloc_freeze(false);
    mc_alloc_stats s = mc_alloc_get_stats();
    assert_int_equal(s.after_freeze - before, 2);
    assert_string_equal(s.first_after_freeze, "the culprit");
    mc_free(a);
    mc_free(b);
    mc_free(c);
}

static void leaks_are_named(void **state)
{
    (void)state;
    char text[1024];
    void *a = NULL, *b = NULL, *c = NULL;
    assert_int_equal(mc_alloc(3, 100, "forgotten one", &a), MC_OK);
    assert_int_equal(mc_alloc(1, 5, "freed one", &b), MC_OK);
    assert_int_equal(mc_alloc(1, 7, "forgotten two", &c), MC_OK);
    mc_free(b);
    size_t n = 0;
    UNIT_CAPTURE(text, n = mc_alloc_report_leaks());
    assert_int_equal(n, 2);
    assert_non_null(strstr(text, "300 bytes: forgotten one"));
    assert_non_null(strstr(text, "7 bytes: forgotten two"));
    assert_null(strstr(text, "freed one"));
    mc_free(c);
    mc_free(a);
    UNIT_CAPTURE(text, n = mc_alloc_report_leaks());
    assert_int_equal(n, 0);
    assert_string_equal(text, "");
}

static void *allocate_many(void *arg)
{
    uintptr_t bad = 0;
    for (int i = 0; i < 2000; i++) {
        int *p = NULL;
        if (MC_NEW_N(&p, 1 + i % 50, "by a thread") != MC_OK || p[i % 50] != 0) {
            bad++;
        }
        p[0] = i;
        mc_free(p);
    }
    (void)arg;
    return (void *)bad;
}

static void threads_may_allocate_at_once(void **state)
{
    (void)state;
    pthread_t threads[4];
    mc_alloc_stats before = mc_alloc_get_stats();
    for (int i = 0; i < 4; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, allocate_many, NULL), 0);
    }
    for (int i = 0; i < 4; i++) {
        void *bad = NULL;
        pthread_join(threads[i], &bad);
        assert_null(bad);
    }
    mc_alloc_stats now = mc_alloc_get_stats();
    assert_int_equal(now.total_blocks - before.total_blocks, 8000);
    assert_int_equal(now.live_bytes, before.live_bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(blocks_are_aligned_and_zero, reset, no_leaks),
        cmocka_unit_test_setup_teardown(counters_follow, reset, no_leaks),
        cmocka_unit_test_setup_teardown(blocks_grow, reset, no_leaks),
        cmocka_unit_test_setup_teardown(too_much_is_nomem_with_its_name, reset, no_leaks),
        cmocka_unit_test_setup_teardown(the_nth_allocation_fails, reset, no_leaks),
        cmocka_unit_test_setup_teardown(allocations_while_frozen_are_counted, reset, no_leaks),
        cmocka_unit_test_setup_teardown(leaks_are_named, reset, no_leaks),
        cmocka_unit_test_setup_teardown(threads_may_allocate_at_once, reset, no_leaks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
