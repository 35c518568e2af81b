/* Nothing loses a checkpoint: failing allocations, a saver killed at random moments. (Damaged files:
 * test_ckpt_mutations.c.) */
#include <signal.h>
#include <sys/wait.h>
#include <time.h>

#include "megac/base/rng.h"
#include "megac/base/world.h"
#include "megac/train/checkpoint/ckpt_inspect.h"
#include "tests/train/ckpt_save.h"

enum { KILLS = 100 };

static const ckpt_layout two_by_two = {2, 2, 3, false, MC_F32}, one = {1, 1, 1, false, MC_F32};

static int make_place(void **state)
{
    char *dir = test_malloc(64);
    snprintf(dir, 64, "test_ckpt_damage_XXXXXX");
    *state = dir;
    return mkdtemp(dir) ? 0 : -1;
}

static int drop_place(void **state)
{
    mc_status st = mc_file_remove_tree(*state);
    test_free(*state);
    return st == MC_OK && mc_alloc_report_leaks() == 0 ? 0 : -1;
}

/* Allocation n of a save fails, n = 1, 2, ...: MC_NOMEM, nothing leaks, the previous checkpoint loads. */
static void test_out_of_memory_saving(void **state)
{
    const char *dir = *state;
    const mt_ckpt_state s = ckpt_state(6);
    const mc_job job = {.size = 1, .local_size = 1, .launcher = "none"};
    mc_world *world;
    ckpt_rank r;
    char text[4096], tmp[128];
    snprintf(tmp, sizeof tmp, "%s/iter_0000006.tmp", dir);
    assert_int_equal(ckpt_save_all(dir, &two_by_two, 5, 1), MC_OK);
    assert_int_equal(mc_world_open(&job, "self", 5.0, &world), MC_OK);
    ckpt_make(&r, &one, 0);
    ckpt_fill(&r, 2);
    size_t live = mc_alloc_get_stats().live_blocks, n = 1;
    for (mc_status st = MC_NOMEM; st != MC_OK; n++) {
        assert_true(n < 200);
        mc_alloc_fail_at(n);
        UNIT_CAPTURE(text, st = mt_checkpoint_save(dir, world, &s, r.items, r.n_items));
        mc_alloc_fail_at(0);
        assert_true(st == MC_OK || st == MC_NOMEM);
        assert_int_equal(mc_alloc_get_stats().live_blocks, live);
        assert_false(mc_file_exists(tmp));
        assert_int_equal(ckpt_load_all(dir, &one, st == MC_OK ? 2 : 1), MC_OK);
    }
    assert_true(n > 8);
    ckpt_drop(&r);
    mc_world_close(world, false, 0);
}

static void test_out_of_memory_loading(void **state)
{
    const char *dir = *state;
    ckpt_rank r;
    char text[4096];
    size_t n = 1;
    assert_int_equal(ckpt_save_all(dir, &two_by_two, 5, 1), MC_OK);
    ckpt_make(&r, &one, 0);
    size_t live = mc_alloc_get_stats().live_blocks;
    for (mc_status st = MC_NOMEM; st != MC_OK; n++) {
        mt_checkpoint *c = NULL;
        assert_true(n < 500);
        mc_alloc_fail_at(n);
        UNIT_CAPTURE(
            text, st = mt_checkpoint_open(dir, -1, &c);
            for (int i = 0; st == MC_OK && i < r.n_items; i++) { st = mt_checkpoint_read(c, &r.items[i]); });
        mc_alloc_fail_at(0);
        assert_true(st == MC_OK || st == MC_NOMEM);
        mt_checkpoint_close(c);
        assert_int_equal(mc_alloc_get_stats().live_blocks, live);
    }
    assert_true(n > 20);
    ckpt_drop(&r);
}

/* Saves iterations first, first + 1, ... for ever, with values that follow from the number. */
static void save_for_ever(const char *dir, int64_t first)
{
    for (int64_t i = first;; i++) {
        char old[MC_PATH_BYTES];
        if (ckpt_save_all(dir, i % 2 ? &two_by_two : &one, i / 2, (int)(i / 2 % 100)) != MC_OK ||
            mt_i_iter_path(old, dir, i / 2 - 3, "") != MC_OK || mc_file_remove_tree(old) != MC_OK) {
            _exit(1);
        }
    }
}

static void test_killed_at_any_moment(void **state)
{
    const char *dir = *state;
    int64_t at = 20, last = -1;
    FILE *null = fopen("/dev/null", "w");
    struct timespec begin, end;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    assert_int_equal(ckpt_save_all(dir, &one, at / 2, (int)(at / 2 % 100)), MC_OK);
    clock_gettime(CLOCK_MONOTONIC, &end);
    /* The child lives for up to eight saves, however slow the disk is. */
    double longest = 8 * ((double)(end.tv_sec - begin.tv_sec) + 1e-9 * (double)(end.tv_nsec - begin.tv_nsec));
    longest = longest < 0.02 ? 0.02 : longest > 0.5 ? 0.5 : longest;
    /* On a machine that others load, saves take longer than the first: then longer lives, and more of them. */
    for (unsigned k = 0; k < KILLS || (last < 15 && k < 8 * KILLS); k++) {
        mt_checkpoint *c;
        int status;
        char text[4096];
        pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0) {
            save_for_ever(dir, at);
        }
        uint32_t r = mc_rng_bits(99, 1, 0, k).w[0];
        struct timespec wait = {0, 200000 + (long)(longest * 1e9 * ((double)r / 4294967296.0))};
        nanosleep(&wait, NULL);
        kill(child, SIGKILL);
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(WIFSIGNALED(status)); /* it did not fail by itself */
        int64_t iteration = -1;
        /* Killed between two renames, it leaves a newer checkpoint than the number says, of which a warning tells. */
        UNIT_CAPTURE(text, {
            assert_int_equal(mt_checkpoint_open(dir, -1, &c), MC_OK);
            iteration = mt_checkpoint_state(c)->iteration;
            mt_checkpoint_close(c);
            assert_true(iteration >= last); /* what was the latest never goes back */
            assert_int_equal(mt_checkpoint_inspect(dir, true, false, null), MC_OK);
            assert_int_equal(ckpt_load_all(dir, &one, (int)(iteration % 100)), MC_OK);
        });
        assert_null(strstr(text, "error"));
        longest = iteration == last && longest < 0.4 ? 1.5 * longest : longest;
        last = iteration;
        at = 2 * iteration;
    }
    assert_true(last >= 15); /* some saves were finished */
    fclose(null);
}

int main(void)
{
#define ROW(f) cmocka_unit_test_setup_teardown(f, make_place, drop_place)
    const struct CMUnitTest tests[] = {
        ROW(test_out_of_memory_saving),
        ROW(test_out_of_memory_loading),
        ROW(test_killed_at_any_moment),
    };
    return cmocka_run_group_tests_name("checkpoint damage", tests, NULL, NULL);
}
