/* Backward of the fused bias + dropout + residual + norm: one pass by rows, then column sums over rows that are still
 * in the cache. Two passes, because sums over rows must not depend on how rows are spread over threads. */
#include "layers/cpu/isa.h"
#include "layers/cpu/norm_row.h"
#include "layers/cpu/philox.h"
#include "layers/cpu/rows.h"

typedef struct norm_bwd_job {
    const ly_norm_bwd *a;
    int64_t n_rows, n_cols;
    int n_tasks;
} norm_bwd_job;

/* dh = dskip + dnorm and, in the same pass, out again. */
static void dh_row(const norm_bwd_job *j, int64_t r)
{
    const ly_norm_bwd *a = j->a;
    int64_t n_cols = j->n_cols, at = r * n_cols;
    const float *dout = ly_cf(a->dout) + at, *h = ly_cf(a->h) + at, *gamma = ly_cf(a->gamma), *beta = ly_cf(a->beta);
    const float *dskip = mc_tensor_present(a->dskip) ? ly_cf(a->dskip) + at : NULL;
    float *dh = ly_f(a->dh) + at, *out = mc_tensor_present(a->out) ? ly_f(a->out) + at : NULL;
    ly_i_norm_grad g = ly_i_norm_grad_of(dout, h, ly_cf(a->stats) + 2 * r, gamma, a->one_plus_gamma, a->kind, n_cols);
    for (int64_t c = 0; c < n_cols; c += LY_LANES) {
        int64_t n = n_cols - c;
        ly_vf d =
            ly_i_norm_dx(&g, ly_vload_n(dout + c, n), ly_vload_n(h + c, n), ly_i_gain(gamma + c, n, a->one_plus_gamma));
        if (dskip) {
            d = ly_vadd(d, ly_vload_n(dskip + c, n));
        }
        ly_vstore_n(dh + c, d, n);
    }
    if (out) {
        ly_i_norm_out(out, h, g.mean, g.rstd, gamma, a->one_plus_gamma, beta, n_cols);
    }
}

/* dy = dropout mask . dh */
static void dy_row(const norm_bwd_job *j, const float *dh, int64_t r, uint32_t *words_buf)
{
    const ly_norm_bwd *a = j->a;
    int64_t n_cols = j->n_cols, at = r * n_cols;
    float *dy = ly_f(a->dy) + at;
    if (!(a->dropout.p > 0.0f)) {
        if (dy != dh + at) {
            memcpy(dy, dh + at, (size_t)n_cols * sizeof *dy);
        }
        return;
    }
    const uint32_t *words = ly_dropout_row(words_buf, &a->dropout, r, n_cols);
    ly_vi threshold = ly_viset1((int32_t)mc_rng_threshold(a->dropout.p));
    ly_vf scale = ly_vset1(1.0f / (1.0f - a->dropout.p));
    for (int64_t c = 0; c < n_cols; c += LY_LANES) {
        ly_vf d = ly_vload_n(dh + at + c, n_cols - c);
        ly_vstore_n(dy + c, ly_vmul(ly_vkeep(ly_dropout_mask(words + c, threshold), d), scale), n_cols - c);
    }
}

/* Where the gradient of h lies once the row pass is done: dh, or dskip itself where there is no norm and no dh. */
static const float *dh_of(const ly_norm_bwd *a)
{
    return mc_tensor_present(a->dh) ? ly_cf(a->dh) : ly_cf(a->dskip);
}

static void rows_task(void *arg, int task, int thread, void *scratch)
{
    const norm_bwd_job *j = arg;
    const ly_norm_bwd *a = j->a;
    long r0, r1;
    (void)thread;
    mc_pool_range((long)j->n_rows, j->n_tasks, task, 1, &r0, &r1);
    for (int64_t r = r0; r < r1; r++) {
        int64_t at = r * j->n_cols;
        if (mc_tensor_present(a->dout)) {
            dh_row(j, r);
        } else if (dh_of(a) != ly_cf(a->dskip)) {
            memcpy(ly_f(a->dh) + at, ly_cf(a->dskip) + at, (size_t)j->n_cols * sizeof(float));
        }
        if (mc_tensor_present(a->dy)) {
            dy_row(j, dh_of(a), r, scratch);
        }
    }
}

/* dgamma, dbeta += one strip of columns over all rows. */
static void gamma_strip(const norm_bwd_job *j, int64_t c, int64_t n)
{
    const ly_norm_bwd *a = j->a;
    const float *stats = ly_cf(a->stats);
    ly_cols dgamma = ly_cols_zero(), dbeta = ly_cols_zero();
    for (int64_t r0 = 0; r0 < j->n_rows; r0 += LY_COL_ROWS) {
        int64_t r1 = r0 + LY_COL_ROWS < j->n_rows ? r0 + LY_COL_ROWS : j->n_rows;
        ly_cols pg = ly_cols_zero(), pb = ly_cols_zero();
        for (int64_t r = r0; r < r1; r++) {
            ly_cols d = ly_cols_load(ly_cf(a->dout) + r * j->n_cols + c, n);
            ly_cols h = ly_cols_load(ly_cf(a->h) + r * j->n_cols + c, n);
            for (int v = 0; v < 2; v++) {
                pg.v[v] = ly_vfma(d.v[v], ly_i_xhat(h.v[v], stats[2 * r], stats[2 * r + 1]), pg.v[v]);
                pb.v[v] = ly_vadd(pb.v[v], d.v[v]);
            }
        }
        dgamma = ly_cols_add(dgamma, pg);
        dbeta = ly_cols_add(dbeta, pb);
    }
    if (mc_tensor_present(a->dgamma)) {
        ly_cols_accumulate(ly_f(a->dgamma) + c, dgamma, n);
    }
    if (mc_tensor_present(a->dbeta)) {
        ly_cols_accumulate(ly_f(a->dbeta) + c, dbeta, n);
    }
}

static void y_bias_strip(const norm_bwd_job *j, int64_t c, int64_t n)
{
    const ly_norm_bwd *a = j->a;
    const float *dy = mc_tensor_present(a->dy) ? ly_cf(a->dy) : dh_of(a);
    ly_cols total = ly_cols_zero();
    for (int64_t r0 = 0; r0 < j->n_rows; r0 += LY_COL_ROWS) {
        int64_t r1 = r0 + LY_COL_ROWS < j->n_rows ? r0 + LY_COL_ROWS : j->n_rows;
        ly_cols part = ly_cols_zero();
        for (int64_t r = r0; r < r1; r++) {
            part = ly_cols_add(part, ly_cols_load(dy + r * j->n_cols + c, n));
        }
        total = ly_cols_add(total, part);
    }
    ly_cols_accumulate(ly_f(a->dy_bias) + c, total, n);
}

static void columns_task(void *arg, int task, int thread, void *scratch)
{
    const norm_bwd_job *j = arg;
    const ly_norm_bwd *a = j->a;
    bool gains = mc_tensor_present(a->dgamma) || mc_tensor_present(a->dbeta);
    long c0, c1;
    (void)thread;
    (void)scratch;
    mc_pool_range((long)j->n_cols, j->n_tasks, task, LY_COL_UNIT, &c0, &c1);
    for (int64_t c = c0; c < c1; c += LY_COL_UNIT) {
        if (gains) {
            gamma_strip(j, c, c1 - c);
        }
        if (mc_tensor_present(a->dy_bias)) {
            y_bias_strip(j, c, c1 - c);
        }
    }
}

static void check_shapes(const ly_ctx *cx, const ly_norm_bwd *a, int64_t n_rows, int64_t n_cols)
{
    bool norm = mc_tensor_present(a->dout);
    MC_ASSERT(norm || mc_tensor_present(a->dskip));
    MC_ASSERT(!norm || (ly_is_2d(a->dout, n_rows, n_cols) && ly_is_2d(a->h, n_rows, n_cols) &&
                        ly_is_2d(a->stats, n_rows, 2) && ly_is_1d(a->gamma, n_cols) && mc_tensor_present(a->dh)));
    MC_ASSERT(norm || !(mc_tensor_present(a->out) || mc_tensor_present(a->dgamma) || mc_tensor_present(a->dbeta)));
    MC_ASSERT(ly_absent_or_2d(a->dskip, n_rows, n_cols) && ly_absent_or_2d(a->dh, n_rows, n_cols) &&
              ly_absent_or_2d(a->dy, n_rows, n_cols) && ly_absent_or_2d(a->out, n_rows, n_cols));
    MC_ASSERT(ly_absent_or_1d(a->beta, n_cols) && ly_absent_or_1d(a->dgamma, n_cols) &&
              ly_absent_or_1d(a->dbeta, n_cols) && ly_absent_or_1d(a->dy_bias, n_cols));
    MC_ASSERT(!(a->dropout.p > 0.0f) || mc_tensor_present(a->dy));
    MC_ASSERT(ly_dropout_fits(cx->pool, &a->dropout, n_cols));
}

mc_status LY_CPU(norm_bwd)(const ly_ctx *cx, const ly_norm_bwd *a)
{
    LY_TRY_F32("norm_bwd", a->dout);
    LY_TRY_F32("norm_bwd", a->h);
    LY_TRY_F32("norm_bwd", a->stats);
    LY_TRY_F32("norm_bwd", a->gamma);
    LY_TRY_F32("norm_bwd", a->beta);
    LY_TRY_F32("norm_bwd", a->dskip);
    LY_TRY_F32("norm_bwd", a->dh);
    LY_TRY_F32("norm_bwd", a->dy);
    LY_TRY_F32("norm_bwd", a->out);
    LY_TRY_F32("norm_bwd", a->dgamma);
    LY_TRY_F32("norm_bwd", a->dbeta);
    LY_TRY_F32("norm_bwd", a->dy_bias);
    mc_tensor shape = mc_tensor_present(a->dout) ? a->dout : a->dskip;
    MC_ASSERT(shape.n_dims == 2);
    int64_t n_rows = shape.dims[0], n_cols = shape.dims[1];
    check_shapes(cx, a, n_rows, n_cols);
    norm_bwd_job job = {a, n_rows, n_cols, ly_tasks(n_rows, 6 * n_cols)};
    if (mc_tensor_present(a->dout) || mc_tensor_present(a->dy) || mc_tensor_present(a->dh)) {
        mc_pool_run(cx->pool, job.n_tasks, rows_task, &job);
    }
    if (mc_tensor_present(a->dgamma) || mc_tensor_present(a->dbeta) || mc_tensor_present(a->dy_bias)) {
        job.n_tasks = ly_col_tasks(n_cols);
        mc_pool_run(cx->pool, job.n_tasks, columns_task, &job);
    }
    return MC_OK;
}
