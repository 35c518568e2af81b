/* Damage of every file of a checkpoint is refused, or harmless by proof (tests/mutate.h): nothing else is read from it
 * than what was saved. */
#include <unistd.h>

#include "megac/base/hash.h"
#include "megac/train/checkpoint/ckpt_inspect.h"
#include "tests/mutate.h"
#include "tests/train/ckpt_save.h"

enum { MUTATIONS = 1000, OLD = 10, NEW = 100, OLD_SALT = 4, NEW_SALT = 3 };

static const ckpt_layout two_by_two = {2, 2, 3, false, MC_F32}, one = {1, 1, 1, false, MC_F32};

static int make_place(void **state)
{
    char *dir = test_malloc(64);
    snprintf(dir, 64, "test_ckpt_mutations_XXXXXX");
    *state = dir;
    return mkdtemp(dir) ? 0 : -1;
}

static int drop_place(void **state)
{
    mc_status st = mc_file_remove_tree(*state);
    test_free(*state);
    return st == MC_OK && mc_alloc_report_leaks() == 0 ? 0 : -1;
}

static void add_text(mc_hasher *h, const char *text)
{
    mc_hasher_add(h, text, strlen(text) + 1);
}

/* Of everything that a checkpoint says beside its tensors, to the bit. */
static uint64_t hash_state(const mt_ckpt_state *s)
{
    const int64_t numbers[] = {s->iteration,
                               (int64_t)s->consumed_samples,
                               (int64_t)s->consumed_tokens,
                               (int64_t)s->skipped_iterations,
                               s->optimizer_steps,
                               (int64_t)s->schedule_samples,
                               s->loss_scale_good_steps,
                               s->loss_scale_hysteresis,
                               s->best_iteration,
                               s->n_recent,
                               (int64_t)s->tokenizer_bytes};
    mc_hasher h;
    mc_hasher_init(&h);
    mc_hasher_add(&h, numbers, sizeof numbers);
    mc_hasher_add(&h, &s->loss_scale, sizeof s->loss_scale);
    mc_hasher_add(&h, &s->best_loss, sizeof s->best_loss);
    mc_hasher_add(&h, s->recent_losses, (size_t)s->n_recent * sizeof(double));
    mc_hasher_add(&h, s->recent_norms, (size_t)s->n_recent * sizeof(double));
    add_text(&h, s->config);
    add_text(&h, s->tokenizer_kind);
    mc_hasher_add(&h, s->tokenizer, s->tokenizer_bytes);
    return mc_hasher_value(&h);
}

/* Which of the two saved checkpoints a directory, read without an error, is: its iteration, every other word and every
 * value. -1: neither. */
static int64_t content(const char *dir)
{
    mt_checkpoint *c;
    if (mt_checkpoint_open(dir, -1, &c) != MC_OK) {
        return -1;
    }
    mt_ckpt_state want = ckpt_state(mt_checkpoint_state(c)->iteration);
    bool same = hash_state(mt_checkpoint_state(c)) == hash_state(&want);
    mt_checkpoint_close(c);
    int salt = want.iteration == OLD ? OLD_SALT : NEW_SALT;
    return same && ckpt_load_all(dir, &one, salt) == MC_OK ? want.iteration : -1;
}

static bool is_refusal(mc_status st)
{
    return st == MC_INPUT || st == MC_NOTFOUND || st == MC_UNSUPPORTED;
}

static mutate_answer judge(mutate_set *s, unsigned k, const char *dir, FILE *null)
{
    const char *path = s->files[s->file].path;
    char text[8192], loading[8192];
    mc_status seen, loaded;
    UNIT_CAPTURE(text, seen = mt_checkpoint_inspect(dir, true, k % 2, null));
    UNIT_CAPTURE(loading, loaded = ckpt_load_all(dir, &one, NEW_SALT));
    if (seen == MC_OK) {
        int64_t iteration;
        UNIT_CAPTURE(loading, iteration = content(dir));
        if (iteration == NEW) {
            return MUTATE_SAME;
        }
        if (iteration != OLD || !strstr(path, "latest_") || !strstr(text, "warning: ") || !strstr(text, "100")) {
            MUTATE_FAIL(s, k, "accepted: %s", text);
        }
        return MUTATE_OTHER_CONTENT; /* the number is another checkpoint's, which is whole; a warning says so */
    }
    if (!is_refusal(seen) || !strstr(text, dir)) {
        MUTATE_FAIL(s, k, "%s: %s", mc_status_name(seen), text);
    }
    if (strstr(path, "shard") && s->bytes && !strstr(text, strrchr(path, '/') + 1)) {
        MUTATE_FAIL(s, k, "the message names another file: %s", text);
    }
    /* Loading reads no equal copy of a slice: then, and only then, it may go well, with the right values. */
    if (loaded != MC_OK && (!is_refusal(loaded) || !mutate_one_error(loading, dir))) {
        MUTATE_FAIL(s, k, "loading: %s: %s", mc_status_name(loaded), loading);
    }
    return MUTATE_REFUSED;
}

static void test_mutations(void **state)
{
    const char *dir = *state;
    static mutate_set s = {.seed = 1234};
    char iter[128], text[1024];
    unsigned n = mutate_count(MUTATIONS), sums[MUTATE_ANSWERS];
    assert_int_equal(ckpt_save_all(dir, &two_by_two, OLD, OLD_SALT), MC_OK);
    assert_int_equal(ckpt_save_all(dir, &two_by_two, NEW, NEW_SALT), MC_OK);
    snprintf(iter, sizeof iter, "%s/iter_%07d", dir, NEW);
    mutate_add(&s, dir);
    mutate_add(&s, iter);
    assert_int_equal(s.n, 1 + 1 + 1 + 4); /* latest, metadata, tokenizer, shards */
    FILE *null = fopen("/dev/null", "w");
    assert_int_equal(content(dir), NEW);
    for (unsigned k = 0; k < n; k++) {
        mutate_apply(&s, k);
        mutate_undo(&s, judge(&s, k, dir, null));
    }
    fclose(null);
    assert_int_equal(content(dir), NEW);
    /* The comparison sees a difference. */
    UNIT_CAPTURE(text, assert_int_equal(ckpt_load_all(dir, &one, OLD_SALT), MC_MISMATCH));
    mutate_end(&s, "checkpoint", sums);
    assert_true(sums[MUTATE_REFUSED] + sums[MUTATE_SAME] + sums[MUTATE_OTHER_CONTENT] == n);
    assert_true(sums[MUTATE_REFUSED] > n - n / 10);
}

/* Writes metadata.json with the checksum that belongs to it. */
static void sign(const char *path, char *data, size_t bytes)
{
    static const char key[] = "\"xxh3\": \"";
    char hex[MC_HASH_HEX_BYTES];
    char *line = NULL;
    for (size_t i = 0; i + sizeof key + sizeof hex < bytes; i++) {
        line = memcmp(data + i, key, sizeof key - 1) == 0 ? data + i : line; /* the last one */
    }
    if (line) {
        mc_hash_print(mc_hash(data, (size_t)(line - data)), hex);
        memcpy(line + sizeof key - 1, hex, sizeof hex - 1);
    }
    mutate_write(path, data, bytes);
}

/* Behind the checksum the parser stands alone: whatever an editor leaves, with a checksum made anew, is read as it says
 * or refused in words. Nothing overflows, hangs or crashes, and no tensor is filled with what is not there. */
static void test_metadata_with_a_good_checksum(void **state)
{
    const char *dir = *state;
    static mutate_set s = {.seed = 77};
    char iter[128], text[8192];
    unsigned n = mutate_count(MUTATIONS), sums[MUTATE_ANSWERS];
    FILE *null = fopen("/dev/null", "w");
    assert_int_equal(ckpt_save_all(dir, &two_by_two, NEW, NEW_SALT), MC_OK);
    snprintf(iter, sizeof iter, "%s/iter_%07d", dir, NEW);
    mutate_add(&s, iter);
    mutate_file metadata = s.files[0];
    assert_non_null(strstr(metadata.path, "metadata.json"));
    for (unsigned k = 0; k < n; k++) {
        mc_status seen, loaded;
        mutate_apply(&s, k * (unsigned)s.n); /* of file 0 */
        if (s.bytes) {
            sign(metadata.path, s.bytes, s.n_bytes);
        }
        UNIT_CAPTURE(text, seen = mt_checkpoint_inspect(dir, true, k % 2, null));
        if (seen != MC_OK && (!is_refusal(seen) || !strstr(text, dir))) {
            MUTATE_FAIL(&s, k, "%s: %s", mc_status_name(seen), text);
        }
        UNIT_CAPTURE(text, loaded = ckpt_load_all(dir, &one, NEW_SALT));
        if (loaded == MC_MISMATCH ? !strstr(text, dir) : loaded != MC_OK && !is_refusal(loaded)) {
            MUTATE_FAIL(&s, k, "loading: %s: %s", mc_status_name(loaded), text);
        }
        mutate_undo(&s, loaded != MC_OK || seen != MC_OK ? MUTATE_REFUSED
                        : content(dir) == NEW            ? MUTATE_SAME
                                                         : MUTATE_OTHER_CONTENT);
    }
    fclose(null);
    mutate_end(&s, "metadata.json with a good checksum", sums);
    assert_true(sums[MUTATE_REFUSED] > n / 4 && sums[MUTATE_REFUSED] < n);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_mutations, make_place, drop_place),
        cmocka_unit_test_setup_teardown(test_metadata_with_a_good_checksum, make_place, drop_place),
    };
    return cmocka_run_group_tests_name("mutations of checkpoints", tests, NULL, NULL);
}
