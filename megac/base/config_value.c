/* Text to field: types, ranges, words, and the rows that have no field. */
#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "megac/base/config_impl.h"
#include "megac/base/log.h"

/* "[1,)": ends that are empty do not limit. */
typedef struct interval {
    double low, high;
    bool low_open, high_open;
} interval;

static interval parse_interval(const char *text)
{
    interval in = {.low = -INFINITY, .high = INFINITY};
    if (!text || !text[0]) {
        return in;
    }
    const char *comma = strchr(text, ','), *end = text + strlen(text) - 1;
    MC_ASSERT(strchr("[(", text[0]) && comma && strchr("])", *end));
    in.low_open = text[0] == '(';
    in.high_open = *end == ')';
    if (comma > text + 1) {
        in.low = strtod(text + 1, NULL);
    }
    if (end > comma + 1) {
        in.high = strtod(comma + 1, NULL);
    }
    return in;
}

void mc_i_interval_text(const char *text, char *text_out, size_t cap)
{
    interval in = parse_interval(text);
    char low[48] = "", high[48] = "";
    if (!isinf(in.low)) {
        snprintf(low, sizeof low, "%s %.12g", in.low_open ? "above" : "at least", in.low);
    }
    if (!isinf(in.high)) {
        snprintf(high, sizeof high, "%s %.12g", in.high_open ? "below" : "at most", in.high);
    }
    snprintf(text_out, cap, "%s%s%s", low, low[0] && high[0] ? " and " : "", high);
}

static mc_status check_interval(const mc_option *row, const char *where, const char *text, double v)
{
    interval in = parse_interval(row->check);
    bool low_ok = in.low_open ? v > in.low : v >= in.low;
    bool high_ok = in.high_open ? v < in.high : v <= in.high;
    if (low_ok && high_ok) {
        return MC_OK;
    }
    char range[128];
    mc_i_interval_text(row->check, range, sizeof range);
    return MC_FAIL(MC_INVALID, "%s %s: must be %s", where, text, range);
}

static mc_status parse_int(const mc_option *row, const char *where, const char *text, int64_t *out)
{
    char *end;
    errno = 0;
    long long v = strtoll(text, &end, 10);
    bool ok = end != text && *end == '\0' && !isspace((unsigned char)text[0]);
    if (ok && (errno == ERANGE || v == MC_UNSET_INT)) {
        return MC_FAIL(MC_INVALID, "%s %s: too large for a 64-bit whole number", where, text);
    }
    if (!ok && end != text && strpbrk(text, "eE")) {
        const double exact = 9007199254740992.0; /* 2^53: beyond it a double skips whole numbers */
        double d = strtod(text, &end);
        ok = *end == '\0' && d == floor(d) && fabs(d) <= exact;
        v = ok ? (long long)d : 0;
    }
    if (!ok) {
        bool suffix = end != text && end[0] && strchr("kKmMbBgGtT", end[0]) && !end[1];
        return MC_FAIL(MC_INVALID, "%s: \"%s\" is not a whole number; give one such as %s", where, text,
                       suffix ? "2400000 or 2.4e6 (no K, M, B or T)" : "12 or 1e6");
    }
    MC_TRY(check_interval(row, where, text, (double)v));
    *out = v;
    return MC_OK;
}

static mc_status parse_float(const mc_option *row, const char *where, const char *text, double *out)
{
    char *end;
    double v = strtod(text, &end);
    if (end == text || *end != '\0' || isspace((unsigned char)text[0]) || strpbrk(text, "xX")) {
        return MC_FAIL(MC_INVALID, "%s: \"%s\" is not a number; give one such as 0.1 or 3e-4", where, text);
    }
    if (!isfinite(v)) {
        return MC_FAIL(MC_INVALID, "%s: %s is not a finite number", where, text);
    }
    MC_TRY(check_interval(row, where, text, v));
    *out = v;
    return MC_OK;
}

static mc_status parse_bool(const char *where, const char *text, bool *out)
{
    static const char *const yes[] = {"true", "yes", "on"}, *const no[] = {"false", "no", "off"};
    for (int i = 0; i < 3; i++) {
        if (strcasecmp(text, yes[i]) == 0 || strcasecmp(text, no[i]) == 0) {
            *out = strcasecmp(text, yes[i]) == 0;
            return MC_OK;
        }
    }
    return MC_FAIL(MC_INVALID, "%s: \"%s\" is neither true nor false", where, text);
}

static mc_status parse_choice(mc_config *config, const mc_option *row, const char *where, const char *text,
                              const char **out)
{
    char words[512], word[MC_I_WORD_BYTES];
    snprintf(words, sizeof words, "%s", row->check);
    char *unavailable = strchr(words, '!');
    if (unavailable) {
        *unavailable++ = '\0';
        unavailable[-2] = '\0'; /* the blank before '!' */
    }
    const char *cursor = words;
    while (mc_i_next_word(&cursor, "|", word, sizeof word)) {
        if (strcmp(word, text) == 0) {
            return mc_config_strdup(config, text, out);
        }
    }
    cursor = unavailable ? unavailable : "";
    while (mc_i_next_word(&cursor, "|", word, sizeof word)) {
        if (strcmp(word, text) == 0) {
            return MC_FAIL(MC_UNSUPPORTED, "%s %s: not available in this release; choose one of %s", where, text,
                           words);
        }
    }
    return MC_FAIL(MC_INVALID, "%s \"%s\": unknown word; choose one of %s", where, text, words);
}

static mc_status parse_ints(mc_config *config, const mc_option *row, const char *where, int n,
                            const char *const *values, mc_int_list *out)
{
    char word[MC_I_WORD_BYTES];
    int count = 0;
    for (int i = 0; i < n; i++) {
        for (const char *c = values[i]; mc_i_next_word(&c, ", \t", word, sizeof word);) {
            count++;
        }
    }
    if (count == 0) {
        return MC_FAIL(MC_INVALID, "%s: needs whole numbers; give for example 128 0", where);
    }
    mc_int_list list = {.n = 0};
    MC_TRY(mc_config_alloc(config, (size_t)count * sizeof *list.v, (void **)&list.v));
    for (int i = 0; i < n; i++) {
        for (const char *c = values[i]; mc_i_next_word(&c, ", \t", word, sizeof word);) {
            MC_TRY(parse_int(row, where, word, &list.v[list.n++]));
        }
    }
    *out = list;
    return MC_OK;
}

static mc_status parse_string(mc_config *config, const char *where, const char *text, const char **out)
{
    if (text[0] == '\0') {
        return MC_FAIL(MC_INVALID, "%s: the value is empty; leave the flag out instead", where);
    }
    return mc_config_strdup(config, text, out);
}

static mc_status parse_strings(mc_config *config, const char *where, int n, const char *const *values,
                               mc_string_list *out)
{
    mc_string_list list = {.n = n};
    MC_TRY(mc_config_alloc(config, (size_t)n * sizeof *list.v, (void **)&list.v));
    for (int i = 0; i < n; i++) {
        MC_TRY(parse_string(config, where, values[i], &list.v[i]));
    }
    *out = list;
    return MC_OK;
}

/* A row that has a field gets its value. */
static mc_status set_field(mc_config *config, const mc_option *row, const char *where, int n, const char *const *values)
{
    void *field = mc_i_config_field(config, row);
    bool on;
    switch (row->kind) {
    case MC_OPTION_INT:
        return parse_int(row, where, values[0], (int64_t *)field);
    case MC_OPTION_FLOAT:
        return parse_float(row, where, values[0], (double *)field);
    case MC_OPTION_SWITCH:
    case MC_OPTION_OFF:
        MC_TRY(parse_bool(where, values[0], &on));
        *(bool *)field = on == (row->kind == MC_OPTION_SWITCH);
        return MC_OK;
    case MC_OPTION_STRING:
        return parse_string(config, where, values[0], (const char **)field);
    case MC_OPTION_CHOICE:
        return parse_choice(config, row, where, values[0], (const char **)field);
    case MC_OPTION_INTS:
        return parse_ints(config, row, where, n, values, (mc_int_list *)field);
    case MC_OPTION_STRINGS:
        return parse_strings(config, where, n, values, (mc_string_list *)field);
    default:
        MC_ASSERT(!"row without a field");
        return MC_OK;
    }
}

static mc_status set_old(mc_config *config, const mc_option *row, const char *where, int n, const char *const *values,
                         mc_source source)
{
    bool on = true;
    if (row->arity == MC_ARITY_NONE) {
        MC_TRY(parse_bool(where, values[0], &on));
    }
    if (!on) {
        return MC_OK;
    }
    char flag[MC_I_WORD_BYTES], fixed[MC_I_WORD_BYTES], place[2 * MC_I_WORD_BYTES];
    const char *cursor = row->check, *word = fixed;
    mc_i_next_word(&cursor, " ", flag, sizeof flag);
    const mc_option *to = mc_option_find(config->table, flag);
    MC_ASSERT(to && to->kind != MC_OPTION_OLD);
    if (mc_i_next_word(&cursor, "", fixed, sizeof fixed)) {
        memmove(fixed, fixed + strspn(fixed, " "), strlen(fixed + strspn(fixed, " ")) + 1);
        n = 1;
        values = &word;
    }
    snprintf(place, sizeof place, "%s (now %s)", where, row->check);
    MC_TRY(mc_config_set(config, to, place, n, values, source));
    if (mc_i_option_has_field(to)) {
        MC_INFO("%s: old spelling, taken as %s%s%s", where, row->check, row->help[0] ? "; " : "", row->help);
    }
    return MC_OK;
}

static mc_status set_unavailable(const mc_option *row, const char *where, int n, const char *const *values)
{
    if (row->arity == MC_ARITY_NONE) {
        bool on;
        MC_TRY(parse_bool(where, values[0], &on));
        return on ? MC_FAIL(MC_UNSUPPORTED, "%s: %s", where, row->help) : MC_OK;
    }
    if (row->check && n == 1 && strcmp(values[0], row->check) == 0) {
        return MC_OK;
    }
    return MC_FAIL(MC_UNSUPPORTED, "%s %s: %s", where, n > 0 ? values[0] : "", row->help);
}

mc_status mc_config_set(mc_config *config, const mc_option *row, const char *where, int n_values,
                        const char *const *values, mc_source source)
{
    MC_ASSERT(n_values > 0 || row->arity == MC_ARITY_MANY);
    unsigned char *set_by = &config->sources[mc_i_option_index(config->table, row)];
    switch (row->kind) {
    case MC_OPTION_TITLE:
        MC_ASSERT(!"a heading has no value");
        break;
    case MC_OPTION_NO_EFFECT:
        if (*set_by == MC_FROM_DEFAULT) {
            MC_INFO("%s: %s; ignored", where, row->help);
        }
        break;
    case MC_OPTION_UNAVAILABLE:
        MC_TRY(set_unavailable(row, where, n_values, values));
        break;
    case MC_OPTION_OLD:
        MC_TRY(set_old(config, row, where, n_values, values, source));
        break;
    default:
        MC_TRY(set_field(config, row, where, n_values, values));
    }
    *set_by = (unsigned char)source;
    return MC_OK;
}

mc_status mc_config_reset(mc_config *config, const mc_option *row, mc_source source)
{
    MC_ASSERT(mc_i_option_has_field(row));
    void *field = mc_i_config_field(config, row);
    char flag[MC_I_WORD_BYTES];
    config->sources[mc_i_option_index(config->table, row)] = (unsigned char)source;
    switch (row->kind) {
    case MC_OPTION_INT:
        *(int64_t *)field = MC_UNSET_INT;
        break;
    case MC_OPTION_FLOAT:
        *(double *)field = (double)NAN;
        break;
    case MC_OPTION_SWITCH:
    case MC_OPTION_OFF:
        *(bool *)field = row->kind == MC_OPTION_OFF;
        break;
    case MC_OPTION_INTS:
        *(mc_int_list *)field = (mc_int_list){.n = 0};
        break;
    case MC_OPTION_STRINGS:
        *(mc_string_list *)field = (mc_string_list){.n = 0};
        break;
    default:
        *(const char **)field = NULL;
    }
    if (!row->preset) {
        return MC_OK;
    }
    return set_field(config, row, mc_option_flag(row, flag, sizeof flag), 1, &row->preset);
}
