/* Rotary positions on the CPU. */
#include "layers/cpu/isa.h"
#include "layers/cpu/rows.h"

typedef struct rope_job {
    const ly_rope *a;
    int n_tasks;
} rope_job;

/* (x_i, x_{i + half}) of one head. */
LY_INLINE void rotate_halves(mc_dtype type, void *x, const float *cos, const float *sin, int64_t half, bool inverse)
{
    for (int64_t i = 0; i < half; i += LY_LANES) {
        int64_t n = half - i;
        void *first = ly_elem_out(type, x, i), *second = ly_elem_out(type, x, half + i);
        ly_vf c = ly_vload_n(cos + i, n), s = ly_vload_n(sin + i, n);
        ly_vf u = ly_tload(type, first, n), v = ly_tload(type, second, n);
        s = inverse ? ly_vsub(ly_vzero(), s) : s;
        ly_tstore(type, first, ly_vfma(u, c, ly_vsub(ly_vzero(), ly_vmul(v, s))), n);
        ly_tstore(type, second, ly_vfma(v, c, ly_vmul(u, s)), n);
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

/* The same in any type: 16-bit elements turn in a copy in f32. */
LY_INLINE void rotate_neighbours_of(mc_dtype type, void *x, const float *cos, const float *sin, int64_t half,
                                    bool inverse)
{
    enum { PAIRS = 128 };
    if (type == MC_F32) {
        rotate_neighbours(x, cos, sin, half, inverse);
        return;
    }
    for (int64_t i = 0; i < half; i += PAIRS) {
        float copy[2 * PAIRS];
        int64_t pairs = half - i < PAIRS ? half - i : PAIRS, n = 2 * pairs;
        void *at = ly_elem_out(type, x, 2 * i);
        for (int64_t k = 0; k < n; k += LY_LANES) {
            ly_vstore(copy + k, ly_tload(type, ly_elem(type, at, k), n - k));
        }
        rotate_neighbours(copy, cos + i, sin + i, pairs, inverse);
        for (int64_t k = 0; k < n; k += LY_LANES) {
            ly_tstore(type, ly_elem_out(type, at, k), ly_vload(copy + k), n - k);
        }
    }
}

LY_INLINE void rotate(mc_dtype type, const ly_rope *a, void *x, const float *cos, const float *sin)
{
    if (a->interleaved) {
        rotate_neighbours_of(type, x, cos, sin, a->cos.dims[1], a->inverse);
    } else {
        rotate_halves(type, x, cos, sin, a->cos.dims[1], a->inverse);
    }
}

static void rope_task(void *arg, int task, int thread, void *scratch)
{
    const rope_job *job = arg;
    const ly_rope *a = job->a;
    const int64_t *strides = a->x.strides;
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
                void *x = ly_elem_out(a->x.dtype, a->x.data, r * strides[0] + g * strides[1] + j * strides[2]);
                LY_FOR_TYPE(a->x.dtype, T, rotate(T, a, x, cos, sin));
            }
        }
    }
}

mc_status LY_CPU(rope)(const ly_ctx *cx, const ly_rope *a)
{
    LY_TRY_TYPE("rope", a->x);
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
