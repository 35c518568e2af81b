/* What one rank writes: its pieces, its shard file, its rows of the table. */
#include <stdio.h>
#include <string.h>

#include "megac/base/alloc.h"
#include "megac/base/hash.h"
#include "megac/train/checkpoint/ckpt_impl.h"

static bool writes(const mt_ckpt_item *item)
{
    return item->cut ? item->param->counts_in_norm : item->param->writes;
}

static void check_item(const mt_ckpt_item *item)
{
    const mt_param *p = item->param;
    for (int d = 0; item->cut && d < p->n_dims; d++) {
        MC_ASSERT(item->begin[d] >= 0 && item->begin[d] + item->local.dims[d] <= p->global_dims[d]);
    }
    MC_ASSERT(p->n_dims >= 1 && p->n_dims <= 2 && item->local.n_dims == p->n_dims);
    MC_ASSERT(p->n_ranges >= 1 && p->n_ranges <= MT_MAX_RANGES && p->shard_dim >= 0 && p->shard_dim < p->n_dims);
    int64_t sum = 0;
    for (int r = 0; r < p->n_ranges; r++) {
        const mt_range *range = &p->ranges[r];
        MC_ASSERT(range->begin >= 0 && range->count >= 0 &&
                  range->begin + range->count <= p->global_dims[p->shard_dim]);
        sum += range->count;
    }
    for (int d = 0; d < p->n_dims; d++) {
        MC_ASSERT(item->cut || item->local.dims[d] == (d == p->shard_dim ? sum : p->global_dims[d]));
    }
}

static void name_piece(mt_i_piece *q)
{
    const char *prefix = q->item->prefix, *name = q->item->param->name;
    int len = q->part < 0 ? snprintf(q->name, sizeof q->name, "%s.%s", prefix, name)
                          : snprintf(q->name, sizeof q->name, "%s.%s.%d", prefix, name, q->part);
    MC_ASSERT(len > 0 && (size_t)len < sizeof q->name);
    /* The table's columns are separated by spaces; a last digit could be mistaken for a part. */
    MC_ASSERT(!strpbrk(q->name, " \t\r\n") && !strchr("0123456789", name[strlen(name) - 1]));
}

/* One piece for each range that is not empty. */
static int add_pieces(const mt_ckpt_item *item, mt_i_piece *pieces)
{
    const mt_param *p = item->param;
    int n = 0;
    int64_t at = 0;
    if (item->cut) {
        *pieces = (mt_i_piece){.item = item, .part = item->part, .view = item->local};
        for (int d = 0; d < p->n_dims; d++) {
            pieces->begin[d] = item->begin[d];
            pieces->shape[d] = item->local.dims[d];
        }
        name_piece(pieces);
        return 1;
    }
    for (int r = 0; r < p->n_ranges; r++) {
        int64_t count = p->ranges[r].count;
        if (count > 0) {
            mt_i_piece *q = &pieces[n++];
            q->item = item;
            q->part = p->n_ranges > 1 ? r : -1;
            q->view = mc_tensor_slice(item->local, p->shard_dim, at, count);
            for (int d = 0; d < p->n_dims; d++) {
                q->begin[d] = d == p->shard_dim ? p->ranges[r].begin : 0;
                q->shape[d] = d == p->shard_dim ? count : p->global_dims[d];
            }
            name_piece(q);
        }
        at += count;
    }
    return n;
}

mc_status mt_i_shard_plan(const mt_ckpt_item *items, int n_items, int rank, int world, mt_i_shard *shard_out)
{
    mt_i_shard s = {.rank = rank, .world = world};
    snprintf(s.file, sizeof s.file, "shard_%05d_of_%05d.safetensors", rank, world);
    MC_TRY(MC_NEW_N(&s.pieces, (size_t)n_items * MT_MAX_RANGES, "checkpoint pieces"));
    /* Wide types first, so that every stored tensor is aligned to its type. */
    for (size_t width = 8; width > 0; width /= 2) {
        for (int i = 0; i < n_items; i++) {
            const mt_ckpt_item *item = &items[i];
            if (mc_dtype_bytes(item->local.dtype) == width && writes(item)) {
                check_item(item);
                s.n_pieces += add_pieces(item, s.pieces + s.n_pieces);
            }
        }
    }
    *shard_out = s;
    return MC_OK;
}

void mt_i_shard_fini(mt_i_shard *s)
{
    mt_st_writer_destroy(s->writer);
    mc_free(s->chunk);
    mc_free(s->pieces);
    *s = (mt_i_shard){0};
}

/* Writes `bytes` in pieces that are still in the cache when they are hashed and copied to the kernel. */
static mc_status append_hashed(mt_st_writer *w, mc_hasher *h, const char *data, size_t bytes)
{
    while (bytes > 0) {
        size_t n = bytes < MT_I_CHUNK_BYTES ? bytes : MT_I_CHUNK_BYTES;
        mc_hasher_add(h, data, n);
        MC_TRY(mt_st_writer_append(w, data, n));
        data += n;
        bytes -= n;
    }
    return MC_OK;
}

/* A view with gaps goes row by row, packed into `chunk`. */
static mc_status append_strided(mt_st_writer *w, mc_hasher *h, mc_tensor v, char *chunk)
{
    size_t elem = mc_dtype_bytes(v.dtype), used = 0;
    int64_t rows = v.n_dims == 2 ? v.dims[0] : 1, cols = v.dims[v.n_dims - 1];
    int64_t row_stride = v.n_dims == 2 ? v.strides[0] : 0, col_stride = v.strides[v.n_dims - 1];
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t c = 0; c < cols;) {
            int64_t room = (int64_t)((MT_I_CHUNK_BYTES - used) / elem), n = cols - c < room ? cols - c : room;
            const char *src = (const char *)v.data + (size_t)(r * row_stride + c * col_stride) * elem;
            if (col_stride == 1) {
                memcpy(chunk + used, src, (size_t)n * elem);
            } else {
                for (int64_t k = 0; k < n; k++) {
                    memcpy(chunk + used + (size_t)k * elem, src + (size_t)(k * col_stride) * elem, elem);
                }
            }
            used += (size_t)n * elem;
            c += n;
            if (MT_I_CHUNK_BYTES - used < elem) {
                MC_TRY(append_hashed(w, h, chunk, used));
                used = 0;
            }
        }
    }
    return append_hashed(w, h, chunk, used);
}

mc_status mt_i_shard_open(const char *dir, int64_t iteration, mt_i_shard *s)
{
    char path[MC_PATH_BYTES], step[24];
    if (s->n_pieces == 0) {
        return MC_OK;
    }
    MC_TRY(mc_path_format(path, "%s/%s", dir, s->file));
    if (!mc_file_is_dir(dir)) {
        return MC_FAIL(MC_IO,
                       "rank %d cannot see %s, which rank 0 just made; --save needs a directory that all nodes share",
                       s->rank, dir);
    }
    mt_st_tensor *tensors;
    MC_TRY(MC_NEW_N(&tensors, s->n_pieces, "shard tensors"));
    for (int i = 0; i < s->n_pieces; i++) {
        const mt_i_piece *q = &s->pieces[i];
        tensors[i] = (mt_st_tensor){.name = q->name, .dtype = mt_st_dtype_of(q->view.dtype), .n_dims = q->view.n_dims};
        memcpy(tensors[i].shape, q->shape, sizeof q->shape);
    }
    snprintf(step, sizeof step, "%lld", (long long)iteration);
    const char *const metadata[] = {"format", "pt", "megac_iteration", step};
    mc_status st = mc_alloc(MT_I_CHUNK_BYTES, 1, "checkpoint buffer", (void **)&s->chunk);
    MC_TRY_GOTO(st, st, undo_tensors);
    MC_TRY_GOTO(st, mt_st_writer_create(path, tensors, s->n_pieces, metadata, 2, &s->writer), undo_tensors);
    s->header_xxh3 = mt_st_writer_header_hash(s->writer);
    s->file_bytes = mt_st_writer_header_bytes(s->writer) + tensors[s->n_pieces - 1].end;
undo_tensors:
    mc_free(tensors);
    return st;
}

mc_status mt_i_shard_write(mt_i_shard *s)
{
    for (int i = 0; i < s->n_pieces; i++) {
        mt_i_piece *q = &s->pieces[i];
        mc_hasher h;
        mc_hasher_init(&h);
        MC_TRY(mc_tensor_contiguous(q->view) ? append_hashed(s->writer, &h, q->view.data, mc_tensor_bytes(q->view))
                                             : append_strided(s->writer, &h, q->view, s->chunk));
        q->xxh3 = mc_hasher_value(&h);
    }
    return s->n_pieces > 0 ? mt_st_writer_finish(s->writer) : MC_OK;
}

void mt_i_shard_table(const mt_i_shard *s, mt_text *table)
{
    if (s->n_pieces == 0) {
        return;
    }
    mt_text_printf(table, "file %d %llu %016llx\n", s->rank, (unsigned long long)s->file_bytes,
                   (unsigned long long)s->header_xxh3);
    for (int i = 0; i < s->n_pieces; i++) {
        const mt_i_piece *q = &s->pieces[i];
        const mt_param *p = q->item->param;
        bool two = p->n_dims == 2;
        mt_text_printf(table, "slice %d %d %s %d %lld %lld %lld %lld %lld %lld %lld %016llx %s.%s\n", s->rank, q->part,
                       mt_st_dtype_name(mt_st_dtype_of(q->view.dtype)), p->n_dims, (long long)p->global_dims[0],
                       two ? (long long)p->global_dims[1] : 0, (long long)q->begin[0], two ? (long long)q->begin[1] : 0,
                       (long long)q->shape[0], two ? (long long)q->shape[1] : 0, (long long)q->item->valid_rows,
                       (unsigned long long)q->xxh3, q->item->prefix, p->name);
    }
}
