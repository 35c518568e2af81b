/* Windows, splits, epochs and blends of ds_source against the tokens that were written. */
#include "datasets/ds_impl.h"
#include "megac/base/alloc.h"
#include "tests/datasets/make_dataset.h"

enum { SEQ = 16, VOCAB = 300 };

static ds_source *open_source(ds_source_config c)
{
    ds_source *s;
    assert_int_equal(ds_source_open(&c, &s), MC_OK);
    return s;
}

/* The number of the window in the file of `n` tokens with `salt`, or -1. */
static int64_t locate(const int32_t *w, uint64_t n, uint32_t vocab, uint32_t salt)
{
    for (uint64_t i = 0; i + SEQ < n; i += SEQ) {
        bool same = true;
        for (uint64_t t = 0; t <= SEQ && same; t++) {
            same = (uint32_t)w[t] == make_token(vocab, salt, i + t);
        }
        if (same) {
            return (int64_t)(i / SEQ);
        }
    }
    return -1;
}

static void whole_in_order(void **state)
{
    static const uint32_t vocabs[] = {VOCAB, 70000};
    for (int k = 0; k < 4; k++) {
        char path[600];
        uint32_t vocab = vocabs[k / 2];
        make_options o = {.n_tokens = 1000, .n_documents = 7, .vocab = vocab, .salt = 3, .compress = k % 2};
        make_dataset(make_path(state, "w.h5", path), o);
        path[strlen(path) - 3] = '\0'; /* .h5 may be left out */
        const char *paths[] = {path};
        ds_source *s = open_source((ds_source_config){.paths = paths, .n_paths = 1, .whole = true, .seq_length = SEQ});
        assert_int_equal(ds_source_epoch_samples(s), (1000 - 1) / SEQ);
        assert_int_equal(ds_source_vocab_size(s), vocab);
        assert_int_equal(ds_source_eod(s), vocab - 1);
        assert_int_equal(ds_source_first_info(s)->token_bytes, vocab > 65536 ? 4 : 2);
        for (uint64_t i = 0; i < 2 * ds_source_epoch_samples(s); i++) {
            int32_t w[SEQ + 2];
            w[SEQ + 1] = -77;
            assert_int_equal(ds_source_read(s, i, w), MC_OK);
            for (uint64_t t = 0; t <= SEQ; t++) {
                assert_int_equal(w[t], make_token(vocab, 3, i % ((1000 - 1) / SEQ) * SEQ + t));
            }
            assert_int_equal(w[SEQ + 1], -77);
        }
        ds_source_close(s);
    }
}

/* The three splits visit every window of the file once, each epoch, in different orders. */
static void splits(void **state)
{
    char path[600];
    const uint64_t n = 5000, windows = (5000 - 1) / SEQ;
    make_dataset(make_path(state, "s.h5", path), (make_options){.n_tokens = n, .n_documents = 3, .vocab = VOCAB});
    static const char *const texts[] = {"969,30,1", "90,5,5", "1,1,1", "0.5,0.25,0.25", "100", "8,2"};
    const char *paths[] = {path};
    for (size_t k = 0; k < sizeof texts / sizeof *texts; k++) {
        int visits[400] = {0}, moved = 0;
        for (int which = 0; which < DS_SPLIT_COUNT; which++) {
            ds_source_config c = {.paths = paths,
                                  .n_paths = 1,
                                  .split = texts[k],
                                  .which = (ds_split)which,
                                  .seq_length = SEQ,
                                  .seed = 9,
                                  .shuffle = true};
            ds_source *s = NULL;
            char text[600];
            mc_status st;
            UNIT_CAPTURE(text, st = ds_source_open(&c, &s));
            if (st != MC_OK) { /* a share that leaves no window is refused, and said so */
                assert_int_equal(st, MC_INVALID);
                assert_non_null(strstr(text, texts[k]));
                continue;
            }
            uint64_t e = ds_source_epoch_samples(s);
            for (uint64_t i = 0; i < 2 * e; i++) {
                int32_t w[SEQ + 1];
                assert_int_equal(ds_source_read(s, i, w), MC_OK);
                int64_t at = locate(w, n, VOCAB, 0);
                assert_true(at >= 0);
                visits[at] += i < e ? 1 : 1000;
                moved += (uint64_t)at != i;
            }
            ds_source_close(s);
        }
        assert_true(moved > 300);
        for (uint64_t i = 0; i < windows; i++) {
            assert_int_equal(visits[i], 1001);
        }
    }
}

static void concatenation(void **state)
{
    char a[600], b[600];
    make_dataset(make_path(state, "a.h5", a), (make_options){.n_tokens = 801, .n_documents = 1, .vocab = VOCAB});
    make_dataset(make_path(state, "b.h5", b),
                 (make_options){.n_tokens = 1617, .n_documents = 1, .vocab = VOCAB + 9, .salt = 1});
    const char *paths[] = {a, b};
    ds_source_config c = {.paths = paths, .n_paths = 2, .whole = true, .seq_length = SEQ, .shuffle = true};
    ds_source *s = open_source(c);
    assert_int_equal(ds_source_epoch_samples(s), 50 + 101);
    assert_int_equal(ds_source_vocab_size(s), VOCAB + 9);
    assert_int_equal(ds_source_eod(s), -1); /* they disagree */
    int seen_a[50] = {0}, seen_b[101] = {0};
    for (uint64_t i = 0; i < 151; i++) {
        int32_t w[SEQ + 1];
        assert_int_equal(ds_source_read(s, i, w), MC_OK);
        int64_t at = locate(w, 801, VOCAB, 0);
        if (at >= 0) {
            seen_a[at]++;
        } else {
            at = locate(w, 1617, VOCAB + 9, 1);
            assert_true(at >= 0);
            seen_b[at]++;
        }
    }
    for (int i = 0; i < 101; i++) {
        assert_int_equal(seen_b[i], 1);
        assert_int_equal(i < 50 ? seen_a[i] : 1, 1);
    }
    ds_source_close(s);
}

/* Weights 3 : 1 over files of 50 and 101 windows: exact counts, and each file's windows once per its own epoch. */
static void weighted(void **state)
{
    char a[600], b[600];
    make_dataset(make_path(state, "a.h5", a), (make_options){.n_tokens = 801, .n_documents = 1, .vocab = VOCAB});
    make_dataset(make_path(state, "b.h5", b),
                 (make_options){.n_tokens = 1617, .n_documents = 1, .vocab = VOCAB, .salt = 1});
    const char *paths[] = {"3", a, "1.0", b};
    ds_source *s = open_source(
        (ds_source_config){.paths = paths, .n_paths = 4, .whole = true, .seq_length = SEQ, .seed = 4, .shuffle = true});
    enum { BLOCK = 1024 };
    int seen_a[50] = {0}, seen_b[101] = {0}, n_a = 0;
    for (uint64_t i = 0; i < 4 * BLOCK; i++) {
        int32_t w[SEQ + 1];
        assert_int_equal(ds_source_read(s, i, w), MC_OK);
        int64_t at = locate(w, 801, VOCAB, 0);
        n_a += at >= 0;
        if (at >= 0) {
            seen_a[at]++;
        } else {
            at = locate(w, 1617, VOCAB, 1);
            assert_true(at >= 0);
            seen_b[at]++;
        }
        assert_true(i % BLOCK != BLOCK - 1 || n_a == (int)((i + 1) / BLOCK * 768));
    }
    for (int i = 0; i < 50; i++) {
        assert_in_range(seen_a[i], 3072 / 50, 3072 / 50 + 1);
    }
    for (int i = 0; i < 101; i++) {
        assert_in_range(seen_b[i], 1024 / 101, 1024 / 101 + 1);
    }
    ds_source_close(s);
}

static void refuse(ds_source_config c, mc_status want, const char *say)
{
    ds_source *s = NULL;
    char text[2000];
    mc_status st;
    UNIT_CAPTURE(text, st = ds_source_open(&c, &s));
    assert_int_equal(st, want);
    assert_non_null(strstr(text, say));
    assert_int_equal(strchr(text, '\n') - text + 1, strlen(text)); /* one line */
    assert_null(s);
}

static void bad_configs(void **state)
{
    char path[600];
    make_dataset(make_path(state, "x.h5", path), (make_options){.n_tokens = 100, .n_documents = 1, .vocab = VOCAB});
    const char *one[] = {path}, *odd[] = {"0.3", path, "0.7"}, *zero[] = {"0", path, "1", path}, *gone[] = {"/no/such"};
    ds_source_config c = {.paths = one, .n_paths = 1, .split = "1,1,1", .seq_length = SEQ};
    static const char *const bad_splits[] = {"", "a,b", "1,2,3,4", "-1,2", "0,0,0", "1,,1", "nan", "1e999", ",1"};
    for (size_t i = 0; i < sizeof bad_splits / sizeof *bad_splits; i++) {
        c.split = bad_splits[i];
        refuse(c, MC_INVALID, bad_splits[i]);
    }
    c.split = "1,1,1";
    c.seq_length = 0;
    refuse(c, MC_INVALID, "--seq-length 0");
    c.seq_length = 100;
    refuse(c, MC_INVALID, "100 tokens");
    c.seq_length = 40; /* two windows for three splits */
    c.which = DS_VALID;
    refuse(c, MC_INVALID, "validation");
    c.seq_length = SEQ;
    c.paths = odd, c.n_paths = 3;
    refuse(c, MC_INVALID, "2 of 3");
    c.paths = zero, c.n_paths = 4;
    refuse(c, MC_INVALID, "weight 0");
    c.paths = gone, c.n_paths = 1;
    refuse(c, MC_NOTFOUND, "/no/such");
    c.n_paths = 0;
    refuse(c, MC_INVALID, "--data-path");
    c.mock = true;
    refuse(c, MC_INVALID, "vocabulary");
}

static void mock_stream(void **state)
{
    (void)state;
    ds_source *s = open_source((ds_source_config){.mock = true, .mock_vocab_size = 31, .seq_length = SEQ, .seed = 1});
    int32_t a[SEQ + 1], b[SEQ + 1];
    assert_int_equal(ds_source_epoch_samples(s), 0);
    assert_int_equal(ds_source_eod(s), -1);
    assert_null(ds_source_first_info(s));
    assert_int_equal(ds_source_read(s, 0, a), MC_OK);
    assert_int_equal(ds_source_read(s, (uint64_t)1 << 40, b), MC_OK);
    assert_memory_not_equal(a, b, sizeof a);
    ds_source_close(s);
}

/* Every failing allocation gives MC_NOMEM and leaves nothing behind. */
static void no_memory(void **state)
{
    char path[600];
    make_dataset(make_path(state, "m.h5", path), (make_options){.n_tokens = 500, .n_documents = 2, .vocab = VOCAB});
    const char *paths[] = {"2", path, "1", path};
    ds_source_config c = {.paths = paths, .n_paths = 4, .whole = true, .seq_length = SEQ, .shuffle = true};
    size_t before = mc_alloc_get_stats().live_blocks;
    mc_status st = MC_NOMEM;
    int n = 0;
    for (; st == MC_NOMEM && n < 100; n++) {
        ds_source *s = NULL;
        char text[600];
        mc_alloc_fail_at((size_t)n + 1);
        UNIT_CAPTURE(text, st = ds_source_open(&c, &s));
        mc_alloc_fail_at(0);
        if (st == MC_OK) {
            ds_source_close(s);
        }
        assert_int_equal(mc_alloc_get_stats().live_blocks, before);
    }
    assert_int_equal(st, MC_OK);
    assert_true(n > 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(whole_in_order), cmocka_unit_test(splits),      cmocka_unit_test(concatenation),
        cmocka_unit_test(weighted),       cmocka_unit_test(bad_configs), cmocka_unit_test(mock_stream),
        cmocka_unit_test(no_memory),
    };
    return cmocka_run_group_tests(tests, make_folder_setup, make_folder_teardown);
}
