/* Damage of a directory of Hugging Face (tests/mutate.h). Its files have no checksums, so some damage makes another
 * model that nobody can tell from the one that was meant: a changed weight, "n_head": 2 for 4. What can be asked is
 * that nothing crashes, hangs or reads past an end, that what contradicts itself is refused, and that what is accepted
 * is what the files say, no more and no less:
 *
 *   weights changed       the words that come out have changed exactly as the words in the file did
 *   config.json changed   it is JSON that says something else about a field which no tensor's shape shows
 *   the index, a header   the same model comes out
 *
 * Arguments: the folder of fixtures, a folder for files. */
#include <jansson.h>

#include "megac/train/convert/convert.h"
#include "megac/train/convert/hf_dir.h"
#include "tests/mutate.h"

enum { MUTATIONS = 600 };

static const char *fixtures, *scratch;
static const char *const names[] = {"gpt2", "llama3", "qwen2"}; /* f32 transposed; f16, scaled rope; bf16, sharded */
enum { N_NAMES = sizeof names / sizeof *names };

/* Everything that a reader gets. */
typedef struct model {
    char *config;
    char *words; /* of all parameters, one behind the other */
    size_t bytes, word_bytes;
} model;

static void drop_model(model *m)
{
    mc_free(m->config);
    mc_free(m->words);
    *m = (model){0};
}

static mc_status read_words(mt_hf *hf, model *m)
{
    const mt_hf_map *map = mt_hf_get_map(hf);
    size_t at = 0;
    for (int i = 0; i < map->params.n_rows; i++) {
        m->bytes += (size_t)mt_param_elems(&map->params.rows[i]) * mc_dtype_bytes(mt_hf_param_dtype(hf, i));
    }
    MC_TRY(mc_alloc(m->bytes, 1, "words of a model", (void **)&m->words));
    memset(m->words, 0xa5, m->bytes);
    for (int i = 0; i < map->params.n_rows; i++) {
        const mt_param *p = &map->params.rows[i];
        mc_dtype dtype = mt_hf_param_dtype(hf, i);
        mt_ckpt_item item = {.prefix = "model", .param = p};
        item.local = p->n_dims == 2 ? mc_tensor_2d(m->words + at, dtype, p->local_dims[0], p->local_dims[1])
                                    : mc_tensor_1d(m->words + at, dtype, p->local_dims[0]);
        MC_TRY(mt_hf_read(hf, &item));
        m->word_bytes = mc_dtype_bytes(dtype);
        at += mc_tensor_bytes(item.local);
    }
    return MC_OK;
}

static mc_status read_model(const char *dir, model *m)
{
    mt_hf *hf;
    *m = (model){0};
    MC_TRY(mt_hf_open(dir, &hf));
    mc_status st = mc_strdup(mt_hf_config_text(hf), "configuration", &m->config);
    if (st == MC_OK) {
        st = read_words(hf, m);
    }
    mt_hf_close(hf);
    return st;
}

static int compare_u64(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* (old, new) of each word that differs, sorted; *n_out of them. */
static uint64_t *changes(const char *old, const char *new, size_t bytes, size_t word, size_t *n_out)
{
    uint64_t *list = NULL;
    assert_int_equal(MC_NEW_N(&list, bytes / word + 1, "changed words"), MC_OK);
    *n_out = 0;
    for (size_t at = 0; at + word <= bytes; at += word) {
        uint32_t pair[2] = {0};
        memcpy(&pair[0], old + at, word);
        memcpy(&pair[1], new + at, word);
        if (pair[0] != pair[1]) {
            list[(*n_out)++] = (uint64_t)pair[0] << 32 | pair[1];
        }
    }
    qsort(list, *n_out, sizeof *list, compare_u64);
    return list;
}

/* Whether the words read have changed as those of the file did, whose header has not. */
static bool changed_like_the_file(const mutate_set *s, const model *was, const model *is)
{
    const mutate_file *f = &s->files[s->file];
    uint64_t header;
    memcpy(&header, f->data, sizeof header);
    header += sizeof header;
    if (s->n_bytes != f->bytes || header > f->bytes || memcmp(s->bytes, f->data, header) != 0 ||
        is->bytes != was->bytes || is->word_bytes != was->word_bytes) {
        return false;
    }
    size_t n_file, n_read;
    uint64_t *in_file = changes(f->data + header, s->bytes + header, f->bytes - header, was->word_bytes, &n_file);
    uint64_t *read = changes(was->words, is->words, was->bytes, was->word_bytes, &n_read);
    bool same = n_file == n_read && n_read > 0 && memcmp(in_file, read, n_read * sizeof *read) == 0;
    mc_free(in_file);
    mc_free(read);
    return same;
}

/* Whether two texts say something else about a field that tensors do not show. */
static bool says_otherwise(const char *was, size_t n_was, const char *is, size_t n_is)
{
    static const char *const fields[] = {"n_head",
                                         "layer_norm_epsilon",
                                         "activation_function",
                                         "num_attention_heads",
                                         "num_key_value_heads",
                                         "rms_norm_eps",
                                         "rope_theta",
                                         "rope_scaling",
                                         "max_position_embeddings",
                                         "sliding_window",
                                         "use_sliding_window",
                                         "max_window_layers",
                                         "layer_types",
                                         "head_dim"};
    json_t *a = json_loadb(was, n_was, JSON_REJECT_DUPLICATES, NULL);
    json_t *b = json_loadb(is, n_is, JSON_REJECT_DUPLICATES, NULL);
    bool other = false;
    for (size_t i = 0; a && b && i < sizeof fields / sizeof *fields; i++) {
        const json_t *x = json_object_get(a, fields[i]), *y = json_object_get(b, fields[i]);
        other = other || (x || y ? !json_equal(x, y) : false);
    }
    json_decref(a);
    json_decref(b);
    return other;
}

static mutate_answer judge_model(const mutate_set *s, unsigned k, const model *was, const model *is)
{
    const mutate_file *f = &s->files[s->file];
    bool same_config = strcmp(was->config, is->config) == 0;
    if (same_config && was->bytes == is->bytes && memcmp(was->words, is->words, is->bytes) == 0) {
        return MUTATE_SAME;
    }
    bool told = strstr(f->path, "config.json") ? s->bytes && says_otherwise(f->data, f->bytes, s->bytes, s->n_bytes)
                : strstr(f->path, ".index.")   ? false
                                               : same_config && s->bytes && changed_like_the_file(s, was, is);
    if (!told) {
        MUTATE_FAIL(s, k, "accepted, and read as what it does not say:\n%s", is->config);
    }
    return MUTATE_OTHER_CONTENT;
}

/* What opens converts, and what does not leaves no trace. */
static void check_conversion(const mutate_set *s, unsigned k, const char *dir, mc_status opened)
{
    char out[MC_PATH_BYTES], text[8192];
    mt_converted done;
    mc_status st;
    assert_int_equal(mc_path_format(out, "%s/converted", scratch), MC_OK);
    mt_convert_request r = {.input = dir, .output = out, .step = -1};
    UNIT_CAPTURE(text, st = mt_convert_to_megac(&r, &done));
    if ((st == MC_OK) != (opened == MC_OK) || mc_file_exists(out) != (st == MC_OK)) {
        MUTATE_FAIL(s, k, "opened: %s, converted: %s: %s", mc_status_name(opened), mc_status_name(st), text);
    }
    assert_int_equal(mc_file_remove_tree(out), MC_OK);
}

static mutate_answer judge(const mutate_set *s, unsigned k, const char *dir, const model *was)
{
    char text[8192];
    model is;
    mc_status st;
    mutate_answer answer = MUTATE_REFUSED;
    UNIT_CAPTURE(text, st = read_model(dir, &is));
    if (st == MC_OK) {
        answer = judge_model(s, k, was, &is);
    } else if ((st != MC_INPUT && st != MC_NOTFOUND && st != MC_MISMATCH && st != MC_UNSUPPORTED && st != MC_INVALID) ||
               !mutate_one_error(text, dir)) {
        MUTATE_FAIL(s, k, "%s: %s", mc_status_name(st), text);
    }
    drop_model(&is);
    if (k % 16 < (unsigned)s->n) { /* a conversion syncs: of some, each file among them */
        check_conversion(s, k, dir, st);
    }
    return answer;
}

static void mutate_fixture(const char *name, unsigned n)
{
    static mutate_set s;
    char source[MC_PATH_BYTES], dir[MC_PATH_BYTES], what[64];
    unsigned sums[MUTATE_ANSWERS];
    model was;
    s = (mutate_set){.seed = 99};
    assert_int_equal(mc_path_format(source, "%s/%s", fixtures, name), MC_OK);
    assert_int_equal(mc_path_format(dir, "%s/%s", scratch, name), MC_OK);
    assert_int_equal(mc_file_remove_tree(dir), MC_OK);
    assert_int_equal(mc_file_make_dirs(dir), MC_OK);
    mutate_add(&s, source);
    for (int i = 0; i < s.n; i++) {
        const char *base = strrchr(s.files[i].path, '/') + 1;
        char path[MC_PATH_BYTES];
        assert_int_equal(mc_path_format(path, "%s/%s", dir, base), MC_OK);
        memcpy(s.files[i].path, path, sizeof path);
        mutate_write(path, s.files[i].data, s.files[i].bytes);
    }
    assert_int_equal(read_model(dir, &was), MC_OK);
    assert_true(was.bytes > 15000);
    for (unsigned k = 0; k < n; k++) {
        mutate_apply(&s, k);
        mutate_undo(&s, judge(&s, k, dir, &was));
    }
    drop_model(&was);
    snprintf(what, sizeof what, "directory of Hugging Face: %s", name);
    mutate_end(&s, what, sums);
    assert_true(sums[MUTATE_REFUSED] > n / 3 && sums[MUTATE_SAME] > 0 && sums[MUTATE_OTHER_CONTENT] > 0);
}

static void test_mutations(void **state)
{
    (void)state;
    unsigned n = mutate_count(MUTATIONS);
    for (unsigned i = 0; i < N_NAMES; i++) {
        mutate_fixture(names[i], n / N_NAMES + (i < n % N_NAMES));
    }
    assert_int_equal(mc_alloc_report_leaks(), 0);
}

int main(int argc, char **argv)
{
    if (argc != 3) {
        return 2;
    }
    fixtures = argv[1];
    scratch = argv[2];
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_mutations)};
    return cmocka_run_group_tests_name("mutations of directories of Hugging Face", tests, NULL, NULL);
}
