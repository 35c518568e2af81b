/* safetensors: what is written reads back; every rule of the format is checked. */
#include "megac/base/alloc.h"
#include "megac/base/file.h"
#include "megac/base/hash.h"
#include "megac/train/checkpoint/safetensors.h"
#include "tests/unit.h"

typedef struct place {
    char dir[64], path[128];
} place;

static int make_place(void **state)
{
    place *p = test_malloc(sizeof *p);
    snprintf(p->dir, sizeof p->dir, "test_safetensors_XXXXXX");
    *state = p;
    if (!mkdtemp(p->dir)) {
        return -1;
    }
    snprintf(p->path, sizeof p->path, "%s/a.safetensors", p->dir);
    return 0;
}

static int drop_place(void **state)
{
    place *p = *state;
    mc_status st = mc_file_remove_tree(p->dir);
    test_free(p);
    return st == MC_OK && mc_alloc_report_leaks() == 0 ? 0 : -1;
}

static const mt_st_tensor samples[] = {
    {.name = "double", .dtype = MT_ST_F64, .n_dims = 2, .shape = {2, 3}},
    {.name = "name with \"quotes\" and \xc3\xa9", .dtype = MT_ST_F32, .n_dims = 1, .shape = {5}},
    {.name = "scalar", .dtype = MT_ST_I32, .n_dims = 0},
    {.name = "empty", .dtype = MT_ST_BF16, .n_dims = 3, .shape = {4, 0, 2}},
    {.name = "half", .dtype = MT_ST_F16, .n_dims = 2, .shape = {3, 1}},
    {.name = "bytes", .dtype = MT_ST_U8, .n_dims = 1, .shape = {7}},
};
enum { N_SAMPLES = sizeof samples / sizeof *samples };

static unsigned char sample_byte(int tensor, uint64_t i)
{
    return (unsigned char)(tensor * 37 + i * 11 + 5);
}

static mc_status write_samples(const char *path, uint64_t *hash_out)
{
    static const char *const metadata[] = {"format", "pt", "note", "two\nlines"};
    mt_st_tensor t[N_SAMPLES];
    mt_st_writer *w;
    memcpy(t, samples, sizeof t);
    MC_TRY(mt_st_writer_create(path, t, N_SAMPLES, metadata, 2, &w));
    mc_status st = MC_OK;
    for (int i = 0; i < N_SAMPLES && st == MC_OK; i++) {
        for (uint64_t k = 0; k < t[i].end - t[i].begin && st == MC_OK; k++) {
            unsigned char b = sample_byte(i, k);
            st = mt_st_writer_append(w, &b, 1);
        }
    }
    st = st == MC_OK ? mt_st_writer_finish(w) : st;
    *hash_out = mt_st_writer_header_hash(w);
    mt_st_writer_destroy(w);
    return st;
}

static void test_round_trip(void **state)
{
    const place *p = *state;
    mt_st_file *f;
    uint64_t hash = 0;
    assert_int_equal(write_samples(p->path, &hash), MC_OK);
    assert_int_equal(mt_st_open(p->path, &f), MC_OK);
    assert_int_equal(mt_st_count(f), N_SAMPLES);
    assert_true(mt_st_header_hash(f) == hash);
    assert_int_equal(mt_st_header_bytes(f) % 8, 0);
    assert_string_equal(mt_st_metadata(f, "format"), "pt");
    assert_string_equal(mt_st_metadata(f, "note"), "two\nlines");
    assert_null(mt_st_metadata(f, "none"));
    assert_null(mt_st_find(f, "none"));
    for (int i = 0; i < N_SAMPLES; i++) {
        const mt_st_tensor *t = mt_st_find(f, samples[i].name);
        unsigned char data[64];
        assert_non_null(t);
        assert_int_equal(t->dtype, samples[i].dtype);
        assert_int_equal(t->n_dims, samples[i].n_dims);
        assert_memory_equal(t->shape, samples[i].shape, sizeof t->shape);
        size_t bytes = (size_t)(t->end - t->begin);
        memset(data, 0xee, sizeof data);
        assert_int_equal(mt_st_read(f, t, 0, data, bytes), MC_OK);
        for (size_t k = 0; k < bytes; k++) {
            assert_int_equal(data[k], sample_byte(i, k));
        }
        if (bytes > 3) {
            assert_int_equal(mt_st_read(f, t, 2, data, 2), MC_OK);
            assert_int_equal(data[0], sample_byte(i, 2));
        }
    }
    mt_st_close(f);
}

/* A file of this header text and `data_bytes` zeros. */
static void write_raw(const char *path, const char *header, uint64_t n, size_t data_bytes)
{
    static const char zeros[64];
    size_t length = strlen(header);
    int fd = -1;
    assert_int_equal(mc_file_create(path, &fd), MC_OK);
    assert_int_equal(mc_file_write(fd, path, &n, 8), MC_OK);
    assert_int_equal(mc_file_write(fd, path, header, length), MC_OK);
    assert_int_equal(mc_file_write(fd, path, zeros, data_bytes), MC_OK);
    assert_int_equal(mc_file_close(fd, path), MC_OK);
}

#define T(name, dtype, shape, from, to) \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" from "," to "]}"

static void test_good_headers(void **state)
{
    static const struct {
        const char *header;
        size_t data_bytes;
        int count;
    } rows[] = {
        {"{}", 0, 0},
        {"{\"__metadata__\":{}}     ", 0, 0},
        {"{" T("b", "F32", "[2]", "4", "12") "," T("a", "F32", "[]", "0", "4") "}", 12, 2},
        {"{" T("a", "I64", "[0,9]", "0", "0") "," T("b", "U8", "[1]", "0", "1") "}", 1, 2},
        {"{" T("a", "F8_E4M3", "[3]", "0", "3") "}", 3, 1},
    };
    const place *p = *state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        mt_st_file *f;
        write_raw(p->path, rows[i].header, strlen(rows[i].header), rows[i].data_bytes);
        assert_int_equal(mt_st_open(p->path, &f), MC_OK);
        assert_int_equal(mt_st_count(f), rows[i].count);
        mt_st_close(f);
    }
}

static void test_bad_headers(void **state)
{
    static const struct {
        const char *header;
        size_t data_bytes;
        const char *says;
    } rows[] = {
        {"", 0, "too short"},
        {"[]", 0, "does not begin with {"},
        {" {}", 0, "does not begin with {"},
        {"{}x", 0, "not a JSON object"},
        {"{\"a\":{", 0, "not a JSON object"},
        {"{}", 1, "the data at 1"},
        {"{\"__metadata__\":{\"a\":1}}", 0, "not a string"},
        {"{\"__metadata__\":[]}", 0, "not an object"},
        {"{" T("a", "F32", "[1]", "0", "4") "," T("a", "F32", "[1]", "4", "8") "}", 8, "duplicate"},
        {"{" T("a", "F32", "[1]", "0", "4") "," T("b", "F32", "[1]", "8", "12") "}", 12, "hole"},
        {"{" T("a", "F32", "[1]", "4", "8") "}", 8, "hole"},
        {"{" T("a", "F32", "[2]", "0", "8") "," T("b", "F32", "[1]", "4", "8") "}", 8, "overlap"},
        {"{" T("a", "F32", "[2]", "0", "8") "}", 4, "truncated"},
        {"{" T("a", "F32", "[2]", "0", "4") "}", 4, "do not fit"},
        {"{" T("a", "F33", "[1]", "0", "4") "}", 4, "F33"},
        {"{" T("a", "F32", "[-1]", "0", "4") "}", 4, "not a number >= 0"},
        {"{" T("a", "F32", "[1.0]", "0", "4") "}", 4, "not a number >= 0"},
        {"{" T("a", "F32", "1", "0", "4") "}", 4, "must be a list"},
        {"{" T("a", "U8", "[1,1,1,1,1,1,1,1,1]", "0", "1") "}", 1, "at most 8"},
        {"{" T("a", "F32", "[4611686018427387905]", "0", "4") "}", 4, "do not fit"},
        {"{" T("a", "F32", "[2147483648,2147483648,4]", "0", "0") "}", 0, "do not fit"},
        {"{" T("a", "F32", "[99999999999999999999]", "0", "4") "}", 4, "not a JSON object"},
        {"{" T("a", "F32", "[1]", "4", "0") "}", 4, "0 <= begin <= end"},
        {"{" T("a", "F32", "[1]", "-4", "0") "}", 4, "0 <= begin <= end"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, "exactly"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4],\"x\":1}}", 4, "exactly"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4,8]}}", 4, "two numbers"},
        {"{\"a\":{\"dtype\":32,\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "unknown"},
        {"{\"a\":1}", 0, "exactly"},
        {"{\"a\\u0000b\":1}", 0, "not a JSON object"},
        {"{\"\xff\":1}", 0, "not a JSON object"},
    };
    const place *p = *state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        mt_st_file *f = NULL;
        char text[1024];
        mc_status st;
        write_raw(p->path, rows[i].header, strlen(rows[i].header), rows[i].data_bytes);
        UNIT_CAPTURE(text, st = mt_st_open(p->path, &f));
        if (st != MC_INPUT || !strstr(text, rows[i].says) || !strstr(text, p->path)) {
            fail_msg("header %zu: status %s, message %s", i, mc_status_name(st), text);
        }
    }
}

static void test_bad_sizes(void **state)
{
    static const uint64_t sizes[] = {0, 1, 3, 101, 100000001, UINT64_MAX, UINT64_MAX - 7, (uint64_t)1 << 63};
    const place *p = *state;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        mt_st_file *f;
        char text[1024];
        mc_status st;
        write_raw(p->path, "{}", sizes[i], 0);
        UNIT_CAPTURE(text, st = mt_st_open(p->path, &f));
        assert_int_equal(st, MC_INPUT);
    }
}

static void test_dtypes(void **state)
{
    (void)state;
    for (int i = 0; i < MC_DTYPE_COUNT; i++) {
        mc_dtype back;
        mt_st_dtype st = mt_st_dtype_of((mc_dtype)i), parsed;
        assert_true(mt_st_dtype_to_mc(st, &back) && back == (mc_dtype)i);
        assert_int_equal(mt_st_dtype_bytes(st), mc_dtype_bytes((mc_dtype)i));
        assert_true(mt_st_dtype_parse(mt_st_dtype_name(st), &parsed) && parsed == st);
    }
    mc_dtype none;
    assert_false(mt_st_dtype_to_mc(MT_ST_I64, &none));
}

/* Allocation n fails, for n = 1, 2, ... until none does: MC_NOMEM each time, nothing leaks. */
static void test_out_of_memory(void **state)
{
    const place *p = *state;
    mc_status st = MC_NOMEM;
    uint64_t hash;
    size_t n = 0;
    char text[1024];
    for (n = 1; st != MC_OK; n++) {
        assert_true(n < 100);
        mc_alloc_fail_at(n);
        UNIT_CAPTURE(text, st = write_samples(p->path, &hash));
        mc_alloc_fail_at(0);
        assert_true(st == MC_OK || st == MC_NOMEM);
        assert_int_equal(mc_alloc_get_stats().live_blocks, 0);
    }
    assert_true(n > 3);
    for (n = 1, st = MC_NOMEM; st != MC_OK; n++) {
        mt_st_file *f;
        assert_true(n < 100);
        mc_alloc_fail_at(n);
        UNIT_CAPTURE(text, st = mt_st_open(p->path, &f));
        mc_alloc_fail_at(0);
        assert_true(st == MC_OK || st == MC_NOMEM);
        if (st == MC_OK) {
            mt_st_close(f);
        }
        assert_int_equal(mc_alloc_get_stats().live_blocks, 0);
    }
    assert_true(n > 4);
}

int main(void)
{
#define ROW(f) cmocka_unit_test_setup_teardown(f, make_place, drop_place)
    const struct CMUnitTest tests[] = {
        ROW(test_round_trip), ROW(test_good_headers),  ROW(test_bad_headers),
        ROW(test_bad_sizes),  ROW(test_out_of_memory), cmocka_unit_test(test_dtypes),
    };
    return cmocka_run_group_tests_name("safetensors", tests, NULL, NULL);
}
