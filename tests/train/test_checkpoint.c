/* Checkpoints: any layout loads any other; state, options and tokenizer come back; wrong use is a clear error. */
#include <signal.h>
#include <sys/resource.h>

#include "megac/base/world.h"
#include "megac/train/checkpoint/ckpt_inspect.h"
#include "tests/train/ckpt_save.h"

static const ckpt_layout layouts[] = {
    {1, 1, 1, false, MC_F32}, {2, 1, 8, false, MC_F32}, {4, 1, 1, true, MC_F32},
    {3, 1, 5, false, MC_F32}, {1, 2, 16, true, MC_F32}, {2, 2, 3, false, MC_F32},
};
enum { N_LAYOUTS = sizeof layouts / sizeof *layouts };

static int make_place(void **state)
{
    char *dir = test_malloc(64);
    snprintf(dir, 64, "test_checkpoint_XXXXXX");
    *state = dir;
    return mkdtemp(dir) ? 0 : -1;
}

static int drop_place(void **state)
{
    mc_status st = mc_file_remove_tree(*state);
    test_free(*state);
    return st == MC_OK && mc_alloc_report_leaks() == 0 ? 0 : -1;
}

static void test_any_layout_loads_any_other(void **state)
{
    const char *dir = *state;
    for (int from = 0; from < N_LAYOUTS; from++) {
        assert_int_equal(ckpt_save_all(dir, &layouts[from], 100, from), MC_OK);
        for (int to = 0; to < N_LAYOUTS; to++) {
            if (ckpt_load_all(dir, &layouts[to], from) != MC_OK) {
                fail_msg("layout %d does not load layout %d", to, from);
            }
        }
        assert_int_equal(ckpt_load_all(dir, &layouts[0], from + 1), MC_MISMATCH); /* the check can fail */
    }
}

static void test_state_comes_back(void **state)
{
    const char *dir = *state;
    mt_checkpoint *c;
    char iter[128];
    assert_int_equal(ckpt_save_all(dir, &layouts[1], 7, 0), MC_OK);
    assert_int_equal(ckpt_save_all(dir, &layouts[1], 12345678, 0), MC_OK);
    snprintf(iter, sizeof iter, "%s/iter_0000007", dir);
    const struct {
        const char *path;
        int64_t step, iteration;
    } rows[] = {{dir, -1, 12345678}, {dir, 7, 7}, {iter, -1, 7}, {iter, 7, 7}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        mt_ckpt_state want = ckpt_state(rows[i].iteration);
        assert_int_equal(mt_checkpoint_open(rows[i].path, rows[i].step, &c), MC_OK);
        const mt_ckpt_state *s = mt_checkpoint_state(c);
        assert_int_equal(s->iteration, want.iteration);
        assert_int_equal(s->consumed_samples, want.consumed_samples);
        assert_int_equal(s->consumed_tokens, want.consumed_tokens);
        assert_int_equal(s->skipped_iterations, want.skipped_iterations);
        assert_int_equal(s->optimizer_steps, want.optimizer_steps);
        assert_int_equal(s->schedule_samples, want.schedule_samples);
        assert_true(s->loss_scale == want.loss_scale);
        assert_int_equal(s->loss_scale_good_steps, want.loss_scale_good_steps);
        assert_int_equal(s->loss_scale_hysteresis, want.loss_scale_hysteresis);
        assert_int_equal(s->n_recent, want.n_recent);
        assert_memory_equal(s->recent_losses, want.recent_losses, 3 * sizeof(double));
        assert_memory_equal(s->recent_norms, want.recent_norms, 3 * sizeof(double));
        assert_string_equal(s->config, want.config);
        assert_string_equal(s->tokenizer_kind, want.tokenizer_kind);
        assert_int_equal(s->tokenizer_bytes, want.tokenizer_bytes);
        assert_memory_equal(s->tokenizer, want.tokenizer, want.tokenizer_bytes);
        assert_string_equal(mt_checkpoint_option(c, "--hidden-size"), "6");
        assert_string_equal(mt_checkpoint_option(c, "--flag"), "");
        assert_string_equal(mt_checkpoint_option(c, "--data-path"), "one two");
        assert_null(mt_checkpoint_option(c, "--none"));
        mt_checkpoint_close(c);
    }
    char text[512];
    mc_status st;
    UNIT_CAPTURE(text, st = mt_checkpoint_open(iter, 8, &c));
    assert_int_equal(st, MC_INPUT);
}

static void test_collective_save_of_one_rank(void **state)
{
    const char *dir = *state;
    const mt_ckpt_state s = ckpt_state(3);
    const mc_job job = {.size = 1, .local_size = 1, .launcher = "none"};
    mc_world *world;
    ckpt_rank r;
    assert_int_equal(mc_world_open(&job, "self", 5.0, &world), MC_OK);
    ckpt_make(&r, &layouts[0], 0);
    ckpt_fill(&r, 9);
    assert_int_equal(mt_checkpoint_save(dir, world, &s, r.items, r.n_items), MC_OK);
    assert_int_equal(ckpt_load_all(dir, &layouts[3], 9), MC_OK);
    /* A table that lacks rows, or has one twice, is refused and changes nothing. */
    char text[512];
    mc_status st;
    r.params[4].global_dims[0]++;
    r.params[4].ranges[1].begin++;
    UNIT_CAPTURE(text, st = mt_checkpoint_save(dir, world, &s, r.items, r.n_items));
    assert_int_equal(st, MC_MISMATCH);
    assert_non_null(strstr(text, "leave a hole"));
    r.params[4].global_dims[0]--;
    r.params[4].ranges[1].begin--;
    mt_ckpt_item twice[] = {r.items[0], r.items[0]};
    UNIT_CAPTURE(text, st = mt_checkpoint_save(dir, world, &s, twice, 2));
    assert_int_equal(st, MC_MISMATCH);
    mt_ckpt_state repeated = s;
    repeated.config = "--a 1\n--b 2\n--a 3\n";
    UNIT_CAPTURE(text, st = mt_checkpoint_save(dir, world, &repeated, r.items, r.n_items));
    assert_int_equal(st, MC_INVALID);
    assert_int_equal(ckpt_load_all(dir, &layouts[3], 9), MC_OK);
    ckpt_drop(&r);
    mc_world_close(world, false, 0);
}

/* An iteration saved again replaces the earlier one, and leaves nothing else behind. */
static void test_saved_again(void **state)
{
    char path[128];
    const char *dir = *state;
    static const char *const gone[] = {"iter_0000005.tmp", "iter_0000005.old", "latest_checkpointed_iteration.txt.tmp"};
    assert_int_equal(ckpt_save_all(dir, &layouts[2], 5, 1), MC_OK);
    assert_int_equal(ckpt_save_all(dir, &layouts[1], 5, 2), MC_OK);
    assert_int_equal(ckpt_load_all(dir, &layouts[2], 2), MC_OK);
    for (size_t i = 0; i < sizeof gone / sizeof *gone; i++) {
        snprintf(path, sizeof path, "%s/%s", dir, gone[i]);
        assert_false(mc_file_exists(path));
    }
    snprintf(path, sizeof path, "%s/iter_0000005/shard_00003_of_00004.safetensors", dir);
    assert_false(mc_file_exists(path)); /* a shard of the first save */
    /* As a save leaves it that died between its two renames. */
    char old[128];
    snprintf(path, sizeof path, "%s/iter_0000005", dir);
    snprintf(old, sizeof old, "%s/iter_0000005.old", dir);
    assert_int_equal(mc_file_rename(path, old), MC_OK);
    assert_int_equal(ckpt_load_all(dir, &layouts[0], 2), MC_OK);
}

static void test_wrong_model(void **state)
{
    const char *dir = *state;
    mt_checkpoint *c;
    ckpt_rank r;
    char text[512];
    mc_status st;
    assert_int_equal(ckpt_save_all(dir, &layouts[1], 5, 1), MC_OK);
    assert_int_equal(mt_checkpoint_open(dir, -1, &c), MC_OK);
    ckpt_make(&r, &layouts[0], 0);
    mt_param none = r.params[3], wide = r.params[3], flat = r.params[1];
    snprintf(none.name, sizeof none.name, "layers.9.proj.weight");
    wide.global_dims[0]++;
    wide.local_dims[0]++;
    snprintf(flat.name, sizeof flat.name, "%s", r.params[3].name);
    const struct {
        mt_ckpt_item item;
        mc_status st;
        const char *says;
    } rows[] = {
        {{"model", &none, r.items[3].local, 0}, MC_NOTFOUND, "layers.9.proj.weight"},
        {{"optimizer.other", &r.params[3], r.items[3].local, 0}, MC_NOTFOUND, "optimizer.other"},
        {{"model", &wide, mc_tensor_2d(r.values[0], MC_F32, 7, CKPT_F), 0}, MC_MISMATCH, "6 x 24 there and 7 x 24"},
        {{"model", &flat, mc_tensor_1d(r.values[0], MC_F32, CKPT_C), 0}, MC_MISMATCH, "6 x 24 there and 6 x 1"},
        {{"model", &r.params[0], r.items[0].local, CKPT_VOCAB - 1}, MC_MISMATCH, "vocabulary of 37 there, of 36"},
        {{"model", &r.params[3], mc_tensor_2d(r.values[0], MC_I32, CKPT_C, CKPT_F), 0}, MC_UNSUPPORTED, "converted"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        UNIT_CAPTURE(text, st = mt_checkpoint_read(c, &rows[i].item));
        if (st != rows[i].st || !strstr(text, rows[i].says)) {
            fail_msg("case %zu: %s: %s", i, mc_status_name(st), text);
        }
    }
    ckpt_drop(&r);
    mt_checkpoint_close(c);
}

/* More padding there than here is fine only when what is cut off is known to be padding. */
static void test_vocabulary_padding(void **state)
{
    const char *dir = *state;
    mt_checkpoint *c;
    mt_param p = ckpt_param("output_layer.weight", 2, 40, CKPT_C), q = p;
    float values[48 * CKPT_C], back[48 * CKPT_C];
    char text[512];
    for (int i = 0; i < 48 * CKPT_C; i++) {
        values[i] = (float)i;
    }
    p.writes = true;
    static const struct {
        int64_t valid_there, valid_here, rows_here;
        mc_status st;
    } rows[] = {
        {37, 37, 38, MC_OK},     {37, 37, 48, MC_OK},       {37, 0, 38, MC_OK},
        {0, 0, 48, MC_OK},       {0, 37, 40, MC_OK},        {0, 37, 38, MC_MISMATCH},
        {0, 0, 38, MC_MISMATCH}, {37, 36, 40, MC_MISMATCH}, {37, 0, 36, MC_MISMATCH},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        mt_ckpt_item item = {"model", &p, mc_tensor_2d(values, MC_F32, 40, CKPT_C), rows[i].valid_there};
        const mc_job job = {.size = 1, .local_size = 1, .launcher = "none"};
        const mt_ckpt_state s = ckpt_state(3);
        mc_world *world;
        assert_int_equal(mc_world_open(&job, "self", 5.0, &world), MC_OK);
        assert_int_equal(mt_checkpoint_save(dir, world, &s, &item, 1), MC_OK);
        mc_world_close(world, false, 0);
        q.global_dims[0] = q.local_dims[0] = q.ranges[0].count = rows[i].rows_here;
        for (int k = 0; k < 48 * CKPT_C; k++) {
            back[k] = -1;
        }
        mt_ckpt_item want = {"model", &q, mc_tensor_2d(back, MC_F32, rows[i].rows_here, CKPT_C), rows[i].valid_here};
        mc_status st;
        assert_int_equal(mt_checkpoint_open(dir, -1, &c), MC_OK);
        UNIT_CAPTURE(text, st = mt_checkpoint_read(c, &want));
        mt_checkpoint_close(c);
        assert_int_equal(st, rows[i].st);
        int64_t copied = rows[i].st != MC_OK ? 0 : rows[i].rows_here < 40 ? rows[i].rows_here : 40;
        for (int k = 0; k < 48 * CKPT_C; k++) {
            assert_true(back[k] == (k < copied * CKPT_C ? (float)k : -1));
        }
    }
}

static void test_missing(void **state)
{
    const char *dir = *state;
    mt_checkpoint *c;
    char text[1024], path[128], latest[128];
    static const struct {
        const char *latest; /* NULL: removed */
        int64_t step;
        mc_status st;
        const char *says;
    } rows[] = {
        {"5\n", 6, MC_NOTFOUND, "there are: 2, 5"},
        {"6\n", -1, MC_NOTFOUND, "(named by latest_checkpointed_iteration.txt); there are: 2, 5"},
        {NULL, -1, MC_NOTFOUND, "iterations there: 2, 5"},
        {"", -1, MC_INPUT, "2, 5"},
        {"\n", -1, MC_INPUT, "2, 5"},
        {"5 \n", -1, MC_INPUT, "2, 5"},
        {"-5\n", -1, MC_INPUT, "2, 5"},
        {"release\n", -1, MC_INPUT, "2, 5"},
        {"99999999999999999999\n", -1, MC_INPUT, "2, 5"},
        {"5", -1, MC_OK, ""},
        {"2\n", -1, MC_OK, ""},
    };
    snprintf(path, sizeof path, "%s/none", dir);
    mc_status st;
    UNIT_CAPTURE(text, st = mt_checkpoint_open(path, -1, &c));
    assert_int_equal(st, MC_NOTFOUND);
    UNIT_CAPTURE(text, st = mt_checkpoint_open(dir, -1, &c));
    assert_int_equal(st, MC_NOTFOUND);
    assert_non_null(strstr(text, "none"));
    assert_int_equal(ckpt_save_all(dir, &layouts[0], 2, 1), MC_OK);
    assert_int_equal(ckpt_save_all(dir, &layouts[0], 5, 1), MC_OK);
    snprintf(latest, sizeof latest, "%s/latest_checkpointed_iteration.txt", dir);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        st = rows[i].latest ? mc_file_replace(latest, rows[i].latest, strlen(rows[i].latest))
                            : mc_file_remove_tree(latest);
        assert_int_equal(st, MC_OK);
        UNIT_CAPTURE(text, st = mt_checkpoint_open(dir, rows[i].step, &c));
        if (st != rows[i].st || !strstr(text, rows[i].says)) {
            fail_msg("case %zu: %s: %s", i, mc_status_name(st), text);
        }
        if (st == MC_OK) {
            mt_checkpoint_close(c);
        }
    }
}

/* The disk fills (here: the limit of a file's size) in the middle of a shard: error, remedy, nothing left, the previous
 * checkpoint loads. */
static void test_disk_full(void **state)
{
    const char *dir = *state;
    struct rlimit old, small;
    char text[1024], tmp[128];
    const mt_ckpt_state s = ckpt_state(6);
    const mc_job job = {.size = 1, .local_size = 1, .launcher = "none"};
    mc_world *world;
    ckpt_rank r;
    mc_status st;
    assert_int_equal(ckpt_save_all(dir, &layouts[1], 5, 1), MC_OK);
    assert_int_equal(mc_world_open(&job, "self", 5.0, &world), MC_OK);
    ckpt_make(&r, &layouts[0], 0);
    ckpt_fill(&r, 2);
    getrlimit(RLIMIT_FSIZE, &old);
    small = (struct rlimit){6000, old.rlim_max};
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &small);
    UNIT_CAPTURE(text, st = mt_checkpoint_save(dir, world, &s, r.items, r.n_items));
    setrlimit(RLIMIT_FSIZE, &old);
    signal(SIGXFSZ, SIG_DFL);
    assert_int_equal(st, MC_IO);
    assert_non_null(strstr(text, "shard_00000_of_00001.safetensors"));
    snprintf(tmp, sizeof tmp, "%s/iter_0000006.tmp", dir);
    assert_false(mc_file_exists(tmp));
    assert_int_equal(ckpt_load_all(dir, &layouts[0], 1), MC_OK);
    ckpt_drop(&r);
    mc_world_close(world, false, 0);
}

static void test_inspect(void **state)
{
    const char *dir = *state;
    char text[16384] = {0};
    assert_false(mt_checkpoint_is(dir));
    assert_int_equal(ckpt_save_all(dir, &layouts[2], 5, 1), MC_OK);
    char iter[128];
    snprintf(iter, sizeof iter, "%s/iter_0000005", dir);
    assert_true(mt_checkpoint_is(dir));
    assert_true(mt_checkpoint_is(iter));
    static const char *const words[2][4] = {
        {"iteration          5", "4 ranks, 4 shards", "every byte", "--data-path one two"},
        {"\"iteration\": 5", "\"world_size\": 4", "\"verified\": true", "\"--data-path\": \"one two\""},
    };
    for (int json = 0; json < 2; json++) {
        FILE *f = tmpfile();
        assert_int_equal(mt_checkpoint_inspect(dir, true, json, f), MC_OK);
        rewind(f);
        text[fread(text, 1, sizeof text - 1, f)] = '\0';
        fclose(f);
        for (int i = 0; i < 4; i++) {
            if (!strstr(text, words[json][i])) {
                fail_msg("\"%s\" is not in: %s", words[json][i], text);
            }
        }
    }
}

int main(void)
{
#define ROW(f) cmocka_unit_test_setup_teardown(f, make_place, drop_place)
    const struct CMUnitTest tests[] = {
        ROW(test_any_layout_loads_any_other),
        ROW(test_state_comes_back),
        ROW(test_collective_save_of_one_rank),
        ROW(test_saved_again),
        ROW(test_wrong_model),
        ROW(test_vocabulary_padding),
        ROW(test_missing),
        ROW(test_disk_full),
        ROW(test_inspect),
    };
    return cmocka_run_group_tests_name("checkpoint", tests, NULL, NULL);
}
