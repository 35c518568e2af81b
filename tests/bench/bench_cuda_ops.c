/* The operators that bench_cuda measures, at the sizes of models. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/bench/bench_cuda.h"

/* Of every operator: one that is not measured below is a warning. */
#define LY_OP(op)                                                 \
    static mc_status call_##op(const ly_ctx *cx, const void *arg) \
    {                                                             \
        return cx->ops->op(cx, arg);                              \
    }
#include "layers/ops.def"
#undef LY_OP
/* One kernel: `op` as in ops.def, its arguments, bytes that it must move. */
#define KERNEL(b, op, shape, bytes, ...) bench_report(b, #op, shape, call_##op, &(ly_##op){__VA_ARGS__}, 0.0, bytes)

/* ---- tensors ---- */

static mc_tensor in_pool(const bench *b, int pool, mc_tensor t)
{
    if (mc_tensor_bytes(t) > b->pool_bytes) {
        fprintf(stderr, "bench_cuda: --rows %lld: a tensor of %zu bytes is larger than the %zu set aside; give fewer\n",
                (long long)b->rows, mc_tensor_bytes(t), b->pool_bytes);
        exit(2);
    }
    t.data = b->pools[pool];
    return t;
}

static mc_tensor rows_of(const bench *b, int pool, mc_dtype type, int64_t rows, int64_t cols)
{
    return in_pool(b, pool, mc_tensor_2d(NULL, type, rows, cols));
}

static mc_tensor flat(const bench *b, int pool, mc_dtype type, int64_t n)
{
    return in_pool(b, pool, mc_tensor_1d(NULL, type, n));
}

static double width(const bench *b)
{
    return (double)mc_dtype_bytes(b->type);
}

/* ---- matrix products ---- */

static void product(bench *b, const char *op, const char *shape, ly_gemm g, double flops)
{
    bench_report(b, op, shape, call_gemm, &g, flops, 0.0);
}

/* The three products of a linear layer. */
static void linear(bench *b, const char *name, const char *layer, int64_t in, int64_t out)
{
    int64_t R = b->rows;
    char shape[80];
    mc_tensor x = rows_of(b, 0, b->type, R, in), w = rows_of(b, 1, b->type, out, in);
    mc_tensor y = rows_of(b, 2, b->type, R, out), dw = rows_of(b, 3, MC_F32, out, in);
    double flops = 2.0 * (double)R * (double)in * (double)out;
    snprintf(shape, sizeof shape, "%s %s %lldx%lld->%lld", name, layer, (long long)R, (long long)in, (long long)out);
    product(b, "gemm fwd", shape, (ly_gemm){.a = x, .b = w, .c = y, .trans_b = true}, flops);
    product(b, "gemm dx", shape, (ly_gemm){.a = y, .b = w, .c = x}, flops);
    product(b, "gemm dW", shape, (ly_gemm){.a = y, .b = x, .c = dw, .trans_a = true, .beta = 1.0f}, flops);
}

static void products(bench *b, const model *m)
{
    linear(b, m->name, "qkv", m->C, (m->heads + 2 * m->groups) * m->H);
    linear(b, m->name, "proj", m->heads * m->H, m->C);
    linear(b, m->name, "fc1", m->C, m->gated ? 2 * m->F : m->F);
    linear(b, m->name, "fc2", m->F, m->C);
}

/* TFLOP/s of a square product: what the GPU does at most. */
double bench_peak(bench *b)
{
    int64_t n = b->tiny ? 64 : 8192;
    ly_gemm g = {
        .a = rows_of(b, 0, b->type, n, n), .b = rows_of(b, 1, b->type, n, n), .c = rows_of(b, 2, b->type, n, n)};
    g.trans_b = true;
    return 2.0 * (double)n * (double)n * (double)n / bench_best_time(b, call_gemm, &g) * 1e-12;
}

/* ---- attention ---- */

/* A view of the heads of one kind in a fused buffer, group by group: [q * r, k, v]. */
static mc_tensor heads_of(const model *m, mc_tensor fused, int64_t first, int64_t n)
{
    int64_t r = m->heads / m->groups;
    mc_tensor t = {.dtype = fused.dtype, .n_dims = 4, .dims = {fused.dims[0], m->groups, n, m->H}};
    t.data = (char *)fused.data + first * m->H * (int64_t)mc_dtype_bytes(fused.dtype);
    t.strides[0] = m->groups * (r + 2) * m->H;
    t.strides[1] = (r + 2) * m->H;
    t.strides[2] = m->H;
    t.strides[3] = 1;
    return t;
}

static mc_tensor head_rows(const bench *b, int pool, const model *m, int64_t rows)
{
    mc_tensor t = rows_of(b, pool, b->type, rows, m->heads * m->H);
    mc_tensor view = {.data = t.data, .dtype = b->type, .n_dims = 4};
    int64_t r = m->heads / m->groups, dims[4] = {rows, m->groups, r, m->H};
    int64_t strides[4] = {m->heads * m->H, r * m->H, m->H, 1};
    memcpy(view.dims, dims, sizeof dims);
    memcpy(view.strides, strides, sizeof strides);
    return view;
}

static void attention(bench *b, const model *m)
{
    int64_t T = m->T < b->rows ? m->T : b->rows, B = b->rows / T, R = B * T, r = m->heads / m->groups;
    double pairs = 0.5 * (double)T * (double)(T + 1), product_flops = 2.0 * (double)(B * m->heads * m->H) * pairs;
    char shape[80];
    mc_tensor qkv = rows_of(b, 0, b->type, R, m->groups * (r + 2) * m->H), dqkv = qkv;
    dqkv.data = b->pools[3];
    mc_tensor lse = in_pool(b, 4, mc_tensor_3d(NULL, MC_F32, B, m->heads, T)), delta = lse;
    delta.data = b->pools[5];
    ly_attention_fwd f = {.q = heads_of(m, qkv, 0, r), .k = heads_of(m, qkv, r, 1), .v = heads_of(m, qkv, r + 1, 1)};
    f.out = head_rows(b, 1, m, R);
    f.lse = lse;
    f.seq_len = T;
    f.scale = 0.125f;
    f.window_left = -1;
    ly_attention_bwd a = {.q = f.q, .k = f.k, .v = f.v, .out = f.out, .lse = lse, .delta = delta, .seq_len = T};
    a.dout = head_rows(b, 2, m, R);
    a.dq = heads_of(m, dqkv, 0, r);
    a.dk = heads_of(m, dqkv, r, 1);
    a.dv = heads_of(m, dqkv, r + 1, 1);
    a.scale = f.scale;
    a.window_left = -1;
    snprintf(shape, sizeof shape, "%s %lldx%lld heads %lld/%lld of %lld", m->name, (long long)B, (long long)T,
             (long long)m->heads, (long long)m->groups, (long long)m->H);
    bench_report(b, "attention_fwd", shape, call_attention_fwd, &f, 2.0 * product_flops, 0.0);
    bench_report(b, "attention_bwd", shape, call_attention_bwd, &a, 5.0 * product_flops, 0.0);
}

/* ---- kernels that move memory ---- */

static void norms(bench *b, const model *m, const char *shape)
{
    int64_t R = b->rows, C = m->C;
    double elems = (double)(R * C), w = width(b);
    mc_tensor x = rows_of(b, 0, b->type, R, C), y = rows_of(b, 1, b->type, R, C), h = rows_of(b, 2, b->type, R, C);
    mc_tensor out = rows_of(b, 3, b->type, R, C), stats = rows_of(b, 4, MC_F32, R, 2), g = flat(b, 5, b->type, C);
    mc_tensor dg = flat(b, 5, MC_F32, C), db = dg;
    ly_norm_kind kind = m->gated ? LY_RMSNORM : LY_LAYERNORM;
    ly_norm_fwd f = {.kind = kind, .eps = 1e-5f, .x = x, .y = y, .h = h, .out = out, .stats = stats, .gamma = g};
    ly_norm_bwd d = {.kind = kind, .dout = x, .h = y, .stats = stats, .gamma = g, .dskip = h, .dh = h, .dgamma = dg};
    dg.data = b->pools[5] + C * 4;
    db.data = b->pools[5] + C * 8;
    d.dgamma = dg;
    if (!m->gated) {
        f.beta = d.beta = g;
        d.dbeta = db;
    }
    bench_report(b, "norm_fwd", shape, call_norm_fwd, &f, 0.0, 4.0 * w * elems);
    bench_report(b, "norm_bwd", shape, call_norm_bwd, &d, 0.0, 4.0 * w * elems);
    f.dropout = (ly_dropout){.p = 0.1f, .seed = 1, .seq_len = R};
    bench_report(b, "norm_fwd dropout", shape, call_norm_fwd, &f, 0.0, 4.0 * w * elems);
    mc_tensor sum = rows_of(b, 0, b->type, R, C);
    KERNEL(b, add, shape, 3.0 * w * elems, .a = sum, .b = y, .out = sum);
    KERNEL(b, fill, shape, w * elems, .x = sum);
    KERNEL(b, cast, shape, (4.0 + w) * elems, .x = rows_of(b, 1, MC_F32, R, C), .out = sum, .scale = 1.0f);
    KERNEL(b, bias_grad, shape, w * elems, .dy = sum, .dbias = dg);
}

static void activations(bench *b, const model *m)
{
    int64_t R = b->rows, F = m->F;
    char shape[80];
    double elems = (double)(R * F), wide = m->gated ? 2.0 : 1.0, w = width(b);
    ly_act_kind kind = m->gated ? LY_SWIGLU : LY_GELU_TANH;
    mc_tensor x = rows_of(b, 0, b->type, R, m->gated ? 2 * F : F), out = rows_of(b, 1, b->type, R, F);
    mc_tensor again = rows_of(b, 2, b->type, R, F);
    snprintf(shape, sizeof shape, "%s %lldx%lld", m->gated ? "swiglu" : "gelu", (long long)R, (long long)F);
    KERNEL(b, act_fwd, shape, (1.0 + wide) * w * elems, .kind = kind, .x = x, .out = out);
    KERNEL(b, act_bwd, shape, (2.0 + 2.0 * wide) * w * elems, .kind = kind, .x = x, .dout = out, .dx = x, .out = again);
}

static void positions(bench *b, const model *m)
{
    int64_t R = b->rows, T = m->T < R ? m->T : R;
    char shape[80];
    mc_tensor q = head_rows(b, 0, m, R), angles = rows_of(b, 1, MC_F32, T, m->H / 2), sines = angles;
    sines.data = b->pools[2];
    snprintf(shape, sizeof shape, "%lldx%lldx%lld", (long long)R, (long long)m->heads, (long long)m->H);
    KERNEL(b, rope, shape, 2.0 * width(b) * (double)(R * m->heads * m->H), .x = q, .cos = angles, .sin = sines,
           .seq_len = T);
}

/* --qk-layernorm */
static void head_norms(bench *b, const model *m)
{
    int64_t R = b->rows;
    char shape[80];
    double elems = (double)(R * m->heads * m->H), w = width(b);
    mc_tensor g = flat(b, 5, b->type, m->H), dg = flat(b, 5, MC_F32, m->H);
    mc_tensor x = head_rows(b, 0, m, R), y = head_rows(b, 1, m, R), stats = rows_of(b, 2, MC_F32, R * m->heads, 2);
    dg.data = b->pools[5] + m->H * 4;
    snprintf(shape, sizeof shape, "%lldx%lldx%lld", (long long)R, (long long)m->heads, (long long)m->H);
    KERNEL(b, head_norm_fwd, shape, 2.0 * w * elems, .kind = LY_RMSNORM, .eps = 1e-5f, .x = x, .out = y, .gamma = g,
           .stats = stats);
    KERNEL(b, head_norm_bwd, shape, 3.0 * w * elems, .kind = LY_RMSNORM, .dout = y, .x = x, .dx = y, .gamma = g,
           .stats = stats, .dgamma = dg);
}

static void embeddings(bench *b, const model *m, const char *shape)
{
    int64_t R = b->rows, C = m->C;
    double elems = (double)(R * C), w = width(b);
    mc_tensor tokens = mc_tensor_1d(b->ints, MC_I32, R), out = rows_of(b, 1, b->type, R, C);
    KERNEL(b, embedding_fwd, shape, 2.0 * w * elems, .tokens = tokens, .table = rows_of(b, 0, b->type, m->V, C),
           .out = out);
    KERNEL(b, embedding_bwd, shape, (w + 8.0) * elems, .tokens = tokens, .dout = out,
           .dtable = rows_of(b, 2, MC_F32, m->V, C));
    ly_dropout d = {.p = 0.1f, .seed = 1, .seq_len = m->T < R ? m->T : R};
    KERNEL(b, embed_finish_fwd, shape, 2.0 * w * elems, .x = out, .h = out, .dropout = d,
           .positions = rows_of(b, 0, b->type, d.seq_len, C));
    KERNEL(b, embed_finish_bwd, shape, 2.0 * w * elems, .dh = out, .dx = out, .dropout = d,
           .dpositions = rows_of(b, 2, MC_F32, d.seq_len, C));
}

/* A chunk of the output layer's rows. */
static void loss(bench *b, const model *m)
{
    int64_t R = b->rows < 1024 ? b->rows : 1024;
    char shape[80];
    double elems = (double)(R * m->V);
    mc_tensor logits = rows_of(b, 0, MC_F32, R, m->V), targets = mc_tensor_1d(b->ints, MC_I32, R);
    mc_tensor stats = rows_of(b, 1, MC_F32, R, 3), shards = in_pool(b, 1, mc_tensor_3d(NULL, MC_F32, 1, R, 3));
    snprintf(shape, sizeof shape, "%lldx%lld", (long long)R, (long long)m->V);
    KERNEL(b, xent_stats, shape, 4.0 * elems, .logits = logits, .targets = targets, .stats = stats,
           .vocab_valid = m->V);
    ly_xent_grad g = {.logits = logits, .targets = targets, .all_stats = shards, .vocab_valid = m->V, .scale = 1e-9f};
    g.write_grad = 1;
    if (b->type != MC_F32) {
        g.dlogits = rows_of(b, 2, b->type, R, m->V);
    }
    bench_report(b, "xent_grad", shape, call_xent_grad, &g, 0.0, (4.0 + width(b)) * elems);
}

void bench_optimizers(bench *b)
{
    int64_t n = b->tiny ? 4096 : 128 << 20;
    char shape[32];
    ly_segment all = {0, n, 1.0f, 1.0f, 1.0f};
    void *pinned = NULL;
    bench_check(b->dev.ops->alloc(&b->dev, MC_MEM_PINNED_HOST, BENCH_SEGMENT_BYTES, "benchmark data", &pinned));
    memcpy(pinned, &all, sizeof all);
    bench_check(b->dev.ops->copy(&b->dev, b->segments, pinned, sizeof all, b->cx.stream));
    bench_check(b->dev.ops->clear(&b->dev, b->pools[3], (size_t)n * 4, b->cx.stream));
    bench_wait(b);
    b->dev.ops->free(&b->dev, MC_MEM_PINNED_HOST, pinned, BENCH_SEGMENT_BYTES);
    ly_adamw a = {.param = flat(b, 0, MC_F32, n), .grad = flat(b, 1, MC_F32, n), .m = flat(b, 2, MC_F32, n)};
    a.v = flat(b, 3, MC_F32, n);
    a.segments = (const ly_segment *)(void *)b->segments;
    a.n_segments = 1;
    a.lr = 1e-6f;
    a.beta1 = 0.9f;
    a.beta2 = 0.95f;
    a.eps = 1e-8f;
    a.grad_scale = 1.0f;
    a.step = 3;
    snprintf(shape, sizeof shape, "%lld", (long long)n);
    bench_report(b, "adamw", shape, call_adamw, &a, 0.0, 28.0 * (double)n);
    if (b->type != MC_F32) {
        a.model = flat(b, 4, b->type, n);
        bench_report(b, "adamw with model", shape, call_adamw, &a, 0.0, 30.0 * (double)n);
    }
    KERNEL(b, sgd, shape, 20.0 * (double)n, .param = a.param, .grad = a.grad, .m = a.m, .segments = a.segments,
           .n_segments = 1, .lr = 1e-6f, .momentum = 0.9f, .grad_scale = 1.0f);
    KERNEL(b, sq_norm, shape, 4.0 * (double)n, .x = a.grad, .out = flat(b, 5, MC_F64, 1), .segments = a.segments,
           .n_segments = 1);
}

/* One token of each text: its key and value to the cache, and its query against all of it. */
static void generation(bench *b, const model *m)
{
    int64_t S = BENCH_TEXTS, P = b->tiny ? BENCH_TINY_POSITIONS : BENCH_POSITIONS, r = m->heads / m->groups;
    mc_tensor cache = {.dtype = b->type, .n_dims = 4, .dims = {S, m->groups, P, m->H}};
    const int64_t strides[4] = {m->groups * P * m->H, P * m->H, m->H, 1};
    memcpy(cache.strides, strides, sizeof strides);
    mc_tensor k_cache = in_pool(b, 0, cache), v_cache = in_pool(b, 1, cache);
    mc_tensor qkv = rows_of(b, 2, b->type, S, m->groups * (r + 2) * m->H), places = mc_tensor_1d(b->places, MC_I32, S);
    double token = width(b) * (double)(S * m->groups * m->H), all = token * (double)P;
    char shape[80];
    snprintf(shape, sizeof shape, "%s %lldx%lld", m->name, (long long)S, (long long)P);
    KERNEL(b, kv_store, shape, 4.0 * token, .k = heads_of(m, qkv, r, 1), .v = heads_of(m, qkv, r + 1, 1),
           .places = places, .k_cache = k_cache, .v_cache = v_cache);
    KERNEL(b, attention_decode, shape, 2.0 * all, .q = heads_of(m, qkv, 0, r), .places = places, .k_cache = k_cache,
           .v_cache = v_cache, .out = head_rows(b, 3, m, S), .scale = 0.125f, .window_left = -1);
}

void bench_model(bench *b, const model *m)
{
    char shape[64];
    snprintf(shape, sizeof shape, "%lldx%lld", (long long)b->rows, (long long)m->C);
    products(b, m);
    attention(b, m);
    norms(b, m, shape);
    activations(b, m);
    positions(b, m);
    head_norms(b, m);
    embeddings(b, m, shape);
    loss(b, m);
    generation(b, m);
}
