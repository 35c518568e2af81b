/* For the tests of the flags: a command line as one text, and what was said about it. */
#ifndef TESTS_TRAIN_OPTIONS_RUN_H
#define TESTS_TRAIN_OPTIONS_RUN_H

#include "megac/base/alloc.h"
#include "megac/train/options/options.h"
#include "tests/unit.h"

enum { RUN_MAX_ARGS = 256, RUN_SAID_BYTES = 16384 };

/* A small model that trains on one rank. */
#define GOOD                                                                                                \
    "--num-layers 4 --hidden-size 64 --num-attention-heads 4 --seq-length 32 --max-position-embeddings 32 " \
    "--micro-batch-size 2 --lr 1e-3 --mock-data --vocab-size 100 "
#define GOOD_RUN GOOD "--train-iters 10 "

/* Cuts `line` at blanks in place; "..." keeps them. */
static inline int run_split(char *line, char **args)
{
    int n = 0;
    for (char *p = line; *p;) {
        p += strspn(p, " \n");
        if (!*p) {
            break;
        }
        assert_true(n < RUN_MAX_ARGS);
        char *end = *p == '"' ? strchr(++p, '"') : p + strcspn(p, " \n");
        assert_non_null(end);
        args[n++] = p;
        p = *end ? end + 1 : end;
        *end = '\0';
    }
    return n;
}

/* Parses and finishes; *o_out is NULL unless MC_OK. `said` (RUN_SAID_BYTES) gets standard error. */
static inline mc_status run_options(mt_command command, int world, const char *line, char *said, mt_options **o_out)
{
    static char copy[RUN_SAID_BYTES];
    char *args[RUN_MAX_ARGS];
    bool done = true;
    snprintf(copy, sizeof copy, "%s", line);
    int n = run_split(copy, args), saved = unit_capture_begin();
    mc_status st = mt_options_parse(command, n, args, o_out, &done);
    if (st == MC_OK && !done) {
        st = mt_options_finish(*o_out, world);
        if (st != MC_OK) {
            mt_options_free(*o_out);
            *o_out = NULL;
        }
    }
    unit_capture_end(saved, said, RUN_SAID_BYTES);
    return st;
}

/* Options of a command line that is right; anything else fails the test. */
static inline mt_options *good(mt_command command, int world, const char *line, char *said)
{
    mt_options *o = NULL;
    mc_status st = run_options(command, world, line, said, &o);
    if (st != MC_OK) {
        fail_msg("%s\n%s", line, said);
    }
    return o;
}

/* Teardown: every block was freed. */
static inline int nothing_leaked(void **state)
{
    (void)state;
    return (int)mc_alloc_report_leaks();
}

#endif
