/* Backward of the fused bias + dropout + residual + norm: each block takes every gridDim.x-th group of rows, keeps
 * their column sums in registers, and leaves one row of partial sums (cuda/row_sum.cuh). */
#include "layers/cuda/norm_wide.cuh"
#include "layers/cuda/row_sum.cuh"

/* A block of several short rows adds their column sums through this many shared floats. */
enum { SHARED_COLS = 2048 };

/* Reads dout, h, dskip once, writes dh, dy, out once. Bytes an element, with sizeof(T) = b: 6 b for all of it, 4 b for
 * a plain residual block (dout, h, dskip, dh); floor on an H100 (3.35 TB/s) for bf16: 3.6 and 2.4 ns for 1,000
 * elements. dout absent: no norm, d = dskip. Null tables: sums that nobody wants. VECS vectors of WIDTH elements a
 * thread. */
template <class T, int WIDTH, int VECS>
static __global__ void __launch_bounds__(LY_I_NORM_THREADS)
    norm_bwd_kernel(const T *dout, const T *h, const float *stats, const T *gamma, const T *beta, const T *dskip, T *dh,
                    T *dy, T *out, float *dgamma, float *dbeta, float *dy_bias, int64_t n_rows, int n_cols, bool rms,
                    bool one_plus, ly_mask mask)
{
    /* dskip is read along with the rest where there are registers for it. */
    constexpr bool EARLY = VECS * sizeof(ly_pack<T, WIDTH>) <= 32;
    __shared__ float2 slots[2][LY_I_NORM_WARPS];
    __shared__ float buffer[SHARED_COLS];
    float gamma_sums[VECS][WIDTH] = {}, beta_sums[VECS][WIDTH] = {}, bias_sums[VECS][WIDTH] = {};
    int turn = 0;
    for (int64_t row0 = (int64_t)blockIdx.x * blockDim.y; row0 < n_rows; row0 += (int64_t)gridDim.x * blockDim.y) {
        int64_t row = row0 + threadIdx.y, at = row * n_cols;
        int end = row < n_rows ? n_cols : 0; /* rows past the last take part in the barriers only */
        ly_pack<T, WIDTH> up[VECS], in[VECS], skip[VECS];
#pragma unroll
        for (int i = 0; i < VECS; i++) {
            int c = ly_i_column<WIDTH>(i);
            up[i] = dout && c < end ? ly_pack_at<WIDTH>(dout + at + c) : ly_pack<T, WIDTH>{};
            in[i] = dout && c < end ? ly_pack_at<WIDTH>(h + at + c) : ly_pack<T, WIDTH>{};
            skip[i] = EARLY && dskip && c < end ? ly_pack_at<WIDTH>(dskip + at + c) : ly_pack<T, WIDTH>{};
        }
        ly_i_norm_grad g = {};
        if (dout) {
            float2 sums = {0.0f, 0.0f};
            g.mean = end ? stats[2 * row] : 0.0f;
            g.rstd = end ? stats[2 * row + 1] : 0.0f;
#pragma unroll
            for (int i = 0; i < VECS; i++) {
                int c = ly_i_column<WIDTH>(i);
                if (c < end) {
                    float gain[WIDTH];
                    ly_i_gain(gain, gamma + c, one_plus);
#pragma unroll
                    for (int k = 0; k < WIDTH; k++) {
                        float dg = ly_to_f32(up[i].x[k]) * gain[k];
                        sums.x += dg;
                        sums.y += dg * ((ly_to_f32(in[i].x[k]) - g.mean) * g.rstd);
                    }
                }
            }
            /* Two sets of slots in turn: one barrier a row. */
            sums = ly_i_row_sum2(sums, slots[turn]);
            turn ^= 1;
            g.mean_dg = rms ? 0.0f : sums.x / (float)n_cols;
            g.mean_dgx = sums.y / (float)n_cols;
        }
        ly_mask_row place = ly_mask_row_of(mask, row);
#pragma unroll
        for (int i = 0; i < VECS; i++) {
            int c = ly_i_column<WIDTH>(i);
            if (c >= end) {
                continue;
            }
            float d[WIDTH] = {};
            if (EARLY) {
                ly_load_f32(d, skip[i].x);
            } else if (dskip) {
                ly_load_f32(d, dskip + at + c);
            }
            if (dout) {
                float gain[WIDTH], x[WIDTH];
                ly_i_gain(gain, gamma + c, one_plus);
                ly_load_f32(x, in[i].x);
#pragma unroll
                for (int k = 0; k < WIDTH; k++) {
                    float dk = ly_to_f32(up[i].x[k]);
                    d[k] += ly_i_norm_dx(g, dk, x[k], gain[k]);
                    gamma_sums[i][k] += dk * ((x[k] - g.mean) * g.rstd);
                    beta_sums[i][k] += dk;
                }
                if (out) {
                    ly_i_norm_out(out + at + c, x, g.mean, g.rstd, gain, beta ? beta + c : beta);
                }
            }
            if (dh) {
                ly_store_f32(dh + at + c, d);
            }
            if (dy) {
                if (mask.on) {
                    ly_mask_apply(d, mask, place.sample, (uint64_t)place.position * n_cols + c);
                }
                ly_store_f32(dy + at + c, d);
            }
#pragma unroll
            for (int k = 0; k < WIDTH; k++) {
                bias_sums[i][k] += d[k];
            }
        }
    }
    int64_t partial = (int64_t)blockIdx.x * n_cols;
    int first = ly_i_column<WIDTH>(0), step = blockDim.x * WIDTH, slot = threadIdx.y, n_slots = blockDim.y;
    if (dgamma) {
        ly_i_sum_slots(gamma_sums, buffer, dgamma + partial, slot, n_slots, true, first, step, n_cols);
    }
    if (dbeta) {
        ly_i_sum_slots(beta_sums, buffer, dbeta + partial, slot, n_slots, true, first, step, n_cols);
    }
    if (dy_bias) {
        ly_i_sum_slots(bias_sums, buffer, dy_bias + partial, slot, n_slots, true, first, step, n_cols);
    }
}

/* n_rows, n_cols of a call. */
static mc_tensor shape_of(const ly_norm_bwd *a)
{
    return mc_tensor_present(a->dout) ? a->dout : a->dskip;
}

template <class T, int WIDTH, int VECS>
static int bwd_launch(const ly_ctx *cx, const ly_norm_bwd *a, const ly_i_row_sums *sums)
{
    int64_t n_rows = shape_of(a).dims[0], n_cols = shape_of(a).dims[1];
    unsigned threads = ly_i_row_threads(n_cols, WIDTH, VECS), rows = threads <= 64 ? 8 : threads <= 128 ? 4 : 1;
    MC_ASSERT(rows == 1 || n_cols <= SHARED_COLS);
    LY_LAUNCH((norm_bwd_kernel<T, WIDTH, VECS>), (unsigned)sums->n_parts, dim3(threads, rows), 0, ly_stream(cx),
              ly_data<T>(a->dout), ly_data<T>(a->h), ly_data<float>(a->stats), ly_data<T>(a->gamma),
              ly_data<T>(a->beta), ly_data<T>(a->dskip), ly_data<T>(a->dh), ly_data<T>(a->dy), ly_data<T>(a->out),
              sums->table[0], sums->table[1], sums->table[2], n_rows, (int)n_cols, a->kind == LY_RMSNORM,
              a->one_plus_gamma, ly_mask_of(&a->dropout, n_rows, false));
    return ly_launched();
}

template <class T, int WIDTH>
static int bwd_launch_wide(const ly_ctx *cx, const ly_norm_bwd *a, const ly_i_row_sums *sums)
{
    int64_t n_rows = shape_of(a).dims[0], n_cols = shape_of(a).dims[1];
    ly_i_rows rows = ly_i_rows_of(shape_of(a));
    LY_LAUNCH((ly_i_norm_bwd_wide<T, WIDTH>), (unsigned)sums->n_parts, LY_I_NORM_THREADS, 0, ly_stream(cx),
              ly_data<T>(a->dout), ly_data<T>(a->h), ly_data<float>(a->stats), ly_data<T>(a->gamma),
              ly_data<T>(a->beta), ly_data<T>(a->dskip), ly_data<T>(a->dh), ly_data<T>(a->dy), ly_data<T>(a->out),
              sums->table[0], sums->table[1], sums->table[2], rows, rows, rows, n_rows, (int)n_cols,
              a->kind == LY_RMSNORM, a->one_plus_gamma, ly_mask_of(&a->dropout, n_rows, false));
    return ly_launched();
}

/* At most 16 elements a thread: with three sums for each, and 256 threads, two blocks share a multiprocessor. */
template <class T, int WIDTH> static int bwd_by_cols(const ly_ctx *cx, const ly_norm_bwd *a, const ly_i_row_sums *sums)
{
    constexpr int MOST = WIDTH == 1 ? 8 : 16 / WIDTH;
    int64_t n_cols = shape_of(a).dims[1];
    if constexpr (WIDTH > 1) {
        if (n_cols <= 256 * WIDTH) {
            return bwd_launch<T, WIDTH, 1>(cx, a, sums);
        }
    }
    if constexpr (MOST == 4) {
        if (n_cols <= 512 * WIDTH) {
            return bwd_launch<T, WIDTH, 2>(cx, a, sums);
        }
    }
    return n_cols <= LY_I_NORM_THREADS * MOST * WIDTH ? bwd_launch<T, WIDTH, MOST>(cx, a, sums)
                                                      : bwd_launch_wide<T, WIDTH>(cx, a, sums);
}

template <class T> static int bwd_by_width(const ly_ctx *cx, const ly_norm_bwd *a)
{
    int64_t n_rows = shape_of(a).dims[0], n_cols = shape_of(a).dims[1];
    ly_i_row_sums sums = ly_i_row_sums_of(cx, a->dgamma, a->dbeta, a->dy_bias, ly_i_norm_partials(n_rows), n_cols);
    int status = ly_i_all_wide<T>(a->dout, a->h, a->gamma, a->beta, a->dskip, a->dh, a->dy, a->out)
                     ? bwd_by_cols<T, 16 / sizeof(T)>(cx, a, &sums)
                     : bwd_by_cols<T, 1>(cx, a, &sums);
    return status ? status : ly_i_row_sums_finish(cx, &sums);
}

static void check_shapes(const ly_norm_bwd *a, int64_t n_rows, int64_t n_cols)
{
    bool norm = mc_tensor_present(a->dout);
    MC_ASSERT(norm || mc_tensor_present(a->dskip));
    MC_ASSERT(!norm || (ly_is_contiguous_2d(a->dout, n_rows, n_cols) && ly_is_contiguous_2d(a->h, n_rows, n_cols) &&
                        ly_is_contiguous_2d(a->stats, n_rows, 2) && ly_is_contiguous_1d(a->gamma, n_cols) &&
                        mc_tensor_present(a->dh)));
    MC_ASSERT(norm || !(mc_tensor_present(a->out) || mc_tensor_present(a->dgamma) || mc_tensor_present(a->dbeta)));
    MC_ASSERT(ly_absent_or_2d(a->dskip, n_rows, n_cols) && ly_absent_or_2d(a->dh, n_rows, n_cols) &&
              ly_absent_or_2d(a->dy, n_rows, n_cols) && ly_absent_or_2d(a->out, n_rows, n_cols));
    MC_ASSERT(ly_absent_or_1d(a->beta, n_cols) && ly_absent_or_1d(a->dgamma, n_cols) &&
              ly_absent_or_1d(a->dbeta, n_cols) && ly_absent_or_1d(a->dy_bias, n_cols));
    MC_ASSERT(!(a->dropout.p > 0.0f) || mc_tensor_present(a->dy));
    MC_ASSERT(n_rows <= INT32_MAX && n_cols <= INT32_MAX);
}

extern "C" int ly_k_norm_bwd(const ly_ctx *cx, const ly_norm_bwd *a)
{
    mc_tensor shape = shape_of(a);
    MC_ASSERT(shape.n_dims == 2);
    check_shapes(a, shape.dims[0], shape.dims[1]);
    if (!ly_is_float16_or_32(shape.dtype)) {
        return (int)cudaErrorInvalidValue;
    }
    return shape.dims[0] == 0 || shape.dims[1] == 0 ? 0 : LY_BY_TYPE(shape.dtype, bwd_by_width, cx, a);
}
