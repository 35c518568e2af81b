/* Token and position embeddings on the CPU. */
#include "layers/cpu/isa.h"
#include "layers/cpu/philox.h"
#include "layers/cpu/rows.h"

typedef struct table_job {
    mc_tensor tokens, table, rows; /* table (Vl,C): read or dtable; rows (R,C): out or dout */
    int64_t vocab0;
    int n_tasks;
} table_job;

/* Local row of the table for token r, or -1 where another rank holds it. */
static int64_t local_token(const table_job *j, int64_t r)
{
    int64_t t = (int64_t)((const int32_t *)j->tokens.data)[r] - j->vocab0;
    return t >= 0 && t < j->table.dims[0] ? t : -1;
}

static void table_job_check(const table_job *j)
{
    MC_ASSERT(j->table.n_dims == 2 && j->rows.n_dims == 2);
    MC_ASSERT(mc_tensor_contiguous(j->table) && j->rows.dims[1] == j->table.dims[1] && mc_tensor_contiguous(j->rows));
    MC_ASSERT(ly_is_1d(j->tokens, j->rows.dims[0]));
}

static void embedding_fwd_task(void *arg, int task, int thread, void *scratch)
{
    const table_job *j = arg;
    size_t row_bytes = (size_t)j->table.dims[1] * mc_dtype_bytes(j->table.dtype);
    long r0, r1;
    (void)thread;
    (void)scratch;
    mc_pool_range((long)j->rows.dims[0], j->n_tasks, task, 1, &r0, &r1);
    for (int64_t r = r0; r < r1; r++) {
        int64_t t = local_token(j, r);
        char *out = (char *)j->rows.data + (size_t)r * row_bytes;
        if (t < 0) {
            memset(out, 0, row_bytes);
        } else {
            memcpy(out, (const char *)j->table.data + (size_t)t * row_bytes, row_bytes);
        }
    }
}

mc_status LY_CPU(embedding_fwd)(const ly_ctx *cx, const ly_embedding_fwd *a)
{
    LY_TRY_DTYPE("embedding_fwd", a->tokens, MC_I32);
    LY_TRY_TYPE("embedding_fwd", a->table);
    LY_TRY_DTYPE("embedding_fwd", a->out, a->table.dtype);
    table_job job = {.tokens = a->tokens, .table = a->table, .rows = a->out, .vocab0 = a->vocab0};
    table_job_check(&job);
    job.n_tasks = ly_tasks(a->out.dims[0], 2 * a->out.dims[1]);
    mc_pool_run(cx->pool, job.n_tasks, embedding_fwd_task, &job);
    return MC_OK;
}

LY_INLINE void add_row(mc_dtype type, float *dtable, const void *dout, int64_t begin, int64_t end)
{
    for (int64_t c = begin; c < end; c += LY_LANES) {
        int64_t n = end - c;
        ly_vstore_n(dtable + c, ly_vadd(ly_vload_n(dtable + c, n), ly_tload(type, ly_elem(type, dout, c), n)), n);
    }
}

/* A task owns a range of columns and walks all rows in order: every table row is summed in row order by one thread. */
static void embedding_bwd_task(void *arg, int task, int thread, void *scratch)
{
    const table_job *j = arg;
    int64_t n_cols = j->rows.dims[1];
    long c0, c1;
    (void)thread;
    (void)scratch;
    mc_pool_range((long)n_cols, j->n_tasks, task, LY_LANES, &c0, &c1);
    for (int64_t r = 0; r < j->rows.dims[0]; r++) {
        int64_t t = local_token(j, r);
        if (t < 0) {
            continue;
        }
        const void *dout = ly_elem(j->rows.dtype, j->rows.data, r * n_cols);
        LY_FOR_TYPE(j->rows.dtype, T, add_row(T, ly_f(j->table) + t * n_cols, dout, c0, c1));
    }
}

mc_status LY_CPU(embedding_bwd)(const ly_ctx *cx, const ly_embedding_bwd *a)
{
    LY_TRY_DTYPE("embedding_bwd", a->tokens, MC_I32);
    LY_TRY_TYPE("embedding_bwd", a->dout);
    LY_TRY_F32("embedding_bwd", a->dtable);
    table_job job = {.tokens = a->tokens, .table = a->dtable, .rows = a->dout, .vocab0 = a->vocab0};
    table_job_check(&job);
    /* At least 64 columns a task, so that the token list is not read too often for each byte added. */
    job.n_tasks = ly_tasks((a->dout.dims[1] + 63) / 64, 64 * a->dout.dims[0]);
    mc_pool_run(cx->pool, job.n_tasks, embedding_bwd_task, &job);
    return MC_OK;
}

typedef struct finish_job {
    const ly_embed_finish_fwd *fwd;
    const ly_embed_finish_bwd *bwd;
    int n_tasks;
} finish_job;

/* Scale of a kept element, and the threshold that keeps it. */
typedef struct finish_mask {
    ly_vi threshold;
    ly_vf scale;
} finish_mask;

static finish_mask mask_of(const ly_dropout *d)
{
    return (finish_mask){ly_viset1((int32_t)mc_rng_threshold(d->p)),
                         ly_vset1(d->p > 0.0f ? 1.0f / (1.0f - d->p) : 1.0f)};
}

/* One row: words are its dropout words, NULL where nothing is dropped; position may be NULL. */
LY_INLINE void finish_row(mc_dtype type, const void *x, const void *position, void *h, const uint32_t *words,
                          finish_mask mask, int64_t n_cols)
{
    for (int64_t c = 0; c < n_cols; c += LY_LANES) {
        ly_vf v = ly_tload(type, ly_elem(type, x, c), n_cols - c);
        if (position) {
            v = ly_vadd(v, ly_tload(type, ly_elem(type, position, c), n_cols - c));
        }
        if (words) {
            v = ly_vmul(ly_vkeep(ly_dropout_mask(words + c, mask.threshold), v), mask.scale);
        }
        ly_tstore(type, ly_elem_out(type, h, c), v, n_cols - c);
    }
}

static void finish_fwd_task(void *arg, int task, int thread, void *scratch)
{
    const finish_job *j = arg;
    const ly_embed_finish_fwd *a = j->fwd;
    const ly_dropout *d = &a->dropout;
    int64_t n_cols = a->x.dims[1];
    mc_dtype type = a->x.dtype;
    finish_mask mask = mask_of(d);
    long r0, r1;
    (void)thread;
    mc_pool_range((long)a->x.dims[0], j->n_tasks, task, 1, &r0, &r1);
    for (int64_t r = r0; r < r1; r++) {
        const void *x = ly_elem(type, a->x.data, r * n_cols);
        const void *position = ly_elem(type, a->positions.data, (d->row0 + r) % d->seq_len * n_cols);
        const uint32_t *words = d->p > 0.0f ? ly_dropout_row(scratch, d, r, n_cols) : NULL;
        void *h = ly_elem_out(type, a->h.data, r * n_cols);
        LY_FOR_TYPE(type, T, finish_row(T, x, position, h, words, mask, n_cols));
    }
}

/* Highest position that rows of a shard reach, plus 1. */
static int64_t positions_end(const ly_dropout *d, int64_t n_rows)
{
    int64_t first = d->row0 % d->seq_len;
    return first + n_rows < d->seq_len ? first + n_rows : d->seq_len;
}

mc_status LY_CPU(embed_finish_fwd)(const ly_ctx *cx, const ly_embed_finish_fwd *a)
{
    LY_TRY_TYPE("embed_finish_fwd", a->x);
    LY_TRY_DTYPE("embed_finish_fwd", a->positions, a->x.dtype);
    LY_TRY_DTYPE("embed_finish_fwd", a->h, a->x.dtype);
    MC_ASSERT(a->x.n_dims == 2 && a->dropout.seq_len > 0 && a->dropout.row0 >= 0);
    int64_t n_rows = a->x.dims[0], n_cols = a->x.dims[1];
    MC_ASSERT(ly_is_2d(a->x, n_rows, n_cols) && ly_is_2d(a->h, n_rows, n_cols));
    MC_ASSERT(!mc_tensor_present(a->positions) || (a->positions.dims[0] >= positions_end(&a->dropout, n_rows) &&
                                                   ly_is_2d(a->positions, a->positions.dims[0], n_cols)));
    MC_ASSERT(ly_dropout_fits(cx->pool, &a->dropout, n_cols));
    finish_job job = {.fwd = a, .n_tasks = ly_tasks(n_rows, 3 * n_cols)};
    mc_pool_run(cx->pool, job.n_tasks, finish_fwd_task, &job);
    return MC_OK;
}

/* One row; the sum over rows takes dx before it is rounded. dposition may be NULL. */
LY_INLINE void finish_back_row(mc_dtype type, const void *dh, void *dx, float *dposition, const uint32_t *words,
                               finish_mask mask, int64_t n_cols)
{
    for (int64_t c = 0; c < n_cols; c += LY_LANES) {
        int64_t n = n_cols - c;
        ly_vf v = ly_tload(type, ly_elem(type, dh, c), n);
        if (words) {
            v = ly_vmul(ly_vkeep(ly_dropout_mask(words + c, mask.threshold), v), mask.scale);
        }
        ly_tstore(type, ly_elem_out(type, dx, c), v, n);
        if (dposition) {
            ly_vstore_n(dposition + c, ly_vadd(ly_vload_n(dposition + c, n), v), n);
        }
    }
}

/* A task owns a range of positions, and with them every row at these positions. */
static void finish_bwd_task(void *arg, int task, int thread, void *scratch)
{
    const finish_job *j = arg;
    const ly_embed_finish_bwd *a = j->bwd;
    const ly_dropout *d = &a->dropout;
    int64_t n_rows = a->dh.dims[0], n_cols = a->dh.dims[1], first = d->row0 % d->seq_len;
    mc_dtype type = a->dh.dtype;
    finish_mask mask = mask_of(d);
    long t0, t1;
    (void)thread;
    mc_pool_range((long)d->seq_len, j->n_tasks, task, 1, &t0, &t1);
    for (int64_t t = t0; t < t1; t++) {
        int64_t r0 = t >= first ? t - first : t - first + d->seq_len; /* first local row at position t */
        float *dposition = mc_tensor_present(a->dpositions) ? ly_f(a->dpositions) + t * n_cols : NULL;
        for (int64_t r = r0; r < n_rows; r += d->seq_len) {
            const void *dh = ly_elem(type, a->dh.data, r * n_cols);
            void *dx = ly_elem_out(type, a->dx.data, r * n_cols);
            const uint32_t *words = d->p > 0.0f ? ly_dropout_row(scratch, d, r, n_cols) : NULL;
            LY_FOR_TYPE(type, T, finish_back_row(T, dh, dx, dposition, words, mask, n_cols));
        }
    }
}

mc_status LY_CPU(embed_finish_bwd)(const ly_ctx *cx, const ly_embed_finish_bwd *a)
{
    LY_TRY_TYPE("embed_finish_bwd", a->dh);
    LY_TRY_DTYPE("embed_finish_bwd", a->dx, a->dh.dtype);
    LY_TRY_F32("embed_finish_bwd", a->dpositions);
    MC_ASSERT(a->dh.n_dims == 2 && a->dropout.seq_len > 0 && a->dropout.row0 >= 0);
    int64_t n_rows = a->dh.dims[0], n_cols = a->dh.dims[1];
    MC_ASSERT(ly_is_2d(a->dh, n_rows, n_cols) && ly_is_2d(a->dx, n_rows, n_cols));
    MC_ASSERT(!mc_tensor_present(a->dpositions) || (a->dpositions.dims[0] >= positions_end(&a->dropout, n_rows) &&
                                                    ly_is_2d(a->dpositions, a->dpositions.dims[0], n_cols)));
    MC_ASSERT(ly_dropout_fits(cx->pool, &a->dropout, n_cols));
    finish_job job = {.bwd = a, .n_tasks = ly_tasks(a->dropout.seq_len, 3 * n_cols)};
    mc_pool_run(cx->pool, job.n_tasks, finish_bwd_task, &job);
    return MC_OK;
}
