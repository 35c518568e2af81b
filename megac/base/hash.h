/* XXH3-64 checksums (Collet, xxHash 0.8), seed 0: what protects every byte of megac's files against damage. Not
 * cryptographic. */
#ifndef MEGAC_BASE_HASH_H
#define MEGAC_BASE_HASH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "megac/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { MC_HASH_HEX_BYTES = 17 };

uint64_t mc_hash(const void *data, size_t bytes);

/* Of a stream, piece by piece; the same value as mc_hash of the whole. Caller's storage, nothing to release. */
typedef struct mc_hasher {
    unsigned char state[640];
} __attribute__((aligned(64))) mc_hasher;
void mc_hasher_init(mc_hasher *h);
void mc_hasher_add(mc_hasher *h, const void *data, size_t bytes);
uint64_t mc_hasher_value(const mc_hasher *h);

/* 16 lower-case hexadecimal digits and a NUL. */
void mc_hash_print(uint64_t hash, char text_out[MC_HASH_HEX_BYTES]);
/* False unless `text` is exactly 16 such digits. */
bool mc_hash_parse(const char *text, uint64_t *hash_out);

#ifdef __cplusplus
}
#endif
#endif
