/* Graphs of scaled dot product attention on cuDNN's graph API, forward and backward, built operation by operation, for
 * test_cudnn.c. */
#ifndef TESTS_CUDA_STANDIN_SDPA_GRAPH_H
#define TESTS_CUDA_STANDIN_SDPA_GRAPH_H

#include <cuda_runtime_api.h>
#include <cudnn.h>
#include <stdbool.h>
#include <stdint.h>

/* Batch B, heads Hq and (keys, values) Hk, T tokens, head size D. Memory of q, k, v, o and of their gradients is
 * (B,T,H,D), with `row` elements from token to token (0: H D). */
typedef struct sdpa_shape {
    int64_t b, hq, hk, t, d, row;
    cudnnDataType_t type;
    double dropout;
    bool deterministic; /* backward: dq is written by one product, not added up in f32 memory */
    bool padded;        /* tokens behind lengths_q, lengths_k do not count */
} sdpa_shape;

/* Device memory. stats, sum (B,Hq,T) f32; dq_sum (B,Hq,T,D) f32; seed, offset one int64; lengths (B) int32. */
typedef struct sdpa_memory {
    void *q, *k, *v, *o, *stats, *dout, *dq, *dk, *dv, *sum, *dq_sum, *seed, *offset, *lengths_q, *lengths_k;
} sdpa_memory;

enum { SDPA_MAX_OPS = 64, SDPA_MAX_DESCRIPTORS = 512 };

typedef struct sdpa_graph {
    sdpa_shape s;
    cudnnBackendDescriptor_t ops[SDPA_MAX_OPS], all[SDPA_MAX_DESCRIPTORS];
    int n_ops, n_all;
    int64_t next_uid, uids[SDPA_MAX_OPS];
    void *ptrs[SDPA_MAX_OPS];
    int n_bound;
    float scalars[8];
    int n_scalars;
} sdpa_graph;

void sdpa_forward(sdpa_graph *g, sdpa_shape s, const sdpa_memory *m);
void sdpa_backward(sdpa_graph *g, sdpa_shape s, const sdpa_memory *m);
/* The dropout mask alone, into out (B,Hq,T,T) f32: 1 keeps. */
void sdpa_mask(sdpa_graph *g, sdpa_shape s, const sdpa_memory *m, void *out);
void sdpa_close(sdpa_graph *g); /* destroys every descriptor */

/* From the graph to a plan of the heuristic's configuration number `engine`; null where there are not as many. */
cudnnBackendDescriptor_t sdpa_plan(sdpa_graph *g, cudnnHandle_t handle, int engine, int64_t *n_configs_out);
int64_t sdpa_workspace(cudnnBackendDescriptor_t plan);
/* Whether the engine of configuration 0 says that it is not deterministic. */
bool sdpa_varies(sdpa_graph *g);
/* A variant pack of the graph's memory, finalized. */
cudnnBackendDescriptor_t sdpa_pack(sdpa_graph *g, void *workspace);

#endif
