/* Attention as graphs of cuDNN's backend API (cuda/sdpa_cudnn.h). */
#include "layers/cuda/sdpa_cudnn.h"

#include <string.h>

#include "megac/base/status.h"

typedef cudnnBackendDescriptor_t descriptor;

enum { OPS = 32 };

/* A graph in the making. After a failure, `status` says which, and nothing more is done. */
typedef struct builder {
    const ly_i_cudnn_api *api;
    ly_i_sdpa_graph *graph;
    const ly_i_sdpa *shape;
    cudnnStatus_t status;
    int64_t next_virtual;
    descriptor ops[OPS];
    int n_ops;
} builder;

static descriptor make(builder *b, cudnnBackendDescriptorType_t type)
{
    descriptor d = NULL;
    if (b->status == CUDNN_STATUS_SUCCESS) {
        b->status = b->api->BackendCreateDescriptor(type, &d);
    }
    if (b->status == CUDNN_STATUS_SUCCESS) {
        MC_ASSERT(b->graph->n_made < LY_I_SDPA_DESCRIPTORS);
        b->graph->made[b->graph->n_made++] = d;
    }
    return d;
}

static void set(builder *b, descriptor d, cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type,
                int64_t count, const void *value)
{
    if (b->status == CUDNN_STATUS_SUCCESS) {
        b->status = b->api->BackendSetAttribute(d, name, type, count, value);
    }
}

static void set_descriptor(builder *b, descriptor d, cudnnBackendAttributeName_t name, descriptor value)
{
    set(b, d, name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &value);
}

static void set_type(builder *b, descriptor d, cudnnBackendAttributeName_t name, cudnnDataType_t type)
{
    set(b, d, name, CUDNN_TYPE_DATA_TYPE, 1, &type);
}

static void finish(builder *b, descriptor d)
{
    if (b->status == CUDNN_STATUS_SUCCESS) {
        b->status = b->api->BackendFinalize(d);
    }
}

static void finish_op(builder *b, descriptor op)
{
    finish(b, op);
    MC_ASSERT(b->n_ops < OPS);
    b->ops[b->n_ops++] = op;
}

/* --- tensors, always of four dims --- */

static descriptor tensor(builder *b, int64_t id, cudnnDataType_t type, const int64_t dims[4], const int64_t strides[4])
{
    descriptor d = make(b, CUDNN_BACKEND_TENSOR_DESCRIPTOR);
    bool is_virtual = id >= LY_I_SDPA_VIRTUAL, by_value = id >= LY_I_SDPA_SCALE && !is_virtual;
    int64_t alignment = 16;
    set_type(b, d, CUDNN_ATTR_TENSOR_DATA_TYPE, type);
    set(b, d, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, dims);
    set(b, d, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, strides);
    set(b, d, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &id);
    set(b, d, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &alignment);
    set(b, d, CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, 1, &is_virtual);
    set(b, d, CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, 1, &by_value);
    finish(b, d);
    return d;
}

static cudnnDataType_t narrow(const builder *b)
{
    return b->shape->dtype == MC_BF16 ? CUDNN_DATA_BFLOAT16 : CUDNN_DATA_HALF;
}

/* (batch, heads, rows, cols) without gaps: a value between operations, or statistics. */
static descriptor dense(builder *b, int64_t id, cudnnDataType_t type, int64_t rows, int64_t cols)
{
    const ly_i_sdpa *s = b->shape;
    int64_t dims[4] = {s->batch, s->heads, rows, cols};
    int64_t strides[4] = {s->heads * rows * cols, rows * cols, cols, 1};
    return tensor(b, id, type, dims, strides);
}

static descriptor scores(builder *b, cudnnDataType_t type)
{
    return dense(b, b->next_virtual++, type, b->shape->seq, b->shape->seq);
}

static descriptor row_values(builder *b)
{
    return dense(b, b->next_virtual++, CUDNN_DATA_FLOAT, b->shape->seq, 1);
}

/* A matrix (seq, head_size) of each head in the caller's memory; transposed: the same memory as (head_size, seq). */
static descriptor matrix(builder *b, int64_t id, ly_i_sdpa_strides at, int64_t heads, bool transposed)
{
    const ly_i_sdpa *s = b->shape;
    int64_t rows[2] = {s->seq, at.row}, cols[2] = {s->head_size, 1};
    const int64_t *third = transposed ? cols : rows, *fourth = transposed ? rows : cols;
    int64_t dims[4] = {s->batch, heads, third[0], fourth[0]};
    int64_t strides[4] = {at.batch, at.head, third[1], fourth[1]};
    return tensor(b, id, narrow(b), dims, strides);
}

static descriptor scalar(builder *b, int64_t id)
{
    const int64_t ones[4] = {1, 1, 1, 1};
    return tensor(b, id, CUDNN_DATA_FLOAT, ones, ones);
}

/* --- operations; each returns its result --- */

static descriptor product(builder *b, descriptor x, descriptor y, descriptor result)
{
    descriptor how = make(b, CUDNN_BACKEND_MATMUL_DESCRIPTOR);
    set_type(b, how, CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_DATA_FLOAT);
    finish(b, how);
    descriptor op = make(b, CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR);
    set_descriptor(b, op, CUDNN_ATTR_OPERATION_MATMUL_ADESC, x);
    set_descriptor(b, op, CUDNN_ATTR_OPERATION_MATMUL_BDESC, y);
    set_descriptor(b, op, CUDNN_ATTR_OPERATION_MATMUL_CDESC, result);
    set_descriptor(b, op, CUDNN_ATTR_OPERATION_MATMUL_DESC, how);
    finish_op(b, op);
    return result;
}

static descriptor reduce(builder *b, cudnnReduceTensorOp_t kind, descriptor x, descriptor result)
{
    descriptor how = make(b, CUDNN_BACKEND_REDUCTION_DESCRIPTOR);
    set(b, how, CUDNN_ATTR_REDUCTION_OPERATOR, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, 1, &kind);
    set_type(b, how, CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_DATA_FLOAT);
    finish(b, how);
    descriptor op = make(b, CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR);
    set_descriptor(b, op, CUDNN_ATTR_OPERATION_REDUCTION_XDESC, x);
    set_descriptor(b, op, CUDNN_ATTR_OPERATION_REDUCTION_YDESC, result);
    set_descriptor(b, op, CUDNN_ATTR_OPERATION_REDUCTION_DESC, how);
    finish_op(b, op);
    return result;
}

/* The same memory with the dims and strides of `result`. */
static descriptor reshape(builder *b, descriptor x, descriptor result)
{
    descriptor op = make(b, CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR);
    set_descriptor(b, op, CUDNN_ATTR_OPERATION_RESHAPE_XDESC, x);
    set_descriptor(b, op, CUDNN_ATTR_OPERATION_RESHAPE_YDESC, result);
    finish_op(b, op);
    return result;
}

/* result = mode(x, y, t); y and t may be NULL. axis counts for GEN_INDEX alone. */
static descriptor pointwise_full(builder *b, cudnnPointwiseMode_t mode, cudnnDataType_t math, int64_t axis,
                                 descriptor x, descriptor y, descriptor t, descriptor result)
{
    descriptor how = make(b, CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
    set(b, how, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &mode);
    set_type(b, how, CUDNN_ATTR_POINTWISE_MATH_PREC, math);
    if (mode == CUDNN_POINTWISE_GEN_INDEX) {
        set(b, how, CUDNN_ATTR_POINTWISE_AXIS, CUDNN_TYPE_INT64, 1, &axis);
    }
    finish(b, how);
    descriptor op = make(b, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
    set_descriptor(b, op, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, how);
    set_descriptor(b, op, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, x);
    if (y) {
        set_descriptor(b, op, CUDNN_ATTR_OPERATION_POINTWISE_BDESC, y);
    }
    if (t) {
        set_descriptor(b, op, CUDNN_ATTR_OPERATION_POINTWISE_TDESC, t);
    }
    set_descriptor(b, op, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, result);
    finish_op(b, op);
    return result;
}

static descriptor pointwise(builder *b, cudnnPointwiseMode_t mode, descriptor x, descriptor y, descriptor result)
{
    return pointwise_full(b, mode, CUDNN_DATA_FLOAT, 0, x, y, NULL, result);
}

/* x where row >= column, else LY_I_SDPA_HIDDEN. */
static descriptor causal(builder *b, descriptor x)
{
    cudnnPointwiseMode_t index = CUDNN_POINTWISE_GEN_INDEX;
    descriptor row = pointwise_full(b, index, CUDNN_DATA_FLOAT, 2, x, NULL, NULL, scores(b, CUDNN_DATA_INT32));
    descriptor col = pointwise_full(b, index, CUDNN_DATA_FLOAT, 3, x, NULL, NULL, scores(b, CUDNN_DATA_INT32));
    descriptor seen =
        pointwise_full(b, CUDNN_POINTWISE_CMP_GE, CUDNN_DATA_BOOLEAN, 0, row, col, NULL, scores(b, CUDNN_DATA_BOOLEAN));
    return pointwise_full(b, CUDNN_POINTWISE_BINARY_SELECT, CUDNN_DATA_FLOAT, 0, x, scalar(b, LY_I_SDPA_HIDDEN), seen,
                          scores(b, CUDNN_DATA_FLOAT));
}

/* S = scale Q K^T, masked; lse = max + log(sum of exp(S - max)); out = (exp(S - max) / sum) V. */
static void forward(builder *b)
{
    const ly_i_sdpa *s = b->shape;
    const cudnnDataType_t f32 = CUDNN_DATA_FLOAT;
    descriptor q = matrix(b, LY_I_SDPA_Q, s->q, s->heads, false), kt = matrix(b, LY_I_SDPA_K, s->k, s->kv_heads, true);
    descriptor v = matrix(b, LY_I_SDPA_V, s->v, s->kv_heads, false);
    descriptor x = product(b, q, kt, scores(b, f32));
    x = causal(b, pointwise(b, CUDNN_POINTWISE_MUL, x, scalar(b, LY_I_SDPA_SCALE), scores(b, f32)));
    descriptor top = reduce(b, CUDNN_REDUCE_TENSOR_MAX, x, row_values(b));
    descriptor e = pointwise(b, CUDNN_POINTWISE_SUB, x, top, scores(b, f32));
    e = pointwise(b, CUDNN_POINTWISE_EXP, e, NULL, scores(b, f32));
    descriptor sum = reduce(b, CUDNN_REDUCE_TENSOR_ADD, e, row_values(b));
    descriptor log_sum = pointwise(b, CUDNN_POINTWISE_LOG, sum, NULL, row_values(b));
    pointwise(b, CUDNN_POINTWISE_ADD, top, log_sum, dense(b, LY_I_SDPA_LSE, f32, s->seq, 1));
    descriptor p = pointwise(b, CUDNN_POINTWISE_DIV, e, sum, scores(b, narrow(b)));
    product(b, p, v, matrix(b, LY_I_SDPA_OUT, s->out, s->heads, false));
}

/* x^T by reshape: the same memory read with its last two strides exchanged, rounded to 16 bits. */
static descriptor transposed_scores(builder *b, descriptor x)
{
    const ly_i_sdpa *s = b->shape;
    int64_t n = s->seq, dims[4] = {s->batch, s->heads, n, n}, strides[4] = {s->heads * n * n, n * n, 1, n};
    return reshape(b, x, tensor(b, b->next_virtual++, narrow(b), dims, strides));
}

/* dK or dV: where heads share keys, their gradients are made apart and added. */
static void key_gradient(builder *b, descriptor left, descriptor right, int64_t id, ly_i_sdpa_strides at)
{
    const ly_i_sdpa *s = b->shape;
    descriptor result = matrix(b, id, at, s->kv_heads, false);
    if (s->heads == s->kv_heads) {
        product(b, left, right, result);
    } else {
        descriptor each = dense(b, b->next_virtual++, narrow(b), s->seq, s->head_size);
        reduce(b, CUDNN_REDUCE_TENSOR_ADD, product(b, left, right, each), result);
    }
}

/* delta = sum of dO * out; P = exp(scale Q K^T - lse), masked; dV = P^T dO; dS = scale P (dO V^T - delta);
 * dK = dS^T Q; dQ = dS K. dQ is made by one product: with an f32 sum in between, cuDNN adds to that in any order. */
static void backward(builder *b)
{
    const ly_i_sdpa *s = b->shape;
    const cudnnDataType_t f32 = CUDNN_DATA_FLOAT;
    descriptor q = matrix(b, LY_I_SDPA_Q, s->q, s->heads, false), kt = matrix(b, LY_I_SDPA_K, s->k, s->kv_heads, true);
    descriptor vt = matrix(b, LY_I_SDPA_V, s->v, s->kv_heads, true);
    descriptor out = matrix(b, LY_I_SDPA_OUT, s->out, s->heads, false);
    descriptor dout = matrix(b, LY_I_SDPA_DOUT, s->dout, s->heads, false), scale = scalar(b, LY_I_SDPA_SCALE);

    descriptor delta = dense(b, b->next_virtual++, f32, s->seq, s->head_size);
    delta = reduce(b, CUDNN_REDUCE_TENSOR_ADD, pointwise(b, CUDNN_POINTWISE_MUL, dout, out, delta), row_values(b));
    delta =
        pointwise(b, CUDNN_POINTWISE_MUL, delta, scalar(b, LY_I_SDPA_ONE), dense(b, LY_I_SDPA_DELTA, f32, s->seq, 1));

    descriptor p = pointwise(b, CUDNN_POINTWISE_MUL, product(b, q, kt, scores(b, f32)), scale, scores(b, f32));
    descriptor lse = dense(b, LY_I_SDPA_LSE, f32, s->seq, 1);
    p = causal(b, pointwise(b, CUDNN_POINTWISE_SUB, p, lse, scores(b, f32)));
    p = pointwise(b, CUDNN_POINTWISE_EXP, p, NULL, scores(b, f32));
    key_gradient(b, transposed_scores(b, p), dout, LY_I_SDPA_DV, s->dv);

    descriptor ds = product(b, dout, vt, scores(b, f32));
    ds = pointwise(b, CUDNN_POINTWISE_SUB, ds, delta, scores(b, f32));
    ds = pointwise(b, CUDNN_POINTWISE_MUL, ds, p, scores(b, f32));
    ds = pointwise(b, CUDNN_POINTWISE_MUL, ds, scale, scores(b, narrow(b)));
    key_gradient(b, transposed_scores(b, ds), q, LY_I_SDPA_DK, s->dk);
    descriptor k = reshape(b, kt, matrix(b, b->next_virtual++, s->k, s->kv_heads, false));
    product(b, ds, k, matrix(b, LY_I_SDPA_DQ, s->dq, s->heads, false));
}

cudnnStatus_t ly_i_sdpa_graph_make(const ly_i_cudnn_api *api, cudnnHandle_t handle, const ly_i_sdpa *shape,
                                   ly_i_sdpa_graph *graph_out)
{
    *graph_out = (ly_i_sdpa_graph){0};
    builder b = {.api = api, .graph = graph_out, .shape = shape, .next_virtual = LY_I_SDPA_VIRTUAL};
    if (shape->backward) {
        backward(&b);
    } else {
        forward(&b);
    }
    descriptor graph = make(&b, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
    set(&b, graph, CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, b.n_ops, b.ops);
    if (handle) {
        set(&b, graph, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1, &handle);
    }
    finish(&b, graph);
    graph_out->graph = graph;
    if (b.status != CUDNN_STATUS_SUCCESS) {
        ly_i_sdpa_graph_destroy(api, graph_out);
    }
    return b.status;
}

void ly_i_sdpa_graph_destroy(const ly_i_cudnn_api *api, ly_i_sdpa_graph *graph)
{
    while (graph->n_made > 0) {
        (void)api->BackendDestroyDescriptor(graph->made[--graph->n_made]);
    }
    graph->graph = NULL;
}

/* --- plans --- */

static cudnnStatus_t ask_heuristics(const ly_i_cudnn_api *api, descriptor heuristics, const ly_i_sdpa_graph *graph,
                                    descriptor device)
{
    cudnnBackendHeurMode_t mode = CUDNN_HEUR_MODE_A;
    cudnnStatus_t st = api->BackendSetAttribute(heuristics, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH,
                                                CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &graph->graph);
    if (st == CUDNN_STATUS_SUCCESS) {
        st = api->BackendSetAttribute(heuristics, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode);
    }
    if (st == CUDNN_STATUS_SUCCESS && device) {
        st = api->BackendSetAttribute(heuristics, CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1,
                                      &device);
    }
    return st == CUDNN_STATUS_SUCCESS ? api->BackendFinalize(heuristics) : st;
}

static void destroy_all(const ly_i_cudnn_api *api, descriptor *list, int n)
{
    for (int i = 0; i < n; i++) {
        (void)api->BackendDestroyDescriptor(list[i]);
    }
}

cudnnStatus_t ly_i_sdpa_configs(const ly_i_cudnn_api *api, const ly_i_sdpa_graph *graph, descriptor device, int cap,
                                descriptor *configs_out, int *n_out)
{
    descriptor heuristics = NULL;
    int made = 0;
    int64_t n = 0;
    *n_out = 0;
    cudnnStatus_t st = api->BackendCreateDescriptor(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR, &heuristics);
    if (st != CUDNN_STATUS_SUCCESS) {
        return st;
    }
    st = ask_heuristics(api, heuristics, graph, device);
    for (; st == CUDNN_STATUS_SUCCESS && made < cap; made += st == CUDNN_STATUS_SUCCESS) {
        st = api->BackendCreateDescriptor(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR, &configs_out[made]);
    }
    if (st == CUDNN_STATUS_SUCCESS) {
        st = api->BackendGetAttribute(heuristics, CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR, cap, &n,
                                      configs_out);
    }
    int kept = st == CUDNN_STATUS_SUCCESS ? (int)(n < cap ? n : cap) : 0;
    destroy_all(api, configs_out + kept, made - kept);
    (void)api->BackendDestroyDescriptor(heuristics);
    *n_out = kept;
    return st;
}

int64_t ly_i_sdpa_config_bytes(const ly_i_cudnn_api *api, descriptor config)
{
    int64_t bytes = -1, n = 0;
    cudnnStatus_t st =
        api->BackendGetAttribute(config, CUDNN_ATTR_ENGINECFG_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1, &n, &bytes);
    return st == CUDNN_STATUS_SUCCESS ? bytes : -1;
}

/* Whether the engine of a configuration admits that its results may differ from run to run. */
static bool admits_randomness(const ly_i_cudnn_api *api, descriptor config)
{
    enum { NOTES = 32 };
    cudnnBackendNumericalNote_t notes[NOTES] = {0};
    descriptor engine = NULL;
    int64_t n = 0;
    bool found = false;
    if (api->BackendCreateDescriptor(CUDNN_BACKEND_ENGINE_DESCRIPTOR, &engine) != CUDNN_STATUS_SUCCESS) {
        return false;
    }
    if (api->BackendGetAttribute(config, CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &n, &engine) ==
            CUDNN_STATUS_SUCCESS &&
        api->BackendGetAttribute(engine, CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE, NOTES, &n,
                                 notes) == CUDNN_STATUS_SUCCESS) {
        for (int64_t i = 0; i < n && i < NOTES; i++) {
            found = found || notes[i] == CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC;
        }
    }
    (void)api->BackendDestroyDescriptor(engine);
    return found;
}

/* A finished plan of one configuration and its workspace. */
static cudnnStatus_t build(const ly_i_cudnn_api *api, cudnnHandle_t handle, descriptor config, descriptor *plan_out,
                           int64_t *bytes_out)
{
    descriptor plan = NULL;
    int64_t n = 0;
    cudnnStatus_t st = api->BackendCreateDescriptor(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR, &plan);
    if (st != CUDNN_STATUS_SUCCESS) {
        return st;
    }
    st = api->BackendSetAttribute(plan, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1, &handle);
    if (st == CUDNN_STATUS_SUCCESS) {
        st = api->BackendSetAttribute(plan, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1,
                                      &config);
    }
    st = st == CUDNN_STATUS_SUCCESS ? api->BackendFinalize(plan) : st;
    if (st == CUDNN_STATUS_SUCCESS) {
        st = api->BackendGetAttribute(plan, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1, &n,
                                      bytes_out);
    }
    if (st != CUDNN_STATUS_SUCCESS) {
        (void)api->BackendDestroyDescriptor(plan);
        return st;
    }
    *plan_out = plan;
    return st;
}

cudnnStatus_t ly_i_sdpa_plan(const ly_i_cudnn_api *api, cudnnHandle_t handle, const ly_i_sdpa_graph *graph,
                             int64_t limit, descriptor *plan_out, int64_t *bytes_out, int64_t *least_bytes_out)
{
    enum { CONFIGS = 16 };
    descriptor configs[CONFIGS];
    int n = 0;
    int64_t least = -1;
    *plan_out = NULL;
    cudnnStatus_t st = ly_i_sdpa_configs(api, graph, NULL, CONFIGS, configs, &n), build_st = CUDNN_STATUS_SUCCESS;
    for (int i = 0; i < n && !*plan_out; i++) {
        int64_t bytes = ly_i_sdpa_config_bytes(api, configs[i]);
        if (admits_randomness(api, configs[i])) {
            continue;
        }
        if (bytes <= limit) {
            build_st = build(api, handle, configs[i], plan_out, &bytes);
            if (build_st != CUDNN_STATUS_SUCCESS) {
                continue;
            }
        }
        if (bytes <= limit) {
            *bytes_out = bytes;
        } else {
            least = least < 0 || bytes < least ? bytes : least;
            if (*plan_out) {
                (void)api->BackendDestroyDescriptor(*plan_out);
                *plan_out = NULL;
            }
        }
    }
    destroy_all(api, configs, n);
    *least_bytes_out = least;
    return st != CUDNN_STATUS_SUCCESS || *plan_out || least >= 0 ? st : build_st;
}
