/* Walking the segments of a slab (optim.h): a block takes one piece of the slab, finds its segments by binary search,
 * and goes over their elements by packs. */
#ifndef LAYERS_CUDA_SLAB_CUH
#define LAYERS_CUDA_SLAB_CUH

#include "layers/cuda/flat.cuh"
#include "layers/optim.h"

/* body(ly_width<N>(), i) for the packs inside [begin, end) that begin at multiples of N, body(ly_width<1>(), i) for the
 * elements around them. The block's threads share the work; who does what follows from begin, end and N alone.
 * UNROLL: packs that a thread may have under way. */
template <int N, int UNROLL = 1, class F> __device__ __forceinline__ void ly_span(int64_t begin, int64_t end, F body)
{
    int64_t first = (begin + N - 1) / N * N, last = end / N * N; /* of the packs */
    if (first >= last) {
        first = last = end;
    }
    for (int64_t i = begin + threadIdx.x; i < first; i += blockDim.x) {
        body(ly_width<1>(), i);
    }
#pragma unroll UNROLL
    for (int64_t i = first + (int64_t)threadIdx.x * N; i < last; i += (int64_t)blockDim.x * N) {
        body(ly_width<N>(), i);
    }
    for (int64_t i = last + threadIdx.x; i < end; i += blockDim.x) {
        body(ly_width<1>(), i);
    }
}

/* body(segment, b, e) for the part [b, e) of every segment inside [begin, end), in order. */
template <class F>
__device__ __forceinline__ void ly_pieces(const ly_segment *segments, int n_segments, int64_t begin, int64_t end,
                                          F body)
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
    for (; low < n_segments && segments[low].begin < end; low++) {
        ly_segment s = segments[low];
        int64_t b = s.begin > begin ? s.begin : begin, e = s.end < end ? s.end : end;
        if (b < e) {
            body(s, b, e);
        }
    }
}

#endif
