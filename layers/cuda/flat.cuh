/* Element-wise kernels: packs of N elements of any type read and written in 16-byte pieces, and the loop over them.
 *
 * A kernel walks `n_wide` elements by packs and the rest one by one, in one launch: n_wide is n less the odd end where
 * every operand is aligned, and 0 where one is not. */
#ifndef LAYERS_CUDA_FLAT_CUH
#define LAYERS_CUDA_FLAT_CUH

#include "layers/cuda/kernel.cuh"

/* N elements of T as one access; N * sizeof(T) is 2, 4, 8 or 16. */
template <class T, int N> struct alignas(N * sizeof(T)) ly_pack {
    T x[N];
};

/* Elements of one access when N of them are wanted: at most 16 bytes. */
template <class T, int N> __host__ __device__ constexpr int ly_piece()
{
    return N * (int)sizeof(T) <= 16 ? N : 16 / (int)sizeof(T);
}

/* A pack as it lies in memory; p aligned to it, and, where a pack is stored, in global memory. */
template <int N, class T> __device__ __forceinline__ ly_pack<T, N> ly_pack_at(const T *p)
{
    return *reinterpret_cast<const ly_pack<T, N> *>(p);
}
template <int N, class T> __device__ __forceinline__ void ly_pack_to(T *p, const ly_pack<T, N> &pack)
{
#ifdef __CUDA_ARCH__
    /* Said as one instruction: nvcc 13 splits some of these stores into their elements, and does not always join them.
     */
    if constexpr (sizeof(pack) == 16) {
        uint4 word;
        memcpy(&word, static_cast<const void *>(&pack), sizeof word);
        __stwb(reinterpret_cast<uint4 *>(p), word);
        return;
    }
#endif
    *reinterpret_cast<ly_pack<T, N> *>(p) = pack;
}

/* x = p[0, N) in f32; p aligned to the smaller of 16 bytes and N elements. */
template <int N, class T> __device__ __forceinline__ void ly_load_f32(float (&x)[N], const T *p)
{
    constexpr int P = ly_piece<T, N>();
#pragma unroll
    for (int at = 0; at < N; at += P) {
        ly_pack<T, P> piece = ly_pack_at<P>(p + at);
#pragma unroll
        for (int i = 0; i < P; i++) {
            x[at + i] = ly_to_f32(piece.x[i]);
        }
    }
}

/* Two neighbours, for the conversion that makes both in one instruction. */
__device__ __forceinline__ void ly_round_pair(float *to, float a, float b)
{
    to[0] = a;
    to[1] = b;
}
__device__ __forceinline__ void ly_round_pair(__nv_bfloat16 *to, float a, float b)
{
    __nv_bfloat162 pair = __floats2bfloat162_rn(a, b);
    to[0] = pair.x;
    to[1] = pair.y;
}
__device__ __forceinline__ void ly_round_pair(__half *to, float a, float b)
{
    __half2 pair = __floats2half2_rn(a, b);
    to[0] = pair.x;
    to[1] = pair.y;
}

/* p[0, N) = x, rounded to nearest even, in global memory; alignment as for ly_load_f32. */
template <int N, class T> __device__ __forceinline__ void ly_store_f32(T *p, const float (&x)[N])
{
    constexpr int P = ly_piece<T, N>();
#pragma unroll
    for (int at = 0; at < N; at += P) {
        ly_pack<T, P> piece;
        if constexpr (P == 1) {
            piece.x[0] = ly_from_f32<T>(x[at]);
        } else {
#pragma unroll
            for (int i = 0; i < P; i += 2) {
                ly_round_pair(&piece.x[i], x[at + i], x[at + i + 1]);
            }
        }
        ly_pack_to(p + at, piece);
    }
}

/* The number of elements that a call of a loop's body handles, known when it is compiled: decltype(width)::N. */
template <int COUNT> struct ly_width {
    static constexpr int N = COUNT;
};

/* body(ly_width<N>(), i) for packs that begin at i < n_wide, body(ly_width<1>(), i) for the elements up to n. Each
 * element belongs to one thread. */
template <int N, class F> __device__ __forceinline__ void ly_flat(int64_t n_wide, int64_t n, F body)
{
    int64_t thread = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, n_threads = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = thread * N; i < n_wide; i += n_threads * N) {
        body(ly_width<N>(), i);
    }
    for (int64_t i = n_wide + thread; i < n; i += n_threads) {
        body(ly_width<1>(), i);
    }
}

/* One pack a thread as far as the grid goes: 2048 threads of 16 bytes keep 32 KiB of reads in flight on a
 * multiprocessor, twice what its share of the memory's bandwidth times latency asks for. The cap leaves blocks of long
 * tensors several packs a thread. */
enum { LY_FLAT_THREADS = 256, LY_FLAT_BLOCKS = 1 << 16 };

static inline unsigned ly_flat_grid(int64_t n_wide, int64_t n, int pack)
{
    int64_t threads = n_wide / pack > n - n_wide ? n_wide / pack : n - n_wide;
    int64_t blocks = (threads + LY_FLAT_THREADS - 1) / LY_FLAT_THREADS;
    return (unsigned)(blocks < 1 ? 1 : blocks < LY_FLAT_BLOCKS ? blocks : (int64_t)LY_FLAT_BLOCKS);
}

/* Whether N elements at p may be one access. */
template <int N, class T> static inline bool ly_fits(const T *p)
{
    return reinterpret_cast<uintptr_t>(p) % (ly_piece<T, N>() * sizeof(T)) == 0;
}

#endif
