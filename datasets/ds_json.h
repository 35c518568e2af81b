/* One JSON line to its text. */
#ifndef DATASETS_DS_JSON_H
#define DATASETS_DS_JSON_H

#include <stddef.h>

#include "megac/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The string values of `keys` of the JSON object in line[0, n), joined by newlines, appended through `put`. MC_INPUT
 * fills `why` (what was seen, without file and line). Thread-safe. */
mc_status ds_i_json_text(const char *line, size_t n, const char *const *keys, int n_keys,
                         mc_status (*put)(void *arg, const char *text, size_t n), void *arg, char *why,
                         size_t why_cap) MC_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
