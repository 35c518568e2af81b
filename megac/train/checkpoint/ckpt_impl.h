/* Inside the checkpoint code. On disk:
 *
 *   SAVE/latest_checkpointed_iteration.txt       "100\n"
 *   SAVE/iter_0000100/metadata.json              everything but the numbers; ends with the XXH3 of what stands before
 *                     tokenizer                  the tokenizer file's bytes, where there is one
 *                     shard_00003_of_00008.safetensors
 *
 * A shard belongs to the world rank that wrote it. A slice is a rectangle of a global tensor; each is one tensor of a
 * shard, called "<prefix>.<parameter>", with ".0", ".1" behind it where a rank holds several ranges. Every byte is
 * covered: metadata by its own sum, shard headers, slices and the tokenizer by sums in metadata.json.
 *
 * Saving:   shard plan -> open -> write -> table (text) -> rank 0: merge of all tables -> metadata.json -> publish
 * Each step is a function of (rank, size) without communication; checkpoint_save.c strings them together. */
#ifndef MEGAC_TRAIN_CHECKPOINT_CKPT_IMPL_H
#define MEGAC_TRAIN_CHECKPOINT_CKPT_IMPL_H

#include <stdio.h>

#include "megac/base/file.h"
#include "megac/train/checkpoint/checkpoint.h"
#include "megac/train/checkpoint/ckpt_text.h"
#include "megac/train/checkpoint/safetensors.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    MT_I_NAME_BYTES = 192, /* "<prefix>.<parameter>" */
    MT_I_FILE_BYTES = 48,  /* "shard_00003_of_00008.safetensors" */
    MT_I_CHUNK_BYTES = 1 << 18,
    MT_I_MAX_METADATA_BYTES = 1 << 30,
    MT_I_MAX_TOKENIZER_BYTES = 1 << 29,
    MT_I_VERSION = 1,
};
#define MT_I_LATEST "latest_checkpointed_iteration.txt"
#define MT_I_METADATA "metadata.json"
#define MT_I_TOKENIZER "tokenizer"
#define MT_I_FORMAT "megac-checkpoint"

/* A rectangle of a global tensor; one-dimensional tensors are one row. */
typedef struct mt_i_rect {
    int64_t begin[2], count[2];
} mt_i_rect;
mt_i_rect mt_i_rect_make(int n_dims, const int64_t *begin, const int64_t *shape);
bool mt_i_rect_intersect(mt_i_rect a, mt_i_rect b, mt_i_rect *out); /* false when empty */
bool mt_i_rect_equal(mt_i_rect a, mt_i_rect b);
int64_t mt_i_rect_elems(mt_i_rect r);
/* True when the rectangles cover `whole` and only equal ones overlap; *spare_out (may be NULL) [i] says that an equal
 * one comes before rects[i]. Sorted by begin. */
bool mt_i_rects_cover(mt_i_rect whole, const mt_i_rect *rects, int n, bool *spare_out);

/* ---- saving ---- */

/* One stored tensor. */
typedef struct mt_i_piece {
    const mt_ckpt_item *item;
    mc_tensor view;
    int part; /* suffix, or -1 for none */
    int64_t begin[2], shape[2];
    uint64_t xxh3;
    char name[MT_I_NAME_BYTES];
} mt_i_piece;

typedef struct mt_i_shard {
    int rank, world;
    int n_pieces;
    mt_i_piece *pieces;
    char file[MT_I_FILE_BYTES];
    uint64_t file_bytes, header_xxh3;
    mt_st_writer *writer; /* once open */
    char *chunk;          /* MT_I_CHUNK_BYTES */
} mt_i_shard;

/* What of `items` rank `rank` of `world` has to write. */
mc_status mt_i_shard_plan(const mt_ckpt_item *items, int n_items, int rank, int world,
                          mt_i_shard *shard_out) MC_MUST_CHECK;
void mt_i_shard_fini(mt_i_shard *shard);
/* Creates its file in `dir`; nothing when it has no pieces. */
mc_status mt_i_shard_open(const char *dir, int64_t iteration, mt_i_shard *shard) MC_MUST_CHECK;
/* Writes the pieces, durable. Takes no memory, and may run in another thread. */
mc_status mt_i_shard_write(mt_i_shard *shard) MC_MUST_CHECK;
/* Appends its rows: "file rank bytes hash" and "slice rank part dtype dims shape begin shape valid_rows hash name". */
void mt_i_shard_table(const mt_i_shard *shard, mt_text *table);

/* metadata.json from the tables of all ranks, one after the other. MC_MISMATCH when slices leave a hole, overlap, or
 * disagree about type and shape. */
mc_status mt_i_metadata_make(const mt_ckpt_state *state, int world, const char *tables, mt_text *out) MC_MUST_CHECK;

mc_status mt_i_iter_path(char *out, const char *dir, int64_t iteration, const char *suffix) MC_MUST_CHECK;
/* The other way, from a directory's entry: iter_<number><suffix>; false for other names. */
bool mt_i_iter_parse(const char *name, int64_t *iteration_out, const char **suffix_out);
/* Empty SAVE/iter_N.tmp. */
mc_status mt_i_save_begin(const char *dir, int64_t iteration) MC_MUST_CHECK;
/* Writes tokenizer and metadata.json, checks that every shard is there, syncs, renames, points `latest` to it. */
mc_status mt_i_save_publish(const char *dir, const mt_ckpt_state *state, int world, const char *tables) MC_MUST_CHECK;
/* After a failure: removes what begin made. */
void mt_i_save_undo(const char *dir, int64_t iteration);

/* ---- reading ---- */

typedef struct mt_i_slice {
    int tensor, file; /* indices */
    int next_in_file; /* -1: last */
    const char *name; /* in the shard */
    mt_i_rect rect;
    uint64_t xxh3;
    uint64_t offset; /* in the shard; known once the shard's header was read */
    bool spare;      /* an equal slice comes before it */
    bool verified;
} mt_i_slice;

typedef struct mt_i_tensor {
    const char *name;
    mt_st_dtype dtype;
    int n_dims;
    int64_t shape[2], valid_rows; /* 0: all */
    int first_slice, n_slices;
} mt_i_tensor;

typedef struct mt_i_file {
    const char *name;
    uint64_t bytes, header_xxh3;
    int first_slice, n_slices;
    bool resolved; /* header read and checked */
} mt_i_file;

struct mt_checkpoint {
    char *dir; /* .../iter_N */
    void *json;
    mt_ckpt_state state;
    int world;
    mt_text config; /* state.config */
    double *recent; /* state.recent_losses and recent_norms */
    char *tokenizer;
    const char *tokenizer_file; /* NULL: none */
    uint64_t tokenizer_xxh3;
    mt_i_tensor *tensors; /* by name */
    mt_i_slice *slices;   /* by tensor */
    mt_i_file *files;
    int n_tensors, n_slices, n_files;
    int open_file, fd; /* the shard that is open, or -1 */
    char *chunk;       /* MT_I_CHUNK_BYTES */
};

/* Fills json .. n_files from the text of metadata.json, all of it checked. */
mc_status mt_i_metadata_parse(mt_checkpoint *c, const char *path, const char *text, size_t bytes) MC_MUST_CHECK;
void mt_i_json_release(void *json);
const mt_i_tensor *mt_i_tensor_find(const mt_checkpoint *c, const char *name);
/* Makes `slice`'s shard the open one, its header read and checked, so that slice->offset is known. */
mc_status mt_i_slice_locate(mt_checkpoint *c, const mt_i_slice *slice) MC_MUST_CHECK;
/* Reads the whole slice and compares its sum. */
mc_status mt_i_slice_verify(mt_checkpoint *c, mt_i_slice *slice) MC_MUST_CHECK;

/* Every slice of every file; goes on after a damaged one, so that the user sees the whole extent. */
mc_status mt_i_checkpoint_verify(mt_checkpoint *c) MC_MUST_CHECK;
/* After the last word about `path`: whether all of it could be written. */
mc_status mt_i_print_end(FILE *out, const char *path) MC_MUST_CHECK;

/* ---- both ---- */

/* n elements from one type to another: equal types, and any two of f32, f64, bf16, f16 (round to nearest even; NaN
 * stays NaN). NULL where there is no conversion. */
typedef void (*mt_i_cast_fn)(void *dst, const void *src, size_t n);
mt_i_cast_fn mt_i_cast(mt_st_dtype from, mc_dtype to);

#ifdef __cplusplus
}
#endif
#endif
