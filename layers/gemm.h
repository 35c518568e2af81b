/* Matrix product. */
#ifndef LAYERS_GEMM_H
#define LAYERS_GEMM_H

#include <stdbool.h>

#include "megac/base/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

/* c = op(a) op(b) + beta c + bias, row-major, op(x) = x or its transpose.
 *   op(a) (M,K), op(b) (K,N), c (M,N): 2-D views whose rows may be strided (last dim contiguous)
 *   bias (N): optional, added to every row
 *   beta: 0 overwrites (c may hold NaN), 1 accumulates
 * a, b, bias have type T; c has type T or is f32, and beta = 1 needs f32. The sum over K is formed in f32, bias
 * added, and then rounded once to c's type. On the CPU it runs in one order whatever M, N, and the number of threads.
 * K = 0 gives beta c + bias. The three of a linear layer y = x W^T (x (R,in), W (out,in)):
 *   forward   c = y (R,out)   a = x,  b = W   trans_b
 *   dx        c = dx (R,in)   a = dy, b = W
 *   dW +=     c = dW (out,in) a = dy trans_a, b = x, beta = 1 */
typedef struct ly_gemm {
    mc_tensor a, b, c, bias;
    bool trans_a, trans_b;
    float beta;
} ly_gemm;

/* dbias (N) f32 += column sums of dy (R,N) (rows may be strided). Adds rows in one fixed order. */
typedef struct ly_bias_grad {
    mc_tensor dy, dbias;
} ly_bias_grad;

#ifdef __cplusplus
}
#endif
#endif
