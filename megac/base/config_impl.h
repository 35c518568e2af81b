/* Shared by the files of the option engine only. */
#ifndef MEGAC_BASE_CONFIG_IMPL_H
#define MEGAC_BASE_CONFIG_IMPL_H

#include "megac/base/config.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { MC_I_WORD_BYTES = 128 }; /* longest spelling, key or choice word */

/* Next word of `*cursor`, whose words are separated by any of `separators`; false at the end. Longer words are cut. */
bool mc_i_next_word(const char **cursor, const char *separators, char *word_out, size_t cap);
/* Has the row a field, and can it be dumped? */
bool mc_i_option_has_field(const mc_option *row);
/* MC_ARITY_* of any row. */
int mc_i_option_arity(const mc_option *row);
/* Equal but for '-' and '_'. */
bool mc_i_same_key(const char *a, const char *b);
int mc_i_option_index(const mc_option_table *table, const mc_option *row);
/* Where the row's field lies in the target. */
void *mc_i_config_field(const mc_config *config, const mc_option *row);
/* "at least 1 and below 2", from an interval. */
void mc_i_interval_text(const char *interval, char *text_out, size_t cap);
/* Shortest decimal text that strtod reads back as `v`. */
void mc_i_float_text(double v, char *text_out, size_t cap);

/* Text that grows; the first failure sticks and the rest does nothing. */
typedef struct mc_i_text {
    char *at;
    size_t used, cap;
    mc_status status;
} mc_i_text;
void mc_i_text_add(mc_i_text *text, const char *fmt, ...) MC_PRINTF(2, 3);

/* Reports an unknown flag or key: `where` begins the message. */
mc_status mc_i_config_unknown(const mc_option_table *table, const char *where, const char *flag);

#ifdef __cplusplus
}
#endif
#endif
