/* Nothing loses a checkpoint and no damage passes: mutations of every file, failing allocations, a saver killed at
 * random moments. */
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <time.h>

#include "megac/base/rng.h"
#include "megac/base/world.h"
#include "megac/train/checkpoint/ckpt_inspect.h"
#include "tests/train/ckpt_save.h"

enum { MUTATIONS = 3600, MAX_FILES = 16, KILLS = 100 };

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

typedef struct victim {
    char path[MC_PATH_BYTES];
    char *data;
    size_t bytes;
} victim;

/* Reads all files of a directory into memory. */
static int list_victims(const char *dir, victim *out, int n)
{
    DIR *d = opendir(dir);
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));) {
        if (e->d_type == DT_REG) {
            assert_true(n < MAX_FILES);
            snprintf(out[n].path, MC_PATH_BYTES, "%s/%s", dir, e->d_name);
            assert_int_equal(mc_file_read_all(out[n].path, 1 << 24, "a file", &out[n].data, &out[n].bytes), MC_OK);
            n++;
        }
    }
    closedir(d);
    return n;
}

static void write_file(const char *path, const char *data, size_t bytes)
{
    int fd = -1;
    assert_int_equal(mc_file_create(path, &fd), MC_OK);
    assert_int_equal(mc_file_write(fd, path, data, bytes), MC_OK);
    assert_int_equal(mc_file_close(fd, path), MC_OK);
}

/* One change, chosen by number `k`: bit or byte flipped, cut short, bytes appended, a block zeroed, removed. False when
 * it changes nothing. */
static bool mutate(const victim *v, char *copy, unsigned k)
{
    mc_rng_block r = mc_rng_bits(1234, 7, 0, k);
    size_t at = r.w[1] % v->bytes, bytes = v->bytes;
    memcpy(copy, v->data, v->bytes);
    switch (r.w[0] % 8) {
    case 0:
        return mc_file_remove_tree(v->path) == MC_OK;
    case 1:
        bytes = at;
        break;
    case 2:
        copy[bytes++] = (char)r.w[2];
        break;
    case 3:
        memset(copy + at, 0, bytes - at < 64 ? bytes - at : 64);
        break;
    case 4:
        copy[at] = (char)r.w[2];
        break;
    default:
        copy[at] ^= (char)(1u << r.w[2] % 8);
    }
    write_file(v->path, copy, bytes);
    return bytes != v->bytes || memcmp(copy, v->data, bytes) != 0;
}

/* The number file may lose its end of line, and leading zeros may come: it then names the same iteration. */
static bool harmless(const char *path)
{
    char *text;
    size_t bytes;
    if (!strstr(path, "latest_") || !mc_file_exists(path) ||
        mc_file_read_all(path, 100, "a number", &text, &bytes) != MC_OK) {
        return false;
    }
    bool same = bytes == strspn(text, "0123456789\n") && strtol(text, NULL, 10) == 100;
    mc_free(text);
    return same;
}

static void test_mutations(void **state)
{
    const char *dir = *state;
    static victim v[MAX_FILES];
    char iter[128], text[4096];
    static char copy[1 << 20];
    int detected = 0, unchanged = 0;
    assert_int_equal(ckpt_save_all(dir, &two_by_two, 100, 3), MC_OK);
    snprintf(iter, sizeof iter, "%s/iter_0000100", dir);
    int n = list_victims(iter, v, list_victims(dir, v, 0));
    assert_int_equal(n, 1 + 1 + 1 + 4); /* latest, metadata, tokenizer, shards */
    FILE *null = fopen("/dev/null", "w");
    for (unsigned k = 0; k < MUTATIONS; k++) {
        const victim *f = &v[k % (unsigned)n];
        mc_status seen = MC_OK, loaded = MC_OK;
        assert_true(f->bytes + 1 < sizeof copy);
        if (!mutate(f, copy, k) || harmless(f->path)) {
            unchanged++;
        } else {
            UNIT_CAPTURE(text, seen = mt_checkpoint_inspect(dir, true, k % 2, null));
            if ((seen != MC_INPUT && seen != MC_NOTFOUND && seen != MC_UNSUPPORTED) || !strstr(text, dir)) {
                fail_msg("mutation %u of %s: %s: %s", k, f->path, mc_status_name(seen), text);
            }
            if (strstr(f->path, "shard") && mc_file_exists(f->path) && !strstr(text, strrchr(f->path, '/') + 1)) {
                fail_msg("mutation %u of %s: the message names another file: %s", k, f->path, text);
            }
            if (k % 8 == 0) { /* loading everything sees it too */
                UNIT_CAPTURE(text, loaded = ckpt_load_all(dir, &one, 3));
                assert_true(loaded == MC_INPUT || loaded == MC_NOTFOUND);
            }
            detected++;
        }
        write_file(f->path, f->data, f->bytes);
    }
    fclose(null);
    assert_int_equal(ckpt_load_all(dir, &one, 3), MC_OK);
    assert_true(detected >= 3000 && unchanged < MUTATIONS / 10);
    for (int i = 0; i < n; i++) {
        mc_free(v[i].data);
    }
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
        assert_int_equal(mt_checkpoint_open(dir, -1, &c), MC_OK);
        int64_t iteration = mt_checkpoint_state(c)->iteration;
        mt_checkpoint_close(c);
        assert_true(iteration >= last); /* what was the latest never goes back */
        assert_int_equal(mt_checkpoint_inspect(dir, true, false, null), MC_OK);
        assert_int_equal(ckpt_load_all(dir, &one, (int)(iteration % 100)), MC_OK);
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
        ROW(test_mutations),
        ROW(test_out_of_memory_saving),
        ROW(test_out_of_memory_loading),
        ROW(test_killed_at_any_moment),
    };
    return cmocka_run_group_tests_name("checkpoint damage", tests, NULL, NULL);
}
