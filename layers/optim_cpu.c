/* Optimizer steps and squared norms over slabs on the CPU. */
#include <math.h>

#include "layers/cpu/isa.h"
#include "layers/cpu/philox.h"
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

/* The constants of a segment. Decay is a factor of p, so that p - lr wd p is formed with one rounding. */
typedef struct adamw_rates {
    ly_vf b1, c1, b2, c2, scale, eps, step, root, decay;
} adamw_rates;

LY_INLINE adamw_rates adamw_rates_of(const adamw_job *j, const ly_segment *s)
{
    const ly_adamw *a = j->a;
    return (adamw_rates){
        .b1 = ly_vset1(a->beta1),
        .c1 = ly_vset1(1.0f - a->beta1),
        .b2 = ly_vset1(a->beta2),
        .c2 = ly_vset1(1.0f - a->beta2),
        .scale = ly_vset1(a->grad_scale),
        .eps = ly_vset1(a->eps),
        .step = ly_vset1(j->step_size * s->lr_mult),
        .root = ly_vset1(j->inv_sqrt_bc2),
        .decay = ly_vset1(a->lr * s->lr_mult * a->weight_decay * s->decay_mult),
    };
}

LY_INLINE void adamw_update(const adamw_rates *r, ly_vf grad, ly_vf *p, ly_vf *m, ly_vf *v)
{
    ly_vf g = ly_vmul(grad, r->scale);
    *m = ly_vfma(r->c1, g, ly_vmul(r->b1, *m));
    *v = ly_vfma(ly_vmul(r->c2, g), g, ly_vmul(r->b2, *v));
    ly_vf denominator = ly_vfma(ly_vsqrt(*v), r->root, r->eps);
    ly_vf kept = ly_vfnma(r->decay, *p, *p);
    *p = ly_vfnma(r->step, ly_vdiv(*m, denominator), kept);
}

LY_INLINE void adamw_run(mc_dtype grad_type, const adamw_job *j, const ly_segment *s, int64_t begin, int64_t end)
{
    const ly_adamw *a = j->a;
    float *param = ly_f(a->param), *m = ly_f(a->m), *v = ly_f(a->v);
    adamw_rates r = adamw_rates_of(j, s);
    for (int64_t i = begin; i < end; i += LY_LANES) {
        int64_t n = end - i;
        void *grad = ly_elem_out(grad_type, a->grad.data, i);
        ly_vf p = ly_vload_n(param + i, n), mi = ly_vload_n(m + i, n), vi = ly_vload_n(v + i, n);
        adamw_update(&r, ly_tload(grad_type, grad, n), &p, &mi, &vi);
        ly_vstore_n(m + i, mi, n);
        ly_vstore_n(v + i, vi, n);
        ly_vstore_n(param + i, p, n);
        store_model(a->model, i, p, n);
        if (a->clear_grad) {
            ly_tstore(grad_type, grad, ly_vset1(0.0f), n);
        }
    }
}

/* ---- states of 16 bits: types are looked at as it goes, as rounding at random costs more ---- */

/* Elements whose words are made at a time. */
enum { ROUND_RUN = 4096, ROUND_WORDS = ROUND_RUN + 2 * LY_PHILOX_STEP };

/* x[i..] = v; `words` (16 or more) decide how bf16 is rounded. */
LY_INLINE void store_state(mc_tensor x, int64_t i, ly_vf v, int64_t n, const uint32_t *words)
{
    if (x.dtype != MC_BF16) {
        ly_tstore(x.dtype, ly_elem_out(x.dtype, x.data, i), v, n);
        return;
    }
    float lanes[LY_LANES];
    ly_vstore(lanes, v);
    for (int k = 0; k < LY_LANES && k < n; k++) {
        ((uint16_t *)x.data)[i + k] = mc_bf16_stochastic(lanes[k], words[k]);
    }
}

/* Words of elements [first, first + n) of the segment's tensor, where they are needed. */
static const uint32_t *round_words(const ly_adamw *a, mc_tensor x, mc_rng_kind kind, const ly_segment *s, int64_t first,
                                   int64_t n, uint32_t *buffer)
{
    if (x.dtype != MC_BF16) {
        return buffer;
    }
    return ly_philox_words(buffer, a->seed, mc_rng_stream(kind, s->tensor), (uint64_t)a->step, (uint64_t)first, n);
}

/* [begin, end) are consecutive elements of the global tensor, `first` on. */
static void mixed_run(const adamw_job *j, const ly_segment *s, int64_t begin, int64_t end, int64_t first,
                      uint32_t *buffer)
{
    const ly_adamw *a = j->a;
    adamw_rates r = adamw_rates_of(j, s);
    int64_t count = end - begin;
    const uint32_t *wp = round_words(a, a->param, MC_RNG_ROUND_PARAM, s, first, count, buffer);
    const uint32_t *wm = round_words(a, a->m, MC_RNG_ROUND_M, s, first, count, buffer + ROUND_WORDS);
    const uint32_t *wv = round_words(a, a->v, MC_RNG_ROUND_V, s, first, count, buffer + 2 * ROUND_WORDS);
    for (int64_t k = 0; k < count; k += LY_LANES) {
        int64_t i = begin + k, n = count - k;
        void *grad = ly_elem_out(a->grad.dtype, a->grad.data, i);
        ly_vf p = ly_tload(a->param.dtype, ly_elem(a->param.dtype, a->param.data, i), n);
        ly_vf m = ly_tload(a->m.dtype, ly_elem(a->m.dtype, a->m.data, i), n);
        ly_vf v = ly_tload(a->v.dtype, ly_elem(a->v.dtype, a->v.data, i), n);
        adamw_update(&r, ly_tload(a->grad.dtype, grad, n), &p, &m, &v);
        store_state(a->m, i, m, n, wm + k);
        store_state(a->v, i, v, n, wv + k);
        store_state(a->param, i, p, n, wp + k);
        store_model(a->model, i, p, n);
        if (a->clear_grad) {
            ly_tstore(a->grad.dtype, grad, ly_vset1(0.0f), n);
        }
    }
}

typedef struct mixed_piece {
    const adamw_job *job;
    uint32_t *buffer;
} mixed_piece;

static void adamw_mixed_piece(void *arg, const ly_segment *s, int64_t begin, int64_t end)
{
    const mixed_piece *q = arg;
    for (int64_t i = begin, to; i < end; i = to) {
        int64_t at = i - s->begin, line = s->gap != 0 ? s->cols - (s->col0 + at) % s->cols : end - i;
        int64_t global = s->global0 + at + (s->gap != 0 ? s->gap * ((s->col0 + at) / s->cols) : 0);
        to = i + (line < ROUND_RUN ? line : ROUND_RUN);
        to = to < end ? to : end;
        mixed_run(q->job, s, i, to, global, q->buffer);
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
    if (j->a->param.dtype == MC_F32 && j->a->m.dtype == MC_F32 && j->a->v.dtype == MC_F32) {
        for_pieces(j->a->segments, j->a->n_segments, begin, end, adamw_piece, arg);
        return;
    }
    mixed_piece q = {j, scratch};
    for_pieces(j->a->segments, j->a->n_segments, begin, end, adamw_mixed_piece, &q);
}

/* param f32 or bf16, moments f32, bf16 or f16. */
static mc_status check_states(const mc_pool *pool, const ly_adamw *a)
{
    const struct {
        const char *name;
        mc_tensor x;
        bool f16;
    } rows[] = {{"param", a->param, false}, {"m", a->m, true}, {"v", a->v, true}};
    for (int i = 0; i < 3; i++) {
        mc_dtype t = rows[i].x.dtype;
        if (t != MC_F32 && t != MC_BF16 && !(t == MC_F16 && rows[i].f16)) {
            return MC_FAIL(MC_UNSUPPORTED, "operator adamw: operand %s is %s; it takes f32 or bf16%s", rows[i].name,
                           mc_dtype_name(t), rows[i].f16 ? " or f16" : "");
        }
        MC_ASSERT(t == MC_F32 || mc_pool_scratch_bytes(pool) >= 3 * ROUND_WORDS * sizeof(uint32_t));
    }
    MC_ASSERT(!mc_tensor_present(a->model) || a->param.dtype == MC_F32);
    return MC_OK;
}

mc_status LY_CPU(adamw)(const ly_ctx *cx, const ly_adamw *a)
{
    MC_TRY(check_states(cx->pool, a));
    MC_TRY(check_types("adamw", a->grad, a->model));
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
