/* Speed of the operators on a GPU: GB/s of each kernel beside a copy of device memory, TFLOP/s of the matrix products
 * and of attention beside the best square product, all measured in this run.
 *
 *   bench_cuda [--type bf16|f16|f32] [--tf32] [--rows N] [--seconds S] [--tiny] [FILTER]
 *
 * --rows N     tokens of a micro-batch (8192)
 * --tiny       one model of a few thousand elements: to see that the program works; its figures mean nothing
 * --tf32       f32 products may round what they read to TF32
 * FILTER       only the lines that contain it
 *
 * Not a test. Each figure is the best of several rounds of calls queued one behind the other. Bytes are those that an
 * operator must move once (the kernels' contracts state them); attention counts the visible pairs of a causal mask,
 * with 2 products forward and 5 backward; a weight gradient is added to f32. MC_CUDNN=0 leaves attention to our
 * kernels. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "layers/ops.h"
#include "megac/base/device.h"

enum { N_POOLS = 6, CHUNK_BYTES = 1 << 20, COPY_BYTES = 256 << 20, SEGMENT_BYTES = 4096 };

/* A model's sizes: as in its configuration, heads of KV in `groups`. */
typedef struct model {
    const char *name;
    int64_t C, F, heads, groups, H, V, T;
    bool gated; /* SwiGLU and RMSNorm; else GELU and LayerNorm */
} model;

static const model models[] = {
    {"gpt2-124m", 768, 3072, 12, 12, 64, 50304, 1024, false},
    {"gpt2-1558m", 1600, 6400, 25, 25, 64, 50304, 1024, false},
    {"llama-1b", 2048, 8192, 32, 8, 64, 128256, 4096, true},
    {"llama-8b", 4096, 14336, 32, 8, 128, 128256, 8192, true},
};
static const model tiny_model = {"tiny", 64, 128, 4, 2, 16, 96, 32, true};

typedef struct bench {
    mc_device dev;
    ly_ctx cx;
    const ly_ops *plan; /* says how much workspace a call needs */
    const char *filter;
    double seconds; /* a figure */
    mc_dtype type;
    int64_t rows;
    bool tiny, failed;
    size_t pool_bytes;
    char *pools[N_POOLS]; /* device memory */
    char *ints;           /* tokens below every vocabulary */
    char *segments;       /* of optimizers: one, over everything */
    double peak_tflops, copy_gbs;
} bench;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void check(mc_status st)
{
    if (st != MC_OK) {
        exit(1);
    }
}

static void *memory(bench *b, size_t bytes)
{
    void *p = NULL;
    check(b->dev.ops->alloc(&b->dev, MC_MEM_DEVICE, bytes, "benchmark data", &p));
    return p;
}

static void wait(bench *b)
{
    check(b->dev.ops->stream_sync(&b->dev, b->cx.stream));
}

/* ---- timing ---- */

typedef mc_status (*call_fn)(const ly_ctx *cx, const void *arg);

/* Room for what the call needs. */
static void make_workspace(bench *b, call_fn call, const void *arg)
{
    size_t need = 0;
    ly_ctx asking = b->cx;
    asking.ops = b->plan;
    asking.workspace_peak = &need;
    check(call(&asking, arg));
    if (need > b->cx.workspace_bytes) {
        wait(b);
        if (b->cx.workspace) {
            b->dev.ops->free(&b->dev, MC_MEM_DEVICE, b->cx.workspace, b->cx.workspace_bytes);
        }
        b->cx.workspace = memory(b, need);
        b->cx.workspace_bytes = need;
    }
}

/* Best seconds of one call; the first is not timed (plans are made in it). */
static double best_time(bench *b, call_fn call, const void *arg)
{
    make_workspace(b, call, arg);
    check(call(&b->cx, arg));
    wait(b);
    double start = now(), best = 1e30;
    check(call(&b->cx, arg));
    wait(b);
    double once = now() - start;
    int reps = b->tiny ? 2 : once < 20e-3 ? (int)(20e-3 / once) + 1 : 1;
    for (start = now(); best > 1e29 || now() - start < b->seconds;) {
        double t = now();
        for (int i = 0; i < reps; i++) {
            check(call(&b->cx, arg));
        }
        wait(b);
        t = (now() - t) / reps;
        best = t < best ? t : best;
    }
    return best;
}

static void report(bench *b, const char *op, const char *shape, call_fn call, const void *arg, double flops,
                   double bytes)
{
    char name[96];
    snprintf(name, sizeof name, "%s %s", op, shape);
    if (b->filter && !strstr(name, b->filter)) {
        return;
    }
    double s = best_time(b, call, arg);
    printf("%-44s %10.1f us", name, s * 1e6);
    if (flops > 0.0) {
        printf(" %8.1f TFLOP/s %5.1f %% of peak", flops / s * 1e-12, flops / s * 1e-10 / b->peak_tflops);
    } else {
        printf(" %8.1f GB/s    %5.1f %% of copy", bytes / s * 1e-9, bytes / s * 1e-7 / b->copy_gbs);
    }
    putchar('\n');
    fflush(stdout);
}

/* Of every operator: one that is not measured below is a warning. */
#define LY_OP(op)                                                 \
    static mc_status call_##op(const ly_ctx *cx, const void *arg) \
    {                                                             \
        return cx->ops->op(cx, arg);                              \
    }
#include "layers/ops.def"
#undef LY_OP
/* One kernel: `op` as in ops.def, its arguments, bytes that it must move. */
#define KERNEL(b, op, shape, bytes, ...) report(b, #op, shape, call_##op, &(ly_##op){__VA_ARGS__}, 0.0, bytes)

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
    report(b, op, shape, call_gemm, &g, flops, 0.0);
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
static double peak(bench *b)
{
    int64_t n = b->tiny ? 64 : 8192;
    ly_gemm g = {
        .a = rows_of(b, 0, b->type, n, n), .b = rows_of(b, 1, b->type, n, n), .c = rows_of(b, 2, b->type, n, n)};
    g.trans_b = true;
    return 2.0 * (double)n * (double)n * (double)n / best_time(b, call_gemm, &g) * 1e-12;
}

typedef struct copy_job {
    mc_device *dev;
    void *to, *from;
    size_t bytes;
} copy_job;

static mc_status call_copy(const ly_ctx *cx, const void *arg)
{
    const copy_job *j = arg;
    return cx->workspace_peak ? MC_OK : j->dev->ops->copy(j->dev, j->to, j->from, j->bytes, cx->stream);
}

/* GB/s of a copy in device memory: bytes read plus bytes written. */
static double copy_bandwidth(bench *b)
{
    copy_job j = {&b->dev, b->pools[0], b->pools[1], b->tiny ? CHUNK_BYTES : COPY_BYTES};
    return 2.0 * (double)j.bytes / best_time(b, call_copy, &j) * 1e-9;
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
    report(b, "attention_fwd", shape, call_attention_fwd, &f, 2.0 * product_flops, 0.0);
    report(b, "attention_bwd", shape, call_attention_bwd, &a, 5.0 * product_flops, 0.0);
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
    report(b, "norm_fwd", shape, call_norm_fwd, &f, 0.0, 4.0 * w * elems);
    report(b, "norm_bwd", shape, call_norm_bwd, &d, 0.0, 4.0 * w * elems);
    f.dropout = (ly_dropout){.p = 0.1f, .seed = 1, .seq_len = R};
    report(b, "norm_fwd dropout", shape, call_norm_fwd, &f, 0.0, 4.0 * w * elems);
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
    report(b, "xent_grad", shape, call_xent_grad, &g, 0.0, (4.0 + width(b)) * elems);
}

static void optimizers(bench *b)
{
    int64_t n = b->tiny ? 4096 : 128 << 20;
    char shape[32];
    ly_segment all = {0, n, 1.0f, 1.0f, 1.0f};
    void *pinned = NULL;
    check(b->dev.ops->alloc(&b->dev, MC_MEM_PINNED_HOST, SEGMENT_BYTES, "benchmark data", &pinned));
    memcpy(pinned, &all, sizeof all);
    check(b->dev.ops->copy(&b->dev, b->segments, pinned, sizeof all, b->cx.stream));
    check(b->dev.ops->clear(&b->dev, b->pools[3], (size_t)n * 4, b->cx.stream));
    wait(b);
    b->dev.ops->free(&b->dev, MC_MEM_PINNED_HOST, pinned, SEGMENT_BYTES);
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
    report(b, "adamw", shape, call_adamw, &a, 0.0, 28.0 * (double)n);
    if (b->type != MC_F32) {
        a.model = flat(b, 4, b->type, n);
        report(b, "adamw with model", shape, call_adamw, &a, 0.0, 30.0 * (double)n);
    }
    KERNEL(b, sgd, shape, 20.0 * (double)n, .param = a.param, .grad = a.grad, .m = a.m, .segments = a.segments,
           .n_segments = 1, .lr = 1e-6f, .momentum = 0.9f, .grad_scale = 1.0f);
    KERNEL(b, sq_norm, shape, 4.0 * (double)n, .x = a.grad, .out = flat(b, 5, MC_F64, 1), .segments = a.segments,
           .n_segments = 1);
}

static void kernels(bench *b, const model *m)
{
    char shape[64];
    snprintf(shape, sizeof shape, "%lldx%lld", (long long)b->rows, (long long)m->C);
    norms(b, m, shape);
    activations(b, m);
    positions(b, m);
    head_norms(b, m);
    embeddings(b, m, shape);
    loss(b, m);
}

/* ---- the run ---- */

/* Numbers from -1 to 1, pinned and then copied everywhere: bf16 twins, which read as f32 are such numbers too. */
static void fill_pools(bench *b)
{
    void *pinned = NULL;
    uint32_t seed = 1;
    check(b->dev.ops->alloc(&b->dev, MC_MEM_PINNED_HOST, CHUNK_BYTES, "benchmark data", &pinned));
    uint16_t *half = pinned;
    for (size_t i = 0; i < CHUNK_BYTES / sizeof *half; i++) {
        seed = seed * 1664525u + 1013904223u;
        float x = ((float)(seed >> 8) - 8388608.0f) / 8388608.0f;
        uint32_t bits;
        memcpy(&bits, &x, sizeof bits);
        half[i] = (uint16_t)(bits >> 16);
    }
    for (int p = 0; p < N_POOLS; p++) {
        b->pools[p] = memory(b, b->pool_bytes);
        for (size_t at = 0; at < b->pool_bytes; at += CHUNK_BYTES) {
            check(b->dev.ops->copy(&b->dev, b->pools[p] + at, pinned, CHUNK_BYTES, b->cx.stream));
        }
    }
    wait(b);
    int32_t *ints = pinned;
    for (size_t i = 0; i < CHUNK_BYTES / sizeof *ints; i++) {
        ints[i] = (int32_t)((uint32_t)i * 2654435761u % (b->tiny ? 96u : 50000u));
    }
    b->ints = memory(b, CHUNK_BYTES);
    check(b->dev.ops->copy(&b->dev, b->ints, pinned, CHUNK_BYTES, b->cx.stream));
    wait(b);
    b->dev.ops->free(&b->dev, MC_MEM_PINNED_HOST, pinned, CHUNK_BYTES);
    b->segments = memory(b, SEGMENT_BYTES);
}

static void release(bench *b)
{
    wait(b);
    for (int p = 0; p < N_POOLS; p++) {
        b->dev.ops->free(&b->dev, MC_MEM_DEVICE, b->pools[p], b->pool_bytes);
    }
    b->dev.ops->free(&b->dev, MC_MEM_DEVICE, b->ints, CHUNK_BYTES);
    b->dev.ops->free(&b->dev, MC_MEM_DEVICE, b->segments, SEGMENT_BYTES);
    if (b->cx.workspace) {
        b->dev.ops->free(&b->dev, MC_MEM_DEVICE, b->cx.workspace, b->cx.workspace_bytes);
    }
    b->dev.ops->stream_destroy(&b->dev, b->cx.stream);
    mc_device_close(&b->dev);
}

static mc_dtype type_named(const char *name)
{
    static const mc_dtype types[] = {MC_F32, MC_BF16, MC_F16};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        if (strcmp(name, mc_dtype_name(types[i])) == 0) {
            return types[i];
        }
    }
    fprintf(stderr, "bench_cuda: --type %s: use f32, bf16 or f16\n", name);
    exit(2);
}

static void parse(bench *b, int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        bool more = i + 1 < argc;
        if (strcmp(argv[i], "--type") == 0 && more) {
            b->type = type_named(argv[++i]);
        } else if (strcmp(argv[i], "--rows") == 0 && more) {
            b->rows = strtoll(argv[++i], NULL, 10);
        } else if (strcmp(argv[i], "--seconds") == 0 && more) {
            b->seconds = strtod(argv[++i], NULL);
        } else if (strcmp(argv[i], "--tiny") == 0) {
            b->tiny = true;
        } else if (strcmp(argv[i], "--tf32") == 0) {
            b->cx.tf32 = true;
        } else {
            b->filter = argv[i];
        }
    }
    if (b->tiny) {
        b->rows = 64;
        b->seconds = 0.0;
    }
    if (b->rows < 1 || b->rows > CHUNK_BYTES / 4) {
        fprintf(stderr, "bench_cuda: --rows: give 1 to %d\n", CHUNK_BYTES / 4);
        exit(2);
    }
}

int main(int argc, char **argv)
{
    bench b = {.seconds = 0.2, .type = MC_BF16, .rows = 8192};
    char device[128];
    parse(&b, argc, argv);
    check(ly_ops_get("plan", &b.plan));
    check(mc_device_open("cuda", 0, &b.dev));
    b.cx.ops = b.dev.ops->operators;
    b.cx.backend = b.dev.impl;
    check(b.dev.ops->stream_create(&b.dev, &b.cx.stream));
    b.pool_bytes = b.tiny ? (size_t)4 << 20 : (size_t)3 << 30;
    fill_pools(&b);
    b.dev.ops->describe(&b.dev, device, sizeof device);
    b.copy_gbs = copy_bandwidth(&b);
    b.peak_tflops = peak(&b);
    printf("%s, %s%s: square product %.4g TFLOP/s, copy %.4g GB/s\n", device, mc_dtype_name(b.type),
           b.cx.tf32 ? " (TF32)" : "", b.peak_tflops, b.copy_gbs);
    for (size_t i = 0; i < (b.tiny ? 1 : sizeof models / sizeof *models); i++) {
        const model *m = b.tiny ? &tiny_model : &models[i];
        products(&b, m);
        attention(&b, m);
        kernels(&b, m);
    }
    optimizers(&b);
    release(&b);
    return 0;
}
