#include <stdio.h>
#include <string.h>

/* Everything inline: the state's layout is then known to be this header's, whatever library is installed. */
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "megac/base/hash.h"

_Static_assert(sizeof(XXH3_state_t) <= sizeof(mc_hasher), "mc_hasher holds XXH3's state");
_Static_assert(_Alignof(XXH3_state_t) <= _Alignof(mc_hasher), "mc_hasher is aligned for XXH3's state");

uint64_t mc_hash(const void *data, size_t bytes)
{
    return XXH3_64bits(data, bytes);
}

void mc_hasher_init(mc_hasher *h)
{
    memset(h, 0, sizeof *h);
    XXH3_64bits_reset((XXH3_state_t *)(void *)h);
}

void mc_hasher_add(mc_hasher *h, const void *data, size_t bytes)
{
    if (bytes > 0) {
        XXH3_64bits_update((XXH3_state_t *)(void *)h, data, bytes);
    }
}

uint64_t mc_hasher_value(const mc_hasher *h)
{
    return XXH3_64bits_digest((const XXH3_state_t *)(const void *)h);
}

void mc_hash_print(uint64_t hash, char text_out[MC_HASH_HEX_BYTES])
{
    snprintf(text_out, MC_HASH_HEX_BYTES, "%016llx", (unsigned long long)hash);
}

bool mc_hash_parse(const char *text, uint64_t *hash_out)
{
    uint64_t v = 0;
    for (int i = 0; i < MC_HASH_HEX_BYTES - 1; i++) {
        char c = text[i];
        unsigned digit = c >= '0' && c <= '9'   ? (unsigned)(c - '0')
                         : c >= 'a' && c <= 'f' ? (unsigned)(c - 'a') + 10
                                                : 16;
        if (digit > 15) {
            return false;
        }
        v = v << 4 | digit;
    }
    if (text[MC_HASH_HEX_BYTES - 1] != '\0') {
        return false;
    }
    *hash_out = v;
    return true;
}
