/* Backward of the fused bias + dropout + residual + norm: one pass over blocks of rows, each of which leaves its column
 * sums in the threads' scratch; then these are added in the order of rows, so that sums do not depend on how blocks are
 * spread over threads. Sums take what was computed, before it is rounded to T. */
#include "layers/cpu/isa.h"
#include "layers/cpu/norm_row.h"
#include "layers/cpu/philox.h"
#include "layers/cpu/rows.h"

typedef enum { DGAMMA, DBETA, DY_BIAS, N_SUMS } sum_kind;

/* Blocks of LY_COL_ROWS rows go in rounds of as many as the scratch has slots for. A slot holds N_SUMS rows of n_cols
 * floats; slot 0 is the sum of all earlier rounds. */
typedef struct norm_bwd_job {
    const ly_norm_bwd *a;
    int64_t n_rows, n_cols;
    bool gains, bias;   /* dgamma or dbeta, dy_bias are wanted */
    bool last;          /* the round under way is the last */
    int64_t sum_floats; /* of one sum in a slot */
    int64_t slots;      /* in each thread's scratch */
    float *first_slot;  /* thread 0's */
    int64_t thread_floats;
    int64_t block0, n_blocks; /* of the round */
    int n_tasks;
} norm_bwd_job;

static float *slot_of(const norm_bwd_job *j, int64_t slot)
{
    return j->first_slot + slot / j->slots * j->thread_floats + slot % j->slots * N_SUMS * j->sum_floats;
}

/* One row: dh = dskip + dnorm, dy = dropout mask . dh, out again, and the row's part of the sums. `words` is NULL
 * without dropout. */
LY_INLINE void bwd_row(mc_dtype type, const norm_bwd_job *j, int64_t r, const uint32_t *words, float *sums)
{
    const ly_norm_bwd *a = j->a;
    int64_t n_cols = j->n_cols, at = r * n_cols;
    const void *dout = ly_elem(type, a->dout.data, at), *h = ly_elem(type, a->h.data, at), *gamma = a->gamma.data;
    const void *dskip = ly_elem(type, a->dskip.data, at), *beta = a->beta.data;
    void *dh = a->dh.data == a->dskip.data && !dout ? NULL : ly_elem_out(type, a->dh.data, at);
    void *dy = ly_elem_out(type, a->dy.data, at), *out = ly_elem_out(type, a->out.data, at);
    float *dgamma = j->gains ? sums + DGAMMA * j->sum_floats : NULL, *dbeta = sums + DBETA * j->sum_floats;
    float *dy_bias = j->bias ? sums + DY_BIAS * j->sum_floats : NULL;
    bool one_plus = a->one_plus_gamma;
    ly_vi threshold = ly_viset1((int32_t)mc_rng_threshold(a->dropout.p));
    ly_vf scale = ly_vset1(1.0f / (1.0f - a->dropout.p));
    ly_i_norm_grad g = {0};
    if (dout) {
        g = ly_i_norm_grad_of(type, dout, h, ly_cf(a->stats) + 2 * r, gamma, one_plus, a->kind, n_cols);
    }
    for (int64_t c = 0; c < n_cols; c += LY_LANES) {
        int64_t n = n_cols - c;
        ly_vf d = ly_vzero();
        if (dout) {
            ly_vf up = ly_tload(type, ly_elem(type, dout, c), n), x = ly_tload(type, ly_elem(type, h, c), n);
            ly_vf gain = ly_i_gain(type, gamma, c, n, one_plus), xhat = ly_i_xhat(x, g.mean, g.rstd);
            d = ly_i_norm_dx(&g, up, x, gain);
            if (out) {
                ly_vf b = beta ? ly_tload(type, ly_elem(type, beta, c), n) : ly_vzero();
                ly_tstore(type, ly_elem_out(type, out, c), ly_vfma(xhat, gain, b), n);
            }
            if (dgamma) {
                ly_vstore(dgamma + c, ly_vfma(up, xhat, ly_vload(dgamma + c)));
                ly_vstore(dbeta + c, ly_vadd(ly_vload(dbeta + c), up));
            }
            d = dskip ? ly_vadd(d, ly_tload(type, ly_elem(type, dskip, c), n)) : d;
        } else {
            d = ly_tload(type, ly_elem(type, dskip, c), n);
        }
        if (dh) {
            ly_tstore(type, ly_elem_out(type, dh, c), d, n);
        }
        if (words) {
            d = ly_vmul(ly_vkeep(ly_dropout_mask(words + c, threshold), d), scale);
        }
        if (dy) {
            ly_tstore(type, ly_elem_out(type, dy, c), d, n);
        }
        if (dy_bias) {
            ly_vstore(dy_bias + c, ly_vadd(ly_vload(dy_bias + c), d));
        }
    }
}

/* One block of rows. */
static void rows_task(void *arg, int task, int thread, void *scratch)
{
    const norm_bwd_job *j = arg;
    const ly_norm_bwd *a = j->a;
    int64_t r0 = (j->block0 + task) * LY_COL_ROWS, r1 = r0 + LY_COL_ROWS < j->n_rows ? r0 + LY_COL_ROWS : j->n_rows;
    float *sums = j->gains || j->bias ? slot_of(j, 1 + task) : NULL;
    (void)thread;
    if (sums) {
        memset(sums, 0, (size_t)(N_SUMS * j->sum_floats) * sizeof *sums);
    }
    for (int64_t r = r0; r < r1; r++) {
        const uint32_t *words = a->dropout.p > 0.0f ? ly_dropout_row(scratch, &a->dropout, r, j->n_cols) : NULL;
        LY_FOR_TYPE(mc_tensor_present(a->dout) ? a->dout.dtype : a->dskip.dtype, T, bwd_row(T, j, r, words, sums));
    }
}

/* One kind of sum of one strip of columns over the round's blocks; into *target at the end. */
static void add_strip(const norm_bwd_job *j, sum_kind kind, mc_tensor target, int64_t c, int64_t n)
{
    int64_t at = kind * j->sum_floats + c;
    if (!mc_tensor_present(target)) {
        return;
    }
    ly_cols total = j->block0 > 0 ? ly_cols_load(slot_of(j, 0) + at, n) : ly_cols_zero();
    for (int64_t b = 0; b < j->n_blocks; b++) {
        total = ly_cols_add(total, ly_cols_load(slot_of(j, 1 + b) + at, n));
    }
    if (j->last) {
        ly_cols_accumulate(ly_f(target) + c, total, n);
        return;
    }
    ly_vstore_n(slot_of(j, 0) + at, total.v[0], n);
    if (n > LY_LANES) {
        ly_vstore_n(slot_of(j, 0) + at + LY_LANES, total.v[1], n - LY_LANES);
    }
}

static void columns_task(void *arg, int task, int thread, void *scratch)
{
    const norm_bwd_job *j = arg;
    const ly_norm_bwd *a = j->a;
    long c0, c1;
    (void)thread;
    (void)scratch;
    mc_pool_range((long)j->n_cols, j->n_tasks, task, LY_COL_UNIT, &c0, &c1);
    for (int64_t c = c0; c < c1; c += LY_COL_UNIT) {
        add_strip(j, DGAMMA, a->dgamma, c, c1 - c);
        add_strip(j, DBETA, a->dbeta, c, c1 - c);
        add_strip(j, DY_BIAS, a->dy_bias, c, c1 - c);
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

static mc_status check_types(const ly_norm_bwd *a, mc_dtype type)
{
    LY_TRY_TYPE("norm_bwd", a->dout);
    LY_TRY_TYPE("norm_bwd", a->dskip);
    LY_TRY_DTYPE("norm_bwd", a->h, type);
    LY_TRY_F32("norm_bwd", a->stats);
    LY_TRY_DTYPE("norm_bwd", a->gamma, type);
    LY_TRY_DTYPE("norm_bwd", a->beta, type);
    LY_TRY_DTYPE("norm_bwd", a->dskip, type);
    LY_TRY_DTYPE("norm_bwd", a->dh, type);
    LY_TRY_DTYPE("norm_bwd", a->dy, type);
    LY_TRY_DTYPE("norm_bwd", a->out, type);
    LY_TRY_F32("norm_bwd", a->dgamma);
    LY_TRY_F32("norm_bwd", a->dbeta);
    LY_TRY_F32("norm_bwd", a->dy_bias);
    return MC_OK;
}

/* Room for sums in the scratch, behind the words of a row's dropout. */
static mc_status make_slots(const ly_ctx *cx, norm_bwd_job *j)
{
    int64_t unit = LY_COL_UNIT, words = (j->n_cols + 2 * LY_PHILOX_STEP + unit - 1) / unit * unit;
    j->thread_floats = (int64_t)(mc_pool_scratch_bytes(cx->pool) / sizeof(float));
    j->sum_floats = (j->n_cols + unit - 1) / unit * unit;
    j->first_slot = (float *)mc_pool_scratch(cx->pool) + words;
    j->slots = (j->thread_floats - words) / (N_SUMS * j->sum_floats);
    if (j->slots < 2) {
        return MC_FAIL(MC_UNSUPPORTED, "operator norm_bwd: rows of %lld columns do not fit into a CPU thread's scratch",
                       (long long)j->n_cols);
    }
    return MC_OK;
}

mc_status LY_CPU(norm_bwd)(const ly_ctx *cx, const ly_norm_bwd *a)
{
    mc_tensor shape = mc_tensor_present(a->dout) ? a->dout : a->dskip;
    MC_TRY(check_types(a, shape.dtype));
    MC_ASSERT(shape.n_dims == 2);
    int64_t n_rows = shape.dims[0], n_cols = shape.dims[1], blocks = (n_rows + LY_COL_ROWS - 1) / LY_COL_ROWS;
    check_shapes(cx, a, n_rows, n_cols);
    norm_bwd_job job = {.a = a,
                        .n_rows = n_rows,
                        .n_cols = n_cols,
                        .gains = mc_tensor_present(a->dgamma) || mc_tensor_present(a->dbeta),
                        .bias = mc_tensor_present(a->dy_bias)};
    MC_TRY(make_slots(cx, &job));
    int64_t round = job.slots * mc_pool_threads(cx->pool) - 1;
    for (; job.block0 < blocks; job.block0 += round) {
        job.n_blocks = blocks - job.block0 < round ? blocks - job.block0 : round;
        job.last = job.block0 + job.n_blocks == blocks;
        mc_pool_run(cx->pool, (int)job.n_blocks, rows_task, &job);
        if (job.gains || job.bias) {
            job.n_tasks = ly_col_tasks(n_cols);
            mc_pool_run(cx->pool, job.n_tasks, columns_task, &job);
        }
    }
    return MC_OK;
}
