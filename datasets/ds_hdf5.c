/* Opens dataset files. Contiguous data is found through the HDF5 library and then read through mmap: the library is
 * closed again before ds_file_open returns. Tokens stored in chunks are read through the library, under a lock. */
#include <errno.h>
#include <fcntl.h>
#include <hdf5.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "datasets/ds_format.h"
#include "datasets/ds_impl.h"
#include "datasets/ds_util_hdf5.h"
#include "megac/base/alloc.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "dataset files are little-endian and are mapped as they are"
#endif

#define DAMAGED "; the file is damaged or was written by another tool: make it again with megac prepare"

/* Tries `path`, then `path`.h5. */
static mc_status open_fd(const char *path, ds_file *f)
{
    char name[PATH_MAX];
    static const char *const endings[] = {"", ".h5"};
    struct stat sb;
    for (int i = 0; i < 2; i++) {
        int n = snprintf(name, sizeof name, "%s%s", path, endings[i]);
        if (n < 0 || (size_t)n >= sizeof name) {
            return MC_FAIL(MC_INVALID, "dataset path of %zu bytes is too long", strlen(path));
        }
        if (stat(name, &sb) != 0) {
            if (errno != ENOENT && errno != ENOTDIR) {
                return MC_FAIL(MC_INPUT, "cannot look at dataset %s: %s", name, strerror(errno));
            }
            continue;
        }
        if (S_ISDIR(sb.st_mode)) {
            continue;
        }
        f->fd = open(name, O_RDONLY | O_CLOEXEC);
        if (f->fd < 0) {
            return MC_FAIL(MC_INPUT, "cannot open dataset %s: %s; check its permissions", name, strerror(errno));
        }
        f->file_bytes = (uint64_t)sb.st_size;
        return mc_strdup(name, "dataset path", &f->path);
    }
    return MC_FAIL(MC_NOTFOUND, "no dataset %s or %s.h5; make one with: megac prepare --input TEXT --output-prefix %s",
                   path, path, path);
}

/* The first 8 bytes of every HDF5 file without a user block. */
static mc_status check_signature(const ds_file *f)
{
    static const unsigned char want[8] = {0x89, 'H', 'D', 'F', '\r', '\n', 0x1a, '\n'};
    unsigned char head[8] = {0};
    if (f->file_bytes < sizeof head) {
        return MC_FAIL(MC_INPUT, "%s has %llu bytes: not an HDF5 file; make a dataset with megac prepare", f->path,
                       (unsigned long long)f->file_bytes);
    }
    MC_TRY(ds_i_pread_all(f->fd, f->path, head, sizeof head, 0));
    if (memcmp(head, want, sizeof head) != 0) {
        return MC_FAIL(MC_INPUT,
                       "%s is not an HDF5 file (it starts with bytes %02x %02x %02x %02x); make a dataset of it with "
                       "megac prepare",
                       f->path, head[0], head[1], head[2], head[3]);
    }
    return MC_OK;
}

static mc_status open_h5(ds_file *f)
{
    hid_t fapl = H5Pcreate(H5P_FILE_ACCESS);
    H5Pset_libver_bounds(fapl, H5F_LIBVER_EARLIEST, H5F_LIBVER_LATEST);
#if H5_VERSION_GE(1, 10, 7)
    H5Pset_file_locking(fapl, false, true); /* complete files never change, and some file systems have no locks */
#endif
    f->h5_file = H5Fopen(f->path, H5F_ACC_RDONLY, fapl);
    if (f->h5_file < 0) {
        char why[DS_I_H5_WHY];
        ds_i_h5_why(why);
        H5Pclose(fapl);
        return MC_FAIL(MC_INPUT, "%s (%llu bytes): HDF5 cannot open it: %s; the copy is incomplete or damaged", f->path,
                       (unsigned long long)f->file_bytes, why);
    }
    H5Pclose(fapl);
    return MC_OK;
}

static mc_status get_u64(const ds_file *f, const char *name, uint64_t max, uint64_t *out)
{
    if (ds_i_h5_get_u64(f->h5_file, name, out) < 0) {
        return MC_FAIL(MC_INPUT, "%s: no readable attribute \"%s\"" DAMAGED, f->path, name);
    }
    if (*out > max) {
        return MC_FAIL(MC_INPUT, "%s: attribute %s is %llu, at most %llu is possible" DAMAGED, f->path, name,
                       (unsigned long long)*out, (unsigned long long)max);
    }
    return MC_OK;
}

static mc_status read_attributes(ds_file *f)
{
    char format[32] = "";
    ds_info *info = &f->info;
    if (ds_i_h5_get_text(f->h5_file, "format", format, sizeof format) < 0 || strcmp(format, DS_FORMAT_NAME) != 0) {
        return MC_FAIL(MC_INPUT,
                       "%s is an HDF5 file but not a megac dataset (attribute format is \"%s\"); make one "
                       "with megac prepare",
                       f->path, format);
    }
    uint64_t version, vocab;
    MC_TRY(get_u64(f, "version", UINT64_MAX, &version));
    if (version != DS_FORMAT_VERSION) {
        return MC_FAIL(MC_INPUT, "%s has dataset version %llu, this program reads version %d; use a newer megac",
                       f->path, (unsigned long long)version, DS_FORMAT_VERSION);
    }
    MC_TRY(get_u64(f, "vocab_size", INT32_MAX, &vocab));
    MC_TRY(get_u64(f, "num_tokens", INT64_MAX, &info->n_tokens));
    MC_TRY(get_u64(f, "num_documents", f->file_bytes / 8, &info->n_documents));
    info->vocab_size = (uint32_t)vocab;
    if (vocab == 0 || info->n_tokens == 0 || info->n_documents == 0) {
        return MC_FAIL(MC_INPUT, "%s: vocabulary %llu, %llu tokens, %llu documents: none may be 0" DAMAGED, f->path,
                       (unsigned long long)vocab, (unsigned long long)info->n_tokens,
                       (unsigned long long)info->n_documents);
    }
    if (ds_i_h5_get_i64(f->h5_file, "eod_id", &info->eod_id) < 0 || info->eod_id < -1 ||
        info->eod_id >= (int64_t)vocab) {
        return MC_FAIL(MC_INPUT, "%s: attribute eod_id is missing or outside of the vocabulary of %u" DAMAGED, f->path,
                       info->vocab_size);
    }
    if (ds_i_h5_get_text(f->h5_file, "tokenizer_kind", info->tokenizer_kind, sizeof info->tokenizer_kind) < 0 ||
        ds_i_h5_get_text(f->h5_file, "tokenizer_sha256", info->tokenizer_sha256, sizeof info->tokenizer_sha256) < 0) {
        return MC_FAIL(MC_INPUT, "%s: no readable attribute tokenizer_kind or tokenizer_sha256" DAMAGED, f->path);
    }
    return MC_OK;
}

/* Size of a 1-D data set, or negative. */
static int64_t elems_1d(hid_t set)
{
    hid_t space = H5Dget_space(set);
    int64_t n = H5Sget_simple_extent_ndims(space) == 1 ? (int64_t)H5Sget_simple_extent_npoints(space) : -1;
    H5Sclose(space);
    return n;
}

/* The place of a contiguous 1-D data set of `want` elements (any number when want < 0), inside the file. */
static mc_status find_extent(const ds_file *f, hid_t set, const char *name, int64_t want, ds_i_extent *out)
{
    int64_t n = elems_1d(set);
    hid_t dcpl = H5Dget_create_plist(set), type = H5Dget_type(set);
    H5D_layout_t layout = H5Pget_layout(dcpl);
    uint64_t each = H5Tget_size(type), offset = H5Dget_offset(set);
    H5Pclose(dcpl);
    H5Tclose(type);
    if (n < 0 || (want >= 0 && n != want)) {
        return MC_FAIL(MC_INPUT, "%s: /%s has %lld elements, the attributes say %lld" DAMAGED, f->path, name,
                       (long long)n, (long long)want);
    }
    if (layout != H5D_CONTIGUOUS || offset == HADDR_UNDEF) {
        return MC_FAIL(MC_INPUT, "%s: /%s is not stored in one piece" DAMAGED, f->path, name);
    }
    if (offset > f->file_bytes || each == 0 || (uint64_t)n > (f->file_bytes - offset) / each) {
        return MC_FAIL(MC_INPUT,
                       "%s: /%s (%lld elements of %llu bytes at %llu) lies beyond the file's %llu bytes" DAMAGED,
                       f->path, name, (long long)n, (unsigned long long)each, (unsigned long long)offset,
                       (unsigned long long)f->file_bytes);
    }
    *out = (ds_i_extent){offset, (uint64_t)n * each};
    return MC_OK;
}

static bool type_is(hid_t set, hid_t want)
{
    hid_t type = H5Dget_type(set);
    bool same = H5Tequal(type, want) > 0;
    H5Tclose(type);
    return same;
}

static mc_status find_tokens(ds_file *f)
{
    hid_t set = f->h5_tokens = H5Dopen2(f->h5_file, "tokens", H5P_DEFAULT);
    bool narrow = set >= 0 && type_is(set, H5T_STD_U16LE);
    if (set < 0 || (!narrow && !type_is(set, H5T_STD_U32LE))) {
        return MC_FAIL(MC_INPUT, "%s: /tokens is missing or not 16- or 32-bit unsigned little-endian" DAMAGED, f->path);
    }
    f->info.token_bytes = narrow ? 2 : 4;
    hid_t dcpl = H5Dget_create_plist(set);
    f->info.compressed = H5Pget_layout(dcpl) == H5D_CHUNKED;
    hsize_t chunk[1] = {1};
    bool chunk_ok = f->info.compressed && H5Pget_chunk(dcpl, 1, chunk) == 1 && chunk[0] <= (64u << 20);
    H5Pclose(dcpl);
    if (!f->info.compressed) {
        return find_extent(f, set, "tokens", (int64_t)f->info.n_tokens, &f->data[DS_I_TOKENS]);
    }
    if (!chunk_ok || elems_1d(set) != (int64_t)f->info.n_tokens) {
        return MC_FAIL(MC_INPUT, "%s: /tokens has %lld elements in chunks of %llu, the attributes say %llu" DAMAGED,
                       f->path, (long long)elems_1d(set), (unsigned long long)chunk[0],
                       (unsigned long long)f->info.n_tokens);
    }
    /* Room for some hundred chunks: windows of one epoch visit the file in random order. */
    H5Dclose(set);
    hid_t dapl = H5Pcreate(H5P_DATASET_ACCESS);
    H5Pset_chunk_cache(dapl, 12421, 64u << 20, 1.0);
    f->h5_tokens = H5Dopen2(f->h5_file, "tokens", dapl);
    H5Pclose(dapl);
    return f->h5_tokens < 0 ? MC_FAIL(MC_INPUT, "%s: /tokens cannot be opened" DAMAGED, f->path) : MC_OK;
}

static mc_status find_set(const ds_file *f, const char *name, hid_t want_type, int64_t want, ds_i_extent *out)
{
    hid_t set = H5Dopen2(f->h5_file, name, H5P_DEFAULT);
    if (set < 0 || (want_type >= 0 && !type_is(set, want_type))) {
        if (set >= 0) {
            H5Dclose(set);
        }
        return MC_FAIL(MC_INPUT, "%s: /%s is missing or has another type than the format says" DAMAGED, f->path, name);
    }
    mc_status st = find_extent(f, set, name, want, out);
    H5Dclose(set);
    return st;
}

/* Absent checksums are no error here: ds_file_verify says it. */
static mc_status find_sums(ds_file *f)
{
    if (H5Lexists(f->h5_file, "checksums", H5P_DEFAULT) <= 0) {
        return MC_OK;
    }
    for (int i = 0; i < DS_I_DATA_COUNT; i++) {
        uint64_t n = (f->data[i].bytes + DS_FORMAT_CHECK_BLOCK - 1) / DS_FORMAT_CHECK_BLOCK;
        char name[64];
        snprintf(name, sizeof name, "checksums/%s", ds_i_data_names[i]);
        if (n) {
            MC_TRY(find_set(f, name, H5T_STD_U64LE, (int64_t)n, &f->sums[i]));
        }
    }
    MC_TRY(find_set(f, "checksums/rest", H5T_STD_U64LE, 1, &f->rest));
    f->has_sums = true;
    return MC_OK;
}

static mc_status find_all(ds_file *f)
{
    MC_TRY(read_attributes(f));
    MC_TRY(find_tokens(f));
    MC_TRY(find_set(f, "documents", H5T_STD_U64LE, (int64_t)f->info.n_documents + 1, &f->data[DS_I_DOCUMENTS]));
    if (H5Lexists(f->h5_file, "tokenizer", H5P_DEFAULT) > 0) {
        MC_TRY(find_set(f, "tokenizer", -1, -1, &f->data[DS_I_TOKENIZER]));
    }
    return find_sums(f);
}

static mc_status map_file(ds_file *f)
{
    void *map = mmap(NULL, f->file_bytes, PROT_READ, MAP_SHARED, f->fd, 0);
    if (map == MAP_FAILED) {
        return MC_FAIL(MC_IO, "%s: cannot map %llu bytes: %s", f->path, (unsigned long long)f->file_bytes,
                       strerror(errno));
    }
    f->map = map;
    uint64_t ends[2] = {0, 0};
    MC_TRY(ds_file_documents(f, 0, 0, &ends[0]));
    MC_TRY(ds_file_documents(f, f->info.n_documents, 0, &ends[1]));
    if (ends[0] != 0 || ends[1] != f->info.n_tokens) {
        return MC_FAIL(MC_INPUT, "%s: /documents runs from %llu to %llu, not from 0 to the %llu tokens" DAMAGED,
                       f->path, (unsigned long long)ends[0], (unsigned long long)ends[1],
                       (unsigned long long)f->info.n_tokens);
    }
    return MC_OK;
}

static void close_h5(ds_file *f)
{
    ds_i_h5_quiet quiet = ds_i_h5_begin();
    if (f->h5_tokens >= 0) {
        H5Dclose(f->h5_tokens);
    }
    if (f->h5_file >= 0) {
        H5Fclose(f->h5_file);
    }
    f->h5_tokens = f->h5_file = -1;
    ds_i_h5_end(quiet);
}

mc_status ds_file_open(const char *path, ds_file **file_out)
{
    ds_file *f;
    mc_status st;
    MC_TRY(MC_NEW(&f, "dataset"));
    f->fd = -1;
    f->h5_file = f->h5_tokens = -1;
    pthread_mutex_init(&f->lock, NULL);
    ds_i_h5_quiet quiet = ds_i_h5_begin();
    MC_TRY_GOTO(st, open_fd(path, f), undo_file);
    MC_TRY_GOTO(st, check_signature(f), undo_file);
    MC_TRY_GOTO(st, open_h5(f), undo_file);
    MC_TRY_GOTO(st, find_all(f), undo_file);
    MC_TRY_GOTO(st, map_file(f), undo_file);
    ds_i_h5_end(quiet);
    if (!f->info.compressed) {
        close_h5(f);
    }
    *file_out = f;
    return MC_OK;
undo_file:
    ds_i_h5_end(quiet);
    ds_file_close(f);
    return st;
}

void ds_file_close(ds_file *file)
{
    if (!file) {
        return;
    }
    close_h5(file);
    if (file->map) {
        munmap((void *)(uintptr_t)file->map, file->file_bytes);
    }
    if (file->fd >= 0) {
        close(file->fd);
    }
    pthread_mutex_destroy(&file->lock);
    mc_free(file->path);
    mc_free(file);
}

mc_status ds_i_read_chunked(const ds_file *file, uint64_t first, uint64_t count, int32_t *tokens_out)
{
    ds_file *f = (ds_file *)(uintptr_t)file; /* the lock is the only thing that changes */
    char why[DS_I_H5_WHY] = "";
    hsize_t start[1] = {first}, n[1] = {count};
    pthread_mutex_lock(&f->lock);
    ds_i_h5_quiet quiet = ds_i_h5_begin();
    hid_t space = H5Dget_space(f->h5_tokens), memory = H5Screate_simple(1, n, NULL);
    herr_t bad = H5Sselect_hyperslab(space, H5S_SELECT_SET, start, NULL, n, NULL);
    bad = bad < 0 ? bad : H5Dread(f->h5_tokens, H5T_NATIVE_UINT32, memory, space, H5P_DEFAULT, tokens_out);
    if (bad < 0) {
        ds_i_h5_why(why);
    }
    H5Sclose(space);
    H5Sclose(memory);
    ds_i_h5_end(quiet);
    pthread_mutex_unlock(&f->lock);
    if (bad < 0) {
        return MC_FAIL(MC_INPUT,
                       "%s: /tokens chunk %llu (tokens %llu..%llu): %s; the file is damaged, copy or make it again",
                       file->path, (unsigned long long)(first / DS_FORMAT_CHUNK_TOKENS), (unsigned long long)first,
                       (unsigned long long)(first + count - 1), why);
    }
    return MC_OK;
}
