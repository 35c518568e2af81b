/* The dataset file itself: what is written is read, and damage of any byte is found, at open or by verify. */
#include <sys/stat.h>

#include "datasets/ds_impl.h"
#include "megac/base/alloc.h"
#include "tests/datasets/make_dataset.h"

enum { VOCAB = 500 };

static void round_trip(void **state)
{
    static const struct {
        uint64_t tokens, documents;
        uint32_t vocab;
        bool compress;
    } cases[] = {{1, 1, VOCAB, false},      {1, 1, VOCAB, true},           {65536, 3, VOCAB, true},
                 {65537, 2, VOCAB, true},   {524288, 40000, VOCAB, false}, {524289, 5, VOCAB, false},
                 {300001, 9, 70000, false}, {300001, 9, 70000, true},      {70000, 70000, 65536, false}};
    char tokenizer[5000];
    memset(tokenizer, 'k', sizeof tokenizer);
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        char path[600];
        bool with = k % 2;
        make_dataset(make_path(state, "r.h5", path), (make_options){.n_tokens = cases[k].tokens,
                                                                    .n_documents = cases[k].documents,
                                                                    .vocab = cases[k].vocab,
                                                                    .salt = (uint32_t)k,
                                                                    .compress = cases[k].compress,
                                                                    .tokenizer = with ? tokenizer : NULL,
                                                                    .tokenizer_bytes = with ? sizeof tokenizer : 0});
        ds_file *f;
        assert_int_equal(ds_file_open(path, &f), MC_OK);
        const ds_info *info = ds_file_info(f);
        assert_int_equal(info->n_tokens, cases[k].tokens);
        assert_int_equal(info->n_documents, cases[k].documents);
        assert_int_equal(info->vocab_size, cases[k].vocab);
        assert_int_equal(info->compressed, cases[k].compress);
        assert_int_equal(f->data[DS_I_TOKENS].offset % 4096, 0);
        int32_t *t = calloc(cases[k].tokens, sizeof *t);
        assert_int_equal(ds_file_read(f, 0, cases[k].tokens, t), MC_OK);
        for (uint64_t i = 0; i < cases[k].tokens; i++) {
            assert_int_equal(t[i], make_token(cases[k].vocab, (uint32_t)k, i));
        }
        free(t);
        uint64_t *ends = calloc(cases[k].documents + 1, sizeof *ends);
        assert_int_equal(ds_file_documents(f, 0, cases[k].documents, ends), MC_OK);
        for (uint64_t d = 0; d <= cases[k].documents; d++) {
            assert_int_equal(ends[d], cases[k].tokens * d / cases[k].documents);
        }
        free(ends);
        void *stored;
        uint64_t n;
        assert_int_equal(ds_file_tokenizer(f, &stored, &n), MC_OK);
        assert_int_equal(n, with ? sizeof tokenizer : 0);
        assert_memory_equal(stored, tokenizer, n);
        mc_free(stored);
        assert_int_equal(ds_file_verify(f), MC_OK);
        ds_file_close(f);
    }
}

static void bounds(void **state)
{
    char path[600], text[600];
    make_dataset(make_path(state, "b.h5", path), (make_options){.n_tokens = 50, .n_documents = 5, .vocab = VOCAB});
    ds_file *f;
    assert_int_equal(ds_file_open(path, &f), MC_OK);
    int32_t t[60];
    uint64_t ends[8];
    mc_status st[6];
    UNIT_CAPTURE(text, {
        st[0] = ds_file_read(f, 0, 51, t);
        st[1] = ds_file_read(f, 51, 0, t);
        st[2] = ds_file_read(f, 10, UINT64_MAX - 5, t);
        st[3] = ds_file_documents(f, 0, 6, ends);
        st[4] = ds_file_documents(f, 6, 0, ends);
        st[5] = ds_file_documents(f, 2, UINT64_MAX, ends);
    });
    for (int i = 0; i < 6; i++) {
        assert_int_equal(st[i], MC_INVALID);
    }
    assert_int_equal(ds_file_read(f, 50, 0, t), MC_OK);
    assert_int_equal(ds_file_documents(f, 5, 0, ends), MC_OK);
    ds_file_close(f);
}

static void write_file(const char *path, const void *bytes, size_t n)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

static unsigned char *read_file(const char *path, size_t *n_out)
{
    struct stat sb;
    assert_int_equal(stat(path, &sb), 0);
    unsigned char *bytes = malloc((size_t)sb.st_size);
    FILE *f = fopen(path, "rb");
    assert_int_equal(fread(bytes, 1, (size_t)sb.st_size, f), sb.st_size);
    fclose(f);
    *n_out = (size_t)sb.st_size;
    return bytes;
}

/* Open and verify: MC_OK only if both are content. Exactly one message must tell of a failure. */
static mc_status examine(const char *path)
{
    ds_file *f = NULL;
    char text[4000];
    mc_status st;
    UNIT_CAPTURE(text, {
        st = ds_file_open(path, &f);
        if (st == MC_OK) {
            st = ds_file_verify(f);
            ds_file_close(f);
        }
    });
    if (st != MC_OK) {
        char *nl = strchr(text, '\n');
        assert_non_null(nl);
        assert_int_equal(nl[1], '\0');
        assert_non_null(strstr(text, path));
    }
    return st;
}

/* Every byte that is not zero (the structure and the data) and one in 61 of the zeros (padding), one bit each. */
static void every_flip(void **state)
{
    for (int compress = 0; compress < 2; compress++) {
        char path[600];
        size_t n, tried = 0;
        make_dataset(make_path(state, "d.h5", path), (make_options){.n_tokens = 700,
                                                                    .n_documents = 20,
                                                                    .vocab = VOCAB,
                                                                    .compress = compress,
                                                                    .tokenizer = "a b c",
                                                                    .tokenizer_bytes = 5});
        unsigned char *bytes = read_file(path, &n);
        assert_int_equal(examine(path), MC_OK);
        FILE *f = fopen(path, "r+b");
        setvbuf(f, NULL, _IONBF, 0);
        for (size_t i = 0; i < n; i++) {
            if (bytes[i] == 0 && i % 61) {
                continue;
            }
            tried++;
            fseek(f, (long)i, SEEK_SET);
            fputc(bytes[i] ^ 1 << (i * 7 % 8), f);
            mc_status st = examine(path);
            if (st != MC_INPUT && st != MC_IO) {
                fail_msg("byte %zu of %zu (0x%02x) flipped: %s", i, n, bytes[i], mc_status_name(st));
            }
            fseek(f, (long)i, SEEK_SET);
            fputc(bytes[i], f);
        }
        fclose(f);
        free(bytes);
        assert_int_equal(examine(path), MC_OK);
        assert_true(tried > 1000);
    }
}

static void truncations(void **state)
{
    char path[600];
    size_t n;
    make_dataset(make_path(state, "t.h5", path), (make_options){.n_tokens = 3000, .n_documents = 2, .vocab = VOCAB});
    unsigned char *bytes = read_file(path, &n);
    for (size_t keep = 0; keep < n; keep += keep < 64 ? 1 : 113) {
        write_file(path, bytes, keep);
        assert_int_equal(examine(path), MC_INPUT);
    }
    write_file(path, bytes, n - 1);
    assert_int_equal(examine(path), MC_INPUT);
    unsigned char *more = calloc(n + 100, 1);
    memcpy(more, bytes, n);
    write_file(path, more, n + 100); /* bytes after the end are no part of the file as written */
    assert_int_equal(examine(path), MC_INPUT);
    free(more);
    free(bytes);
}

/* A damaged token is named with its data set and block. */
static void names_the_block(void **state)
{
    char path[600], text[1000];
    size_t n;
    make_dataset(make_path(state, "n.h5", path), (make_options){.n_tokens = 1200000, .n_documents = 2, .vocab = VOCAB});
    unsigned char *bytes = read_file(path, &n);
    ds_file *f;
    assert_int_equal(ds_file_open(path, &f), MC_OK);
    bytes[f->data[DS_I_TOKENS].offset + 1500000] ^= 1;
    ds_file_close(f);
    write_file(path, bytes, n);
    free(bytes);
    assert_int_equal(ds_file_open(path, &f), MC_OK);
    UNIT_CAPTURE(text, assert_int_equal(ds_file_verify(f), MC_INPUT));
    ds_file_close(f);
    assert_non_null(strstr(text, "/tokens block 1 "));
}

static void not_datasets(void **state)
{
    char path[600], text[1000];
    ds_file *f = NULL;
    mc_status st;
    write_file(make_path(state, "text.h5", path), "this is some text, longer than a signature", 42);
    UNIT_CAPTURE(text, st = ds_file_open(path, &f));
    assert_int_equal(st, MC_INPUT);
    assert_non_null(strstr(text, "not an HDF5 file"));
    UNIT_CAPTURE(text, st = ds_file_open(((make_folder *)*state)->path, &f)); /* a folder */
    assert_int_equal(st, MC_NOTFOUND);
    UNIT_CAPTURE(text, st = ds_file_open("/no/such/dataset", &f));
    assert_int_equal(st, MC_NOTFOUND);
    assert_non_null(strstr(text, "/no/such/dataset.h5"));
    assert_null(f);
}

/* The empty string, "abc" and the two-block message of FIPS 180-4's examples; a million times "a". */
static void sha256(void **state)
{
    (void)state;
    char hex[65];
    ds_i_sha256("", 0, hex);
    assert_string_equal(hex, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    ds_i_sha256("abc", 3, hex);
    assert_string_equal(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    ds_i_sha256("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", 56, hex);
    assert_string_equal(hex, "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
    char *a = malloc(1000000);
    memset(a, 'a', 1000000);
    ds_i_sha256(a, 1000000, hex);
    free(a);
    assert_string_equal(hex, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(round_trip),  cmocka_unit_test(bounds),          cmocka_unit_test(every_flip),
        cmocka_unit_test(truncations), cmocka_unit_test(names_the_block), cmocka_unit_test(not_datasets),
        cmocka_unit_test(sha256),
    };
    return cmocka_run_group_tests(tests, make_folder_setup, make_folder_teardown);
}
