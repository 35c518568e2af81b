/* Dropout masks of a panel of scores: Philox (megac/base/rng.h) with one query in each lane. */
#ifndef LAYERS_CPU_ATTENTION_DROPOUT_H
#define LAYERS_CPU_ATTENTION_DROPOUT_H

#include "layers/cpu/attention_block.h"
#include "layers/cpu/philox.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Words of LY_I_NATIVE blocks, each lane its own: even lanes in [0], odd lanes in [1]; the low halves count. */
typedef struct ly_at_words {
    ly_i_q w[4][2];
} ly_at_words;

LY_INLINE ly_at_words ly_at_philox(const ly_dropout *d, uint64_t sample, const ly_i_q block[2])
{
    ly_i_q c0[2], c1[2], c2[2], c3[2];
    for (int h = 0; h < 2; h++) {
        c0[h] = block[h];
        c1[h] = block[h] >> 32;
        c2[h] = sample - (ly_i_q){0};
        c3[h] = (sample >> 32) - (ly_i_q){0};
    }
    uint32_t k0 = d->seed, k1 = d->stream;
    for (int round = 0; round < 10; round++) {
        for (int h = 0; h < 2; h++) {
            ly_i_q p0 = ly_i_mul_low(c0[h], 0xD2511F53u), p1 = ly_i_mul_low(c2[h], 0xCD9E8D57u);
            c0[h] = (p1 >> 32) ^ c1[h] ^ ((uint64_t)k0 - (ly_i_q){0});
            c2[h] = (p0 >> 32) ^ c3[h] ^ ((uint64_t)k1 - (ly_i_q){0});
            c1[h] = p1;
            c3[h] = p0;
        }
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return (ly_at_words){{{c0[0], c0[1]}, {c1[0], c1[1]}, {c2[0], c2[1]}, {c3[0], c3[1]}}};
}

/* Stores LY_I_NATIVE lanes of a mask: all ones where the word is at least the threshold. */
LY_INLINE void ly_at_store_kept(uint32_t *mask, ly_i_q even, ly_i_q odd, uint32_t threshold)
{
    ly_i_u words = (ly_i_u)((even & 0xffffffffu) | odd << 32);
    *(ly_i_uu *)mask = (ly_i_u)(words >= threshold - (ly_i_u){0});
}

/* Where the elements of a panel are in the numbers of a sample. */
typedef struct ly_at_drop {
    const ly_dropout *dropout;
    uint64_t sample;
    uint32_t threshold;
    uint64_t first; /* element of (query of lane 0, key 0) */
    uint64_t T;
} ly_at_drop;

/* Elements (query of lane l + 2 i, key 0). */
LY_INLINE ly_i_q ly_at_firsts(const ly_at_drop *d, int64_t l)
{
    uint64_t first[LY_I_Q];
    for (int i = 0; i < LY_I_Q; i++) {
        first[i] = d->first + (uint64_t)(l + 2 * i) * d->T;
    }
    return *(const ly_i_qu *)first;
}

/* Keys in fours: where T is a multiple of 4 every query's row starts on a block, so one block serves 4 keys. */
static inline void ly_at_drop_fours(const ly_at_drop *d, int64_t k0, ly_at_range keys, int64_t row, uint32_t *mask)
{
    for (int64_t l = 0; l < LY_AT_LANES; l += LY_I_NATIVE) {
        ly_i_q base[2] = {ly_at_firsts(d, l) >> 2, ly_at_firsts(d, l + 1) >> 2};
        for (int64_t k = (k0 + keys.begin) / 4 * 4; k < k0 + keys.end; k += 4) {
            ly_i_q block[2] = {base[0] + (uint64_t)k / 4, base[1] + (uint64_t)k / 4};
            ly_at_words words = ly_at_philox(d->dropout, d->sample, block);
            for (int w = 0; w < 4; w++) {
                int64_t i = k + w - k0;
                if (i >= keys.begin && i < keys.end) {
                    ly_at_store_kept(mask + i * row + l, words.w[w][0], words.w[w][1], d->threshold);
                }
            }
        }
    }
}

/* Any T: a block for every key, of which each lane takes its word. */
static inline void ly_at_drop_ones(const ly_at_drop *d, int64_t k0, ly_at_range keys, int64_t row, uint32_t *mask)
{
    for (int64_t l = 0; l < LY_AT_LANES; l += LY_I_NATIVE) {
        ly_i_q base[2] = {ly_at_firsts(d, l), ly_at_firsts(d, l + 1)};
        for (int64_t i = keys.begin; i < keys.end; i++) {
            ly_i_q element[2] = {base[0] + (uint64_t)(k0 + i), base[1] + (uint64_t)(k0 + i)};
            ly_i_q block[2] = {element[0] >> 2, element[1] >> 2}, word[2] = {{0}, {0}};
            ly_at_words words = ly_at_philox(d->dropout, d->sample, block);
            for (uint64_t w = 0; w < 4; w++) {
                word[0] |= words.w[w][0] & (ly_i_q)((element[0] & 3) == w);
                word[1] |= words.w[w][1] & (ly_i_q)((element[1] & 3) == w);
            }
            ly_at_store_kept(mask + i * row + l, word[0], word[1], d->threshold);
        }
    }
}

/* mask rows `keys` of the panel whose lane 0 is query q of local head h, sample b of the micro-batch: all ones = kept.
 */
static inline void ly_at_drop_panel(const ly_at_shape *s, int64_t b, int64_t h, int64_t q, int64_t k0, ly_at_range keys,
                                    uint32_t *mask)
{
    uint64_t T = (uint64_t)s->T;
    ly_at_drop d = {
        .dropout = &s->dropout,
        .sample = s->dropout.sample0 + (uint64_t)b,
        .threshold = mc_rng_threshold(s->dropout.p),
        .first = ((uint64_t)(s->head0 + h) * T + (uint64_t)q) * T,
        .T = T,
    };
    if (T % 4 == 0) {
        ly_at_drop_fours(&d, k0, keys, s->s_row, mask);
    } else {
        ly_at_drop_ones(&d, k0, keys, s->s_row, mask);
    }
}

#ifdef __cplusplus
}
#endif
#endif
