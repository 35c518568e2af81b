#include "megac/train/checkpoint/safetensors.h"

#include <stdlib.h>
#include <string.h>

#include "megac/base/alloc.h"
#include "megac/base/file.h"
#include "megac/base/hash.h"
#include "megac/train/checkpoint/ckpt_text.h"
#include "megac/train/checkpoint/safetensors_impl.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "safetensors data is little-endian");

static const struct {
    const char *name;
    size_t bytes;
} dtypes[MT_ST_DTYPE_COUNT] = {
#define MT_ST_ROW(NAME, bytes) [MT_ST_##NAME] = {#NAME, bytes},
    MT_ST_DTYPES(MT_ST_ROW)
#undef MT_ST_ROW
};

static const struct {
    mc_dtype mc;
    mt_st_dtype st;
} pairs[] = {
    {MC_F32, MT_ST_F32}, {MC_F64, MT_ST_F64}, {MC_BF16, MT_ST_BF16},
    {MC_F16, MT_ST_F16}, {MC_I32, MT_ST_I32}, {MC_U8, MT_ST_U8},
};
_Static_assert(sizeof pairs / sizeof *pairs == MC_DTYPE_COUNT, "every element type has its name in the format");

const char *mt_st_dtype_name(mt_st_dtype dtype)
{
    return dtypes[dtype].name;
}

size_t mt_st_dtype_bytes(mt_st_dtype dtype)
{
    return dtypes[dtype].bytes;
}

bool mt_st_dtype_parse(const char *name, mt_st_dtype *dtype_out)
{
    for (int i = 0; i < MT_ST_DTYPE_COUNT; i++) {
        if (strcmp(dtypes[i].name, name) == 0) {
            *dtype_out = (mt_st_dtype)i;
            return true;
        }
    }
    return false;
}

mt_st_dtype mt_st_dtype_of(mc_dtype dtype)
{
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        if (pairs[i].mc == dtype) {
            return pairs[i].st;
        }
    }
    MC_ASSERT(!"a known element type");
    return MT_ST_U8;
}

bool mt_st_dtype_to_mc(mt_st_dtype dtype, mc_dtype *dtype_out)
{
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        if (pairs[i].st == dtype) {
            *dtype_out = pairs[i].mc;
            return true;
        }
    }
    return false;
}

bool mt_st_tensor_bytes(mt_st_dtype dtype, int n_dims, const int64_t *shape, uint64_t *bytes_out)
{
    uint64_t n = dtypes[dtype].bytes;
    for (int i = 0; i < n_dims; i++) {
        if (shape[i] < 0 || __builtin_mul_overflow(n, (uint64_t)shape[i], &n)) {
            return false;
        }
    }
    *bytes_out = n;
    return true;
}

struct mt_st_writer {
    int fd;
    char *path;
    uint64_t header_bytes, header_hash, data_bytes, written_bytes;
};

static void add_entry(mt_text *h, const mt_st_tensor *t)
{
    mt_text_json(h, t->name, strlen(t->name));
    mt_text_printf(h, ":{\"dtype\":\"%s\",\"shape\":[", dtypes[t->dtype].name);
    for (int d = 0; d < t->n_dims; d++) {
        mt_text_printf(h, "%s%lld", d ? "," : "", (long long)t->shape[d]);
    }
    mt_text_printf(h, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)t->begin, (unsigned long long)t->end);
}

/* The whole header, N included; fills begin and end of every tensor. */
static mc_status build_header(mt_st_writer *w, mt_st_tensor *tensors, int n_tensors, const char *const *metadata,
                              int n_metadata, mt_text *h)
{
    mt_text_add(h, "\0\0\0\0\0\0\0\0{\"__metadata__\":{", 8 + 17);
    for (int i = 0; i < n_metadata; i++) {
        mt_text_add(h, ",", i > 0);
        mt_text_json(h, metadata[2 * i], strlen(metadata[2 * i]));
        mt_text_add(h, ":", 1);
        mt_text_json(h, metadata[2 * i + 1], strlen(metadata[2 * i + 1]));
    }
    mt_text_add(h, "}", 1);
    for (int i = 0; i < n_tensors; i++) {
        mt_st_tensor *t = &tensors[i];
        uint64_t bytes;
        MC_ASSERT(t->n_dims >= 0 && t->n_dims <= MT_ST_MAX_DIMS);
        if (!mt_st_tensor_bytes(t->dtype, t->n_dims, t->shape, &bytes) || bytes > INT64_MAX - w->data_bytes) {
            return MC_FAIL(MC_INVALID, "tensor \"%s\" is too large for one file", t->name);
        }
        t->begin = w->data_bytes;
        t->end = w->data_bytes += bytes;
        mt_text_add(h, ",", 1);
        add_entry(h, t);
    }
    mt_text_add(h, "}       ", 8);
    MC_TRY(h->st);
    h->bytes -= h->bytes % 8; /* at most the 7 spaces just added */
    uint64_t n = h->bytes - 8;
    memcpy(h->data, &n, 8);
    if (n > MT_ST_MAX_HEADER_BYTES) {
        return MC_FAIL(MC_INVALID, "%s: header of %llu bytes, readers accept %d; write fewer tensors to one file",
                       w->path, (unsigned long long)n, MT_ST_MAX_HEADER_BYTES);
    }
    w->header_bytes = h->bytes;
    w->header_hash = mc_hash(h->data, h->bytes);
    return MC_OK;
}

mc_status mt_st_writer_create(const char *path, mt_st_tensor *tensors, int n_tensors, const char *const *metadata,
                              int n_metadata, mt_st_writer **writer_out)
{
    mt_st_writer *w;
    mt_text header = {0};
    MC_TRY(MC_NEW(&w, "safetensors writer"));
    w->fd = -1;
    mc_status st = mc_strdup(path, "safetensors path", &w->path);
    MC_TRY_GOTO(st, st, undo_header);
    MC_TRY_GOTO(st, build_header(w, tensors, n_tensors, metadata, n_metadata, &header), undo_header);
    MC_TRY_GOTO(st, mc_file_create(path, &w->fd), undo_header);
    MC_TRY_GOTO(st, mc_file_write(w->fd, path, header.data, header.bytes), undo_header);
    *writer_out = w;
undo_header:
    mt_text_fini(&header);
    if (st != MC_OK) {
        mt_st_writer_destroy(w);
    }
    return st;
}

uint64_t mt_st_writer_header_hash(const mt_st_writer *w)
{
    return w->header_hash;
}

uint64_t mt_st_writer_header_bytes(const mt_st_writer *w)
{
    return w->header_bytes;
}

mc_status mt_st_writer_append(mt_st_writer *w, const void *data, size_t bytes)
{
    MC_ASSERT(bytes <= w->data_bytes - w->written_bytes);
    MC_TRY(mc_file_write(w->fd, w->path, data, bytes));
    w->written_bytes += bytes;
    return MC_OK;
}

mc_status mt_st_writer_finish(mt_st_writer *w)
{
    MC_ASSERT(w->written_bytes == w->data_bytes);
    MC_TRY(mc_file_sync(w->fd, w->path));
    int fd = w->fd;
    w->fd = -1;
    return mc_file_close(fd, w->path);
}

void mt_st_writer_destroy(mt_st_writer *w)
{
    if (w) {
        if (w->fd >= 0) {
            mc_status ignored = mc_file_close(w->fd, w->path);
            (void)ignored;
        }
        mc_free(w->path);
        mc_free(w);
    }
}

static int compare_begin(const void *a, const void *b)
{
    const mt_st_tensor *x = a, *y = b;
    if (x->begin != y->begin) {
        return x->begin < y->begin ? -1 : 1;
    }
    return (x->end > y->end) - (x->end < y->end);
}

static int compare_name(const void *a, const void *b)
{
    return strcmp((*(const mt_st_tensor *const *)a)->name, (*(const mt_st_tensor *const *)b)->name);
}

/* Neither holes nor overlaps, from the first byte of the data to the last of the file. */
static mc_status check_order(mt_st_file *f)
{
    qsort(f->tensors, (size_t)f->n_tensors, sizeof *f->tensors, compare_begin);
    MC_TRY(MC_NEW_N(&f->by_name, f->n_tensors, "safetensors names"));
    uint64_t at = 0, data_bytes = f->file_bytes - f->header_bytes;
    for (int i = 0; i < f->n_tensors; i++) {
        const mt_st_tensor *t = &f->tensors[i];
        if (t->begin != at) {
            return MC_FAIL(MC_INPUT,
                           "%s: tensor \"%s\" begins at byte %llu, the one before it ends at %llu: %s; damaged file",
                           f->path, t->name, (unsigned long long)t->begin, (unsigned long long)at,
                           t->begin < at ? "they overlap" : "there is a hole");
        }
        at = t->end;
        f->by_name[i] = t;
    }
    qsort(f->by_name, (size_t)f->n_tensors, sizeof *f->by_name, compare_name);
    if (at != data_bytes) {
        return MC_FAIL(MC_INPUT, "%s: tensors end at byte %llu, the data at %llu; damaged file", f->path,
                       (unsigned long long)at, (unsigned long long)data_bytes);
    }
    return MC_OK;
}

static mc_status read_header(mt_st_file *f)
{
    uint64_t n;
    char *text;
    if (f->file_bytes < 10) {
        return MC_FAIL(MC_INPUT, "%s has %llu bytes: too short for a safetensors file", f->path,
                       (unsigned long long)f->file_bytes);
    }
    MC_TRY(mc_file_pread(f->fd, f->path, &n, 8, 0));
    if (n < 2 || n > MT_ST_MAX_HEADER_BYTES || n > f->file_bytes - 8) {
        return MC_FAIL(MC_INPUT,
                       "%s: header of %llu bytes in a file of %llu (at most %d); damaged, or not a safetensors file",
                       f->path, (unsigned long long)n, (unsigned long long)f->file_bytes, MT_ST_MAX_HEADER_BYTES);
    }
    f->header_bytes = 8 + n;
    MC_TRY(mc_alloc((size_t)n + 8, 1, "safetensors header text", (void **)&text));
    mc_status st = mc_file_pread(f->fd, f->path, text, (size_t)n + 8, 0);
    MC_TRY_GOTO(st, st, undo_text);
    f->header_hash = mc_hash(text, (size_t)n + 8);
    if (text[8] != '{') {
        st = MC_FAIL(MC_INPUT, "%s: the header does not begin with {; damaged, or not a safetensors file", f->path);
        goto undo_text;
    }
    st = mt_i_st_parse(f, text + 8, (size_t)n);
undo_text:
    mc_free(text);
    return st;
}

mc_status mt_st_open(const char *path, mt_st_file **file_out)
{
    mt_st_file *f;
    MC_TRY(MC_NEW(&f, "safetensors file"));
    f->fd = -1;
    mc_status st = mc_strdup(path, "safetensors path", &f->path);
    MC_TRY_GOTO(st, st, undo_file);
    MC_TRY_GOTO(st, mc_file_open(path, &f->fd), undo_file);
    MC_TRY_GOTO(st, mc_file_stat(path, &f->file_bytes), undo_file);
    MC_TRY_GOTO(st, read_header(f), undo_file);
    MC_TRY_GOTO(st, check_order(f), undo_file);
    *file_out = f;
    return MC_OK;
undo_file:
    mt_st_close(f);
    return st;
}

void mt_st_close(mt_st_file *f)
{
    if (f) {
        if (f->fd >= 0) {
            mc_status ignored = mc_file_close(f->fd, f->path);
            (void)ignored;
        }
        if (f->json) {
            mt_i_st_json_release(f->json);
        }
        mc_free(f->by_name);
        mc_free(f->tensors);
        mc_free(f->path);
        mc_free(f);
    }
}

int mt_st_count(const mt_st_file *f)
{
    return f->n_tensors;
}

const mt_st_tensor *mt_st_at(const mt_st_file *f, int i)
{
    MC_ASSERT(i >= 0 && i < f->n_tensors);
    return &f->tensors[i];
}

const mt_st_tensor *mt_st_find(const mt_st_file *f, const char *name)
{
    mt_st_tensor key = {.name = name};
    const mt_st_tensor *key_ptr = &key;
    const mt_st_tensor **hit = bsearch(&key_ptr, f->by_name, (size_t)f->n_tensors, sizeof *f->by_name, compare_name);
    return hit ? *hit : NULL;
}

uint64_t mt_st_header_hash(const mt_st_file *f)
{
    return f->header_hash;
}

uint64_t mt_st_header_bytes(const mt_st_file *f)
{
    return f->header_bytes;
}

uint64_t mt_st_file_bytes(const mt_st_file *f)
{
    return f->file_bytes;
}

mc_status mt_st_read(const mt_st_file *f, const mt_st_tensor *t, uint64_t from, void *data, size_t bytes)
{
    MC_ASSERT(from <= t->end - t->begin && bytes <= t->end - t->begin - from);
    return mc_file_pread(f->fd, f->path, data, bytes, f->header_bytes + t->begin + from);
}
