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
#include "tests/bench/bench_cuda.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { CHUNK_BYTES = 1 << 20, COPY_BYTES = 256 << 20 };

static const model models[] = {
    {"gpt2-124m", 768, 3072, 12, 12, 64, 50304, 1024, false},
    {"gpt2-1558m", 1600, 6400, 25, 25, 64, 50304, 1024, false},
    {"llama-1b", 2048, 8192, 32, 8, 64, 128256, 4096, true},
    {"llama-8b", 4096, 14336, 32, 8, 128, 128256, 8192, true},
};
static const model tiny_model = {"tiny", 64, 128, 4, 2, 16, 96, 32, true};

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void bench_check(mc_status st)
{
    if (st != MC_OK) {
        exit(1);
    }
}

static void *memory(bench *b, size_t bytes)
{
    void *p = NULL;
    bench_check(b->dev.ops->alloc(&b->dev, MC_MEM_DEVICE, bytes, "benchmark data", &p));
    return p;
}

void bench_wait(bench *b)
{
    bench_check(b->dev.ops->stream_sync(&b->dev, b->cx.stream));
}

/* ---- timing ---- */

/* Room for what the call needs. */
static void make_workspace(bench *b, call_fn call, const void *arg)
{
    size_t need = 0;
    ly_ctx asking = b->cx;
    asking.ops = b->plan;
    asking.workspace_peak = &need;
    bench_check(call(&asking, arg));
    if (need > b->cx.workspace_bytes) {
        bench_wait(b);
        if (b->cx.workspace) {
            b->dev.ops->free(&b->dev, MC_MEM_DEVICE, b->cx.workspace, b->cx.workspace_bytes);
        }
        b->cx.workspace = memory(b, need);
        b->cx.workspace_bytes = need;
    }
}

double bench_best_time(bench *b, call_fn call, const void *arg)
{
    make_workspace(b, call, arg);
    bench_check(call(&b->cx, arg));
    bench_wait(b);
    double start = now(), best = 1e30;
    bench_check(call(&b->cx, arg));
    bench_wait(b);
    double once = now() - start;
    int reps = b->tiny ? 2 : once < 20e-3 ? (int)(20e-3 / once) + 1 : 1;
    for (start = now(); best > 1e29 || now() - start < b->seconds;) {
        double t = now();
        for (int i = 0; i < reps; i++) {
            bench_check(call(&b->cx, arg));
        }
        bench_wait(b);
        t = (now() - t) / reps;
        best = t < best ? t : best;
    }
    return best;
}

void bench_report(bench *b, const char *op, const char *shape, call_fn call, const void *arg, double flops,
                  double bytes)
{
    char name[96];
    snprintf(name, sizeof name, "%s %s", op, shape);
    if (b->filter && !strstr(name, b->filter)) {
        return;
    }
    double s = bench_best_time(b, call, arg);
    printf("%-44s %10.1f us", name, s * 1e6);
    if (flops > 0.0) {
        printf(" %8.1f TFLOP/s %5.1f %% of peak", flops / s * 1e-12, flops / s * 1e-10 / b->peak_tflops);
    } else {
        printf(" %8.1f GB/s    %5.1f %% of copy", bytes / s * 1e-9, bytes / s * 1e-7 / b->copy_gbs);
    }
    putchar('\n');
    fflush(stdout);
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
    return 2.0 * (double)j.bytes / bench_best_time(b, call_copy, &j) * 1e-9;
}

/* ---- the run ---- */

/* Numbers from -1 to 1, pinned and then copied everywhere: bf16 twins, which read as f32 are such numbers too. */
static void fill_pools(bench *b)
{
    void *pinned = NULL;
    uint32_t seed = 1;
    bench_check(b->dev.ops->alloc(&b->dev, MC_MEM_PINNED_HOST, CHUNK_BYTES, "benchmark data", &pinned));
    uint16_t *half = pinned;
    for (size_t i = 0; i < CHUNK_BYTES / sizeof *half; i++) {
        seed = seed * 1664525u + 1013904223u;
        float x = ((float)(seed >> 8) - 8388608.0f) / 8388608.0f;
        uint32_t bits;
        memcpy(&bits, &x, sizeof bits);
        half[i] = (uint16_t)(bits >> 16);
    }
    for (int p = 0; p < BENCH_POOLS; p++) {
        b->pools[p] = memory(b, b->pool_bytes);
        for (size_t at = 0; at < b->pool_bytes; at += CHUNK_BYTES) {
            bench_check(b->dev.ops->copy(&b->dev, b->pools[p] + at, pinned, CHUNK_BYTES, b->cx.stream));
        }
    }
    bench_wait(b);
    int32_t *ints = pinned;
    for (size_t i = 0; i < CHUNK_BYTES / sizeof *ints; i++) {
        ints[i] = (int32_t)((uint32_t)i * 2654435761u % (b->tiny ? 96u : 50000u));
    }
    size_t places_at = CHUNK_BYTES / sizeof *ints - BENCH_TEXTS; /* behind the tokens */
    for (int t = 0; t < BENCH_TEXTS; t++) {
        int32_t positions = b->tiny ? BENCH_TINY_POSITIONS : BENCH_POSITIONS;
        ints[places_at + (size_t)t] = (t + 1) * positions - 1;
    }
    b->ints = memory(b, CHUNK_BYTES);
    b->places = b->ints + places_at * sizeof *ints;
    bench_check(b->dev.ops->copy(&b->dev, b->ints, pinned, CHUNK_BYTES, b->cx.stream));
    bench_wait(b);
    b->dev.ops->free(&b->dev, MC_MEM_PINNED_HOST, pinned, CHUNK_BYTES);
    b->segments = memory(b, BENCH_SEGMENT_BYTES);
}

static void release(bench *b)
{
    bench_wait(b);
    for (int p = 0; p < BENCH_POOLS; p++) {
        b->dev.ops->free(&b->dev, MC_MEM_DEVICE, b->pools[p], b->pool_bytes);
    }
    b->dev.ops->free(&b->dev, MC_MEM_DEVICE, b->ints, CHUNK_BYTES);
    b->dev.ops->free(&b->dev, MC_MEM_DEVICE, b->segments, BENCH_SEGMENT_BYTES);
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
    bench_check(ly_ops_get("plan", &b.plan));
    bench_check(mc_device_open("cuda", 0, &b.dev));
    b.cx.ops = b.dev.ops->operators;
    b.cx.backend = b.dev.impl;
    bench_check(b.dev.ops->stream_create(&b.dev, &b.cx.stream));
    b.pool_bytes = b.tiny ? (size_t)4 << 20 : (size_t)3 << 30;
    fill_pools(&b);
    b.dev.ops->describe(&b.dev, device, sizeof device);
    b.copy_gbs = copy_bandwidth(&b);
    b.peak_tflops = bench_peak(&b);
    printf("%s, %s%s: square product %.4g TFLOP/s, copy %.4g GB/s\n", device, mc_dtype_name(b.type),
           b.cx.tf32 ? " (TF32)" : "", b.peak_tflops, b.copy_gbs);
    for (size_t i = 0; i < (b.tiny ? 1 : sizeof models / sizeof *models); i++) {
        const model *m = b.tiny ? &tiny_model : &models[i];
        bench_model(&b, m);
    }
    bench_optimizers(&b);
    release(&b);
    return 0;
}
