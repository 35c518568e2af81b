/* Activations and the small element-wise operators on the CPU. */
#include <math.h>

#include "layers/cpu/isa.h"
#include "layers/cpu/rows.h"
#include "layers/cpu/vmath.h"

/* Elements of a flat task: 32 KiB of floats, so that what two operands share of the cache stays in it. */
enum { FLAT_BLOCK = 8192 };

static int flat_tasks(int64_t n)
{
    return (int)((n + FLAT_BLOCK - 1) / FLAT_BLOCK);
}

/* Value and derivative of an activation. With constants folded, the compiler drops the half that is not used. */
typedef struct act_pair {
    ly_vf value, slope;
} act_pair;

/* 0.5 x (1 + tanh u) = x sigmoid(2 u): exact also where tanh is close to -1, one exponential. */
LY_INLINE act_pair gelu_tanh(ly_vf x)
{
    const float k = 1.5957691216f; /* 2 sqrt(2 / pi) */
    ly_vf one = ly_vset1(1.0f), xx = ly_vmul(x, x);
    ly_vf u = ly_vmul(ly_vmul(x, ly_vset1(k)), ly_vfma(xx, ly_vset1(0.044715f), one));
    ly_vf s = ly_vsigmoid(u), value = ly_vmul(x, s);
    /* du/dx beyond |x| = 20 meets s (1 - s) = 0: bounded, so that the product does not become inf * 0. */
    ly_vf bounded = ly_vmin(ly_vset1(400.0f), xx);
    ly_vf du = ly_vfma(bounded, ly_vset1(3.0f * 0.044715f * k), ly_vset1(k));
    return (act_pair){value, ly_vfma(ly_vmul(value, ly_vsub(one, s)), du, s)};
}

LY_INLINE act_pair gelu_erf(ly_vf x)
{
    ly_vf half = ly_vset1(0.5f), cdf = ly_vfma(half, ly_verf(ly_vmul(x, ly_vset1(0.70710678f))), half);
    ly_vf density = ly_vmul(ly_vexp(ly_vmul(ly_vmul(x, x), ly_vset1(-0.5f))), ly_vset1(0.39894228f));
    /* The density is 0 beyond |x| = 15: bounded as above. */
    ly_vf bounded = ly_vmin(ly_vset1(20.0f), ly_vmax(ly_vset1(-20.0f), x));
    return (act_pair){ly_vmul(x, cdf), ly_vfma(bounded, density, cdf)};
}

LY_INLINE act_pair squared_relu(ly_vf x)
{
    ly_vf p = ly_vmax(ly_vzero(), x); /* keeps a NaN */
    return (act_pair){ly_vmul(p, p), ly_vadd(p, p)};
}

LY_INLINE act_pair silu(ly_vf x)
{
    ly_vf one = ly_vset1(1.0f), s = ly_vsigmoid(x), value = ly_vmul(x, s);
    return (act_pair){value, ly_vfma(value, ly_vsub(one, s), s)};
}

LY_INLINE act_pair act_of(ly_act_kind kind, ly_vf x)
{
    switch (kind) {
    case LY_GELU_TANH:
        return gelu_tanh(x);
    case LY_GELU_ERF:
        return gelu_erf(x);
    case LY_SQUARED_RELU:
        return squared_relu(x);
    case LY_SWIGLU:
    case LY_SILU:
        break;
    }
    return silu(x);
}

/* One run of n elements of type T. `up` and `dup` belong to SwiGLU only; out, dx and dup may be NULL. All loads of an
 * element come before its stores: out may be dout, dx may be x. */
typedef struct act_run {
    const void *x, *up, *dout;
    void *out, *dx, *dup;
    int64_t n;
} act_run;

LY_INLINE void run_of(ly_act_kind kind, mc_dtype type, const act_run *r)
{
    for (int64_t c = 0; c < r->n; c += LY_LANES) {
        int64_t n = r->n - c;
        act_pair y = act_of(kind, ly_tload(type, ly_elem(type, r->x, c), n));
        ly_vf up = kind == LY_SWIGLU ? ly_tload(type, ly_elem(type, r->up, c), n) : ly_vset1(1.0f);
        if (r->dx) {
            ly_vf d = ly_tload(type, ly_elem(type, r->dout, c), n);
            if (kind == LY_SWIGLU) {
                ly_tstore(type, ly_elem_out(type, r->dup, c), ly_vmul(d, y.value), n);
                d = ly_vmul(d, up);
            }
            ly_tstore(type, ly_elem_out(type, r->dx, c), ly_vmul(d, y.slope), n);
        }
        if (r->out) {
            ly_tstore(type, ly_elem_out(type, r->out, c), kind == LY_SWIGLU ? ly_vmul(y.value, up) : y.value, n);
        }
    }
}

/* One specialised loop per kind, type and direction. */
static void run(ly_act_kind kind, mc_dtype type, act_run r)
{
    act_run fwd = {.x = r.x, .up = r.up, .out = r.out, .n = r.n};
    switch (kind) {
#define RUN(k)                                        \
    case k:                                           \
        if (r.dx) {                                   \
            LY_FOR_TYPE(type, T, run_of(k, T, &r));   \
        } else {                                      \
            LY_FOR_TYPE(type, T, run_of(k, T, &fwd)); \
        }                                             \
        break;
        RUN(LY_GELU_TANH)
        RUN(LY_GELU_ERF)
        RUN(LY_SQUARED_RELU)
        RUN(LY_SWIGLU)
        RUN(LY_SILU)
#undef RUN
    }
}

typedef struct act_job {
    ly_act_kind kind;
    mc_dtype type;
    const void *x, *dout;
    void *out, *dx;
    int64_t n_rows, n_cols; /* of out; a gated row of x is twice as wide */
    int n_tasks;
} act_job;

static void act_task(void *arg, int task, int thread, void *scratch)
{
    const act_job *j = arg;
    mc_dtype type = j->type;
    long b, e;
    (void)thread;
    (void)scratch;
    if (j->kind != LY_SWIGLU) {
        mc_pool_range((long)(j->n_rows * j->n_cols), j->n_tasks, task, FLAT_BLOCK, &b, &e);
        run(j->kind, type,
            (act_run){.x = ly_elem(type, j->x, b),
                      .dout = ly_elem(type, j->dout, b),
                      .out = ly_elem_out(type, j->out, b),
                      .dx = ly_elem_out(type, j->dx, b),
                      .n = e - b});
        return;
    }
    mc_pool_range((long)j->n_rows, j->n_tasks, task, 1, &b, &e);
    for (int64_t r = b; r < e; r++) {
        int64_t at = r * j->n_cols, at2 = 2 * at;
        run(j->kind, type,
            (act_run){.x = ly_elem(type, j->x, at2),
                      .up = ly_elem(type, j->x, at2 + j->n_cols),
                      .dout = ly_elem(type, j->dout, at),
                      .out = ly_elem_out(type, j->out, at),
                      .dx = ly_elem_out(type, j->dx, at2),
                      .dup = ly_elem_out(type, j->dx, at2 + j->n_cols),
                      .n = j->n_cols});
    }
}

static void act_run_job(const ly_ctx *cx, act_job *j)
{
    j->n_tasks = j->kind == LY_SWIGLU ? ly_tasks(j->n_rows, 5 * j->n_cols) : flat_tasks(j->n_rows * j->n_cols);
    mc_pool_run(cx->pool, j->n_tasks, act_task, j);
}

mc_status LY_CPU(act_fwd)(const ly_ctx *cx, const ly_act_fwd *a)
{
    LY_TRY_TYPE("act_fwd", a->x);
    LY_TRY_DTYPE("act_fwd", a->out, a->x.dtype);
    MC_ASSERT(a->out.n_dims == 2 && a->out.data != a->x.data);
    int64_t n_rows = a->out.dims[0], n_cols = a->out.dims[1];
    MC_ASSERT(ly_is_2d(a->out, n_rows, n_cols) && ly_is_2d(a->x, n_rows, a->kind == LY_SWIGLU ? 2 * n_cols : n_cols));
    act_job job = {
        .kind = a->kind, .type = a->x.dtype, .x = a->x.data, .out = a->out.data, .n_rows = n_rows, .n_cols = n_cols};
    act_run_job(cx, &job);
    return MC_OK;
}

mc_status LY_CPU(act_bwd)(const ly_ctx *cx, const ly_act_bwd *a)
{
    LY_TRY_TYPE("act_bwd", a->x);
    LY_TRY_DTYPE("act_bwd", a->dout, a->x.dtype);
    LY_TRY_DTYPE("act_bwd", a->dx, a->x.dtype);
    LY_TRY_DTYPE("act_bwd", a->out, a->x.dtype);
    MC_ASSERT(a->dout.n_dims == 2);
    int64_t n_rows = a->dout.dims[0], n_cols = a->dout.dims[1], x_cols = a->kind == LY_SWIGLU ? 2 * n_cols : n_cols;
    MC_ASSERT(ly_is_2d(a->dout, n_rows, n_cols) && ly_is_2d(a->x, n_rows, x_cols) && ly_is_2d(a->dx, n_rows, x_cols) &&
              ly_absent_or_2d(a->out, n_rows, n_cols));
    act_job job = {.kind = a->kind,
                   .type = a->x.dtype,
                   .x = a->x.data,
                   .dout = a->dout.data,
                   .out = a->out.data,
                   .dx = a->dx.data,
                   .n_rows = n_rows,
                   .n_cols = n_cols};
    act_run_job(cx, &job);
    return MC_OK;
}

typedef struct flat_job {
    mc_dtype type;
    const void *a, *b;
    void *out;
    float value;
    int64_t n;
    int n_tasks;
} flat_job;

LY_INLINE void add_of(mc_dtype type, const flat_job *j, int64_t begin, int64_t end)
{
    for (int64_t i = begin; i < end; i += LY_LANES) {
        int64_t n = end - i;
        ly_vf a = ly_tload(type, ly_elem(type, j->a, i), n), b = ly_tload(type, ly_elem(type, j->b, i), n);
        ly_tstore(type, ly_elem_out(type, j->out, i), ly_vadd(a, b), n);
    }
}

static void add_task(void *arg, int task, int thread, void *scratch)
{
    const flat_job *j = arg;
    long b, e;
    (void)thread;
    (void)scratch;
    mc_pool_range((long)j->n, j->n_tasks, task, FLAT_BLOCK, &b, &e);
    LY_FOR_TYPE(j->type, T, add_of(T, j, b, e));
}

mc_status LY_CPU(add)(const ly_ctx *cx, const ly_add *a)
{
    LY_TRY_TYPE("add", a->a);
    LY_TRY_DTYPE("add", a->b, a->a.dtype);
    LY_TRY_DTYPE("add", a->out, a->a.dtype);
    MC_ASSERT(mc_tensor_same_shape(a->a, a->b) && mc_tensor_same_shape(a->a, a->out));
    MC_ASSERT(mc_tensor_contiguous(a->a) && mc_tensor_contiguous(a->b) && mc_tensor_contiguous(a->out));
    int64_t n = mc_tensor_elems(a->out);
    flat_job job = {
        .type = a->a.dtype, .a = a->a.data, .b = a->b.data, .out = a->out.data, .n = n, .n_tasks = flat_tasks(n)};
    mc_pool_run(cx->pool, job.n_tasks, add_task, &job);
    return MC_OK;
}

LY_INLINE void fill_of(mc_dtype type, const flat_job *j, int64_t begin, int64_t end)
{
    ly_vf value = ly_vset1(j->value);
    for (int64_t i = begin; i < end; i += LY_LANES) {
        ly_tstore(type, ly_elem_out(type, j->out, i), value, end - i);
    }
}

static void fill_task(void *arg, int task, int thread, void *scratch)
{
    const flat_job *j = arg;
    long b, e;
    (void)thread;
    (void)scratch;
    mc_pool_range((long)j->n, j->n_tasks, task, FLAT_BLOCK, &b, &e);
    if (j->value == 0.0f && !signbit(j->value)) { /* zeros of every type; the C library stores past the cache */
        memset(ly_elem_out(j->type, j->out, b), 0, (size_t)(e - b) * mc_dtype_bytes(j->type));
        return;
    }
    LY_FOR_TYPE(j->type, T, fill_of(T, j, b, e));
}

mc_status LY_CPU(fill)(const ly_ctx *cx, const ly_fill *a)
{
    LY_TRY_TYPE("fill", a->x);
    MC_ASSERT(mc_tensor_contiguous(a->x));
    int64_t n = mc_tensor_elems(a->x);
    flat_job job = {.type = a->x.dtype,
                    .out = a->x.data,
                    .value = a->value,
                    .n = n,
                    .n_tasks = ly_tasks(n / FLAT_BLOCK + 1, FLAT_BLOCK)};
    mc_pool_run(cx->pool, job.n_tasks, fill_task, &job);
    return MC_OK;
}
