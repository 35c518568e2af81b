/* The two halves of the dataset writer: ds_write.c streams bytes, hashes and renames; ds_write_hdf5.c makes the HDF5
 * structure around them.
 *
 * Contiguous data has a fixed size in HDF5, and the number of tokens is known only at the end. So the tokens are
 * streamed with pwrite to the place where the HDF5 library is going to put them, and the structure is added afterwards,
 * in the same file:
 *
 *   1. ds_i_layout_begin   an HDF5 file with an empty root group; where would the library put /tokens next?
 *   2. ds_writer_tokens    pwrite there
 *   3. ds_i_layout_finish  the library creates /tokens of the right size (it writes no data), and all the rest
 *   4. ds_writer_finish    pwrite of /documents, /tokenizer and the checksums; fsync; rename */
#ifndef DATASETS_DS_WRITE_IMPL_H
#define DATASETS_DS_WRITE_IMPL_H

#include "datasets/ds_impl.h"
#include "datasets/ds_write.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Checksums of one data set's blocks; grows by doubling. */
typedef struct ds_i_sums {
    uint64_t *values;
    uint64_t n, cap;
} ds_i_sums;

struct ds_writer {
    ds_writer_config config;
    char *path, *tmp_path; /* final and temporary name */
    char *kind;
    int token_bytes;
    int fd;       /* temporary file, -1: none */
    int spool_fd; /* document ends, unlinked file */
    bool tmp_exists;
    uint64_t n_tokens, n_documents, last_end;
    uint64_t tokens_offset; /* where contiguous tokens go */
    /* The block being filled: DS_FORMAT_CHECK_BLOCK bytes (contiguous), or a chunk. */
    unsigned char *block;
    size_t block_bytes, block_used;
    uint64_t block_first; /* bytes of tokens before the block */
    uint64_t *ends;       /* document ends not yet spooled */
    size_t n_ends;
    uint64_t spooled_bytes;
    ds_i_sums sums[DS_I_DATA_COUNT];
    ds_i_extent data[DS_I_DATA_COUNT], sums_at[DS_I_DATA_COUNT], rest;
    int64_t h5_file, h5_tokens; /* open while chunks are written, else -1 */
};

mc_status ds_i_layout_begin(ds_writer *w) MC_MUST_CHECK;
/* --compress: appends the block as the next chunk. */
mc_status ds_i_layout_chunk(ds_writer *w) MC_MUST_CHECK;
/* Creates every data set and attribute; fills data[], sums_at[] and rest. */
mc_status ds_i_layout_finish(ds_writer *w) MC_MUST_CHECK;
/* Closes what is open after a failure; the temporary file is about to be removed. */
void ds_i_layout_abandon(ds_writer *w);

#ifdef __cplusplus
}
#endif
#endif
