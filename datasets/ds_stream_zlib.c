/* gzip input, members one after another included. */
#include <zlib.h>

#include "datasets/ds_stream.h"
#include "megac/base/alloc.h"

typedef struct gzip_state {
    z_stream z;
    int inside; /* in the middle of a member */
} gzip_state;

static mc_status create(void **impl_out)
{
    gzip_state *g;
    MC_TRY(MC_NEW(&g, "gzip state"));
    if (inflateInit2(&g->z, 15 + 16) != Z_OK) { /* 16: gzip header and check */
        mc_free(g);
        return MC_NOMEM;
    }
    *impl_out = g;
    return MC_OK;
}

static const char *step(void *impl, const unsigned char *in, size_t n_in, int in_end, size_t *used_out,
                        unsigned char *out, size_t cap, size_t *n_out)
{
    gzip_state *g = impl;
    if (n_in == 0 && !g->inside) {
        return NULL;
    }
    g->inside = 1;
    g->z.next_in = (unsigned char *)(uintptr_t)in; /* zlib does not write there */
    g->z.avail_in = (uInt)n_in;
    g->z.next_out = out;
    g->z.avail_out = (uInt)cap;
    int rc = inflate(&g->z, Z_NO_FLUSH);
    *used_out = n_in - g->z.avail_in;
    *n_out = cap - g->z.avail_out;
    if (rc == Z_STREAM_END) {
        g->inside = 0;
        return inflateReset(&g->z) == Z_OK ? NULL : "cannot start the next member";
    }
    if (rc == Z_BUF_ERROR || (rc == Z_OK && *n_out == 0 && *used_out == 0)) {
        return in_end && n_in == 0 ? "it ends in the middle" : NULL;
    }
    return rc == Z_OK ? NULL : g->z.msg ? g->z.msg : "invalid";
}

static void destroy(void *impl)
{
    gzip_state *g = impl;
    inflateEnd(&g->z);
    mc_free(g);
}

extern const ds_i_unpacker_ops ds_i_unpacker_gzip;
const ds_i_unpacker_ops ds_i_unpacker_gzip = {
    .name = "gzip",
    .magic = {0x1f, 0x8b, 8},
    .magic_bytes = 3,
    .create = create,
    .step = step,
    .destroy = destroy,
};
