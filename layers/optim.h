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
} ly_segment;

/* AdamW (Loshchilov and Hutter 2019), as Megatron-LM's "adam": g = grad * grad_scale; m = b1 m + (1-b1) g;
 * v = b2 v + (1-b2) g^2; p -= lr ((m / (1-b1^step)) / (sqrt(v / (1-b2^step)) + eps) + weight_decay p).
 * param, m, v: 1-D f32 of the same length; grad the same length, f32 or bf16. step counts from 1. With `clear_grad` the
 * gradient is set to 0 while it is in the cache, which saves the next step a pass over memory. model, of 16 bits,
 * receives the new param rounded to nearest even: what the next step computes with. */
typedef struct ly_adamw {
    mc_tensor param, grad, m, v;
    mc_tensor model; /* (optional) default: param itself is what the model computes with */
    const ly_segment *segments;
    int n_segments;
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
