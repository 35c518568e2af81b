/* Filling local tensors from the slices that overlap them. A slice is read once from end to end the first time, so that
 * its checksum is known; later only the rows needed. Memory: one chunk. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "megac/base/alloc.h"
#include "megac/base/hash.h"
#include "megac/train/checkpoint/ckpt_impl.h"

/* Where the elements of a rectangle of the global tensor go: element (i, j) lies at
 * base + ((i - at[0]) * stride[0] + (j - at[1]) * stride[1]) * elem_bytes. */
typedef struct target {
    char *base;
    int64_t at[2], stride[2];
    size_t elem_bytes;
    mt_i_rect need; /* part of the slice that is wanted, in global indices */
    mt_i_cast_fn cast;
} target;

/* ---- shards ---- */

static mc_status match_slice(const mt_checkpoint *c, const mt_st_file *f, const char *path, mt_i_slice *s)
{
    const mt_i_tensor *t = &c->tensors[s->tensor];
    const mt_st_tensor *found = mt_st_find(f, s->name);
    if (!found) {
        return MC_FAIL(MC_INPUT, "%s: tensor \"%s\" is missing; damaged, use another iteration", path, s->name);
    }
    int64_t zero[2] = {0, 0};
    bool fits = found->dtype == t->dtype && found->n_dims == t->n_dims;
    if (fits) {
        mt_i_rect r = mt_i_rect_make(t->n_dims, zero, found->shape);
        fits = r.count[0] == s->rect.count[0] && r.count[1] == s->rect.count[1];
    }
    if (!fits) {
        return MC_FAIL(MC_INPUT,
                       "%s: tensor \"%s\" has another type or shape than %s says; damaged, use another iteration", path,
                       s->name, MT_I_METADATA);
    }
    s->offset = mt_st_header_bytes(f) + found->begin;
    return MC_OK;
}

/* Reads a shard's header: sum, number of tensors, and the place of every slice. */
static mc_status resolve_file(mt_checkpoint *c, mt_i_file *file, const char *path)
{
    mt_st_file *f;
    MC_TRY(mt_st_open(path, &f));
    mc_status st = MC_OK;
    if (mt_st_header_hash(f) != file->header_xxh3 || mt_st_count(f) != file->n_slices ||
        mt_st_file_bytes(f) != file->bytes) {
        st = MC_FAIL(MC_INPUT, "%s: its header differs from what was saved: damaged, use another iteration", path);
    }
    for (int i = file->first_slice; st == MC_OK && i >= 0; i = c->slices[i].next_in_file) {
        st = match_slice(c, f, path, &c->slices[i]);
    }
    mt_st_close(f);
    file->resolved = st == MC_OK;
    return st;
}

mc_status mt_i_slice_locate(mt_checkpoint *c, const mt_i_slice *slice)
{
    char path[MC_PATH_BYTES];
    mt_i_file *file = &c->files[slice->file];
    if (c->open_file == slice->file) {
        return MC_OK;
    }
    MC_TRY(mc_path_format(path, "%s/%s", c->dir, file->name));
    if (!file->resolved) {
        MC_TRY(resolve_file(c, file, path));
    }
    if (c->fd >= 0) {
        close(c->fd);
        c->fd = c->open_file = -1;
    }
    MC_TRY(mc_file_open(path, &c->fd));
    mc_file_will_stream(c->fd);
    c->open_file = slice->file;
    return MC_OK;
}

/* ---- one slice ---- */

/* Elements [from, to) of the slice's rows, of which the first lies at `data`, to the target. */
static void scatter(const target *t, const mt_i_slice *s, size_t elem, const char *data, int64_t from, int64_t to)
{
    int64_t cols = s->rect.count[1];
    for (int64_t row = from / cols; row * cols < to; row++) {
        int64_t i = s->rect.begin[0] + row, line = row * cols;
        int64_t lo = t->need.begin[1] - s->rect.begin[1], hi = lo + t->need.count[1];
        lo = line + lo > from ? line + lo : from;
        hi = line + hi < to ? line + hi : to;
        if (i < t->need.begin[0] || i >= t->need.begin[0] + t->need.count[0] || lo >= hi) {
            continue;
        }
        int64_t j = s->rect.begin[1] + (lo - line);
        char *dst = t->base + ((i - t->at[0]) * t->stride[0] + (j - t->at[1]) * t->stride[1]) * (int64_t)t->elem_bytes;
        const char *src = data + (size_t)(lo - from) * elem;
        if (t->stride[1] == 1) {
            t->cast(dst, src, (size_t)(hi - lo));
            continue;
        }
        for (int64_t k = 0; k < hi - lo; k++) {
            t->cast(dst + k * t->stride[1] * (int64_t)t->elem_bytes, src + (size_t)k * elem, 1);
        }
    }
}

/* Reads elements [from, to) of a slice in chunks. They are hashed when `h`, scattered when `t`, and read straight to
 * `direct` when that is given. */
static mc_status stream(mt_checkpoint *c, const mt_i_slice *s, int64_t from, int64_t to, mc_hasher *h, const target *t,
                        char *direct)
{
    char path[MC_PATH_BYTES];
    size_t elem = mt_st_dtype_bytes(c->tensors[s->tensor].dtype);
    MC_TRY(mc_path_format(path, "%s/%s", c->dir, c->files[s->file].name));
    while (from < to) {
        int64_t n = (int64_t)(MT_I_CHUNK_BYTES / elem);
        n = n < to - from ? n : to - from;
        char *data = direct ? direct : c->chunk;
        MC_TRY(mc_file_pread(c->fd, path, data, (size_t)n * elem, s->offset + (uint64_t)from * elem));
        if (h) {
            mc_hasher_add(h, data, (size_t)n * elem);
        }
        if (direct) {
            direct += (size_t)n * elem;
        } else if (t) {
            scatter(t, s, elem, data, from, from + n);
        }
        from += n;
    }
    return MC_OK;
}

static mc_status check_hash(const mt_checkpoint *c, mt_i_slice *s, const mc_hasher *h)
{
    if (mc_hasher_value(h) != s->xxh3) {
        return MC_FAIL(MC_INPUT, "%s/%s: tensor \"%s\": its checksum is wrong: damaged, use another iteration", c->dir,
                       c->files[s->file].name, s->name);
    }
    s->verified = true;
    return MC_OK;
}

mc_status mt_i_slice_verify(mt_checkpoint *c, mt_i_slice *s)
{
    mc_hasher h;
    mc_hasher_init(&h);
    MC_TRY(mt_i_slice_locate(c, s));
    MC_TRY(stream(c, s, 0, mt_i_rect_elems(s->rect), &h, NULL, NULL));
    return check_hash(c, s, &h);
}

/* The target's memory for elements [from, to) of the slice when it is one block of the same type, else NULL. */
static char *direct_target(const mt_checkpoint *c, const mt_i_slice *s, const target *t, mc_dtype dtype)
{
    bool full_rows = t->need.count[1] == s->rect.count[1];
    bool one_row = t->need.count[0] == 1;
    if (c->tensors[s->tensor].dtype != mt_st_dtype_of(dtype) || t->stride[1] != 1 || !full_rows ||
        (!one_row && t->stride[0] != t->need.count[1])) {
        return NULL;
    }
    return t->base +
           ((t->need.begin[0] - t->at[0]) * t->stride[0] + (t->need.begin[1] - t->at[1])) * (int64_t)t->elem_bytes;
}

static mc_status fill_from_slice(mt_checkpoint *c, mt_i_slice *s, const target *t, mc_dtype dtype)
{
    int64_t cols = s->rect.count[1], all = mt_i_rect_elems(s->rect);
    int64_t from = (t->need.begin[0] - s->rect.begin[0]) * cols, to = from + t->need.count[0] * cols;
    char *direct = direct_target(c, s, t, dtype);
    MC_TRY(mt_i_slice_locate(c, s));
    if (s->verified) {
        return stream(c, s, from, to, NULL, t, direct);
    }
    mc_hasher h;
    mc_hasher_init(&h);
    MC_TRY(stream(c, s, 0, from, &h, NULL, NULL));
    MC_TRY(stream(c, s, from, to, &h, t, direct));
    MC_TRY(stream(c, s, to, all, &h, NULL, NULL));
    return check_hash(c, s, &h);
}

/* ---- one item ---- */

static bool ends_with(const char *text, const char *end)
{
    size_t n = strlen(text), m = strlen(end);
    return n >= m && strcmp(text + n - m, end) == 0;
}

/* Shapes must agree, but for the padding of a vocabulary. */
static mc_status check_shape(const mt_checkpoint *c, const mt_i_tensor *t, const mt_ckpt_item *item)
{
    const mt_param *p = item->param;
    bool vocabulary = ends_with(p->name, "word_embeddings.weight") || ends_with(p->name, "output_layer.weight");
    int64_t want0 = p->global_dims[0], want1 = p->n_dims == 2 ? p->global_dims[1] : 1;
    int64_t have1 = t->n_dims == 2 ? t->shape[1] : 1;
    if (p->n_dims != t->n_dims || want1 != have1 || (want0 != t->shape[0] && !vocabulary)) {
        return MC_FAIL(MC_MISMATCH,
                       "%s: \"%s\" is %lld x %lld there and %lld x %lld in this model; give the model flags that "
                       "it was trained with, or --use-checkpoint-args",
                       c->dir, t->name, (long long)t->shape[0], (long long)have1, (long long)want0, (long long)want1);
    }
    if (vocabulary && t->valid_rows > 0 && item->valid_rows > 0 && t->valid_rows != item->valid_rows) {
        return MC_FAIL(MC_MISMATCH,
                       "%s: vocabulary of %lld there, of %lld in this run; use the tokenizer it was trained with",
                       c->dir, (long long)t->valid_rows, (long long)item->valid_rows);
    }
    /* Fewer rows than stored: fine when what is cut off is known to be padding. */
    if (want0 < t->shape[0] && (t->valid_rows == 0 || t->valid_rows > want0)) {
        return MC_FAIL(MC_MISMATCH, "%s: \"%s\" has %lld rows there and %lld in this model; use the same vocabulary",
                       c->dir, t->name, (long long)t->shape[0], (long long)want0);
    }
    return MC_OK;
}

/* The target's geometry for a view that is the rectangle of the global tensor from `begin` on. */
static mt_i_rect aim(mc_tensor view, const int64_t *begin, target *t)
{
    mt_i_rect r = mt_i_rect_make(view.n_dims, begin, view.dims);
    t->base = view.data;
    t->at[0] = r.begin[0];
    t->at[1] = r.begin[1];
    t->stride[0] = view.n_dims == 2 ? view.strides[0] : 0;
    t->stride[1] = view.strides[view.n_dims - 1];
    return r;
}

static mc_status fill_rect(mt_checkpoint *c, const mt_i_tensor *t, mc_tensor view, const int64_t *begin, target *to)
{
    mt_i_rect want = aim(view, begin, to);
    for (int i = 0; i < t->n_slices; i++) {
        mt_i_slice *s = &c->slices[t->first_slice + i];
        if (!s->spare && mt_i_rect_intersect(want, s->rect, &to->need)) {
            MC_TRY(fill_from_slice(c, s, to, view.dtype));
        }
    }
    return MC_OK;
}

mc_status mt_checkpoint_read(mt_checkpoint *c, const mt_ckpt_item *item)
{
    char name[MT_I_NAME_BYTES];
    const mt_param *p = item->param;
    int len = snprintf(name, sizeof name, "%s.%s", item->prefix, p->name);
    MC_ASSERT(len > 0 && (size_t)len < sizeof name && item->local.n_dims == p->n_dims);
    const mt_i_tensor *t = mt_i_tensor_find(c, name);
    if (!t && strncmp(name, "optimizer.", 10) == 0) {
        return MC_FAIL(MC_NOTFOUND,
                       "%s has no \"%s\": it was saved with --no-save-optim or by another --optimizer; give "
                       "--no-load-optim to start with fresh moments",
                       c->dir, name);
    }
    if (!t) {
        return MC_FAIL(MC_NOTFOUND, "%s has no tensor \"%s\"; is it a checkpoint of this kind of model?", c->dir, name);
    }
    MC_TRY(check_shape(c, t, item));
    target to = {.elem_bytes = mc_dtype_bytes(item->local.dtype), .cast = mt_i_cast(t->dtype, item->local.dtype)};
    if (!to.cast) {
        return MC_FAIL(MC_UNSUPPORTED, "%s: \"%s\" is %s there and %s here, which cannot be converted", c->dir, name,
                       mt_st_dtype_name(t->dtype), mc_dtype_name(item->local.dtype));
    }
    if (item->cut) {
        return fill_rect(c, t, item->local, item->begin, &to);
    }
    int64_t at = 0;
    for (int r = 0; r < p->n_ranges; r++) {
        int64_t begin[2] = {0, 0}, count = p->ranges[r].count;
        begin[p->shard_dim] = p->ranges[r].begin;
        MC_TRY(fill_rect(c, t, mc_tensor_slice(item->local, p->shard_dim, at, count), begin, &to));
        at += count;
    }
    return MC_OK;
}
