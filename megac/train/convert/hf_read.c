/* Filling tensors from a directory of Hugging Face: every span of rows that overlaps what is wanted goes, in chunks,
 * from where the file has it to where the view does. */
#include <stdio.h>
#include <string.h>

#include "megac/base/alloc.h"
#include "megac/train/convert/hf_impl.h"

/* A block of a stored matrix, and where its elements go: (i, j) of the block to base + i * stride[0] + j * stride[1]
 * elements. */
typedef struct block {
    const mt_i_hf_place *place;
    int64_t cols; /* of the whole matrix */
    int64_t begin[2], count[2];
    char *base;
    int64_t stride[2];
    mc_dtype dtype;
} block;

/* n elements, packed, to every stride-th one. */
static void spread(char *dst, int64_t stride, const char *src, int64_t n, size_t elem)
{
    for (int64_t i = 0; i < n; i++) {
        memcpy(dst + (size_t)(i * stride) * elem, src + (size_t)i * elem, elem);
    }
}

/* Rows [i, i + rows), columns [j, j + cols) of the block; rows > 1 only where whole rows of the matrix are wanted. */
static mc_status move_part(mt_hf *hf, const block *b, int64_t i, int64_t j, int64_t rows, int64_t cols)
{
    const mt_st_tensor *t = b->place->tensor;
    size_t from = mt_st_dtype_bytes(t->dtype), to = mc_dtype_bytes(b->dtype);
    mt_i_cast_fn cast = mt_i_cast(t->dtype, b->dtype);
    char *dst = b->base + (size_t)(i * b->stride[0] + j * b->stride[1]) * to, *cast_to = hf->chunk + MT_I_CHUNK_BYTES;
    uint64_t at = (uint64_t)((b->begin[0] + i) * b->cols + b->begin[1] + j) * from;
    bool packed = b->stride[1] == 1 && (rows == 1 || b->stride[0] == cols);
    if (packed && from == to && t->dtype == mt_st_dtype_of(b->dtype)) {
        return mt_st_read(b->place->file, t, at, dst, (size_t)(rows * cols) * from);
    }
    MC_TRY(mt_st_read(b->place->file, t, at, hf->chunk, (size_t)(rows * cols) * from));
    cast(packed ? dst : cast_to, hf->chunk, (size_t)(rows * cols));
    for (int64_t r = 0; r < rows && !packed; r++) {
        spread(dst + (size_t)(r * b->stride[0]) * to, b->stride[1], cast_to + (size_t)(r * cols) * to, cols, to);
    }
    return MC_OK;
}

static mc_status move_block(mt_hf *hf, const block *b)
{
    int64_t room = (int64_t)(MT_I_CHUNK_BYTES / mt_st_dtype_bytes(b->place->tensor->dtype));
    bool whole_rows = b->count[1] == b->cols && b->cols <= room;
    int64_t rows = whole_rows ? room / b->cols : 1, cols = b->count[1] < room ? b->count[1] : room;
    for (int64_t i = 0; i < b->count[0]; i += rows) {
        for (int64_t j = 0; j < b->count[1]; j += cols) {
            int64_t n = b->count[0] - i < rows ? b->count[0] - i : rows, k = b->count[1] - j;
            MC_TRY(move_part(hf, b, i, j, n, k < cols ? k : cols));
        }
    }
    return MC_OK;
}

/* The part of a tensor's span that lies in rows [begin[0], ...) and columns [begin[1], ...) of the parameter that
 * `view` is. */
static mc_status fill_from_span(mt_hf *hf, int tensor, const mt_hf_span *s, mc_tensor view, const int64_t *begin)
{
    const mt_hf_tensor *t = &hf->map.tensors[tensor];
    int64_t lo = s->param_row > begin[0] ? s->param_row : begin[0];
    int64_t end = s->param_row + s->n_rows, hi = begin[0] + view.dims[0] < end ? begin[0] + view.dims[0] : end;
    if (lo >= hi) {
        return MC_OK;
    }
    block b = {.place = &hf->places[tensor], .dtype = view.dtype};
    b.base = (char *)view.data + (size_t)((lo - begin[0]) * view.strides[0]) * mc_dtype_bytes(view.dtype);
    int64_t first = s->hf_row + lo - s->param_row, rows = hi - lo;
    if (t->n_dims == 1) { /* a matrix of one row */
        b.cols = t->dims[0];
        b.begin[1] = first;
        b.count[0] = 1;
        b.count[1] = rows;
        b.stride[1] = view.strides[0];
        return move_block(hf, &b);
    }
    int row = t->transposed ? 1 : 0; /* the dim of the matrix that rows of the parameter run along */
    b.cols = t->dims[1];
    b.begin[row] = first;
    b.begin[1 - row] = begin[1];
    b.count[row] = rows;
    b.count[1 - row] = view.dims[1];
    b.stride[row] = view.strides[0];
    b.stride[1 - row] = view.strides[1];
    return move_block(hf, &b);
}

static mc_status fill_rect(mt_hf *hf, int param, mc_tensor view, const int64_t *begin)
{
    for (int i = 0; i < hf->map.n_tensors; i++) {
        mt_hf_span s;
        for (int k = 0; hf->map.tensors[i].param == param && mt_hf_map_span(&hf->map, &hf->map.tensors[i], k, &s);
             k++) {
            MC_TRY(fill_from_span(hf, i, &s, view, begin));
        }
    }
    return MC_OK;
}

/* Shapes must agree, but for the padding of a vocabulary. */
static mc_status find_param(const mt_hf *hf, const mt_ckpt_item *item, int *param_out)
{
    const mt_param *p = item->param, *have = NULL;
    for (int i = 0; i < hf->map.params.n_rows && !have; i++) {
        have = strcmp(hf->map.params.rows[i].name, p->name) == 0 ? &hf->map.params.rows[i] : NULL;
    }
    if (!have || strcmp(item->prefix, "model") != 0) {
        return MC_FAIL(MC_NOTFOUND, "%s has no tensor for \"%s.%s\"; is it this kind of model?", hf->path, item->prefix,
                       p->name);
    }
    bool padded =
        item->valid_rows > 0 && item->valid_rows == have->global_dims[0] && p->global_dims[0] >= item->valid_rows;
    if (have->n_dims != p->n_dims || (have->n_dims == 2 && have->global_dims[1] != p->global_dims[1]) ||
        (have->global_dims[0] != p->global_dims[0] && !padded)) {
        return MC_FAIL(MC_MISMATCH,
                       "%s: \"%s\" is %lld x %lld there and %lld x %lld in this model; give the model's flags, or "
                       "--use-checkpoint-args",
                       hf->path, p->name, (long long)have->global_dims[0], (long long)have->global_dims[1],
                       (long long)(item->valid_rows > 0 ? item->valid_rows : p->global_dims[0]),
                       (long long)p->global_dims[1]);
    }
    *param_out = (int)(have - hf->map.params.rows);
    return MC_OK;
}

mc_status mt_hf_read(mt_hf *hf, const mt_ckpt_item *item)
{
    const mt_param *p = item->param;
    int param;
    MC_TRY(find_param(hf, item, &param));
    if (item->cut) {
        return fill_rect(hf, param, item->local, item->begin);
    }
    int64_t at = 0;
    for (int r = 0; r < p->n_ranges; r++) {
        int64_t begin[2] = {0, 0}, count = p->ranges[r].count;
        begin[p->shard_dim] = p->ranges[r].begin;
        MC_TRY(fill_rect(hf, param, mc_tensor_slice(item->local, p->shard_dim, at, count), begin));
        at += count;
    }
    return MC_OK;
}
