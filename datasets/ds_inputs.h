/* The list of input files: folders are walked in sorted order, hidden entries left out. */
#ifndef DATASETS_DS_INPUTS_H
#define DATASETS_DS_INPUTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "megac/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct ds_i_input {
    char *path; /* "-": standard input */
    bool jsonl;
} ds_i_input;

typedef struct ds_i_inputs {
    ds_i_input *v;
    size_t n, cap;
    uint64_t bytes; /* of the regular files, as they lie on the disk */
    bool all_sizes_known;
} ds_i_inputs;

/* `format`: "text", "jsonl", or NULL / "auto": jsonl for names ending in .jsonl, .ndjson or .json (before .gz or .zst),
 * and for standard input when `json_keys_given`. MC_NOTFOUND, MC_INPUT, MC_INVALID. Free with ds_i_inputs_free, after a
 * failure too. */
mc_status ds_i_inputs_list(const char *const *paths, int n_paths, const char *format, bool json_keys_given,
                           ds_i_inputs *inputs_out) MC_MUST_CHECK;
void ds_i_inputs_free(ds_i_inputs *inputs);

#ifdef __cplusplus
}
#endif
#endif
