/* Sample order as pure functions: a keyed permutation of [0, n), and the shares of a weighted blend. Nothing is stored,
 * so any size starts at once. */
#include <string.h>

#include "datasets/ds_impl.h"
#include "megac/base/rng.h"

__extension__ typedef unsigned __int128 u128;

/* Below 2^6 the halves are so small that few permutations can be reached, and some places become likelier. */
enum { ROUNDS = 8, MIN_BITS = 6 };

/* MurmurHash3's 64-bit finaliser (Appleby): every bit of x moves every bit of the result. */
static inline uint64_t mix(uint64_t x)
{
    x ^= x >> 33;
    x *= 0xff51afd7ed558ccdu;
    x ^= x >> 33;
    x *= 0xc4ceb9fe1a85ec53u;
    return x ^ x >> 33;
}

/* An unbalanced Feistel network (Luby and Rackoff 1988; the halves differ by a bit where the width is odd) permutes
 * [0, 2^bits), the least power of two >= n and 64; walking on until the value is below n (Black and Rogaway 2002,
 * "cycle walking") makes it a permutation of [0, n), in less than two steps on average when n > 32. Round keys come
 * from Philox. */
uint64_t ds_i_permute(uint32_t seed, uint32_t stream, uint64_t epoch, uint64_t n, uint64_t index)
{
    MC_ASSERT(index < n);
    if (n == 1) {
        return 0;
    }
    uint64_t keys[ROUNDS];
    for (int i = 0; i < ROUNDS / 2; i++) {
        mc_rng_block b = mc_rng_bits(seed, stream, epoch, (uint64_t)i);
        keys[2 * i] = (uint64_t)b.w[0] << 32 | b.w[1];
        keys[2 * i + 1] = (uint64_t)b.w[2] << 32 | b.w[3];
    }
    int bits = 64 - __builtin_clzll(n - 1);
    bits = bits < MIN_BITS ? MIN_BITS : bits;
    int low_bits = bits / 2;
    uint64_t low_mask = ((uint64_t)1 << low_bits) - 1, high_mask = ((uint64_t)1 << (bits - low_bits)) - 1;
    uint64_t x = index;
    do {
        uint64_t low = x & low_mask, high = x >> low_bits;
        for (int r = 0; r < ROUNDS; r += 2) {
            high ^= mix(low ^ keys[r]) & high_mask;
            low ^= mix(high ^ keys[r + 1]) & low_mask;
        }
        x = high << low_bits | low;
    } while (x >= n);
    return x;
}

/* Largest remainder: gives each i floor(total * part[i] / sum of parts), and the units left to the largest remainders
 * (the first of equals). */
static void largest_remainder(const uint64_t *parts, int n, u128 total, uint64_t *out)
{
    uint64_t remainder[DS_I_BLEND_MAX];
    u128 left = total;
    for (int i = 0; i < n; i++) {
        u128 q = total * parts[i];
        out[i] = (uint64_t)(q / DS_I_SHARE_ONE);
        remainder[i] = (uint64_t)(q % DS_I_SHARE_ONE);
        left -= out[i];
    }
    for (; left > 0; left--) {
        int best = 0;
        for (int i = 1; i < n; i++) {
            best = remainder[i] > remainder[best] ? i : best;
        }
        remainder[best] = 0;
        out[best]++;
    }
}

mc_status ds_i_blend_init(const double *weights, int n, uint64_t *shares_out, ds_i_blend *blend_out)
{
    MC_ASSERT(n >= 1 && n <= DS_I_BLEND_MAX);
    double sum = 0, least = weights[0];
    for (int i = 0; i < n; i++) {
        sum += weights[i];
        least = weights[i] < least ? weights[i] : least;
    }
    if (!(least / sum >= 1e-6)) {
        return MC_FAIL(MC_INVALID,
                       "--data-path: weight %g is less than a millionth of the sum %g; leave that dataset out", least,
                       sum);
    }
    uint64_t left = DS_I_SHARE_ONE;
    int largest = 0;
    for (int i = 0; i < n; i++) {
        shares_out[i] = (uint64_t)(weights[i] / sum * (double)DS_I_SHARE_ONE);
        largest = weights[i] > weights[largest] ? i : largest;
        if (shares_out[i] > left) {
            shares_out[i] = left;
        }
        left -= shares_out[i];
    }
    shares_out[largest] += left; /* rounding: less than n units of 2^-48 */
    /* With at least one sample of each member in a block, cumulative counts never fall from one block to the next. */
    uint64_t block = 1024;
    while ((double)block * least / sum < 1.01) {
        block *= 2;
    }
    *blend_out = (ds_i_blend){.n = n, .block = block, .shares = shares_out};
    return MC_OK;
}

void ds_i_blend_counts(const ds_i_blend *blend, uint64_t blocks, uint64_t *counts_out)
{
    largest_remainder(blend->shares, blend->n, (u128)blocks * blend->block, counts_out);
}

void ds_i_blend_place(const ds_i_blend *blend, uint32_t seed, bool shuffle, uint64_t sample, int *member_out,
                      uint64_t *index_out)
{
    uint64_t before[DS_I_BLEND_MAX], after[DS_I_BLEND_MAX];
    uint64_t block = sample / blend->block, slot = sample % blend->block;
    ds_i_blend_counts(blend, block, before);
    ds_i_blend_counts(blend, block + 1, after);
    if (shuffle) {
        slot = ds_i_permute(seed, mc_rng_stream(MC_RNG_DATA_BLEND, 0), block, blend->block, slot);
    }
    int member = 0;
    while (slot >= after[member] - before[member]) {
        slot -= after[member] - before[member];
        member++;
        MC_ASSERT(member < blend->n);
    }
    *member_out = member;
    *index_out = before[member] + slot;
}
