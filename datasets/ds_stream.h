/* Input bytes: a file or standard input, unpacked when its first bytes are those of gzip or zstd.
 *
 * Errors are given as text and not logged: they are found by a thread that runs ahead, and are told when their place in
 * the input is reached. */
#ifndef DATASETS_DS_STREAM_H
#define DATASETS_DS_STREAM_H

#include <stddef.h>
#include <stdint.h>

#include "megac/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { DS_I_WHY_BYTES = 1024, DS_I_READ_BYTES = 256 * 1024 };

typedef struct ds_i_stream ds_i_stream;

/* Unpacks bytes: takes what it likes of in[0, n_in), writes up to `cap` bytes, says how many of each. `in_end`: nothing
 * follows `in`. It must make progress while there is input or room for output; n_out 0 at in_end means the end.
 * Returns NULL, or what is wrong. */
typedef struct ds_i_unpacker_ops {
    const char *name;
    unsigned char magic[4];
    int magic_bytes;
    mc_status (*create)(void **impl_out);
    const char *(*step)(void *impl, const unsigned char *in, size_t n_in, int in_end, size_t *used_out,
                        unsigned char *out, size_t cap, size_t *n_out);
    void (*destroy)(void *impl);
} ds_i_unpacker_ops;

/* Opens `path`, "-" for standard input. On failure `why` says the reason. */
mc_status ds_i_stream_open(const char *path, ds_i_stream **stream_out, char why[DS_I_WHY_BYTES]) MC_MUST_CHECK;
/* Up to DS_I_READ_BYTES of unpacked bytes, borrowed until the next call; 0 at the end. */
mc_status ds_i_stream_next(ds_i_stream *stream, const unsigned char **bytes_out, size_t *n_out,
                           char why[DS_I_WHY_BYTES]) MC_MUST_CHECK;
/* Bytes read from the disk so far (packed). */
uint64_t ds_i_stream_raw_bytes(const ds_i_stream *stream);
void ds_i_stream_close(ds_i_stream *stream); /* NULL allowed */

#ifdef __cplusplus
}
#endif
#endif
