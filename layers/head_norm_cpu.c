/* Norm of each head of queries or keys, forward and backward. */
#include "layers/cpu/isa.h"
#include "layers/cpu/norm_row.h"
#include "layers/cpu/rows.h"

/* Head number i = (row * G + group) * r + j of a (R, G, r, H) view. */
static int64_t head_at(mc_tensor t, int64_t i)
{
    int64_t n_j = t.dims[2], n_g = t.dims[1];
    return i / (n_j * n_g) * t.strides[0] + i / n_j % n_g * t.strides[1] + i % n_j * t.strides[2];
}

static int64_t n_heads(mc_tensor t)
{
    return t.dims[0] * t.dims[1] * t.dims[2];
}

static int is_heads(mc_tensor t)
{
    return t.n_dims == 4 && (t.dims[3] <= 1 || t.strides[3] == 1);
}

typedef struct head_job {
    const ly_head_norm_fwd *fwd;
    const ly_head_norm_bwd *bwd;
    int n_tasks;
} head_job;

LY_INLINE void head_fwd_rows(mc_dtype type, const ly_head_norm_fwd *a, int64_t i0, int64_t i1)
{
    int64_t n_cols = a->x.dims[3];
    for (int64_t i = i0; i < i1; i++) {
        const void *x = ly_elem(type, a->x.data, head_at(a->x, i));
        float *stats = ly_f(a->stats) + 2 * i;
        ly_i_norm_stats(type, x, n_cols, a->kind, a->eps, &stats[0], &stats[1]);
        ly_i_norm_out(type, ly_elem_out(type, a->out.data, head_at(a->out, i)), x, stats[0], stats[1], a->gamma.data,
                      a->one_plus_gamma, a->beta.data, n_cols);
    }
}

static void head_fwd_task(void *arg, int task, int thread, void *scratch)
{
    const head_job *job = arg;
    long i0, i1;
    (void)thread;
    (void)scratch;
    mc_pool_range((long)n_heads(job->fwd->x), job->n_tasks, task, 1, &i0, &i1);
    LY_FOR_TYPE(job->fwd->x.dtype, T, head_fwd_rows(T, job->fwd, i0, i1));
}

mc_status LY_CPU(head_norm_fwd)(const ly_ctx *cx, const ly_head_norm_fwd *a)
{
    LY_TRY_TYPE("head_norm_fwd", a->x);
    LY_TRY_DTYPE("head_norm_fwd", a->gamma, a->x.dtype);
    LY_TRY_DTYPE("head_norm_fwd", a->beta, a->x.dtype);
    LY_TRY_DTYPE("head_norm_fwd", a->out, a->x.dtype);
    LY_TRY_F32("head_norm_fwd", a->stats);
    MC_ASSERT(is_heads(a->x) && is_heads(a->out) && mc_tensor_same_shape(a->x, a->out));
    int64_t n_cols = a->x.dims[3];
    MC_ASSERT(ly_is_1d(a->gamma, n_cols) && ly_absent_or_1d(a->beta, n_cols) && ly_is_2d(a->stats, n_heads(a->x), 2));
    head_job job = {.fwd = a, .n_tasks = ly_tasks(n_heads(a->x), 2 * n_cols)};
    mc_pool_run(cx->pool, job.n_tasks, head_fwd_task, &job);
    return MC_OK;
}

LY_INLINE void head_bwd_rows(mc_dtype type, const ly_head_norm_bwd *a, int64_t i0, int64_t i1)
{
    const void *gamma = a->gamma.data;
    int64_t n_cols = a->x.dims[3];
    for (int64_t i = i0; i < i1; i++) {
        const void *x = ly_elem(type, a->x.data, head_at(a->x, i));
        const void *dout = ly_elem(type, a->dout.data, head_at(a->dout, i));
        void *dx = ly_elem_out(type, a->dx.data, head_at(a->dx, i));
        ly_i_norm_grad g =
            ly_i_norm_grad_of(type, dout, x, ly_cf(a->stats) + 2 * i, gamma, a->one_plus_gamma, a->kind, n_cols);
        for (int64_t c = 0; c < n_cols; c += LY_LANES) {
            int64_t n = n_cols - c;
            ly_vf d =
                ly_i_norm_dx(&g, ly_tload(type, ly_elem(type, dout, c), n), ly_tload(type, ly_elem(type, x, c), n),
                             ly_i_gain(type, gamma, c, n, a->one_plus_gamma));
            ly_tstore(type, ly_elem_out(type, dx, c), d, n);
        }
    }
}

static void head_bwd_task(void *arg, int task, int thread, void *scratch)
{
    const head_job *job = arg;
    long i0, i1;
    (void)thread;
    (void)scratch;
    mc_pool_range((long)n_heads(job->bwd->x), job->n_tasks, task, 1, &i0, &i1);
    LY_FOR_TYPE(job->bwd->x.dtype, T, head_bwd_rows(T, job->bwd, i0, i1));
}

/* dgamma, dbeta of a strip of columns: heads in order, in blocks of LY_COL_ROWS. */
LY_INLINE void head_strip(mc_dtype type, const ly_head_norm_bwd *a, int64_t c, int64_t n)
{
    const float *stats = ly_cf(a->stats);
    int64_t total = n_heads(a->x);
    ly_cols dgamma = ly_cols_zero(), dbeta = ly_cols_zero();
    for (int64_t i0 = 0; i0 < total; i0 += LY_COL_ROWS) {
        int64_t i1 = i0 + LY_COL_ROWS < total ? i0 + LY_COL_ROWS : total;
        ly_cols pg = ly_cols_zero(), pb = ly_cols_zero();
        for (int64_t i = i0; i < i1; i++) {
            ly_cols d = ly_cols_tload(type, ly_elem(type, a->dout.data, head_at(a->dout, i) + c), n);
            ly_cols x = ly_cols_tload(type, ly_elem(type, a->x.data, head_at(a->x, i) + c), n);
            for (int v = 0; v < 2; v++) {
                pg.v[v] = ly_vfma(d.v[v], ly_i_xhat(x.v[v], stats[2 * i], stats[2 * i + 1]), pg.v[v]);
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

static void head_columns_task(void *arg, int task, int thread, void *scratch)
{
    const head_job *job = arg;
    int64_t c = (int64_t)task * LY_COL_UNIT, left = job->bwd->x.dims[3] - c;
    int64_t n = left < LY_COL_UNIT ? left : LY_COL_UNIT;
    (void)thread;
    (void)scratch;
    LY_FOR_TYPE(job->bwd->x.dtype, T, head_strip(T, job->bwd, c, n));
}

mc_status LY_CPU(head_norm_bwd)(const ly_ctx *cx, const ly_head_norm_bwd *a)
{
    LY_TRY_DTYPE("head_norm_bwd", a->dout, a->x.dtype);
    LY_TRY_TYPE("head_norm_bwd", a->x);
    LY_TRY_F32("head_norm_bwd", a->stats);
    LY_TRY_DTYPE("head_norm_bwd", a->gamma, a->x.dtype);
    LY_TRY_DTYPE("head_norm_bwd", a->dx, a->x.dtype);
    LY_TRY_F32("head_norm_bwd", a->dgamma);
    LY_TRY_F32("head_norm_bwd", a->dbeta);
    MC_ASSERT(is_heads(a->x) && is_heads(a->dout) && is_heads(a->dx));
    MC_ASSERT(mc_tensor_same_shape(a->x, a->dout) && mc_tensor_same_shape(a->x, a->dx));
    int64_t n_cols = a->x.dims[3];
    MC_ASSERT(ly_is_1d(a->gamma, n_cols) && ly_absent_or_1d(a->dgamma, n_cols) && ly_absent_or_1d(a->dbeta, n_cols) &&
              ly_is_2d(a->stats, n_heads(a->x), 2));
    head_job job = {.bwd = a, .n_tasks = ly_tasks(n_heads(a->x), 3 * n_cols)};
    /* Sums first: dx may overwrite dout. */
    if (mc_tensor_present(a->dgamma) || mc_tensor_present(a->dbeta)) {
        mc_pool_run(cx->pool, (int)((n_cols + LY_COL_UNIT - 1) / LY_COL_UNIT), head_columns_task, &job);
    }
    mc_pool_run(cx->pool, job.n_tasks, head_bwd_task, &job);
    return MC_OK;
}
