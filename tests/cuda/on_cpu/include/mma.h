/* nvcuda::wmma on the CPU; stands before CUDA's own header of this name. Tiles of 16x16x16, 32x8x16 and 8x32x16 of bf16
 * or half, accumulators of float (or half with half).
 *
 * Which lane holds which element is not what a GPU does (there it is unspecified): a kernel that assumes a layout gets
 * wrong results here. Sums are in order of k, in float. */
#ifndef TESTS_CUDA_ON_CPU_INCLUDE_MMA_H
#define TESTS_CUDA_ON_CPU_INCLUDE_MMA_H

#include <type_traits>

#include "tests/cuda/on_cpu/math.h"
#include "tests/cuda/on_cpu/runtime.h"

namespace nvcuda
{
namespace wmma
{

struct matrix_a {
};
struct matrix_b {
};
struct accumulator {
};
struct row_major {
};
struct col_major {
};
enum layout_t { mem_row_major, mem_col_major };

template <class Use, int M, int N, int K> struct tile_shape;
template <int M, int N, int K> struct tile_shape<matrix_a, M, N, K> {
    enum { ROWS = M, COLS = K };
};
template <int M, int N, int K> struct tile_shape<matrix_b, M, N, K> {
    enum { ROWS = K, COLS = N };
};
template <int M, int N, int K> struct tile_shape<accumulator, M, N, K> {
    enum { ROWS = M, COLS = N };
};

template <class Use, int M, int N, int K, class T, class Layout = void> struct fragment {
    static_assert(K == 16 && M * N == 256 && M >= 8 && N >= 8, "16x16x16, 32x8x16 or 8x32x16");
    static_assert(std::is_same_v<T, __nv_bfloat16> || std::is_same_v<T, __half> ||
                      (std::is_same_v<T, float> && std::is_same_v<Use, accumulator>),
                  "bf16 or half; accumulators also float");
    static_assert(std::is_same_v<Use, accumulator> == std::is_void_v<Layout>, "a and b have a layout");
    enum { ROWS = tile_shape<Use, M, N, K>::ROWS, COLS = tile_shape<Use, M, N, K>::COLS };
    static constexpr int num_elements = ROWS * COLS / 32;
    T x[num_elements]; /* of lane l: elements l * num_elements and on, row by row */
};

/* Calls fn(element of the fragment, its row, its column). */
template <class F, class Fn> inline void for_elements(F &f, Fn fn)
{
    int first = ly_on_cpu::lane() * F::num_elements;
    for (int i = 0; i < F::num_elements; i++) {
        fn(f.x[i], (first + i) / F::COLS, (first + i) % F::COLS);
    }
}

template <class T> inline void check_access(const T *p, unsigned stride)
{
    if (reinterpret_cast<uintptr_t>(p) % 32 != 0 || stride * sizeof(T) % 16 != 0) {
        ly_on_cpu::fail(
            "wmma: a tile at %p with rows of %u elements: 32-byte alignment and rows of a multiple of 16 bytes "
            "are needed",
            static_cast<const void *>(p), stride);
    }
}

/* These meet the warp; they do not order memory accesses of its lanes (as on a GPU: that is __syncwarp's). */
inline void meet()
{
    ly_on_cpu::collective(ly_on_cpu::BALLOT, 0xffffffffu, 0, 0, LY_ON_CPU_HERE);
}

template <class F, class V> inline void fill_fragment(F &f, V value)
{
    for (auto &x : f.x) {
        x = value;
    }
}

template <class Use, int M, int N, int K, class T, class Layout>
inline void load_matrix_sync(fragment<Use, M, N, K, T, Layout> &f, const T *p, unsigned stride)
{
    check_access(p, stride);
    meet();
    for_elements(f, [&](T &x, int row, int col) {
        x = std::is_same_v<Layout, col_major> ? p[col * stride + row] : p[row * stride + col];
    });
}

template <int M, int N, int K, class T>
inline void load_matrix_sync(fragment<accumulator, M, N, K, T> &f, const T *p, unsigned stride, layout_t layout)
{
    check_access(p, stride);
    meet();
    for_elements(f, [&](T &x, int row, int col) {
        x = layout == mem_col_major ? p[col * stride + row] : p[row * stride + col];
    });
}

template <int M, int N, int K, class T>
inline void store_matrix_sync(T *p, const fragment<accumulator, M, N, K, T> &f, unsigned stride, layout_t layout)
{
    check_access(p, stride);
    meet();
    for_elements(f, [&](const T &x, int row, int col) {
        (layout == mem_col_major ? p[col * stride + row] : p[row * stride + col]) = x;
    });
}

/* One product of a warp: every lane's fragments. */
template <class D, class A, class B, class C> struct product {
    D *d;
    const A *a;
    const B *b;
    const C *c;

    /* One lane reads and writes the fragments of all: registers on a GPU, so no race. */
    template <class F>
    __attribute__((no_sanitize("thread"))) static void gather(void *const *lanes, F product::*which, float *to)
    {
        for (int lane = 0; lane < 32; lane++) {
            F f = static_cast<product *>(lanes[lane])->*which;
            for (int i = 0; i < f->num_elements; i++) {
                auto x = f->x[i];
                to[lane * f->num_elements + i] = static_cast<float>(x);
            }
        }
    }
    __attribute__((no_sanitize("thread"))) static void run(void *const *lanes)
    {
        float a[A::ROWS * A::COLS], b[B::ROWS * B::COLS], c[C::ROWS * C::COLS];
        gather(lanes, &product::a, a);
        gather(lanes, &product::b, b);
        gather(lanes, &product::c, c);
        for (int row = 0; row < A::ROWS; row++) {
            for (int k = 0; k < A::COLS; k++) {
                for (int col = 0; col < B::COLS; col++) {
                    c[row * B::COLS + col] += a[row * A::COLS + k] * b[k * B::COLS + col];
                }
            }
        }
        for (int lane = 0; lane < 32; lane++) {
            D *d = static_cast<product *>(lanes[lane])->d;
            for (int i = 0; i < D::num_elements; i++) {
                d->x[i] = static_cast<std::remove_reference_t<decltype(d->x[i])>>(c[lane * D::num_elements + i]);
            }
        }
    }
};

template <class T, class TC, class TD, class LA, class LB, int M, int N, int K>
inline void mma_sync(fragment<accumulator, M, N, K, TD> &d, const fragment<matrix_a, M, N, K, T, LA> &a,
                     const fragment<matrix_b, M, N, K, T, LB> &b, const fragment<accumulator, M, N, K, TC> &c)
{
    using p = product<fragment<accumulator, M, N, K, TD>, fragment<matrix_a, M, N, K, T, LA>,
                      fragment<matrix_b, M, N, K, T, LB>, fragment<accumulator, M, N, K, TC>>;
    p operands = {&d, &a, &b, &c};
    ly_on_cpu::warp_call(p::run, &operands, LY_ON_CPU_HERE);
}

} // namespace wmma
} // namespace nvcuda

#endif
