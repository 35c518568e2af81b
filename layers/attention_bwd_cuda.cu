/* Attention backward on the GPU, from the forward's log-sum-exp:
 *
 *   P = exp(scale Q K^T - lse)   dP = dO V^T   dS = P (mask dP / (1 - p) - delta)      delta = sum of dO * out
 *   dV = (P mask / (1 - p))^T dO   dK = scale dS^T Q   dQ = scale dS K
 *
 * Three launches: delta; dK and dV by blocks of keys, each of which walks the queries of its group's r heads in order;
 * dQ by blocks of queries. Each gradient has one writer, which adds in a fixed order: no atomics, the same bits in
 * every run. The price is that scores and dP are computed twice.
 *
 *   work      14 H FLOP for each visible (query, key), 8 in dK and dV, 6 in dQ; hidden tiles are skipped
 *   memory    dK, dV: k, v, dk, dv once, q and dout once for each block of keys; dQ: q, dout, dq once, k and v once for
 *             each block of queries; what is read again comes mostly from the L2 cache */
#include "layers/cuda/attention_bwd_fma.cuh"
#include "layers/cuda/attention_bwd_mma.cuh"
#include "layers/cuda/kernels.h"

/* --- delta --- */

/* 8 lanes for each row: delta[row] = sum of out * dout. Moves 2 H elements a row once. */
enum { DELTA_LANES = 8, DELTA_THREADS = 256, DELTA_ROWS = DELTA_THREADS / DELTA_LANES };

template <class T>
__global__ void __launch_bounds__(DELTA_THREADS)
    bwd_delta(float *delta, const T *out, const T *dout, ly_at_call c, ly_at_strides dout_strides)
{
    enum { N = ly_vec<T>::N };
    int n_blocks = (c.T + DELTA_ROWS - 1) / DELTA_ROWS, lane = threadIdx.x % DELTA_LANES;
    ly_at_place at = ly_at_place_of(c, c.r, n_blocks, false);
    int t = at.block * DELTA_ROWS + threadIdx.x / DELTA_LANES;
    float sum = 0.0f;
    if (t < c.T) {
        const T *x = ly_at_head(out, c.out, c, at, at.j) + t * c.out.row;
        const T *y = ly_at_head(dout, dout_strides, c, at, at.j) + t * dout_strides.row;
        if (c.vectors) {
            for (int col = lane * N; col < c.H; col += DELTA_LANES * N) {
                ly_vec<T> u = ly_load(x + col), v = ly_load(y + col);
#pragma unroll
                for (int i = 0; i < N; i++) {
                    sum = fmaf(ly_to_f32(u.x[i]), ly_to_f32(v.x[i]), sum);
                }
            }
        } else {
            for (int col = lane; col < c.H; col += DELTA_LANES) {
                sum = fmaf(ly_to_f32(x[col]), ly_to_f32(y[col]), sum);
            }
        }
    }
    for (int step = DELTA_LANES / 2; step > 0; step /= 2) {
        sum += __shfl_xor_sync(0xffffffffu, sum, step);
    }
    if (t < c.T && lane == 0) {
        delta[ly_at_stats(c, at, at.j) + t] = sum;
    }
}

/* --- launchers --- */

/* Both kernels of one kind; `dkv_shared`, `dq_shared` in bytes. */
#define LY_I_LAUNCH_BOTH(dkv_kernel, dkv_rows, dkv_threads, dkv_shared, dq_kernel, dq_rows, dq_threads, dq_shared) \
    do {                                                                                                           \
        cudaStream_t stream = (cudaStream_t)cx->stream.handle;                                                     \
        const T *q = (const T *)a->q.data, *k = (const T *)a->k.data, *v = (const T *)a->v.data;                   \
        const T *dout = (const T *)a->dout.data;                                                                   \
        const float *lse = (const float *)a->lse.data, *delta = (const float *)a->delta.data;                      \
        const cudaFuncAttribute limit = cudaFuncAttributeMaxDynamicSharedMemorySize;                               \
        int error = (int)cudaFuncSetAttribute(dkv_kernel, limit, dkv_shared);                                      \
        error = error != 0 ? error : (int)cudaFuncSetAttribute(dq_kernel, limit, dq_shared);                       \
        if (error != 0) {                                                                                          \
            return error;                                                                                          \
        }                                                                                                          \
        LY_LAUNCH(dkv_kernel, ly_at_grid(c, c.G, dkv_rows), dkv_threads, dkv_shared, stream, (T *)a->dk.data,      \
                  (T *)a->dv.data, q, k, v, dout, lse, delta, c, ds);                                              \
        error = ly_launched();                                                                                     \
        if (error != 0) {                                                                                          \
            return error;                                                                                          \
        }                                                                                                          \
        LY_LAUNCH(dq_kernel, ly_at_grid(c, (int64_t)c.G *c.r, dq_rows), dq_threads, dq_shared, stream,             \
                  (T *)a->dq.data, q, k, v, dout, lse, delta, c, ds);                                              \
        return ly_launched();                                                                                      \
    } while (0)

template <class T, int HP>
static int bwd_launch_mma(const ly_ctx *cx, const ly_attention_bwd *a, const ly_at_call &c, const ly_at_strides &ds)
{
    typedef dkv_tile<HP> kv;
    typedef dq_tile<HP> q_;
    LY_I_LAUNCH_BOTH((bwd_dkv_mma<T, HP>), kv::KEYS, (int)kv::THREADS,
                     (int)(kv::SHARED_ELEMS * sizeof(T) + kv::SHARED_FLOATS * sizeof(float)), (bwd_dq_mma<T, HP>),
                     q_::QUERIES, (int)q_::THREADS, (int)(q_::SHARED_ELEMS * sizeof(T)));
}

template <class T, int CC>
static int bwd_launch_fma(const ly_ctx *cx, const ly_attention_bwd *a, const ly_at_call &c, const ly_at_strides &ds)
{
    typedef dkv_fma_tile<CC> kv;
    typedef dq_fma_tile<CC> q_;
    LY_I_LAUNCH_BOTH((bwd_dkv_fma<T, CC>), kv::KEYS, (int)LY_FMA_THREADS, (int)(kv::SHARED_FLOATS * sizeof(float)),
                     (bwd_dq_fma<T, CC>), q_::QUERIES, (int)LY_FMA_THREADS, (int)(q_::SHARED_FLOATS * sizeof(float)));
}

template <class T> static int bwd_launch(const ly_ctx *cx, const ly_attention_bwd *a)
{
    ly_at_call c = ly_at_call_of(a);
    ly_at_check_view(a->dout, a->q, a->q.dims[2]);
    ly_at_check_view(a->dq, a->q, a->q.dims[2]);
    ly_at_check_view(a->dk, a->q, 1);
    ly_at_check_view(a->dv, a->q, 1);
    ly_at_check_rows(a->delta, a->q);
    c.dq = ly_at_strides_of(a->dq);
    c.dk = ly_at_strides_of(a->dk);
    c.dv = ly_at_strides_of(a->dv);
    c.vectors =
        c.vectors && ly_at_vectors(a->dout) && ly_at_vectors(a->dq) && ly_at_vectors(a->dk) && ly_at_vectors(a->dv);
    ly_at_strides ds = ly_at_strides_of(a->dout);
    LY_LAUNCH((bwd_delta<T>), ly_at_grid(c, (int64_t)c.G * c.r, DELTA_ROWS), (int)DELTA_THREADS, 0,
              (cudaStream_t)cx->stream.handle, (float *)a->delta.data, (const T *)a->out.data, (const T *)a->dout.data,
              c, ds);
    int error = ly_launched();
    if (error != 0) {
        return error;
    }
    if constexpr (sizeof(T) == 2) {
#define LY_I_SIZE(HP)                               \
    if (c.vectors && c.H <= HP) {                   \
        return bwd_launch_mma<T, HP>(cx, a, c, ds); \
    }
        LY_AT_HEAD_SIZES(LY_I_SIZE)
#undef LY_I_SIZE
    }
    switch ((c.H + 63) / 64) {
    case 1:
        return bwd_launch_fma<T, 1>(cx, a, c, ds);
    case 2:
        return bwd_launch_fma<T, 2>(cx, a, c, ds);
    case 3:
        return bwd_launch_fma<T, 3>(cx, a, c, ds);
    default:
        return bwd_launch_fma<T, 4>(cx, a, c, ds);
    }
}

extern "C" int ly_k_attention_bwd(const ly_ctx *cx, const ly_attention_bwd *a)
{
    switch (a->q.dtype) {
    case MC_BF16:
        return bwd_launch<__nv_bfloat16>(cx, a);
    case MC_F16:
        return bwd_launch<__half>(cx, a);
    default:
        MC_ASSERT(a->q.dtype == MC_F32);
        return bwd_launch<float>(cx, a);
    }
}
