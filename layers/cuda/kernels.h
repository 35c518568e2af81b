/* The launchers in libmegac_kernels.so: one for every operator that is a kernel of ours. Each queues its kernels on
 * cx->stream and returns what the launch said (cudaError_t as int, 0 for success); shapes and types are asserted as on
 * the CPU. The rest of ops.def goes to a library (ops_cuda.c). */
#ifndef LAYERS_CUDA_KERNELS_H
#define LAYERS_CUDA_KERNELS_H

#include "layers/ops.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Every operator has one, but for gemm (cuBLASLt only). attention_fwd and attention_bwd are the flash kernels that run
 * where cuDNN has no plan. */
#define LY_OP(name) int ly_k_##name(const ly_ctx *cx, const ly_##name *a);
#include "layers/ops.def"
#undef LY_OP

/* Largest head that the attention kernels hold in registers and shared memory; the table refuses wider ones. */
enum { LY_CUDA_MAX_HEAD = 256 };

#ifdef __cplusplus
}
#endif
#endif
