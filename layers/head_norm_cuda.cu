/* Norm of each head of queries or keys: a head stays in the registers of a few lanes of a warp. */
#include "layers/cuda/norm_wide.cuh"
#include "layers/cuda/row_sum.cuh"

enum { HEAD_THREADS = 256, HEAD_BWD_THREADS = 512 };

/* Sum over the 2^lanes_log2 lanes of a head. The whole warp takes part. */
static __device__ __forceinline__ float head_sum(float x, int lanes_log2)
{
    for (int step = 1 << lanes_log2 >> 1; step > 0; step /= 2) {
        x += __shfl_xor_sync(0xffffffffu, x, step);
    }
    return x;
}

/* Column at which vector i of a lane of a head begins. */
template <int WIDTH> static __device__ __forceinline__ int head_column(int i, int lanes_log2)
{
    return ((i << lanes_log2) + (int)(threadIdx.x & ((1u << lanes_log2) - 1))) * WIDTH;
}

/* Reads x once, writes out once. Bytes an element: 2 sizeof(T), and 8 / H for the statistics; floor on an H100
 * (3.35 TB/s) for bf16: 1.2 ns for 1,000 elements. */
template <class T, int WIDTH, int VECS>
static __global__ void __launch_bounds__(HEAD_THREADS)
    head_norm_fwd_kernel(const T *x, const T *gamma, const T *beta, T *out, float *stats, ly_i_rows x_rows,
                         ly_i_rows out_rows, int64_t n_heads, int n_cols, int lanes_log2, bool rms, bool one_plus,
                         float eps)
{
    int64_t head = ((int64_t)blockIdx.x * HEAD_THREADS + threadIdx.x) >> lanes_log2;
    int end = head < n_heads ? n_cols : 0; /* lanes past the last head take part in the sums only */
    const T *x_head = x + ly_i_row_at(x_rows, (uint32_t)head);
    float v[VECS][WIDTH] = {}, sum = 0.0f, squares = 0.0f;
#pragma unroll
    for (int i = 0; i < VECS; i++) {
        int c = head_column<WIDTH>(i, lanes_log2);
        if (c < end) {
            ly_load_f32(v[i], x_head + c);
        }
#pragma unroll
        for (int k = 0; k < WIDTH; k++) {
            sum += v[i][k];
        }
    }
    float mean = rms ? 0.0f : head_sum(sum, lanes_log2) / (float)n_cols;
#pragma unroll
    for (int i = 0; i < VECS; i++) {
#pragma unroll
        for (int k = 0; k < WIDTH; k++) {
            float d = head_column<WIDTH>(i, lanes_log2) < end ? v[i][k] - mean : 0.0f;
            squares += d * d;
        }
    }
    float rstd = 1.0f / sqrtf(head_sum(squares, lanes_log2) / (float)n_cols + eps);
    if (end && head_column<WIDTH>(0, lanes_log2) == 0) {
        stats[2 * head] = mean;
        stats[2 * head + 1] = rstd;
    }
    T *out_head = out + ly_i_row_at(out_rows, (uint32_t)head);
#pragma unroll
    for (int i = 0; i < VECS; i++) {
        int c = head_column<WIDTH>(i, lanes_log2);
        if (c < end) {
            float gain[WIDTH];
            ly_i_gain(gain, gamma + c, one_plus);
            ly_i_norm_out(out_head + c, v[i], mean, rstd, gain, beta ? beta + c : beta);
        }
    }
}

/* Adds the column sums of the heads that a warp worked on at the same time, in one tree. */
template <int WIDTH, int VECS>
static __device__ __forceinline__ void add_warp_heads(float (&sums)[VECS][WIDTH], int lanes_log2)
{
#pragma unroll
    for (int i = 0; i < VECS; i++) {
#pragma unroll
        for (int k = 0; k < WIDTH; k++) {
            for (int step = 1 << lanes_log2; step < LY_WARP; step *= 2) {
                sums[i][k] += __shfl_xor_sync(0xffffffffu, sums[i][k], step);
            }
        }
    }
}

/* Columns that a warp can hold: the widest row of partial sums of a block. */
enum { HEAD_MOST_COLS = 1024 };

/* Reads dout, x once, writes dx (which may be dout) once. Bytes an element: 3 sizeof(T), and 8 / H for the statistics;
 * floor on an H100 (3.35 TB/s) for bf16: 1.8 ns for 1,000 elements. Column sums as in norm_bwd_cuda.cu. */
template <class T, int WIDTH, int VECS>
static __global__ void __launch_bounds__(HEAD_BWD_THREADS)
    head_norm_bwd_kernel(const T *dout, const T *x, const float *stats, const T *gamma, T *dx, float *dgamma,
                         float *dbeta, ly_i_rows dout_rows, ly_i_rows x_rows, ly_i_rows dx_rows, int64_t n_heads,
                         int n_cols, int lanes_log2, bool rms, bool one_plus)
{
    __shared__ float buffer[HEAD_MOST_COLS];
    float gamma_sums[VECS][WIDTH] = {}, beta_sums[VECS][WIDTH] = {};
    int64_t at_once = HEAD_BWD_THREADS >> lanes_log2;
    for (int64_t head0 = blockIdx.x * at_once; head0 < n_heads; head0 += gridDim.x * at_once) {
        int64_t head = head0 + (threadIdx.x >> lanes_log2);
        int end = head < n_heads ? n_cols : 0; /* lanes past the last head take part in the sums only */
        const T *up_head = dout + ly_i_row_at(dout_rows, (uint32_t)head);
        const T *x_head = x + ly_i_row_at(x_rows, (uint32_t)head);
        ly_pack<T, WIDTH> up[VECS], in[VECS];
#pragma unroll
        for (int i = 0; i < VECS; i++) {
            int c = head_column<WIDTH>(i, lanes_log2);
            up[i] = c < end ? ly_pack_at<WIDTH>(up_head + c) : ly_pack<T, WIDTH>{};
            in[i] = c < end ? ly_pack_at<WIDTH>(x_head + c) : ly_pack<T, WIDTH>{};
        }
        ly_i_norm_grad g = {end ? stats[2 * head] : 0.0f, end ? stats[2 * head + 1] : 0.0f, 0.0f, 0.0f};
        float sum = 0.0f, sum_x = 0.0f;
#pragma unroll
        for (int i = 0; i < VECS; i++) {
            int c = head_column<WIDTH>(i, lanes_log2);
            if (c < end) {
                float gain[WIDTH];
                ly_i_gain(gain, gamma + c, one_plus);
#pragma unroll
                for (int k = 0; k < WIDTH; k++) {
                    float d = ly_to_f32(up[i].x[k]), xhat = (ly_to_f32(in[i].x[k]) - g.mean) * g.rstd;
                    sum += d * gain[k];
                    sum_x += d * gain[k] * xhat;
                    gamma_sums[i][k] += d * xhat;
                    beta_sums[i][k] += d;
                }
            }
        }
        g.mean_dg = rms ? 0.0f : head_sum(sum, lanes_log2) / (float)n_cols;
        g.mean_dgx = head_sum(sum_x, lanes_log2) / (float)n_cols;
        T *dx_head = dx + ly_i_row_at(dx_rows, (uint32_t)head);
#pragma unroll
        for (int i = 0; i < VECS; i++) {
            int c = head_column<WIDTH>(i, lanes_log2);
            if (c < end) {
                float gain[WIDTH], d[WIDTH];
                ly_i_gain(gain, gamma + c, one_plus);
#pragma unroll
                for (int k = 0; k < WIDTH; k++) {
                    d[k] = ly_i_norm_dx(g, ly_to_f32(up[i].x[k]), ly_to_f32(in[i].x[k]), gain[k]);
                }
                ly_store_f32(dx_head + c, d);
            }
        }
    }
    int64_t partial = (int64_t)blockIdx.x * n_cols;
    int warp = threadIdx.x / LY_WARP, first = head_column<WIDTH>(0, lanes_log2), step = WIDTH << lanes_log2;
    bool holds = threadIdx.x % LY_WARP < 1u << lanes_log2;
    if (dgamma) {
        add_warp_heads(gamma_sums, lanes_log2);
        ly_i_sum_slots(gamma_sums, buffer, dgamma + partial, warp, HEAD_BWD_THREADS / LY_WARP, holds, first, step,
                       n_cols);
    }
    if (dbeta) {
        add_warp_heads(beta_sums, lanes_log2);
        ly_i_sum_slots(beta_sums, buffer, dbeta + partial, warp, HEAD_BWD_THREADS / LY_WARP, holds, first, step,
                       n_cols);
    }
}

/* log2 of the lanes of a head: the fewest, a power of two, that hold it in vecs vectors each. */
static int lanes_log2_of(int64_t n_cols, int width, int vecs)
{
    int log2 = 0;
    while (log2 < 5 && (int64_t)width * vecs << log2 < n_cols) {
        log2++;
    }
    return log2;
}

static int64_t n_heads_of(mc_tensor t)
{
    return t.dims[0] * t.dims[1] * t.dims[2];
}

template <class T, int WIDTH, int VECS> static int fwd_launch(const ly_ctx *cx, const ly_head_norm_fwd *a)
{
    int64_t n_heads = n_heads_of(a->x), n_cols = a->x.dims[3];
    int lanes_log2 = lanes_log2_of(n_cols, WIDTH, VECS);
    unsigned blocks = (unsigned)(((n_heads << lanes_log2) + HEAD_THREADS - 1) / HEAD_THREADS);
    LY_LAUNCH((head_norm_fwd_kernel<T, WIDTH, VECS>), blocks, HEAD_THREADS, 0, ly_stream(cx), ly_data<T>(a->x),
              ly_data<T>(a->gamma), ly_data<T>(a->beta), ly_data<T>(a->out), ly_data<float>(a->stats),
              ly_i_rows_of(a->x), ly_i_rows_of(a->out), n_heads, (int)n_cols, lanes_log2, a->kind == LY_RMSNORM,
              a->one_plus_gamma, a->eps);
    return ly_launched();
}

template <class T, int WIDTH> static int fwd_by_cols(const ly_ctx *cx, const ly_head_norm_fwd *a)
{
    int64_t n_heads = n_heads_of(a->x), n_cols = a->x.dims[3];
    if (n_cols <= LY_WARP * WIDTH) {
        return fwd_launch<T, WIDTH, 1>(cx, a);
    }
    if (n_cols <= LY_WARP * WIDTH * 4) {
        return fwd_launch<T, WIDTH, 4>(cx, a);
    }
    const T *none = nullptr;
    T *no_h = nullptr;
    LY_LAUNCH((ly_i_norm_fwd_wide<T, WIDTH>), (unsigned)n_heads, LY_I_NORM_THREADS, 0, ly_stream(cx), ly_data<T>(a->x),
              none, none, no_h, ly_data<T>(a->gamma), ly_data<T>(a->beta), ly_data<T>(a->out), ly_data<float>(a->stats),
              ly_i_rows_of(a->x), ly_i_rows_of(a->out), (int)n_cols, a->kind == LY_RMSNORM, a->one_plus_gamma, a->eps,
              ly_mask{});
    return ly_launched();
}

template <class T> static int fwd_by_width(const ly_ctx *cx, const ly_head_norm_fwd *a)
{
    return ly_i_all_wide<T>(a->x, a->gamma, a->beta, a->out) ? fwd_by_cols<T, 16 / sizeof(T)>(cx, a)
                                                             : fwd_by_cols<T, 1>(cx, a);
}

static bool is_heads(mc_tensor t)
{
    return t.n_dims == 4 && (t.dims[3] <= 1 || t.strides[3] == 1);
}

extern "C" int ly_k_head_norm_fwd(const ly_ctx *cx, const ly_head_norm_fwd *a)
{
    MC_ASSERT(is_heads(a->x) && is_heads(a->out) && mc_tensor_same_shape(a->x, a->out));
    int64_t n_cols = a->x.dims[3];
    MC_ASSERT(ly_is_contiguous_1d(a->gamma, n_cols) && ly_absent_or_1d(a->beta, n_cols) &&
              ly_is_contiguous_2d(a->stats, n_heads_of(a->x), 2));
    MC_ASSERT(n_heads_of(a->x) <= INT32_MAX && n_cols <= INT32_MAX);
    if (!ly_is_float16_or_32(a->x.dtype)) {
        return (int)cudaErrorInvalidValue;
    }
    return mc_tensor_elems(a->x) == 0 ? 0 : LY_BY_TYPE(a->x.dtype, fwd_by_width, cx, a);
}

template <class T, int WIDTH, int VECS>
static int bwd_launch(const ly_ctx *cx, const ly_head_norm_bwd *a, const ly_i_row_sums *sums)
{
    int64_t n_cols = a->x.dims[3];
    LY_LAUNCH((head_norm_bwd_kernel<T, WIDTH, VECS>), (unsigned)sums->n_parts, HEAD_BWD_THREADS, 0, ly_stream(cx),
              ly_data<T>(a->dout), ly_data<T>(a->x), ly_data<float>(a->stats), ly_data<T>(a->gamma), ly_data<T>(a->dx),
              sums->table[0], sums->table[1], ly_i_rows_of(a->dout), ly_i_rows_of(a->x), ly_i_rows_of(a->dx),
              n_heads_of(a->x), (int)n_cols, lanes_log2_of(n_cols, WIDTH, VECS), a->kind == LY_RMSNORM,
              a->one_plus_gamma);
    return ly_launched();
}

template <class T, int WIDTH>
static int bwd_by_cols(const ly_ctx *cx, const ly_head_norm_bwd *a, const ly_i_row_sums *sums)
{
    constexpr int MOST = WIDTH == 8 ? 2 : 4;
    int64_t n_cols = a->x.dims[3];
    static_assert(LY_WARP * WIDTH * MOST <= HEAD_MOST_COLS, "a block's partial row fits");
    if (n_cols <= LY_WARP * WIDTH) {
        return bwd_launch<T, WIDTH, 1>(cx, a, sums);
    }
    if (n_cols <= LY_WARP * WIDTH * MOST) {
        return bwd_launch<T, WIDTH, MOST>(cx, a, sums);
    }
    const T *none = nullptr;
    T *no_store = nullptr;
    LY_LAUNCH((ly_i_norm_bwd_wide<T, WIDTH>), (unsigned)sums->n_parts, LY_I_NORM_THREADS, 0, ly_stream(cx),
              ly_data<T>(a->dout), ly_data<T>(a->x), ly_data<float>(a->stats), ly_data<T>(a->gamma), none, none,
              ly_data<T>(a->dx), no_store, no_store, sums->table[0], sums->table[1], sums->table[2],
              ly_i_rows_of(a->dout), ly_i_rows_of(a->x), ly_i_rows_of(a->dx), n_heads_of(a->x), (int)n_cols,
              a->kind == LY_RMSNORM, a->one_plus_gamma, ly_mask{});
    return ly_launched();
}

template <class T> static int bwd_by_width(const ly_ctx *cx, const ly_head_norm_bwd *a)
{
    int64_t n_parts = ly_i_head_norm_partials(n_heads_of(a->x));
    ly_i_row_sums sums = ly_i_row_sums_of(cx, a->dgamma, a->dbeta, mc_tensor{}, n_parts, a->x.dims[3]);
    int status = ly_i_all_wide<T>(a->dout, a->x, a->gamma, a->dx) ? bwd_by_cols<T, 16 / sizeof(T)>(cx, a, &sums)
                                                                  : bwd_by_cols<T, 1>(cx, a, &sums);
    return status ? status : ly_i_row_sums_finish(cx, &sums);
}

extern "C" int ly_k_head_norm_bwd(const ly_ctx *cx, const ly_head_norm_bwd *a)
{
    MC_ASSERT(is_heads(a->x) && is_heads(a->dout) && is_heads(a->dx));
    MC_ASSERT(mc_tensor_same_shape(a->x, a->dout) && mc_tensor_same_shape(a->x, a->dx));
    int64_t n_cols = a->x.dims[3];
    MC_ASSERT(ly_is_contiguous_1d(a->gamma, n_cols) && ly_absent_or_1d(a->dgamma, n_cols) &&
              ly_absent_or_1d(a->dbeta, n_cols) && ly_is_contiguous_2d(a->stats, n_heads_of(a->x), 2));
    MC_ASSERT(n_heads_of(a->x) <= INT32_MAX && n_cols <= INT32_MAX);
    if (!ly_is_float16_or_32(a->x.dtype)) {
        return (int)cudaErrorInvalidValue;
    }
    return mc_tensor_elems(a->x) == 0 ? 0 : LY_BY_TYPE(a->x.dtype, bwd_by_width, cx, a);
}
