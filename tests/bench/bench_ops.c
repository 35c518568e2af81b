/* Speed of the CPU operators: GFLOP/s or GB/s of each operator and shape, and its share of what this machine can do,
 * measured in the same run (a loop of fused multiply-adds; memcpy).
 *
 *   build/tests/bench/bench_ops [--threads N] [--backend cpu-v3] [--seconds S] [--cpu-time] [--type bf16] [FILTER]
 *
 * --cpu-time counts processor time of the calling thread, which other jobs disturb less; for --threads 1 only.
 * --type: the matrix products alone, with operands of that type. Their weights and weight gradients come from several
 * layers in turn, and so from memory, as in a training step.
 * Not a test. Each figure is the best of several rounds; bytes are those an operator must move once. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "layers/ops.h"
#include "megac/base/alloc.h"
#include "megac/base/device.h"
#include "megac/base/half.h"
#include "tests/bench/peak.h"

typedef struct bench {
    ly_ctx cx;
    const char *filter;
    clockid_t clock;
    double seconds; /* per figure */
    double peak_gflops, copy_gbs;
    mc_dtype type;            /* of matrix products */
    float *a, *b, *c, *d, *e; /* POOL_FLOATS each */
    int32_t *ints;
    int failed;
} bench;

enum { POOL_FLOATS = 1 << 26, N_INTS = 1 << 20 };

static double clock_seconds(clockid_t id)
{
    struct timespec t;
    clock_gettime(id, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static double now(void)
{
    return clock_seconds(CLOCK_MONOTONIC);
}

typedef mc_status (*call_fn)(const ly_ctx *cx, const void *arg);

/* Best seconds of one call. */
static double best_time(bench *bn, call_fn call, const void *arg)
{
    double start = now(), best = 1e30;
    bn->failed |= call(&bn->cx, arg) != MC_OK;
    double once = now() - start;
    int reps = once < 2e-3 ? (int)(2e-3 / (once + 1e-7)) + 1 : 1;
    for (start = now(); now() - start < bn->seconds || best > 1e29;) {
        double t = clock_seconds(bn->clock);
        for (int i = 0; i < reps; i++) {
            bn->failed |= call(&bn->cx, arg) != MC_OK;
        }
        t = (clock_seconds(bn->clock) - t) / reps;
        best = t < best ? t : best;
    }
    return best;
}

static int wanted(const bench *bn, const char *name)
{
    return !bn->filter || strstr(name, bn->filter);
}

static void report(const bench *bn, const char *name, double seconds, double flops, double bytes)
{
    printf("%-34s %10.3f ms", name, seconds * 1e3);
    if (flops > 0.0) {
        printf(" %8.1f GFLOP/s %5.1f %% of peak", flops / seconds * 1e-9, flops / seconds * 1e-7 / bn->peak_gflops);
    }
    if (bytes > 0.0) {
        printf(" %8.1f GB/s    %5.0f %% of copy", bytes / seconds * 1e-9, bytes / seconds * 1e-7 / bn->copy_gbs);
    }
    putchar('\n');
    fflush(stdout);
}

/* A product of one layer after another: each call takes the next weights, or weight gradients. */
typedef struct gemm_turns {
    ly_gemm op;
    mc_tensor *turning; /* a tensor of op */
    int64_t step_bytes;
    int n, next;
} gemm_turns;

static mc_status call_gemm(const ly_ctx *cx, const void *arg)
{
    gemm_turns *t = (gemm_turns *)(uintptr_t)arg;
    char *first = t->turning->data;
    t->turning->data = first + t->next * t->step_bytes;
    mc_status st = cx->ops->gemm(cx, &t->op);
    t->turning->data = first;
    t->next = (t->next + 1) % t->n;
    return st;
}

/* The three products of a linear layer of `rows` x `in` -> `out`. */
static void bench_linear(bench *bn, const char *model, int64_t rows, int64_t in, int64_t out)
{
    enum { LAYERS = 12 };
    mc_tensor x = mc_tensor_2d(bn->a, bn->type, rows, in), w = mc_tensor_2d(bn->b, bn->type, out, in);
    mc_tensor y = mc_tensor_2d(bn->c, bn->type, rows, out), dx = mc_tensor_2d(bn->e, bn->type, rows, in);
    mc_tensor dw = mc_tensor_2d(bn->d, MC_F32, out, in), bias = mc_tensor_1d(bn->a, bn->type, out);
    const ly_gemm forms[3] = {{.a = x, .b = w, .c = y, .bias = bias, .trans_b = true},
                              {.a = y, .b = w, .c = dx},
                              {.a = y, .b = x, .c = dw, .trans_a = true, .beta = 1.0f}};
    static const char *const names[3] = {"fwd", "dx", "dW"};
    int64_t layers = POOL_FLOATS / (in * out);
    for (int f = 0; f < 3; f++) {
        char name[96];
        snprintf(name, sizeof name, "gemm %s %lldx%lld->%lld %s", model, (long long)rows, (long long)in, (long long)out,
                 names[f]);
        if (wanted(bn, name)) {
            gemm_turns t = {.op = forms[f], .n = (int)(layers < LAYERS ? layers : LAYERS)};
            t.turning = f < 2 ? &t.op.b : &t.op.c;
            t.step_bytes = in * out * (int64_t)mc_dtype_bytes(t.turning->dtype);
            memset(bn->d, 0, (size_t)(t.n * out * in) * 4);
            report(bn, name, best_time(bn, call_gemm, &t), 2.0 * (double)rows * (double)in * (double)out, 0.0);
        }
    }
}

static void bench_gemm(bench *bn)
{
    static const struct {
        const char *model;
        int64_t rows, in, out;
    } s[] = {
        {"124M", 256, 768, 2304},   {"124M", 256, 768, 768},    {"124M", 256, 768, 3072},    {"124M", 256, 3072, 768},
        {"124M", 256, 768, 50304},  {"124M", 1024, 768, 2304},  {"124M", 1024, 768, 768},    {"124M", 1024, 768, 3072},
        {"124M", 1024, 3072, 768},  {"124M", 128, 768, 50304},  {"small", 2048, 256, 768},   {"small", 2048, 256, 256},
        {"small", 2048, 256, 1024}, {"small", 2048, 1024, 256}, {"llama", 1024, 512, 1024},  {"llama", 1024, 512, 512},
        {"llama", 1024, 512, 2816}, {"llama", 1024, 1408, 512}, {"llama", 1024, 512, 32000}, {"tiny", 64, 64, 64}};
    for (size_t i = 0; i < sizeof s / sizeof *s; i++) {
        bench_linear(bn, s[i].model, s[i].rows, s[i].in, s[i].out);
    }
}

/* Rounds a pool to the type of matrix products, in place: element i moves down to where element i / 2 was. */
static void narrow(const bench *bn, float *x)
{
    uint16_t *h = (uint16_t *)x;
    for (int64_t i = 0; bn->type != MC_F32 && i < POOL_FLOATS; i++) {
        float f;
        memcpy(&f, x + i, sizeof f);
        uint16_t v = bn->type == MC_BF16 ? mc_bf16_from_f32(f) : mc_f16_from_f32(f);
        memcpy(h + i, &v, sizeof v);
    }
}

#define CALL(op)                                                                   \
    static mc_status call_##op(const ly_ctx *cx, const void *arg)                  \
    {                                                                              \
        return cx->ops->op(cx, arg);                                               \
    }                                                                              \
    static void bench_##op(bench *bn, const char *name, ly_##op arg, double bytes) \
    {                                                                              \
        if (wanted(bn, name)) {                                                    \
            report(bn, name, best_time(bn, call_##op, &arg), 0.0, bytes);          \
        }                                                                          \
    }
CALL(bias_grad)
CALL(norm_fwd)
CALL(norm_bwd)
CALL(act_fwd)
CALL(act_bwd)
CALL(rope)
CALL(embedding_fwd)
CALL(embedding_bwd)
CALL(embed_finish_fwd)
CALL(xent_stats)
CALL(xent_grad)
CALL(adamw)
CALL(sq_norm)
CALL(add)
CALL(fill)

static void bench_norms(bench *bn, int64_t rows, int64_t cols)
{
    mc_tensor x = mc_tensor_2d(bn->a, MC_F32, rows, cols), y = mc_tensor_2d(bn->b, MC_F32, rows, cols);
    mc_tensor h = mc_tensor_2d(bn->c, MC_F32, rows, cols), out = mc_tensor_2d(bn->d, MC_F32, rows, cols);
    mc_tensor stats = mc_tensor_2d(bn->e, MC_F32, rows, 2), g = mc_tensor_1d(bn->e + 65536, MC_F32, cols);
    double mb = 4.0 * (double)(rows * cols);
    char name[96];
    for (int p = 0; p < 2; p++) {
        ly_dropout d = {.p = p ? 0.1f : 0.0f, .seed = 1, .seq_len = rows};
        snprintf(name, sizeof name, "norm_fwd %lldx%lld p=%.1f", (long long)rows, (long long)cols, (double)d.p);
        bench_norm_fwd(
            bn, name,
            (ly_norm_fwd){
                .eps = 1e-5f, .x = x, .y = y, .h = h, .out = out, .stats = stats, .gamma = g, .beta = g, .dropout = d},
            4 * mb);
        snprintf(name, sizeof name, "norm_bwd %lldx%lld p=%.1f", (long long)rows, (long long)cols, (double)d.p);
        mc_tensor dg = mc_tensor_1d(bn->e + 131072, MC_F32, cols);
        ly_norm_bwd b = {.dout = x,
                         .h = y,
                         .stats = stats,
                         .gamma = g,
                         .beta = g,
                         .dskip = h,
                         .dh = h,
                         .dgamma = dg,
                         .dbeta = dg,
                         .dy_bias = dg,
                         .dropout = d};
        if (p) {
            b.dy = out;
        }
        bench_norm_bwd(bn, name, b, (4 + p) * mb);
    }
}

static void bench_rows(bench *bn)
{
    enum { R = 1024, C = 768, F = 3072 };
    double row_bytes = 4.0 * R * C, f_bytes = 4.0 * R * F;
    mc_tensor xf = mc_tensor_2d(bn->a, MC_F32, R, F), yf = mc_tensor_2d(bn->b, MC_F32, R, F);
    mc_tensor zf = mc_tensor_2d(bn->c, MC_F32, R, F), x2f = mc_tensor_2d(bn->a, MC_F32, R, 2 * F);
    bench_norms(bn, R, C);
    bench_norms(bn, 2048, 256);
    bench_bias_grad(bn, "bias_grad 1024x3072", (ly_bias_grad){.dy = xf, .dbias = mc_tensor_1d(bn->e, MC_F32, F)},
                    f_bytes);
    static const char *const kinds[] = {"gelu_tanh", "gelu_erf", "squared_relu", "swiglu", "silu"};
    for (int k = LY_GELU_TANH; k <= LY_SILU; k++) {
        char name[64];
        mc_tensor x = k == LY_SWIGLU ? x2f : xf;
        double wide = k == LY_SWIGLU ? 2.0 : 1.0;
        snprintf(name, sizeof name, "act_fwd %s 1024x3072", kinds[k]);
        bench_act_fwd(bn, name, (ly_act_fwd){.kind = (ly_act_kind)k, .x = x, .out = yf}, (1.0 + wide) * f_bytes);
        snprintf(name, sizeof name, "act_bwd %s 1024x3072", kinds[k]);
        bench_act_bwd(bn, name, (ly_act_bwd){.kind = (ly_act_kind)k, .x = x, .dout = yf, .dx = x, .out = zf},
                      (2.0 + 2.0 * wide) * f_bytes);
    }
    mc_tensor table = mc_tensor_2d(bn->b, MC_F32, 50304, C), out = mc_tensor_2d(bn->c, MC_F32, R, C);
    mc_tensor tokens = mc_tensor_1d(bn->ints, MC_I32, R);
    ly_dropout d = {.p = 0.1f, .seed = 1, .seq_len = R};
    bench_embedding_fwd(bn, "embedding_fwd 1024x768", (ly_embedding_fwd){.tokens = tokens, .table = table, .out = out},
                        2 * row_bytes);
    bench_embedding_bwd(bn, "embedding_bwd 1024x768",
                        (ly_embedding_bwd){.tokens = tokens, .dout = out, .dtable = table}, 3 * row_bytes);
    bench_embed_finish_fwd(bn, "embed_finish_fwd 1024x768 p=0.1",
                           (ly_embed_finish_fwd){.x = out, .h = out, .dropout = d}, 2 * row_bytes);
    mc_tensor heads = {
        .data = bn->a, .dtype = MC_F32, .n_dims = 4, .dims = {R, 4, 2, 64}, .strides = {1024, 256, 64, 1}};
    mc_tensor angles = mc_tensor_2d(bn->b, MC_F32, R, 32);
    bench_rope(bn, "rope 1024x8x64", (ly_rope){.x = heads, .cos = angles, .sin = angles, .seq_len = R},
               2.0 * 4.0 * R * 512);
}

static void bench_large(bench *bn)
{
    enum { R = 256, V = 50304 };
    double bytes = 4.0 * R * V;
    mc_tensor logits = mc_tensor_2d(bn->a, MC_F32, R, V), targets = mc_tensor_1d(bn->ints, MC_I32, R);
    mc_tensor stats = mc_tensor_2d(bn->e, MC_F32, R, 3);
    bench_xent_stats(bn, "xent_stats 256x50304",
                     (ly_xent_stats){.logits = logits, .targets = targets, .stats = stats, .vocab_valid = V}, bytes);
    bench_xent_grad(bn, "xent_grad 256x50304",
                    (ly_xent_grad){.logits = logits,
                                   .targets = targets,
                                   .all_stats = mc_tensor_3d(bn->e, MC_F32, 1, R, 3),
                                   .vocab_valid = V,
                                   .scale = 1e-9f,
                                   .write_grad = 1},
                    2 * bytes);
    int64_t n = POOL_FLOATS / 2;
    ly_segment all = {0, n, 1.0f, 1.0f, 1.0f};
    mc_tensor p = mc_tensor_1d(bn->a, MC_F32, n), g = mc_tensor_1d(bn->b, MC_F32, n),
              m = mc_tensor_1d(bn->c, MC_F32, n);
    mc_tensor v = mc_tensor_1d(bn->d, MC_F32, n), sum = mc_tensor_1d(bn->e, MC_F64, 1);
    memset(bn->d, 0, (size_t)n * 4);
    bench_adamw(bn, "adamw 32M",
                (ly_adamw){.param = p,
                           .grad = g,
                           .m = m,
                           .v = v,
                           .segments = &all,
                           .n_segments = 1,
                           .lr = 1e-6f,
                           .beta1 = 0.9f,
                           .beta2 = 0.95f,
                           .eps = 1e-8f,
                           .grad_scale = 1.0f,
                           .step = 3},
                28.0 * (double)n);
    bench_sq_norm(bn, "sq_norm 32M", (ly_sq_norm){.x = g, .out = sum, .segments = &all, .n_segments = 1},
                  4.0 * (double)n);
    bench_add(bn, "add 32M", (ly_add){.a = p, .b = g, .out = p}, 12.0 * (double)n);
    bench_fill(bn, "fill 32M", (ly_fill){.x = g}, 4.0 * (double)n);
}

typedef struct copy_job {
    char *to;
    const char *from;
    size_t bytes;
} copy_job;

static void copy_task(void *arg, int task, int thread, void *scratch)
{
    const copy_job *j = arg;
    (void)thread;
    (void)scratch;
    memcpy(j->to + (size_t)task * j->bytes, j->from + (size_t)task * j->bytes, j->bytes);
}

/* Copies of 128 MiB by all threads: bytes read plus bytes written. */
static double copy_bandwidth(const bench *bn)
{
    copy_job j = {(char *)bn->a, (const char *)bn->b, 1 << 21};
    double best = 1e30;
    for (int i = 0; i < 6; i++) {
        double t = clock_seconds(bn->clock);
        mc_pool_run(bn->cx.pool, 64, copy_task, &j);
        t = clock_seconds(bn->clock) - t;
        best = t < best ? t : best;
    }
    return 2.0 * 64.0 * (double)j.bytes / best * 1e-9;
}

/* Huge pages where there are any, as for the arenas of a run. */
static float *floats(mc_device *dev, uint32_t seed)
{
    void *p = NULL;
    if (dev->ops->alloc(dev, MC_MEM_DEVICE, (size_t)POOL_FLOATS * sizeof(float), "benchmark data", &p) != MC_OK) {
        exit(1);
    }
    float *x = p;
    for (int64_t i = 0; i < POOL_FLOATS; i++) {
        seed = seed * 1664525u + 1013904223u;
        x[i] = ((float)(seed >> 8) - 8388608.0f) / 8388608.0f;
    }
    return x;
}

static mc_dtype type_named(const char *name)
{
    static const mc_dtype types[] = {MC_F32, MC_BF16, MC_F16};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        if (strcmp(name, mc_dtype_name(types[i])) == 0) {
            return types[i];
        }
    }
    fprintf(stderr, "--type %s: use f32, bf16 or f16\n", name);
    exit(2);
}

static const char *parse(bench *bn, int argc, char **argv, int *n_threads_out)
{
    const char *backend = "cpu";
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--threads") == 0 && i + 1 < argc) {
            *n_threads_out = atoi(argv[++i]);
        } else if (strcmp(argv[i], "--backend") == 0 && i + 1 < argc) {
            backend = argv[++i];
        } else if (strcmp(argv[i], "--seconds") == 0 && i + 1 < argc) {
            bn->seconds = atof(argv[++i]);
        } else if (strcmp(argv[i], "--type") == 0 && i + 1 < argc) {
            bn->type = type_named(argv[++i]);
        } else if (strcmp(argv[i], "--cpu-time") == 0) {
            bn->clock = CLOCK_THREAD_CPUTIME_ID;
        } else {
            bn->filter = argv[i];
        }
    }
    return backend;
}

int main(int argc, char **argv)
{
    bench bn = {.seconds = 0.3, .clock = CLOCK_MONOTONIC, .type = MC_F32};
    int n_threads = 2;
    const char *backend = parse(&bn, argc, argv, &n_threads);
    mc_device dev = {0};
    if (n_threads < 1 || ly_ops_get(backend, &bn.cx.ops) != MC_OK || mc_device_open("cpu", 0, &dev) != MC_OK ||
        mc_pool_create(n_threads, LY_POOL_SCRATCH_BYTES, &bn.cx.pool) != MC_OK) {
        return 2;
    }
    float **const pools[] = {&bn.a, &bn.b, &bn.c, &bn.d, &bn.e};
    for (uint32_t i = 0; i < 5; i++) {
        *pools[i] = floats(&dev, i + 1);
    }
    if (MC_NEW_N(&bn.ints, N_INTS, "benchmark tokens") != MC_OK) {
        return 1;
    }
    for (int i = 0; i < N_INTS; i++) {
        bn.ints[i] = (int32_t)((uint32_t)i * 2654435761u % 50000u);
    }
    bn.peak_gflops = peak_gflops(bn.cx.pool);
    bn.copy_gbs = copy_bandwidth(&bn);
    printf("%s, %d threads: peak %.1f GFLOP/s (fused multiply-add loop), copy %.1f GB/s\n", bn.cx.ops->backend,
           n_threads, bn.peak_gflops, bn.copy_gbs);
    narrow(&bn, bn.a);
    narrow(&bn, bn.b);
    narrow(&bn, bn.c);
    bench_gemm(&bn);
    if (bn.type == MC_F32) {
        bench_rows(&bn);
        bench_large(&bn);
    }
    return bn.failed;
}
