/* Damage of dataset files, contiguous and compressed: verify refuses it, or what is read is the undamaged content
 * (tests/mutate.h). What opening alone lets through, since tokens are not read then, is read without a crash and gives
 * tokens of the vocabulary or an error. */
#include "datasets/ds_impl.h"
#include "megac/base/hash.h"
#include "tests/datasets/make_dataset.h"
#include "tests/mutate.h"

enum { MUTATIONS = 500, TOKENS = 3000, DOCUMENTS = 20, VOCAB = 500 };

/* Everything that a reader gets from an open file: sizes, attributes, tokens, documents, tokenizer. */
static mc_status read_all(const ds_file *f, uint64_t *hash_out)
{
    const ds_info *info = ds_file_info(f);
    int32_t *tokens = NULL;
    uint64_t *ends = NULL, n_tokenizer = 0;
    void *tokenizer = NULL;
    mc_hasher h;
    assert_int_equal(MC_NEW_N(&tokens, info->n_tokens + 1, "tokens"), MC_OK);
    assert_int_equal(MC_NEW_N(&ends, info->n_documents + 1, "documents"), MC_OK);
    mc_status st = ds_file_read(f, 0, info->n_tokens, tokens);
    MC_KEEP_FIRST(st, ds_file_documents(f, 0, info->n_documents, ends));
    MC_KEEP_FIRST(st, ds_file_tokenizer(f, &tokenizer, &n_tokenizer));
    if (st == MC_OK) {
        for (uint64_t i = 0; i < info->n_tokens; i++) {
            assert_in_range(tokens[i], 0, info->vocab_size - 1);
        }
        mc_hasher_init(&h);
        mc_hasher_add(&h, &info->n_tokens, sizeof info->n_tokens);
        mc_hasher_add(&h, &info->n_documents, sizeof info->n_documents);
        mc_hasher_add(&h, &info->vocab_size, sizeof info->vocab_size);
        mc_hasher_add(&h, &info->eod_id, sizeof info->eod_id);
        mc_hasher_add(&h, info->tokenizer_kind, strlen(info->tokenizer_kind) + 1);
        mc_hasher_add(&h, info->tokenizer_sha256, strlen(info->tokenizer_sha256) + 1);
        mc_hasher_add(&h, tokens, info->n_tokens * sizeof *tokens);
        mc_hasher_add(&h, ends, (info->n_documents + 1) * sizeof *ends);
        mc_hasher_add(&h, tokenizer, n_tokenizer);
        *hash_out = mc_hasher_value(&h);
    }
    mc_free(tokens);
    mc_free(ends);
    mc_free(tokenizer);
    return st;
}

/* What the content should be, from the rule that made it. */
static uint64_t expected(bool compress, const char *tokenizer, size_t n_tokenizer)
{
    char sha[65];
    int32_t tokens[TOKENS];
    uint64_t ends[DOCUMENTS + 1], n[2] = {TOKENS, DOCUMENTS};
    uint32_t vocab = VOCAB;
    int64_t eod = VOCAB - 1;
    mc_hasher h;
    for (uint64_t i = 0; i < TOKENS; i++) {
        tokens[i] = (int32_t)make_token(VOCAB, compress, i);
    }
    for (uint64_t d = 0; d <= DOCUMENTS; d++) {
        ends[d] = TOKENS * d / DOCUMENTS;
    }
    ds_i_sha256(tokenizer, n_tokenizer, sha);
    mc_hasher_init(&h);
    mc_hasher_add(&h, n, sizeof n);
    mc_hasher_add(&h, &vocab, sizeof vocab);
    mc_hasher_add(&h, &eod, sizeof eod);
    mc_hasher_add(&h, "TestTokenizer", sizeof "TestTokenizer");
    mc_hasher_add(&h, sha, sizeof sha);
    mc_hasher_add(&h, tokens, sizeof tokens);
    mc_hasher_add(&h, ends, sizeof ends);
    mc_hasher_add(&h, tokenizer, n_tokenizer);
    return mc_hasher_value(&h);
}

static mutate_answer judge(mutate_set *s, unsigned k, const char *path, uint64_t want)
{
    char text[4096], reading[4096] = "";
    ds_file *f = NULL;
    uint64_t got = 0;
    mc_status opened, verified, read = MC_OK;
    UNIT_CAPTURE(
        text, verified = opened = ds_file_open(path, &f); if (opened == MC_OK) { verified = ds_file_verify(f); });
    if (opened == MC_OK) {
        UNIT_CAPTURE(reading, read = read_all(f, &got));
        ds_file_close(f);
    }
    if (read != MC_OK && ((read != MC_INPUT && read != MC_IO) || !mutate_one_error(reading, path))) {
        MUTATE_FAIL(s, k, "reading: %s: %s", mc_status_name(read), reading);
    }
    if (verified == MC_OK) {
        if (read != MC_OK || got != want) {
            MUTATE_FAIL(s, k, "accepted, though what is read is other than what was written%s", "");
        }
        return MUTATE_SAME;
    }
    bool known = verified == MC_INPUT || verified == MC_IO || verified == MC_NOTFOUND;
    if (!known || !mutate_one_error(text, path)) {
        MUTATE_FAIL(s, k, "%s: %s", mc_status_name(verified), text);
    }
    return MUTATE_REFUSED;
}

static void mutate_dataset(void **state, bool compress)
{
    static const char tokenizer[] = "a tokenizer's file";
    static mutate_set s;
    make_folder *folder = *state;
    char path[600], text[4096];
    unsigned n = mutate_count(MUTATIONS), sums[MUTATE_ANSWERS];
    make_dataset(make_path(state, compress ? "c.h5" : "p.h5", path),
                 (make_options){.n_tokens = TOKENS,
                                .n_documents = DOCUMENTS,
                                .vocab = VOCAB,
                                .salt = compress,
                                .compress = compress,
                                .tokenizer = tokenizer,
                                .tokenizer_bytes = sizeof tokenizer});
    uint64_t want = expected(compress, tokenizer, sizeof tokenizer);
    s = (mutate_set){.seed = 55};
    mutate_add(&s, folder->path);
    assert_int_equal(s.n, 1);
    assert_int_equal(judge(&s, 0, path, want), MUTATE_SAME);
    for (unsigned k = 0; k < n; k++) {
        mutate_apply(&s, k);
        mutate_undo(&s, judge(&s, k, path, want));
    }
    assert_int_equal(judge(&s, 0, path, want), MUTATE_SAME);
    ds_file *f;
    uint64_t got;
    assert_int_equal(ds_file_open(path, &f), MC_OK);
    UNIT_CAPTURE(text, assert_int_equal(read_all(f, &got), MC_OK));
    ds_file_close(f);
    assert_int_not_equal(got, expected(!compress, tokenizer, sizeof tokenizer)); /* the comparison sees tokens */
    mutate_end(&s, compress ? "compressed dataset" : "dataset", sums);
    assert_int_equal(mc_file_remove_tree(path), MC_OK);
    assert_true(sums[MUTATE_REFUSED] + sums[MUTATE_SAME] == n && sums[MUTATE_REFUSED] > n - n / 20);
}

static void plain(void **state)
{
    mutate_dataset(state, false);
}

static void compressed(void **state)
{
    mutate_dataset(state, true);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(plain), cmocka_unit_test(compressed)};
    return cmocka_run_group_tests_name("mutations of datasets", tests, make_folder_setup, make_folder_teardown);
}
