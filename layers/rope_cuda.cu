/* Rotary positions on CUDA devices, in place on strided views. */
#include "layers/cuda/flat.cuh"
#include "layers/cuda/tensors.cuh"

enum { ROPE_THREADS = 256 };

/* Where heads and angles lie: strides in elements. */
struct rope_shape {
    int64_t n_rows, row, group, head, cos_row, sin_row;
    int n_heads, group_heads; /* G r, and r */
    int half;                 /* pairs of a head that turn */
};

/* The PAIRS pairs that begin with pair i of a head: halves (x_i, x_{i + half}), or neighbours (x_2i, x_2i+1). */
template <class T, int PAIRS, bool INTERLEAVED>
__device__ __forceinline__ void load_pairs(float (&u)[PAIRS], float (&w)[PAIRS], const T *head, int i, int half)
{
    if constexpr (!INTERLEAVED) {
        ly_load_f32(u, head + i);
        ly_load_f32(w, head + half + i);
    } else if constexpr (PAIRS == 1) { /* such a pair may lie at any address of a T */
        u[0] = ly_to_f32(head[2 * i]);
        w[0] = ly_to_f32(head[2 * i + 1]);
    } else {
        float v[2 * PAIRS];
        ly_load_f32(v, head + 2 * i);
#pragma unroll
        for (int k = 0; k < PAIRS; k++) {
            u[k] = v[2 * k];
            w[k] = v[2 * k + 1];
        }
    }
}

template <class T, int PAIRS, bool INTERLEAVED>
__device__ __forceinline__ void store_pairs(T *head, int i, int half, const float (&u)[PAIRS], const float (&w)[PAIRS])
{
    if constexpr (!INTERLEAVED) {
        ly_store_f32(head + i, u);
        ly_store_f32(head + half + i, w);
    } else if constexpr (PAIRS == 1) {
        head[2 * i] = ly_from_f32<T>(u[0]);
        head[2 * i + 1] = ly_from_f32<T>(w[0]);
    } else {
        float v[2 * PAIRS];
#pragma unroll
        for (int k = 0; k < PAIRS; k++) {
            v[2 * k] = u[k];
            v[2 * k + 1] = w[k];
        }
        ly_store_f32(head + 2 * i, v);
    }
}

/* A thread turns PAIRS pairs of one row in several heads, so that it reads their angles once.
 *
 * Bytes an element that turns: 2 sizeof(T); the angles of a row (8 bytes a pair, f32) come from memory once and from
 * the caches for the row's other heads. */
template <class T, int PAIRS, bool INTERLEAVED>
__global__ void __launch_bounds__(ROPE_THREADS)
    rope_kernel(T *x, const float *cos, const float *sin, rope_shape shape, int64_t seq_len, int64_t pos0, bool inverse)
{
    int64_t row = (int64_t)blockIdx.x * blockDim.z + threadIdx.z;
    if (row >= shape.n_rows) {
        return;
    }
    int64_t position = pos0 + row % seq_len;
    for (int i = threadIdx.x * PAIRS; i < shape.half; i += blockDim.x * PAIRS) {
        float c[PAIRS], s[PAIRS];
        ly_load_f32(c, cos + position * shape.cos_row + i);
        ly_load_f32(s, sin + position * shape.sin_row + i);
#pragma unroll
        for (int k = 0; k < PAIRS; k++) {
            s[k] = inverse ? -s[k] : s[k];
        }
        for (int h = threadIdx.y; h < shape.n_heads; h += blockDim.y) {
            int group = h / shape.group_heads, in_group = h - group * shape.group_heads;
            T *head = x + row * shape.row + group * shape.group + in_group * shape.head;
            float u[PAIRS], w[PAIRS];
            load_pairs<T, PAIRS, INTERLEAVED>(u, w, head, i, shape.half);
#pragma unroll
            for (int k = 0; k < PAIRS; k++) {
                float turned = fmaf(-w[k], s[k], u[k] * c[k]);
                w[k] = fmaf(u[k], s[k], w[k] * c[k]);
                u[k] = turned;
            }
            store_pairs<T, PAIRS, INTERLEAVED>(head, i, shape.half, u, w);
        }
    }
}

/* Threads: along a head, over heads, and where a row needs few, over rows. */
template <class T, int PAIRS, bool INTERLEAVED>
static int rope_queue(const ly_ctx *cx, const ly_rope *a, const rope_shape &shape)
{
    int along = shape.half / PAIRS < ROPE_THREADS ? shape.half / PAIRS : ROPE_THREADS;
    int heads = ROPE_THREADS / along < shape.n_heads ? ROPE_THREADS / along : shape.n_heads;
    int rows = ROPE_THREADS / 2 / (along * heads); /* half a block's threads at least, if there are as many */
    rows = rows < 1 ? 1 : rows < 32 ? rows : 32;
    dim3 block((unsigned)along, (unsigned)heads, (unsigned)rows);
    LY_LAUNCH((rope_kernel<T, PAIRS, INTERLEAVED>), (unsigned)((shape.n_rows + rows - 1) / rows), block, 0,
              ly_stream(cx), ly_data<T>(a->x), ly_data<float>(a->cos), ly_data<float>(a->sin), shape, a->seq_len,
              a->pos0, a->inverse);
    return ly_launched();
}

/* Whether packs of PAIRS pairs may be read and written in 16-byte pieces: every row, group and head is aligned. */
template <class T, int PAIRS> static bool rope_is_wide(const ly_rope *a, const rope_shape &shape)
{
    const int64_t pack = 16 / sizeof(T), angles = 16 / sizeof(float);
    return shape.half % PAIRS == 0 && shape.row % pack == 0 && shape.group % pack == 0 && shape.head % pack == 0 &&
           ly_fits<pack>(ly_data<T>(a->x)) && shape.cos_row % angles == 0 && shape.sin_row % angles == 0 &&
           ly_fits<angles>(ly_data<float>(a->cos)) && ly_fits<angles>(ly_data<float>(a->sin));
}

template <class T> static int rope_launch(const ly_ctx *cx, const ly_rope *a)
{
    enum { PACK = 16 / sizeof(T) };
    rope_shape shape = {.n_rows = a->x.dims[0],
                        .row = a->x.strides[0],
                        .group = a->x.strides[1],
                        .head = a->x.strides[2],
                        .cos_row = a->cos.strides[0],
                        .sin_row = a->sin.strides[0],
                        .n_heads = (int)(a->x.dims[1] * a->x.dims[2]),
                        .group_heads = (int)a->x.dims[2],
                        .half = (int)a->cos.dims[1]};
    if (a->interleaved) {
        return rope_is_wide<T, PACK / 2>(a, shape) ? rope_queue<T, PACK / 2, true>(cx, a, shape)
                                                   : rope_queue<T, 1, true>(cx, a, shape);
    }
    return rope_is_wide<T, PACK>(a, shape) ? rope_queue<T, PACK, false>(cx, a, shape)
                                           : rope_queue<T, 1, false>(cx, a, shape);
}

extern "C" int ly_k_rope(const ly_ctx *cx, const ly_rope *a)
{
    MC_ASSERT(a->x.n_dims == 4 && a->cos.n_dims == 2 && mc_tensor_same_shape(a->cos, a->sin));
    MC_ASSERT(a->x.strides[3] == 1 && 2 * a->cos.dims[1] <= a->x.dims[3]);
    MC_ASSERT(a->seq_len > 0 && a->pos0 >= 0);
    int64_t n_rows = a->x.dims[0], last = n_rows < a->seq_len ? n_rows : a->seq_len;
    MC_ASSERT(a->pos0 + last <= a->cos.dims[0]);
    if (mc_tensor_elems(a->x) == 0 || a->cos.dims[1] == 0) {
        return 0;
    }
    return LY_BY_TYPE(a->x.dtype, rope_launch, cx, a);
}
