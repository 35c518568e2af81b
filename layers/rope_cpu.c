/* Rotary positions on the CPU. */
#include "layers/cpu/isa.h"
#include "layers/cpu/rows.h"

typedef struct rope_job {
    const ly_rope *a;
    int n_tasks;
} rope_job;

/* (x_i, x_{i + half}) of one head. */
static void rotate_halves(float *x, const float *cos, const float *sin, int64_t half, bool inverse)
{
    for (int64_t i = 0; i < half; i += LY_LANES) {
        int64_t n = half - i;
        ly_vf c = ly_vload_n(cos + i, n), s = ly_vload_n(sin + i, n);
        ly_vf u = ly_vload_n(x + i, n), v = ly_vload_n(x + half + i, n);
        s = inverse ? ly_vsub(ly_vzero(), s) : s;
        ly_vstore_n(x + i, ly_vfnma(v, s, ly_vmul(u, c)), n);
        ly_vstore_n(x + half + i, ly_vfma(u, s, ly_vmul(v, c)), n);
    }
}

/* (x_2i, x_2i+1) of one head. */
static void rotate_neighbours(float *restrict x, const float *restrict cos, const float *restrict sin, int64_t half,
                              bool inverse)
{
    for (int64_t i = 0; i < half; i++) {
        float c = cos[i], s = inverse ? -sin[i] : sin[i], u = x[2 * i], v = x[2 * i + 1];
        x[2 * i] = u * c - v * s;
        x[2 * i + 1] = v * c + u * s;
    }
}

static void rope_task(void *arg, int task, int thread, void *scratch)
{
    const rope_job *job = arg;
    const ly_rope *a = job->a;
    int64_t half = a->cos.dims[1];
    long r0, r1;
    (void)thread;
    (void)scratch;
    mc_pool_range((long)a->x.dims[0], job->n_tasks, task, 1, &r0, &r1);
    for (int64_t r = r0; r < r1; r++) {
        int64_t position = a->pos0 + r % a->seq_len;
        const float *cos = ly_cf(a->cos) + position * a->cos.strides[0];
        const float *sin = ly_cf(a->sin) + position * a->sin.strides[0];
        for (int64_t g = 0; g < a->x.dims[1]; g++) {
            for (int64_t j = 0; j < a->x.dims[2]; j++) {
                float *x = ly_f(a->x) + r * a->x.strides[0] + g * a->x.strides[1] + j * a->x.strides[2];
                if (a->interleaved) {
                    rotate_neighbours(x, cos, sin, half, a->inverse);
                } else {
                    rotate_halves(x, cos, sin, half, a->inverse);
                }
            }
        }
    }
}

mc_status LY_CPU(rope)(const ly_ctx *cx, const ly_rope *a)
{
    LY_TRY_F32("rope", a->x);
    LY_TRY_F32("rope", a->cos);
    LY_TRY_F32("rope", a->sin);
    MC_ASSERT(a->x.n_dims == 4 && a->cos.n_dims == 2 && mc_tensor_same_shape(a->cos, a->sin));
    MC_ASSERT(a->x.strides[3] == 1 && 2 * a->cos.dims[1] <= a->x.dims[3]);
    MC_ASSERT(a->seq_len > 0 && a->pos0 >= 0);
    int64_t n_rows = a->x.dims[0], last = n_rows < a->seq_len ? n_rows : a->seq_len;
    MC_ASSERT(a->pos0 + last <= a->cos.dims[0]);
    rope_job job = {a, ly_tasks(n_rows, 2 * a->x.dims[1] * a->x.dims[2] * a->x.dims[3])};
    mc_pool_run(cx->pool, job.n_tasks, rope_task, &job);
    return MC_OK;
}
