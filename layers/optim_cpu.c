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

/* Gradients are f32 or bf16, a model apart from param is of 16 bits. */
static mc_status check_types(const char *op, mc_tensor grad, mc_tensor model)
{
    if (grad.dtype != MC_F32 && grad.dtype != MC_BF16) {
        return MC_FAIL(MC_UNSUPPORTED, "operator %s: operand grad is %s; it takes f32 or bf16", op,
                       mc_dtype_name(grad.dtype));
    }
    if (mc_tensor_present(model) && model.dtype != MC_BF16 && model.dtype != MC_F16) {
        return MC_FAIL(MC_UNSUPPORTED, "operator %s: operand model is %s; it takes bf16 or f16", op,
                       mc_dtype_name(model.dtype));
    }
    return MC_OK;
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

/* The parameters that the model computes with: 16 bits, where there are any apart from param. */
LY_INLINE void store_model(mc_tensor model, int64_t i, ly_vf p, int64_t n)
{
    if (!model.data) {
        return;
    }
    if (model.dtype == MC_BF16) {
        ly_tstore(MC_BF16, ly_elem_out(MC_BF16, model.data, i), p, n);
    } else {
        ly_tstore(MC_F16, ly_elem_out(MC_F16, model.data, i), p, n);
    }
}

LY_INLINE void adamw_run(mc_dtype grad_type, const adamw_job *j, const ly_segment *s, int64_t begin, int64_t end)
{
    const ly_adamw *a = j->a;
    float *param = ly_f(a->param), *m = ly_f(a->m), *v = ly_f(a->v);
    ly_vf b1 = ly_vset1(a->beta1), c1 = ly_vset1(1.0f - a->beta1), b2 = ly_vset1(a->beta2);
    ly_vf c2 = ly_vset1(1.0f - a->beta2), scale = ly_vset1(a->grad_scale), eps = ly_vset1(a->eps);
    ly_vf step = ly_vset1(j->step_size * s->lr_mult), root = ly_vset1(j->inv_sqrt_bc2);
    /* Decay as a factor of p, so that p - lr wd p is formed with one rounding. */
    ly_vf decay = ly_vset1(a->lr * s->lr_mult * a->weight_decay * s->decay_mult);
    for (int64_t i = begin; i < end; i += LY_LANES) {
        int64_t n = end - i;
        void *grad = ly_elem_out(grad_type, a->grad.data, i);
        ly_vf g = ly_vmul(ly_tload(grad_type, grad, n), scale), p = ly_vload_n(param + i, n);
        ly_vf mi = ly_vfma(c1, g, ly_vmul(b1, ly_vload_n(m + i, n)));
        ly_vf vi = ly_vfma(ly_vmul(c2, g), g, ly_vmul(b2, ly_vload_n(v + i, n)));
        ly_vf denominator = ly_vfma(ly_vsqrt(vi), root, eps);
        ly_vf kept = ly_vfnma(decay, p, p);
        ly_vf next = ly_vfnma(step, ly_vdiv(mi, denominator), kept);
        ly_vstore_n(m + i, mi, n);
        ly_vstore_n(v + i, vi, n);
        ly_vstore_n(param + i, next, n);
        store_model(a->model, i, next, n);
        if (a->clear_grad) {
            ly_tstore(grad_type, grad, ly_vset1(0.0f), n);
        }
    }
}

static void adamw_piece(void *arg, const ly_segment *s, int64_t begin, int64_t end)
{
    const adamw_job *j = arg;
    LY_FOR_TYPE(j->a->grad.dtype, T, adamw_run(T, j, s, begin, end));
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
    MC_TRY(check_types("adamw", a->grad, a->model));
    LY_TRY_F32("adamw", a->m);
    LY_TRY_F32("adamw", a->v);
    int64_t n = a->param.dims[0];
    MC_ASSERT(ly_is_1d(a->param, n) && ly_is_1d(a->grad, n) && ly_is_1d(a->m, n) && ly_is_1d(a->v, n));
    MC_ASSERT(ly_absent_or_1d(a->model, n));
    MC_ASSERT(a->step >= 1 && segments_are_sorted(a->segments, a->n_segments, n));
    double bc1 = 1.0 - pow((double)a->beta1, (double)a->step), bc2 = 1.0 - pow((double)a->beta2, (double)a->step);
    adamw_job job = {a, (float)((double)a->lr / bc1), (float)(1.0 / sqrt(bc2))};
    mc_pool_run(cx->pool, (int)((n + SLAB_BLOCK - 1) / SLAB_BLOCK), adamw_task, &job);
    return MC_OK;
}

LY_INLINE void sgd_run(mc_dtype grad_type, const ly_sgd *a, const ly_segment *s, int64_t begin, int64_t end)
{
    float *param = ly_f(a->param), *m = ly_f(a->m);
    ly_vf lr = ly_vset1(a->lr * s->lr_mult), decay = ly_vset1(a->weight_decay * s->decay_mult);
    ly_vf scale = ly_vset1(a->grad_scale), momentum = ly_vset1(a->momentum);
    for (int64_t i = begin; i < end; i += LY_LANES) {
        int64_t n = end - i;
        ly_vf p = ly_vload_n(param + i, n);
        ly_vf g = ly_vfma(ly_tload(grad_type, ly_elem(grad_type, a->grad.data, i), n), scale, ly_vmul(decay, p));
        if (m) {
            g = ly_vfma(momentum, ly_vload_n(m + i, n), g);
            ly_vstore_n(m + i, g, n);
        }
        p = ly_vfnma(lr, g, p);
        ly_vstore_n(param + i, p, n);
        store_model(a->model, i, p, n);
    }
}

static void sgd_piece(void *arg, const ly_segment *s, int64_t begin, int64_t end)
{
    const ly_sgd *a = arg;
    LY_FOR_TYPE(a->grad.dtype, T, sgd_run(T, a, s, begin, end));
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
    MC_TRY(check_types("sgd", a->grad, a->model));
    LY_TRY_F32("sgd", a->m);
    int64_t n = a->param.dims[0];
    MC_ASSERT(ly_is_1d(a->param, n) && ly_is_1d(a->grad, n) && ly_absent_or_1d(a->m, n));
    MC_ASSERT((mc_tensor_present(a->m) || a->momentum == 0.0f) && ly_absent_or_1d(a->model, n));
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
    mc_tensor x;
    double sum;
} norm_part;

/* lane[k] += v[k]^2 */
LY_INLINE void add_squares(double *lane, const float *v)
{
    for (int k = 0; k < LY_LANES; k++) {
        lane[k] += (double)v[k] * (double)v[k];
    }
}

/* Sum of squares: 16 chains of elements, and then their sum. */
LY_INLINE double squares(mc_dtype type, const void *x, int64_t begin, int64_t end)
{
    double lane[LY_LANES] = {0}, total = 0.0;
    float copy[LY_LANES];
    int64_t i = begin;
    for (; i + LY_LANES <= end; i += LY_LANES) {
        if (type == MC_F32) { /* from where it lies: by way of the copy is three times slower */
            add_squares(lane, (const float *)x + i);
        } else {
            ly_vstore(copy, ly_tload(type, ly_elem(type, x, i), LY_LANES));
            add_squares(lane, copy);
        }
    }
    if (i < end) {
        ly_vstore(copy, ly_tload(type, ly_elem(type, x, i), end - i));
        add_squares(lane, copy);
    }
    for (int k = 0; k < LY_LANES; k++) {
        total += lane[k];
    }
    return total;
}

static void norm_piece(void *arg, const ly_segment *s, int64_t begin, int64_t end)
{
    norm_part *part = arg;
    double total = 0.0;
    if (s->norm_weight == 0.0f) {
        return;
    }
    LY_FOR_TYPE(part->x.dtype, T, total = squares(T, part->x.data, begin, end));
    part->sum += (double)s->norm_weight * total;
}

static void norm_task(void *arg, int task, int thread, void *scratch)
{
    norm_job *j = arg;
    const ly_sq_norm *a = j->a;
    int64_t begin = task * j->part_elems, n = a->x.dims[0];
    int64_t end = begin + j->part_elems < n ? begin + j->part_elems : n;
    norm_part part = {.x = a->x};
    (void)thread;
    (void)scratch;
    for_pieces(a->segments, a->n_segments, begin, end, norm_piece, &part);
    j->parts[task] = part.sum;
}

mc_status LY_CPU(sq_norm)(const ly_ctx *cx, const ly_sq_norm *a)
{
    if (a->x.dtype != MC_F32 && a->x.dtype != MC_BF16) {
        return MC_FAIL(MC_UNSUPPORTED, "operator sq_norm: operand x is %s; it takes f32 or bf16",
                       mc_dtype_name(a->x.dtype));
    }
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
