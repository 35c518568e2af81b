/* What the files of this folder share and nobody else may use. */
#ifndef DATASETS_DS_IMPL_H
#define DATASETS_DS_IMPL_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "datasets/ds.h"

#ifdef __cplusplus
extern "C" {
#endif

/* XXH3-64 (xxHash, seed 0) of a block, and of a stream of pieces. */
uint64_t ds_i_hash(const void *bytes, size_t n_bytes);
typedef struct ds_i_hasher ds_i_hasher;
mc_status ds_i_hasher_create(ds_i_hasher **hasher_out) MC_MUST_CHECK;
void ds_i_hasher_add(ds_i_hasher *hasher, const void *bytes, size_t n_bytes);
uint64_t ds_i_hasher_value(const ds_i_hasher *hasher);
void ds_i_hasher_destroy(ds_i_hasher *hasher);

/* SHA-256 (FIPS 180-4) as 64 hexadecimal digits and a final 0. */
void ds_i_sha256(const void *bytes, size_t n_bytes, char hex_out[65]);

/* A run of bytes of a file. */
typedef struct ds_i_extent {
    uint64_t offset, bytes;
} ds_i_extent;

/* XXH3-64 of the file's bytes [0, file_bytes) without those of `skip` (n_skip extents in ascending order): what
 * /checksums/rest holds. MC_IO. */
mc_status ds_i_hash_rest(int fd, const char *path, uint64_t file_bytes, const ds_i_extent *skip, int n_skip,
                         uint64_t *hash_out) MC_MUST_CHECK;
/* All of it or MC_IO naming `path` and the cause. */
mc_status ds_i_pread_all(int fd, const char *path, void *bytes, size_t n_bytes, uint64_t offset) MC_MUST_CHECK;
mc_status ds_i_pwrite_all(int fd, const char *path, const void *bytes, size_t n_bytes, uint64_t offset) MC_MUST_CHECK;

/* The data sets that have block checksums, in the order they are checked. */
typedef enum { DS_I_TOKENS, DS_I_DOCUMENTS, DS_I_TOKENIZER, DS_I_DATA_COUNT } ds_i_data;
extern const char *const ds_i_data_names[DS_I_DATA_COUNT];

struct ds_file {
    ds_info info;
    char *path;
    int fd;
    uint64_t file_bytes;
    const unsigned char *map;          /* the whole file */
    ds_i_extent data[DS_I_DATA_COUNT]; /* where the data lies; tokens: {0, 0} when stored in chunks */
    ds_i_extent sums[DS_I_DATA_COUNT]; /* where the checksums of its blocks lie */
    ds_i_extent rest;                  /* where the checksum of all other bytes lies */
    bool has_sums;
    /* Chunked tokens are read through the HDF5 library, one reader at a time. */
    int64_t h5_file, h5_tokens; /* -1: closed */
    pthread_mutex_t lock;
};

/* Tokens of a file whose tokens are stored in chunks; bounds were checked. Uses the HDF5 library. */
mc_status ds_i_read_chunked(const ds_file *file, uint64_t first, uint64_t count, int32_t *tokens_out) MC_MUST_CHECK;

/* Image of `index` in [0, n) under a keyed permutation of [0, n). */
uint64_t ds_i_permute(uint32_t seed, uint32_t stream, uint64_t epoch, uint64_t n, uint64_t index);

/* One window of the synthetic stream: `count` tokens below vocab. */
void ds_i_mock_window(uint32_t seed, uint32_t which, uint64_t sample, uint32_t vocab, int64_t count,
                      int32_t *tokens_out);

/* Exact shares of a weighted blend. Weights are integers whose sum is DS_I_SHARE_ONE. */
#define DS_I_SHARE_ONE ((uint64_t)1 << 48)
typedef struct ds_i_blend {
    int n;
    uint64_t block;         /* samples of a block: each member has at least one in every block */
    const uint64_t *shares; /* n */
} ds_i_blend;

/* Turns positive weights into shares and the block length. MC_INVALID when one is too small against the others. */
mc_status ds_i_blend_init(const double *weights, int n, uint64_t *shares_out, ds_i_blend *blend_out) MC_MUST_CHECK;
/* Samples each member has given after `blocks` blocks: within one of the exact ratio, sum = blocks * block length. */
void ds_i_blend_counts(const ds_i_blend *blend, uint64_t blocks, uint64_t *counts_out);
/* Which member gives sample `sample` of the blend, and as its how-manieth. */
void ds_i_blend_place(const ds_i_blend *blend, uint32_t seed, bool shuffle, uint64_t sample, int *member_out,
                      uint64_t *index_out);
enum { DS_I_BLEND_MAX = 256 };

#ifdef __cplusplus
}
#endif
#endif
