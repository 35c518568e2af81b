/* Conversion between element types, by blocks through f32. */
#include "layers/cpu/isa.h"
#include "layers/cpu/rows.h"
#include "megac/base/half.h"

enum { CAST_BLOCK = 8192 };

typedef struct cast_job {
    const ly_cast *a;
    int64_t n;
    int n_tasks;
} cast_job;

static bool is_float(mc_dtype d)
{
    return d == MC_F32 || d == MC_BF16 || d == MC_F16;
}

static void load(float *to, mc_tensor x, int64_t at, int64_t n)
{
    const float *f = (const float *)x.data + at;
    const uint16_t *h = (const uint16_t *)x.data + at;
    if (x.dtype == MC_F32) {
        memcpy(to, f, (size_t)n * sizeof *to);
    } else if (x.dtype == MC_BF16) {
        for (int64_t i = 0; i < n; i++) {
            to[i] = mc_f32_from_bf16(h[i]);
        }
    } else {
        for (int64_t i = 0; i < n; i++) {
            to[i] = mc_f32_from_f16(h[i]);
        }
    }
}

static void store(mc_tensor x, const float *from, int64_t at, int64_t n)
{
    float *f = (float *)x.data + at;
    uint16_t *h = (uint16_t *)x.data + at;
    if (x.dtype == MC_F32) {
        memcpy(f, from, (size_t)n * sizeof *from);
    } else if (x.dtype == MC_BF16) {
        for (int64_t i = 0; i < n; i++) {
            h[i] = mc_bf16_from_f32(from[i]);
        }
    } else {
        for (int64_t i = 0; i < n; i++) {
            h[i] = mc_f16_from_f32(from[i]);
        }
    }
}

static void cast_task(void *arg, int task, int thread, void *scratch)
{
    const cast_job *j = arg;
    float *x = scratch, *old = x + CAST_BLOCK;
    long b, e;
    (void)thread;
    mc_pool_range((long)j->n, j->n_tasks, task, CAST_BLOCK, &b, &e);
    for (int64_t at = b; at < e; at += CAST_BLOCK) {
        int64_t n = e - at < CAST_BLOCK ? e - at : CAST_BLOCK;
        load(x, j->a->x, at, n);
        if (j->a->accumulate) {
            load(old, j->a->out, at, n);
        }
        for (int64_t i = 0; i < n; i++) {
            float y = x[i] * j->a->scale;
            x[i] = j->a->accumulate ? old[i] + y : y;
        }
        store(j->a->out, x, at, n);
    }
}

mc_status LY_CPU(cast)(const ly_ctx *cx, const ly_cast *a)
{
    if (!is_float(a->x.dtype) || !is_float(a->out.dtype)) {
        return MC_FAIL(MC_UNSUPPORTED, "cast: from %s to %s; f32, bf16 and f16 are known", mc_dtype_name(a->x.dtype),
                       mc_dtype_name(a->out.dtype));
    }
    MC_ASSERT(mc_tensor_contiguous(a->x) && mc_tensor_contiguous(a->out));
    MC_ASSERT(mc_tensor_elems(a->x) == mc_tensor_elems(a->out));
    cast_job job = {.a = a, .n = mc_tensor_elems(a->x)};
    job.n_tasks = ly_tasks(job.n / CAST_BLOCK + 1, CAST_BLOCK);
    mc_pool_run(cx->pool, job.n_tasks, cast_task, &job);
    return MC_OK;
}
