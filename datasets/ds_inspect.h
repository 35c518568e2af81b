/* The engine of `megac inspect` for dataset files. */
#ifndef DATASETS_DS_INSPECT_H
#define DATASETS_DS_INSPECT_H

#include <stdbool.h>
#include <stdio.h>

#include "megac/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Writes what `path` holds to `out`: sizes, tokenizer, storage, document lengths, its first n_tokens tokens as ids and
 * as text; as one JSON object when `json`. With `verify`, every byte is read and checked first. Constant memory.
 * MC_NOTFOUND, MC_INPUT as ds_file_open and ds_file_verify; nothing is written then. MC_INVALID: n_tokens not in
 * 0 .. 1,000,000. */
mc_status ds_inspect(const char *path, bool verify, bool json, int n_tokens, FILE *out) MC_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
