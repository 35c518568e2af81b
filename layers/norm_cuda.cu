/* Forward of the fused bias + dropout + residual + norm: a row stays in the registers of one to sixteen warps. */
#include "layers/cuda/norm_wide.cuh"

/* Reads x, y once, writes h, out once; the parameters come from the caches. Bytes an element, with sizeof(T) = b: 4 b
 * for the whole of it (x, y, h, out), 2 b without y; floor on an H100 (3.35 TB/s) for bf16: 2.4 ns for 1,000 elements.
 * A row's statistics take two sums over it, both from registers. VECS vectors of WIDTH elements a thread. */
template <class T, int WIDTH, int VECS>
static __global__ void __launch_bounds__(LY_I_NORM_THREADS)
    norm_fwd_kernel(const T *x, const T *y, const T *y_bias, T *h, const T *gamma, const T *beta, T *out, float *stats,
                    int64_t n_rows, int n_cols, bool rms, bool one_plus, float eps, ly_mask mask)
{
    __shared__ float slots[2][LY_I_NORM_WARPS];
    int64_t row = (int64_t)blockIdx.x * blockDim.y + threadIdx.y, at = row * n_cols;
    int end = row < n_rows ? n_cols : 0; /* rows past the last take part in the barriers only */
    ly_mask_row place = ly_mask_row_of(mask, row);
    ly_pack<T, WIDTH> in[VECS], add[VECS];
    float v[VECS][WIDTH];
#pragma unroll
    for (int i = 0; i < VECS; i++) {
        int c = ly_i_column<WIDTH>(i);
        in[i] = c < end ? ly_pack_at<WIDTH>(x + at + c) : ly_pack<T, WIDTH>{};
        add[i] = y && c < end ? ly_pack_at<WIDTH>(y + at + c) : ly_pack<T, WIDTH>{};
    }
    float sum = 0.0f, squares = 0.0f;
#pragma unroll
    for (int i = 0; i < VECS; i++) {
        int c = ly_i_column<WIDTH>(i);
        ly_load_f32(v[i], in[i].x);
        if (y && c < end) {
            ly_i_residual(v[i], in[i].x, add[i].x, y_bias, c, mask, place, n_cols);
            ly_store_f32(h + at + c, v[i]);
        }
#pragma unroll
        for (int k = 0; k < WIDTH; k++) {
            sum += v[i][k];
        }
    }
    if (!out) {
        return;
    }
    float mean = rms ? 0.0f : ly_i_row_sum(sum, slots[0]) / (float)n_cols;
#pragma unroll
    for (int i = 0; i < VECS; i++) {
#pragma unroll
        for (int k = 0; k < WIDTH; k++) {
            float d = ly_i_column<WIDTH>(i) < end ? v[i][k] - mean : 0.0f;
            squares += d * d;
        }
    }
    float rstd = 1.0f / sqrtf(ly_i_row_sum(squares, slots[1]) / (float)n_cols + eps);
    if (threadIdx.x == 0 && row < n_rows) {
        stats[2 * row] = mean;
        stats[2 * row + 1] = rstd;
    }
#pragma unroll
    for (int i = 0; i < VECS; i++) {
        int c = ly_i_column<WIDTH>(i);
        if (c < end) {
            float gain[WIDTH];
            ly_i_gain(gain, gamma + c, one_plus);
            ly_i_norm_out(out + at + c, v[i], mean, rstd, gain, beta ? beta + c : beta);
        }
    }
}

template <class T, int WIDTH, int VECS> static int fwd_launch(const ly_ctx *cx, const ly_norm_fwd *a)
{
    int64_t n_rows = a->x.dims[0], n_cols = a->x.dims[1];
    unsigned threads = ly_i_row_threads(n_cols, WIDTH, VECS), rows = threads < 256 ? 256 / threads : 1;
    LY_LAUNCH((norm_fwd_kernel<T, WIDTH, VECS>), (unsigned)((n_rows + rows - 1) / rows), dim3(threads, rows), 0,
              ly_stream(cx), ly_data<T>(a->x), ly_data<T>(a->y), ly_data<T>(a->y_bias), ly_data<T>(a->h),
              ly_data<T>(a->gamma), ly_data<T>(a->beta), ly_data<T>(a->out), ly_data<float>(a->stats), n_rows,
              (int)n_cols, a->kind == LY_RMSNORM, a->one_plus_gamma, a->eps, ly_mask_of(&a->dropout, n_rows, false));
    return ly_launched();
}

template <class T, int WIDTH> static int fwd_launch_wide(const ly_ctx *cx, const ly_norm_fwd *a)
{
    int64_t n_rows = a->x.dims[0], n_cols = a->x.dims[1];
    ly_i_rows rows = ly_i_rows_of(a->x);
    LY_LAUNCH((ly_i_norm_fwd_wide<T, WIDTH>), (unsigned)n_rows, LY_I_NORM_THREADS, 0, ly_stream(cx), ly_data<T>(a->x),
              ly_data<T>(a->y), ly_data<T>(a->y_bias), ly_data<T>(a->h), ly_data<T>(a->gamma), ly_data<T>(a->beta),
              ly_data<T>(a->out), ly_data<float>(a->stats), rows, rows, (int)n_cols, a->kind == LY_RMSNORM,
              a->one_plus_gamma, a->eps, ly_mask_of(&a->dropout, n_rows, false));
    return ly_launched();
}

/* The fewest vectors a thread for which a row needs no more than 256 threads, or at last 512. */
template <class T, int WIDTH> static int fwd_by_cols(const ly_ctx *cx, const ly_norm_fwd *a)
{
    constexpr int MOST = WIDTH == 1 ? 8 : 4;
    int64_t n_cols = a->x.dims[1];
    if constexpr (WIDTH > 1) {
        if (n_cols <= 256 * WIDTH) {
            return fwd_launch<T, WIDTH, 1>(cx, a);
        }
        if (n_cols <= 512 * WIDTH) {
            return fwd_launch<T, WIDTH, 2>(cx, a);
        }
    }
    return n_cols <= LY_I_NORM_THREADS * MOST * WIDTH ? fwd_launch<T, WIDTH, MOST>(cx, a)
                                                      : fwd_launch_wide<T, WIDTH>(cx, a);
}

template <class T> static int fwd_by_width(const ly_ctx *cx, const ly_norm_fwd *a)
{
    return ly_i_all_wide<T>(a->x, a->y, a->y_bias, a->h, a->gamma, a->beta, a->out)
               ? fwd_by_cols<T, 16 / sizeof(T)>(cx, a)
               : fwd_by_cols<T, 1>(cx, a);
}

extern "C" int ly_k_norm_fwd(const ly_ctx *cx, const ly_norm_fwd *a)
{
    MC_ASSERT(a->x.n_dims == 2);
    int64_t n_rows = a->x.dims[0], n_cols = a->x.dims[1];
    bool with_y = mc_tensor_present(a->y), with_out = mc_tensor_present(a->out);
    MC_ASSERT(with_y || with_out);
    MC_ASSERT(ly_is_contiguous_2d(a->x, n_rows, n_cols) && ly_absent_or_2d(a->y, n_rows, n_cols) &&
              ly_absent_or_1d(a->y_bias, n_cols) && ly_absent_or_2d(a->out, n_rows, n_cols) &&
              ly_absent_or_1d(a->beta, n_cols));
    MC_ASSERT(!with_y || ly_is_contiguous_2d(a->h, n_rows, n_cols));
    MC_ASSERT(!with_out || (ly_is_contiguous_1d(a->gamma, n_cols) && ly_is_contiguous_2d(a->stats, n_rows, 2)));
    MC_ASSERT(n_rows <= INT32_MAX && n_cols <= INT32_MAX);
    if (!ly_is_float16_or_32(a->x.dtype)) {
        return (int)cudaErrorInvalidValue;
    }
    return n_rows == 0 || n_cols == 0 ? 0 : LY_BY_TYPE(a->x.dtype, fwd_by_width, cx, a);
}
