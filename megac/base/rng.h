/* Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011).
 *
 * Four 32-bit words are a pure function of (seed, stream, sample, block). `stream` says what the numbers are for,
 * `sample` is the global number of the training sample in the run (0 where there is none), and `block` is a *global*
 * element index divided by four: word e % 4 of block e / 4 belongs to element e. So no number depends on how the work
 * is laid out over ranks and threads (DESIGN, Law 1). Header only, because operators evaluate it per element. */
#ifndef MEGAC_BASE_RNG_H
#define MEGAC_BASE_RNG_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#ifdef __CUDACC__
#define MC_RNG_FN static __host__ __device__ inline
#else
#define MC_RNG_FN static inline
#endif

/* What a stream of numbers is for. The low 24 bits of a stream hold the layer (or parameter) number. */
typedef enum {
    MC_RNG_INIT = 1,
    MC_RNG_DROPOUT_EMBEDDING,
    MC_RNG_DROPOUT_ATTENTION,     /* attention probabilities */
    MC_RNG_DROPOUT_ATTENTION_OUT, /* output of the attention block, before the residual */
    MC_RNG_DROPOUT_MLP_OUT,
    MC_RNG_DATA_ORDER,
    MC_RNG_DATA_BLEND,
    MC_RNG_DATA_MOCK,
    MC_RNG_SAMPLING,
    MC_RNG_ROUND_PARAM, /* stochastic rounding of parameters and of Adam's moments; `sample` is the update's number */
    MC_RNG_ROUND_M,
    MC_RNG_ROUND_V,
} mc_rng_kind;

MC_RNG_FN uint32_t mc_rng_stream(mc_rng_kind kind, uint32_t index)
{
    return ((uint32_t)kind << 24) | (index & 0xffffffu);
}

typedef struct mc_rng_block {
    uint32_t w[4];
} mc_rng_block;

MC_RNG_FN mc_rng_block mc_rng_bits(uint32_t seed, uint32_t stream, uint64_t sample, uint64_t block)
{
    uint32_t c0 = (uint32_t)block, c1 = (uint32_t)(block >> 32), c2 = (uint32_t)sample, c3 = (uint32_t)(sample >> 32);
    uint32_t k0 = seed, k1 = stream;
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0, n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        c0 = n0;
        c2 = n2;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    mc_rng_block out = {{c0, c1, c2, c3}};
    return out;
}

/* Uniform in (0, 1), never 0, never 1: the middles of 2^23 equal intervals. With one bit more the last middle,
 * 1 - 2^-25, would round to 1. */
MC_RNG_FN float mc_rng_uniform(uint32_t bits)
{
    return ((float)(bits >> 9) + 0.5f) * (1.0f / 8388608.0f);
}

/* Dropout keeps an element when its word is >= this threshold: P(drop) = p to within 2^-32. p in [0, 1). */
MC_RNG_FN uint32_t mc_rng_threshold(float p)
{
    double t = (double)p * 4294967296.0;
    return t >= 4294967295.0 ? 0xffffffffu : (uint32_t)t;
}

/* Standard normal numbers of elements first..first + count - 1 (Box-Muller on pairs of words), times `std`, into out.
 * The value of an element depends on (seed, stream, element) only. */
void mc_rng_normal(uint32_t seed, uint32_t stream, uint64_t first, int64_t count, float std, float *out);
/* The same for the uniform distribution on (-limit, limit). */
void mc_rng_uniform_fill(uint32_t seed, uint32_t stream, uint64_t first, int64_t count, float limit, float *out);

#ifdef __cplusplus
}
#endif
#endif
