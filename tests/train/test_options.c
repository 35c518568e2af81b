/* The flags: wrong command lines, derived values, files, checkpoints, help. */
#include <math.h>

#include "megac/base/alloc.h"
#include "megac/base/log.h"
#include "tests/train/options_run.h"

static const struct {
    mt_command command;
    int world;
    const char *line;
    mc_status st;
    const char *says[2];
} bad[] = {
#define BAD(command, world, line, st, first, second) {MT_##command, world, line, MC_##st, {first, second}},
#include "tests/train/bad_lines.def"
#undef BAD
};

static void wrong_command_lines_are_refused(void **state)
{
    (void)state;
    char said[RUN_SAID_BYTES];
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        mt_options *o = NULL;
        mc_status st = run_options(bad[i].command, bad[i].world, bad[i].line, said, &o);
        const char *error = strstr(said, "error: ");
        bool ok = st == bad[i].st && !o && error && strstr(error, bad[i].says[0]) && strstr(error, bad[i].says[1]) &&
                  !strstr(error + 1, "error: ");
        mt_options_free(o);
        if (!ok) {
            fail_msg("%s\nstatus %s, said: %s", bad[i].line, mc_status_name(st), said);
        }
        assert_int_equal(mc_status_exit(st), 2);
    }
    assert_true(sizeof bad / sizeof bad[0] >= 60);
}

static void gpt_defaults_are_megatrons(void **state)
{
    (void)state;
    char said[RUN_SAID_BYTES];
    mt_options *o = good(MT_TRAIN, 1, GOOD_RUN, said);
    assert_string_equal(said, "");
    assert_string_equal(o->position_embedding_type, "learned_absolute");
    assert_string_equal(o->normalization, "LayerNorm");
    assert_true(o->hidden_dropout == 0.1 && o->attention_dropout == 0.1);
    assert_true(o->norm_epsilon == 1e-5 && o->init_method_std == 0.02);
    assert_string_equal(o->lr_decay_style, "linear");
    assert_true(o->weight_decay == 0.01 && o->start_weight_decay == 0.01 && o->end_weight_decay == 0.01);
    assert_true(o->adam_beta1 == 0.9 && o->adam_beta2 == 0.999 && o->adam_eps == 1e-8 && o->clip_grad == 1.0);
    assert_string_equal(o->split, "969, 30, 1");
    assert_int_equal(o->seed, 1234);
    assert_int_equal(o->log_interval, 100);
    assert_int_equal(o->eval_iters, 100);
    assert_false(mc_given_int(o->eval_interval));
    assert_true(o->add_bias_linear);
    assert_false(o->untie_embeddings_and_output_weights);
    assert_int_equal(o->rotary_base, 10000);
    assert_int_equal(o->make_vocab_size_divisible_by, 128);
    assert_string_equal(o->optimizer, "adam");
    /* Derived. */
    assert_int_equal(o->ffn_hidden_size, 256);
    assert_int_equal(o->kv_channels, 16);
    assert_int_equal(o->num_query_groups, 4);
    assert_int_equal(o->data_parallel_size, 1);
    assert_int_equal(o->global_batch_size, 2);
    assert_int_equal(o->ddp_bucket_size, 40000000);
    assert_true(mt_options_given(o, &o->lr));
    assert_false(mt_options_given(o, &o->kv_channels));
    assert_false(mt_options_given(o, &o->seed));
    mt_options_free(o);
}

static void derived_values_follow_the_flags(void **state)
{
    (void)state;
    char said[RUN_SAID_BYTES];
    mt_options *o = good(MT_TRAIN, 8,
                         GOOD_RUN "--swiglu --hidden-size 4096 --num-attention-heads 32 --group-query-attention "
                                  "--tp 2 --pp 2 --sequence-parallel --micro-batch-size 3 --no-position-embedding",
                         said);
    assert_int_equal(o->ffn_hidden_size, 10880); /* 4 x 4096 x 2/3 down to a multiple of 64 */
    assert_int_equal(o->kv_channels, 128);
    assert_int_equal(o->num_query_groups, 1);
    assert_int_equal(o->data_parallel_size, 2);
    assert_int_equal(o->global_batch_size, 6);
    assert_string_equal(o->position_embedding_type, "none");
    assert_true(o->sequence_parallel);
    mt_options_free(o);

    o = good(MT_TRAIN, 64,
             GOOD_RUN "--sequence-parallel --max-position-embeddings 64 --no-position-embedding "
                      "--position-embedding-type rope --num-query-groups 2",
             said);
    assert_non_null(strstr(said, "--sequence-parallel: there is one tensor-parallel rank"));
    assert_non_null(strstr(said, "--num-query-groups 2: read with --group-query-attention only"));
    assert_false(o->sequence_parallel);
    assert_int_equal(o->num_query_groups, 4);
    assert_int_equal(o->ddp_bucket_size, 64000000);
    assert_string_equal(o->position_embedding_type, "rope");
    mt_options_free(o);

    o = good(MT_PLAN, 1, GOOD "--tp 2 --pp 4 --dp 3", said);
    assert_int_equal(o->world_size, 24);
    mt_options_free(o);
    o = good(MT_PLAN, 1, GOOD "--tp 2 --world-size 8", said);
    assert_int_equal(o->data_parallel_size, 4);
    mt_options_free(o);
    o = good(MT_TRAIN, 1, GOOD "--train-samples 1000 --step-batch-size-schedule \"0:4 3K:8\"", said);
    assert_false(mc_given_int(o->global_batch_size));
    mt_options_free(o);
    o = good(MT_TRAIN, 1, GOOD "--skip-train", said);
    mt_options_free(o);
    o = good(MT_TRAIN, 2, GOOD_RUN "--global-batch-size 7 --decrease-batch-size-if-needed", said);
    mt_options_free(o);
}

static void print(const mt_options *o, const char *path)
{
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    assert_int_equal(mc_config_print(&o->config_, f), MC_OK);
    fclose(f);
}

/* Printed before or after finishing, the options come back the same. */
static void printed_options_are_read_back(void **state)
{
    (void)state;
    static const char *const lines[] = {
        GOOD_RUN,
        GOOD_RUN
        "--swiglu --group-query-attention --num-query-groups 2 --position-embedding-type rope --split \"8, 1, 1\" "
        "--disable-bias-linear --window-size 16 0 --iterations-to-skip 3 5 --weight-decay-incr-style cosine "
        "--start-weight-decay 0.1 --end-weight-decay 0.2 --no-position-embedding --lr 0.1 --tp 1",
        GOOD "--train-samples 1000 --step-batch-size-schedule \"0:4 3K:8\" --num-query-groups 3",
        GOOD "--train-samples 1000 --global-batch-size 8 --rampup-batch-size 2 2 100 --lr-warmup-fraction 0.25",
    };
    char said[RUN_SAID_BYTES], *text, *again;
    for (size_t i = 0; i < sizeof lines / sizeof lines[0]; i++) {
        mt_options *o = good(MT_TRAIN, 1, lines[i], said), *p;
        print(o, "test_options.yaml");
        p = good(MT_TRAIN, 1, "--config test_options.yaml", said);
        assert_string_equal(said, "");
        assert_int_equal(mt_options_text(o, &text), MC_OK);
        assert_int_equal(mt_options_text(p, &again), MC_OK);
        assert_string_equal(text, again);
        assert_null(strstr(text, "--num-threads"));
        assert_null(strstr(text, "--print-config"));
        mc_free(text);
        mc_free(again);
        mt_options_free(o);
        mt_options_free(p);
    }
}

/* The command line wins over the file, and other commands read a training run's file. */
static void files_serve_every_command(void **state)
{
    (void)state;
    char said[RUN_SAID_BYTES];
    mt_options *o = good(MT_TRAIN, 1, GOOD_RUN "--seed 7", said);
    print(o, "test_options.yaml");
    mt_options_free(o);
    o = good(MT_EVAL, 1, "--seed 9 --config test_options.yaml --load D", said);
    assert_int_equal(o->seed, 9);
    assert_int_equal(o->num_layers, 4);
    assert_true(mt_options_need_checkpoint(o));
    mt_options_free(o);
    o = good(MT_GENERATE, 1, "--config=test_options.yaml --load D --prompt \"Once upon\" --temperature 0.5", said);
    assert_string_equal(o->prompt, "Once upon");
    assert_int_equal(o->max_new_tokens, 128);
    mt_options_free(o);
}

/* A checkpoint's configuration gives eval its model. */
static void shape_comes_from_the_checkpoint(void **state)
{
    (void)state;
    char said[RUN_SAID_BYTES], *text;
    mt_options *o =
        good(MT_TRAIN, 1, GOOD_RUN "--swiglu --disable-bias-linear --window-size 8 0 --hidden-dropout 0.2", said);
    assert_int_equal(mt_options_text(o, &text), MC_OK);
    char *args[] = {(char *)"--load",       (char *)"D", (char *)"--data-path", (char *)"p",
                    (char *)"--num-layers", (char *)"9"};
    mt_options *e;
    bool done;
    assert_int_equal(mt_options_parse(MT_EVAL, 6, args, &e, &done), MC_OK);
    UNIT_CAPTURE(said, assert_int_equal(mt_options_adopt(e, "D/iter_0000010", text), MC_OK));
    assert_non_null(strstr(said, "--num-layers 9: D/iter_0000010 says 4"));
    assert_int_equal(mt_options_finish(e, 1), MC_OK);
    assert_int_equal(e->num_layers, 4);
    assert_int_equal(e->ffn_hidden_size, o->ffn_hidden_size);
    assert_int_equal(e->seq_length, 32);
    assert_int_equal(e->window_size.v[0], 8);
    assert_true(e->swiglu && !e->add_bias_linear);
    assert_true(e->hidden_dropout == 0.1); /* not a matter of shape */
    mc_free(text);
    mt_options_free(o);
    mt_options_free(e);
}

/* What of the model differs from a checkpoint's; other spellings of the same and values not known yet do not. */
static void differences_from_the_checkpoint(void **state)
{
    (void)state;
    const struct {
        const char *flags, *want;
    } cases[] = {
        {"", ""},
        {"--num-query-groups 4 --group-query-attention", ""},
        {"--padded-vocab-size 512 --make-vocab-size-divisible-by 64 --max-position-embeddings 64 --lr 5", ""},
        {"--squared-relu", "--squared-relu true (there false)"},
        {"--window-size 8 0", "--window-size 8 0 (there not given)"},
        {"--norm-epsilon 1e-6 --disable-bias-linear",
         "--norm-epsilon 1e-06 (there 1e-05), --disable-bias-linear true (there false)"},
    };
    char said[RUN_SAID_BYTES], list[200], *text;
    mt_options *o = good(MT_TRAIN, 1, GOOD_RUN, said);
    assert_int_equal(mt_options_text(o, &text), MC_OK);
    mt_options_free(o);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char line[600];
        snprintf(line, sizeof line, "%s %s", GOOD_RUN, cases[i].flags);
        o = good(MT_TRAIN, 1, line, said);
        assert_int_equal(mt_options_differences(o, text, list, sizeof list), MC_OK);
        assert_string_equal(list, cases[i].want);
        char cut[9];
        assert_int_equal(mt_options_differences(o, text, cut, sizeof cut), MC_OK);
        assert_int_equal(strncmp(list, cut, sizeof cut - 1), 0);
        mt_options_free(o);
    }
    mc_free(text);
}

static void data_lists_come_from_a_file(void **state)
{
    (void)state;
    char said[RUN_SAID_BYTES];
    FILE *f = fopen("test_options.txt", "w");
    assert_non_null(f);
    fputs("0.3 first\n\t0.7   second\n", f);
    fclose(f);
    const char *model =
        "--num-layers 2 --hidden-size 64 --num-attention-heads 4 --seq-length 8 --micro-batch-size 1 --lr 1 "
        "--train-iters 3 --data-args-path test_options.txt";
    mt_options *o = good(MT_TRAIN, 1, model, said);
    assert_int_equal(o->data_path.n, 4);
    assert_string_equal(o->data_path.v[0], "0.3");
    assert_string_equal(o->data_path.v[3], "second");
    mt_options_free(o);
    f = fopen("test_options.txt", "w");
    fclose(f);
    assert_int_equal(run_options(MT_TRAIN, 1, model, said, &o), MC_INVALID);
    assert_non_null(strstr(said, "--data-args-path test_options.txt"));
}

/* What the statement writes to standard output. */
static void stdout_of(mc_status (*parse)(int, char **, bool *), int n, char **args, char *text, size_t cap)
{
    bool done = false;
    fflush(stdout);
    int saved = dup(STDOUT_FILENO);
    FILE *file = tmpfile();
    assert_true(saved >= 0 && file && dup2(fileno(file), STDOUT_FILENO) >= 0);
    mc_status st = parse(n, args, &done);
    fflush(stdout);
    dup2(saved, STDOUT_FILENO);
    close(saved);
    rewind(file);
    text[fread(text, 1, cap - 1, file)] = '\0';
    fclose(file);
    assert_int_equal(st, MC_OK);
    assert_true(done);
}

static mc_status parse_train(int n, char **args, bool *done)
{
    mt_options *o = (mt_options *)args;
    mc_status st = mt_options_parse(MT_TRAIN, n, args, &o, done);
    assert_null(o);
    return st;
}

static mc_status parse_prepare(int n, char **args, bool *done)
{
    mt_prepare_options *o = NULL;
    mc_status st = mt_prepare_options_parse(n, args, &o, done);
    assert_null(o);
    return st;
}

static void help_and_print_config_are_served(void **state)
{
    (void)state;
    static char page[1 << 18];
    char *help[] = {(char *)"--no-such-flag", (char *)"--help"}, *show[] = {(char *)"--print-config", (char *)"--tp=4"};
    stdout_of(parse_train, 2, help, page, sizeof page);
    const char *wanted[] = {"usage: megac train",
                            "--tensor-model-parallel-size, --tp INT",
                            "\nModel:\n",
                            "Accepted without effect",
                            "Refused in this release",
                            "\nOld spellings:\n"};
    for (size_t i = 0; i < sizeof wanted / sizeof wanted[0]; i++) {
        assert_non_null(strstr(page, wanted[i]));
    }
    for (char *line = strtok(page, "\n"); line; line = strtok(NULL, "\n")) {
        if (strlen(line) > 100) {
            fail_msg("longer than 100 columns: %s", line);
        }
    }
    stdout_of(parse_train, 2, show, page, sizeof page);
    assert_non_null(strstr(page, "\ntensor-model-parallel-size: 4\n"));
    assert_non_null(strstr(page, "\nhidden-size: null\n"));
    stdout_of(parse_prepare, 2, help, page, sizeof page);
    assert_non_null(strstr(page, "usage: megac prepare"));
    assert_null(strstr(page, "--num-layers"));
}

static void prepare_and_inspect_have_their_own_flags(void **state)
{
    (void)state;
    char said[1024],
        line[] = "--input a.txt b.txt - --output-prefix out --json-keys title text --append-eod --workers 3";
    char *args[32], *file[] = {(char *)"--tokens=5", (char *)"x.h5", (char *)"--verify"}, *bare[] = {(char *)"--json"};
    mt_prepare_options *p;
    mt_inspect_options *i;
    bool done;
    assert_int_equal(mt_prepare_options_parse(run_split(line, args), args, &p, &done), MC_OK);
    assert_false(done);
    assert_int_equal(p->input.n, 3);
    assert_string_equal(p->input.v[2], "-");
    assert_int_equal(p->json_keys.n, 2);
    assert_int_equal(p->workers, 3);
    assert_string_equal(p->tokenizer_type, "ByteTokenizer");
    mt_prepare_options_free(p);
    assert_int_equal(mt_inspect_options_parse(3, file, &i, &done), MC_OK);
    assert_string_equal(i->file, "x.h5");
    assert_true(i->verify && !i->json && i->tokens == 5);
    mt_inspect_options_free(i);
    UNIT_CAPTURE(said, assert_int_equal(mt_inspect_options_parse(1, bare, &i, &done), MC_INVALID));
    assert_non_null(strstr(said, "usage: megac inspect FILE"));
    UNIT_CAPTURE(said, assert_int_equal(mt_prepare_options_parse(0, args, &p, &done), MC_INVALID));
    assert_non_null(strstr(said, "--input is missing"));
    UNIT_CAPTURE(said, assert_int_equal(mt_prepare_options_parse(2, args, &p, &done), MC_INVALID));
    assert_non_null(strstr(said, "--output-prefix is missing"));
    char *both[] = {(char *)"--input",           (char *)"a", (char *)"--output-prefix", (char *)"b",
                    (char *)"--tokenizer-model", (char *)"m"};
    UNIT_CAPTURE(said, assert_int_equal(mt_prepare_options_parse(6, both, &p, &done), MC_INVALID));
    assert_non_null(strstr(said, "--tokenizer-model m"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(wrong_command_lines_are_refused, nothing_leaked),
        cmocka_unit_test_teardown(gpt_defaults_are_megatrons, nothing_leaked),
        cmocka_unit_test_teardown(derived_values_follow_the_flags, nothing_leaked),
        cmocka_unit_test_teardown(printed_options_are_read_back, nothing_leaked),
        cmocka_unit_test_teardown(files_serve_every_command, nothing_leaked),
        cmocka_unit_test_teardown(shape_comes_from_the_checkpoint, nothing_leaked),
        cmocka_unit_test_teardown(differences_from_the_checkpoint, nothing_leaked),
        cmocka_unit_test_teardown(data_lists_come_from_a_file, nothing_leaked),
        cmocka_unit_test_teardown(help_and_print_config_are_served, nothing_leaked),
        cmocka_unit_test_teardown(prepare_and_inspect_have_their_own_flags, nothing_leaked),
    };
    return cmocka_run_group_tests_name("options", tests, NULL, NULL);
}
