/* How launchers read their arguments: typed pointers out of tensor views, shapes, and the choice of an element type.
 * Host code only. */
#ifndef LAYERS_CUDA_TENSORS_CUH
#define LAYERS_CUDA_TENSORS_CUH

#include "layers/cuda/kernel.cuh"
#include "layers/cuda/kernels.h"
#include "megac/base/status.h"

template <class T> struct ly_dtype_of;
template <> struct ly_dtype_of<float> {
    static constexpr mc_dtype value = MC_F32;
};
template <> struct ly_dtype_of<double> {
    static constexpr mc_dtype value = MC_F64;
};
template <> struct ly_dtype_of<__nv_bfloat16> {
    static constexpr mc_dtype value = MC_BF16;
};
template <> struct ly_dtype_of<__half> {
    static constexpr mc_dtype value = MC_F16;
};
template <> struct ly_dtype_of<int32_t> {
    static constexpr mc_dtype value = MC_I32;
};

/* The elements of a view, which must have type T; NULL for an absent one. */
template <class T> static inline T *ly_data(mc_tensor t)
{
    MC_ASSERT(!mc_tensor_present(t) || t.dtype == ly_dtype_of<T>::value);
    return static_cast<T *>(t.data);
}

static inline bool ly_is_contiguous_2d(mc_tensor t, int64_t d0, int64_t d1)
{
    return t.n_dims == 2 && t.dims[0] == d0 && t.dims[1] == d1 && mc_tensor_contiguous(t);
}

static inline bool ly_is_contiguous_1d(mc_tensor t, int64_t d0)
{
    return t.n_dims == 1 && t.dims[0] == d0 && mc_tensor_contiguous(t);
}

static inline cudaStream_t ly_stream(const ly_ctx *cx)
{
    return static_cast<cudaStream_t>(cx->stream.handle);
}

/* fn<T, ...>(args) for the T that `dtype` names: f32, bf16 or f16. */
#define LY_BY_TYPE(dtype, fn, ...)                                                                \
    (MC_ASSERT(ly_is_float16_or_32(dtype)), (dtype) == MC_F32    ? fn<float>(__VA_ARGS__)         \
                                            : (dtype) == MC_BF16 ? fn<__nv_bfloat16>(__VA_ARGS__) \
                                                                 : fn<__half>(__VA_ARGS__))

static inline bool ly_is_float16_or_32(mc_dtype dtype)
{
    return dtype == MC_F32 || dtype == MC_BF16 || dtype == MC_F16;
}

#endif
