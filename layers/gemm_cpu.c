/* Matrix product on the CPU: C is cut into tiles, and the pool hands them out (cpu/gemm_tile.h computes one). The bits
 * of an element do not depend on the cut, so it may follow the number of threads. */
#include "layers/cpu/gemm_tile.h"
#include "layers/cpu/isa.h"
#include "layers/cpu/rows.h"

/* Tile counts are multiples of these where tiles are not the last ones: LY_MR and LY_NR of every variant divide them.
 */
enum { TILE_M = 24, TILE_N = 32, TILES_A_THREAD = 8 };

typedef struct gemm_job {
    ly_i_operand a, b;
    float *c;
    const float *bias;
    int64_t ldc, m, n, k;
    bool add;
    int tiles_m, tiles_n, n_threads;
} gemm_job;

static int64_t ceil_div(int64_t x, int64_t y)
{
    return (x + y - 1) / y;
}

/* Time that n threads lose waiting for the last tile, as a share of the work. */
static double idle(int64_t tiles, int64_t n)
{
    return (double)(ceil_div(tiles, n) * n) / (double)tiles - 1.0;
}

/* What a cut into tm x tn tiles costs beside the products, as a share of them: each tile packs its rows of A and
 * columns of B (about 12 multiply-adds an element), tiles are unequal, and threads that finish early wait. The thread
 * counts are those of ordinary ranks; the cut must not depend on the real one. */
static double cut_cost(const gemm_job *j, int64_t tm, int64_t tn)
{
    double pack = 12.0 * ((double)tn / (double)j->n + (double)tm / (double)j->m);
    double rows = (double)(ceil_div(ceil_div(j->m, TILE_M), tm) * TILE_M * tm) / (double)j->m;
    double cols = (double)(ceil_div(ceil_div(j->n, TILE_N), tn) * TILE_N * tn) / (double)j->n;
    double wait = 0.5 * idle(tm * tn, 2) + 0.2 * idle(tm * tn, 4) + 0.05 * idle(tm * tn, 3) + 0.05 * idle(tm * tn, 8);
    return pack + 0.5 * (rows * cols - 1.0) + wait;
}

static void choose_tiles(gemm_job *j)
{
    enum { MOST = 16 }; /* per direction: finer cuts only repack */
    int64_t min_n = ceil_div(j->n, LY_NC_MAX), max_m = ceil_div(j->m, 2 * TILE_M), max_n = ceil_div(j->n, 2 * TILE_N);
    max_m = max_m < MOST ? max_m : MOST;
    max_n = max_n < MOST ? max_n : MOST;
    max_n = max_n > min_n ? max_n : min_n;
    /* Below half a million multiply-adds, waking a thread costs more than it brings. */
    if ((double)j->m * (double)j->n * (double)j->k < 524288.0) {
        max_m = 1;
        max_n = min_n;
    }
    double best = -1.0;
    for (int64_t tn = min_n; tn <= max_n; tn++) {
        for (int64_t tm = 1; tm <= max_m; tm++) {
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
    const gemm_job *j = arg;
    long m0, m1, n0, n1;
    mc_pool_range((long)j->m, j->tiles_m, task % j->tiles_m, TILE_M, &m0, &m1);
    mc_pool_range((long)j->n, j->tiles_n, task / j->tiles_m, TILE_N, &n0, &n1);
    (void)thread;
    if (m0 < m1 && n0 < n1) {
        ly_i_gemm_tile(j->a, j->b, j->c, j->ldc, j->bias, j->add, m0, m1, n0, n1, j->k, scratch);
    }
}

/* K = 0: c = beta c + bias. */
static void gemm_empty(const gemm_job *j)
{
    for (int64_t i = 0; i < j->m; i++) {
        for (int64_t n = 0; n < j->n; n++) {
            float *c = j->c + i * j->ldc + n;
            *c = (j->add ? *c : 0.0f) + (j->bias ? j->bias[n] : 0.0f);
        }
    }
}

static bool is_matrix(mc_tensor t)
{
    return t.n_dims == 2 && (t.dims[1] <= 1 || t.strides[1] == 1) && (t.dims[0] <= 1 || t.strides[0] >= t.dims[1]);
}

mc_status LY_CPU(gemm)(const ly_ctx *cx, const ly_gemm *a)
{
    LY_TRY_F32("gemm", a->a);
    LY_TRY_F32("gemm", a->b);
    LY_TRY_F32("gemm", a->c);
    LY_TRY_F32("gemm", a->bias);
    MC_ASSERT(is_matrix(a->a) && is_matrix(a->b) && is_matrix(a->c));
    int64_t m = a->c.dims[0], n = a->c.dims[1], k = a->a.dims[a->trans_a ? 0 : 1];
    MC_ASSERT(a->a.dims[a->trans_a ? 1 : 0] == m && a->b.dims[a->trans_b ? 0 : 1] == n &&
              a->b.dims[a->trans_b ? 1 : 0] == k);
    MC_ASSERT(ly_absent_or_1d(a->bias, n) && (a->beta == 0.0f || a->beta == 1.0f));
    MC_ASSERT(mc_pool_scratch_bytes(cx->pool) >= LY_GEMM_SCRATCH_FLOATS * sizeof(float));
    gemm_job job = {.a = {ly_cf(a->a), a->a.strides[0], !a->trans_a},
                    .b = {ly_cf(a->b), a->b.strides[0], a->trans_b},
                    .c = ly_f(a->c),
                    .bias = ly_cf(a->bias),
                    .ldc = a->c.strides[0],
                    .m = m,
                    .n = n,
                    .k = k,
                    .add = a->beta == 1.0f,
                    .n_threads = mc_pool_threads(cx->pool)};
    if (m == 0 || n == 0) {
        return MC_OK;
    }
    if (k == 0) {
        gemm_empty(&job);
        return MC_OK;
    }
    choose_tiles(&job);
    mc_pool_run(cx->pool, job.tiles_m * job.tiles_n, gemm_task, &job);
    return MC_OK;
}

typedef struct bias_job {
    const ly_bias_grad *a;
    int n_tasks;
} bias_job;

static void bias_grad_task(void *arg, int task, int thread, void *scratch)
{
    const bias_job *j = arg;
    mc_tensor dy = j->a->dy;
    float *dbias = ly_f(j->a->dbias);
    long c0, c1;
    (void)thread;
    (void)scratch;
    mc_pool_range((long)dy.dims[1], j->n_tasks, task, LY_COL_UNIT, &c0, &c1);
    for (int64_t c = c0; c < c1; c += LY_COL_UNIT) {
        ly_cols total = ly_cols_zero();
        for (int64_t r0 = 0; r0 < dy.dims[0]; r0 += LY_COL_ROWS) {
            int64_t r1 = r0 + LY_COL_ROWS < dy.dims[0] ? r0 + LY_COL_ROWS : dy.dims[0];
            ly_cols part = ly_cols_zero();
            for (int64_t r = r0; r < r1; r++) {
                part = ly_cols_add(part, ly_cols_load(ly_cf(dy) + r * dy.strides[0] + c, c1 - c));
            }
            total = ly_cols_add(total, part);
        }
        ly_cols_accumulate(dbias + c, total, c1 - c);
    }
}

mc_status LY_CPU(bias_grad)(const ly_ctx *cx, const ly_bias_grad *a)
{
    LY_TRY_F32("bias_grad", a->dy);
    LY_TRY_F32("bias_grad", a->dbias);
    MC_ASSERT(is_matrix(a->dy) && ly_is_1d(a->dbias, a->dy.dims[1]));
    bias_job job = {a, ly_col_tasks(a->dy.dims[1])};
    mc_pool_run(cx->pool, job.n_tasks, bias_grad_task, &job);
    return MC_OK;
}
