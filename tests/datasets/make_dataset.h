/* A dataset file with tokens that tests can compute: token i of the file is make_token(salt, i). */
#ifndef TESTS_DATASETS_MAKE_DATASET_H
#define TESTS_DATASETS_MAKE_DATASET_H

#include "datasets/ds.h"
#include "datasets/ds_write.h"
#include "tests/unit.h"

static inline uint32_t make_token(uint32_t vocab, uint32_t salt, uint64_t i)
{
    uint64_t x = (i + 1) * 0x9e3779b97f4a7c15u + salt;
    x ^= x >> 29;
    x *= 0xbf58476d1ce4e5b9u;
    return (uint32_t)((x >> 33) % vocab);
}

typedef struct make_options {
    uint64_t n_tokens, n_documents; /* documents of nearly equal length */
    uint32_t vocab, salt;
    bool compress;
    const void *tokenizer;
    uint64_t tokenizer_bytes;
} make_options;

static inline void make_dataset(const char *path, make_options o)
{
    ds_writer_config c = {.path = path,
                          .vocab_size = o.vocab,
                          .eod_id = (int64_t)o.vocab - 1,
                          .tokenizer_kind = o.tokenizer ? "TestTokenizer" : "ByteTokenizer",
                          .tokenizer = o.tokenizer,
                          .tokenizer_bytes = o.tokenizer_bytes,
                          .compress = o.compress,
                          .overwrite = true};
    ds_writer *w;
    assert_int_equal(ds_writer_create(&c, &w), MC_OK);
    for (uint64_t d = 0, at = 0; d < o.n_documents; d++) {
        for (uint64_t end = o.n_tokens * (d + 1) / o.n_documents; at < end; at++) {
            uint32_t wide = make_token(o.vocab, o.salt, at);
            uint16_t thin = (uint16_t)wide;
            const void *t = ds_writer_token_bytes(w) == 2 ? (const void *)&thin : (const void *)&wide;
            assert_int_equal(ds_writer_tokens(w, t, 1), MC_OK);
        }
        assert_int_equal(ds_writer_end_document(w, 0), MC_OK);
    }
    assert_int_equal(ds_writer_finish(w), MC_OK);
    ds_writer_destroy(w);
}

/* A fresh folder under TMPDIR; `name` in it. */
typedef struct make_folder {
    char path[512];
} make_folder;

static inline int make_folder_setup(void **state)
{
    const char *base = getenv("TMPDIR");
    make_folder *f = calloc(1, sizeof *f);
    snprintf(f->path, sizeof f->path, "%s/megac-ds-XXXXXX", base ? base : "/tmp");
    *state = f;
    return mkdtemp(f->path) ? 0 : -1;
}

static inline int make_folder_teardown(void **state)
{
    make_folder *f = *state;
    char command[600];
    snprintf(command, sizeof command, "rm -rf '%s'", f->path);
    int rc = system(command);
    free(f);
    return rc;
}

static inline const char *make_path(void **state, const char *name, char out[600])
{
    snprintf(out, 600, "%s/%s", ((make_folder *)*state)->path, name);
    return out;
}

#endif
