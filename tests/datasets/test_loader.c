/* The loader gives the source's samples in the layout's order, masks, keeps its memory, and ends cleanly. */
#include "datasets/ds_impl.h"
#include "megac/base/alloc.h"
#include "tests/datasets/make_dataset.h"

enum { SEQ = 12, VOCAB = 40 };

static ds_source *mock_source(void)
{
    ds_source_config c = {.mock = true, .mock_vocab_size = VOCAB, .seq_length = SEQ, .seed = 3};
    ds_source *s;
    assert_int_equal(ds_source_open(&c, &s), MC_OK);
    return s;
}

static ds_loader *create(ds_loader_config c)
{
    ds_loader *l;
    assert_int_equal(ds_loader_create(&c, &l), MC_OK);
    return l;
}

/* All coordinates together hold samples first .. first + global batch - 1 once, whatever dp and micro-batch are. */
static void layouts(void **state)
{
    (void)state;
    enum { GLOBAL = 16 };
    ds_source *s = mock_source();
    for (int dp = 1; dp <= 4; dp *= 2) {
        for (int mbs = 1; mbs <= 4; mbs *= 2) {
            int seen[2 * GLOBAL] = {0}, n_micro = GLOBAL / dp / mbs;
            for (int rank = 0; rank < dp; rank++) {
                ds_loader *l = create((ds_loader_config){.source = s,
                                                         .seq_length = SEQ,
                                                         .micro_batch = mbs,
                                                         .max_micro = n_micro,
                                                         .dp_rank = rank,
                                                         .dp_size = dp,
                                                         .eod_mask_id = -1});
                assert_int_equal(ds_loader_request(l, 0, n_micro), MC_OK);
                for (int step = 0; step < 2; step++) {
                    double sum = -1;
                    assert_int_equal(ds_loader_next(l, &sum), MC_OK);
                    assert_true(sum == (double)n_micro * mbs * SEQ);
                    if (step == 0) {
                        assert_int_equal(ds_loader_request(l, GLOBAL, n_micro), MC_OK);
                    }
                    for (int m = 0; m < n_micro; m++) {
                        ds_batch b = ds_loader_batch(l, m);
                        assert_int_equal(b.sample0, step * GLOBAL + (m * dp + rank) * mbs);
                        for (int i = 0; i < mbs; i++) {
                            int32_t w[SEQ + 1];
                            uint64_t sample = b.sample0 + (uint64_t)i;
                            seen[sample]++;
                            assert_int_equal(ds_source_read(s, sample, w), MC_OK);
                            assert_memory_equal(b.tokens + i * SEQ, w, SEQ * sizeof *w);
                            assert_memory_equal(b.targets + i * SEQ, w + 1, SEQ * sizeof *w);
                        }
                    }
                }
                ds_loader_destroy(l);
            }
            for (int i = 0; i < 2 * GLOBAL; i++) {
                assert_int_equal(seen[i], 1);
            }
        }
    }
    ds_source_close(s);
}

static void eod_mask(void **state)
{
    (void)state;
    ds_source *s = mock_source();
    int32_t w[SEQ + 1];
    assert_int_equal(ds_source_read(s, 5, w), MC_OK);
    int32_t masked = w[4];
    ds_loader *l = create((ds_loader_config){
        .source = s, .seq_length = SEQ, .micro_batch = 1, .max_micro = 3, .dp_size = 1, .eod_mask_id = masked});
    double sum = -1, want = 0;
    assert_int_equal(ds_loader_request(l, 5, 1), MC_OK);
    assert_int_equal(ds_loader_next(l, &sum), MC_OK);
    ds_batch b = ds_loader_batch(l, 0);
    for (int t = 0; t < SEQ; t++) {
        assert_true(b.weights[t] == (w[t + 1] == masked ? 0.0f : 1.0f));
        want += w[t + 1] != masked;
    }
    assert_true(sum == want && want < SEQ);
    ds_loader_destroy(l);
    ds_source_close(s);
}

/* The last step of a finite set: samples past its end are blank and weigh nothing, the others are all there. */
static void end_of_data(void **state)
{
    (void)state;
    enum { MBS = 2, DP = 2, MICROS = 3, FIRST = 40, END = 49 };
    ds_source *s = mock_source();
    int32_t blank[SEQ] = {0}, w[SEQ + 1];
    float ones[SEQ], zeros[SEQ] = {0};
    double total = 0;
    for (int t = 0; t < SEQ; t++) {
        ones[t] = 1;
    }
    for (int rank = 0; rank < DP; rank++) {
        ds_loader *l = create((ds_loader_config){.source = s,
                                                 .seq_length = SEQ,
                                                 .micro_batch = MBS,
                                                 .max_micro = MICROS,
                                                 .dp_rank = rank,
                                                 .dp_size = DP,
                                                 .eod_mask_id = -1});
        double sum = -1;
        assert_int_equal(ds_loader_request_last(l, FIRST, END, MICROS), MC_OK);
        assert_int_equal(ds_loader_next(l, &sum), MC_OK);
        total += sum;
        for (int i = 0; i < MICROS * MBS; i++) {
            ds_batch b = ds_loader_batch(l, i / MBS);
            uint64_t sample = b.sample0 + (uint64_t)(i % MBS);
            bool past = sample >= END;
            size_t at = (size_t)(i % MBS) * SEQ;
            assert_int_equal(ds_source_read(s, sample, w), MC_OK);
            assert_memory_equal(b.tokens + at, past ? blank : w, SEQ * sizeof *w);
            assert_memory_equal(b.targets + at, past ? blank : w + 1, SEQ * sizeof *w);
            assert_memory_equal(b.weights + at, past ? zeros : ones, sizeof ones);
        }
        ds_loader_destroy(l);
    }
    assert_true(total == (END - FIRST) * SEQ);
    ds_source_close(s);
}

/* The plan is what the heap says, and nothing is allocated after create. */
static void memory(void **state)
{
    (void)state;
    ds_source *s = mock_source();
    for (int mbs = 1; mbs <= 5; mbs += 2) {
        ds_loader_config c = {
            .source = s, .seq_length = SEQ, .micro_batch = mbs, .max_micro = 3, .dp_size = 2, .eod_mask_id = -1};
        size_t before = mc_alloc_get_stats().live_bytes;
        ds_loader *l = create(c);
        assert_int_equal(mc_alloc_get_stats().live_bytes - before, ds_loader_plan_bytes(&c));
        size_t blocks = mc_alloc_get_stats().total_blocks;
        double sum;
        for (uint64_t step = 0; step < 50; step++) {
            assert_int_equal(ds_loader_request(l, step * 6, 1 + (int)step % 3), MC_OK);
            assert_int_equal(ds_loader_next(l, &sum), MC_OK);
        }
        assert_int_equal(mc_alloc_get_stats().total_blocks, blocks);
        ds_loader_destroy(l);
        assert_int_equal(mc_alloc_get_stats().live_bytes, before);
    }
    ds_source_close(s);
}

static void misuse(void **state)
{
    (void)state;
    ds_source *s = mock_source();
    ds_loader *l = create((ds_loader_config){
        .source = s, .seq_length = SEQ, .micro_batch = 1, .max_micro = 2, .dp_size = 1, .eod_mask_id = -1});
    double sum;
    char text[600];
    mc_status st[4];
    UNIT_CAPTURE(text, {
        st[0] = ds_loader_next(l, &sum);
        st[1] = ds_loader_request(l, 0, 3);
        st[2] = ds_loader_request(l, 0, 0);
        (void)!ds_loader_request(l, 0, 1);
        st[3] = ds_loader_request(l, 1, 1);
    });
    for (int i = 0; i < 4; i++) {
        assert_int_equal(st[i], MC_INVALID);
    }
    assert_int_equal(ds_loader_next(l, &sum), MC_OK); /* still usable */
    ds_loader_destroy(l);
    ds_source_close(s);
}

/* A token outside of the vocabulary, found by the reader thread, comes out of ds_loader_next; so does a later step. */
static void reader_error(void **state)
{
    char path[600];
    make_dataset(make_path(state, "e.h5", path), (make_options){.n_tokens = 200, .n_documents = 1, .vocab = VOCAB});
    ds_file *f;
    assert_int_equal(ds_file_open(path, &f), MC_OK);
    uint64_t offset = f->data[DS_I_TOKENS].offset;
    ds_file_close(f);
    FILE *raw = fopen(path, "r+b");
    fseek(raw, (long)offset + 2 * 30, SEEK_SET);
    fputc(0xff, raw);
    fclose(raw);
    const char *paths[] = {path};
    ds_source_config c = {.paths = paths, .n_paths = 1, .whole = true, .seq_length = SEQ};
    ds_source *s;
    assert_int_equal(ds_source_open(&c, &s), MC_OK);
    ds_loader *l = create((ds_loader_config){
        .source = s, .seq_length = SEQ, .micro_batch = 1, .max_micro = 4, .dp_size = 1, .eod_mask_id = -1});
    char text[600];
    double sum;
    mc_status st;
    UNIT_CAPTURE(text, {
        (void)!ds_loader_request(l, 0, 4);
        st = ds_loader_next(l, &sum);
    });
    assert_int_equal(st, MC_INPUT);
    assert_non_null(strstr(text, "vocabulary"));
    assert_int_equal(ds_loader_request(l, 5, 1), MC_OK);
    assert_int_equal(ds_loader_next(l, &sum), MC_OK);
    ds_loader_destroy(l);
    ds_source_close(s);
}

/* Destroyed while idle, while a step is being filled, and while one is ready. */
static void destroy_any_time(void **state)
{
    (void)state;
    ds_source *s = mock_source();
    for (int i = 0; i < 200; i++) {
        ds_loader *l = create((ds_loader_config){
            .source = s, .seq_length = SEQ, .micro_batch = 8, .max_micro = 64, .dp_size = 1, .eod_mask_id = -1});
        double sum;
        if (i % 3) {
            assert_int_equal(ds_loader_request(l, 0, 64), MC_OK);
        }
        if (i % 3 == 2) {
            assert_int_equal(ds_loader_next(l, &sum), MC_OK);
            assert_int_equal(ds_loader_request(l, 512, 64), MC_OK);
            usleep((useconds_t)(i * 7 % 100));
        }
        ds_loader_destroy(l);
    }
    ds_loader_destroy(NULL);
    ds_source_close(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(layouts),          cmocka_unit_test(eod_mask), cmocka_unit_test(end_of_data),
        cmocka_unit_test(memory),           cmocka_unit_test(misuse),   cmocka_unit_test(reader_error),
        cmocka_unit_test(destroy_any_time),
    };
    return cmocka_run_group_tests(tests, make_folder_setup, make_folder_teardown);
}
