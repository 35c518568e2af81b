/* Token and position embeddings. */
#include "layers/cuda/dropout.cuh"
#include "layers/cuda/norm_row.cuh"

/* Row-wise kernels: a warp takes VECS vectors a lane of one row (blockIdx.y counts such chunks), a block ROWS rows.
 * Where sums are kept as well, BWD_VECS. */
enum { ROWS = 8, VECS = 4, BWD_VECS = 2 };

/* Column at which vector i of the calling lane begins. */
template <int WIDTH, int N = VECS> static __device__ __forceinline__ int64_t chunk_column(int i)
{
    return (((int64_t)blockIdx.y * N + i) * LY_WARP + threadIdx.x) * WIDTH;
}

static dim3 chunk_grid(int64_t n_rows, int64_t n_cols, int width, int vecs = VECS)
{
    int64_t chunk = (int64_t)LY_WARP * vecs * width;
    return dim3((unsigned)((n_rows + ROWS - 1) / ROWS), (unsigned)((n_cols + chunk - 1) / chunk));
}

/* Local row of the table for a token, or -1 where another rank holds it. */
static __device__ __forceinline__ int64_t local_token(int32_t token, int64_t vocab0, int64_t n_vocab)
{
    int64_t t = token - vocab0;
    return t >= 0 && t < n_vocab ? t : -1;
}

/* Bytes an element: 2 sizeof(T), a row of the table read (from the cache where tokens repeat) and a row written; floor
 * on an H100 (3.35 TB/s) for bf16: 1.2 ns for 1,000 elements. */
template <class T, int WIDTH>
static __global__ void __launch_bounds__(LY_WARP *ROWS)
    embedding_fwd_kernel(const int32_t *tokens, const T *table, T *out, int64_t n_rows, int64_t n_cols, int64_t vocab0,
                         int64_t n_vocab)
{
    int64_t row = (int64_t)blockIdx.x * ROWS + threadIdx.y;
    if (row >= n_rows) {
        return;
    }
    int64_t token = local_token(tokens[row], vocab0, n_vocab);
    ly_pack<T, WIDTH> v[VECS];
#pragma unroll
    for (int i = 0; i < VECS; i++) {
        int64_t c = chunk_column<WIDTH>(i);
        v[i] = token >= 0 && c < n_cols ? ly_pack_at<WIDTH>(table + token * n_cols + c) : ly_pack<T, WIDTH>{};
    }
#pragma unroll
    for (int i = 0; i < VECS; i++) {
        int64_t c = chunk_column<WIDTH>(i);
        if (c < n_cols) {
            ly_pack_to(out + row * n_cols + c, v[i]);
        }
    }
}

template <class T, int WIDTH> static int table_fwd_launch(const ly_ctx *cx, const ly_embedding_fwd *a)
{
    int64_t n_rows = a->out.dims[0], n_cols = a->out.dims[1];
    LY_LAUNCH((embedding_fwd_kernel<T, WIDTH>), chunk_grid(n_rows, n_cols, WIDTH), dim3(LY_WARP, ROWS), 0,
              ly_stream(cx), ly_data<int32_t>(a->tokens), ly_data<T>(a->table), ly_data<T>(a->out), n_rows, n_cols,
              a->vocab0, a->table.dims[0]);
    return ly_launched();
}

template <class T> static int table_fwd(const ly_ctx *cx, const ly_embedding_fwd *a)
{
    return ly_i_all_wide<T>(a->table, a->out) ? table_fwd_launch<T, 16 / sizeof(T)>(cx, a)
                                              : table_fwd_launch<T, 1>(cx, a);
}

static void check_table(mc_tensor tokens, mc_tensor table, mc_tensor rows)
{
    MC_ASSERT(table.n_dims == 2 && rows.n_dims == 2);
    MC_ASSERT(mc_tensor_contiguous(table) && rows.dims[1] == table.dims[1] && mc_tensor_contiguous(rows));
    MC_ASSERT(ly_is_contiguous_1d(tokens, rows.dims[0]) && rows.dims[0] <= INT32_MAX && rows.dims[1] <= INT32_MAX);
}

extern "C" int ly_k_embedding_fwd(const ly_ctx *cx, const ly_embedding_fwd *a)
{
    check_table(a->tokens, a->table, a->out);
    if (!ly_is_float16_or_32(a->out.dtype)) {
        return (int)cudaErrorInvalidValue;
    }
    return mc_tensor_elems(a->out) == 0 ? 0 : LY_BY_TYPE(a->out.dtype, table_fwd, cx, a);
}

/* The backward adds the rows of a token in row order, without sorting them: the block of the first row that has the
 * token owns its table row, and finds the later ones by reading the token list. Integers made by two small kernels
 * spare most of that: first[t], the first row of token t, and count[t], how many rows it has. A token that stands once
 * (most of a text's vocabulary) is added without looking further, and the search for others ends with the last one. The
 * integer atomics give the same values in any order. */
enum { MARK_THREADS = 256 };

static __global__ void __launch_bounds__(MARK_THREADS)
    clear_marks_kernel(int32_t *first, int32_t *count, int64_t n_vocab)
{
    int64_t t = (int64_t)blockIdx.x * MARK_THREADS + threadIdx.x;
    if (t < n_vocab) {
        first[t] = INT32_MAX;
        count[t] = 0;
    }
}

static __global__ void __launch_bounds__(MARK_THREADS)
    mark_tokens_kernel(const int32_t *tokens, int32_t *first, int32_t *count, int64_t n_rows, int64_t vocab0,
                       int64_t n_vocab)
{
    int64_t row = (int64_t)blockIdx.x * MARK_THREADS + threadIdx.x;
    int64_t t = row < n_rows ? local_token(tokens[row], vocab0, n_vocab) : -1;
    if (t >= 0) {
        atomicMin(&first[t], (int32_t)row);
        atomicAdd(&count[t], 1);
    }
}

/* The search reads SEARCH_TOKENS tokens a thread at a time; rows found are kept until the list might not hold those of
 * one more reading. */
enum { SEARCH_THREADS = 256, SEARCH_WARPS = SEARCH_THREADS / LY_WARP, SEARCH_TOKENS = 4 };
enum { SEARCH_STEP = SEARCH_THREADS * SEARCH_TOKENS, LIST_ROWS = 2 * SEARCH_STEP };

/* Appends the rows from `begin` on, SEARCH_STEP of them, that have `token` to the list, in order. Returns the new
 * length. All threads of the block take part; the list may be read after the next barrier. */
static __device__ __forceinline__ int append_rows(int32_t *list, int n_list, const int32_t *tokens, int64_t begin,
                                                  int64_t n_rows, int32_t token, int *warp_counts)
{
    int64_t row = begin + (int64_t)threadIdx.x * SEARCH_TOKENS;
    int lane = threadIdx.x % LY_WARP, warp = threadIdx.x / LY_WARP, mine = 0;
    bool has[SEARCH_TOKENS];
#pragma unroll
    for (int k = 0; k < SEARCH_TOKENS; k++) {
        has[k] = row + k < n_rows && tokens[row + k] == token;
        mine += has[k];
    }
    int upto = mine; /* found by this lane and those before it */
    for (int step = 1; step < LY_WARP; step *= 2) {
        int other = __shfl_up_sync(0xffffffffu, upto, step);
        upto += lane >= step ? other : 0;
    }
    if (lane == LY_WARP - 1) {
        warp_counts[warp] = upto;
    }
    __syncthreads();
    int at = n_list + upto - mine;
    for (int w = 0; w < SEARCH_WARPS; w++) {
        at += w < warp ? warp_counts[w] : 0;
        n_list += warp_counts[w];
    }
#pragma unroll
    for (int k = 0; k < SEARCH_TOKENS; k++) {
        if (has[k]) {
            list[at++] = (int32_t)(row + k);
        }
    }
    return n_list;
}

/* Rows of dout that a thread reads before it adds them: their latency is waited for once. */
enum { BATCH_ROWS = 8 };

/* dtable row += the listed rows of dout, in order. */
template <class T, int WIDTH>
static __device__ __forceinline__ void add_rows(float *dtable, const T *dout, const int32_t *list, int n_list,
                                                int n_cols)
{
    for (int c = threadIdx.x * WIDTH; c < n_cols; c += SEARCH_THREADS * WIDTH) {
        float sum[WIDTH];
        ly_load_f32(sum, dtable + c);
        for (int i = 0; i < n_list; i += BATCH_ROWS) {
            ly_pack<T, WIDTH> v[BATCH_ROWS];
#pragma unroll
            for (int b = 0; b < BATCH_ROWS; b++) {
                if (i + b < n_list) {
                    v[b] = ly_pack_at<WIDTH>(dout + (int64_t)list[i + b] * n_cols + c);
                }
            }
#pragma unroll
            for (int b = 0; b < BATCH_ROWS; b++) {
                if (i + b < n_list) {
#pragma unroll
                    for (int k = 0; k < WIDTH; k++) {
                        sum[k] += ly_to_f32(v[b].x[k]);
                    }
                }
            }
        }
        ly_store_f32(dtable + c, sum);
    }
}

/* Bytes an element of dout: sizeof(T), and 8 for each table row that is met; floor on an H100 (3.35 TB/s) for bf16 and
 * 4 rows a token: 1.2 ns for 1,000 elements. The search adds n_rows x 4 bytes from the cache for each token that stands
 * more than once: with 32,768 rows less than a tenth of a millisecond. */
template <class T, int WIDTH>
static __global__ void __launch_bounds__(SEARCH_THREADS)
    embedding_bwd_kernel(const int32_t *tokens, const int32_t *first, const int32_t *count, const T *dout,
                         float *dtable, int64_t n_rows, int n_cols, int64_t vocab0, int64_t n_vocab)
{
    __shared__ int32_t list[LIST_ROWS];
    __shared__ int warp_counts[2][SEARCH_WARPS];
    int64_t row = blockIdx.x;
    int32_t token = tokens[row];
    int64_t t = local_token(token, vocab0, n_vocab);
    if (t < 0 || first[t] != (int32_t)row) {
        return;
    }
    int left = count[t] - 1, n_list = 1, turn = 0;
    if (threadIdx.x == 0) {
        list[0] = (int32_t)row;
    }
    int64_t begin = row + 1;
    do {
        for (; left > 0 && n_list <= LIST_ROWS - SEARCH_STEP; begin += SEARCH_STEP) {
            int longer = append_rows(list, n_list, tokens, begin, n_rows, token, warp_counts[turn]);
            left -= longer - n_list;
            n_list = longer;
            turn ^= 1;
        }
        __syncthreads();
        add_rows<T, WIDTH>(dtable + t * n_cols, dout, list, n_list, n_cols);
        __syncthreads();
        n_list = 0;
    } while (left > 0);
}

template <class T, int WIDTH> static int table_bwd_launch(const ly_ctx *cx, const ly_embedding_bwd *a)
{
    int64_t n_rows = a->dout.dims[0], n_cols = a->dout.dims[1], n_vocab = a->dtable.dims[0];
    const int32_t *tokens = ly_data<int32_t>(a->tokens);
    int32_t *first = static_cast<int32_t *>(cx->workspace), *count = first + n_vocab;
    MC_ASSERT(2 * (size_t)n_vocab * sizeof(int32_t) <= cx->workspace_bytes);
    unsigned vocab_blocks = (unsigned)((n_vocab + MARK_THREADS - 1) / MARK_THREADS);
    LY_LAUNCH(clear_marks_kernel, vocab_blocks, MARK_THREADS, 0, ly_stream(cx), first, count, n_vocab);
    int status = ly_launched();
    if (status) {
        return status;
    }
    unsigned row_blocks = (unsigned)((n_rows + MARK_THREADS - 1) / MARK_THREADS);
    LY_LAUNCH(mark_tokens_kernel, row_blocks, MARK_THREADS, 0, ly_stream(cx), tokens, first, count, n_rows, a->vocab0,
              n_vocab);
    status = ly_launched();
    if (status) {
        return status;
    }
    LY_LAUNCH((embedding_bwd_kernel<T, WIDTH>), (unsigned)n_rows, SEARCH_THREADS, 0, ly_stream(cx), tokens, first,
              count, ly_data<T>(a->dout), ly_data<float>(a->dtable), n_rows, (int)n_cols, a->vocab0, n_vocab);
    return ly_launched();
}

template <class T> static int table_bwd(const ly_ctx *cx, const ly_embedding_bwd *a)
{
    return ly_i_all_wide<T>(a->dout) && reinterpret_cast<uintptr_t>(a->dtable.data) % 16 == 0
               ? table_bwd_launch<T, 16 / sizeof(T)>(cx, a)
               : table_bwd_launch<T, 1>(cx, a);
}

extern "C" int ly_k_embedding_bwd(const ly_ctx *cx, const ly_embedding_bwd *a)
{
    check_table(a->tokens, a->dtable, a->dout);
    if (!ly_is_float16_or_32(a->dout.dtype)) {
        return (int)cudaErrorInvalidValue;
    }
    return mc_tensor_elems(a->dout) == 0 || a->dtable.dims[0] == 0 ? 0 : LY_BY_TYPE(a->dout.dtype, table_bwd, cx, a);
}

/* Bytes an element: 2 sizeof(T), x and h; positions come from the cache where samples share them. Floor on an H100
 * (3.35 TB/s) for bf16: 1.2 ns for 1,000 elements. */
template <class T, int WIDTH>
static __global__ void __launch_bounds__(LY_WARP *ROWS)
    embed_finish_fwd_kernel(const T *x, const T *positions, T *h, int64_t n_rows, int64_t n_cols, ly_mask mask)
{
    int64_t row = (int64_t)blockIdx.x * ROWS + threadIdx.y, at = row * n_cols;
    if (row >= n_rows) {
        return;
    }
    ly_mask_row place = ly_mask_row_of(mask, row);
    float v[VECS][WIDTH], position[VECS][WIDTH] = {};
#pragma unroll
    for (int i = 0; i < VECS; i++) {
        int64_t c = chunk_column<WIDTH>(i);
        if (c < n_cols) {
            ly_load_f32(v[i], x + at + c);
            if (positions) {
                ly_load_f32(position[i], positions + place.position * n_cols + c);
            }
        }
    }
#pragma unroll
    for (int i = 0; i < VECS; i++) {
        int64_t c = chunk_column<WIDTH>(i);
        if (c >= n_cols) {
            continue;
        }
#pragma unroll
        for (int k = 0; k < WIDTH; k++) {
            v[i][k] += position[i][k];
        }
        if (mask.on) {
            ly_mask_apply(v[i], mask, place.sample, (uint64_t)(place.position * n_cols + c));
        }
        ly_store_f32(h + at + c, v[i]);
    }
}

template <class T, int WIDTH> static int finish_fwd_launch(const ly_ctx *cx, const ly_embed_finish_fwd *a)
{
    int64_t n_rows = a->x.dims[0], n_cols = a->x.dims[1];
    LY_LAUNCH((embed_finish_fwd_kernel<T, WIDTH>), chunk_grid(n_rows, n_cols, WIDTH), dim3(LY_WARP, ROWS), 0,
              ly_stream(cx), ly_data<T>(a->x), ly_data<T>(a->positions), ly_data<T>(a->h), n_rows, n_cols,
              ly_mask_of(&a->dropout, n_rows, true));
    return ly_launched();
}

template <class T> static int finish_fwd(const ly_ctx *cx, const ly_embed_finish_fwd *a)
{
    return ly_i_all_wide<T>(a->x, a->positions, a->h) ? finish_fwd_launch<T, 16 / sizeof(T)>(cx, a)
                                                      : finish_fwd_launch<T, 1>(cx, a);
}

/* A present table of positions has those that the rows reach. */
static void check_positions(mc_tensor positions, const ly_dropout *d, int64_t n_rows, int64_t n_cols)
{
    MC_ASSERT(d->seq_len > 0 && d->row0 >= 0);
    int64_t first = d->row0 % d->seq_len, end = first + n_rows < d->seq_len ? first + n_rows : d->seq_len;
    MC_ASSERT(!mc_tensor_present(positions) ||
              (positions.dims[0] >= end && ly_is_contiguous_2d(positions, positions.dims[0], n_cols)));
}

extern "C" int ly_k_embed_finish_fwd(const ly_ctx *cx, const ly_embed_finish_fwd *a)
{
    MC_ASSERT(a->x.n_dims == 2);
    int64_t n_rows = a->x.dims[0], n_cols = a->x.dims[1];
    MC_ASSERT(ly_is_contiguous_2d(a->x, n_rows, n_cols) && ly_is_contiguous_2d(a->h, n_rows, n_cols));
    check_positions(a->positions, &a->dropout, n_rows, n_cols);
    if (!ly_is_float16_or_32(a->x.dtype)) {
        return (int)cudaErrorInvalidValue;
    }
    return mc_tensor_elems(a->x) == 0 ? 0 : LY_BY_TYPE(a->x.dtype, finish_fwd, cx, a);
}

/* Bytes an element: 2 sizeof(T), dh and dx, and 8 for each position; floor on an H100 (3.35 TB/s) for bf16 without
 * positions: 1.2 ns for 1,000 elements. A lane owns its columns of a position and walks the samples' rows at it. */
template <class T, int WIDTH>
static __global__ void __launch_bounds__(LY_WARP *ROWS)
    embed_finish_bwd_kernel(const T *dh, T *dx, float *dpositions, int64_t n_rows, int64_t n_cols, int64_t seq_len,
                            int64_t first, ly_mask mask)
{
    /* Local rows walk the positions from `first` on, around the end. */
    int64_t row0 = (int64_t)blockIdx.x * ROWS + threadIdx.y, position = first + row0;
    if (row0 >= seq_len || row0 >= n_rows) {
        return;
    }
    position -= position >= seq_len ? seq_len : 0;
    float sums[BWD_VECS][WIDTH] = {};
#pragma unroll
    for (int i = 0; i < BWD_VECS; i++) {
        int64_t c = chunk_column<WIDTH, BWD_VECS>(i);
        if (dpositions && c < n_cols) {
            ly_load_f32(sums[i], dpositions + position * n_cols + c);
        }
    }
    for (int64_t row = row0; row < n_rows; row += seq_len) {
        ly_mask_row place = ly_mask_row_of(mask, row);
        float v[BWD_VECS][WIDTH];
#pragma unroll
        for (int i = 0; i < BWD_VECS; i++) {
            int64_t c = chunk_column<WIDTH, BWD_VECS>(i);
            if (c < n_cols) {
                ly_load_f32(v[i], dh + row * n_cols + c);
            }
        }
#pragma unroll
        for (int i = 0; i < BWD_VECS; i++) {
            int64_t c = chunk_column<WIDTH, BWD_VECS>(i);
            if (c >= n_cols) {
                continue;
            }
            if (mask.on) {
                ly_mask_apply(v[i], mask, place.sample, (uint64_t)(position * n_cols + c));
            }
            ly_store_f32(dx + row * n_cols + c, v[i]);
#pragma unroll
            for (int k = 0; k < WIDTH; k++) {
                sums[i][k] += v[i][k];
            }
        }
    }
#pragma unroll
    for (int i = 0; i < BWD_VECS; i++) {
        int64_t c = chunk_column<WIDTH, BWD_VECS>(i);
        if (dpositions && c < n_cols) {
            ly_store_f32(dpositions + position * n_cols + c, sums[i]);
        }
    }
}

template <class T, int WIDTH> static int finish_bwd_launch(const ly_ctx *cx, const ly_embed_finish_bwd *a)
{
    int64_t n_rows = a->dh.dims[0], n_cols = a->dh.dims[1], seq_len = a->dropout.seq_len;
    int64_t n_positions = n_rows < seq_len ? n_rows : seq_len;
    LY_LAUNCH((embed_finish_bwd_kernel<T, WIDTH>), chunk_grid(n_positions, n_cols, WIDTH, BWD_VECS),
              dim3(LY_WARP, ROWS), 0, ly_stream(cx), ly_data<T>(a->dh), ly_data<T>(a->dx),
              ly_data<float>(a->dpositions), n_rows, n_cols, seq_len, a->dropout.row0 % seq_len,
              ly_mask_of(&a->dropout, n_rows, true));
    return ly_launched();
}

template <class T> static int finish_bwd(const ly_ctx *cx, const ly_embed_finish_bwd *a)
{
    return ly_i_all_wide<T>(a->dh, a->dx) && reinterpret_cast<uintptr_t>(a->dpositions.data) % 16 == 0
               ? finish_bwd_launch<T, 16 / sizeof(T)>(cx, a)
               : finish_bwd_launch<T, 1>(cx, a);
}

extern "C" int ly_k_embed_finish_bwd(const ly_ctx *cx, const ly_embed_finish_bwd *a)
{
    MC_ASSERT(a->dh.n_dims == 2);
    int64_t n_rows = a->dh.dims[0], n_cols = a->dh.dims[1];
    MC_ASSERT(ly_is_contiguous_2d(a->dh, n_rows, n_cols) && ly_is_contiguous_2d(a->dx, n_rows, n_cols));
    check_positions(a->dpositions, &a->dropout, n_rows, n_cols);
    if (!ly_is_float16_or_32(a->dh.dtype)) {
        return (int)cudaErrorInvalidValue;
    }
    return mc_tensor_elems(a->dh) == 0 ? 0 : LY_BY_TYPE(a->dh.dtype, finish_bwd, cx, a);
}
