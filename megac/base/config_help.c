/* The help page. */
#include <string.h>

#include "megac/base/alloc.h"
#include "megac/base/config_impl.h"

enum { PAGE_COLUMNS = 100, HELP_COLUMN = 34, CELL_BYTES = 1024 };

/* Appends words to a line that stands at `column`, breaking lines at PAGE_COLUMNS and going on at HELP_COLUMN. */
static void add_wrapped(mc_i_text *text, int column, const char *words)
{
    char word[MC_I_WORD_BYTES];
    bool first = true;
    while (mc_i_next_word(&words, " ", word, sizeof word)) {
        int width = (int)strlen(word);
        if (!first && column + 1 + width > PAGE_COLUMNS) {
            mc_i_text_add(text, "\n%*s", HELP_COLUMN, "");
            column = HELP_COLUMN;
            first = true;
        }
        mc_i_text_add(text, "%s%s", first ? "" : " ", word);
        column += width + !first;
        first = false;
    }
    mc_i_text_add(text, "\n");
}

/* "--flag INT": what stands left of the help text. */
static void left_cell(const mc_option *row, char *out, size_t cap)
{
    static const char *const values[] = {
        [MC_OPTION_INT] = " INT",     [MC_OPTION_FLOAT] = " FLOAT",     [MC_OPTION_SWITCH] = "",
        [MC_OPTION_OFF] = "",         [MC_OPTION_STRING] = " TEXT",     [MC_OPTION_CHOICE] = " WORD",
        [MC_OPTION_INTS] = " INT...", [MC_OPTION_STRINGS] = " TEXT...",
    };
    static const char *const arities[] = {
        [MC_ARITY_NONE] = "", [MC_ARITY_ONE] = " VALUE", [MC_ARITY_MANY] = " VALUE..."};
    const char *value = !mc_i_option_has_field(row) ? arities[row->arity]
                        : row->flags[0] == '-'      ? values[row->kind]
                                                    : "";
    char word[MC_I_WORD_BYTES];
    const char *cursor = row->flags;
    size_t used = 0;
    while (mc_i_next_word(&cursor, " ", word, sizeof word) && used < cap) {
        used += (size_t)snprintf(out + used, cap - used, "%s%s", used ? ", " : "", word);
    }
    if (used < cap) {
        snprintf(out + used, cap - used, "%s", value);
    }
}

/* Help text, words or range, default. */
static void right_cell(const mc_option *row, char *out, size_t cap)
{
    mc_option_kind kind = row->kind;
    char limit[CELL_BYTES] = "";
    if (kind == MC_OPTION_CHOICE) {
        snprintf(limit, sizeof limit, "; one of %.*s", (int)strcspn(row->check, " !"), row->check);
    } else if ((kind == MC_OPTION_INT || kind == MC_OPTION_FLOAT || kind == MC_OPTION_INTS) && row->check) {
        char range[128];
        mc_i_interval_text(row->check, range, sizeof range);
        snprintf(limit, sizeof limit, "; %s", range);
    }
    if (kind == MC_OPTION_OLD) {
        snprintf(out, cap, "now %s%s%s", row->check, row->help[0] ? "; " : "", row->help);
        return;
    }
    const char *preset = kind == MC_OPTION_SWITCH || kind == MC_OPTION_OFF ? "off" : row->preset ? row->preset : "none";
    bool plain = !mc_i_option_has_field(row) || (row->bits & MC_OPTION_META) || row->flags[0] != '-';
    bool derived = !row->preset && (row->bits & MC_OPTION_DERIVED); /* the help text says how */
    char tail[CELL_BYTES] = "";
    if (!plain && row->megatron) {
        snprintf(tail, sizeof tail, " (%s%s%sMegatron-LM: %s)", derived ? "" : "default ", derived ? "" : preset,
                 derived ? "" : "; ", row->megatron);
    } else if (!plain && !derived) {
        snprintf(tail, sizeof tail, " (default %s)", preset);
    }
    snprintf(out, cap, "%s%s%s", row->help, limit, tail);
}

static void add_row(mc_i_text *text, const mc_option *row)
{
    char cell[CELL_BYTES];
    left_cell(row, cell, sizeof cell);
    int width = 2 + (int)strlen(cell);
    mc_i_text_add(text, "  %s", cell);
    if (width >= HELP_COLUMN) {
        mc_i_text_add(text, "\n");
        width = 0;
    }
    mc_i_text_add(text, "%*s", HELP_COLUMN - width, "");
    right_cell(row, cell, sizeof cell);
    add_wrapped(text, HELP_COLUMN, cell);
}

mc_status mc_config_help(const mc_option_table *table, FILE *out)
{
    mc_i_text text = {.status = MC_OK};
    mc_i_text_add(&text, "usage: %s\n%s\n", table->usage, table->summary);
    for (int i = 0, n = mc_option_count(table); i < n; i++) {
        const mc_option *row = mc_option_at(table, i);
        if (row->kind == MC_OPTION_TITLE) {
            mc_i_text_add(&text, "\n%s:\n", row->help);
        } else {
            add_row(&text, row);
        }
    }
    mc_status st = text.status;
    if (st == MC_OK && (fwrite(text.at, 1, text.used, out) != text.used || fflush(out) != 0)) {
        st = MC_FAIL(MC_IO, "the help page could not be written");
    }
    mc_free(text.at);
    return st;
}
