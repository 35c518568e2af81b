/* Whole reads and writes at a place of a file, and the checksum of everything but the data. */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "datasets/ds_format.h"
#include "datasets/ds_impl.h"
#include "megac/base/alloc.h"

const char *const ds_i_data_names[DS_I_DATA_COUNT] = {"tokens", "documents", "tokenizer"};

mc_status ds_i_pread_all(int fd, const char *path, void *bytes, size_t n_bytes, uint64_t offset)
{
    unsigned char *p = bytes;
    while (n_bytes > 0) {
        ssize_t n = pread(fd, p, n_bytes, (off_t)offset);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return MC_FAIL(MC_IO, "%s: cannot read %zu bytes at %llu: %s; copy the file again from a good disk", path,
                           n_bytes, (unsigned long long)offset, n < 0 ? strerror(errno) : "the file ends before");
        }
        p += n;
        n_bytes -= (size_t)n;
        offset += (uint64_t)n;
    }
    return MC_OK;
}

mc_status ds_i_pwrite_all(int fd, const char *path, const void *bytes, size_t n_bytes, uint64_t offset)
{
    const unsigned char *p = bytes;
    while (n_bytes > 0) {
        ssize_t n = pwrite(fd, p, n_bytes, (off_t)offset);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return MC_FAIL(MC_IO, "%s: cannot write at byte %llu: %s; free space or choose another place", path,
                           (unsigned long long)offset, n < 0 ? strerror(errno) : "nothing was written");
        }
        p += n;
        n_bytes -= (size_t)n;
        offset += (uint64_t)n;
    }
    return MC_OK;
}

static mc_status add_range(int fd, const char *path, ds_i_hasher *h, void *buf, uint64_t at, uint64_t end)
{
    while (at < end) {
        size_t n = end - at < DS_FORMAT_CHECK_BLOCK ? (size_t)(end - at) : DS_FORMAT_CHECK_BLOCK;
        MC_TRY(ds_i_pread_all(fd, path, buf, n, at));
        ds_i_hasher_add(h, buf, n);
        at += n;
    }
    return MC_OK;
}

mc_status ds_i_hash_rest(int fd, const char *path, uint64_t file_bytes, const ds_i_extent *skip, int n_skip,
                         uint64_t *hash_out)
{
    ds_i_hasher *h = NULL;
    void *buf = NULL;
    uint64_t at = 0;
    mc_status st = ds_i_hasher_create(&h);
    MC_KEEP_FIRST(st, st == MC_OK ? mc_alloc(1, DS_FORMAT_CHECK_BLOCK, "checksum buffer", &buf) : st);
    for (int i = 0; i <= n_skip && st == MC_OK; i++) {
        uint64_t end = i < n_skip ? skip[i].offset : file_bytes;
        st = add_range(fd, path, h, buf, at, end);
        at = i < n_skip ? end + skip[i].bytes : end;
    }
    if (st == MC_OK) {
        *hash_out = ds_i_hasher_value(h);
    }
    ds_i_hasher_destroy(h);
    mc_free(buf);
    return st;
}
