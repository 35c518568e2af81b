#include "megac/base/rng.h"

#include <math.h>

void mc_rng_normal(uint32_t seed, uint32_t stream, uint64_t first, int64_t count, float std, float *out)
{
    for (int64_t i = 0; i < count;) {
        uint64_t element = first + (uint64_t)i;
        mc_rng_block b = mc_rng_bits(seed, stream, 0, element / 4);
        float z[4];
        for (int pair = 0; pair < 2; pair++) {
            float radius = sqrtf(-2.0f * logf(mc_rng_uniform(b.w[2 * pair])));
            float angle = 6.28318530718f * mc_rng_uniform(b.w[2 * pair + 1]);
            z[2 * pair] = radius * cosf(angle);
            z[2 * pair + 1] = radius * sinf(angle);
        }
        for (int lane = (int)(element % 4); lane < 4 && i < count; lane++, i++) {
            out[i] = std * z[lane];
        }
    }
}

void mc_rng_uniform_fill(uint32_t seed, uint32_t stream, uint64_t first, int64_t count, float limit, float *out)
{
    for (int64_t i = 0; i < count;) {
        uint64_t element = first + (uint64_t)i;
        mc_rng_block b = mc_rng_bits(seed, stream, 0, element / 4);
        for (int lane = (int)(element % 4); lane < 4 && i < count; lane++, i++) {
            out[i] = limit * (2.0f * mc_rng_uniform(b.w[lane]) - 1.0f);
        }
    }
}
