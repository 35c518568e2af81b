/* Token datasets: from files to the batches of a step. Sample order is a pure function of (seed, epoch, index): nothing
 * is built, cached or loaded, at any size. */
#ifndef DATASETS_DS_H
#define DATASETS_DS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "megac/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum { DS_TRAIN, DS_VALID, DS_TEST, DS_SPLIT_COUNT } ds_split;

/* One open dataset file. */
typedef struct ds_file ds_file;

typedef struct ds_info {
    uint64_t n_tokens, n_documents;
    uint32_t vocab_size;
    int64_t eod_id;  /* -1: none */
    int token_bytes; /* 2 or 4 */
    bool compressed;
    char tokenizer_kind[64];
    char tokenizer_sha256[65]; /* "" for byte-level */
} ds_info;

/* Opens `path` or `path`.h5. MC_NOTFOUND, MC_INPUT (not a dataset, damaged metadata, truncated: says what was seen).
 * Cheap: no token is read. */
mc_status ds_file_open(const char *path, ds_file **file_out) MC_MUST_CHECK;
void ds_file_close(ds_file *file);
const ds_info *ds_file_info(const ds_file *file);
/* Tokens [first, first + count) as int32. Bounds are checked. */
mc_status ds_file_read(const ds_file *file, uint64_t first, uint64_t count, int32_t *tokens_out) MC_MUST_CHECK;
/* Document boundaries [first, first + count] of n_documents + 1. */
mc_status ds_file_documents(const ds_file *file, uint64_t first, uint64_t count, uint64_t *ends_out) MC_MUST_CHECK;
/* The tokenizer file stored in the dataset (may be empty); freed by the caller with mc_free. */
mc_status ds_file_tokenizer(const ds_file *file, void **bytes_out, uint64_t *n_bytes_out) MC_MUST_CHECK;
/* Reads every byte and checks every checksum. MC_INPUT names dataset and block. */
mc_status ds_file_verify(const ds_file *file) MC_MUST_CHECK;

/* What training reads: one split of a weighted set of files, or the mock stream. */
typedef struct ds_source ds_source;

typedef struct ds_source_config {
    const char *const *paths; /* as --data-path: "[w1] p1 [w2] p2 ..." */
    int n_paths;
    const char *split; /* "969,30,1"; ignored when `whole` */
    bool whole;        /* every token belongs to this split (--train-data-path and the like) */
    ds_split which;
    int64_t seq_length;
    uint32_t seed;
    bool mock; /* synthetic tokens, learnable, from (seed, sample) */
    uint32_t mock_vocab_size;
    bool shuffle; /* false: windows in file order (evaluation) */
} ds_source_config;

mc_status ds_source_open(const ds_source_config *config, ds_source **source_out) MC_MUST_CHECK;
void ds_source_close(ds_source *source);
/* Windows of one pass over the split (of the whole blend, rounded down); 0 for the endless mock stream. */
uint64_t ds_source_epoch_samples(const ds_source *source);
/* Largest vocabulary and the EOD id of the files; -1 when they have none or disagree. */
uint32_t ds_source_vocab_size(const ds_source *source);
int64_t ds_source_eod(const ds_source *source);
const ds_info *ds_source_first_info(const ds_source *source); /* NULL for mock */
/* Window number `sample` of the run (0-based, endless: epoch = sample / epoch_samples): seq_length + 1 tokens;
 * neighbours in the file share one token (Megatron-LM's windows). A pure function of its arguments; thread-safe. */
mc_status ds_source_read(const ds_source *source, uint64_t sample, int32_t *window_out) MC_MUST_CHECK;

/* Batches of this data-parallel coordinate, read ahead by a thread. */
typedef struct ds_loader ds_loader;

typedef struct ds_loader_config {
    const ds_source *source;
    int64_t seq_length;
    int micro_batch, max_micro; /* samples a micro-batch; most micro-batches a step */
    int dp_rank, dp_size;
    int64_t eod_mask_id; /* --eod-mask-loss: targets equal to this weigh 0; -1: off */
    void *memory;        /* (optional) default: the heap. ds_loader_memory_bytes, 64-byte aligned, for the batches */
} ds_loader_config;

/* Micro-batch m of a step that starts at sample `first` holds samples first + (m * dp_size + dp_rank) * micro_batch +
 * i. */
typedef struct ds_batch {
    const int32_t *tokens;  /* (B,T) */
    const int32_t *targets; /* (B,T) */
    const float *weights;   /* (B,T) loss weights: 1, or 0 where masked */
    uint64_t sample0;       /* global number of its first sample */
} ds_batch;

mc_status ds_loader_create(const ds_loader_config *config, ds_loader **loader_out) MC_MUST_CHECK;
void ds_loader_destroy(ds_loader *loader);
size_t ds_loader_plan_bytes(const ds_loader_config *config);
/* Of these, the bytes of `memory`. */
size_t ds_loader_memory_bytes(const ds_loader_config *config);
/* Asks for a step; returns at once. At most one step is in the works beside the one being read. */
mc_status ds_loader_request(ds_loader *loader, uint64_t first, int n_micro) MC_MUST_CHECK;
/* The same for the last step of a finite set: samples `end` and later are not read; their tokens are 0 and weigh
 * nothing. */
mc_status ds_loader_request_last(ds_loader *loader, uint64_t first, uint64_t end, int n_micro) MC_MUST_CHECK;
/* Makes the oldest requested step current; waits for it. The previous step's batches become invalid. `weight_sum_out`:
 * sum of this coordinate's loss weights in the step. */
mc_status ds_loader_next(ds_loader *loader, double *weight_sum_out) MC_MUST_CHECK;
/* Micro-batch of the current step; valid until the next ds_loader_next. */
ds_batch ds_loader_batch(const ds_loader *loader, int micro);

#ifdef __cplusplus
}
#endif
#endif
