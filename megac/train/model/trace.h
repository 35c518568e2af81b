/* --trace-tensors: what every named activation and gradient of a run looked like, so that `megac diff` finds the first
 * wrong number between two runs, across devices and layouts.
 *
 * Each rank writes DIR/rank_00000.jsonl, one object a tensor:
 *   {"iteration":1,"sample":0,"order":17,"name":"decoder.layers.1.qkv","counts":true,"n":49152,"sum":..,"sum_sq":..,
 *    "min":..,"max":..,"nan":0,"hash":"16 hex digits"}
 * `sample` is the global number of the micro-batch's first sample (-1: of no micro-batch); `order` sorts names as a
 * step computes them, on any layout; `counts` is false where another rank holds the same elements; `hash` is of the
 * rank's own bytes (XXH3). The numbers are over the rank's share: sums of the ranks that count describe the whole
 * tensor. Where tensor-parallel ranks hold the same key/value heads, their qkv activations count nowhere. */
#ifndef MEGAC_TRAIN_MODEL_TRACE_H
#define MEGAC_TRAIN_MODEL_TRACE_H

#include <stdbool.h>
#include <stdio.h>

#include "megac/base/device.h"
#include "megac/base/tensor.h"
#include "megac/train/model/shards.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Places of a step, in its order. */
typedef enum {
    MT_TRACE_EMBEDDING,
    MT_TRACE_QKV,
    MT_TRACE_ATTENTION,
    MT_TRACE_AFTER_ATTENTION,
    MT_TRACE_FC1,
    MT_TRACE_OUTPUT,
    MT_TRACE_LOSSES,
    MT_TRACE_D_OUTPUT, /* gradient of a block's output */
    MT_TRACE_D_EMBEDDING,
} mt_trace_place;

typedef struct mt_trace mt_trace;

/* Creates DIR where needed and this rank's file in it, emptied. */
mc_status mt_trace_open(const char *dir, int rank, mc_device *dev, mc_stream stream,
                        mt_trace **trace_out) MC_MUST_CHECK;
/* NULL is allowed. MC_IO where the file could not be written. */
mc_status mt_trace_close(mt_trace *trace) MC_MUST_CHECK;

/* What the next lines belong to. */
void mt_trace_step(mt_trace *trace, int64_t iteration);

/* One contiguous tensor of f32, bf16 or f16, after the work queued so far; nothing where `trace` is NULL. `layer`:
 * global number, of places inside blocks. Waits for the device. */
mc_status mt_trace_tensor(mt_trace *trace, mt_trace_place place, int layer, int64_t sample, bool counts,
                          mc_tensor x) MC_MUST_CHECK;
/* The gradient of every parameter after its sums, what of it this rank keeps, without a vocabulary's padding.
 * `first_replica`: of replicated key and value rows, this rank's copy counts. */
mc_status mt_trace_gradients(mt_trace *trace, const mt_shards *shards, const mt_place *place, int64_t vocab,
                             bool first_replica) MC_MUST_CHECK;

/* Compares two directories; prints the first tensor, in the order of a step, whose norm, mean, extremes or number of
 * NaNs differ by more than `tolerance` (relative to its norm, or largest magnitude), and how many do. *same_out. */
mc_status mt_trace_diff(const char *a, const char *b, double tolerance, FILE *out, bool *same_out) MC_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
