/* What is in a checkpoint, for people (`megac inspect`) and, as JSON, for programs. */
#ifndef MEGAC_TRAIN_CHECKPOINT_CKPT_INSPECT_H
#define MEGAC_TRAIN_CHECKPOINT_CKPT_INSPECT_H

#include <stdbool.h>
#include <stdio.h>

#include "megac/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* True when `path` looks like a checkpoint: a directory with metadata.json of ours or with
 * latest_checkpointed_iteration.txt. Says nothing about its state. */
bool mt_checkpoint_is(const char *path);

/* Writes step, counters, layout, tensors with shapes and bytes, and the configuration to `out`. With `verify` every
 * byte of every file is read and checked first; each damaged piece is logged and the result is MC_INPUT. Errors of
 * mt_checkpoint_open; MC_IO when `out` cannot be written. */
mc_status mt_checkpoint_inspect(const char *path, bool verify, bool json, FILE *out) MC_MUST_CHECK;

/* Writes where two checkpoints differ: step and other counters, ranks that wrote them, options, names, types and shapes
 * of tensors; and, by the stored checksums, how many tensors have the same values. Nothing but metadata is read, unless
 * `verify`. As JSON: {"kind": "checkpoint-difference", "a", "b": paths, "same": whether there is none, "state",
 * "config", "tensors": {name: [in a, in b]} of what differs, null where one lacks it, "values": {"same", "other",
 * "unknown"}}. Errors as above; a difference is none. */
mc_status mt_checkpoint_compare(const char *path_a, const char *path_b, bool verify, bool json,
                                FILE *out) MC_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
