/* The option engine, over a small table of its own. */
#include <math.h>

#include "megac/base/alloc.h"
#include "megac/base/config.h"
#include "megac/base/log.h"
#include "tests/unit.h"

#define SAMPLE_ROWS "tests/base/config_rows.def"

/* The order of the includes counts. */
/* clang-format off */
typedef struct sample {
#include "megac/base/option_fields.def"
#include SAMPLE_ROWS
#include "megac/base/option_end.def"
} sample;

#define MC_OPTION_STRUCT sample
#define MC_OPTION_MEMBER(field) field
static const mc_option rows[] = {
#include "megac/base/option_rows.def"
#include SAMPLE_ROWS
#include "megac/base/option_end.def"
};
/* clang-format on */

/* Cut in two, as commands share their rows. */
static const mc_option_table table = {
    .usage = "sample FILE [FLAGS]",
    .summary = "A sample.",
    .sets = {{rows, 6}, {rows + 6, (int)(sizeof rows / sizeof rows[0]) - 6}},
    .n_sets = 2,
};

enum { MAX_ARGS = 32 };

/* Splits `line` at blanks ('_' stands for a blank within a word). */
static int split(char *line, char **args)
{
    int n = 0;
    for (char *word = strtok(line, " "); word; word = strtok(NULL, " ")) {
        assert_true(n < MAX_ARGS);
        args[n++] = word;
    }
    return n;
}

static mc_status parse(mc_config *config, sample *target, const char *line, char *said, size_t cap)
{
    char copy[512], *args[MAX_ARGS];
    snprintf(copy, sizeof copy, "%s", line);
    int n = split(copy, args);
    memset(target, 0xa5, sizeof *target); /* what the engine does not set shows */
    assert_int_equal(mc_config_init(config, &table, target), MC_OK);
    int saved = unit_capture_begin();
    mc_status st = mc_config_args(config, n, args);
    unit_capture_end(saved, said, cap);
    return st;
}

static void defaults_stand_where_nothing_is_given(void **state)
{
    (void)state;
    mc_config c;
    sample s;
    char said[512];
    assert_int_equal(parse(&c, &s, "", said, sizeof said), MC_OK);
    assert_string_equal(said, "");
    assert_int_equal(s.layers, 12);
    assert_false(mc_given_int(s.width));
    assert_true(s.rate == 0.1);
    assert_false(mc_given_float(s.scale));
    assert_false(s.fast);
    assert_true(s.bias);
    assert_null(s.name);
    assert_string_equal(s.shape, "round");
    assert_int_equal(s.window.n, 0);
    assert_null(s.window.v);
    assert_int_equal(s.keys.n, 1);
    assert_string_equal(s.keys.v[0], "text");
    assert_int_equal(mc_config_source(&c, &s.layers), MC_FROM_DEFAULT);
    mc_config_fini(&c);
}

static void every_form_of_a_flag_is_read(void **state)
{
    (void)state;
    mc_config c;
    sample s;
    char said[512];
    assert_int_equal(parse(&c, &s,
                           "--layers 3 --width=1e3 --scale -2.5e-1 --fast --no-bias --name=--odd --shape square "
                           "--window -1 0 --keys a b --rate=0 input.h5",
                           said, sizeof said),
                     MC_OK);
    assert_string_equal(said, "");
    assert_int_equal(s.layers, 3);
    assert_int_equal(s.width, 1000);
    assert_true(s.scale == -0.25 && s.rate == 0);
    assert_true(s.fast);
    assert_false(s.bias);
    assert_string_equal(s.name, "--odd");
    assert_string_equal(s.shape, "square");
    assert_int_equal(s.window.n, 2);
    assert_int_equal(s.window.v[0], -1);
    assert_int_equal(s.window.v[1], 0);
    assert_int_equal(s.keys.n, 2); /* a list takes what follows up to the next flag */
    assert_string_equal(s.keys.v[1], "b");
    assert_string_equal(s.file, "input.h5");
    assert_int_equal(mc_config_source(&c, &s.layers), MC_FROM_ARGS);
    assert_int_equal(mc_config_source(&c, &s.seed), MC_FROM_DEFAULT);
    mc_config_fini(&c);
}

static void values_do_not_point_into_argv(void **state)
{
    (void)state;
    mc_config c;
    sample s;
    char name[] = "first", flag[] = "--name", said[64];
    char *args[] = {flag, name};
    assert_int_equal(mc_config_init(&c, &table, &s), MC_OK);
    UNIT_CAPTURE(said, assert_int_equal(mc_config_args(&c, 2, args), MC_OK));
    memset(name, 'x', sizeof name - 1);
    assert_string_equal(s.name, "first");
    mc_config_fini(&c);
}

static void lists_take_commas_and_numbers_take_exponents(void **state)
{
    (void)state;
    mc_config c;
    sample s;
    char said[512];
    assert_int_equal(parse(&c, &s, "--window 128,0 --width 2.5e2 --seed 9007199254740992", said, sizeof said), MC_OK);
    assert_int_equal(s.window.n, 2);
    assert_int_equal(s.window.v[0], 128);
    assert_int_equal(s.width, 250);
    assert_int_equal(s.seed, INT64_C(9007199254740992));
    mc_config_fini(&c);
}

static void last_one_wins_and_a_file_gives_way(void **state)
{
    (void)state;
    mc_config c;
    sample s;
    char said[512];
    assert_int_equal(parse(&c, &s, "--layers 3 --layers=4 -l 5 --fast=false", said, sizeof said), MC_OK);
    assert_int_equal(s.layers, 5);
    assert_false(s.fast);
    assert_string_equal(said, "");
    mc_config_fini(&c);
    mc_log_set_level(MC_LOG_DEBUG);
    assert_int_equal(parse(&c, &s, "--layers 3 --layers 4", said, sizeof said), MC_OK);
    mc_log_set_level(MC_LOG_INFO);
    assert_non_null(strstr(said, "--layers given again"));
    mc_config_fini(&c);
}

static void positional_arguments_are_read(void **state)
{
    (void)state;
    mc_config c;
    sample s;
    char said[512];
    assert_int_equal(parse(&c, &s, "--fast -- --dashed", said, sizeof said), MC_OK);
    assert_string_equal(s.file, "--dashed");
    mc_config_fini(&c);
    assert_int_equal(parse(&c, &s, "- --layers 2", said, sizeof said), MC_OK);
    assert_string_equal(s.file, "-");
    assert_int_equal(s.layers, 2);
    mc_config_fini(&c);
}

static const struct {
    const char *line;
    mc_status st;
    const char *says[3];
} bad[] = {
    {"--layer 3", MC_INVALID, {"--layer", "did you mean --layers?"}},
    {"--layers_ 3", MC_INVALID, {"--layers_", "did you mean --layers?"}},
    {"--qqqqqqqqqqqqq", MC_INVALID, {"--qqqqqqqqqqqqq", "--help"}},
    {"-layers 3", MC_INVALID, {"-layers", "--layers"}},
    {"--layers", MC_INVALID, {"--layers", "needs a value"}},
    {"--layers --fast", MC_INVALID, {"--layers", "needs a value", "--layers=VALUE"}},
    {"--layers twelve", MC_INVALID, {"--layers", "twelve", "whole number"}},
    {"--layers 2.5", MC_INVALID, {"--layers", "2.5"}},
    {"--layers 1e-1", MC_INVALID, {"--layers", "1e-1"}},
    {"--seed 1e17", MC_INVALID, {"--seed", "1e17"}},
    {"--layers 3M", MC_INVALID, {"--layers", "3M", "no K, M"}},
    {"--layers 0", MC_INVALID, {"--layers 0", "at least 1"}},
    {"--layers 101", MC_INVALID, {"--layers 101", "at most 100"}},
    {"--seed 99999999999999999999", MC_INVALID, {"--seed", "64-bit"}},
    {"--layers=", MC_INVALID, {"--layers", "whole number"}},
    {"--rate fast", MC_INVALID, {"--rate", "fast", "number"}},
    {"--rate 1", MC_INVALID, {"--rate 1", "below 1"}},
    {"--rate nan", MC_INVALID, {"--rate", "nan"}},
    {"--scale inf", MC_INVALID, {"--scale", "inf"}},
    {"--scale 0x1p3", MC_INVALID, {"--scale", "0x1p3"}},
    {"--shape oval", MC_INVALID, {"--shape", "oval", "round|square"}},
    {"--shape star", MC_UNSUPPORTED, {"--shape star", "not available", "round|square"}},
    {"--name=", MC_INVALID, {"--name", "empty"}},
    {"a.h5 --fast true", MC_INVALID, {"--fast", "takes no value"}},
    {"--fast=maybe", MC_INVALID, {"--fast", "maybe"}},
    {"one two", MC_INVALID, {"two", "usage: sample FILE"}},
    {"--window 1 x", MC_INVALID, {"--window", "x"}},
    {"--window ,", MC_INVALID, {"--window"}},
    {"--heavy", MC_UNSUPPORTED, {"--heavy", "too heavy"}},
    {"--degree 2", MC_UNSUPPORTED, {"--degree 2", "only one"}},
    {"--alien-ship 4 5", MC_UNSUPPORTED, {"--alien-ship", "no aliens"}},
    {"--weighty", MC_UNSUPPORTED, {"--weighty", "--heavy", "too heavy"}},
    {"--old-layers none", MC_INVALID, {"--old-layers", "--layers", "none"}},
};

static void bad_command_lines_are_refused(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        mc_config c;
        sample s;
        char said[1024];
        mc_status st = parse(&c, &s, bad[i].line, said, sizeof said);
        if (st != bad[i].st) {
            fail_msg("\"%s\": status %s, said %s", bad[i].line, mc_status_name(st), said);
        }
        for (int k = 0; k < 3 && bad[i].says[k]; k++) {
            if (!strstr(said, bad[i].says[k])) {
                fail_msg("\"%s\": \"%s\" is missing in: %s", bad[i].line, bad[i].says[k], said);
            }
        }
        if (strchr(said, '\n') != strrchr(said, '\n')) {
            fail_msg("\"%s\": more than one message: %s", bad[i].line, said);
        }
        mc_config_fini(&c);
    }
}

static void flags_without_effect_are_told_once(void **state)
{
    (void)state;
    mc_config c;
    sample s;
    char said[1024];
    assert_int_equal(parse(&c, &s, "--fusion --fusion --degree 1 --old-layers 7 --round", said, sizeof said), MC_OK);
    assert_non_null(strstr(said, "--fusion: always fused; ignored"));
    assert_null(strstr(strstr(said, "--fusion") + 1, "--fusion"));
    assert_non_null(strstr(said, "--old-layers: old spelling, taken as --layers"));
    assert_null(strstr(said, "--degree"));
    assert_int_equal(s.layers, 7);
    assert_string_equal(s.shape, "round");
    mc_config_fini(&c);
}

/* A YAML file of this text. */
static const char *yaml_file(const char *text)
{
    static const char path[] = "test_config.yaml";
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    assert_true(fputs(text, f) >= 0 && fclose(f) == 0);
    return path;
}

static mc_status read_yaml(mc_config *c, sample *s, const char *text, char *said, size_t cap)
{
    memset(s, 0xa5, sizeof *s);
    assert_int_equal(mc_config_init(c, &table, s), MC_OK);
    int saved = unit_capture_begin();
    mc_status st = mc_config_file(c, yaml_file(text));
    unit_capture_end(saved, said, cap);
    return st;
}

static void yaml_gives_the_same_options(void **state)
{
    (void)state;
    mc_config c;
    sample s;
    char said[1024], *args[] = {(char *)"--layers", (char *)"5"};
    assert_int_equal(read_yaml(&c, &s,
                               "# a comment\nlayers: 4\nmodel:\n  width: 1e3\n  deeper: {scale: 0.5}\nfast: yes\n"
                               "bias: false\nname: \"a: b\\n\"\nkeys: [x, 'y z']\nwindow:\n- 3\n- 0\nheavy: false\n"
                               "shape: null\nfusion: true\n",
                               said, sizeof said),
                     MC_OK);
    assert_int_equal(s.layers, 4);
    assert_int_equal(s.width, 1000);
    assert_true(s.scale == 0.5);
    assert_true(s.fast);
    assert_false(s.bias);
    assert_string_equal(s.name, "a: b\n");
    assert_int_equal(s.keys.n, 2);
    assert_string_equal(s.keys.v[1], "y z");
    assert_int_equal(s.window.v[0], 3);
    assert_string_equal(s.shape, "round");
    assert_non_null(strstr(said, "test_config.yaml:15: fusion: always fused; ignored"));
    assert_int_equal(mc_config_source(&c, &s.layers), MC_FROM_FILE);
    assert_int_equal(mc_config_args(&c, 2, args), MC_OK);
    assert_int_equal(s.layers, 5);
    mc_config_fini(&c);
}

static const struct {
    const char *yaml;
    mc_status st;
    const char *says[2];
} bad_yaml[] = {
    {"layers: 3\nlayrs: 4\n", MC_INVALID, {"test_config.yaml:2: layrs", "--layers"}},
    {"layers: many\n", MC_INVALID, {"test_config.yaml:1: layers", "many"}},
    {"a:\n  b:\n    layers: 0\n", MC_INVALID, {"test_config.yaml:3: layers 0", "at least 1"}},
    {"layers: [1, 2]\n", MC_INVALID, {"test_config.yaml:1: layers", "one value"}},
    {"keys: [[a]]\n", MC_INVALID, {"test_config.yaml:1: keys", "element 1"}},
    {"layers: {a: 1}\n", MC_INVALID, {"test_config.yaml:1: layers", "map"}},
    {"? [a]\n: 1\n", MC_INVALID, {"test_config.yaml:1:", "key"}},
    {"layers: [1\n", MC_INVALID, {"test_config.yaml", "not YAML"}},
    {"- layers\n", MC_INVALID, {"test_config.yaml:1", "name: value"}},
    {"a: &a\n  b: *a\n", MC_INVALID, {"test_config.yaml", "nested"}},
    {"config: x.yaml\n", MC_INVALID, {"test_config.yaml:1: config", "command line"}},
    {"heavy: true\n", MC_UNSUPPORTED, {"test_config.yaml:1: heavy", "too heavy"}},
    {"fast: maybe\n", MC_INVALID, {"test_config.yaml:1: fast", "maybe"}},
};

static void bad_yaml_is_refused_with_its_line(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof bad_yaml / sizeof bad_yaml[0]; i++) {
        mc_config c;
        sample s;
        char said[1024];
        mc_status st = read_yaml(&c, &s, bad_yaml[i].yaml, said, sizeof said);
        bool ok = st == bad_yaml[i].st && strstr(said, bad_yaml[i].says[0]) && strstr(said, bad_yaml[i].says[1]);
        if (!ok) {
            fail_msg("%s: status %s, said %s", bad_yaml[i].yaml, mc_status_name(st), said);
        }
        mc_config_fini(&c);
    }
    mc_config c;
    sample s;
    char said[512];
    assert_int_equal(mc_config_init(&c, &table, &s), MC_OK);
    UNIT_CAPTURE(said, assert_int_equal(mc_config_file(&c, "no/such.yaml"), MC_NOTFOUND));
    assert_non_null(strstr(said, "--config no/such.yaml"));
    mc_config_fini(&c);
}

/* What print writes, file reads, to the last bit. */
static void printed_yaml_is_read_back(void **state)
{
    (void)state;
    mc_config c, again;
    sample s, t;
    char said[512], page[4096], *text, *text_again;
    assert_int_equal(parse(&c, &s,
                           "--width 7 --scale 0.30000000000000004 --no-bias --window -1 0 --keys a,b c:d # -l 9", said,
                           sizeof said),
                     MC_OK);
    s.name = "quote \" back \\ slash\ttab: {x} \x01";
    FILE *f = fmemopen(page, sizeof page, "w");
    assert_int_equal(mc_config_print(&c, f), MC_OK);
    fclose(f);
    assert_non_null(strstr(page, "\nlayers: 9\n"));
    assert_non_null(strstr(page, "\nno-bias: true\n"));
    assert_non_null(strstr(page, "\nscale: 0.30000000000000004\n"));
    assert_non_null(strstr(page, "\nfile: null\n"));
    assert_int_equal(read_yaml(&again, &t, page, said, sizeof said), MC_OK);
    assert_string_equal(said, "");
    assert_string_equal(t.name, s.name);
    assert_int_equal(mc_config_text(&c, 0, &text), MC_OK);
    assert_int_equal(mc_config_text(&again, 0, &text_again), MC_OK);
    assert_string_equal(text, text_again);
    assert_non_null(strstr(text, "--keys a,b c:d #\n"));
    assert_null(strstr(text, "--help"));
    mc_free(text);
    mc_free(text_again);
    assert_int_equal(mc_config_text(&c, MC_OPTION_LOCAL, &text), MC_OK);
    assert_null(strstr(text, "--seed"));
    mc_free(text);
    mc_config_fini(&c);
    mc_config_fini(&again);
}

static void adopt_takes_shape_and_hints(void **state)
{
    (void)state;
    mc_config c;
    sample s;
    char said[512];
    const char *stored = "--layers 6\n--width 80\n--shape square\n--seed 3\n--name two\\nlines\\\\\n";
    assert_int_equal(parse(&c, &s, "--layers 5 --seed 8", said, sizeof said), MC_OK);
    UNIT_CAPTURE(said, assert_int_equal(mc_config_adopt(&c, "DIR", stored), MC_OK));
    assert_int_equal(s.layers, 6); /* shape: the checkpoint counts, with a warning */
    assert_non_null(strstr(said, "--layers 5: DIR says 6"));
    assert_int_equal(s.width, 80); /* hint: nobody gave it */
    assert_string_equal(s.shape, "round");
    assert_int_equal(s.seed, 8);
    assert_string_equal(s.name, "two\nlines\\");
    assert_int_equal(mc_config_source(&c, &s.width), MC_FROM_CHECKPOINT);
    mc_config_fini(&c);
    assert_int_equal(parse(&c, &s, "--width 9", said, sizeof said), MC_OK);
    UNIT_CAPTURE(said, assert_int_equal(mc_config_adopt(&c, "DIR", "--layers x\n"), MC_INVALID));
    assert_non_null(strstr(said, "DIR: --layers"));
    UNIT_CAPTURE(said, assert_int_equal(mc_config_adopt(&c, "DIR", stored), MC_OK));
    assert_int_equal(s.width, 9); /* hint: the command line gave it */
    mc_config_fini(&c);
}

static void help_page_shows_every_row(void **state)
{
    (void)state;
    char page[8192];
    FILE *f = fmemopen(page, sizeof page, "w");
    assert_int_equal(mc_config_help(&table, f), MC_OK);
    fclose(f);
    const char *wanted[] = {"usage: sample FILE [FLAGS]",
                            "\nSizes:\n",
                            "--layers, -l INT",
                            "at least 1 and at most 100 (default 12;",
                            "                                  Megatron-LM: 24)\n",
                            "one of round|square (default round)",
                            "--fast ",
                            "(default off)",
                            "now --layers",
                            "always fused"};
    for (size_t i = 0; i < sizeof wanted / sizeof wanted[0]; i++) {
        if (!strstr(page, wanted[i])) {
            fail_msg("\"%s\" is missing in:\n%s", wanted[i], page);
        }
    }
    for (char *line = strtok(page, "\n"); line; line = strtok(NULL, "\n")) {
        assert_true(strlen(line) <= 100);
    }
}

static void peeking_changes_nothing(void **state)
{
    (void)state;
    char *args[] = {(char *)"--layers", (char *)"x", (char *)"--config=a.yaml", (char *)"--config", (char *)"b.yaml"};
    char *help[] = {(char *)"--nonsense", (char *)"-h"}, *hidden[] = {(char *)"--", (char *)"-h"};
    assert_string_equal(mc_config_peek_value(&table, 5, args, "--config"), "b.yaml");
    assert_string_equal(mc_config_peek_value(&table, 3, args, "--config"), "a.yaml");
    assert_null(mc_config_peek_value(&table, 2, args, "--config"));
    assert_true(mc_config_peek_switch(&table, 2, help, "--help"));
    assert_false(mc_config_peek_switch(&table, 5, args, "--help"));
    assert_false(mc_config_peek_switch(&table, 2, hidden, "--help"));
}

/* Every allocation fails once: the status is MC_NOMEM, nothing leaks. */
static void running_out_of_memory_leaks_nothing(void **state)
{
    (void)state;
    size_t before = mc_alloc_get_stats().live_blocks, nth = 0;
    mc_status st = MC_NOMEM;
    const char *path = yaml_file("keys: [a, b]\nname: n\nshape: square\nwindow: [1, 0]\n");
    char *args[] = {(char *)"--keys", (char *)"c", (char *)"--shape=round"}, said[4096], *text;
    while (st == MC_NOMEM) {
        mc_config c = {0};
        sample s;
        int saved = unit_capture_begin();
        mc_alloc_fail_at(++nth);
        st = mc_config_init(&c, &table, &s);
        if (st == MC_OK) {
            st = mc_config_file(&c, path);
            st = st == MC_OK ? mc_config_args(&c, 3, args) : st;
            if (st == MC_OK && (st = mc_config_text(&c, 0, &text)) == MC_OK) {
                mc_free(text);
            }
            mc_config_fini(&c);
        }
        mc_alloc_fail_at(0);
        unit_capture_end(saved, said, sizeof said);
        assert_int_equal(mc_alloc_get_stats().live_blocks, before);
        assert_true(nth < 1000);
    }
    assert_int_equal(st, MC_OK);
    assert_true(nth > 10);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults_stand_where_nothing_is_given),
        cmocka_unit_test(every_form_of_a_flag_is_read),
        cmocka_unit_test(values_do_not_point_into_argv),
        cmocka_unit_test(lists_take_commas_and_numbers_take_exponents),
        cmocka_unit_test(last_one_wins_and_a_file_gives_way),
        cmocka_unit_test(positional_arguments_are_read),
        cmocka_unit_test(bad_command_lines_are_refused),
        cmocka_unit_test(flags_without_effect_are_told_once),
        cmocka_unit_test(yaml_gives_the_same_options),
        cmocka_unit_test(bad_yaml_is_refused_with_its_line),
        cmocka_unit_test(printed_yaml_is_read_back),
        cmocka_unit_test(adopt_takes_shape_and_hints),
        cmocka_unit_test(help_page_shows_every_row),
        cmocka_unit_test(peeking_changes_nothing),
        cmocka_unit_test(running_out_of_memory_leaks_nothing),
    };
    return cmocka_run_group_tests_name("config", tests, NULL, NULL);
}
