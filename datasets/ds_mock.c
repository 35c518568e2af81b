/* The synthetic stream of --mock-data: a sparse random Markov chain. Every token has four likely successors, fixed by
 * the seed, taken with probabilities 1/2, 1/4, 1/8, 1/8; one token in sixteen is uniform noise. A model that learns the
 * table gets from ln(vocabulary) to about 1.4 nats + noise. */
#include "datasets/ds_impl.h"
#include "megac/base/rng.h"

/* Streams of MC_RNG_DATA_MOCK: the table is shared by all splits, the walk has a stream for each. */
enum { TABLE = 0, WALK = 1 };

static uint32_t below(uint32_t bits, uint32_t n)
{
    return (uint32_t)((uint64_t)bits * n >> 32);
}

void ds_i_mock_window(uint32_t seed, uint32_t which, uint64_t sample, uint32_t vocab, int64_t count,
                      int32_t *tokens_out)
{
    uint32_t walk = mc_rng_stream(MC_RNG_DATA_MOCK, WALK + which), table = mc_rng_stream(MC_RNG_DATA_MOCK, TABLE);
    uint32_t token = 0;
    mc_rng_block draw = {{0}};
    for (int64_t i = 0; i < count; i++) {
        if (i % 2 == 0) {
            draw = mc_rng_bits(seed, walk, sample, (uint64_t)i / 2);
        }
        uint32_t choice = draw.w[2 * (i % 2)], uniform = below(draw.w[2 * (i % 2) + 1], vocab);
        bool noise = (choice & 15u) == 0;
        if (i == 0 || noise) {
            token = uniform;
        } else {
            mc_rng_block next = mc_rng_bits(seed, table, token, 0);
            uint32_t c = choice >> 29; /* 0..7 */
            token = below(next.w[c < 4 ? 0 : c < 6 ? 1 : c - 4], vocab);
        }
        tokens_out[i] = (int32_t)token;
    }
}
