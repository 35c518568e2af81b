/* Files: exact transfers, durability, atomic replacement, errors that name path and remedy. */
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "megac/base/alloc.h"
#include "megac/base/file.h"
#include "megac/base/hash.h"
#include "tests/unit.h"

typedef struct place {
    char dir[64];
} place;

static int make_place(void **state)
{
    place *p = test_malloc(sizeof *p);
    snprintf(p->dir, sizeof p->dir, "test_file_XXXXXX"); /* in the build folder */
    *state = p;
    return mkdtemp(p->dir) ? 0 : -1;
}

static int drop_place(void **state)
{
    place *p = *state;
    mc_status st = mc_file_remove_tree(p->dir);
    test_free(p);
    return st == MC_OK && mc_alloc_report_leaks() == 0 ? 0 : -1;
}

static const char *at(const place *p, const char *name, char path[MC_PATH_BYTES])
{
    snprintf(path, MC_PATH_BYTES, "%s/%s", p->dir, name);
    return path;
}

static void test_replace_and_read(void **state)
{
    char path[MC_PATH_BYTES], tmp[MC_PATH_BYTES + 8], *data;
    size_t bytes;
    at(*state, "small", path);
    for (int i = 0; i < 3; i++) {
        const char *texts[] = {"100\n", "", "a much longer text than before"};
        assert_int_equal(mc_file_replace(path, texts[i], strlen(texts[i])), MC_OK);
        assert_int_equal(mc_file_read_all(path, 100, "a text", &data, &bytes), MC_OK);
        assert_int_equal(bytes, strlen(texts[i]));
        assert_string_equal(data, texts[i]);
        mc_free(data);
    }
    snprintf(tmp, sizeof tmp, "%s.tmp", path);
    assert_false(mc_file_exists(tmp));
    char text[512];
    UNIT_CAPTURE(text, assert_int_equal(mc_file_read_all(path, 5, "a number", &data, &bytes), MC_INPUT));
    assert_non_null(strstr(text, path));
    assert_non_null(strstr(text, "at most 5"));
}

/* A replacement that cannot be written leaves the old content, and no temporary file. */
static void test_replace_fails_whole(void **state)
{
    char path[MC_PATH_BYTES], tmp[MC_PATH_BYTES + 8], text[512], *data;
    size_t bytes;
    static char big[1 << 16];
    struct rlimit old, small = {4096, RLIM_INFINITY};
    at(*state, "kept", path);
    assert_int_equal(mc_file_replace(path, "old", 3), MC_OK);
    getrlimit(RLIMIT_FSIZE, &old);
    small.rlim_max = old.rlim_max;
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &small);
    mc_status st;
    /* The captured text goes to a file too; it is shorter than the limit. */
    UNIT_CAPTURE(text, st = mc_file_replace(path, big, sizeof big));
    setrlimit(RLIMIT_FSIZE, &old);
    signal(SIGXFSZ, SIG_DFL);
    assert_int_equal(st, MC_IO);
    assert_non_null(strstr(text, "ulimit -f"));
    assert_int_equal(mc_file_read_all(path, 100, "a text", &data, &bytes), MC_OK);
    assert_string_equal(data, "old");
    mc_free(data);
    snprintf(tmp, sizeof tmp, "%s.tmp", path);
    assert_false(mc_file_exists(tmp));
}

static void test_disk_full(void **state)
{
    char text[512];
    int fd = open("/dev/full", O_WRONLY);
    (void)state;
    if (fd < 0) {
        skip();
    }
    UNIT_CAPTURE(text, assert_int_equal(mc_file_write(fd, "/dev/full", "x", 1), MC_IO));
    assert_non_null(strstr(text, "free space"));
    close(fd);
}

static void test_exact(void **state)
{
    char path[MC_PATH_BYTES], text[512], back[16] = {0};
    int fd = -1;
    at(*state, "exact", path);
    assert_int_equal(mc_file_create(path, &fd), MC_OK);
    assert_int_equal(mc_file_write(fd, path, "01234567", 8), MC_OK);
    assert_int_equal(mc_file_pwrite(fd, path, "xy", 2, 3), MC_OK);
    assert_int_equal(mc_file_sync(fd, path), MC_OK);
    assert_int_equal(mc_file_close(fd, path), MC_OK);
    assert_int_equal(mc_file_open(path, &fd), MC_OK);
    assert_int_equal(mc_file_read(fd, path, back, 4), MC_OK);
    assert_int_equal(mc_file_pread(fd, path, back + 4, 4, 4), MC_OK);
    assert_string_equal(back, "012xy567");
    UNIT_CAPTURE(text, assert_int_equal(mc_file_pread(fd, path, back, 4, 6), MC_INPUT));
    assert_non_null(strstr(text, "2 bytes early"));
    assert_non_null(strstr(text, path));
    assert_int_equal(mc_file_close(fd, path), MC_OK);
}

static void test_directories(void **state)
{
    char deep[MC_PATH_BYTES], file[MC_PATH_BYTES], text[512], outside[MC_PATH_BYTES], link[MC_PATH_BYTES];
    uint64_t bytes;
    int fd = -1;
    at(*state, "a/b/../b/c/", deep);
    assert_int_equal(mc_file_make_dirs(deep), MC_OK);
    assert_int_equal(mc_file_make_dirs(deep), MC_OK);
    assert_int_equal(mc_file_sync_dir(deep), MC_OK);
    at(*state, "a/b/c/f", file);
    assert_int_equal(mc_file_replace(file, "x", 1), MC_OK);
    UNIT_CAPTURE(text, assert_int_equal(mc_file_make_dirs(file), MC_INVALID));
    at(*state, "a/b/c/f/g", file);
    UNIT_CAPTURE(text, assert_int_not_equal(mc_file_make_dirs(file), MC_OK));
    UNIT_CAPTURE(text, assert_int_equal(mc_file_open(deep, &fd), MC_INPUT));
    UNIT_CAPTURE(text, assert_int_equal(mc_file_stat(deep, &bytes), MC_INPUT));
    at(*state, "none", file);
    UNIT_CAPTURE(text, assert_int_equal(mc_file_open(file, &fd), MC_NOTFOUND));
    assert_non_null(strstr(text, "check the path"));
    /* A link to a directory goes, the directory stays. */
    at(*state, "outside", outside);
    at(*state, "a/b/link", link);
    assert_int_equal(mc_file_make_dirs(outside), MC_OK);
    assert_int_equal(symlink(outside, link), 0);
    at(*state, "a", deep);
    assert_int_equal(mc_file_remove_tree(deep), MC_OK);
    assert_int_equal(mc_file_remove_tree(deep), MC_OK);
    assert_false(mc_file_exists(deep));
    assert_true(mc_file_is_dir(outside));
}

static void test_exchange(void **state)
{
    char a[MC_PATH_BYTES], b[MC_PATH_BYTES], *data;
    size_t bytes;
    assert_int_equal(mc_file_replace(at(*state, "a", a), "A", 1), MC_OK);
    assert_int_equal(mc_file_replace(at(*state, "b", b), "B", 1), MC_OK);
    mc_status st = mc_file_exchange(a, b);
    if (st == MC_UNSUPPORTED) {
        skip();
    }
    assert_int_equal(st, MC_OK);
    assert_int_equal(mc_file_read_all(a, 9, "a text", &data, &bytes), MC_OK);
    assert_string_equal(data, "B");
    mc_free(data);
}

static void test_paths(void **state)
{
    static const char *const rows[][2] = {{"a", "."}, {"a/b", "a"}, {"/a", "/"}, {"/a/b//", "/a"}, {"a//b", "a"}};
    char out[MC_PATH_BYTES], text[512];
    static char lengthy[MC_PATH_BYTES + 1];
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        assert_int_equal(mc_path_parent(out, rows[i][0]), MC_OK);
        assert_string_equal(out, rows[i][1]);
    }
    memset(lengthy, 'x', MC_PATH_BYTES);
    UNIT_CAPTURE(text, assert_int_equal(mc_path_format(out, "%s", lengthy), MC_INVALID));
}

/* The published XXH3-64 of nothing; streams equal to one piece (test_checkpoint_py.py compares with another library).
 */
static void test_hash(void **state)
{
    char hex[MC_HASH_HEX_BYTES];
    static unsigned char buf[5000];
    uint64_t value;
    (void)state;
    assert_true(mc_hash("", 0) == 0x2d06800538d394c2u);
    for (size_t i = 0; i < sizeof buf; i++) {
        buf[i] = (unsigned char)(i * 131 >> 3);
    }
    for (size_t step = 1; step < sizeof buf; step = step * 3 + 1) {
        mc_hasher h;
        mc_hasher_init(&h);
        for (size_t i = 0; i < sizeof buf; i += step) {
            mc_hasher_add(&h, buf + i, step < sizeof buf - i ? step : sizeof buf - i);
        }
        assert_true(mc_hasher_value(&h) == mc_hash(buf, sizeof buf));
    }
    mc_hash_print(0x0123456789abcdefu, hex);
    assert_string_equal(hex, "0123456789abcdef");
    assert_true(mc_hash_parse(hex, &value) && value == 0x0123456789abcdefu);
    static const char *const bad[] = {"", "0123456789abcde", "0123456789abcdef0", "0123456789ABCDEF",
                                      "0123456789abcdeg"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_false(mc_hash_parse(bad[i], &value));
    }
}

int main(void)
{
#define ROW(f) cmocka_unit_test_setup_teardown(f, make_place, drop_place)
    const struct CMUnitTest tests[] = {
        ROW(test_replace_and_read),   ROW(test_replace_fails_whole),
        ROW(test_disk_full),          ROW(test_exact),
        ROW(test_directories),        ROW(test_exchange),
        cmocka_unit_test(test_paths), cmocka_unit_test(test_hash),
    };
    return cmocka_run_group_tests_name("file", tests, NULL, NULL);
}
