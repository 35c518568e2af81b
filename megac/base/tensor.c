#include "megac/base/tensor.h"

#include <string.h>

static const struct {
    const char *name;
    size_t bytes;
} dtypes[MC_DTYPE_COUNT] = {
#define MC_DTYPE(NAME, name, bytes) [MC_##NAME] = {#name, bytes},
#include "megac/base/dtype.def"
#undef MC_DTYPE
};

const char *mc_dtype_name(mc_dtype dtype)
{
    return (unsigned)dtype < MC_DTYPE_COUNT ? dtypes[dtype].name : "?";
}

size_t mc_dtype_bytes(mc_dtype dtype)
{
    MC_ASSERT((unsigned)dtype < MC_DTYPE_COUNT);
    return dtypes[dtype].bytes;
}

mc_status mc_dtype_parse(const char *name, mc_dtype *dtype_out)
{
    for (int i = 0; i < MC_DTYPE_COUNT; i++) {
        if (strcmp(dtypes[i].name, name) == 0) {
            *dtype_out = (mc_dtype)i;
            return MC_OK;
        }
    }
    return MC_FAIL(MC_INVALID, "unknown element type \"%s\"; known: f32 f64 bf16 f16 i32 u8", name);
}

static mc_tensor contiguous(void *data, mc_dtype dtype, int n_dims, const int64_t *dims)
{
    mc_tensor t = {.data = data, .dtype = dtype, .n_dims = n_dims};
    int64_t stride = 1;
    for (int i = n_dims - 1; i >= 0; i--) {
        t.dims[i] = dims[i];
        t.strides[i] = stride;
        stride *= dims[i];
    }
    return t;
}

mc_tensor mc_tensor_1d(void *data, mc_dtype dtype, int64_t d0)
{
    return contiguous(data, dtype, 1, (const int64_t[]){d0});
}

mc_tensor mc_tensor_2d(void *data, mc_dtype dtype, int64_t d0, int64_t d1)
{
    return contiguous(data, dtype, 2, (const int64_t[]){d0, d1});
}

mc_tensor mc_tensor_3d(void *data, mc_dtype dtype, int64_t d0, int64_t d1, int64_t d2)
{
    return contiguous(data, dtype, 3, (const int64_t[]){d0, d1, d2});
}

mc_tensor mc_tensor_slice(mc_tensor t, int dim, int64_t begin, int64_t count)
{
    MC_ASSERT(dim >= 0 && dim < t.n_dims && begin >= 0 && count >= 0 && begin + count <= t.dims[dim]);
    t.data = (char *)t.data + (size_t)(begin * t.strides[dim]) * mc_dtype_bytes(t.dtype);
    t.dims[dim] = count;
    return t;
}

mc_tensor mc_tensor_flat(mc_tensor t)
{
    MC_ASSERT(mc_tensor_contiguous(t));
    return mc_tensor_1d(t.data, t.dtype, mc_tensor_elems(t));
}

int64_t mc_tensor_elems(mc_tensor t)
{
    int64_t n = 1;
    for (int i = 0; i < t.n_dims; i++) {
        n *= t.dims[i];
    }
    return n;
}

size_t mc_tensor_bytes(mc_tensor t)
{
    return (size_t)mc_tensor_elems(t) * mc_dtype_bytes(t.dtype);
}

bool mc_tensor_contiguous(mc_tensor t)
{
    int64_t stride = 1;
    for (int i = t.n_dims - 1; i >= 0; i--) {
        if (t.dims[i] != 1 && t.strides[i] != stride) {
            return false;
        }
        stride *= t.dims[i];
    }
    return true;
}

bool mc_tensor_same_shape(mc_tensor a, mc_tensor b)
{
    return a.n_dims == b.n_dims && memcmp(a.dims, b.dims, sizeof a.dims[0] * (size_t)a.n_dims) == 0;
}
