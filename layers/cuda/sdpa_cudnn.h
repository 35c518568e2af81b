/* Attention as graphs of cuDNN's backend API: what is computed, and the plans that the library makes of it.
 *
 * The graphs are the composite ones (products, softmax, reductions), which cuDNN recognises and runs as one fused
 * kernel. Everything goes through a table of functions, because the library is loaded when it is there. sdpa_cudnn.c
 * makes graphs and plans, attention_cudnn.c keeps and runs them. */
#ifndef LAYERS_CUDA_SDPA_CUDNN_H
#define LAYERS_CUDA_SDPA_CUDNN_H

#include <cudnn.h>
#include <stdbool.h>

#include "layers/cuda/attention_split.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Functions of libcudnn.so.9, without their prefix. */
#define LY_I_CUDNN_FUNCTIONS(X) \
    X(GetVersion)               \
    X(Create)                   \
    X(Destroy)                  \
    X(SetStream)                \
    X(GetErrorString)           \
    X(GetLastErrorString)       \
    X(BackendCreateDescriptor)  \
    X(BackendDestroyDescriptor) \
    X(BackendSetAttribute)      \
    X(BackendGetAttribute)      \
    X(BackendFinalize)          \
    X(BackendExecute)

typedef struct ly_i_cudnn_api {
#define LY_I_SLOT(name) __typeof__(cudnn##name) *name;
    LY_I_CUDNN_FUNCTIONS(LY_I_SLOT)
#undef LY_I_SLOT
} ly_i_cudnn_api;

/* Numbers of the tensors that a caller gives memory, or (from LY_I_SDPA_SCALE on, f32) values on the host. */
enum {
    LY_I_SDPA_Q = 1,
    LY_I_SDPA_K,
    LY_I_SDPA_V,
    LY_I_SDPA_OUT,
    LY_I_SDPA_LSE,
    LY_I_SDPA_DOUT,
    LY_I_SDPA_DELTA, /* overwritten */
    LY_I_SDPA_DQ,
    LY_I_SDPA_DK,
    LY_I_SDPA_DV,
    LY_I_SDPA_SCALE,  /* of scores */
    LY_I_SDPA_HIDDEN, /* the score of keys after the query: -infinity */
    LY_I_SDPA_ONE,    /* 1: factor of delta (backward) */
    LY_I_SDPA_VIRTUAL
};

/* Descriptors in the order they were made; the graph is the last. */
enum { LY_I_SDPA_DESCRIPTORS = 128 };
typedef struct ly_i_sdpa_graph {
    cudnnBackendDescriptor_t graph, made[LY_I_SDPA_DESCRIPTORS];
    int n_made;
} ly_i_sdpa_graph;

/* All three return the first failure's status, whose reason GetLastErrorString tells; then they leave nothing behind.
 *
 * `handle` is NULL where a device is described instead (below). A graph may be destroyed once its plan is made. */
cudnnStatus_t ly_i_sdpa_graph_make(const ly_i_cudnn_api *api, cudnnHandle_t handle, const ly_i_sdpa *shape,
                                   ly_i_sdpa_graph *graph_out);
void ly_i_sdpa_graph_destroy(const ly_i_cudnn_api *api, ly_i_sdpa_graph *graph);

/* Configurations that cuDNN proposes, best first, at most `cap`; the caller destroys them. `device` describes a device
 * (CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR); NULL: the graph's handle. */
cudnnStatus_t ly_i_sdpa_configs(const ly_i_cudnn_api *api, const ly_i_sdpa_graph *graph,
                                cudnnBackendDescriptor_t device, int cap, cudnnBackendDescriptor_t *configs_out,
                                int *n_out);
/* Workspace of a configuration, from its heuristics; -1: it does not tell. */
int64_t ly_i_sdpa_config_bytes(const ly_i_cudnn_api *api, cudnnBackendDescriptor_t config);

/* The first proposal that gives the same bits in every run, builds, and needs at most `limit` bytes of workspace.
 * *plan_out is NULL where none does; *least_bytes_out is then the least workspace of those that were too large, or
 * -1. */
cudnnStatus_t ly_i_sdpa_plan(const ly_i_cudnn_api *api, cudnnHandle_t handle, const ly_i_sdpa_graph *graph,
                             int64_t limit, cudnnBackendDescriptor_t *plan_out, int64_t *bytes_out,
                             int64_t *least_bytes_out);

#ifdef __cplusplus
}
#endif
#endif
