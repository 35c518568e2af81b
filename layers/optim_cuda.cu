/* Optimizer steps and squared norms over slabs on CUDA devices: one launch a step, whatever the number of tensors. */
#include <math.h>

#include "layers/cuda/slab.cuh"
#include "layers/cuda/tensors.cuh"
#include "layers/workspace.h"
#include "megac/base/rng.h"

/* A block's piece of the slab: long enough that its search through the segments (about ten dependent reads) hides
 * behind the other blocks' traffic, short enough that the last blocks to finish do not matter. */
enum { SLAB_THREADS = 256, SLAB_BLOCK = 8192, SLAB_PACK = 4 };

static unsigned slab_grid(int64_t n)
{
    return (unsigned)((n + SLAB_BLOCK - 1) / SLAB_BLOCK);
}

/* Scalars of an AdamW step; step_size = lr / (1 - b1^step), root = 1 / sqrt(1 - b2^step). */
struct adamw_rates {
    float lr, beta1, rest1, beta2, rest2, eps, weight_decay, grad_scale, step_size, root;
};

/* One step of N elements. g becomes 0, for those who clear the gradient. */
template <int N>
__device__ __forceinline__ void adamw_update(const adamw_rates &r, float step, float decay, float (&p)[N],
                                             float (&g)[N], float (&m)[N], float (&v)[N])
{
#pragma unroll
    for (int k = 0; k < N; k++) {
        g[k] *= r.grad_scale;
        m[k] = fmaf(r.beta1, m[k], r.rest1 * g[k]);
        v[k] = fmaf(r.beta2, v[k], r.rest2 * g[k] * g[k]);
        float kept = fmaf(-decay, p[k], p[k]);
        p[k] = fmaf(-step, m[k] / fmaf(sqrtf(v[k]), r.root, r.eps), kept);
        g[k] = 0.0f;
    }
}

/* Bytes an element: 24 for param, m, v; sizeof(G) for grad, twice that with clear_grad; 2 for model. At 3.35 TB/s
 * (H100) a multiprocessor sees one element of 28 bytes in two clocks: square root and division are rounded correctly at
 * no cost. */
template <class G, class M>
__global__ void __launch_bounds__(SLAB_THREADS)
    adamw_kernel(float *param, G *grad, float *m, float *v, M *model, const ly_segment *segments, int n_segments,
                 int64_t n, adamw_rates r, bool clear_grad, bool wide)
{
    int64_t begin = (int64_t)blockIdx.x * SLAB_BLOCK, end = begin + SLAB_BLOCK < n ? begin + SLAB_BLOCK : n;
    ly_pieces(segments, n_segments, begin, end, [&](const ly_segment &s, int64_t b, int64_t e) {
        float step = r.step_size * s.lr_mult, decay = r.lr * s.lr_mult * r.weight_decay * s.decay_mult;
        auto update = [&](auto width, int64_t i) {
            constexpr int N = decltype(width)::N;
            float p[N], g[N], mi[N], vi[N];
            ly_load_f32(p, param + i);
            ly_load_f32(g, grad + i);
            ly_load_f32(mi, m + i);
            ly_load_f32(vi, v + i);
            adamw_update(r, step, decay, p, g, mi, vi);
            ly_store_f32(m + i, mi);
            ly_store_f32(v + i, vi);
            ly_store_f32(param + i, p);
            if (model) {
                ly_store_f32(model + i, p);
            }
            if (clear_grad) {
                ly_store_f32(grad + i, g);
            }
        };
        if (wide) {
            ly_span<SLAB_PACK>(b, e, update);
        } else {
            ly_span<1>(b, e, update);
        }
    });
}

/* One element type of many, known at the launch. */
struct any_array {
    void *data;
    int dtype;
};

template <int N> __device__ __forceinline__ void any_load(float (&x)[N], any_array a, int64_t i)
{
    if (a.dtype == MC_F32) {
        ly_load_f32(x, static_cast<const float *>(a.data) + i);
    } else if (a.dtype == MC_BF16) {
        ly_load_f32(x, static_cast<const __nv_bfloat16 *>(a.data) + i);
    } else {
        ly_load_f32(x, static_cast<const __half *>(a.data) + i);
    }
}

/* Stochastic rounding of N elements, the first of which is element `e` of its tensor: one Philox block serves four. */
template <int N>
__device__ __forceinline__ void round_bf16(float (&x)[N], uint32_t seed, uint32_t stream, uint64_t step, uint64_t e)
{
    mc_rng_block block = mc_rng_bits(seed, stream, step, e / 4);
#pragma unroll
    for (int k = 0; k < N; k++) {
        if (k > 0 && (e + k) % 4 == 0) {
            block = mc_rng_bits(seed, stream, step, (e + k) / 4);
        }
        uint32_t at = (uint32_t)(e + k) % 4; /* by selection, so that the words stay in registers */
        uint32_t word = at == 0 ? block.w[0] : at == 1 ? block.w[1] : at == 2 ? block.w[2] : block.w[3];
        uint32_t bits = __float_as_uint(x[k]);
        bool special = (bits & 0x7f800000u) == 0x7f800000u;
        x[k] = special ? x[k] : __uint_as_float((bits + (word & 0xffffu)) & 0xffff0000u); /* exact in bf16 */
    }
}

template <int N>
__device__ __forceinline__ void any_store(any_array a, int64_t i, float (&x)[N], uint32_t seed, uint32_t stream,
                                          uint64_t step, uint64_t e)
{
    if (a.dtype == MC_F32) {
        ly_store_f32(static_cast<float *>(a.data) + i, x);
    } else if (a.dtype == MC_BF16) {
        round_bf16(x, seed, stream, step, e);
        ly_store_f32(static_cast<__nv_bfloat16 *>(a.data) + i, x);
    } else {
        ly_store_f32(static_cast<__half *>(a.data) + i, x);
    }
}

/* Element of the segment's tensor that element i of the slab is. */
__device__ __forceinline__ uint64_t global_element(const ly_segment &s, int64_t i)
{
    int64_t at = i - s.begin;
    return (uint64_t)(s.global0 + at + (s.gap != 0 ? s.gap * ((s.col0 + at) / s.cols) : 0));
}

/* States of 16 bits. Bytes an element: twice the sizes of param, m, v; that of grad, twice with clear_grad; 2 for
 * model. With all in bf16, 14 or 16 bytes against one Philox block for each of three numbers every four elements. A
 * pack of four may cross the end of a row only where rows follow each other in the global tensor (gap 0). */
__global__ void __launch_bounds__(SLAB_THREADS)
    adamw_mixed_kernel(void *param, int param_type, void *grad, int grad_type, void *m, int m_type, void *v, int v_type,
                       void *model, int model_type, const ly_segment *segments, int n_segments, int64_t n,
                       adamw_rates r, uint32_t seed, uint64_t step_number, bool clear_grad, bool wide)
{
    int64_t begin = (int64_t)blockIdx.x * SLAB_BLOCK, end = begin + SLAB_BLOCK < n ? begin + SLAB_BLOCK : n;
    any_array ap = {param, param_type}, ag = {grad, grad_type}, am = {m, m_type}, av = {v, v_type};
    ly_pieces(segments, n_segments, begin, end, [&](const ly_segment &s, int64_t b, int64_t e) {
        float step = r.step_size * s.lr_mult, decay = r.lr * s.lr_mult * r.weight_decay * s.decay_mult;
        auto update = [&](auto width, int64_t i) {
            constexpr int N = decltype(width)::N;
            uint64_t element = global_element(s, i);
            float p[N], g[N], mi[N], vi[N];
            any_load(p, ap, i);
            any_load(g, ag, i);
            any_load(mi, am, i);
            any_load(vi, av, i);
            adamw_update(r, step, decay, p, g, mi, vi);
            any_store(am, i, mi, seed, mc_rng_stream(MC_RNG_ROUND_M, s.tensor), step_number, element);
            any_store(av, i, vi, seed, mc_rng_stream(MC_RNG_ROUND_V, s.tensor), step_number, element);
            any_store(ap, i, p, seed, mc_rng_stream(MC_RNG_ROUND_PARAM, s.tensor), step_number, element);
            if (model) {
                if (model_type == MC_F16) {
                    ly_store_f32(static_cast<__half *>(model) + i, p);
                } else {
                    ly_store_f32(static_cast<__nv_bfloat16 *>(model) + i, p);
                }
            }
            if (clear_grad && grad_type == MC_F32) {
                ly_store_f32(static_cast<float *>(grad) + i, g);
            } else if (clear_grad) {
                ly_store_f32(static_cast<__nv_bfloat16 *>(grad) + i, g);
            }
        };
        if (wide && s.gap == 0) {
            ly_span<SLAB_PACK>(b, e, update);
        } else {
            ly_span<1>(b, e, update);
        }
    });
}

static adamw_rates adamw_rates_of(const ly_adamw *a)
{
    double rest1 = 1.0 - pow((double)a->beta1, (double)a->step), rest2 = 1.0 - pow((double)a->beta2, (double)a->step);
    return {.lr = a->lr,
            .beta1 = a->beta1,
            .rest1 = 1.0f - a->beta1,
            .beta2 = a->beta2,
            .rest2 = 1.0f - a->beta2,
            .eps = a->eps,
            .weight_decay = a->weight_decay,
            .grad_scale = a->grad_scale,
            .step_size = (float)((double)a->lr / rest1),
            .root = (float)(1.0 / sqrt(rest2))};
}

template <class G, class M> static int adamw_launch(const ly_ctx *cx, const ly_adamw *a)
{
    float *param = ly_data<float>(a->param), *m = ly_data<float>(a->m), *v = ly_data<float>(a->v);
    G *grad = ly_data<G>(a->grad);
    M *model = ly_data<M>(a->model);
    int64_t n = a->param.dims[0];
    adamw_rates rates = adamw_rates_of(a);
    bool wide = ly_fits<SLAB_PACK>(param) && ly_fits<SLAB_PACK>(grad) && ly_fits<SLAB_PACK>(m) &&
                ly_fits<SLAB_PACK>(v) && ly_fits<SLAB_PACK>(model);
    LY_LAUNCH((adamw_kernel<G, M>), slab_grid(n), SLAB_THREADS, 0, ly_stream(cx), param, grad, m, v, model, a->segments,
              a->n_segments, n, rates, a->clear_grad != 0, wide);
    return ly_launched();
}

/* Whether packs of four elements of x are aligned, whatever its type. */
static bool any_fits(mc_tensor x)
{
    return (uintptr_t)x.data % (SLAB_PACK * mc_dtype_bytes(x.dtype)) == 0;
}

static int adamw_mixed_launch(const ly_ctx *cx, const ly_adamw *a)
{
    int64_t n = a->param.dims[0];
    bool wide = any_fits(a->param) && any_fits(a->grad) && any_fits(a->m) && any_fits(a->v) &&
                (!mc_tensor_present(a->model) || any_fits(a->model));
    LY_LAUNCH(adamw_mixed_kernel, slab_grid(n), SLAB_THREADS, 0, ly_stream(cx), a->param.data, (int)a->param.dtype,
              a->grad.data, (int)a->grad.dtype, a->m.data, (int)a->m.dtype, a->v.data, (int)a->v.dtype, a->model.data,
              (int)a->model.dtype, a->segments, a->n_segments, n, adamw_rates_of(a), a->seed, (uint64_t)a->step,
              a->clear_grad != 0, wide);
    return ly_launched();
}

/* fn<G, M>(cx, a) for the types of gradient and model; an absent model is a NULL of any type. */
#define SLAB_BY_TYPES(fn, cx, a)                                                                   \
    ((a)->model.dtype == MC_F16                                                                    \
         ? (a)->grad.dtype == MC_F32 ? fn<float, __half>(cx, a) : fn<__nv_bfloat16, __half>(cx, a) \
     : (a)->grad.dtype == MC_F32 ? fn<float, __nv_bfloat16>(cx, a)                                 \
                                 : fn<__nv_bfloat16, __nv_bfloat16>(cx, a))

static bool slab_types_are_known(mc_tensor grad, mc_tensor model)
{
    return (grad.dtype == MC_F32 || grad.dtype == MC_BF16) &&
           (!mc_tensor_present(model) || model.dtype == MC_BF16 || model.dtype == MC_F16);
}

extern "C" int ly_k_adamw(const ly_ctx *cx, const ly_adamw *a)
{
    int64_t n = a->param.dims[0];
    MC_ASSERT(ly_is_contiguous_1d(a->param, n) && ly_is_contiguous_1d(a->grad, n) && ly_is_contiguous_1d(a->m, n) &&
              ly_is_contiguous_1d(a->v, n) && a->step >= 1);
    MC_ASSERT(!mc_tensor_present(a->model) || ly_is_contiguous_1d(a->model, n));
    MC_ASSERT(slab_types_are_known(a->grad, a->model));
    if (n == 0 || a->n_segments == 0) {
        return 0;
    }
    if (a->param.dtype != MC_F32 || a->m.dtype != MC_F32 || a->v.dtype != MC_F32) {
        MC_ASSERT(a->param.dtype != MC_F16 && !(mc_tensor_present(a->model) && a->param.dtype != MC_F32));
        return adamw_mixed_launch(cx, a);
    }
    return SLAB_BY_TYPES(adamw_launch, cx, a);
}

struct sgd_rates {
    float lr, momentum, weight_decay, grad_scale;
};

/* Bytes an element: 8 for param, 8 for m where there is one, sizeof(G) for grad, 2 for model. */
template <class G, class M>
__global__ void __launch_bounds__(SLAB_THREADS)
    sgd_kernel(float *param, const G *grad, float *m, M *model, const ly_segment *segments, int n_segments, int64_t n,
               sgd_rates r, bool wide)
{
    int64_t begin = (int64_t)blockIdx.x * SLAB_BLOCK, end = begin + SLAB_BLOCK < n ? begin + SLAB_BLOCK : n;
    ly_pieces(segments, n_segments, begin, end, [&](const ly_segment &s, int64_t b, int64_t e) {
        float lr = r.lr * s.lr_mult, decay = r.weight_decay * s.decay_mult;
        auto update = [&](auto width, int64_t i) {
            constexpr int N = decltype(width)::N;
            float p[N], g[N], mi[N];
            ly_load_f32(p, param + i);
            ly_load_f32(g, grad + i);
            if (m) {
                ly_load_f32(mi, m + i);
            }
#pragma unroll
            for (int k = 0; k < N; k++) {
                g[k] = fmaf(decay, p[k], g[k] * r.grad_scale);
                g[k] = m ? fmaf(r.momentum, mi[k], g[k]) : g[k];
                p[k] = fmaf(-lr, g[k], p[k]);
            }
            if (m) {
                ly_store_f32(m + i, g);
            }
            ly_store_f32(param + i, p);
            if (model) {
                ly_store_f32(model + i, p);
            }
        };
        if (wide) {
            ly_span<SLAB_PACK>(b, e, update);
        } else {
            ly_span<1>(b, e, update);
        }
    });
}

template <class G, class M> static int sgd_launch(const ly_ctx *cx, const ly_sgd *a)
{
    float *param = ly_data<float>(a->param), *m = ly_data<float>(a->m);
    const G *grad = ly_data<G>(a->grad);
    M *model = ly_data<M>(a->model);
    int64_t n = a->param.dims[0];
    bool wide =
        ly_fits<SLAB_PACK>(param) && ly_fits<SLAB_PACK>(grad) && ly_fits<SLAB_PACK>(m) && ly_fits<SLAB_PACK>(model);
    sgd_rates rates = {a->lr, a->momentum, a->weight_decay, a->grad_scale};
    LY_LAUNCH((sgd_kernel<G, M>), slab_grid(n), SLAB_THREADS, 0, ly_stream(cx), param, grad, m, model, a->segments,
              a->n_segments, n, rates, wide);
    return ly_launched();
}

extern "C" int ly_k_sgd(const ly_ctx *cx, const ly_sgd *a)
{
    int64_t n = a->param.dims[0];
    MC_ASSERT(ly_is_contiguous_1d(a->param, n) && ly_is_contiguous_1d(a->grad, n));
    MC_ASSERT(mc_tensor_present(a->m) ? ly_is_contiguous_1d(a->m, n) : a->momentum == 0.0f);
    MC_ASSERT(!mc_tensor_present(a->model) || ly_is_contiguous_1d(a->model, n));
    MC_ASSERT(slab_types_are_known(a->grad, a->model));
    if (n == 0 || a->n_segments == 0) {
        return 0;
    }
    return SLAB_BY_TYPES(sgd_launch, cx, a);
}

/* Partial sums of sq_norm cover whole units of elements; their number follows from the length alone. */
enum { NORM_THREADS = 512, NORM_UNIT = 8192 };

/* First stage: partials[block] = sum over the block's run of the slab, in double, where a square of any f32 is exact.
 * Bytes an element: sizeof(T). LY_PARTIALS blocks of 512 threads with four 16-byte reads each keep twice what the
 * memory of an H100 needs under way. The order of additions does not depend on `wide`. */
template <class T>
__global__ void __launch_bounds__(NORM_THREADS) sq_norm_kernel(const T *x, double *partials, const ly_segment *segments,
                                                               int n_segments, int64_t n, int64_t run, bool wide)
{
    __shared__ double slots[NORM_THREADS / LY_WARP];
    int64_t begin = blockIdx.x * run, end = begin + run < n ? begin + run : n;
    double sum = 0.0;
    ly_pieces(segments, n_segments, begin, end, [&](const ly_segment &s, int64_t b, int64_t e) {
        double even = 0.0, odd = 0.0;
        if (s.norm_weight == 0.0f) {
            return;
        }
        ly_span<16 / sizeof(T), 4>(b, e, [&](auto width, int64_t i) {
            constexpr int N = decltype(width)::N;
            float v[N];
            if (wide) {
                ly_load_f32(v, x + i);
            } else {
#pragma unroll
                for (int k = 0; k < N; k++) {
                    v[k] = ly_to_f32(x[i + k]);
                }
            }
#pragma unroll
            for (int k = 0; k < N; k++) {
                double &lane = k % 2 ? odd : even;
                lane = fma((double)v[k], (double)v[k], lane);
            }
        });
        sum += (double)s.norm_weight * (even + odd);
    });
    sum = ly_block_sum(sum, slots);
    if (threadIdx.x == 0) {
        partials[blockIdx.x] = sum;
    }
}

/* Last stage: one block adds the partial sums; thread t takes t, t + 256, ... in order. */
__global__ void __launch_bounds__(LY_FLAT_THREADS) sq_norm_last_kernel(const double *partials, double *out, int n)
{
    __shared__ double slots[LY_FLAT_THREADS / LY_WARP];
    double sum = 0.0;
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        sum += partials[i];
    }
    sum = ly_block_sum(sum, slots);
    if (threadIdx.x == 0) {
        *out = sum;
    }
}

template <class T> static int sq_norm_launch(const ly_ctx *cx, const ly_sq_norm *a)
{
    const T *x = ly_data<T>(a->x);
    double *out = ly_data<double>(a->out), *partials = static_cast<double *>(cx->workspace);
    int64_t n = a->x.dims[0], units = (n + NORM_UNIT - 1) / NORM_UNIT;
    int64_t run = (units + LY_PARTIALS - 1) / LY_PARTIALS * NORM_UNIT;
    int n_partials = n > 0 ? (int)((n + run - 1) / run) : 0;
    if (n_partials > 0) {
        MC_ASSERT(partials && cx->workspace_bytes >= (size_t)n_partials * sizeof *partials);
        LY_LAUNCH(sq_norm_kernel<T>, (unsigned)n_partials, NORM_THREADS, 0, ly_stream(cx), x, partials, a->segments,
                  a->n_segments, n, run, ly_fits<16 / (int)sizeof(T)>(x));
        int error = ly_launched();
        if (error) {
            return error;
        }
    }
    LY_LAUNCH(sq_norm_last_kernel, 1, LY_FLAT_THREADS, 0, ly_stream(cx), partials, out, n_partials);
    return ly_launched();
}

extern "C" int ly_k_sq_norm(const ly_ctx *cx, const ly_sq_norm *a)
{
    MC_ASSERT(ly_is_contiguous_1d(a->x, a->x.dims[0]) && ly_is_contiguous_1d(a->out, 1));
    MC_ASSERT(a->x.dtype == MC_F32 || a->x.dtype == MC_BF16);
    return a->x.dtype == MC_F32 ? sq_norm_launch<float>(cx, a) : sq_norm_launch<__nv_bfloat16>(cx, a);
}
