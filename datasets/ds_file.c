/* Reading and checking an open dataset file: everything that needs no HDF5 library. */
#include <string.h>

#include "datasets/ds_format.h"
#include "datasets/ds_impl.h"
#include "megac/base/alloc.h"

const ds_info *ds_file_info(const ds_file *file)
{
    return &file->info;
}

static mc_status check_tokens(const ds_file *f, uint64_t first, uint64_t count, const int32_t *tokens)
{
    uint32_t max = 0;
    for (uint64_t i = 0; i < count; i++) {
        uint32_t t = (uint32_t)tokens[i];
        max = t > max ? t : max;
    }
    if (max >= f->info.vocab_size) {
        return MC_FAIL(MC_INPUT,
                       "%s: token %u among tokens %llu..%llu is outside of the vocabulary of %u; run megac inspect "
                       "--verify on it, copy or make it again",
                       f->path, max, (unsigned long long)first, (unsigned long long)(first + count - 1),
                       f->info.vocab_size);
    }
    return MC_OK;
}

mc_status ds_file_read(const ds_file *file, uint64_t first, uint64_t count, int32_t *tokens_out)
{
    uint64_t n = file->info.n_tokens;
    if (first > n || count > n - first) {
        return MC_FAIL(MC_INVALID, "%s: tokens [%llu, +%llu) asked for, it has %llu", file->path,
                       (unsigned long long)first, (unsigned long long)count, (unsigned long long)n);
    }
    if (count == 0) {
        return MC_OK;
    }
    const unsigned char *at = file->map + file->data[DS_I_TOKENS].offset;
    if (file->info.compressed) {
        MC_TRY(ds_i_read_chunked(file, first, count, tokens_out));
    } else if (file->info.token_bytes == 4) {
        memcpy(tokens_out, at + 4 * first, 4 * count);
    } else {
        const unsigned char *from = at + 2 * first; /* other tools may write it at an odd place: no uint16_t pointer */
        for (uint64_t i = 0; i < count; i++) {
            uint16_t t;
            memcpy(&t, from + 2 * i, sizeof t);
            tokens_out[i] = t;
        }
    }
    return check_tokens(file, first, count, tokens_out);
}

mc_status ds_file_documents(const ds_file *file, uint64_t first, uint64_t count, uint64_t *ends_out)
{
    uint64_t n = file->info.n_documents;
    if (first > n || count > n - first) {
        return MC_FAIL(MC_INVALID, "%s: document ends [%llu, +%llu] asked for, it has %llu documents", file->path,
                       (unsigned long long)first, (unsigned long long)count, (unsigned long long)n);
    }
    memcpy(ends_out, file->map + file->data[DS_I_DOCUMENTS].offset + 8 * first, 8 * (count + 1));
    return MC_OK;
}

mc_status ds_file_tokenizer(const ds_file *file, void **bytes_out, uint64_t *n_bytes_out)
{
    ds_i_extent at = file->data[DS_I_TOKENIZER];
    void *copy;
    MC_TRY(mc_alloc(1, at.bytes, "stored tokenizer", &copy));
    if (at.bytes) {
        memcpy(copy, file->map + at.offset, at.bytes);
    }
    *bytes_out = copy;
    *n_bytes_out = at.bytes;
    return MC_OK;
}

/* Blocks are read with pread, not through the map: a disk error is then a message and no signal. */
static mc_status verify_blocks(const ds_file *f, ds_i_data which, void *buf)
{
    ds_i_extent data = f->data[which], sums = f->sums[which];
    for (uint64_t at = 0, block = 0; at < data.bytes; block++) {
        uint64_t want;
        size_t n = data.bytes - at < DS_FORMAT_CHECK_BLOCK ? (size_t)(data.bytes - at) : DS_FORMAT_CHECK_BLOCK;
        MC_TRY(ds_i_pread_all(f->fd, f->path, buf, n, data.offset + at));
        MC_TRY(ds_i_pread_all(f->fd, f->path, &want, sizeof want, sums.offset + block * sizeof want));
        if (ds_i_hash(buf, n) != want) {
            return MC_FAIL(MC_INPUT,
                           "%s: /%s block %llu (bytes %llu..%llu of the data) does not match its checksum; copy or "
                           "make the file again",
                           f->path, ds_i_data_names[which], (unsigned long long)block, (unsigned long long)at,
                           (unsigned long long)(at + n - 1));
        }
        at += n;
    }
    return MC_OK;
}

static mc_status verify_rest(const ds_file *f)
{
    ds_i_extent skip[2] = {f->rest, f->data[DS_I_TOKENS]};
    int n_skip = skip[1].bytes ? 2 : 1;
    if (n_skip == 2 && skip[1].offset < skip[0].offset) {
        ds_i_extent t = skip[0];
        skip[0] = skip[1];
        skip[1] = t;
    }
    uint64_t got, want;
    MC_TRY(ds_i_pread_all(f->fd, f->path, &want, sizeof want, f->rest.offset));
    MC_TRY(ds_i_hash_rest(f->fd, f->path, f->file_bytes, skip, n_skip, &got));
    if (got != want) {
        return MC_FAIL(MC_INPUT,
                       "%s: the bytes around the data (HDF5 structure, checksums, padding) do not match "
                       "/checksums/rest; copy or make the file again",
                       f->path);
    }
    return MC_OK;
}

/* Every token below the vocabulary; every chunk readable. */
static mc_status verify_tokens(const ds_file *f, int32_t *buf)
{
    for (uint64_t at = 0; at < f->info.n_tokens; at += DS_FORMAT_CHUNK_TOKENS) {
        uint64_t left = f->info.n_tokens - at;
        MC_TRY(ds_file_read(f, at, left < DS_FORMAT_CHUNK_TOKENS ? left : DS_FORMAT_CHUNK_TOKENS, buf));
    }
    return MC_OK;
}

static mc_status verify_documents(const ds_file *f)
{
    uint64_t last = 0;
    for (uint64_t i = 0; i <= f->info.n_documents; i++) {
        uint64_t end;
        MC_TRY(ds_file_documents(f, i, 0, &end));
        if (end < last) {
            return MC_FAIL(MC_INPUT, "%s: /documents entry %llu is %llu, less than %llu before it; make the file again",
                           f->path, (unsigned long long)i, (unsigned long long)end, (unsigned long long)last);
        }
        last = end;
    }
    return MC_OK;
}

static mc_status verify_tokenizer(const ds_file *f)
{
    char sha[65] = "";
    ds_i_extent at = f->data[DS_I_TOKENIZER];
    if (at.bytes) {
        ds_i_sha256(f->map + at.offset, at.bytes, sha);
    }
    if (strcmp(sha, f->info.tokenizer_sha256) != 0) {
        return MC_FAIL(MC_INPUT, "%s: /tokenizer has SHA-256 \"%s\", attribute tokenizer_sha256 says \"%s\"", f->path,
                       sha, f->info.tokenizer_sha256);
    }
    return MC_OK;
}

mc_status ds_file_verify(const ds_file *file)
{
    if (!file->has_sums) {
        return MC_FAIL(MC_INPUT, "%s has no /checksums: it was not written by megac prepare and cannot be verified",
                       file->path);
    }
    void *buf;
    MC_TRY(mc_alloc(1, DS_FORMAT_CHECK_BLOCK, "verify buffer", &buf));
    mc_status st = MC_OK;
    for (int i = 0; i < DS_I_DATA_COUNT && st == MC_OK; i++) {
        st = verify_blocks(file, (ds_i_data)i, buf);
    }
    if (st == MC_OK) {
        st = verify_tokens(file, buf);
    }
    mc_free(buf);
    MC_TRY(st);
    MC_TRY(verify_rest(file));
    MC_TRY(verify_documents(file));
    return verify_tokenizer(file);
}
