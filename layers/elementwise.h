/* Activations, rotary positions, and the small element-wise operators. */
#ifndef LAYERS_ELEMENTWISE_H
#define LAYERS_ELEMENTWISE_H

#include <stdbool.h>

#include "megac/base/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum {
    LY_GELU_TANH,    /* 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))): Megatron-LM's fused bias-GELU, GPT-2 */
    LY_GELU_ERF,     /* exact */
    LY_SQUARED_RELU, /* max(x, 0)^2 */
    LY_SWIGLU,       /* silu(gate) * up; x holds [gate | up] */
    LY_SILU,
} ly_act_kind;

/* out (R,F) = act(x). x (R,F), or (R,2F) = [gate | up] for SwiGLU; contiguous. In place not allowed. */
typedef struct ly_act_fwd {
    ly_act_kind kind;
    mc_tensor x, out;
} ly_act_fwd;

/* dx (like x) = act'(x) dout; may be x itself. out (R,F) optional: the forward's output again; may be dout itself. */
typedef struct ly_act_bwd {
    ly_act_kind kind;
    mc_tensor x, dout, dx, out;
} ly_act_bwd;

/* Rotates, in place, the first D = 2 * (columns of cos) elements of every head of x (R, G, r, H) (rows strided), by the
 * angles of the row's position: position = pos0 + row % seq_len. cos, sin (positions, D/2) f32.
 * Halves convention (x_i, x_{i + D/2}), or neighbours (x_2i, x_2i+1) with `interleaved`. `inverse` rotates back, which
 * is also the backward: dx = R^T dout. */
typedef struct ly_rope {
    mc_tensor x, cos, sin;
    int64_t seq_len, pos0;
    bool interleaved, inverse;
} ly_rope;

/* out = a + b, same shape, contiguous; out may be a or b. */
typedef struct ly_add {
    mc_tensor a, b, out;
} ly_add;

/* Every element of x = value. Contiguous; any of f32, bf16, f16. */
typedef struct ly_fill {
    mc_tensor x;
    float value;
} ly_fill;

/* out = x * scale, plus out itself with `accumulate`, rounded to out's type. Same number of elements, contiguous; x and
 * out any of f32, bf16, f16; out may be x where their types are equal. An infinity or NaN stays one; what is too large
 * for f16 becomes infinite. */
typedef struct ly_cast {
    mc_tensor x, out;
    float scale;
    bool accumulate;
} ly_cast;

#ifdef __cplusplus
}
#endif
#endif
