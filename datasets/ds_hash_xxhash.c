/* XXH3-64: checksums of the dataset file's blocks. */
#include <xxhash.h>

#include "datasets/ds_impl.h"
#include "megac/base/alloc.h"

struct ds_i_hasher {
    XXH3_state_t *state;
};

uint64_t ds_i_hash(const void *bytes, size_t n_bytes)
{
    return XXH3_64bits(bytes, n_bytes);
}

mc_status ds_i_hasher_create(ds_i_hasher **hasher_out)
{
    ds_i_hasher *h;
    MC_TRY(MC_NEW(&h, "hash state"));
    h->state = XXH3_createState();
    if (!h->state || XXH3_64bits_reset(h->state) != XXH_OK) {
        XXH3_freeState(h->state);
        mc_free(h);
        return MC_FAIL(MC_NOMEM, "no memory for a hash state");
    }
    *hasher_out = h;
    return MC_OK;
}

void ds_i_hasher_add(ds_i_hasher *hasher, const void *bytes, size_t n_bytes)
{
    XXH3_64bits_update(hasher->state, bytes, n_bytes);
}

uint64_t ds_i_hasher_value(const ds_i_hasher *hasher)
{
    return XXH3_64bits_digest(hasher->state);
}

void ds_i_hasher_destroy(ds_i_hasher *hasher)
{
    if (hasher) {
        XXH3_freeState(hasher->state);
        mc_free(hasher);
    }
}
