/* zstd input, frames one after another included. */
#include <zstd.h>

#include "datasets/ds_stream.h"
#include "megac/base/alloc.h"

typedef struct zstd_state {
    ZSTD_DStream *z;
    size_t hint; /* 0: between frames, nothing left to give out */
} zstd_state;

static mc_status create(void **impl_out)
{
    zstd_state *s;
    MC_TRY(MC_NEW(&s, "zstd state"));
    s->z = ZSTD_createDStream();
    if (!s->z) {
        mc_free(s);
        return MC_NOMEM;
    }
    /* Windows up to 2 GiB (zstd --long=31) are refused by default above 128 MiB; 1 GiB is still a sane bound. */
    ZSTD_DCtx_setParameter(s->z, ZSTD_d_windowLogMax, 30);
    *impl_out = s;
    return MC_OK;
}

static const char *step(void *impl, const unsigned char *in, size_t n_in, int in_end, size_t *used_out,
                        unsigned char *out, size_t cap, size_t *n_out)
{
    zstd_state *s = impl;
    if (n_in == 0 && s->hint == 0) {
        return NULL;
    }
    ZSTD_inBuffer from = {in, n_in, 0};
    ZSTD_outBuffer to = {out, cap, 0};
    s->hint = ZSTD_decompressStream(s->z, &to, &from);
    if (ZSTD_isError(s->hint)) {
        return ZSTD_getErrorName(s->hint);
    }
    *used_out = from.pos;
    *n_out = to.pos;
    return in_end && n_in == 0 && to.pos == 0 && s->hint ? "it ends in the middle" : NULL;
}

static void destroy(void *impl)
{
    zstd_state *s = impl;
    ZSTD_freeDStream(s->z);
    mc_free(s);
}

extern const ds_i_unpacker_ops ds_i_unpacker_zstd;
const ds_i_unpacker_ops ds_i_unpacker_zstd = {
    .name = "zstd",
    .magic = {0x28, 0xb5, 0x2f, 0xfd},
    .magic_bytes = 4,
    .create = create,
    .step = step,
    .destroy = destroy,
};
