/* Reductions of the stand-in for NCCL: element by element, in rank order, so that all ranks get the same bits. */
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <type_traits>

#include "nccl_impl.h"

namespace standin::nccl
{

static float widen(__half x)
{
    return __half2float(x);
}

static float widen(__nv_bfloat16 x)
{
    return __bfloat162float(x);
}

template <class T> static T widen(T x)
{
    return x;
}

template <class T, class Wide> static T narrow(Wide x)
{
    if constexpr (std::is_same_v<T, __half>) {
        return __float2half_rn(x);
    } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
        return __float2bfloat16_rn(x);
    } else {
        return static_cast<T>(x);
    }
}

/* Integers wrap; the largest and the smallest of a NaN are NaN. */
template <class Wide> static Wide combine(Wide a, Wide b, ncclRedOp_t op)
{
    switch (op) {
    case ncclMax:
        return b > a || b != b ? b : a;
    case ncclMin:
        return b < a || b != b ? b : a;
    case ncclProd:
        if constexpr (std::is_integral_v<Wide>) {
            return static_cast<Wide>(static_cast<uint64_t>(a) * static_cast<uint64_t>(b));
        } else {
            return a * b;
        }
    default:
        if constexpr (std::is_integral_v<Wide>) {
            return static_cast<Wide>(static_cast<uint64_t>(a) + static_cast<uint64_t>(b));
        } else {
            return a + b;
        }
    }
}

/* A block of elements at a time, so that the loops over elements are the inner ones. */
template <class T, class Wide>
static void reduce_as(char *dst, const char *const *src, int ranks, size_t count, ncclRedOp_t op)
{
    constexpr size_t BLOCK = 256;
    Wide sum[BLOCK];
    for (size_t begin = 0; begin < count; begin += BLOCK) {
        size_t n = count - begin < BLOCK ? count - begin : BLOCK;
        const T *first = reinterpret_cast<const T *>(src[0]) + begin;
        for (size_t i = 0; i < n; i++) {
            sum[i] = static_cast<Wide>(widen(first[i]));
        }
        for (int r = 1; r < ranks; r++) {
            const T *next = reinterpret_cast<const T *>(src[r]) + begin;
            for (size_t i = 0; i < n; i++) {
                sum[i] = combine(sum[i], static_cast<Wide>(widen(next[i])), op);
            }
        }
        T *out = reinterpret_cast<T *>(dst) + begin;
        for (size_t i = 0; i < n; i++) {
            out[i] = narrow<T>(op == ncclAvg ? static_cast<Wide>(sum[i] / static_cast<Wide>(ranks)) : sum[i]);
        }
    }
}

void reduce(char *dst, const char *const *src, int ranks, size_t count, ncclDataType_t type, ncclRedOp_t op)
{
    switch (type) {
    case ncclInt8:
        return reduce_as<int8_t, int64_t>(dst, src, ranks, count, op);
    case ncclUint8:
        return reduce_as<uint8_t, uint64_t>(dst, src, ranks, count, op);
    case ncclInt32:
        return reduce_as<int32_t, int64_t>(dst, src, ranks, count, op);
    case ncclUint32:
        return reduce_as<uint32_t, uint64_t>(dst, src, ranks, count, op);
    case ncclInt64:
        return reduce_as<int64_t, int64_t>(dst, src, ranks, count, op);
    case ncclUint64:
        return reduce_as<uint64_t, uint64_t>(dst, src, ranks, count, op);
    case ncclFloat16:
        return reduce_as<__half, float>(dst, src, ranks, count, op);
    case ncclBfloat16:
        return reduce_as<__nv_bfloat16, float>(dst, src, ranks, count, op);
    case ncclFloat32:
        return reduce_as<float, float>(dst, src, ranks, count, op);
    case ncclFloat64:
        return reduce_as<double, double>(dst, src, ranks, count, op);
    default:
        die(96, "NCCL: data type %d is not one of those reduced here", static_cast<int>(type));
    }
}

} // namespace standin::nccl
