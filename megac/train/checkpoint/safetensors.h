/* The safetensors file format (Hugging Face, format 0.4): u64 N, N bytes of JSON, then the tensors' bytes.
 *
 *   | N (8, little-endian) | {"__metadata__": {...}, "name": {"dtype", "shape", "data_offsets"}, ...} spaces | data |
 *
 * The header is padded with spaces so that the data starts at a multiple of 8. Tensors are C-ordered and follow each
 * other without holes; offsets count from the start of the data. Little-endian hosts only. */
#ifndef MEGAC_TRAIN_CHECKPOINT_SAFETENSORS_H
#define MEGAC_TRAIN_CHECKPOINT_SAFETENSORS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "megac/base/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { MT_ST_MAX_DIMS = 8, MT_ST_MAX_HEADER_BYTES = 100 * 1000 * 1000 };

/* MT_ST_DTYPES(X): X(NAME, bytes). */
#define MT_ST_DTYPES(X) \
    X(F64, 8)           \
    X(F32, 4)           \
    X(F16, 2)           \
    X(BF16, 2)          \
    X(I64, 8) X(I32, 4) X(I16, 2) X(I8, 1) X(U64, 8) X(U32, 4) X(U16, 2) X(U8, 1) X(BOOL, 1) X(F8_E4M3, 1) X(F8_E5M2, 1)

typedef enum {
#define MT_ST_ROW(NAME, bytes) MT_ST_##NAME,
    MT_ST_DTYPES(MT_ST_ROW)
#undef MT_ST_ROW
        MT_ST_DTYPE_COUNT
} mt_st_dtype;

const char *mt_st_dtype_name(mt_st_dtype dtype); /* "F32" */
size_t mt_st_dtype_bytes(mt_st_dtype dtype);
/* False when the format has no such name. */
bool mt_st_dtype_parse(const char *name, mt_st_dtype *dtype_out);
mt_st_dtype mt_st_dtype_of(mc_dtype dtype);
/* False where megac's tensors have no such type. */
bool mt_st_dtype_to_mc(mt_st_dtype dtype, mc_dtype *dtype_out);

typedef struct mt_st_tensor {
    const char *name;
    mt_st_dtype dtype;
    int n_dims; /* 0: a scalar */
    int64_t shape[MT_ST_MAX_DIMS];
    uint64_t begin, end; /* bytes from the start of the data */
} mt_st_tensor;

/* Bytes of dtype x shape. False on a negative dim or overflow. */
bool mt_st_tensor_bytes(mt_st_dtype dtype, int n_dims, const int64_t *shape, uint64_t *bytes_out);

/* Writing: all tensors are declared first (name, dtype, shape; begin and end are filled in, in the order given: put
 * wider types first to keep every tensor aligned), then their bytes are appended in that order. */
typedef struct mt_st_writer mt_st_writer;

/* `metadata`: n_metadata pairs (key, value) of __metadata__. Creates or empties `path`. */
mc_status mt_st_writer_create(const char *path, mt_st_tensor *tensors, int n_tensors, const char *const *metadata,
                              int n_metadata, mt_st_writer **writer_out) MC_MUST_CHECK;
/* XXH3-64 and bytes of the header (N and padding included): where the data starts. */
uint64_t mt_st_writer_header_hash(const mt_st_writer *w);
uint64_t mt_st_writer_header_bytes(const mt_st_writer *w);
mc_status mt_st_writer_append(mt_st_writer *w, const void *data, size_t bytes) MC_MUST_CHECK;
/* Checks that every declared byte came, makes the file durable. The writer still has to be destroyed. */
mc_status mt_st_writer_finish(mt_st_writer *w) MC_MUST_CHECK;
/* NULL allowed. An unfinished file is left as it is, and is not readable. */
void mt_st_writer_destroy(mt_st_writer *w);

/* Reading: every rule of the format is checked at open; MC_INPUT names file, tensor and rule. */
typedef struct mt_st_file mt_st_file;

mc_status mt_st_open(const char *path, mt_st_file **file_out) MC_MUST_CHECK;
void mt_st_close(mt_st_file *file); /* NULL allowed */
int mt_st_count(const mt_st_file *file);
/* In order of begin. Valid until close. */
const mt_st_tensor *mt_st_at(const mt_st_file *file, int i);
/* By name, or NULL. */
const mt_st_tensor *mt_st_find(const mt_st_file *file, const char *name);
/* A value of __metadata__, or NULL. */
const char *mt_st_metadata(const mt_st_file *file, const char *key);
uint64_t mt_st_header_hash(const mt_st_file *file);
uint64_t mt_st_header_bytes(const mt_st_file *file);
uint64_t mt_st_file_bytes(const mt_st_file *file);
/* Reads `bytes` of a tensor from byte `from` of it on. */
mc_status mt_st_read(const mt_st_file *file, const mt_st_tensor *tensor, uint64_t from, void *data,
                     size_t bytes) MC_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
