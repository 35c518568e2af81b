/* Activations, addition and filling on CUDA devices. All are limited by memory: each element is read and written once.
 */
#include "layers/cuda/act.cuh"
#include "layers/cuda/flat.cuh"
#include "layers/cuda/tensors.cuh"

/* Bytes an element of out: 2 sizeof(T), with a gate 3 sizeof(T). At 3.35 TB/s (H100) a multiprocessor sees 3.7 elements
 * of bf16 a clock: about 34 instructions each before arithmetic counts. Element i of out reads x at i, or with a gate,
 * whose rows are twice as long, at i + row * n_cols, and n_cols further. */
template <class T, ly_act_kind KIND>
__global__ void __launch_bounds__(LY_FLAT_THREADS)
    act_fwd_kernel(const T *x, T *out, int64_t n_wide, int64_t n, int64_t n_cols)
{
    ly_flat<16 / sizeof(T)>(n_wide, n, [&](auto width, int64_t i) {
        constexpr int N = decltype(width)::N;
        float v[N], y[N];
        int64_t at = KIND == LY_SWIGLU ? i + i / n_cols * n_cols : i;
        ly_load_f32(v, x + at);
        if constexpr (KIND == LY_SWIGLU) {
            ly_load_f32(y, x + at + n_cols);
        }
#pragma unroll
        for (int k = 0; k < N; k++) {
            float value = ly_act_of<T, KIND>(v[k]).value;
            y[k] = KIND == LY_SWIGLU ? value * y[k] : value;
        }
        ly_store_f32(out + i, y);
    });
}

/* Bytes an element of dout: 3 sizeof(T), with a gate 5 sizeof(T), and sizeof(T) more where out is wanted. A thread
 * reads all operands of an element before it writes any: dx may be x, out may be dout. */
template <class T, ly_act_kind KIND>
__global__ void __launch_bounds__(LY_FLAT_THREADS)
    act_bwd_kernel(const T *x, const T *dout, T *dx, T *out, int64_t n_wide, int64_t n, int64_t n_cols)
{
    ly_flat<16 / sizeof(T)>(n_wide, n, [&](auto width, int64_t i) {
        constexpr int N = decltype(width)::N;
        float v[N], d[N], y[N];
        int64_t at = KIND == LY_SWIGLU ? i + i / n_cols * n_cols : i;
        ly_load_f32(v, x + at);
        ly_load_f32(d, dout + i);
        if constexpr (KIND == LY_SWIGLU) {
            ly_load_f32(y, x + at + n_cols);
        }
#pragma unroll
        for (int k = 0; k < N; k++) {
            ly_act_pair a = ly_act_of<T, KIND>(v[k]);
            float up = KIND == LY_SWIGLU ? y[k] : 1.0f, dout_k = d[k];
            v[k] = dout_k * up * a.slope;
            d[k] = dout_k * a.value; /* the gradient of `up` */
            y[k] = a.value * up;
        }
        ly_store_f32(dx + at, v);
        if constexpr (KIND == LY_SWIGLU) {
            ly_store_f32(dx + at + n_cols, d);
        }
        if (out) {
            ly_store_f32(out + i, y);
        }
    });
}

/* Elements of an activation that go by packs. With a gate, packs must not straddle rows. */
template <class T> static int64_t act_wide(ly_act_kind kind, bool aligned, int64_t n, int64_t n_cols)
{
    int64_t pack = 16 / sizeof(T);
    if (!aligned || (kind == LY_SWIGLU && n_cols % pack != 0)) {
        return 0;
    }
    return n - n % pack;
}

/* Calls fn<T, kind>(cx, a). */
#define ACT_BY_KIND(kind, T, fn, cx, a)                          \
    ((kind) == LY_GELU_TANH      ? fn<T, LY_GELU_TANH>(cx, a)    \
     : (kind) == LY_GELU_ERF     ? fn<T, LY_GELU_ERF>(cx, a)     \
     : (kind) == LY_SQUARED_RELU ? fn<T, LY_SQUARED_RELU>(cx, a) \
     : (kind) == LY_SWIGLU       ? fn<T, LY_SWIGLU>(cx, a)       \
                                 : fn<T, LY_SILU>(cx, a))

template <class T, ly_act_kind KIND> static int act_fwd_launch(const ly_ctx *cx, const ly_act_fwd *a)
{
    enum { PACK = 16 / sizeof(T) };
    int64_t n_cols = a->out.dims[1], n = mc_tensor_elems(a->out);
    const T *x = ly_data<T>(a->x);
    T *out = ly_data<T>(a->out);
    int64_t n_wide = act_wide<T>(KIND, ly_fits<PACK>(x) && ly_fits<PACK>(out), n, n_cols);
    LY_LAUNCH((act_fwd_kernel<T, KIND>), ly_flat_grid(n_wide, n, PACK), LY_FLAT_THREADS, 0, ly_stream(cx), x, out,
              n_wide, n, n_cols);
    return ly_launched();
}

template <class T> static int act_fwd_type(const ly_ctx *cx, const ly_act_fwd *a)
{
    return ACT_BY_KIND(a->kind, T, act_fwd_launch, cx, a);
}

extern "C" int ly_k_act_fwd(const ly_ctx *cx, const ly_act_fwd *a)
{
    MC_ASSERT(a->out.n_dims == 2 && a->out.data != a->x.data && a->kind >= LY_GELU_TANH && a->kind <= LY_SILU);
    int64_t n_rows = a->out.dims[0], n_cols = a->out.dims[1];
    MC_ASSERT(ly_is_contiguous_2d(a->out, n_rows, n_cols) &&
              ly_is_contiguous_2d(a->x, n_rows, a->kind == LY_SWIGLU ? 2 * n_cols : n_cols));
    if (n_rows * n_cols == 0) {
        return 0;
    }
    return LY_BY_TYPE(a->out.dtype, act_fwd_type, cx, a);
}

template <class T, ly_act_kind KIND> static int act_bwd_launch(const ly_ctx *cx, const ly_act_bwd *a)
{
    enum { PACK = 16 / sizeof(T) };
    int64_t n_cols = a->dout.dims[1], n = mc_tensor_elems(a->dout);
    const T *x = ly_data<T>(a->x), *dout = ly_data<T>(a->dout);
    T *dx = ly_data<T>(a->dx), *out = ly_data<T>(a->out);
    bool aligned = ly_fits<PACK>(x) && ly_fits<PACK>(dout) && ly_fits<PACK>(dx) && ly_fits<PACK>(out);
    int64_t n_wide = act_wide<T>(KIND, aligned, n, n_cols);
    LY_LAUNCH((act_bwd_kernel<T, KIND>), ly_flat_grid(n_wide, n, PACK), LY_FLAT_THREADS, 0, ly_stream(cx), x, dout, dx,
              out, n_wide, n, n_cols);
    return ly_launched();
}

template <class T> static int act_bwd_type(const ly_ctx *cx, const ly_act_bwd *a)
{
    return ACT_BY_KIND(a->kind, T, act_bwd_launch, cx, a);
}

extern "C" int ly_k_act_bwd(const ly_ctx *cx, const ly_act_bwd *a)
{
    MC_ASSERT(a->dout.n_dims == 2 && a->kind >= LY_GELU_TANH && a->kind <= LY_SILU);
    int64_t n_rows = a->dout.dims[0], n_cols = a->dout.dims[1], x_cols = a->kind == LY_SWIGLU ? 2 * n_cols : n_cols;
    MC_ASSERT(ly_is_contiguous_2d(a->dout, n_rows, n_cols) && ly_is_contiguous_2d(a->x, n_rows, x_cols) &&
              ly_is_contiguous_2d(a->dx, n_rows, x_cols));
    MC_ASSERT(!mc_tensor_present(a->out) || ly_is_contiguous_2d(a->out, n_rows, n_cols));
    if (n_rows * n_cols == 0) {
        return 0;
    }
    return LY_BY_TYPE(a->dout.dtype, act_bwd_type, cx, a);
}

/* Bytes an element: 3 sizeof(T). out may be a or b. */
template <class T>
__global__ void __launch_bounds__(LY_FLAT_THREADS) add_kernel(const T *a, const T *b, T *out, int64_t n_wide, int64_t n)
{
    ly_flat<16 / sizeof(T)>(n_wide, n, [&](auto width, int64_t i) {
        constexpr int N = decltype(width)::N;
        float x[N], y[N];
        ly_load_f32(x, a + i);
        ly_load_f32(y, b + i);
#pragma unroll
        for (int k = 0; k < N; k++) {
            x[k] += y[k];
        }
        ly_store_f32(out + i, x);
    });
}

template <class T> static int add_launch(const ly_ctx *cx, const ly_add *op)
{
    enum { PACK = 16 / sizeof(T) };
    const T *a = ly_data<T>(op->a), *b = ly_data<T>(op->b);
    T *out = ly_data<T>(op->out);
    int64_t n = mc_tensor_elems(op->out);
    int64_t n_wide = ly_fits<PACK>(a) && ly_fits<PACK>(b) && ly_fits<PACK>(out) ? n - n % PACK : 0;
    LY_LAUNCH(add_kernel<T>, ly_flat_grid(n_wide, n, PACK), LY_FLAT_THREADS, 0, ly_stream(cx), a, b, out, n_wide, n);
    return ly_launched();
}

extern "C" int ly_k_add(const ly_ctx *cx, const ly_add *a)
{
    MC_ASSERT(mc_tensor_same_shape(a->a, a->b) && mc_tensor_same_shape(a->a, a->out));
    MC_ASSERT(mc_tensor_contiguous(a->a) && mc_tensor_contiguous(a->b) && mc_tensor_contiguous(a->out));
    if (mc_tensor_elems(a->out) == 0) {
        return 0;
    }
    return LY_BY_TYPE(a->out.dtype, add_launch, cx, a);
}

/* Bytes an element: sizeof(T), written. */
template <class T>
__global__ void __launch_bounds__(LY_FLAT_THREADS) fill_kernel(T *x, float value, int64_t n_wide, int64_t n)
{
    ly_flat<16 / sizeof(T)>(n_wide, n, [&](auto width, int64_t i) {
        constexpr int N = decltype(width)::N;
        float v[N];
#pragma unroll
        for (int k = 0; k < N; k++) {
            v[k] = value;
        }
        ly_store_f32(x + i, v);
    });
}

template <class T> static int fill_launch(const ly_ctx *cx, const ly_fill *a)
{
    enum { PACK = 16 / sizeof(T) };
    T *x = ly_data<T>(a->x);
    int64_t n = mc_tensor_elems(a->x), n_wide = ly_fits<PACK>(x) ? n - n % PACK : 0;
    LY_LAUNCH(fill_kernel<T>, ly_flat_grid(n_wide, n, PACK), LY_FLAT_THREADS, 0, ly_stream(cx), x, a->value, n_wide, n);
    return ly_launched();
}

extern "C" int ly_k_fill(const ly_ctx *cx, const ly_fill *a)
{
    MC_ASSERT(mc_tensor_contiguous(a->x));
    if (mc_tensor_elems(a->x) == 0) {
        return 0;
    }
    return LY_BY_TYPE(a->x.dtype, fill_launch, cx, a);
}
