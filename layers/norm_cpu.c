/* Forward of the fused bias + dropout + residual + norm. */
#include "layers/cpu/isa.h"
#include "layers/cpu/norm_row.h"
#include "layers/cpu/philox.h"
#include "layers/cpu/rows.h"

typedef struct norm_job {
    const ly_norm_fwd *a;
    int64_t n_rows, n_cols;
    int n_tasks;
} norm_job;

/* h = x + dropout(y + y_bias), one row. */
LY_INLINE void residual_row(mc_dtype type, const norm_job *j, int64_t r, uint32_t *words_buf)
{
    const ly_norm_fwd *a = j->a;
    int64_t n_cols = j->n_cols, at = r * n_cols;
    const void *x = ly_elem(type, a->x.data, at), *y = ly_elem(type, a->y.data, at), *bias = a->y_bias.data;
    void *h = ly_elem_out(type, a->h.data, at);
    bool drop = a->dropout.p > 0.0f;
    const uint32_t *words = drop ? ly_dropout_row(words_buf, &a->dropout, r, n_cols) : NULL;
    ly_vi threshold = ly_viset1((int32_t)mc_rng_threshold(a->dropout.p));
    ly_vf scale = ly_vset1(drop ? 1.0f / (1.0f - a->dropout.p) : 1.0f);
    for (int64_t c = 0; c < n_cols; c += LY_LANES) {
        int64_t n = n_cols - c;
        ly_vf v = ly_tload(type, ly_elem(type, y, c), n);
        ly_vf res = ly_tload(type, ly_elem(type, x, c), n);
        if (bias) {
            v = ly_vadd(v, ly_tload(type, ly_elem(type, bias, c), n));
        }
        if (drop) {
            v = ly_vmul(ly_vkeep(ly_dropout_mask(words + c, threshold), v), scale);
        }
        ly_tstore(type, ly_elem_out(type, h, c), ly_vadd(res, v), n);
    }
}

LY_INLINE void norm_rows(mc_dtype type, const norm_job *j, int64_t r0, int64_t r1, void *scratch)
{
    const ly_norm_fwd *a = j->a;
    bool with_y = mc_tensor_present(a->y);
    const void *h = with_y ? a->h.data : a->x.data;
    for (int64_t r = r0; r < r1; r++) {
        if (with_y) {
            residual_row(type, j, r, scratch);
        }
        if (mc_tensor_present(a->out)) {
            const void *row = ly_elem(type, h, r * j->n_cols);
            float *stats = ly_f(a->stats) + 2 * r;
            ly_i_norm_stats(type, row, j->n_cols, a->kind, a->eps, &stats[0], &stats[1]);
            ly_i_norm_out(type, ly_elem_out(type, a->out.data, r * j->n_cols), row, stats[0], stats[1], a->gamma.data,
                          a->one_plus_gamma, a->beta.data, j->n_cols);
        }
    }
}

static void norm_task(void *arg, int task, int thread, void *scratch)
{
    const norm_job *j = arg;
    long r0, r1;
    (void)thread;
    mc_pool_range((long)j->n_rows, j->n_tasks, task, 1, &r0, &r1);
    LY_FOR_TYPE(j->a->x.dtype, T, norm_rows(T, j, r0, r1, scratch));
}

mc_status LY_CPU(norm_fwd)(const ly_ctx *cx, const ly_norm_fwd *a)
{
    LY_TRY_TYPE("norm_fwd", a->x);
    LY_TRY_DTYPE("norm_fwd", a->y, a->x.dtype);
    LY_TRY_DTYPE("norm_fwd", a->y_bias, a->x.dtype);
    LY_TRY_DTYPE("norm_fwd", a->h, a->x.dtype);
    LY_TRY_DTYPE("norm_fwd", a->gamma, a->x.dtype);
    LY_TRY_DTYPE("norm_fwd", a->beta, a->x.dtype);
    LY_TRY_DTYPE("norm_fwd", a->out, a->x.dtype);
    LY_TRY_F32("norm_fwd", a->stats);
    MC_ASSERT(a->x.n_dims == 2);
    int64_t n_rows = a->x.dims[0], n_cols = a->x.dims[1];
    bool with_y = mc_tensor_present(a->y), with_out = mc_tensor_present(a->out);
    MC_ASSERT(with_y || with_out);
    MC_ASSERT(ly_is_2d(a->x, n_rows, n_cols) && ly_absent_or_2d(a->y, n_rows, n_cols) &&
              ly_absent_or_1d(a->y_bias, n_cols) && ly_absent_or_2d(a->out, n_rows, n_cols) &&
              ly_absent_or_1d(a->beta, n_cols));
    MC_ASSERT(!with_y || ly_is_2d(a->h, n_rows, n_cols));
    MC_ASSERT(!with_out || (ly_is_1d(a->gamma, n_cols) && ly_is_2d(a->stats, n_rows, 2)));
    MC_ASSERT(ly_dropout_fits(cx->pool, &a->dropout, n_cols));
    norm_job job = {a, n_rows, n_cols, ly_tasks(n_rows, 4 * n_cols)};
    mc_pool_run(cx->pool, job.n_tasks, norm_task, &job);
    return MC_OK;
}
