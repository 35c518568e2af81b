/* A view of an array in some device's memory: passed by value, owns nothing, freed by nobody.
 *
 * Up to four dims, each with a stride in elements; the last dim is contiguous in every operator's contract unless it
 * says otherwise. An absent optional tensor is `(mc_tensor){0}` (data NULL). */
#ifndef MEGAC_BASE_TENSOR_H
#define MEGAC_BASE_TENSOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "megac/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum {
#define MC_DTYPE(NAME, name, bytes) MC_##NAME,
#include "megac/base/dtype.def"
#undef MC_DTYPE
    MC_DTYPE_COUNT
} mc_dtype;

/* "f32"; bytes of one element. */
const char *mc_dtype_name(mc_dtype dtype);
size_t mc_dtype_bytes(mc_dtype dtype);
/* By name ("f32", "bf16", ...); MC_INVALID names the known ones. */
mc_status mc_dtype_parse(const char *name, mc_dtype *dtype_out) MC_MUST_CHECK;

enum { MC_MAX_DIMS = 4 };

typedef struct mc_tensor {
    void *data;
    mc_dtype dtype;
    int n_dims;
    int64_t dims[MC_MAX_DIMS];
    int64_t strides[MC_MAX_DIMS]; /* in elements */
} mc_tensor;

/* Contiguous (row-major) views. */
mc_tensor mc_tensor_1d(void *data, mc_dtype dtype, int64_t d0);
mc_tensor mc_tensor_2d(void *data, mc_dtype dtype, int64_t d0, int64_t d1);
mc_tensor mc_tensor_3d(void *data, mc_dtype dtype, int64_t d0, int64_t d1, int64_t d2);

/* Sub-view [begin, begin + count) of one dim. Bounds are asserted. */
mc_tensor mc_tensor_slice(mc_tensor t, int dim, int64_t begin, int64_t count);
/* The same contiguous elements as a 1-D view. */
mc_tensor mc_tensor_flat(mc_tensor t);

int64_t mc_tensor_elems(mc_tensor t);
size_t mc_tensor_bytes(mc_tensor t);
bool mc_tensor_contiguous(mc_tensor t);
bool mc_tensor_same_shape(mc_tensor a, mc_tensor b);

static inline bool mc_tensor_present(mc_tensor t)
{
    return t.data != NULL;
}

#ifdef __cplusplus
}
#endif
#endif
