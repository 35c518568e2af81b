/* Reading of one input, unpacked by the table of unpackers. */
#include "datasets/ds_stream.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "megac/base/alloc.h"

extern const ds_i_unpacker_ops ds_i_unpacker_gzip, ds_i_unpacker_zstd;

static const ds_i_unpacker_ops *const unpackers[] = {&ds_i_unpacker_gzip, &ds_i_unpacker_zstd};
enum { N_UNPACKERS = sizeof unpackers / sizeof *unpackers };

struct ds_i_stream {
    int fd;
    char *path;
    const ds_i_unpacker_ops *ops; /* NULL: plain bytes */
    void *impl;
    unsigned char *in, *out;
    size_t n_in, used;
    bool in_end, probed;
    uint64_t raw_bytes;
};

mc_status ds_i_stream_open(const char *path, ds_i_stream **stream_out, char why[DS_I_WHY_BYTES])
{
    bool standard = strcmp(path, "-") == 0;
    int fd = standard ? dup(STDIN_FILENO) : open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        int err = errno;
        snprintf(why, DS_I_WHY_BYTES, "cannot read input %s: %s; check --input and its permissions",
                 standard ? "standard input" : path, strerror(err));
        return err == ENOENT ? MC_NOTFOUND : MC_INPUT;
    }
    ds_i_stream *s = NULL;
    mc_status st = MC_NEW(&s, "input stream");
    if (st != MC_OK) {
        close(fd);
        snprintf(why, DS_I_WHY_BYTES, "no memory to read %s", path);
        return st;
    }
    s->fd = fd;
    MC_TRY_GOTO(st, mc_strdup(standard ? "standard input" : path, "input name", &s->path), undo_stream);
    MC_TRY_GOTO(st, MC_NEW_N(&s->in, DS_I_READ_BYTES, "input buffer"), undo_stream);
    MC_TRY_GOTO(st, MC_NEW_N(&s->out, DS_I_READ_BYTES, "unpacked buffer"), undo_stream);
    *stream_out = s;
    return MC_OK;
undo_stream:
    snprintf(why, DS_I_WHY_BYTES, "no memory to read %s", path);
    ds_i_stream_close(s);
    return st;
}

/* Fills `in` from its front; a pipe gives less than asked for, so short reads are joined until `want` bytes are there.
 */
static mc_status refill(ds_i_stream *s, size_t want, char *why)
{
    memmove(s->in, s->in + s->used, s->n_in - s->used);
    s->n_in -= s->used;
    s->used = 0;
    while (!s->in_end && s->n_in < want) {
        ssize_t n = read(s->fd, s->in + s->n_in, DS_I_READ_BYTES - s->n_in);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            snprintf(why, DS_I_WHY_BYTES, "cannot read input %s: %s%s", s->path, strerror(errno),
                     errno == EISDIR ? "" : "; check the disk it lies on");
            return MC_INPUT;
        }
        s->in_end = n == 0;
        s->n_in += (size_t)n;
        s->raw_bytes += (uint64_t)n;
    }
    return MC_OK;
}

static mc_status probe(ds_i_stream *s, char *why)
{
    static const unsigned char hdf5[4] = {0x89, 'H', 'D', 'F'};
    MC_TRY(refill(s, 4, why));
    s->probed = true;
    if (s->n_in >= sizeof hdf5 && memcmp(s->in, hdf5, sizeof hdf5) == 0) {
        snprintf(why, DS_I_WHY_BYTES, "input %s is an HDF5 file, not text; leave it out of --input", s->path);
        return MC_INPUT;
    }
    for (int i = 0; i < N_UNPACKERS; i++) {
        const ds_i_unpacker_ops *ops = unpackers[i];
        if (s->n_in >= (size_t)ops->magic_bytes && memcmp(s->in, ops->magic, (size_t)ops->magic_bytes) == 0) {
            mc_status st = ops->create(&s->impl);
            if (st != MC_OK) {
                snprintf(why, DS_I_WHY_BYTES, "no memory to unpack %s", s->path);
                return st;
            }
            s->ops = ops;
        }
    }
    return MC_OK;
}

mc_status ds_i_stream_next(ds_i_stream *stream, const unsigned char **bytes_out, size_t *n_out,
                           char why[DS_I_WHY_BYTES])
{
    ds_i_stream *s = stream;
    if (!s->probed) {
        MC_TRY(probe(s, why));
    }
    for (;;) {
        if (s->used == s->n_in && !s->in_end) {
            MC_TRY(refill(s, 1, why));
        }
        if (!s->ops) {
            *bytes_out = s->in + s->used;
            *n_out = s->n_in - s->used;
            s->used = s->n_in;
            return MC_OK;
        }
        size_t used = 0, n = 0;
        const char *bad =
            s->ops->step(s->impl, s->in + s->used, s->n_in - s->used, s->in_end, &used, s->out, DS_I_READ_BYTES, &n);
        if (bad) {
            snprintf(why, DS_I_WHY_BYTES, "input %s: %s data near byte %llu: %s; the file is damaged or incomplete",
                     s->path, s->ops->name, (unsigned long long)(s->raw_bytes - (s->n_in - s->used)), bad);
            return MC_INPUT;
        }
        s->used += used;
        if (n > 0 || (s->in_end && s->used == s->n_in)) {
            *bytes_out = s->out;
            *n_out = n;
            return MC_OK;
        }
    }
}

uint64_t ds_i_stream_raw_bytes(const ds_i_stream *stream)
{
    return stream->raw_bytes;
}

void ds_i_stream_close(ds_i_stream *stream)
{
    if (!stream) {
        return;
    }
    if (stream->impl) {
        stream->ops->destroy(stream->impl);
    }
    close(stream->fd);
    mc_free(stream->in);
    mc_free(stream->out);
    mc_free(stream->path);
    mc_free(stream);
}
