/* The thread pool: every task runs once, whatever the counts; scratch belongs to one thread; failures and leaks. */
#include <stdatomic.h>

#include "megac/base/alloc.h"
#include "megac/base/pool.h"
#include "tests/unit.h"

enum { MAX_TASKS = 1000, MAX_THREADS = 8, SCRATCH = 100 };

typedef struct job {
    int n_threads;
    uint64_t round;
    uint64_t result[MAX_TASKS];
    int runs[MAX_TASKS];
    _Atomic int bad, busy[MAX_THREADS];
} job;

static uint64_t work_of(uint64_t round, int task)
{
    uint64_t x = round * 0x9e3779b97f4a7c15u + (uint64_t)task;
    x ^= x >> 31;
    return x * 0xbf58476d1ce4e5b9u;
}

/* Writes its own slot without any lock: the pool alone must order it before the caller's reading. */
static void one_task(void *arg, int task, int thread, void *scratch)
{
    job *j = arg;
    if (thread < 0 || thread >= j->n_threads || (uintptr_t)scratch % 64 || atomic_fetch_add(&j->busy[thread], 1)) {
        atomic_fetch_add(&j->bad, 1);
    }
    uint64_t value = work_of(j->round, task);
    memset(scratch, (int)(value & 0xff), SCRATCH);
    j->result[task] = value;
    j->runs[task]++;
    for (int i = 0; i < SCRATCH; i++) {
        if (((unsigned char *)scratch)[i] != (value & 0xff)) {
            atomic_fetch_add(&j->bad, 1);
        }
    }
    atomic_fetch_sub(&j->busy[thread], 1);
}

static void run_and_check(mc_pool *pool, job *j, int n_tasks)
{
    j->round++;
    memset(j->runs, 0, sizeof j->runs);
    mc_pool_run(pool, n_tasks, one_task, j);
    for (int i = 0; i < MAX_TASKS; i++) {
        assert_int_equal(j->runs[i], i < n_tasks);
    }
    for (int i = 0; i < n_tasks; i++) {
        assert_true(j->result[i] == work_of(j->round, i));
    }
    assert_int_equal(j->bad, 0);
}

static void every_task_runs_once(void **state)
{
    (void)state;
    const int counts[] = {0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 100, 999, 1000};
    for (int n_threads = 1; n_threads <= MAX_THREADS; n_threads++) {
        mc_pool *pool = NULL;
        static job j;
        j = (job){.n_threads = n_threads};
        assert_int_equal(mc_pool_create(n_threads, SCRATCH, &pool), MC_OK);
        assert_int_equal(mc_pool_threads(pool), n_threads);
        assert_true(mc_pool_scratch_bytes(pool) >= SCRATCH);
        for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
            run_and_check(pool, &j, counts[i]);
        }
        mc_pool_destroy(pool);
    }
}

/* Short jobs one after the other, where a late thread of one job meets the start of the next; pauses let the threads
 * fall asleep in between. */
static void thousands_of_jobs(void **state)
{
    (void)state;
    for (int n_threads = 2; n_threads <= MAX_THREADS; n_threads += 2) {
        mc_pool *pool = NULL;
        static job j;
        j = (job){.n_threads = n_threads};
        assert_int_equal(mc_pool_create(n_threads, SCRATCH, &pool), MC_OK);
        for (int i = 0; i < 3000; i++) {
            run_and_check(pool, &j, i % 13);
            if (i % 500 == 499) {
                usleep(2000);
            }
        }
        mc_pool_destroy(pool);
    }
}

static void pools_come_and_go(void **state)
{
    (void)state;
    mc_alloc_stats before = mc_alloc_get_stats();
    for (int i = 0; i < 200; i++) {
        mc_pool *pool = NULL;
        static job j;
        j = (job){.n_threads = 1 + i % 4};
        assert_int_equal(mc_pool_create(1 + i % 4, SCRATCH, &pool), MC_OK);
        if (i % 3) {
            run_and_check(pool, &j, i % 7);
        }
        mc_pool_destroy(pool);
    }
    mc_pool_destroy(NULL);
    assert_int_equal(mc_alloc_get_stats().live_blocks, before.live_blocks);
}

static void scratch_takes_what_was_planned(void **state)
{
    (void)state;
    for (size_t bytes = 0; bytes < 200; bytes += 33) {
        for (int n_threads = 1; n_threads <= 3; n_threads++) {
            mc_pool *pool = NULL;
            assert_int_equal(mc_pool_create(n_threads, bytes, &pool), MC_OK);
            size_t each = mc_pool_scratch_bytes(pool);
            assert_true(each >= bytes && each < bytes + 64 && each % 64 == 0);
            assert_int_equal(mc_pool_plan_bytes(n_threads, bytes), each * (size_t)n_threads);
            mc_pool_destroy(pool);
        }
    }
}

static void every_out_of_memory_is_survived(void **state)
{
    (void)state;
    mc_alloc_stats before = mc_alloc_get_stats();
    mc_status st = MC_NOMEM;
    for (size_t nth = 1; st != MC_OK; nth++) {
        char text[512];
        mc_pool *pool = NULL;
        mc_alloc_fail_at(nth);
        UNIT_CAPTURE(text, st = mc_pool_create(3, 64, &pool));
        mc_alloc_fail_at(0);
        if (st == MC_OK) {
            assert_true(nth > 1);
            mc_pool_destroy(pool);
        } else {
            assert_int_equal(st, MC_NOMEM);
            assert_null(pool);
        }
        assert_int_equal(mc_alloc_get_stats().live_blocks, before.live_blocks);
    }
}

/* Ranges cover [0, n) in order without a gap, begin on multiples of the unit and differ by at most one unit. */
static void ranges_cover_everything_evenly(void **state)
{
    (void)state;
    for (long n = 0; n < 70; n++) {
        for (int parts = 1; parts < 12; parts++) {
            for (long unit = 1; unit < 10; unit += 3) {
                long at = 0, units = (n + unit - 1) / unit;
                for (int part = 0; part < parts; part++) {
                    long begin = -1, end = -1;
                    mc_pool_range(n, parts, part, unit, &begin, &end);
                    assert_int_equal(begin, at);
                    assert_true(end >= begin && end <= n && (begin % unit == 0 || begin == n));
                    long took = (end - begin + unit - 1) / unit;
                    assert_true(took == units / parts || took == units / parts + 1);
                    at = end;
                }
                assert_int_equal(at, n);
            }
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_task_runs_once),
        cmocka_unit_test(thousands_of_jobs),
        cmocka_unit_test(pools_come_and_go),
        cmocka_unit_test(scratch_takes_what_was_planned),
        cmocka_unit_test(every_out_of_memory_is_survived),
        cmocka_unit_test(ranges_cover_everything_evenly),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
