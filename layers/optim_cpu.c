/* Optimizer steps and squared norms over slabs on the CPU. */
#include <math.h>

#include "layers/cpu/isa.h"
#include "layers/cpu/rows.h"

/* Elements of a task of adamw and sgd: 256 KiB of each operand. */
enum { SLAB_BLOCK = 65536 };
/* Partial sums of sq_norm, and the elements that a partial sum is a multiple of. */
enum { NORM_PARTS = 256, NORM_UNIT = 4096 };

/* Calls `fn` for every piece of a segment inside [begin, end), in order. */
typedef void (*piece_fn)(void *arg, const ly_segment *s, int64_t begin, int64_t end);

static void for_pieces(const ly_segment *segments, int n_segments, int64_t begin, int64_t end, piece_fn fn, void *arg)
{
    int low = 0, high = n_segments;
    while (low < high) { /* first segment that ends past `begin` */
        int mid = (low + high) / 2;
        if (segments[mid].end <= begin) {
            low = mid + 1;
        } else {
            high = mid;
        }
    }
    for (int i = low; i < n_segments && segments[i].begin < end; i++) {
        int64_t b = segments[i].begin > begin ? segments[i].begin : begin;
        int64_t e = segments[i].end < end ? segments[i].end : end;
        if (b < e) {
            fn(arg, &segments[i], b, e);
        }
    }
}

static bool segments_are_sorted(const ly_segment *s, int n_segments, int64_t n)
{
    for (int i = 0; i < n_segments; i++) {
        if (s[i].begin < (i ? s[i - 1].end : 0) || s[i].end < s[i].begin || s[i].end > n) {
            return false;
        }
    }
    return true;
}

typedef struct adamw_job {
    const ly_adamw *a;
    float step_size, inv_sqrt_bc2; /* lr / (1 - b1^step), 1 / sqrt(1 - b2^step) */
} adamw_job;

static void adamw_piece(void *arg, const ly_segment *s, int64_t begin, int64_t end)
{
    const adamw_job *j = arg;
    const ly_adamw *a = j->a;
    float *param = ly_f(a->param), *m = ly_f(a->m), *v = ly_f(a->v), *grad = ly_f(a->grad);
    ly_vf b1 = ly_vset1(a->beta1), c1 = ly_vset1(1.0f - a->beta1), b2 = ly_vset1(a->beta2);
    ly_vf c2 = ly_vset1(1.0f - a->beta2), scale = ly_vset1(a->grad_scale), eps = ly_vset1(a->eps);
    ly_vf step = ly_vset1(j->step_size * s->lr_mult), root = ly_vset1(j->inv_sqrt_bc2);
    /* Decay as a factor of p, so that p - lr wd p is formed with one rounding. */
    ly_vf decay = ly_vset1(a->lr * s->lr_mult * a->weight_decay * s->decay_mult);
    for (int64_t i = begin; i < end; i += LY_LANES) {
        int64_t n = end - i;
        ly_vf g = ly_vmul(ly_vload_n(grad + i, n), scale), p = ly_vload_n(param + i, n);
        ly_vf mi = ly_vfma(b1, ly_vload_n(m + i, n), ly_vmul(c1, g));
        ly_vf vi = ly_vfma(b2, ly_vload_n(v + i, n), ly_vmul(ly_vmul(c2, g), g));
        ly_vf denominator = ly_vfma(ly_vsqrt(vi), root, eps);
        ly_vf kept = ly_vfnma(decay, p, p);
        ly_vstore_n(m + i, mi, n);
        ly_vstore_n(v + i, vi, n);
        ly_vstore_n(param + i, ly_vfnma(step, ly_vdiv(mi, denominator), kept), n);
        if (a->clear_grad) {
            ly_vstore_n(grad + i, ly_vset1(0.0f), n);
        }
    }
}

static void adamw_task(void *arg, int task, int thread, void *scratch)
{
    const adamw_job *j = arg;
    int64_t begin = (int64_t)task * SLAB_BLOCK, n = j->a->param.dims[0];
    int64_t end = begin + SLAB_BLOCK < n ? begin + SLAB_BLOCK : n;
    (void)thread;
    (void)scratch;
    for_pieces(j->a->segments, j->a->n_segments, begin, end, adamw_piece, arg);
}

mc_status LY_CPU(adamw)(const ly_ctx *cx, const ly_adamw *a)
{
    LY_TRY_F32("adamw", a->param);
    LY_TRY_F32("adamw", a->grad);
    LY_TRY_F32("adamw", a->m);
    LY_TRY_F32("adamw", a->v);
    int64_t n = a->param.dims[0];
    MC_ASSERT(ly_is_1d(a->param, n) && ly_is_1d(a->grad, n) && ly_is_1d(a->m, n) && ly_is_1d(a->v, n));
    MC_ASSERT(a->step >= 1 && segments_are_sorted(a->segments, a->n_segments, n));
    double bc1 = 1.0 - pow((double)a->beta1, (double)a->step), bc2 = 1.0 - pow((double)a->beta2, (double)a->step);
    adamw_job job = {a, (float)((double)a->lr / bc1), (float)(1.0 / sqrt(bc2))};
    mc_pool_run(cx->pool, (int)((n + SLAB_BLOCK - 1) / SLAB_BLOCK), adamw_task, &job);
    return MC_OK;
}

static void sgd_piece(void *arg, const ly_segment *s, int64_t begin, int64_t end)
{
    const ly_sgd *a = arg;
    float *param = ly_f(a->param), *m = ly_f(a->m);
    const float *grad = ly_cf(a->grad);
    ly_vf lr = ly_vset1(a->lr * s->lr_mult), decay = ly_vset1(a->weight_decay * s->decay_mult);
    ly_vf scale = ly_vset1(a->grad_scale), momentum = ly_vset1(a->momentum);
    for (int64_t i = begin; i < end; i += LY_LANES) {
        int64_t n = end - i;
        ly_vf p = ly_vload_n(param + i, n), g = ly_vmul(ly_vload_n(grad + i, n), scale);
        g = ly_vfma(decay, p, g);
        if (m) {
            g = ly_vfma(momentum, ly_vload_n(m + i, n), g);
            ly_vstore_n(m + i, g, n);
        }
        ly_vstore_n(param + i, ly_vfnma(lr, g, p), n);
    }
}

static void sgd_task(void *arg, int task, int thread, void *scratch)
{
    const ly_sgd *a = arg;
    int64_t begin = (int64_t)task * SLAB_BLOCK, n = a->param.dims[0];
    int64_t end = begin + SLAB_BLOCK < n ? begin + SLAB_BLOCK : n;
    (void)thread;
    (void)scratch;
    for_pieces(a->segments, a->n_segments, begin, end, sgd_piece, arg);
}

mc_status LY_CPU(sgd)(const ly_ctx *cx, const ly_sgd *a)
{
    LY_TRY_F32("sgd", a->param);
    LY_TRY_F32("sgd", a->grad);
    LY_TRY_F32("sgd", a->m);
    int64_t n = a->param.dims[0];
    MC_ASSERT(ly_is_1d(a->param, n) && ly_is_1d(a->grad, n) && ly_absent_or_1d(a->m, n));
    MC_ASSERT(mc_tensor_present(a->m) || a->momentum == 0.0f);
    MC_ASSERT(segments_are_sorted(a->segments, a->n_segments, n));
    ly_sgd job = *a;
    mc_pool_run(cx->pool, (int)((n + SLAB_BLOCK - 1) / SLAB_BLOCK), sgd_task, &job);
    return MC_OK;
}

typedef struct norm_job {
    const ly_sq_norm *a;
    int64_t part_elems;
    double parts[NORM_PARTS];
} norm_job;

typedef struct norm_part {
    const float *x;
    double sum;
} norm_part;

static void norm_piece(void *arg, const ly_segment *s, int64_t begin, int64_t end)
{
    norm_part *part = arg;
    const float *x = part->x;
    double lane[LY_LANES] = {0}, total = 0.0;
    int64_t i = begin;
    if (s->norm_weight == 0.0f) {
        return;
    }
    for (; i + LY_LANES <= end; i += LY_LANES) {
        for (int k = 0; k < LY_LANES; k++) {
            lane[k] += (double)x[i + k] * (double)x[i + k];
        }
    }
    for (int k = 0; i < end; i++, k++) {
        lane[k] += (double)x[i] * (double)x[i];
    }
    for (int k = 0; k < LY_LANES; k++) {
        total += lane[k];
    }
    part->sum += (double)s->norm_weight * total;
}

static void norm_task(void *arg, int task, int thread, void *scratch)
{
    norm_job *j = arg;
    const ly_sq_norm *a = j->a;
    int64_t begin = task * j->part_elems, n = a->x.dims[0];
    int64_t end = begin + j->part_elems < n ? begin + j->part_elems : n;
    norm_part part = {.x = ly_cf(a->x)};
    (void)thread;
    (void)scratch;
    for_pieces(a->segments, a->n_segments, begin, end, norm_piece, &part);
    j->parts[task] = part.sum;
}

mc_status LY_CPU(sq_norm)(const ly_ctx *cx, const ly_sq_norm *a)
{
    LY_TRY_F32("sq_norm", a->x);
    LY_TRY_DTYPE("sq_norm", a->out, MC_F64);
    int64_t n = a->x.dims[0];
    MC_ASSERT(ly_is_1d(a->x, n) && ly_is_1d(a->out, 1) && segments_are_sorted(a->segments, a->n_segments, n));
    norm_job job = {.a = a};
    int64_t units = (n + NORM_UNIT - 1) / NORM_UNIT;
    job.part_elems = (units + NORM_PARTS - 1) / NORM_PARTS * NORM_UNIT;
    int n_parts = n > 0 ? (int)((n + job.part_elems - 1) / job.part_elems) : 0;
    mc_pool_run(cx->pool, n_parts, norm_task, &job);
    double total = 0.0;
    for (int i = 0; i < n_parts; i++) {
        total += job.parts[i];
    }
    *(double *)a->out.data = total;
    return MC_OK;
}
