/* Philox words for runs of elements, vectorised: the same numbers as mc_rng_bits (megac/base/rng.h), bit for bit. */
#ifndef LAYERS_CPU_PHILOX_H
#define LAYERS_CPU_PHILOX_H

#include "layers/cpu/simd.h"
#include "layers/dropout.h"
#include "megac/base/pool.h"
#include "megac/base/rng.h"

/* 64-bit lanes whose low halves hold counters: the 32 x 32 -> 64 product needs no shuffles, and garbage in the high
 * halves is ignored by it. */
#define LY_I_Q (LY_I_NATIVE / 2)
typedef uint64_t ly_i_q __attribute__((vector_size(LY_I_Q * 8)));
typedef uint64_t ly_i_qu __attribute__((vector_size(LY_I_Q * 8), aligned(4), may_alias));

/* Words are made LY_PHILOX_STEP at a time, so buffers need this much room past the last word. */
enum { LY_PHILOX_STEP = 64 };

LY_INLINE ly_i_q ly_i_mul_low(ly_i_q x, uint32_t m)
{
    ly_i_q mm = (uint64_t)m - (ly_i_q){0};
#if defined(__AVX512F__)
    return (ly_i_q)_mm512_mul_epu32((__m512i)x, (__m512i)mm);
#elif defined(__AVX2__)
    return (ly_i_q)_mm256_mul_epu32((__m256i)x, (__m256i)mm);
#elif defined(__x86_64__)
    return (ly_i_q)_mm_mul_epu32((__m128i)x, (__m128i)mm);
#else
    return (x & 0xffffffffu) * mm;
#endif
}

/* Within each 128 bits: the first (second) 64-bit halves of x and y. */
#if defined(__AVX512F__)
#define LY_I_UNPACKLO(x, y) (ly_i_q) _mm512_unpacklo_epi64((__m512i)(x), (__m512i)(y))
#define LY_I_UNPACKHI(x, y) (ly_i_q) _mm512_unpackhi_epi64((__m512i)(x), (__m512i)(y))
#elif defined(__AVX2__)
#define LY_I_UNPACKLO(x, y) (ly_i_q) _mm256_unpacklo_epi64((__m256i)(x), (__m256i)(y))
#define LY_I_UNPACKHI(x, y) (ly_i_q) _mm256_unpackhi_epi64((__m256i)(x), (__m256i)(y))
#else
#define LY_I_UNPACKLO(x, y) ((ly_i_q){(x)[0], (y)[0]})
#define LY_I_UNPACKHI(x, y) ((ly_i_q){(x)[1], (y)[1]})
#endif

/* Two registers of LY_I_Q blocks each. Lane j of a 128-bit piece q counts block j * pieces + q, so that unpacking
 * within pieces leaves the words in memory order. */
typedef struct ly_i_counter {
    ly_i_q c0[2], c1[2], c2[2], c3[2];
} ly_i_counter;

/* LY_I_Q * 2 consecutive blocks from `block`: 8 * LY_I_Q words to out. */
LY_INLINE void ly_i_philox_step(uint32_t *out, uint32_t seed, uint32_t stream, uint64_t sample, uint64_t block)
{
    enum { PIECES = LY_I_Q / 2 };
    ly_i_counter n;
    for (int h = 0; h < 2; h++) {
        ly_i_q at = {0};
        for (int i = 0; i < LY_I_Q; i++) {
            at[i] = (uint64_t)(h * LY_I_Q + (i & 1) * PIECES + i / 2);
        }
        at += block;
        n.c0[h] = at;
        n.c1[h] = at >> 32;
        n.c2[h] = sample - (ly_i_q){0};
        n.c3[h] = (sample >> 32) - (ly_i_q){0};
    }
    uint32_t k0 = seed, k1 = stream;
    for (int round = 0; round < 10; round++) {
        for (int h = 0; h < 2; h++) {
            ly_i_q p0 = ly_i_mul_low(n.c0[h], 0xD2511F53u), p1 = ly_i_mul_low(n.c2[h], 0xCD9E8D57u);
            n.c0[h] = (p1 >> 32) ^ n.c1[h] ^ ((uint64_t)k0 - (ly_i_q){0});
            n.c2[h] = (p0 >> 32) ^ n.c3[h] ^ ((uint64_t)k1 - (ly_i_q){0});
            n.c1[h] = p1;
            n.c3[h] = p0;
        }
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    for (int h = 0; h < 2; h++) {
        ly_i_q w01 = (n.c0[h] & 0xffffffffu) | n.c1[h] << 32, w23 = (n.c2[h] & 0xffffffffu) | n.c3[h] << 32;
        uint32_t *to = out + h * 4 * LY_I_Q;
        *(ly_i_qu *)to = LY_I_UNPACKLO(w01, w23);
        *(ly_i_qu *)(to + 2 * LY_I_Q) = LY_I_UNPACKHI(w01, w23);
    }
}

/* Words of elements [first, first + count) of (seed, stream, sample): returns where in `buf` the word of `first` lies.
 * buf holds count + 2 * LY_PHILOX_STEP words. */
LY_INLINE const uint32_t *ly_philox_words(uint32_t *buf, uint32_t seed, uint32_t stream, uint64_t sample,
                                          uint64_t first, int64_t count)
{
    enum { WORDS = 8 * LY_I_Q };
    uint64_t block = first / 4;
    int64_t words = (int64_t)(first % 4) + count;
    for (int64_t w = 0; w < words; w += WORDS, block += WORDS / 4) {
        ly_i_philox_step(buf + w, seed, stream, sample, block);
    }
    return buf + first % 4;
}

/* A dropout mask over 16 elements. */
LY_INLINE ly_vi ly_dropout_mask(const uint32_t *words, ly_vi threshold)
{
    return ly_viuge(ly_viload(words), threshold);
}

/* Words of local row `row` of a (R, width) tensor (layers/dropout.h). */
LY_INLINE const uint32_t *ly_dropout_row(uint32_t *buf, const ly_dropout *d, int64_t row, int64_t width)
{
    int64_t global = d->row0 + row, t = global % d->seq_len;
    uint64_t sample = d->sample0 + (uint64_t)(global / d->seq_len);
    return ly_philox_words(buf, d->seed, d->stream, sample, (uint64_t)t * (uint64_t)width, width);
}

/* Whether a thread's scratch holds the words of one row, and the fields that a mask needs make sense. */
LY_INLINE int ly_dropout_fits(const mc_pool *pool, const ly_dropout *d, int64_t width)
{
    size_t words = (size_t)width + 2 * LY_PHILOX_STEP;
    return !(d->p > 0.0f) ||
           (d->p < 1.0f && d->seq_len > 0 && d->row0 >= 0 && words * sizeof(uint32_t) <= mc_pool_scratch_bytes(pool));
}

#endif
