/* Rows and their names, where values come from, and the memory that a reading owns. */
#include "megac/base/config.h"

#include <ctype.h>
#include <fnmatch.h>
#include <stdarg.h>
#include <string.h>

#include "megac/base/alloc.h"
#include "megac/base/config_impl.h"

struct mc_config_block {
    struct mc_config_block *next;
    uint64_t align_pad;
    unsigned char data[];
};

bool mc_i_next_word(const char **cursor, const char *separators, char *word_out, size_t cap)
{
    const char *begin = *cursor + strspn(*cursor, separators);
    size_t n = strcspn(begin, separators);
    *cursor = begin + n;
    size_t kept = n < cap ? n : cap - 1;
    memcpy(word_out, begin, kept);
    word_out[kept] = '\0';
    return n > 0;
}

bool mc_i_option_has_field(const mc_option *row)
{
    return row->kind < MC_OPTION_TITLE;
}

int mc_i_option_arity(const mc_option *row)
{
    switch (row->kind) {
    case MC_OPTION_SWITCH:
    case MC_OPTION_OFF:
        return MC_ARITY_NONE;
    case MC_OPTION_INTS:
    case MC_OPTION_STRINGS:
        return MC_ARITY_MANY;
    case MC_OPTION_TITLE:
    case MC_OPTION_NO_EFFECT:
    case MC_OPTION_UNAVAILABLE:
    case MC_OPTION_OLD:
        return row->arity;
    default:
        return MC_ARITY_ONE;
    }
}

int mc_option_count(const mc_option_table *table)
{
    int n = 0;
    for (int s = 0; s < table->n_sets; s++) {
        n += table->sets[s].n;
    }
    return n;
}

const mc_option *mc_option_at(const mc_option_table *table, int index)
{
    for (int s = 0; s < table->n_sets; s++) {
        if (index < table->sets[s].n) {
            return &table->sets[s].rows[index];
        }
        index -= table->sets[s].n;
    }
    MC_ASSERT(!"option index out of range");
    return NULL;
}

int mc_i_option_index(const mc_option_table *table, const mc_option *row)
{
    int first = 0;
    for (int s = 0; s < table->n_sets; s++) {
        const mc_option_set *set = &table->sets[s];
        if (row >= set->rows && row < set->rows + set->n) {
            return first + (int)(row - set->rows);
        }
        first += set->n;
    }
    MC_ASSERT(!"row is not of this table");
    return -1;
}

const mc_option *mc_option_find(const mc_option_table *table, const char *flag)
{
    char word[MC_I_WORD_BYTES];
    const mc_option *by_pattern = NULL;
    for (int i = 0, n = mc_option_count(table); i < n; i++) {
        const mc_option *row = mc_option_at(table, i);
        const char *cursor = row->flags;
        while (mc_i_next_word(&cursor, " ", word, sizeof word)) {
            if (strcmp(word, flag) == 0) {
                return row;
            }
            if (row->kind == MC_OPTION_UNAVAILABLE && !by_pattern && strchr(word, '*') && fnmatch(word, flag, 0) == 0) {
                by_pattern = row;
            }
        }
    }
    return by_pattern;
}

bool mc_i_same_key(const char *a, const char *b)
{
    for (; *a && *b; a++, b++) {
        if (*a != *b && !((*a == '-' || *a == '_') && (*b == '-' || *b == '_'))) {
            return false;
        }
    }
    return *a == *b;
}

const mc_option *mc_option_find_key(const mc_option_table *table, const char *key)
{
    char word[MC_I_WORD_BYTES];
    const mc_option *by_field = NULL;
    for (int i = 0, n = mc_option_count(table); i < n; i++) {
        const mc_option *row = mc_option_at(table, i);
        const char *cursor = row->flags;
        while (mc_i_next_word(&cursor, " ", word, sizeof word)) {
            if (mc_i_same_key(word + strspn(word, "-"), key)) {
                return row;
            }
        }
        if (row->field && mc_i_same_key(row->field, key)) {
            by_field = row;
        }
    }
    if (by_field) {
        return by_field;
    }
    snprintf(word, sizeof word, "--%s", key);
    return mc_option_find(table, word); /* by pattern */
}

const char *mc_option_flag(const mc_option *row, char *flag_out, size_t cap)
{
    const char *cursor = row->flags;
    mc_i_next_word(&cursor, " ", flag_out, cap);
    return flag_out;
}

static int fold(char c)
{
    return c == '_' ? '-' : tolower((unsigned char)c);
}

/* Levenshtein distance without regard to case and to '_' against '-'. */
static int distance(const char *a, const char *b)
{
    int row[MC_I_WORD_BYTES + 1], n = (int)strlen(b);
    for (int j = 0; j <= n; j++) {
        row[j] = j;
    }
    for (int i = 1; a[i - 1]; i++) {
        int diagonal = row[0];
        row[0] = i;
        for (int j = 1; j <= n; j++) {
            int best = diagonal + (fold(a[i - 1]) != fold(b[j - 1]));
            best = row[j] + 1 < best ? row[j] + 1 : best;
            best = row[j - 1] + 1 < best ? row[j - 1] + 1 : best;
            diagonal = row[j];
            row[j] = best;
        }
    }
    return row[n];
}

const char *mc_option_nearest(const mc_option_table *table, const char *flag, char *flag_out, size_t cap)
{
    char word[MC_I_WORD_BYTES];
    int best = (int)strlen(flag) / 3 + 1; /* farther ones help nobody */
    bool found = false;
    for (int i = 0, n = mc_option_count(table); i < n; i++) {
        const mc_option *row = mc_option_at(table, i);
        const char *cursor = row->flags;
        while (row->flags[0] == '-' && mc_i_next_word(&cursor, " ", word, sizeof word)) {
            int d = strchr(word, '*') ? best + 1 : distance(flag, word);
            if (d < best || (d == best && !found)) {
                best = d;
                found = true;
                snprintf(flag_out, cap, "%s", word);
            }
        }
    }
    return found ? flag_out : NULL;
}

mc_status mc_i_config_unknown(const mc_option_table *table, const char *where, const char *flag)
{
    char near[MC_I_WORD_BYTES];
    if (mc_option_nearest(table, flag, near, sizeof near)) {
        return MC_FAIL(MC_INVALID, "%s: unknown flag; did you mean %s?", where, near);
    }
    return MC_FAIL(MC_INVALID, "%s: unknown flag; --help lists the known ones", where);
}

mc_status mc_config_alloc(mc_config *config, size_t bytes, void **out)
{
    struct mc_config_block *block;
    MC_TRY(mc_alloc(1, sizeof *block + bytes, "option values", (void **)&block));
    block->next = config->blocks;
    config->blocks = block;
    *out = block->data;
    return MC_OK;
}

mc_status mc_config_strdup(mc_config *config, const char *text, const char **out)
{
    void *copy;
    size_t bytes = strlen(text) + 1;
    MC_TRY(mc_config_alloc(config, bytes, &copy));
    memcpy(copy, text, bytes);
    *out = (const char *)copy;
    return MC_OK;
}

mc_status mc_config_init(mc_config *config, const mc_option_table *table, void *target)
{
    mc_config fresh = {.table = table, .target = target};
    int n = mc_option_count(table);
    mc_status st = MC_NEW_N(&fresh.sources, n, "option sources");
    for (int i = 0; i < n && st == MC_OK; i++) {
        const mc_option *row = mc_option_at(table, i);
        if (mc_i_option_has_field(row)) {
            st = mc_config_reset(&fresh, row, MC_FROM_DEFAULT);
        }
    }
    if (st != MC_OK) {
        mc_config_fini(&fresh);
        return st;
    }
    *config = fresh;
    return MC_OK;
}

void mc_config_fini(mc_config *config)
{
    while (config->blocks) {
        struct mc_config_block *next = config->blocks->next;
        mc_free(config->blocks);
        config->blocks = next;
    }
    mc_free(config->sources);
    config->sources = NULL;
}

void *mc_i_config_field(const mc_config *config, const mc_option *row)
{
    return (unsigned char *)config->target + row->offset;
}

static int index_of_field(const mc_config *config, const void *field)
{
    for (int i = 0, n = mc_option_count(config->table); i < n; i++) {
        const mc_option *row = mc_option_at(config->table, i);
        if (mc_i_option_has_field(row) && mc_i_config_field(config, row) == field) {
            return i;
        }
    }
    return -1;
}

mc_source mc_config_source(const mc_config *config, const void *field)
{
    int index = index_of_field(config, field);
    return index < 0 ? MC_FROM_DEFAULT : (mc_source)config->sources[index];
}

void mc_config_set_source(mc_config *config, const void *field, mc_source source)
{
    int index = index_of_field(config, field);
    MC_ASSERT(index >= 0);
    config->sources[index] = (unsigned char)source;
}

void mc_i_text_add(mc_i_text *text, const char *fmt, ...)
{
    while (text->status == MC_OK) {
        va_list ap;
        va_start(ap, fmt);
        int n = vsnprintf(text->at ? text->at + text->used : NULL, text->cap - text->used, fmt, ap);
        va_end(ap);
        MC_ASSERT(n >= 0);
        if (text->used + (size_t)n < text->cap) {
            text->used += (size_t)n;
            return;
        }
        char *grown;
        size_t cap = (text->cap + (size_t)n + 1) * 2;
        text->status = MC_NEW_N(&grown, cap, "option text");
        if (text->status == MC_OK) {
            if (text->at) {
                memcpy(grown, text->at, text->used);
            }
            mc_free(text->at);
            text->at = grown;
            text->cap = cap;
        }
    }
}
