/* Geometry of attention on the CPU: which blocks, tiles and elements of the score matrix exist, and their dropout.
 *
 * Scores are kept transposed, keys down and queries across: a vector holds 16 queries of one key, so that softmax
 * needs no sums across lanes and both products that follow read them without another transpose. */
#ifndef LAYERS_CPU_ATTENTION_BLOCK_H
#define LAYERS_CPU_ATTENTION_BLOCK_H

#include "layers/attention.h"
#include "layers/cpu/attention_tile.h"
#include "megac/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What a call computes, the same for every task. */
typedef struct ly_at_shape {
    int64_t B, T, G, r, H;
    int64_t window;  /* keys further back than this are not seen; T: no limit */
    int64_t cols;    /* H rounded up to LY_LANES */
    int64_t row;     /* row stride of (rows, H) blocks */
    int64_t queries; /* queries of a block, a multiple of LY_AT_LANES */
    int64_t keys;    /* keys of a block, a multiple of LY_AT_ROWS */
    int64_t s_row;   /* row stride of (keys, queries) blocks */
    int64_t head0;
    ly_dropout dropout;
} ly_at_shape;

/* A block of the score matrix: queries q0 .. q0 + n_q - 1 against keys k0 .. k0 + n_k - 1 of one sample and head;
 * n_q_padded is a multiple of LY_AT_LANES, n_k of LY_AT_ROWS (keys past T are masked like all future keys). */
typedef struct ly_at_block {
    int64_t q0, n_q, n_q_padded, k0, n_k;
    int64_t window;
    bool masked; /* some of it is not seen */
} ly_at_block;

/* A range of rows or lanes of a block. */
typedef struct ly_at_range {
    int64_t begin, end;
} ly_at_range;

LY_INLINE int64_t ly_at_min(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

LY_INLINE int64_t ly_at_max(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

/* The next `floats` of a scratch layout, rounded up to whole cache lines; NULL while only measuring (base NULL). */
LY_INLINE float *ly_at_take(float *base, int64_t *used, int64_t floats)
{
    float *at = base ? base + *used : NULL;
    *used += ly_at_round_up(floats, LY_LANES);
    return at;
}

LY_INLINE ly_at_shape ly_at_shape_of(mc_tensor q, int64_t seq_len, int64_t window_left, int64_t head0,
                                     ly_dropout dropout)
{
    ly_at_shape s = {
        .B = q.dims[0] / seq_len,
        .T = seq_len,
        .G = q.dims[1],
        .r = q.dims[2],
        .H = q.dims[3],
        .window = window_left < 0 || window_left > seq_len ? seq_len : window_left,
        .cols = ly_at_round_up(q.dims[3], LY_LANES),
        .row = ly_at_stride(q.dims[3]),
        .head0 = head0,
        .dropout = dropout,
    };
    return s;
}

LY_INLINE void ly_at_set_block(ly_at_shape *s, int64_t queries, int64_t keys)
{
    s->queries = ly_at_round_up(ly_at_min(queries, s->T), LY_AT_LANES);
    s->keys = ly_at_round_up(ly_at_min(keys, s->T), LY_AT_ROWS);
    s->s_row = ly_at_stride(ly_at_round_up(s->queries, LY_AT_ROWS));
}

/* Halves the blocks of a head size that does not fit into scratch; MC_UNSUPPORTED when they are at their smallest. */
static inline mc_status ly_at_smaller_block(const char *op, ly_at_shape *s, int64_t *queries, int64_t *keys)
{
    if (*queries <= LY_AT_LANES && *keys <= LY_AT_ROWS) {
        return MC_FAIL(MC_UNSUPPORTED,
                       "%s: head size %lld does not fit into a CPU thread's scratch; use more, smaller heads", op,
                       (long long)s->H);
    }
    *queries = ly_at_max(*queries / 2, LY_AT_LANES);
    *keys = ly_at_max(*keys / 2, LY_AT_ROWS);
    ly_at_set_block(s, *queries, *keys);
    return MC_OK;
}

/* Shapes are ours to get right (asserted); a dtype may be the user's wish. */
static inline mc_status ly_at_check(const char *op, mc_tensor q, mc_tensor k, mc_tensor v, mc_tensor out, mc_tensor lse,
                                    int64_t seq_len)
{
    const mc_tensor views[] = {q, k, v, out};
    for (int i = 0; i < 4; i++) {
        if (views[i].dtype != q.dtype || (q.dtype != MC_F32 && q.dtype != MC_BF16 && q.dtype != MC_F16)) {
            return MC_FAIL(MC_UNSUPPORTED, "%s: %s and %s inputs; the CPU operators take f32, bf16 or f16, all alike",
                           op, mc_dtype_name(q.dtype), mc_dtype_name(views[i].dtype));
        }
        MC_ASSERT(views[i].n_dims == 4 && views[i].strides[3] == 1 && views[i].dims[0] == q.dims[0]);
        MC_ASSERT(views[i].dims[1] == q.dims[1] && views[i].dims[3] == q.dims[3]);
    }
    MC_ASSERT(k.dims[2] == 1 && v.dims[2] == 1 && out.dims[2] == q.dims[2]);
    MC_ASSERT(seq_len > 0 && q.dims[0] % seq_len == 0);
    MC_ASSERT(lse.dtype == MC_F32 && mc_tensor_contiguous(lse));
    MC_ASSERT(mc_tensor_elems(lse) == q.dims[0] * q.dims[1] * q.dims[2]);
    return MC_OK;
}

/* Rows of local head j of group g in sample b. */
LY_INLINE ly_at_typed ly_at_view(mc_tensor t, int64_t seq_len, int64_t b, int64_t g, int64_t j)
{
    int64_t first = b * seq_len * t.strides[0] + g * t.strides[1] + j * t.strides[2];
    return (ly_at_typed){ly_elem_out(t.dtype, t.data, first), t.strides[0], t.dtype};
}

/* The rows from `first` on. */
LY_INLINE ly_at_typed ly_at_view_from(ly_at_typed rows, int64_t first)
{
    return (ly_at_typed){ly_elem_out(rows.type, rows.p, first * rows.row), rows.row, rows.type};
}

LY_INLINE ly_at_rows ly_at_from(ly_at_rows rows, int64_t first)
{
    return (ly_at_rows){rows.p + first * rows.row, rows.row};
}

LY_INLINE ly_at_block ly_at_block_of(const ly_at_shape *s, int64_t q0, int64_t k0)
{
    ly_at_block b = {.q0 = q0, .k0 = k0, .window = s->window};
    b.n_q = ly_at_min(s->queries, s->T - q0);
    b.n_q_padded = ly_at_round_up(b.n_q, LY_AT_LANES);
    b.n_k = ly_at_min(s->keys, ly_at_round_up(s->T - k0, LY_AT_ROWS));
    b.masked = k0 + b.n_k - 1 > q0 || k0 < q0 + b.n_q - 1 - s->window;
    return b;
}

/* Rows of the block (keys), in whole tiles, that lanes [first, first + count) see. */
LY_INLINE ly_at_range ly_at_keys_seen(const ly_at_block *b, int64_t first, int64_t count)
{
    int64_t lo = b->q0 + first - b->window - b->k0, hi = b->q0 + first + count - b->k0;
    ly_at_range r = {ly_at_max(lo, 0) / LY_AT_ROWS * LY_AT_ROWS,
                     ly_at_min(ly_at_round_up(ly_at_max(hi, 0), LY_AT_ROWS), b->n_k)};
    return r;
}

/* Lanes of the block (queries), in whole panels, that see any of the rows [first, first + LY_AT_ROWS). */
LY_INLINE ly_at_range ly_at_queries_seeing(const ly_at_block *b, int64_t first)
{
    int64_t lo = b->k0 + first - b->q0, hi = b->k0 + first + LY_AT_ROWS + b->window - b->q0;
    ly_at_range r = {ly_at_max(lo, 0) / LY_AT_LANES * LY_AT_LANES,
                     ly_at_min(ly_at_round_up(ly_at_max(hi, 0), LY_AT_LANES), b->n_q_padded)};
    return r;
}

/* Which of 16 queries from q on see key k. */
LY_INLINE ly_vi ly_at_visible(int64_t q, int64_t k, int64_t window)
{
    static const uint32_t lane[LY_LANES] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    /* Query q + l sees k when 0 <= q + l - k <= window: lane -1 - (k - q) < l < window + 1 + (k - q). */
    int64_t ahead = k - q; /* may exceed a vector's 16 lanes by far on both sides, never 2^31 */
    ly_vi l = ly_viload(lane);
    return ly_viand(ly_vilt(ly_viset1((int32_t)ahead - 1), l), ly_vilt(l, ly_viset1((int32_t)(ahead + window + 1))));
}

/* s (keys, 16 lanes) rows `range` of panel `lane0`: K Q^T for one panel of queries. */
LY_INLINE void ly_at_scores(const ly_at_shape *s, ly_at_range keys, ly_at_rows k, const float *q_panel, float *out)
{
    for (int64_t i = keys.begin; i < keys.end; i += LY_AT_ROWS) {
        ly_at_operand a = {k.p + i * k.row, k.row, 1};
        ly_at_tile(LY_AT_VECS, 0, s->H, a, q_panel, LY_AT_LANES, out + i * s->s_row, s->s_row, false);
    }
}

#ifdef __cplusplus
}
#endif
#endif
