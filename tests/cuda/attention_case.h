/* Calls of attention with their memory, inputs and the CPU operators' results: for tests of our kernels on the CPU and
 * of the whole backend on a device. */
#ifndef TESTS_CUDA_ATTENTION_CASE_H
#define TESTS_CUDA_ATTENTION_CASE_H

#include "layers/ops.h"
#include "tests/unit.h"

typedef struct attention_shape {
    const char *name;
    int B, T, G, r, H;
    int window; /* -1: none */
    float p;    /* dropout */
    int pad;    /* elements between heads */
    bool apart; /* q, k, v are buffers of their own; else views of one, group by group */
} attention_shape;

/* All tensors of a forward and its backward: in host memory, or, with the same fields, in a device's. Each begins and
 * ends with ATTENTION_GUARD elements that nobody writes. */
enum { ATTENTION_GUARD = 64, ATTENTION_BUFFERS = 6 };
typedef enum {
    ATTENTION_QKV,
    ATTENTION_OUT,
    ATTENTION_DOUT,
    ATTENTION_DQKV,
    ATTENTION_LSE,
    ATTENTION_DELTA
} attention_buffer;
typedef struct attention_memory {
    mc_dtype dtype;
    int64_t elems[ATTENTION_BUFFERS]; /* between the guards */
    void *data[ATTENTION_BUFFERS];    /* behind the first guard */
} attention_memory;

/* NaN everywhere but in the inputs, which have the same values in every type. */
attention_memory attention_make(const attention_shape *s, mc_dtype dtype);
void attention_free(attention_memory *m);
/* The whole of a buffer, guards included. */
size_t attention_bytes(const attention_memory *m, attention_buffer which);
void *attention_start(const attention_memory *m, attention_buffer which);

ly_attention_fwd attention_fwd_args(const attention_shape *s, const attention_memory *m);
ly_attention_bwd attention_bwd_args(const attention_shape *s, const attention_memory *m);

/* Forward and backward of the CPU operators in f32. */
attention_memory attention_reference(const attention_shape *s);

/* Results against the CPU's, within what arithmetic allows; everything that should be written was, and nothing else. */
void attention_check(const attention_shape *s, const attention_memory *got, const attention_memory *want);

#endif
