/* ds_prepare inside a process: failing allocations and a disk that fills up leave nothing behind. */
#include <dirent.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "datasets/ds_prepare.h"
#include "megac/base/alloc.h"
#include "tests/datasets/make_dataset.h"

static int count_entries(void **state)
{
    DIR *d = opendir(((make_folder *)*state)->path);
    int n = 0;
    for (const struct dirent *e; (e = readdir(d)) != NULL;) {
        n += e->d_name[0] != '.';
    }
    closedir(d);
    return n;
}

static void write_lines(const char *path, int n)
{
    FILE *f = fopen(path, "w");
    for (int i = 0; i < n; i++) {
        fprintf(f, "{\"text\": \"line number %d\"}\n", i);
    }
    fclose(f);
}

static void no_memory(void **state)
{
    char in[600], out[600];
    write_lines(make_path(state, "in.jsonl", in), 50);
    make_path(state, "out", out);
    const char *inputs[] = {in};
    mc_status st = MC_NOMEM;
    int n = 0;
    for (; st == MC_NOMEM && n < 300; n++) {
        ds_prepare_config c = {.inputs = inputs, .n_inputs = 1, .output_prefix = out, .workers = 2, .append_eod = true};
        ds_prepare_result r;
        char text[4000];
        mc_alloc_fail_at((size_t)n + 1);
        UNIT_CAPTURE(text, st = ds_prepare(&c, &r));
        mc_alloc_fail_at(0);
        assert_int_equal(mc_alloc_get_stats().live_blocks, 0);
        assert_int_equal(count_entries(state), st == MC_OK ? 2 : 1);
    }
    assert_int_equal(st, MC_OK);
    assert_true(n > 20);
}

static mc_status prepare_lines(const char *in, const char *out, bool compress)
{
    const char *inputs[] = {in};
    ds_prepare_config c = {.inputs = inputs,
                           .n_inputs = 1,
                           .output_prefix = out,
                           .workers = 1,
                           .split_documents_on = "line",
                           .compress = compress};
    ds_prepare_result r;
    return ds_prepare(&c, &r);
}

/* RLIMIT_FSIZE stands in for a full disk: writes fail at that size, in the tokens (5.6 million of them), in the
 * documents, in the structure. */
static void size_limit(void **state)
{
    char in[600], out[600];
    write_lines(make_path(state, "big.txt", in), 200000);
    make_path(state, "full", out);
    signal(SIGXFSZ, SIG_IGN);
    int before = count_entries(state);
    static const rlim_t limits[] = {0, 100, 6000, 300000, 2000000, 11000000, 11400000, 12000000, 13000000};
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
        struct rlimit old, low;
        getrlimit(RLIMIT_FSIZE, &old);
        low = old;
        low.rlim_cur = limits[i];
        char text[4000];
        int saved = unit_capture_begin();
        setrlimit(RLIMIT_FSIZE, &low);
        mc_status st = prepare_lines(in, out, false);
        setrlimit(RLIMIT_FSIZE, &old);
        unit_capture_end(saved, text, sizeof text);
        assert_int_equal(st, MC_IO);
        assert_int_equal(count_entries(state), before);
        assert_int_equal(mc_alloc_get_stats().live_blocks, 0);
    }
    signal(SIGXFSZ, SIG_DFL);
}

/* A real one, where this process may mount: contiguous and compressed. */
static void full_disk(void **state)
{
    char in[600], folder[600], out[700], size[32];
    write_lines(make_path(state, "disk.txt", in), 200000);
    make_path(state, "disk", folder);
    snprintf(out, sizeof out, "%s/full", folder);
    assert_int_equal(mkdir(folder, 0777), 0);
    for (int kib = 0; kib < 12000; kib = kib < 100 ? kib + 24 : kib * 3) {
        for (int compress = 0; compress < 2; compress++) {
            snprintf(size, sizeof size, "size=%dk", kib + 4); /* 0 would mean no limit */
            if (mount("tmpfs", folder, "tmpfs", 0, size) != 0) {
                print_message("skipped: this process may not mount\n");
                skip();
            }
            char text[4000];
            mc_status st;
            UNIT_CAPTURE(text, st = prepare_lines(in, out, compress));
            DIR *d = opendir(folder);
            int entries = 0;
            while (readdir(d)) {
                entries++;
            }
            closedir(d);
            assert_int_equal(umount(folder), 0);
            assert_true(st == MC_IO || (compress && kib > 500 && st == MC_OK));
            assert_int_equal(entries, st == MC_OK ? 3 : 2);
            assert_true(st == MC_OK || strstr(text, "space"));
            assert_int_equal(mc_alloc_get_stats().live_blocks, 0);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(no_memory),
        cmocka_unit_test(size_limit),
        cmocka_unit_test(full_disk),
    };
    return cmocka_run_group_tests(tests, make_folder_setup, make_folder_teardown);
}
