/* The command line. */
#include <ctype.h>
#include <string.h>

#include "megac/base/alloc.h"
#include "megac/base/config_impl.h"
#include "megac/base/log.h"

/* "-" (standard input) and negative numbers are values. */
static bool is_flag(const char *arg)
{
    return arg[0] == '-' && arg[1] != '\0' && !isdigit((unsigned char)arg[1]) && arg[1] != '.';
}

/* Splits "--flag=value": copies the name, returns the value or NULL. */
static const char *split_equals(const char *arg, char *name_out, size_t cap)
{
    size_t n = strcspn(arg, "=");
    snprintf(name_out, cap, "%.*s", (int)n, arg);
    return arg[n] == '=' ? arg + n + 1 : NULL;
}

typedef struct reader {
    mc_config *config;
    int n_args, at; /* at: next argument */
    char *const *args;
    int n_positional;        /* rows already filled */
    const char *last_switch; /* when the previous argument was one */
    bool flags_ended;        /* "--" was seen */
} reader;

static const mc_option *positional_row(const mc_option_table *table, int number)
{
    for (int i = 0, n = mc_option_count(table); i < n; i++) {
        const mc_option *row = mc_option_at(table, i);
        if (mc_i_option_has_field(row) && row->flags[0] != '-' && number-- == 0) {
            return row;
        }
    }
    return NULL;
}

static mc_status read_positional(reader *r)
{
    const char *arg = r->args[r->at];
    const mc_option *row = positional_row(r->config->table, r->n_positional++);
    if (!row && r->last_switch) {
        return MC_FAIL(MC_INVALID, "%s %s: %s takes no value; leave \"%s\" out", r->last_switch, arg, r->last_switch,
                       arg);
    }
    if (!row) {
        return MC_FAIL(MC_INVALID, "\"%s\": no flag before it takes this value; usage: %s", arg,
                       r->config->table->usage);
    }
    int n = 1;
    if (mc_i_option_arity(row) == MC_ARITY_MANY) {
        while (r->at + n < r->n_args && (r->flags_ended || !is_flag(r->args[r->at + n]))) {
            n++;
        }
    }
    const char *const *values = (const char *const *)(r->args + r->at);
    r->at += n;
    return mc_config_set(r->config, row, row->flags, n, values, MC_FROM_ARGS);
}

static mc_status read_flag(reader *r)
{
    char name[MC_I_WORD_BYTES];
    const char *equals = split_equals(r->args[r->at++], name, sizeof name);
    const mc_option *row = mc_option_find(r->config->table, name);
    if (!row) {
        return mc_i_config_unknown(r->config->table, name, name);
    }
    int arity = mc_i_option_arity(row), n = 0;
    const char *const *values = (const char *const *)(r->args + r->at);
    const char *on = "true";
    if (equals) {
        values = &equals;
        n = 1;
    } else if (arity == MC_ARITY_NONE) {
        values = &on;
        n = 1;
    } else {
        int most = arity == MC_ARITY_ONE ? 1 : r->n_args;
        while (n < most && r->at < r->n_args && !is_flag(r->args[r->at])) {
            n++;
            r->at++;
        }
    }
    if (n == 0) {
        bool dashed = r->at < r->n_args && strcmp(r->args[r->at], "--") != 0;
        return MC_FAIL(MC_INVALID, "%s: needs a value%s%s%s", name,
                       dashed ? "; one that begins with '-' is given as " : "", dashed ? name : "",
                       dashed ? "=VALUE" : "");
    }
    if (r->config->sources[mc_i_option_index(r->config->table, row)] == MC_FROM_ARGS) {
        MC_DEBUG("%s given again; the last one counts", name);
    }
    r->last_switch = arity == MC_ARITY_NONE ? r->args[r->at - 1] : NULL;
    return mc_config_set(r->config, row, name, n, values, MC_FROM_ARGS);
}

mc_status mc_config_args(mc_config *config, int n_args, char *const *args)
{
    reader r = {.config = config, .n_args = n_args, .args = args};
    while (r.at < n_args) {
        const char *arg = args[r.at];
        if (!r.flags_ended && strcmp(arg, "--") == 0) {
            r.flags_ended = true;
            r.at++;
        } else if (!r.flags_ended && is_flag(arg)) {
            MC_TRY(read_flag(&r));
        } else {
            MC_TRY(read_positional(&r));
            r.last_switch = NULL;
        }
    }
    return MC_OK;
}

bool mc_config_peek_switch(const mc_option_table *table, int n_args, char *const *args, const char *flag)
{
    const mc_option *wanted = mc_option_find(table, flag);
    for (int i = 0; i < n_args && strcmp(args[i], "--") != 0; i++) {
        if (is_flag(args[i]) && mc_option_find(table, args[i]) == wanted) {
            return true;
        }
    }
    return false;
}

const char *mc_config_peek_value(const mc_option_table *table, int n_args, char *const *args, const char *flag)
{
    const mc_option *wanted = mc_option_find(table, flag);
    const char *value = NULL;
    for (int i = 0; i < n_args && strcmp(args[i], "--") != 0; i++) {
        char name[MC_I_WORD_BYTES];
        const char *equals = split_equals(args[i], name, sizeof name);
        if (!is_flag(args[i]) || mc_option_find(table, name) != wanted) {
            continue;
        }
        if (equals) {
            value = equals;
        } else if (i + 1 < n_args && !is_flag(args[i + 1])) {
            value = args[i + 1];
        }
    }
    return value;
}
