/* Dropout masks on the device: the bits of layers/dropout.h, from global indices, four elements to a Philox block. */
#ifndef LAYERS_CUDA_DROPOUT_CUH
#define LAYERS_CUDA_DROPOUT_CUH

#include "layers/cuda/divide.cuh"
#include "layers/dropout.h"
#include "megac/base/rng.h"

/* A kernel's argument. `on` is false where p = 0; rows still have positions then, if seq_len was given. */
struct ly_mask {
    bool on;
    float scale; /* of a kept element */
    uint32_t threshold, seed, stream, row0;
    uint64_t sample0;
    ly_divider seq_len;
};

/* The mask of a tensor of `n_rows` local rows. Rows of one micro-batch are counted in 31 bits. */
static inline ly_mask ly_mask_of(const ly_dropout *d, int64_t n_rows, bool with_positions)
{
    ly_mask mask = {};
    mask.on = d->p > 0.0f;
    mask.scale = 1.0f;
    mask.seq_len = ly_divider_of(1);
    if (mask.on || with_positions) {
        MC_ASSERT(d->seq_len > 0 && d->row0 >= 0 && d->row0 + n_rows <= INT32_MAX);
        mask.row0 = (uint32_t)d->row0;
        mask.seq_len = ly_divider_of(d->seq_len);
    }
    if (mask.on) {
        MC_ASSERT(d->p < 1.0f);
        mask.scale = 1.0f / (1.0f - d->p);
        mask.threshold = mc_rng_threshold(d->p);
        mask.seed = d->seed;
        mask.stream = d->stream;
        mask.sample0 = d->sample0;
    }
    return mask;
}

/* Where a local row stands: its sample in the run, its position in the sample. */
struct ly_mask_row {
    uint64_t sample;
    uint32_t position;
};

__device__ __forceinline__ ly_mask_row ly_mask_row_of(const ly_mask &mask, int64_t row)
{
    uint32_t global = mask.row0 + (uint32_t)row, sample = ly_divide(global, mask.seq_len);
    return {mask.sample0 + sample, global - sample * mask.seq_len.divisor};
}

__device__ __forceinline__ float ly_mask_one(const ly_mask &mask, uint32_t word, float x)
{
    return word >= mask.threshold ? x * mask.scale : 0.0f;
}

/* x = mask . x for the WIDTH elements from index `first` of a sample on. Where WIDTH is a multiple of 4, so is first,
 * and each block is computed once; a single element (odd widths) takes one word of its block. */
template <int WIDTH>
__device__ __forceinline__ void ly_mask_apply(float (&x)[WIDTH], const ly_mask &mask, uint64_t sample, uint64_t first)
{
    if constexpr (WIDTH == 1) {
        mc_rng_block b = mc_rng_bits(mask.seed, mask.stream, sample, first / 4);
        uint32_t low = first & 1 ? b.w[1] : b.w[0], high = first & 1 ? b.w[3] : b.w[2];
        x[0] = ly_mask_one(mask, first & 2 ? high : low, x[0]);
    } else {
        static_assert(WIDTH % 4 == 0, "whole blocks");
#pragma unroll
        for (int at = 0; at < WIDTH; at += 4) {
            mc_rng_block b = mc_rng_bits(mask.seed, mask.stream, sample, first / 4 + at / 4);
#pragma unroll
            for (int k = 0; k < 4; k++) {
                x[at + k] = ly_mask_one(mask, b.w[k], x[at + k]);
            }
        }
    }
}

#endif
