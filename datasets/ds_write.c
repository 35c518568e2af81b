/* Streams a dataset file to the disk; ds_write_impl.h draws how. */
#include "datasets/ds_write.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "datasets/ds_format.h"
#include "datasets/ds_write_impl.h"
#include "megac/base/alloc.h"

enum { ENDS_BUFFER = 8192 };

/* HDF5 writes a few KiB of structure when it closes a file, and cannot undo a failure there. This much is reserved on
 * the disk before, so that a full disk is met by us. */
enum { STRUCTURE_BYTES = 256 * 1024 };

/* Makes sure of `bytes` of disk from `at` on. Not every file system can reserve: that is no error. The library cuts the
 * file to the size that it needs when it closes it. */
static mc_status reserve(const ds_writer *w, uint64_t at, uint64_t bytes)
{
    int bad = fallocate(w->fd, 0, (off_t)at, (off_t)bytes);
    if (bad && errno != EOPNOTSUPP && errno != ENOSYS && errno != EINVAL) {
        return MC_FAIL(MC_IO, "%s: cannot reserve %llu bytes: %s; free space or choose another place", w->tmp_path,
                       (unsigned long long)bytes, strerror(errno));
    }
    return MC_OK;
}

/* What the structure and the data after the tokens need. Chunks are written with the library's file open, whose end
 * must not move; it appends what it needs itself. */
static mc_status reserve_structure(const ds_writer *w)
{
    if (w->config.compress) {
        return MC_OK;
    }
    uint64_t at = w->tokens_offset + w->n_tokens * (uint64_t)w->token_bytes;
    uint64_t sums = w->sums[DS_I_TOKENS].n * 8 + w->spooled_bytes / DS_FORMAT_CHECK_BLOCK * 8;
    return reserve(w, at, w->spooled_bytes + w->config.tokenizer_bytes + sums + STRUCTURE_BYTES);
}

static mc_status check_target(const ds_writer_config *c)
{
    struct stat sb;
    if (stat(c->path, &sb) == 0) {
        if (S_ISDIR(sb.st_mode)) {
            return MC_FAIL(MC_INVALID, "%s is a directory; give another --output-prefix", c->path);
        }
        if (!c->overwrite) {
            return MC_FAIL(MC_INVALID, "%s exists; give another --output-prefix, or --overwrite to replace it",
                           c->path);
        }
    }
    return MC_OK;
}

static mc_status open_files(ds_writer *w)
{
    char name[PATH_MAX];
    int n = snprintf(name, sizeof name, "%s.tmp-%ld", w->path, (long)getpid());
    if (n < 0 || (size_t)n >= sizeof name - sizeof "-docs") {
        return MC_FAIL(MC_INVALID, "--output-prefix is longer than %d bytes; give a shorter one", PATH_MAX - 32);
    }
    MC_TRY(mc_strdup(name, "temporary name", &w->tmp_path));
    unlink(name); /* of a killed process that had this number */
    w->fd = open(name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (w->fd < 0) {
        return MC_FAIL(MC_IO, "cannot create %s: %s; choose an --output-prefix in a folder that can be written", name,
                       strerror(errno));
    }
    w->tmp_exists = true;
    snprintf(name, sizeof name, "%s-docs", w->tmp_path);
    w->spool_fd = open(name, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (w->spool_fd < 0) {
        return MC_FAIL(MC_IO, "cannot create %s: %s; choose an --output-prefix in a folder that can be written", name,
                       strerror(errno));
    }
    unlink(name);
    return reserve(w, 0, STRUCTURE_BYTES);
}

mc_status ds_writer_create(const ds_writer_config *config, ds_writer **writer_out)
{
    MC_TRY(check_target(config));
    ds_writer *w = NULL;
    mc_status st = MC_NEW(&w, "dataset writer");
    if (st != MC_OK) {
        return st;
    }
    w->config = *config;
    w->fd = w->spool_fd = -1;
    w->h5_file = w->h5_tokens = -1;
    w->token_bytes = config->vocab_size <= 65536 ? 2 : 4;
    w->block_bytes =
        config->compress ? (size_t)DS_FORMAT_CHUNK_TOKENS * (size_t)w->token_bytes : (size_t)DS_FORMAT_CHECK_BLOCK;
    MC_TRY_GOTO(st, mc_strdup(config->path, "output name", &w->path), undo_writer);
    MC_TRY_GOTO(st, mc_strdup(config->tokenizer_kind, "tokenizer kind", &w->kind), undo_writer);
    MC_TRY_GOTO(st, MC_NEW_N(&w->block, w->block_bytes, "token block"), undo_writer);
    MC_TRY_GOTO(st, MC_NEW_N(&w->ends, ENDS_BUFFER, "document ends"), undo_writer);
    MC_TRY_GOTO(st, open_files(w), undo_writer);
    w->ends[w->n_ends++] = 0;
    MC_TRY_GOTO(st, ds_i_layout_begin(w), undo_writer);
    *writer_out = w;
    return MC_OK;
undo_writer:
    ds_writer_destroy(w);
    return st;
}

int ds_writer_token_bytes(const ds_writer *writer)
{
    return writer->token_bytes;
}

uint64_t ds_writer_n_tokens(const ds_writer *writer)
{
    return writer->n_tokens;
}

uint64_t ds_writer_n_documents(const ds_writer *writer)
{
    return writer->n_documents;
}

static mc_status push_sum(ds_i_sums *s, uint64_t value)
{
    if (s->n == s->cap) {
        uint64_t cap = s->cap ? 2 * s->cap : 64;
        MC_TRY(MC_MORE(&s->values, s->n, cap, "checksums"));
        s->cap = cap;
    }
    s->values[s->n++] = value;
    return MC_OK;
}

static mc_status flush_block(ds_writer *w)
{
    if (w->block_used == 0) {
        return MC_OK;
    }
    if (w->config.compress) {
        MC_TRY(ds_i_layout_chunk(w));
    } else {
        MC_TRY(push_sum(&w->sums[DS_I_TOKENS], ds_i_hash(w->block, w->block_used)));
        MC_TRY(ds_i_pwrite_all(w->fd, w->tmp_path, w->block, w->block_used, w->tokens_offset + w->block_first));
    }
    w->block_first += w->block_used;
    w->block_used = 0;
    return MC_OK;
}

mc_status ds_writer_tokens(ds_writer *writer, const void *tokens, uint64_t n)
{
    const unsigned char *p = tokens;
    uint64_t left = n * (uint64_t)writer->token_bytes;
    while (left > 0) {
        size_t room = writer->block_bytes - writer->block_used, take = left < room ? (size_t)left : room;
        memcpy(writer->block + writer->block_used, p, take);
        writer->block_used += take;
        p += take;
        left -= take;
        if (writer->block_used == writer->block_bytes) {
            MC_TRY(flush_block(writer));
        }
    }
    writer->n_tokens += n;
    return MC_OK;
}

static mc_status flush_ends(ds_writer *w)
{
    size_t bytes = w->n_ends * sizeof *w->ends;
    MC_TRY(ds_i_pwrite_all(w->spool_fd, w->tmp_path, w->ends, bytes, w->spooled_bytes));
    w->spooled_bytes += bytes;
    w->n_ends = 0;
    return MC_OK;
}

mc_status ds_writer_end_document(ds_writer *writer, uint64_t tokens_after)
{
    MC_ASSERT(tokens_after <= writer->n_tokens);
    uint64_t end = writer->n_tokens - tokens_after;
    MC_ASSERT(end >= writer->last_end);
    writer->last_end = end;
    writer->ends[writer->n_ends++] = end;
    writer->n_documents++;
    return writer->n_ends == ENDS_BUFFER ? flush_ends(writer) : MC_OK;
}

/* Copies `bytes` of the spool (or of memory) to the data set's place, by blocks, hashing each. */
static mc_status place_data(ds_writer *w, ds_i_data which, const void *memory)
{
    ds_i_extent at = w->data[which];
    for (uint64_t done = 0; done < at.bytes;) {
        size_t n = at.bytes - done < DS_FORMAT_CHECK_BLOCK ? (size_t)(at.bytes - done) : DS_FORMAT_CHECK_BLOCK;
        const unsigned char *from = memory ? (const unsigned char *)memory + done : w->block;
        if (!memory) {
            MC_TRY(ds_i_pread_all(w->spool_fd, w->tmp_path, w->block, n, done));
        }
        MC_TRY(push_sum(&w->sums[which], ds_i_hash(from, n)));
        MC_TRY(ds_i_pwrite_all(w->fd, w->tmp_path, from, n, at.offset + done));
        done += n;
    }
    return MC_OK;
}

static mc_status place_sums(ds_writer *w)
{
    for (int i = 0; i < DS_I_DATA_COUNT; i++) {
        MC_ASSERT(w->sums[i].n * sizeof(uint64_t) == w->sums_at[i].bytes);
        MC_TRY(ds_i_pwrite_all(w->fd, w->tmp_path, w->sums[i].values, w->sums_at[i].bytes, w->sums_at[i].offset));
    }
    struct stat sb;
    if (fstat(w->fd, &sb) != 0) {
        return MC_FAIL(MC_IO, "%s: %s", w->tmp_path, strerror(errno));
    }
    ds_i_extent skip[2] = {w->rest, w->data[DS_I_TOKENS]};
    int n_skip = skip[1].bytes ? 2 : 1;
    if (n_skip == 2 && skip[1].offset < skip[0].offset) {
        ds_i_extent t = skip[0];
        skip[0] = skip[1];
        skip[1] = t;
    }
    uint64_t hash;
    MC_TRY(ds_i_hash_rest(w->fd, w->tmp_path, (uint64_t)sb.st_size, skip, n_skip, &hash));
    return ds_i_pwrite_all(w->fd, w->tmp_path, &hash, sizeof hash, w->rest.offset);
}

static mc_status sync_folder(const char *path)
{
    char copy[PATH_MAX];
    snprintf(copy, sizeof copy, "%s", path);
    int fd = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) {
        return MC_OK; /* a folder that may be written but not read: the rename stands, only its durability is open */
    }
    int bad = fsync(fd) != 0 && errno != EINVAL && errno != EBADF;
    close(fd);
    return bad ? MC_FAIL(MC_IO, "%s: fsync of its folder: %s", path, strerror(errno)) : MC_OK;
}

/* Without --overwrite a file that appeared meanwhile is kept. */
static mc_status rename_file(ds_writer *w)
{
    int bad = -1;
    if (!w->config.overwrite) {
        bad = renameat2(AT_FDCWD, w->tmp_path, AT_FDCWD, w->path, RENAME_NOREPLACE);
        if (bad && errno == EEXIST) {
            return MC_FAIL(MC_INVALID, "%s appeared meanwhile; give another --output-prefix, or --overwrite", w->path);
        }
        bool no_flag = bad && (errno == EINVAL || errno == ENOSYS);
        if (no_flag) { /* file system without the flag */
            MC_TRY(check_target(&w->config));
        }
        bad = no_flag ? rename(w->tmp_path, w->path) : bad;
    } else {
        bad = rename(w->tmp_path, w->path);
    }
    if (bad) {
        return MC_FAIL(MC_IO, "cannot rename %s to %s: %s", w->tmp_path, w->path, strerror(errno));
    }
    w->tmp_exists = false;
    return sync_folder(w->path);
}

mc_status ds_writer_finish(ds_writer *writer)
{
    ds_writer *w = writer;
    if (w->n_tokens == 0 || w->n_documents == 0) {
        return MC_FAIL(MC_INPUT, "the input holds no document (no text at all); nothing was written to %s", w->path);
    }
    MC_ASSERT(w->last_end == w->n_tokens);
    MC_TRY(flush_block(w));
    MC_TRY(flush_ends(w));
    MC_TRY(reserve_structure(w));
    MC_TRY(ds_i_layout_finish(w));
    if (w->config.compress) { /* from here on the block is a copy buffer */
        mc_free(w->block);
        w->block = NULL;
        MC_TRY(MC_NEW_N(&w->block, DS_FORMAT_CHECK_BLOCK, "copy buffer"));
    }
    MC_TRY(place_data(w, DS_I_DOCUMENTS, NULL));
    MC_TRY(place_data(w, DS_I_TOKENIZER, w->config.tokenizer));
    MC_TRY(place_sums(w));
    if (fsync(w->fd) != 0) {
        return MC_FAIL(MC_IO, "%s: fsync: %s; free space or choose another place", w->tmp_path, strerror(errno));
    }
    return rename_file(w);
}

void ds_writer_destroy(ds_writer *writer)
{
    if (!writer) {
        return;
    }
    ds_i_layout_abandon(writer);
    if (writer->fd >= 0) {
        close(writer->fd);
    }
    if (writer->spool_fd >= 0) {
        close(writer->spool_fd);
    }
    if (writer->tmp_exists) {
        unlink(writer->tmp_path);
    }
    for (int i = 0; i < DS_I_DATA_COUNT; i++) {
        mc_free(writer->sums[i].values);
    }
    mc_free(writer->ends);
    mc_free(writer->block);
    mc_free(writer->kind);
    mc_free(writer->tmp_path);
    mc_free(writer->path);
    mc_free(writer);
}
