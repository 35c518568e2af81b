/* Conversion between element types on CUDA devices. */
#include "layers/cuda/flat.cuh"
#include "layers/cuda/tensors.cuh"

/* Elements of a pack: 16 bytes of the wider type, so that neighbouring threads touch neighbouring memory in both. */
template <class X, class O> __host__ __device__ constexpr int cast_pack()
{
    return 16 / (int)(sizeof(X) > sizeof(O) ? sizeof(X) : sizeof(O));
}

/* Bytes an element: sizeof(X) + sizeof(O), with accumulate sizeof(O) more. One rounding, of x * scale or of
 * x * scale + out. */
template <class X, class O>
__global__ void __launch_bounds__(LY_FLAT_THREADS)
    cast_kernel(const X *x, O *out, float scale, bool accumulate, int64_t n_wide, int64_t n)
{
    ly_flat<cast_pack<X, O>()>(n_wide, n, [&](auto width, int64_t i) {
        constexpr int N = decltype(width)::N;
        float v[N], old[N];
        ly_load_f32(v, x + i);
        if (accumulate) {
            ly_load_f32(old, out + i);
        }
#pragma unroll
        for (int k = 0; k < N; k++) {
            v[k] = accumulate ? fmaf(v[k], scale, old[k]) : v[k] * scale;
        }
        ly_store_f32(out + i, v);
    });
}

template <class X, class O> static int cast_launch(const ly_ctx *cx, const ly_cast *a)
{
    constexpr int PACK = cast_pack<X, O>();
    const X *x = ly_data<X>(a->x);
    O *out = ly_data<O>(a->out);
    int64_t n = mc_tensor_elems(a->out), n_wide = ly_fits<PACK>(x) && ly_fits<PACK>(out) ? n - n % PACK : 0;
    LY_LAUNCH((cast_kernel<X, O>), ly_flat_grid(n_wide, n, PACK), LY_FLAT_THREADS, 0, ly_stream(cx), x, out, a->scale,
              a->accumulate, n_wide, n);
    return ly_launched();
}

template <class X> static int cast_from(const ly_ctx *cx, const ly_cast *a)
{
    MC_ASSERT(ly_is_float16_or_32(a->out.dtype));
    return a->out.dtype == MC_F32    ? cast_launch<X, float>(cx, a)
           : a->out.dtype == MC_BF16 ? cast_launch<X, __nv_bfloat16>(cx, a)
                                     : cast_launch<X, __half>(cx, a);
}

extern "C" int ly_k_cast(const ly_ctx *cx, const ly_cast *a)
{
    MC_ASSERT(mc_tensor_contiguous(a->x) && mc_tensor_contiguous(a->out));
    MC_ASSERT(mc_tensor_elems(a->x) == mc_tensor_elems(a->out));
    if (mc_tensor_elems(a->out) == 0) {
        return 0;
    }
    return LY_BY_TYPE(a->x.dtype, cast_from, cx, a);
}
