/* Tables of planted faults: which run of a program finds which of them, and what it says. */
#ifndef TESTS_CUDA_STANDIN_PLANTED_H
#define TESTS_CUDA_STANDIN_PLANTED_H

#include "tests/cuda/standin/farm.h"
#include "tests/unit.h"

/* Ways to run a program. RACE: its instrumented build, with the race detector, under the policy that hides most. */
enum { EAGER = 1, LATE = 2, RANDOM = 4, RACE = 8, ALL = 15 };

enum { PLANTED_CLEAN = 0, PLANTED_WRONG = 1, PLANTED_ERROR = 3, PLANTED_MISUSE = 97, PLANTED_FAULT = 98 };

/* One outcome of one fault: in these ways the program ends with `status` and says `text`. A way that no row of a fault
 * names must be clean: status 0, and not a word from the stand-in. */
typedef struct planted {
    int fault;
    int ways;
    int status;
    const char *text;
} planted;

typedef struct planted_programs {
    const char *plain, *race;
} planted_programs;

/* Runs `program fault` with further settings of the environment, {"NAME=value", ..., NULL}. The result lives until the
 * next call. */
static inline const farm_result *planted_run(const char *program, int fault, const char *const *env)
{
    static farm_result result;
    char mode[16];
    snprintf(mode, sizeof mode, "%d", fault);
    farm_run(program, mode, 1, env, 60, &result);
    return &result;
}

static inline void planted_expect(const planted *row, const char *way, const farm_result *got)
{
    int status = row ? row->status : PLANTED_CLEAN;
    bool says = row ? strstr(got->text[0], row->text) != NULL : strstr(got->text[0], "standin[") == NULL;
    if (got->status[0] != status || !says) {
        farm_show(got);
        fail_msg("%s: status %d, expected %d and \"%s\"", way, got->status[0], status, row ? row->text : "nothing");
    }
}

static inline const planted *planted_find(const planted *rows, int n_rows, int fault, int way)
{
    for (int i = 0; i < n_rows; i++) {
        if (rows[i].fault == fault && rows[i].ways & way) {
            return &rows[i];
        }
    }
    return NULL;
}

/* Runs a fault eagerly, late and in the race detector, and compares each run with the table. */
static inline void planted_check(const planted_programs *programs, const planted *rows, int n_rows, int fault)
{
    static const char *const eager[] = {"STANDIN_POLICY=eager", NULL}, *const late[] = {"STANDIN_POLICY=late", NULL};
    static const char *const race[] = {"STANDIN_POLICY=eager", "STANDIN_RACE=1", NULL};
    char way[64];
    snprintf(way, sizeof way, "fault %d, eager", fault);
    planted_expect(planted_find(rows, n_rows, fault, EAGER), way, planted_run(programs->plain, fault, eager));
    snprintf(way, sizeof way, "fault %d, late", fault);
    planted_expect(planted_find(rows, n_rows, fault, LATE), way, planted_run(programs->plain, fault, late));
    snprintf(way, sizeof way, "fault %d, race detector", fault);
    planted_expect(planted_find(rows, n_rows, fault, RACE), way, planted_run(programs->race, fault, race));
}

/* How many of the seeds 1..n_seeds do not end with status 0. The stand-in may not say a word where `quiet`. */
static inline int planted_seeds(const char *program, int fault, int n_seeds, bool quiet)
{
    int n_found = 0;
    for (int seed = 1; seed <= n_seeds; seed++) {
        char policy[64];
        snprintf(policy, sizeof policy, "STANDIN_POLICY=random:%d", seed);
        const farm_result *got = planted_run(program, fault, (const char *[]){policy, NULL});
        n_found += got->status[0] != 0;
        if (quiet && strstr(got->text[0], "standin[")) {
            farm_show(got);
            fail_msg("fault %d, %s: the stand-in says something", fault, policy);
        }
    }
    return n_found;
}

#endif
