/* What the two files of bench_cuda share: the device with its memory, and a figure. */
#ifndef TESTS_BENCH_BENCH_CUDA_H
#define TESTS_BENCH_BENCH_CUDA_H

#include "layers/ops.h"
#include "megac/base/device.h"

enum { BENCH_POOLS = 6, BENCH_SEGMENT_BYTES = 4096 };
/* Generation: so many texts, each at its last position. */
enum { BENCH_TEXTS = 16, BENCH_POSITIONS = 1024, BENCH_TINY_POSITIONS = 16 };

/* A model's sizes: as in its configuration, heads of KV in `groups`. */
typedef struct model {
    const char *name;
    int64_t C, F, heads, groups, H, V, T;
    bool gated; /* SwiGLU and RMSNorm; else GELU and LayerNorm */
} model;

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
    char *pools[BENCH_POOLS]; /* device memory */
    char *ints;               /* tokens below every vocabulary */
    char *places;             /* of kv_cache.h: of each text its last position */
    char *segments;           /* of optimizers: one, over everything */
    double peak_tflops, copy_gbs;
} bench;

typedef mc_status (*call_fn)(const ly_ctx *cx, const void *arg);

void bench_check(mc_status st); /* a failure ends the program */
void bench_wait(bench *b);
/* Best seconds of one call; the first is not timed (plans are made in it). */
double bench_best_time(bench *b, call_fn call, const void *arg);
/* Times the call and prints a line, unless the filter excludes it: beside the peak, or with `flops` 0 beside a copy. */
void bench_report(bench *b, const char *op, const char *shape, call_fn call, const void *arg, double flops,
                  double bytes);

/* bench_cuda_ops.c: all operators at a model's sizes, but for those over whole slabs; those; TFLOP/s of a square
 * product, which is what the GPU does at most. */
void bench_model(bench *b, const model *m);
void bench_optimizers(bench *b);
double bench_peak(bench *b);

#endif
