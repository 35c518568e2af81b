/* Optimizer steps and the norm that clipping needs, over whole slabs: one call a step, whatever the number of tensors.
 */
#ifndef LAYERS_OPTIM_H
#define LAYERS_OPTIM_H

#include "megac/base/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A run of elements [begin, end) of a slab with its own multipliers. Segments are sorted and disjoint; elements between
 * them are padding and stay untouched. The array of segments lies where the operator runs (device memory on a GPU). */
typedef struct ly_segment {
    int64_t begin, end;
    float lr_mult, decay_mult; /* of lr and weight_decay */
    float norm_weight;         /* 1: this rank counts it in the global norm; 0: another rank does */
    /* Where its elements stand in the global tensor, for stochastic rounding: element begin + i is element
     * global0 + i + gap ((col0 + i) / cols) of tensor number `tensor`. gap 0: contiguous; else rows of `cols` elements
     * have `gap` elements of other ranks between them, and the first one is column col0. */
    uint32_t tensor;
    int64_t global0, gap, cols, col0;
} ly_segment;

/* AdamW (Loshchilov and Hutter 2019), as Megatron-LM's "adam": g = grad * grad_scale; m = b1 m + (1-b1) g;
 * v = b2 v + (1-b2) g^2; p -= lr ((m / (1-b1^step)) / (sqrt(v / (1-b2^step)) + eps) + weight_decay p).
 * param, m, v: 1-D of the same length, f32 or bf16, m and v f16 too; grad the same length, f32 or bf16. All arithmetic
 * is f32. Where param, m or v is bf16, it is stored by stochastic rounding (mc_bf16_stochastic): element e of tensor t
 * takes word e % 4 of mc_rng_bits(seed, mc_rng_stream(MC_RNG_ROUND_..., t), step, e / 4), so that its value does not
 * depend on the layout; f16 is rounded to nearest even. step counts from 1. With `clear_grad` the gradient is set to 0
 * while it is in the cache, which saves the next step a pass over memory. model, of 16 bits, receives the new param
 * rounded to nearest even: what the next step computes with. */
typedef struct ly_adamw {
    mc_tensor param, grad, m, v;
    mc_tensor model; /* (optional; f32 param only) default: param itself is what the model computes with */
    const ly_segment *segments;
    int n_segments;
    uint32_t seed; /* of stochastic rounding */
    float lr, beta1, beta2, eps, weight_decay, grad_scale;
    int64_t step;
    int clear_grad;
} ly_adamw;

/* SGD with momentum as torch.optim.SGD: g = grad * grad_scale + weight_decay p; m = momentum m + g; p -= lr m.
 * m absent when momentum = 0: p -= lr g. Types and model as in AdamW. */
typedef struct ly_sgd {
    mc_tensor param, grad, m;
    mc_tensor model;
    const ly_segment *segments;
    int n_segments;
    float lr, momentum, weight_decay, grad_scale;
} ly_sgd;

/* out[0] (f64, one element) = sum over segments of norm_weight * sum of squares of x (f32 or bf16), in double, in an
 * order that does not depend on the number of threads. */
typedef struct ly_sq_norm {
    mc_tensor x, out;
    const ly_segment *segments;
    int n_segments;
} ly_sq_norm;

#ifdef __cplusplus
}
#endif
#endif
