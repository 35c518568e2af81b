/* Softmax cross entropy on the CPU: one pass over memory for the statistics, one for the gradient. */
#include <math.h>

#include "layers/cpu/isa.h"
#include "layers/cpu/rows.h"
#include "layers/cpu/vmath.h"

/* Columns that stay in the first-level cache between finding their maximum and adding their exponentials. */
enum { CHUNK = 1024 };

typedef struct xent_job {
    mc_tensor logits, targets;
    int64_t vocab0, valid; /* valid: local columns that are not padding */
    const ly_xent_stats *stats;
    const ly_xent_grad *grad;
    int n_tasks;
} xent_job;

static int64_t valid_columns(int64_t vocab0, int64_t vocab_valid, int64_t n_cols)
{
    int64_t valid = vocab_valid - vocab0;
    return valid < 0 ? 0 : valid < n_cols ? valid : n_cols;
}

/* Local column of row r's target, or -1. */
static int64_t local_target(const xent_job *j, int64_t r)
{
    int64_t t = (int64_t)((const int32_t *)j->targets.data)[r] - j->vocab0;
    return t >= 0 && t < j->valid ? t : -1;
}

static float max_of(const float *x, int64_t n_cols)
{
    ly_vf m = ly_vset1(-INFINITY);
    for (int64_t c = 0; c < n_cols; c += LY_LANES) {
        int64_t n = n_cols - c;
        ly_vf v = ly_vload_n(x + c, n);
        if (n < LY_LANES) {
            v = ly_vselect(ly_vmask_n(n), v, ly_vset1(-INFINITY));
        }
        m = ly_vmax(v, m);
    }
    return ly_vmaxlane(m);
}

static float sum_exp(const float *x, int64_t n_cols, float max)
{
    ly_vf s = ly_vzero(), m = ly_vset1(max);
    for (int64_t c = 0; c < n_cols; c += LY_LANES) {
        int64_t n = n_cols - c;
        ly_vf e = ly_vexp(ly_vsub(ly_vload_n(x + c, n), m));
        if (n < LY_LANES) {
            e = ly_vkeep(ly_vmask_n(n), e);
        }
        s = ly_vadd(s, e);
    }
    return ly_vsum(s);
}

static bool has_nan(const float *x, int64_t n)
{
    bool found = false;
    for (int64_t i = 0; i < n; i++) {
        found |= isnan(x[i]) != 0;
    }
    return found;
}

/* Running maximum and sum of exp(x - maximum). The maximum of a chunk passes over NaN; the sum keeps it. */
static void row_stats(const float *x, int64_t n_cols, float *max_out, float *sum_out)
{
    float max = -INFINITY;
    double sum = 0.0;
    for (int64_t c = 0; c < n_cols; c += CHUNK) {
        int64_t n = n_cols - c < CHUNK ? n_cols - c : CHUNK;
        float chunk_max = max_of(x + c, n);
        if (chunk_max > max) {
            sum *= exp((double)max - (double)chunk_max);
            max = chunk_max;
        }
        if (max == -INFINITY) { /* -inf - -inf has no value: such a chunk adds nothing, unless it holds a NaN */
            sum = has_nan(x + c, n) ? (double)NAN : sum;
            continue;
        }
        sum += (double)sum_exp(x + c, n, max);
    }
    *max_out = max;
    *sum_out = (float)sum;
}

static void stats_task(void *arg, int task, int thread, void *scratch)
{
    const xent_job *j = arg;
    long r0, r1;
    (void)thread;
    (void)scratch;
    mc_pool_range((long)j->logits.dims[0], j->n_tasks, task, 1, &r0, &r1);
    for (int64_t r = r0; r < r1; r++) {
        const float *x = ly_cf(j->logits) + r * j->logits.dims[1];
        float *stats = ly_f(j->stats->stats) + 3 * r;
        int64_t target = local_target(j, r);
        row_stats(x, j->valid, &stats[0], &stats[1]);
        stats[2] = target >= 0 ? x[target] : 0.0f;
    }
}

mc_status LY_CPU(xent_stats)(const ly_ctx *cx, const ly_xent_stats *a)
{
    LY_TRY_F32("xent_stats", a->logits);
    LY_TRY_DTYPE("xent_stats", a->targets, MC_I32);
    LY_TRY_F32("xent_stats", a->stats);
    MC_ASSERT(a->logits.n_dims == 2);
    int64_t n_rows = a->logits.dims[0], n_cols = a->logits.dims[1];
    MC_ASSERT(ly_is_2d(a->logits, n_rows, n_cols) && ly_is_1d(a->targets, n_rows) && ly_is_2d(a->stats, n_rows, 3));
    xent_job job = {.logits = a->logits,
                    .targets = a->targets,
                    .vocab0 = a->vocab0,
                    .valid = valid_columns(a->vocab0, a->vocab_valid, n_cols),
                    .stats = a,
                    .n_tasks = ly_tasks(n_rows, n_cols)};
    mc_pool_run(cx->pool, job.n_tasks, stats_task, &job);
    return MC_OK;
}

/* One row over all shards: log-sum-exp in the two parts max + log(sum), and the target's logit. */
typedef struct row_total {
    float max;
    double sum, target;
} row_total;

static row_total combine(const ly_xent_grad *a, int64_t r)
{
    const float *stats = ly_cf(a->all_stats);
    int64_t n_shards = a->all_stats.dims[0], n_rows = a->all_stats.dims[1];
    row_total t = {.max = -INFINITY};
    for (int64_t s = 0; s < n_shards; s++) {
        const float *x = stats + (s * n_rows + r) * 3;
        t.max = x[0] > t.max ? x[0] : t.max;
    }
    for (int64_t s = 0; s < n_shards; s++) {
        const float *x = stats + (s * n_rows + r) * 3;
        double part = (double)x[1];
        t.sum += x[0] == t.max || part == 0.0 ? part : part * exp((double)x[0] - (double)t.max);
        t.target += (double)x[2];
    }
    return t;
}

/* dx = softmax * factor, then the target's column less factor, padding 0. dx may be the logits. */
LY_INLINE void grad_row(mc_dtype type, const xent_job *j, int64_t r, row_total total, float factor, void *dx)
{
    const float *x = ly_cf(j->logits) + r * j->logits.dims[1];
    int64_t target = local_target(j, r), n_cols = j->valid, n_padding = j->logits.dims[1] - n_cols;
    ly_vf m = ly_vset1(total.max), f = ly_vset1((float)((double)factor / total.sum));
    float at_target = target >= 0 ? (float)(exp((double)x[target] - (double)total.max) / total.sum - 1.0) : 0.0f;
    for (int64_t c = 0; c < n_cols; c += LY_LANES) {
        ly_vf e = ly_vexp(ly_vsub(ly_vload_n(x + c, n_cols - c), m));
        ly_tstore(type, ly_elem_out(type, dx, c), ly_vmul(e, f), n_cols - c);
    }
    if (target >= 0) {
        ly_tstore(type, ly_elem_out(type, dx, target), ly_vset1(at_target * factor), 1);
    }
    memset(ly_elem_out(type, dx, n_cols), 0, (size_t)n_padding * mc_dtype_bytes(type));
}

static void grad_task(void *arg, int task, int thread, void *scratch)
{
    const xent_job *j = arg;
    const ly_xent_grad *a = j->grad;
    mc_tensor out = mc_tensor_present(a->dlogits) ? a->dlogits : j->logits;
    long r0, r1;
    (void)thread;
    (void)scratch;
    mc_pool_range((long)j->logits.dims[0], j->n_tasks, task, 1, &r0, &r1);
    for (int64_t r = r0; r < r1; r++) {
        float weight = mc_tensor_present(a->weights) ? ly_cf(a->weights)[r] : 1.0f;
        row_total total = combine(a, r);
        if (mc_tensor_present(a->losses)) {
            double loss = (double)total.max + log(total.sum) - total.target;
            ly_f(a->losses)[r] = weight == 0.0f ? 0.0f : (float)(loss * (double)weight);
        }
        if (!a->write_grad) {
            continue;
        }
        void *dx = ly_elem_out(out.dtype, out.data, r * out.dims[1]);
        if (weight == 0.0f) { /* masked: 0 even where the row holds NaN */
            memset(dx, 0, (size_t)out.dims[1] * mc_dtype_bytes(out.dtype));
        } else {
            LY_FOR_TYPE(out.dtype, T, grad_row(T, j, r, total, weight * a->scale, dx));
        }
    }
}

mc_status LY_CPU(xent_grad)(const ly_ctx *cx, const ly_xent_grad *a)
{
    LY_TRY_F32("xent_grad", a->logits);
    LY_TRY_DTYPE("xent_grad", a->targets, MC_I32);
    LY_TRY_F32("xent_grad", a->all_stats);
    LY_TRY_F32("xent_grad", a->losses);
    LY_TRY_F32("xent_grad", a->weights);
    LY_TRY_TYPE("xent_grad", a->dlogits);
    MC_ASSERT(a->logits.n_dims == 2 && a->all_stats.n_dims == 3);
    int64_t n_rows = a->logits.dims[0], n_cols = a->logits.dims[1];
    MC_ASSERT(ly_is_2d(a->logits, n_rows, n_cols) && ly_is_1d(a->targets, n_rows));
    MC_ASSERT(a->all_stats.dims[0] >= 1 && a->all_stats.dims[1] == n_rows && a->all_stats.dims[2] == 3 &&
              mc_tensor_contiguous(a->all_stats));
    MC_ASSERT(ly_absent_or_1d(a->losses, n_rows) && ly_absent_or_1d(a->weights, n_rows) &&
              ly_absent_or_2d(a->dlogits, n_rows, n_cols));
    xent_job job = {.logits = a->logits,
                    .targets = a->targets,
                    .vocab0 = a->vocab0,
                    .valid = valid_columns(a->vocab0, a->vocab_valid, n_cols),
                    .grad = a,
                    .n_tasks = ly_tasks(n_rows, a->write_grad ? 2 * n_cols : 16)};
    mc_pool_run(cx->pool, job.n_tasks, grad_task, &job);
    return MC_OK;
}
