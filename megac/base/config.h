/* Options: from rows to a filled struct, and everything that follows from a row: command line, YAML file, range check,
 * help page, dump.
 *
 *   <folder>_options.def    rows, written once (option_fields.def says what a row holds)
 *        |            \
 *   fields of a struct   mc_option[]  --->  mc_config_defaults / _file / _args  --->  the struct, and who set each
 * field
 *
 * A later source wins: default, then file, then command line. The engine knows no option by name; what options mean
 * together is checked by their owner. */
#ifndef MEGAC_BASE_CONFIG_H
#define MEGAC_BASE_CONFIG_H

#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "megac/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* An int, a float, a string or a list that nobody gave is MC_UNSET_INT, a NAN, NULL, or has v == NULL. */
#define MC_UNSET_INT INT64_MIN
static inline bool mc_given_int(int64_t v)
{
    return v != MC_UNSET_INT;
}
static inline bool mc_given_float(double v)
{
    return !isnan(v);
}

typedef struct mc_int_list {
    int64_t *v;
    int n;
} mc_int_list;

typedef struct mc_string_list {
    const char **v;
    int n;
} mc_string_list;

typedef enum {
    MC_OPTION_INT,     /* int64_t; "4096", also "1e6" where that is a whole number */
    MC_OPTION_FLOAT,   /* double, finite */
    MC_OPTION_SWITCH,  /* bool; the flag makes it true */
    MC_OPTION_OFF,     /* bool; the flag ("--no-x") makes it false */
    MC_OPTION_STRING,  /* const char * */
    MC_OPTION_CHOICE,  /* const char *, one of the row's words */
    MC_OPTION_INTS,    /* mc_int_list; values up to the next flag, blanks or commas between them */
    MC_OPTION_STRINGS, /* mc_string_list; values up to the next flag */
    /* Rows without a field. */
    MC_OPTION_TITLE,       /* heading of the rows that follow, on the help page */
    MC_OPTION_NO_EFFECT,   /* known, accepted, told once */
    MC_OPTION_UNAVAILABLE, /* known, refused with the reason */
    MC_OPTION_OLD,         /* another spelling of other flags */
} mc_option_kind;

enum {
    MC_OPTION_LOCAL = 1 << 0,   /* may differ between ranks and runs: not part of mc_config_text */
    MC_OPTION_META = 1 << 1,    /* steers the reading itself (--help): command line only, never dumped */
    MC_OPTION_DERIVED = 1 << 2, /* filled in by the owner when not given; the help text says how */
    MC_OPTION_SHAPE = 1 << 3,   /* describes what a checkpoint holds: mc_config_adopt takes it from there */
    MC_OPTION_HINT = 1 << 4,    /* mc_config_adopt takes it where nobody gave it */
    MC_OPTION_LOOSE = 1 << 5,   /* of kind SHAPE, yet mc_config_differences passes it over: another option says it too,
                                   or it may differ */
};

/* How many values a row without a field takes. */
enum { MC_ARITY_NONE, MC_ARITY_ONE, MC_ARITY_MANY };

typedef struct mc_option {
    mc_option_kind kind;
    const char *field; /* member name; also a key of the YAML file */
    /* Spellings separated by blanks, the canonical one first. Without leading dash: a positional argument. A row of
     * kind UNAVAILABLE may have patterns of fnmatch(3). */
    const char *flags;
    const char *preset; /* default as text; NULL: none */
    /* INT, FLOAT and INTS: interval such as "[1,)" or "(0,1]" that every value lies in. CHOICE: "a|b", and after '!'
     * the words that Megatron-LM knows and we do not ("adam|sgd !muon|lion"). UNAVAILABLE: value that asks for nothing
     * and is let through. OLD: what it stands for, "--norm-epsilon" or "--fp8-format e4m3". */
    const char *check;
    unsigned bits;
    int arity;
    const char *megatron; /* Megatron-LM's default where it is another one */
    const char *help;     /* what it does, with unit; for rows without a field why they are so */
    size_t offset;        /* of the field in the struct */
} mc_option;

typedef struct mc_option_set {
    const mc_option *rows;
    int n;
} mc_option_set;

enum { MC_OPTION_MAX_SETS = 4 };

/* The options of one command. */
typedef struct mc_option_table {
    const char *usage;   /* "megac train [flags]" */
    const char *summary; /* one sentence */
    mc_option_set sets[MC_OPTION_MAX_SETS];
    int n_sets;
} mc_option_table;

typedef enum { MC_FROM_DEFAULT, MC_FROM_FILE, MC_FROM_CHECKPOINT, MC_FROM_ARGS, MC_FROM_DERIVED } mc_source;

/* A reading in progress and what it owns: strings and lists of the struct live until mc_config_fini. */
typedef struct mc_config {
    const mc_option_table *table;
    void *target;
    unsigned char *sources; /* mc_source by row number */
    struct mc_config_block *blocks;
} mc_config;

/* Row `index` of all sets (0 <= index < mc_option_count). */
int mc_option_count(const mc_option_table *table);
const mc_option *mc_option_at(const mc_option_table *table, int index);
/* The row that has `flag` among its spellings or patterns; NULL when none has. */
const mc_option *mc_option_find(const mc_option_table *table, const char *flag);
/* The row of YAML key or field `key`, '-' and '_' being equal; NULL when there is none. */
const mc_option *mc_option_find_key(const mc_option_table *table, const char *key);
/* The known spelling nearest to `flag` by edit distance; NULL when none is near. `flag_out` has `cap` bytes. */
const char *mc_option_nearest(const mc_option_table *table, const char *flag, char *flag_out, size_t cap);
/* Copies the canonical spelling to `flag_out` and returns it. */
const char *mc_option_flag(const mc_option *row, char *flag_out, size_t cap);

/* Starts a reading: every field gets its default. The table outlives the config. */
mc_status mc_config_init(mc_config *config, const mc_option_table *table, void *target) MC_MUST_CHECK;
void mc_config_fini(mc_config *config);

/* Reads `args` (what follows the command's name). Forms: --flag value, --flag=value, --switch; a list takes the values
 * up to the next flag; "--" ends the flags. The last one of a flag given twice wins. MC_INVALID names flag, value and
 * remedy; MC_UNSUPPORTED a known flag or word that this program does not have. */
mc_status mc_config_args(mc_config *config, int n_args, char *const *args) MC_MUST_CHECK;
/* First pass over a command line, without any effect: was a switch of kind META given, and the last value of a flag.
 * Never fails: what cannot be understood is left to mc_config_args. */
bool mc_config_peek_switch(const mc_option_table *table, int n_args, char *const *args, const char *flag);
const char *mc_config_peek_value(const mc_option_table *table, int n_args, char *const *args, const char *flag);

/* Reads a YAML file: keys are flags without their dashes ('-' and '_' are equal) or field names; scalars and
 * sequences; nested maps only group. `null` leaves an option alone. MC_NOTFOUND, MC_INVALID with file:line. */
mc_status mc_config_file(mc_config *config, const char *path) MC_MUST_CHECK;

/* Sets one row from text. `where` begins the messages: "--lr" or "run.yaml:7: lr". Switches take true or false. */
mc_status mc_config_set(mc_config *config, const mc_option *row, const char *where, int n_values,
                        const char *const *values, mc_source source) MC_MUST_CHECK;
/* Puts the row's default back. */
mc_status mc_config_reset(mc_config *config, const mc_option *row, mc_source source) MC_MUST_CHECK;

/* Of a field of the target struct: where its value comes from, and its flag for messages. */
mc_source mc_config_source(const mc_config *config, const void *field);
/* Note that the owner filled the field in. */
void mc_config_set_source(mc_config *config, const void *field, mc_source source);
/* Memory that lives as long as the config, zero-filled. */
mc_status mc_config_alloc(mc_config *config, size_t bytes, void **out) MC_MUST_CHECK;
mc_status mc_config_strdup(mc_config *config, const char *text, const char **out) MC_MUST_CHECK;

/* "--flag value" lines in row order: options that have a value, without rows that have a bit of `skip`. Newlines and
 * backslashes in strings are escaped; lists are joined by blanks. Freed with mc_free. */
mc_status mc_config_text(const mc_config *config, unsigned skip, char **text_out) MC_MUST_CHECK;
/* The value of a row as in mc_config_text; false when it has none. Truncated to `cap`. */
bool mc_config_value_text(const mc_config *config, const mc_option *row, char *text_out, size_t cap);
/* Takes options of kind SHAPE (with a warning where the command line or a file said otherwise) and of kind HINT (where
 * nobody did) from `text`, written by mc_config_text; a SHAPE option without a line there gets its default. `where`
 * begins the messages. */
mc_status mc_config_adopt(mc_config *config, const char *where, const char *text) MC_MUST_CHECK;
/* Lists the options of kind SHAPE that say otherwise than `text`, as "--flag value (there value)" with commas between,
 * truncated to `cap`; "" when all agree. DERIVED options that one side lacks are not known yet and agree. */
mc_status mc_config_differences(mc_config *config, const char *text, char *list_out, size_t cap) MC_MUST_CHECK;
/* Every option but META rows as YAML that mc_config_file reads back; options nobody set are `null`. */
mc_status mc_config_print(const mc_config *config, FILE *out) MC_MUST_CHECK;
/* The help page, wrapped to 100 columns. */
mc_status mc_config_help(const mc_option_table *table, FILE *out) MC_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
