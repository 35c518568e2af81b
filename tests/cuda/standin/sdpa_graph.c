/* Attention as a graph of matrix products, pointwise operations and reductions, the way the library knows it. */
#include "tests/cuda/standin/sdpa_graph.h"

#include <math.h>

#include "tests/unit.h"

typedef cudnnBackendDescriptor_t desc;

static const cudnnDataType_t F32 = CUDNN_DATA_FLOAT, I32 = CUDNN_DATA_INT32, BOOL = CUDNN_DATA_BOOLEAN;
enum { VIRTUAL = 1, VALUE = 2 };

/* ---- descriptors */

static void must(cudnnStatus_t status, const char *what)
{
    if (status != CUDNN_STATUS_SUCCESS) {
        char text[512] = "";
        cudnnGetLastErrorString(text, sizeof text);
        fail_msg("%s: %d %s: %s", what, status, cudnnGetErrorString(status), text);
    }
}

static desc make(sdpa_graph *g, cudnnBackendDescriptorType_t type)
{
    desc d;
    must(cudnnBackendCreateDescriptor(type, &d), "create");
    assert_true(g->n_all < SDPA_MAX_DESCRIPTORS);
    return g->all[g->n_all++] = d;
}

static void set(desc d, cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, int64_t n, const void *v)
{
    must(cudnnBackendSetAttribute(d, name, type, n, v), "set attribute");
}

static void refer(desc d, cudnnBackendAttributeName_t name, desc other)
{
    if (other) {
        set(d, name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &other);
    }
}

static void finalize(desc d)
{
    must(cudnnBackendFinalize(d), "finalize");
}

static desc tensor(sdpa_graph *g, cudnnDataType_t type, int flags, void *ptr, const int64_t dim[4],
                   const int64_t stride[4])
{
    desc d = make(g, CUDNN_BACKEND_TENSOR_DESCRIPTOR);
    int64_t align = flags & VALUE ? 4 : 16, uid = ++g->next_uid;
    bool is_virtual = flags & VIRTUAL, by_value = flags & VALUE;
    set(d, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type);
    set(d, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, dim);
    set(d, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, stride);
    set(d, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &uid);
    set(d, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &align);
    set(d, CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, 1, &is_virtual);
    set(d, CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, 1, &by_value);
    finalize(d);
    if (!is_virtual) {
        g->uids[g->n_bound] = uid;
        g->ptrs[g->n_bound++] = ptr;
    }
    return d;
}

/* Without gaps, as (B,Hq,rows,cols); virtual where there is no memory. */
static desc dense(sdpa_graph *g, cudnnDataType_t type, void *ptr, int64_t rows, int64_t cols)
{
    int64_t dim[4] = {g->s.b, g->s.hq, rows, cols}, stride[4] = {g->s.hq * rows * cols, rows * cols, cols, 1};
    return tensor(g, type, ptr ? 0 : VIRTUAL, ptr, dim, stride);
}

static desc scores(sdpa_graph *g, cudnnDataType_t type)
{
    return dense(g, type, NULL, g->s.t, g->s.t);
}

static desc row(sdpa_graph *g)
{
    return dense(g, F32, NULL, g->s.t, 1);
}

/* Memory (B,T,heads,D), as (B,heads,T,D) or, turned, as (B,heads,D,T). */
static desc tokens(sdpa_graph *g, void *ptr, int64_t heads, bool turned)
{
    int64_t t = g->s.t, d = g->s.d, r = g->s.row ? g->s.row : heads * d;
    int64_t dim[4] = {g->s.b, heads, turned ? d : t, turned ? t : d};
    int64_t stride[4] = {t * r, d, turned ? 1 : r, turned ? r : 1};
    return tensor(g, g->s.type, 0, ptr, dim, stride);
}

static const int64_t ones[4] = {1, 1, 1, 1};

static desc scalar(sdpa_graph *g, float value)
{
    g->scalars[g->n_scalars] = value;
    return tensor(g, F32, VALUE, &g->scalars[g->n_scalars++], ones, ones);
}

/* One number for each batch entry. */
static desc lengths(sdpa_graph *g, void *ptr)
{
    int64_t dim[4] = {g->s.b, 1, 1, 1};
    return tensor(g, I32, 0, ptr, dim, ones);
}

/* ---- operations: each returns its result */

static desc operation(sdpa_graph *g, desc op, desc result)
{
    finalize(op);
    g->ops[g->n_ops++] = op;
    return result;
}

static desc pointwise(sdpa_graph *g, cudnnPointwiseMode_t mode, cudnnDataType_t math, desc x, desc b, desc y)
{
    desc how = make(g, CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
    desc op = make(g, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
    set(how, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &mode);
    set(how, CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, 1, &math);
    finalize(how);
    refer(op, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, how);
    refer(op, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, x);
    refer(op, CUDNN_ATTR_OPERATION_POINTWISE_BDESC, b);
    refer(op, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, y);
    return operation(g, op, y);
}

static desc mul(sdpa_graph *g, desc x, desc b, desc y)
{
    return pointwise(g, CUDNN_POINTWISE_MUL, F32, x, b, y);
}

static desc sub(sdpa_graph *g, desc x, desc b, desc y)
{
    return pointwise(g, CUDNN_POINTWISE_SUB, F32, x, b, y);
}

static desc select_where(sdpa_graph *g, desc mask, desc x, desc otherwise)
{
    desc how = make(g, CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
    desc op = make(g, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR), y = scores(g, F32);
    cudnnPointwiseMode_t mode = CUDNN_POINTWISE_BINARY_SELECT;
    set(how, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &mode);
    finalize(how);
    refer(op, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, how);
    refer(op, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, x);
    refer(op, CUDNN_ATTR_OPERATION_POINTWISE_BDESC, otherwise);
    refer(op, CUDNN_ATTR_OPERATION_POINTWISE_TDESC, mask);
    refer(op, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, y);
    return operation(g, op, y);
}

static desc indices(sdpa_graph *g, desc x, int64_t axis)
{
    desc how = make(g, CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
    desc op = make(g, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR), y = scores(g, I32);
    cudnnPointwiseMode_t mode = CUDNN_POINTWISE_GEN_INDEX;
    set(how, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &mode);
    set(how, CUDNN_ATTR_POINTWISE_AXIS, CUDNN_TYPE_INT64, 1, &axis);
    finalize(how);
    refer(op, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, how);
    refer(op, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, x);
    refer(op, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, y);
    return operation(g, op, y);
}

/* limits: lengths of m, n, k; null: whole. */
static desc product_within(sdpa_graph *g, desc a, desc b, desc c, const desc limits[3])
{
    desc how = make(g, CUDNN_BACKEND_MATMUL_DESCRIPTOR), op = make(g, CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR);
    set(how, CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &F32);
    finalize(how);
    refer(op, CUDNN_ATTR_OPERATION_MATMUL_ADESC, a);
    refer(op, CUDNN_ATTR_OPERATION_MATMUL_BDESC, b);
    refer(op, CUDNN_ATTR_OPERATION_MATMUL_CDESC, c);
    refer(op, CUDNN_ATTR_OPERATION_MATMUL_DESC, how);
    refer(op, CUDNN_ATTR_OPERATION_MATMUL_GEMM_M_OVERRIDE_DESC, limits[0]);
    refer(op, CUDNN_ATTR_OPERATION_MATMUL_GEMM_N_OVERRIDE_DESC, limits[1]);
    refer(op, CUDNN_ATTR_OPERATION_MATMUL_GEMM_K_OVERRIDE_DESC, limits[2]);
    return operation(g, op, c);
}

static desc product(sdpa_graph *g, desc a, desc b, desc c)
{
    return product_within(g, a, b, c, (const desc[3]){NULL, NULL, NULL});
}

static desc reduce(sdpa_graph *g, cudnnReduceTensorOp_t operator, desc x, desc y)
{
    desc how = make(g, CUDNN_BACKEND_REDUCTION_DESCRIPTOR), op = make(g, CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR);
    set(how, CUDNN_ATTR_REDUCTION_OPERATOR, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, 1, &operator);
    set(how, CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &F32);
    finalize(how);
    refer(op, CUDNN_ATTR_OPERATION_REDUCTION_XDESC, x);
    refer(op, CUDNN_ATTR_OPERATION_REDUCTION_YDESC, y);
    refer(op, CUDNN_ATTR_OPERATION_REDUCTION_DESC, how);
    return operation(g, op, y);
}

static desc reshape(sdpa_graph *g, desc x, desc y)
{
    desc op = make(g, CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR);
    refer(op, CUDNN_ATTR_OPERATION_RESHAPE_XDESC, x);
    refer(op, CUDNN_ATTR_OPERATION_RESHAPE_YDESC, y);
    return operation(g, op, y);
}

static desc keep_mask(sdpa_graph *g, const sdpa_memory *m, desc y)
{
    desc how = make(g, CUDNN_BACKEND_RNG_DESCRIPTOR), op = make(g, CUDNN_BACKEND_OPERATION_RNG_DESCRIPTOR);
    cudnnRngDistribution_t bernoulli = CUDNN_RNG_DISTRIBUTION_BERNOULLI;
    double keep = 1 - g->s.dropout;
    set(how, CUDNN_ATTR_RNG_DISTRIBUTION, CUDNN_TYPE_RNG_DISTRIBUTION, 1, &bernoulli);
    set(how, CUDNN_ATTR_RNG_BERNOULLI_DIST_PROBABILITY, CUDNN_TYPE_DOUBLE, 1, &keep);
    finalize(how);
    refer(op, CUDNN_ATTR_OPERATION_RNG_YDESC, y);
    refer(op, CUDNN_ATTR_OPERATION_RNG_SEED, tensor(g, CUDNN_DATA_INT64, 0, m->seed, ones, ones));
    refer(op, CUDNN_ATTR_OPERATION_RNG_OFFSET_DESC, tensor(g, CUDNN_DATA_INT64, 0, m->offset, ones, ones));
    refer(op, CUDNN_ATTR_OPERATION_RNG_DESC, how);
    return operation(g, op, y);
}

/* Scores that do not count become -infinity: those of later tokens, and of tokens behind the lengths. */
static desc mask_scores(sdpa_graph *g, desc x, desc length_q, desc length_k)
{
    desc at_row = indices(g, x, 2), at_col = indices(g, x, 3), never = scalar(g, -INFINITY);
    desc mask = pointwise(g, CUDNN_POINTWISE_CMP_GE, BOOL, at_row, at_col, scores(g, BOOL));
    x = select_where(g, mask, x, never);
    if (length_q) {
        desc in_rows = pointwise(g, CUDNN_POINTWISE_CMP_LT, BOOL, at_row, length_q, scores(g, BOOL));
        desc in_cols = pointwise(g, CUDNN_POINTWISE_CMP_LT, BOOL, at_col, length_k, scores(g, BOOL));
        mask = pointwise(g, CUDNN_POINTWISE_LOGICAL_AND, BOOL, in_rows, in_cols, scores(g, BOOL));
        x = select_where(g, mask, x, never);
    }
    return x;
}

/* ---- graphs */

void sdpa_forward(sdpa_graph *g, sdpa_shape s, const sdpa_memory *m)
{
    *g = (sdpa_graph){.s = s};
    desc lq = s.padded ? lengths(g, m->lengths_q) : NULL, lk = s.padded ? lengths(g, m->lengths_k) : NULL;
    desc q = tokens(g, m->q, s.hq, false), k = tokens(g, m->k, s.hk, true), v = tokens(g, m->v, s.hk, false);
    desc x = product_within(g, q, k, scores(g, F32), (const desc[3]){lq, lk, NULL});
    x = mul(g, x, scalar(g, (float)(1 / sqrt((double)s.d))), scores(g, F32));
    x = mask_scores(g, x, lq, lk);
    desc max = reduce(g, CUDNN_REDUCE_TENSOR_MAX, x, row(g));
    desc e = pointwise(g, CUDNN_POINTWISE_EXP, F32, sub(g, x, max, scores(g, F32)), NULL, scores(g, F32));
    desc sum = reduce(g, CUDNN_REDUCE_TENSOR_ADD, e, row(g));
    desc log = pointwise(g, CUDNN_POINTWISE_LOG, F32, sum, NULL, row(g));
    pointwise(g, CUDNN_POINTWISE_ADD, F32, max, log, dense(g, F32, m->stats, s.t, 1));
    bool drops = s.dropout > 0;
    x = pointwise(g, CUDNN_POINTWISE_DIV, F32, e, sum, scores(g, drops ? F32 : s.type));
    if (drops) {
        x = mul(g, x, keep_mask(g, m, scores(g, F32)), scores(g, F32));
        x = mul(g, x, scalar(g, (float)(1 / (1 - s.dropout))), scores(g, s.type));
    }
    product_within(g, x, v, tokens(g, m->o, s.hq, false), (const desc[3]){lq, NULL, lk});
}

/* The scores' memory read as transposed. */
static desc turned(sdpa_graph *g, desc x)
{
    int64_t t = g->s.t, dim[4] = {g->s.b, g->s.hq, t, t}, stride[4] = {g->s.hq * t * t, t * t, 1, t};
    return reshape(g, x, tensor(g, g->s.type, VIRTUAL, NULL, dim, stride));
}

/* out (Hk heads) = x y (Hq heads), heads of a group added up. */
static void grouped(sdpa_graph *g, desc x, desc y, desc out)
{
    if (g->s.hq == g->s.hk) {
        product(g, x, y, out);
    } else {
        reduce(g, CUDNN_REDUCE_TENSOR_ADD, product(g, x, y, dense(g, g->s.type, NULL, g->s.t, g->s.d)), out);
    }
}

void sdpa_backward(sdpa_graph *g, sdpa_shape s, const sdpa_memory *m)
{
    *g = (sdpa_graph){.s = s};
    bool drops = s.dropout > 0;
    desc q = tokens(g, m->q, s.hq, false), kt = tokens(g, m->k, s.hk, true), vt = tokens(g, m->v, s.hk, true);
    desc o = tokens(g, m->o, s.hq, false), dout = tokens(g, m->dout, s.hq, false);
    desc keep = drops ? keep_mask(g, m, scores(g, F32)) : NULL;
    desc scale = scalar(g, (float)(1 / sqrt((double)s.d))), keep_scale = scalar(g, (float)(1 / (1 - s.dropout)));
    /* sum = row sums of dout o, as they are before the dropout's scale comes in again below */
    desc sum = reduce(g, CUDNN_REDUCE_TENSOR_ADD, mul(g, dout, o, dense(g, F32, NULL, s.t, s.d)), row(g));
    sum = mul(g, sum, scalar(g, (float)(1 - s.dropout)), dense(g, F32, m->sum, s.t, 1));
    /* p = exp(scores - stats) */
    desc x = mul(g, product(g, q, kt, scores(g, F32)), scale, scores(g, F32));
    x = sub(g, x, dense(g, F32, m->stats, s.t, 1), scores(g, F32));
    x = mask_scores(g, x, NULL, NULL);
    desc p = pointwise(g, CUDNN_POINTWISE_EXP, F32, x, NULL, scores(g, F32)), dropped = p;
    if (drops) {
        dropped = mul(g, mul(g, p, keep, scores(g, F32)), keep_scale, scores(g, F32));
    }
    grouped(g, turned(g, dropped), dout, tokens(g, m->dv, s.hk, false));
    /* ds = p (dp - sum) scale */
    x = product(g, dout, vt, scores(g, F32));
    x = drops ? mul(g, x, keep, scores(g, F32)) : x;
    x = mul(g, sub(g, x, sum, scores(g, F32)), p, scores(g, F32));
    x = drops ? mul(g, x, keep_scale, scores(g, F32)) : x;
    desc ds = mul(g, x, scale, scores(g, s.type));
    grouped(g, turned(g, ds), q, tokens(g, m->dk, s.hk, false));
    int64_t r = s.row ? s.row : s.hk * s.d, dim[4] = {s.b, s.hk, s.t, s.d}, stride[4] = {s.t * r, s.d, r, 1};
    desc k = reshape(g, kt, tensor(g, s.type, VIRTUAL, NULL, dim, stride)), dq = tokens(g, m->dq, s.hq, false);
    if (s.deterministic) {
        product(g, ds, k, dq);
    } else {
        desc added = product(g, ds, k, dense(g, F32, m->dq_sum, s.t, s.d));
        pointwise(g, CUDNN_POINTWISE_IDENTITY, F32, added, NULL, dq);
    }
}

void sdpa_mask(sdpa_graph *g, sdpa_shape s, const sdpa_memory *m, void *out)
{
    *g = (sdpa_graph){.s = s};
    keep_mask(g, m, dense(g, F32, out, s.t, s.t));
}

void sdpa_close(sdpa_graph *g)
{
    for (int i = 0; i < g->n_all; i++) {
        must(cudnnBackendDestroyDescriptor(g->all[i]), "destroy");
    }
    g->n_all = 0;
}

/* ---- plans */

static desc configuration(sdpa_graph *g, int engine, int64_t *n_configs_out)
{
    desc graph = make(g, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR), found = make(g, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
    set(graph, CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, g->n_ops, g->ops);
    finalize(graph);
    cudnnBackendHeurMode_t mode = CUDNN_HEUR_MODE_A;
    refer(found, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph);
    set(found, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode);
    finalize(found);
    desc configs[4];
    for (int i = 0; i < 4; i++) {
        configs[i] = make(g, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
    }
    must(cudnnBackendGetAttribute(found, CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR, 4, n_configs_out,
                                  configs),
         "heuristic results");
    return engine < *n_configs_out ? configs[engine] : NULL;
}

desc sdpa_plan(sdpa_graph *g, cudnnHandle_t handle, int engine, int64_t *n_configs_out)
{
    desc config = configuration(g, engine, n_configs_out);
    if (!config) {
        return NULL;
    }
    desc plan = make(g, CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
    refer(plan, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, config);
    set(plan, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1, &handle);
    finalize(plan);
    return plan;
}

int64_t sdpa_workspace(desc plan)
{
    int64_t n = 0, bytes = -1;
    must(cudnnBackendGetAttribute(plan, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1, &n, &bytes),
         "workspace size");
    return bytes;
}

bool sdpa_varies(sdpa_graph *g)
{
    int64_t n = 0;
    desc engine = make(g, CUDNN_BACKEND_ENGINE_DESCRIPTOR), config = configuration(g, 0, &n);
    must(cudnnBackendGetAttribute(config, CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &n, &engine),
         "engine");
    cudnnBackendNumericalNote_t notes[8];
    must(cudnnBackendGetAttribute(engine, CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE, 8, &n, notes),
         "notes");
    for (int64_t i = 0; i < n; i++) {
        if (notes[i] == CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC) {
            return true;
        }
    }
    return false;
}

desc sdpa_pack(sdpa_graph *g, void *workspace)
{
    desc pack = make(g, CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
    set(pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, g->n_bound, g->uids);
    set(pack, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, g->n_bound, g->ptrs);
    set(pack, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, &workspace);
    finalize(pack);
    return pack;
}
