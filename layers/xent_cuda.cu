/* Softmax cross entropy on CUDA devices: a block for each row of logits.
 *
 * A thread's columns follow from the row's length alone, whether or not rows are aligned, so the order of additions
 * does too. */
#include <float.h>

#include "layers/cuda/flat.cuh"
#include "layers/cuda/tensors.cuh"

enum {
    XENT_THREADS = 512,
    XENT_PACK = 4,  /* logits of one access */
    XENT_BATCH = 4, /* accesses that a thread has under way */
};

/* Threads of a row: enough that each has a batch, so that short rows leave none idle. */
static unsigned xent_threads(int64_t n_cols)
{
    unsigned threads = LY_WARP;
    while (threads < XENT_THREADS && threads * XENT_PACK * XENT_BATCH < n_cols) {
        threads *= 2;
    }
    return threads;
}

/* x[0, XENT_PACK) of which the first n exist; `rest` stands for the others. */
__device__ __forceinline__ void load_logits(float (&v)[XENT_PACK], const float *x, int64_t n, bool wide, float rest)
{
    if (wide && n >= XENT_PACK) {
        ly_load_f32(v, x);
        return;
    }
#pragma unroll
    for (int k = 0; k < XENT_PACK; k++) {
        v[k] = k < n ? x[k] : rest;
    }
}

/* Running maximum and sums of exp(x - maximum), four of them for shorter chains. The maximum begins at the lowest
 * finite number: the exponential of -inf is then 0 without a special case. The maximum passes over NaN, the sums keep
 * it. */
struct online {
    float max, sums[XENT_PACK];
};

__device__ __forceinline__ void online_add(online &o, const float (&v)[XENT_BATCH][XENT_PACK])
{
    float top = v[0][0];
#pragma unroll
    for (int b = 0; b < XENT_BATCH; b++) {
#pragma unroll
        for (int k = 0; k < XENT_PACK; k++) {
            top = fmaxf(top, v[b][k]);
        }
    }
    if (top > o.max) {
        float shrink = expf(o.max - top);
#pragma unroll
        for (int k = 0; k < XENT_PACK; k++) {
            o.sums[k] *= shrink;
        }
        o.max = top;
    }
#pragma unroll
    for (int b = 0; b < XENT_BATCH; b++) {
#pragma unroll
        for (int k = 0; k < XENT_PACK; k++) {
            o.sums[k] += expf(v[b][k] - o.max);
        }
    }
}

/* The largest x of the block, in every thread. */
__device__ __forceinline__ float block_max(float x, float *slots)
{
    int lane = threadIdx.x % LY_WARP, warp = threadIdx.x / LY_WARP, n_warps = blockDim.x / LY_WARP;
    x = ly_warp_max(x);
    if (lane == 0) {
        slots[warp] = x;
    }
    __syncthreads();
    float top = slots[0];
    for (int w = 1; w < n_warps; w++) {
        top = fmaxf(top, slots[w]);
    }
    return top;
}

/* Local column of row r's target, or -1. */
__device__ __forceinline__ int64_t local_target(const int32_t *targets, int64_t r, int64_t vocab0, int64_t valid)
{
    int64_t t = (int64_t)targets[r] - vocab0;
    return t >= 0 && t < valid ? t : -1;
}

/* Bytes an element: 4, read once. With 3.7 elements a clock and multiprocessor (H100) there are 34 instructions for
 * each; the exponential and the sums take about 12. */
__global__ void __launch_bounds__(XENT_THREADS)
    xent_stats_kernel(const float *logits, const int32_t *targets, float *stats, int64_t n_cols, int64_t valid,
                      int64_t vocab0, bool wide)
{
    __shared__ float max_slots[XENT_THREADS / LY_WARP];
    __shared__ double sum_slots[XENT_THREADS / LY_WARP];
    int64_t row = blockIdx.x, step = (int64_t)blockDim.x * XENT_PACK;
    const float *x = logits + row * n_cols;
    online o = {-FLT_MAX, {0.0f, 0.0f, 0.0f, 0.0f}};
    for (int64_t c = (int64_t)threadIdx.x * XENT_PACK; c < valid; c += step * XENT_BATCH) {
        float v[XENT_BATCH][XENT_PACK];
#pragma unroll
        for (int b = 0; b < XENT_BATCH; b++) {
            int64_t at = c + b * step;
            load_logits(v[b], x + at, valid - at, wide, -INFINITY);
        }
        online_add(o, v);
    }
    float max = block_max(o.max, max_slots);
    double sum = ((double)o.sums[0] + (double)o.sums[1]) + ((double)o.sums[2] + (double)o.sums[3]);
    sum = ly_block_sum(sum * (double)expf(o.max - max), sum_slots);
    if (threadIdx.x == 0) {
        int64_t target = local_target(targets, row, vocab0, valid);
        /* Nothing but -inf, padding or NaN. A row whose largest logit is -FLT_MAX has a sum of at least 1. */
        bool none = max == -FLT_MAX && !(sum >= 1.0);
        stats[3 * row] = none ? -INFINITY : max;
        stats[3 * row + 1] = (float)sum;
        stats[3 * row + 2] = target >= 0 ? x[target] : 0.0f;
    }
}

static int64_t valid_columns(int64_t vocab0, int64_t vocab_valid, int64_t n_cols)
{
    int64_t valid = vocab_valid - vocab0;
    return valid < 0 ? 0 : valid < n_cols ? valid : n_cols;
}

extern "C" int ly_k_xent_stats(const ly_ctx *cx, const ly_xent_stats *a)
{
    MC_ASSERT(a->logits.n_dims == 2);
    int64_t n_rows = a->logits.dims[0], n_cols = a->logits.dims[1];
    MC_ASSERT(ly_is_contiguous_2d(a->logits, n_rows, n_cols) && ly_is_contiguous_1d(a->targets, n_rows) &&
              ly_is_contiguous_2d(a->stats, n_rows, 3) && n_rows <= INT32_MAX);
    if (n_rows == 0) {
        return 0;
    }
    const float *logits = ly_data<float>(a->logits);
    int64_t valid = valid_columns(a->vocab0, a->vocab_valid, n_cols);
    LY_LAUNCH(xent_stats_kernel, (unsigned)n_rows, xent_threads(valid), 0, ly_stream(cx), logits,
              ly_data<int32_t>(a->targets), ly_data<float>(a->stats), n_cols, valid, a->vocab0,
              ly_aligned16(logits, n_cols));
    return ly_launched();
}

/* A row over all shards: log-sum-exp in the two parts max + log(sum), and the target's logit. */
struct row_total {
    float max;
    double sum, target;
};

__device__ row_total combine(const float *all_stats, int64_t r, int n_shards, int64_t n_rows)
{
    row_total t = {-INFINITY, 0.0, 0.0};
    for (int s = 0; s < n_shards; s++) {
        float max = all_stats[(s * n_rows + r) * 3];
        t.max = max > t.max ? max : t.max;
    }
    for (int s = 0; s < n_shards; s++) {
        const float *x = all_stats + (s * n_rows + r) * 3;
        double part = (double)x[1];
        t.sum += x[0] == t.max || part == 0.0 ? part : part * exp((double)x[0] - (double)t.max);
        t.target += (double)x[2];
    }
    return t;
}

__device__ __forceinline__ float row_loss(const row_total &t, float weight)
{
    return weight == 0.0f ? 0.0f : (float)(((double)t.max + log(t.sum) - t.target) * (double)weight);
}

/* What a row's threads share in the gradient: softmax = exp(x - max) * factor / scale. */
struct row_grad {
    float max, factor, at_target;
    bool masked; /* weight 0: the gradient is 0 whatever the logits hold */
};

/* Bytes an element: 4 + sizeof(T), each once. In place (dlogits = logits) every thread reads an element before it
 * writes it, and the target's logit has been read before the first barrier. */
template <class T>
__global__ void __launch_bounds__(XENT_THREADS)
    xent_grad_kernel(const float *logits, T *dlogits, const int32_t *targets, const float *all_stats, float *losses,
                     const float *weights, int n_shards, int64_t n_rows, int64_t n_cols, int64_t valid, int64_t vocab0,
                     float scale, bool wide)
{
    __shared__ row_grad shared;
    int64_t row = blockIdx.x, target = local_target(targets, row, vocab0, valid);
    const float *x = logits + row * n_cols;
    T *dx = dlogits + row * n_cols;
    if (threadIdx.x == 0) {
        float weight = weights ? weights[row] : 1.0f, factor = weight * scale;
        row_total t = combine(all_stats, row, n_shards, n_rows);
        float at_target = target >= 0 ? (float)(exp((double)x[target] - (double)t.max) / t.sum - 1.0) : 0.0f;
        shared = {t.max, (float)((double)factor / t.sum), at_target * factor, weight == 0.0f};
        if (losses) {
            losses[row] = row_loss(t, weight);
        }
    }
    __syncthreads();
    row_grad g = shared;
    for (int64_t c = (int64_t)threadIdx.x * XENT_PACK; c < n_cols; c += (int64_t)blockDim.x * XENT_PACK) {
        float v[XENT_PACK];
        load_logits(v, x + c, valid - c, wide, 0.0f);
#pragma unroll
        for (int k = 0; k < XENT_PACK; k++) {
            float p = c + k == target ? g.at_target : expf(v[k] - g.max) * g.factor;
            v[k] = g.masked || c + k >= valid ? 0.0f : p;
        }
        if (wide && c + XENT_PACK <= n_cols) {
            ly_store_f32(dx + c, v);
        } else {
#pragma unroll
            for (int k = 0; k < XENT_PACK; k++) {
                if (c + k < n_cols) {
                    dx[c + k] = ly_from_f32<T>(v[k]);
                }
            }
        }
    }
}

/* The losses alone: a thread for each row. */
__global__ void __launch_bounds__(LY_FLAT_THREADS)
    xent_loss_kernel(const float *all_stats, float *losses, const float *weights, int n_shards, int64_t n_rows)
{
    int64_t row = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (row < n_rows) {
        losses[row] = row_loss(combine(all_stats, row, n_shards, n_rows), weights ? weights[row] : 1.0f);
    }
}

template <class T> static int xent_grad_launch(const ly_ctx *cx, const ly_xent_grad *a)
{
    const float *logits = ly_data<float>(a->logits);
    T *dlogits = ly_data<T>(mc_tensor_present(a->dlogits) ? a->dlogits : a->logits);
    int64_t n_rows = a->logits.dims[0], n_cols = a->logits.dims[1];
    bool wide = ly_aligned16(logits, n_cols) && ly_fits<XENT_PACK>(dlogits);
    LY_LAUNCH(xent_grad_kernel<T>, (unsigned)n_rows, xent_threads(n_cols), 0, ly_stream(cx), logits, dlogits,
              ly_data<int32_t>(a->targets), ly_data<float>(a->all_stats), ly_data<float>(a->losses),
              ly_data<float>(a->weights), (int)a->all_stats.dims[0], n_rows, n_cols,
              valid_columns(a->vocab0, a->vocab_valid, n_cols), a->vocab0, a->scale, wide);
    return ly_launched();
}

extern "C" int ly_k_xent_grad(const ly_ctx *cx, const ly_xent_grad *a)
{
    MC_ASSERT(a->logits.n_dims == 2 && a->all_stats.n_dims == 3);
    int64_t n_rows = a->logits.dims[0], n_cols = a->logits.dims[1];
    MC_ASSERT(ly_is_contiguous_2d(a->logits, n_rows, n_cols) && ly_is_contiguous_1d(a->targets, n_rows) &&
              n_rows <= INT32_MAX);
    MC_ASSERT(a->all_stats.dims[0] >= 1 && a->all_stats.dims[1] == n_rows && a->all_stats.dims[2] == 3 &&
              mc_tensor_contiguous(a->all_stats));
    MC_ASSERT(!mc_tensor_present(a->losses) || ly_is_contiguous_1d(a->losses, n_rows));
    MC_ASSERT(!mc_tensor_present(a->weights) || ly_is_contiguous_1d(a->weights, n_rows));
    MC_ASSERT(!mc_tensor_present(a->dlogits) || ly_is_contiguous_2d(a->dlogits, n_rows, n_cols));
    if (n_rows == 0) {
        return 0;
    }
    if (a->write_grad) {
        return LY_BY_TYPE(mc_tensor_present(a->dlogits) ? a->dlogits.dtype : a->logits.dtype, xent_grad_launch, cx, a);
    }
    if (!mc_tensor_present(a->losses)) {
        return 0;
    }
    unsigned blocks = (unsigned)((n_rows + LY_FLAT_THREADS - 1) / LY_FLAT_THREADS);
    LY_LAUNCH(xent_loss_kernel, blocks, LY_FLAT_THREADS, 0, ly_stream(cx), ly_data<float>(a->all_stats),
              ly_data<float>(a->losses), ly_data<float>(a->weights), (int)a->all_stats.dims[0], n_rows);
    return ly_launched();
}
