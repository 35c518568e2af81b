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
static void residual_row(const norm_job *j, int64_t r, uint32_t *words_buf)
{
    const ly_norm_fwd *a = j->a;
    int64_t n_cols = j->n_cols;
    const float *x = ly_cf(a->x) + r * n_cols, *y = ly_cf(a->y) + r * n_cols, *bias = ly_cf(a->y_bias);
    float *h = ly_f(a->h) + r * n_cols;
    bool drop = a->dropout.p > 0.0f;
    const uint32_t *words = drop ? ly_dropout_row(words_buf, &a->dropout, r, n_cols) : NULL;
    ly_vi threshold = ly_viset1((int32_t)mc_rng_threshold(a->dropout.p));
    ly_vf scale = ly_vset1(drop ? 1.0f / (1.0f - a->dropout.p) : 1.0f);
    for (int64_t c = 0; c < n_cols; c += LY_LANES) {
        int64_t n = n_cols - c;
        ly_vf v = ly_vload_n(y + c, n), res = ly_vload_n(x + c, n);
        if (bias) {
            v = ly_vadd(v, ly_vload_n(bias + c, n));
        }
        if (drop) {
            v = ly_vmul(ly_vkeep(ly_dropout_mask(words + c, threshold), v), scale);
        }
        ly_vstore_n(h + c, ly_vadd(res, v), n);
    }
}

static void norm_task(void *arg, int task, int thread, void *scratch)
{
    const norm_job *j = arg;
    const ly_norm_fwd *a = j->a;
    bool with_y = mc_tensor_present(a->y);
    const float *h = with_y ? ly_cf(a->h) : ly_cf(a->x);
    long r0, r1;
    (void)thread;
    mc_pool_range((long)j->n_rows, j->n_tasks, task, 1, &r0, &r1);
    for (int64_t r = r0; r < r1; r++) {
        if (with_y) {
            residual_row(j, r, scratch);
        }
        if (mc_tensor_present(a->out)) {
            const float *row = h + r * j->n_cols;
            float *stats = ly_f(a->stats) + 2 * r;
            ly_i_norm_stats(row, j->n_cols, a->kind, a->eps, &stats[0], &stats[1]);
            ly_i_norm_out(ly_f(a->out) + r * j->n_cols, row, stats[0], stats[1], ly_cf(a->gamma), a->one_plus_gamma,
                          ly_cf(a->beta), j->n_cols);
        }
    }
}

mc_status LY_CPU(norm_fwd)(const ly_ctx *cx, const ly_norm_fwd *a)
{
    LY_TRY_F32("norm_fwd", a->x);
    LY_TRY_F32("norm_fwd", a->y);
    LY_TRY_F32("norm_fwd", a->y_bias);
    LY_TRY_F32("norm_fwd", a->h);
    LY_TRY_F32("norm_fwd", a->gamma);
    LY_TRY_F32("norm_fwd", a->beta);
    LY_TRY_F32("norm_fwd", a->out);
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
