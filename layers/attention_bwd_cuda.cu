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
__global__ void __launch_bounds__(DELTA_THREADS) bwd_delta(float *delta, const T *out, const T *dout, ly_at_call c)
{
    enum { N = ly_vec<T>::N };
    int n_blocks = (c.T + DELTA_ROWS - 1) / DELTA_ROWS, lane = threadIdx.x % DELTA_LANES;
    ly_at_place at = ly_at_place_of(c, c.r, n_blocks, false);
    int t = at.block * DELTA_ROWS + threadIdx.x / DELTA_LANES;
    float sum = 0.0f;
    if (t < c.T) {
        const T *x = ly_at_head(out, c.out, c, at, at.j) + t * c.out.row;
        const T *y = ly_at_head(dout, c.dout, c, at, at.j) + t * c.dout.row;
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

template <class T, int HP> static int launch_dkv_mma(const ly_ctx *cx, const ly_attention_bwd *a, const ly_at_call &c)
{
    typedef dkv_tile<HP> tile;
    constexpr int shared = (int)(tile::SHARED_ELEMS * sizeof(T) + tile::SHARED_FLOATS * sizeof(float));
    static_assert(shared <= LY_AT_SHARED_BYTES, "the tiles of a block do not fit");
    int error = (int)cudaFuncSetAttribute(bwd_dkv_mma<T, HP>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
    if (error != 0) {
        return error;
    }
    LY_LAUNCH((bwd_dkv_mma<T, HP>), ly_at_grid(c, c.G, tile::KEYS), (int)tile::THREADS, shared,
              (cudaStream_t)cx->stream.handle, (T *)a->dk.data, (T *)a->dv.data, (const T *)a->q.data,
              (const T *)a->k.data, (const T *)a->v.data, (const T *)a->dout.data, (const float *)a->lse.data,
              (const float *)a->delta.data, c);
    return ly_launched();
}

template <class T, int HP> static int launch_dq_mma(const ly_ctx *cx, const ly_attention_bwd *a, const ly_at_call &c)
{
    typedef dq_tile<HP> tile;
    constexpr int shared = (int)(tile::SHARED_ELEMS * sizeof(T));
    static_assert(shared <= LY_AT_SHARED_BYTES, "the tiles of a block do not fit");
    int error = (int)cudaFuncSetAttribute(bwd_dq_mma<T, HP>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
    if (error != 0) {
        return error;
    }
    LY_LAUNCH((bwd_dq_mma<T, HP>), ly_at_grid(c, (int64_t)c.G * c.r, tile::QUERIES), (int)tile::THREADS, shared,
              (cudaStream_t)cx->stream.handle, (T *)a->dq.data, (const T *)a->q.data, (const T *)a->k.data,
              (const T *)a->v.data, (const T *)a->dout.data, (const float *)a->lse.data, (const float *)a->delta.data,
              c);
    return ly_launched();
}

template <class T, int CC> static int launch_dkv_fma(const ly_ctx *cx, const ly_attention_bwd *a, const ly_at_call &c)
{
    typedef dkv_fma_tile<CC> tile;
    constexpr int shared = (int)(tile::SHARED_FLOATS * sizeof(float));
    static_assert(shared <= LY_AT_SHARED_BYTES, "the tiles of a block do not fit");
    int error = (int)cudaFuncSetAttribute(bwd_dkv_fma<T, CC>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
    if (error != 0) {
        return error;
    }
    LY_LAUNCH((bwd_dkv_fma<T, CC>), ly_at_grid(c, c.G, tile::KEYS), (int)LY_FMA_THREADS, shared,
              (cudaStream_t)cx->stream.handle, (T *)a->dk.data, (T *)a->dv.data, (const T *)a->q.data,
              (const T *)a->k.data, (const T *)a->v.data, (const T *)a->dout.data, (const float *)a->lse.data,
              (const float *)a->delta.data, c);
    return ly_launched();
}

template <class T, int CC> static int launch_dq_fma(const ly_ctx *cx, const ly_attention_bwd *a, const ly_at_call &c)
{
    typedef dq_fma_tile<CC> tile;
    constexpr int shared = (int)(tile::SHARED_FLOATS * sizeof(float));
    static_assert(shared <= LY_AT_SHARED_BYTES, "the tiles of a block do not fit");
    int error = (int)cudaFuncSetAttribute(bwd_dq_fma<T, CC>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
    if (error != 0) {
        return error;
    }
    LY_LAUNCH((bwd_dq_fma<T, CC>), ly_at_grid(c, (int64_t)c.G * c.r, tile::QUERIES), (int)LY_FMA_THREADS, shared,
              (cudaStream_t)cx->stream.handle, (T *)a->dq.data, (const T *)a->q.data, (const T *)a->k.data,
              (const T *)a->v.data, (const T *)a->dout.data, (const float *)a->lse.data, (const float *)a->delta.data,
              c);
    return ly_launched();
}

/* dK and dV, then dQ. */
template <class T, int HP> static int bwd_launch_mma(const ly_ctx *cx, const ly_attention_bwd *a, const ly_at_call &c)
{
    int error = launch_dkv_mma<T, HP>(cx, a, c);
    return error != 0 ? error : launch_dq_mma<T, HP>(cx, a, c);
}

template <class T, int CC> static int bwd_launch_fma(const ly_ctx *cx, const ly_attention_bwd *a, const ly_at_call &c)
{
    int error = launch_dkv_fma<T, CC>(cx, a, c);
    return error != 0 ? error : launch_dq_fma<T, CC>(cx, a, c);
}

template <class T> static int bwd_launch(const ly_ctx *cx, const ly_attention_bwd *a)
{
    ly_at_call c = ly_at_call_of(a);
    ly_at_check_view(a->dout, a->q, a->q.dims[2]);
    ly_at_check_view(a->dq, a->q, a->q.dims[2]);
    ly_at_check_view(a->dk, a->q, 1);
    ly_at_check_view(a->dv, a->q, 1);
    ly_at_check_rows(a->delta, a->q);
    c.dout = ly_at_strides_of(a->dout);
    c.dq = ly_at_strides_of(a->dq);
    c.dk = ly_at_strides_of(a->dk);
    c.dv = ly_at_strides_of(a->dv);
    c.vectors =
        c.vectors && ly_at_vectors(a->dout) && ly_at_vectors(a->dq) && ly_at_vectors(a->dk) && ly_at_vectors(a->dv);
    LY_LAUNCH((bwd_delta<T>), ly_at_grid(c, (int64_t)c.G * c.r, DELTA_ROWS), (int)DELTA_THREADS, 0,
              (cudaStream_t)cx->stream.handle, (float *)a->delta.data, (const T *)a->out.data, (const T *)a->dout.data,
              c);
    int error = ly_launched();
    if (error != 0) {
        return error;
    }
    if constexpr (sizeof(T) == 2) {
#define LY_I_SIZE(HP)                           \
    if (c.vectors && c.H <= HP) {               \
        return bwd_launch_mma<T, HP>(cx, a, c); \
    }
        LY_AT_HEAD_SIZES(LY_I_SIZE)
#undef LY_I_SIZE
    }
    switch ((c.H + 63) / 64) {
    case 1:
        return bwd_launch_fma<T, 1>(cx, a, c);
    case 2:
        return bwd_launch_fma<T, 2>(cx, a, c);
    case 3:
        return bwd_launch_fma<T, 3>(cx, a, c);
    default:
        return bwd_launch_fma<T, 4>(cx, a, c);
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
