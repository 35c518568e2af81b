/* Values back to text: "--flag value" lines and YAML. */
#include <stdlib.h>
#include <string.h>

#include "megac/base/alloc.h"
#include "megac/base/config_impl.h"
#include "megac/base/log.h"

void mc_i_float_text(double v, char *text_out, size_t cap)
{
    for (int digits = 1; digits <= 17; digits++) {
        snprintf(text_out, cap, "%.*g", digits, v);
        if (strtod(text_out, NULL) == v) {
            return;
        }
    }
}

/* Newline, tab, carriage return and backslash as in C. */
static void add_escaped(mc_i_text *text, const char *s)
{
    for (; *s; s++) {
        const char *special = strchr("\n\t\r\\", *s);
        if (special) {
            mc_i_text_add(text, "\\%c", "ntr\\"[special - "\n\t\r\\"]);
        } else {
            mc_i_text_add(text, "%c", *s);
        }
    }
}

/* A double-quoted YAML scalar. */
static void add_quoted(mc_i_text *text, const char *s)
{
    mc_i_text_add(text, "\"");
    for (; *s; s++) {
        unsigned char c = (unsigned char)*s;
        if (c == '"' || c == '\\') {
            mc_i_text_add(text, "\\%c", c);
        } else if (c < 0x20 || c == 0x7f) {
            mc_i_text_add(text, "\\x%02X", c);
        } else {
            mc_i_text_add(text, "%c", c);
        }
    }
    mc_i_text_add(text, "\"");
}

/* Appends the row's value; false and nothing appended when it has none. `yaml` quotes strings and brackets lists. */
static bool add_value(mc_i_text *text, const mc_config *config, const mc_option *row, bool yaml)
{
    const void *field = mc_i_config_field(config, row);
    const mc_int_list *ints = field;
    const mc_string_list *strings = field;
    const char *separator = yaml ? ", " : " ";
    void (*add)(mc_i_text *, const char *) = yaml ? add_quoted : add_escaped;
    char number[64];
    switch (row->kind) {
    case MC_OPTION_INT:
        if (mc_given_int(*(const int64_t *)field)) {
            mc_i_text_add(text, "%lld", (long long)*(const int64_t *)field);
            return true;
        }
        return false;
    case MC_OPTION_FLOAT:
        if (mc_given_float(*(const double *)field)) {
            mc_i_float_text(*(const double *)field, number, sizeof number);
            mc_i_text_add(text, "%s", number);
            return true;
        }
        return false;
    case MC_OPTION_SWITCH:
    case MC_OPTION_OFF:
        mc_i_text_add(text, *(const bool *)field == (row->kind == MC_OPTION_SWITCH) ? "true" : "false");
        return true;
    case MC_OPTION_INTS:
        for (int i = 0; i < ints->n; i++) {
            mc_i_text_add(text, "%s%lld", i ? separator : yaml ? "[" : "", (long long)ints->v[i]);
        }
        mc_i_text_add(text, ints->n && yaml ? "]" : "");
        return ints->n > 0;
    case MC_OPTION_STRINGS:
        for (int i = 0; i < strings->n; i++) {
            mc_i_text_add(text, "%s", i ? separator : yaml ? "[" : "");
            add(text, strings->v[i]);
        }
        mc_i_text_add(text, strings->n && yaml ? "]" : "");
        return strings->n > 0;
    default:
        if (*(const char *const *)field) {
            add(text, *(const char *const *)field);
        }
        return *(const char *const *)field != NULL;
    }
}

bool mc_config_value_text(const mc_config *config, const mc_option *row, char *text_out, size_t cap)
{
    mc_i_text text = {.status = MC_OK};
    bool given = add_value(&text, config, row, false) && text.status == MC_OK;
    snprintf(text_out, cap, "%s", given ? text.at : "");
    mc_free(text.at);
    return given;
}

mc_status mc_config_text(const mc_config *config, unsigned skip, char **text_out)
{
    mc_i_text text = {.status = MC_OK};
    char flag[MC_I_WORD_BYTES];
    mc_i_text_add(&text, "%s", "");
    for (int i = 0, n = mc_option_count(config->table); i < n; i++) {
        const mc_option *row = mc_option_at(config->table, i);
        if (!mc_i_option_has_field(row) || (row->bits & (skip | MC_OPTION_META))) {
            continue;
        }
        size_t line = text.used;
        mc_i_text_add(&text, "%s ", mc_option_flag(row, flag, sizeof flag));
        if (add_value(&text, config, row, false)) {
            mc_i_text_add(&text, "\n");
        } else if (text.status == MC_OK) {
            text.used = line; /* nobody gave it: no line */
            text.at[line] = '\0';
        }
    }
    if (text.status != MC_OK) {
        mc_free(text.at);
        return text.status;
    }
    *text_out = text.at;
    return MC_OK;
}

mc_status mc_config_print(const mc_config *config, FILE *out)
{
    mc_i_text text = {.status = MC_OK};
    char flag[MC_I_WORD_BYTES];
    for (int i = 0, n = mc_option_count(config->table); i < n; i++) {
        const mc_option *row = mc_option_at(config->table, i);
        if (row->kind == MC_OPTION_TITLE) {
            mc_i_text_add(&text, "# %s\n", row->help);
        } else if (mc_i_option_has_field(row) && !(row->bits & MC_OPTION_META)) {
            mc_option_flag(row, flag, sizeof flag);
            mc_i_text_add(&text, "%s: ", flag[0] == '-' ? flag + strspn(flag, "-") : row->field);
            mc_i_text_add(&text, "%s\n", add_value(&text, config, row, true) ? "" : "null");
        }
    }
    mc_status st = text.status;
    if (st == MC_OK && (fwrite(text.at, 1, text.used, out) != text.used || fflush(out) != 0)) {
        st = MC_FAIL(MC_IO, "the list of options could not be written");
    }
    mc_free(text.at);
    return st;
}

/* Value of `flag` in the lines of `text`, with escapes undone, in memory of the config; NULL when it has no line. */
static mc_status value_of_line(mc_config *config, const char *text, const char *flag, char **value_out)
{
    size_t n = strlen(flag);
    *value_out = NULL;
    for (const char *line = text; *line; line += strcspn(line, "\n"), line += *line == '\n') {
        if (strncmp(line, flag, n) != 0 || line[n] != ' ') {
            continue;
        }
        const char *from = line + n + 1, *end = from + strcspn(from, "\n");
        void *copy;
        MC_TRY(mc_config_alloc(config, (size_t)(end - from) + 1, &copy));
        char *to = copy;
        *value_out = to;
        while (from < end) {
            const char *escape = from[0] == '\\' && from + 1 < end ? strchr("ntr\\", from[1]) : NULL;
            *to++ = escape ? "\n\t\r\\"[escape - "ntr\\"] : from[0];
            from += escape ? 2 : 1;
        }
        *to = '\0';
        return MC_OK;
    }
    return MC_OK;
}

static mc_status adopt_row(mc_config *config, const mc_option *row, const char *where, const char *text)
{
    char flag[MC_I_WORD_BYTES], place[2 * MC_I_WORD_BYTES], before[256], after[256];
    int index = mc_i_option_index(config->table, row);
    bool given = config->sources[index] != MC_FROM_DEFAULT;
    if (given && !(row->bits & MC_OPTION_SHAPE)) {
        return MC_OK;
    }
    bool had = mc_config_value_text(config, row, before, sizeof before);
    mc_option_flag(row, flag, sizeof flag);
    char *value;
    MC_TRY(value_of_line(config, text, flag, &value));
    if (value) {
        snprintf(place, sizeof place, "%s: %s", where, flag);
        MC_TRY(mc_config_set(config, row, place, 1, (const char *const[]){value}, MC_FROM_CHECKPOINT));
    } else if (row->bits & MC_OPTION_SHAPE) {
        MC_TRY(mc_config_reset(config, row, MC_FROM_CHECKPOINT));
    }
    bool has = mc_config_value_text(config, row, after, sizeof after);
    if (given && (had != has || strcmp(before, after) != 0)) {
        MC_WARN("%s %s: %s says %s, which counts", flag, before, where, has ? after : "it is not given");
    }
    return MC_OK;
}

mc_status mc_config_adopt(mc_config *config, const char *where, const char *text)
{
    for (int i = 0, n = mc_option_count(config->table); i < n; i++) {
        const mc_option *row = mc_option_at(config->table, i);
        if (mc_i_option_has_field(row) && (row->bits & (MC_OPTION_SHAPE | MC_OPTION_HINT))) {
            MC_TRY(adopt_row(config, row, where, text));
        }
    }
    return MC_OK;
}

mc_status mc_config_differences(mc_config *config, const char *text, char *list_out, size_t cap)
{
    char flag[MC_I_WORD_BYTES], here[256];
    size_t used = 0;
    list_out[0] = '\0';
    for (int i = 0, n = mc_option_count(config->table); i < n; i++) {
        const mc_option *row = mc_option_at(config->table, i);
        if (!mc_i_option_has_field(row) || !(row->bits & MC_OPTION_SHAPE) || (row->bits & MC_OPTION_LOOSE)) {
            continue;
        }
        char *there;
        mc_option_flag(row, flag, sizeof flag);
        MC_TRY(value_of_line(config, text, flag, &there));
        bool has = mc_config_value_text(config, row, here, sizeof here);
        bool unknown = (row->bits & MC_OPTION_DERIVED) && (!has || !there);
        if (unknown || (has == (there != NULL) && (!has || strcmp(here, there) == 0))) {
            continue;
        }
        if (used < cap) {
            int len = snprintf(list_out + used, cap - used, "%s%s %s (there %s)", used ? ", " : "", flag,
                               has ? here : "not given", there ? there : "not given");
            used += len > 0 ? (size_t)len : 0;
        }
    }
    return MC_OK;
}
