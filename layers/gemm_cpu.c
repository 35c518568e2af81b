/* Matrix product on the CPU: C is cut into tiles, and the pool hands them out (cpu/gemm_tile.h computes one). The bits
 * of an element do not depend on the cut, so it may follow the number of threads. */
#include "layers/cpu/gemm_tile.h"
#include "layers/cpu/isa.h"
#include "layers/cpu/rows.h"

/* Rows and columns of tiles other than the last are multiples of these, which LY_MR and LY_NR of every variant divide.
 */
enum { TILE_M = 12, TILE_N = 32 };
/* Threads whose packed rows of A are remembered from tile to tile. */
enum { MAX_HOLDERS = 128 };

typedef struct gemm_job {
    ly_i_tile all; /* whose m0 .. n1 span the product */
    int tiles_m, tiles_n, n_threads;
    int held[MAX_HOLDERS]; /* row of tiles whose A a thread's scratch has, or -1 */
} gemm_job;

static int64_t ceil_div(int64_t x, int64_t y)
{
    return (x + y - 1) / y;
}

/* Multiply-adds that packing an element costs: transposing, copying. */
static double pack_cost(ly_i_operand x)
{
    return x.k_contiguous ? 8.0 : 4.0;
}

/* What a cut into tm x tn tiles costs beside the products, as a share of them: packing, threads that idle while the
 * last tiles run, and (UNEVEN) threads that other work slows down, which many rounds of tiles even out. */
static double cut_cost(const gemm_job *j, int64_t tm, int64_t tn)
{
    const double UNEVEN = 0.06;
    const ly_i_tile *t = &j->all;
    int64_t n_threads = j->n_threads, rounds = ceil_div(tm * tn, n_threads);
    int64_t rows = ceil_div(ceil_div(t->m1, TILE_M), tm) * TILE_M;
    int64_t cols = ceil_div(ceil_div(t->n1, TILE_N), tn) * TILE_N;
    /* A thread keeps its rows of A from tile to tile where all of K fits. */
    int64_t packs = ly_i_a_fits(rows, t->k) && tn > n_threads ? n_threads : tn;
    double pack = pack_cost(t->a) * (double)packs / (double)t->n1 + pack_cost(t->b) * (double)tm / (double)t->m1;
    double idle = (double)(rounds * n_threads * rows * cols) / ((double)t->m1 * (double)t->n1) - 1.0;
    return pack + idle + UNEVEN / (double)rounds;
}

static void choose_tiles(gemm_job *j)
{
    enum { MORE = 16 }; /* rows of tiles beyond what the scratch asks for: finer cuts only repack */
    const ly_i_tile *t = &j->all;
    bool gathers = t->c_type != MC_F32 && t->k > ly_i_gemm_kc(t->k); /* sums over pieces of K, in the scratch */
    int64_t rows = LY_A_FLOATS / ly_i_panel(LY_MR, ly_i_gemm_kc(t->k)) * LY_MR / TILE_M * TILE_M;
    rows = gathers ? ly_i_min(rows, LY_SUM_ROWS) : rows;
    int64_t min_m = ceil_div(ceil_div(t->m1, TILE_M) * TILE_M, rows), max_m = ceil_div(t->m1, 2 * TILE_M);
    int64_t min_n = gathers ? ceil_div(t->n1, LY_SUM_COLS) : 1, max_n = ceil_div(t->n1, 2 * TILE_N);
    max_m = max_m < min_m ? min_m : ly_i_min(max_m, min_m + MORE);
    max_n = ly_i_min(max_n, 4 * j->n_threads);
    /* Below half a million multiply-adds, waking a thread costs more than it brings. */
    if (j->n_threads == 1 || (double)t->m1 * (double)t->n1 * (double)t->k < 524288.0) {
        max_m = min_m;
        max_n = min_n;
    }
    max_n = max_n < min_n ? min_n : max_n;
    double best = -1.0;
    for (int64_t tn = min_n; tn <= max_n; tn++) {
        for (int64_t tm = min_m; tm <= max_m; tm++) {
            double cost = cut_cost(j, tm, tn);
            if (best < 0.0 || cost < best) {
                best = cost;
                j->tiles_m = (int)tm;
                j->tiles_n = (int)tn;
            }
        }
    }
}

static void gemm_task(void *arg, int task, int thread, void *scratch)
{
    gemm_job *j = arg;
    ly_i_tile t = j->all;
    int row = task / j->tiles_n;
    long m0, m1, n0, n1;
    mc_pool_range((long)t.m1, j->tiles_m, row, TILE_M, &m0, &m1);
    mc_pool_range((long)t.n1, j->tiles_n, task % j->tiles_n, TILE_N, &n0, &n1);
    t.m0 = m0;
    t.m1 = m1;
    t.n0 = n0;
    t.n1 = n1;
    if (m0 < m1 && n0 < n1) {
        bool known = thread < MAX_HOLDERS, held = known && j->held[thread] == row;
        held = ly_i_gemm_tile(&t, held, scratch);
        if (known) {
            j->held[thread] = held ? row : -1;
        }
    }
}

/* K = 0: c = beta c + bias. */
static void gemm_empty(const gemm_job *j)
{
    const ly_i_tile *t = &j->all;
    for (int64_t i = 0; i < t->m1; i++) {
        for (int64_t n = 0; n < t->n1; n += LY_LANES) {
            void *c = ly_elem_out(t->c_type, t->c, i * t->ldc + n);
            ly_vf v = t->add ? ly_tload(t->c_type, c, t->n1 - n) : ly_vzero();
            if (t->bias) {
                v = ly_vadd(v, ly_tload(t->b.type, ly_elem(t->b.type, t->bias, n), t->n1 - n));
            }
            ly_tstore(t->c_type, c, v, t->n1 - n);
        }
    }
}

static bool is_matrix(mc_tensor t)
{
    return t.n_dims == 2 && (t.dims[1] <= 1 || t.strides[1] == 1) && (t.dims[0] <= 1 || t.strides[0] >= t.dims[1]);
}

mc_status LY_CPU(gemm)(const ly_ctx *cx, const ly_gemm *a)
{
    LY_TRY_TYPE("gemm", a->a);
    LY_TRY_DTYPE("gemm", a->b, a->a.dtype);
    LY_TRY_DTYPE("gemm", a->bias, a->a.dtype);
    if (a->c.dtype != MC_F32 || a->beta != 0.0f) {
        LY_TRY_DTYPE("gemm", a->c, a->beta == 0.0f ? a->a.dtype : MC_F32);
    }
    MC_ASSERT(is_matrix(a->a) && is_matrix(a->b) && is_matrix(a->c));
    int64_t m = a->c.dims[0], n = a->c.dims[1], k = a->a.dims[a->trans_a ? 0 : 1];
    MC_ASSERT(a->a.dims[a->trans_a ? 1 : 0] == m && a->b.dims[a->trans_b ? 0 : 1] == n &&
              a->b.dims[a->trans_b ? 1 : 0] == k);
    MC_ASSERT(ly_absent_or_1d(a->bias, n) && (a->beta == 0.0f || a->beta == 1.0f));
    MC_ASSERT(mc_pool_scratch_bytes(cx->pool) >= LY_GEMM_SCRATCH_FLOATS * sizeof(float));
    gemm_job job = {.all = {.a = {a->a.data, a->a.strides[0], a->a.dtype, !a->trans_a},
                            .b = {a->b.data, a->b.strides[0], a->b.dtype, a->trans_b},
                            .c = a->c.data,
                            .bias = a->bias.data,
                            .c_type = a->c.dtype,
                            .ldc = a->c.strides[0],
                            .add = a->beta == 1.0f,
                            .m1 = m,
                            .n1 = n,
                            .k = k},
                    .n_threads = mc_pool_threads(cx->pool)};
    if (m == 0 || n == 0) {
        return MC_OK;
    }
    if (k == 0) {
        gemm_empty(&job);
        return MC_OK;
    }
    choose_tiles(&job);
    for (int i = 0; i < MAX_HOLDERS; i++) {
        job.held[i] = -1;
    }
    mc_pool_run(cx->pool, job.tiles_m * job.tiles_n, gemm_task, &job);
    return MC_OK;
}

typedef struct bias_job {
    const ly_bias_grad *a;
    int n_tasks;
} bias_job;

LY_INLINE void bias_grad_cols(mc_dtype T, mc_tensor dy, float *dbias, int64_t c, int64_t n)
{
    ly_cols total = ly_cols_zero();
    for (int64_t r0 = 0; r0 < dy.dims[0]; r0 += LY_COL_ROWS) {
        int64_t r1 = ly_i_min(r0 + LY_COL_ROWS, dy.dims[0]);
        ly_cols part = ly_cols_zero();
        for (int64_t r = r0; r < r1; r++) {
            part = ly_cols_add(part, ly_cols_tload(T, ly_elem(T, dy.data, r * dy.strides[0] + c), n));
        }
        total = ly_cols_add(total, part);
    }
    ly_cols_accumulate(dbias + c, total, n);
}

static void bias_grad_task(void *arg, int task, int thread, void *scratch)
{
    const bias_job *j = arg;
    mc_tensor dy = j->a->dy;
    long c0, c1;
    (void)thread;
    (void)scratch;
    mc_pool_range((long)dy.dims[1], j->n_tasks, task, LY_COL_UNIT, &c0, &c1);
    for (int64_t c = c0; c < c1; c += LY_COL_UNIT) {
        LY_FOR_TYPE(dy.dtype, T, bias_grad_cols(T, dy, ly_f(j->a->dbias), c, c1 - c));
    }
}

mc_status LY_CPU(bias_grad)(const ly_ctx *cx, const ly_bias_grad *a)
{
    LY_TRY_TYPE("bias_grad", a->dy);
    LY_TRY_F32("bias_grad", a->dbias);
    MC_ASSERT(is_matrix(a->dy) && ly_is_1d(a->dbias, a->dy.dims[1]));
    bias_job job = {a, ly_col_tasks(a->dy.dims[1])};
    mc_pool_run(cx->pool, job.n_tasks, bias_grad_task, &job);
    return MC_OK;
}
