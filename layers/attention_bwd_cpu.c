/* Attention backward: for each block of keys kept in scratch with its dK and dV, every block of queries that sees it.
 *
 *   P = exp(scale K Q^T - lse)   dP = V dO^T   dS = scale P (mask dP / (1 - p) - delta)      delta = sum of dO * out
 *   dV += P mask / (1 - p) dO    dK += dS Q    dQ += dS^T K
 *
 * Each sum is one chain in one order: dK and dV by query head, then query; dQ by key. So the same code may run as one
 * task per (sample, KV group) that makes all three (5 products), or, where these are too few for the threads, as tasks
 * over key blocks for dK and dV followed by tasks over query blocks for dQ (7 products), with the same bits.
 *
 * A query block's dQ goes on from span to span of keys: in the tensor itself where that is f32, else in scratch,
 * rounded when the last span was seen. */
#include "layers/cpu/attention_block.h"
#include "layers/cpu/attention_dropout.h"
#include "layers/cpu/isa.h"
#include "layers/cpu/rows.h"

#define LOG2_E 1.44269504088896340736f

/* Block of scores: measured best of 48 .. 192, multiples of all tile sizes. */
enum { QUERIES = LY_AT_LANES > 16 ? 96 : 48, KEYS = 48 };

/* Bytes of keys, values and their gradients in scratch at once: they should stay in a level-2 cache with the rest. */
enum { SPAN_BYTES = 320 << 10 };

/* lse of the lanes past the last query: makes their P zero. */
#define NO_QUERY 1e30f

typedef struct bwd_call {
    const ly_attention_bwd *a;
    ly_at_shape s;
    int64_t span; /* keys in scratch at once, a multiple of s.keys */
    int64_t n_spans, n_blocks;
    int64_t n_dq; /* blocks of queries of a task whose dQ lies in scratch at once */
} bwd_call;

/* A task's blocks in scratch, all float. */
typedef struct bwd_scratch {
    float *q_lanes, *dout_lanes; /* panels (queries / LANES, H, LANES); q times scale * log2(e) */
    ly_at_rows q, dout;          /* (queries, H) */
    ly_at_rows dq;               /* n_dq times (queries rounded up to LY_AT_ROWS, H) */
    ly_at_rows k, v, dk, dv;     /* (span, H) */
    float *p, *ds;               /* (keys, queries); ds holds dP first */
    uint32_t *mask;              /* dropout, like p */
    float *lse, *delta;          /* (queries): lse * log2(e), delta * scale */
} bwd_scratch;

/* What one task covers, and which gradients it makes. */
typedef struct bwd_part {
    int64_t batch, g;
    int64_t j_begin, j_end;       /* query heads of the group */
    int64_t span_begin, span_end; /* in spans */
    int64_t q_begin, q_end;       /* in blocks of queries */
    bool make_kv, make_q;
} bwd_part;

static int64_t dq_rows(const ly_at_shape *s)
{
    return ly_at_round_up(s->queries, LY_AT_ROWS);
}

static size_t bwd_layout(const ly_at_shape *s, int64_t span, int64_t n_dq, float *base, bwd_scratch *out)
{
    int64_t at = 0, p_floats = s->keys * s->s_row;
    out->q_lanes = ly_at_take(base, &at, s->queries * s->H);
    out->dout_lanes = ly_at_take(base, &at, s->queries * s->H);
    out->q = (ly_at_rows){ly_at_take(base, &at, s->queries * s->row), s->row};
    out->dout = (ly_at_rows){ly_at_take(base, &at, s->queries * s->row), s->row};
    out->dq = (ly_at_rows){ly_at_take(base, &at, n_dq * dq_rows(s) * s->row), s->row};
    out->k = (ly_at_rows){ly_at_take(base, &at, span * s->row), s->row};
    out->v = (ly_at_rows){ly_at_take(base, &at, span * s->row), s->row};
    out->dk = (ly_at_rows){ly_at_take(base, &at, span * s->row), s->row};
    out->dv = (ly_at_rows){ly_at_take(base, &at, span * s->row), s->row};
    out->p = ly_at_take(base, &at, p_floats);
    out->ds = ly_at_take(base, &at, p_floats);
    out->mask = (uint32_t *)ly_at_take(base, &at, s->dropout.p > 0 ? p_floats : 0);
    out->lse = ly_at_take(base, &at, s->queries);
    out->delta = ly_at_take(base, &at, s->queries);
    return (size_t)at * sizeof(float);
}

/* 16 queries from `q` on, rows `keys`: p holds scores and becomes the P of dV; ds holds dP and becomes dS. */
LY_INLINE void scores_bwd_lanes(const ly_at_shape *s, const ly_at_block *b, int64_t q, ly_at_range keys, float scale,
                                bool masked, const uint32_t *mask, float *p, float *ds, const float *lse,
                                const float *delta)
{
    float keep = mask ? 1.0f / (1.0f - s->dropout.p) : 1.0f;
    ly_vf top = ly_vload(lse), d = ly_vload(delta), scales = ly_vset1(scale * keep), keeps = ly_vset1(keep);
    for (int64_t i = keys.begin; i < keys.end; i++) {
        int64_t at = i * s->s_row;
        ly_vf e = ly_at_exp2(ly_vsub(ly_vload(p + at), top)), dp = ly_vload(ds + at), kept = e;
        if (masked) {
            kept = e = ly_vkeep(ly_at_visible(q, b->k0 + i, b->window), e);
        }
        if (mask) {
            ly_vi m = ly_viload(mask + at);
            kept = ly_vmul(ly_vkeep(m, e), keeps);
            dp = ly_vkeep(m, dp);
        }
        ly_vstore(p + at, kept);
        ly_vstore(ds + at, ly_vmul(e, ly_vsub(ly_vmul(dp, scales), d)));
    }
}

static void scores_bwd_panel(const bwd_call *f, const bwd_scratch *w, const ly_at_block *b, int64_t lane,
                             ly_at_range keys)
{
    const ly_at_shape *s = &f->s;
    float scale = f->a->scale;
    for (int64_t l = lane; l < lane + LY_AT_LANES; l += LY_LANES) {
        const uint32_t *mask = s->dropout.p > 0 ? w->mask + l : NULL;
        float *p = w->p + l, *ds = w->ds + l, *lse = w->lse + l, *delta = w->delta + l;
        if (b->masked) {
            scores_bwd_lanes(s, b, b->q0 + l, keys, scale, true, mask, p, ds, lse, delta);
        } else {
            scores_bwd_lanes(s, b, b->q0 + l, keys, scale, false, mask, p, ds, lse, delta);
        }
    }
}

/* One block of scores; its keys start at row `at` of the span. */
static void bwd_block(const bwd_call *f, const bwd_scratch *w, const bwd_part *part, const ly_at_block *b, int64_t j,
                      int64_t at, ly_at_rows dq)
{
    const ly_at_shape *s = &f->s;
    ly_at_rows k = ly_at_from(w->k, at), v = ly_at_from(w->v, at);
    if (b->masked) {
        memset(w->p, 0, (size_t)(s->keys * s->s_row) * sizeof(float));
        memset(w->ds, 0, (size_t)(s->keys * s->s_row) * sizeof(float));
    }
    for (int64_t lane = 0; lane < b->n_q_padded; lane += LY_AT_LANES) {
        ly_at_range keys = ly_at_keys_seen(b, lane, LY_AT_LANES);
        ly_at_scores(s, keys, k, w->q_lanes + lane * s->H, w->p + lane);
        ly_at_scores(s, keys, v, w->dout_lanes + lane * s->H, w->ds + lane);
        if (s->dropout.p > 0) {
            ly_at_drop_panel(s, part->batch, part->g * s->r + j, b->q0 + lane, b->k0, keys, w->mask + lane);
        }
        scores_bwd_panel(f, w, b, lane, keys);
    }
    for (int64_t i = 0; i < b->n_k && part->make_kv; i += LY_AT_ROWS) {
        ly_at_range queries = ly_at_queries_seeing(b, i);
        ly_at_operand p = {w->p + i * s->s_row, s->s_row, 1}, ds = {w->ds + i * s->s_row, s->s_row, 1};
        ly_at_row_tile(queries.begin, queries.end, p, w->dout, ly_at_from(w->dv, at + i), s->cols);
        ly_at_row_tile(queries.begin, queries.end, ds, w->q, ly_at_from(w->dk, at + i), s->cols);
    }
    for (int64_t i = 0; i < b->n_q && part->make_q; i += LY_AT_ROWS) {
        ly_at_range keys = ly_at_keys_seen(b, i, LY_AT_ROWS);
        ly_at_operand ds = {w->ds + i, 1, s->s_row};
        ly_at_row_tile(keys.begin, keys.end, ds, k, ly_at_from(dq, i), s->cols);
    }
}

/* Brings a block of queries into scratch. */
static void load_queries(const bwd_call *f, const bwd_scratch *w, const bwd_part *part, int64_t j, int64_t q0)
{
    const ly_at_shape *s = &f->s;
    int64_t n = ly_at_min(s->queries, s->T - q0), padded = ly_at_round_up(n, LY_AT_LANES);
    ly_at_typed q = ly_at_view_from(ly_at_view(f->a->q, s->T, part->batch, part->g, j), q0);
    ly_at_typed dout = ly_at_view_from(ly_at_view(f->a->dout, s->T, part->batch, part->g, j), q0);
    ly_at_pack_lanes(w->q_lanes, q, n, padded, s->H, f->a->scale * LOG2_E);
    ly_at_pack_lanes(w->dout_lanes, dout, n, padded, s->H, 1.0f);
    ly_at_pack_rows(w->q, q, n, padded, s->H, s->cols);
    ly_at_pack_rows(w->dout, dout, n, padded, s->H, s->cols);
    int64_t row = ((part->batch * s->G + part->g) * s->r + j) * s->T + q0;
    const float *lse = (const float *)f->a->lse.data + row, *delta = (const float *)f->a->delta.data + row;
    for (int64_t i = 0; i < padded; i++) {
        w->lse[i] = i < n ? lse[i] * LOG2_E : NO_QUERY;
        w->delta[i] = i < n ? delta[i] * f->a->scale : 0.0f;
    }
}

/* Scratch for dQ of block `block` of head j. */
static ly_at_rows dq_of(const bwd_call *f, const bwd_scratch *w, const bwd_part *part, int64_t j, int64_t block)
{
    int64_t number = (j - part->j_begin) * (part->q_end - part->q_begin) + block - part->q_begin;
    return ly_at_from(w->dq, f->n_dq > 1 ? number * dq_rows(&f->s) : 0);
}

/* All blocks of queries of head j against one span of keys [k_begin, k_end). */
static void bwd_head(const bwd_call *f, const bwd_scratch *w, const bwd_part *part, int64_t j, int64_t k_begin,
                     int64_t k_end)
{
    const ly_at_shape *s = &f->s;
    int64_t first = ly_at_max(part->q_begin, k_begin / s->queries);
    int64_t last_query = ly_at_min(s->T - 1, k_end - 1 + s->window);
    int64_t end = ly_at_min(part->q_end, last_query / s->queries + 1);
    ly_at_typed dq_out = ly_at_view(f->a->dq, s->T, part->batch, part->g, j);
    for (int64_t block = first; block < end; block++) {
        int64_t q0 = block * s->queries, n_q = ly_at_min(s->queries, s->T - q0);
        int64_t k_first = ly_at_max(0, q0 - s->window) / s->keys * s->keys;
        bool in_tensor = dq_out.type == MC_F32, first_keys = k_first >= k_begin, last_keys = q0 + n_q <= k_end;
        ly_at_rows dq = dq_of(f, w, part, j, block);
        load_queries(f, w, part, j, q0);
        if (part->make_q && (in_tensor || first_keys)) {
            ly_at_pack_rows(dq, ly_at_view_from(dq_out, q0), first_keys ? 0 : n_q, dq_rows(s), s->H, s->cols);
        }
        for (int64_t k0 = ly_at_max(k_first, k_begin); k0 < ly_at_min(k_end, q0 + n_q); k0 += s->keys) {
            ly_at_block b = ly_at_block_of(s, q0, k0);
            bwd_block(f, w, part, &b, j, k0 - k_begin, dq);
        }
        if (part->make_q && (in_tensor || last_keys)) {
            ly_at_store_rows(ly_at_view_from(dq_out, q0), dq, NULL, n_q, s->H);
        }
    }
}

static void bwd_run(const bwd_call *f, const bwd_part *part, void *scratch)
{
    const ly_at_shape *s = &f->s;
    bwd_scratch w;
    (void)bwd_layout(s, f->span, f->n_dq, scratch, &w);
    memset(w.p, 0, (size_t)(s->keys * s->s_row) * sizeof(float));
    memset(w.ds, 0, (size_t)(s->keys * s->s_row) * sizeof(float));
    for (int64_t i = part->span_begin; i < part->span_end; i++) {
        int64_t k0 = i * f->span, n = ly_at_min(f->span, s->T - k0), padded = ly_at_round_up(n, LY_AT_ROWS);
        ly_at_typed k = ly_at_view_from(ly_at_view(f->a->k, s->T, part->batch, part->g, 0), k0);
        ly_at_typed v = ly_at_view_from(ly_at_view(f->a->v, s->T, part->batch, part->g, 0), k0);
        ly_at_pack_rows(w.k, k, n, padded, s->H, s->cols);
        ly_at_pack_rows(w.v, v, n, padded, s->H, s->cols);
        if (part->make_kv) {
            memset(w.dk.p, 0, (size_t)(padded * s->row) * sizeof(float));
            memset(w.dv.p, 0, (size_t)(padded * s->row) * sizeof(float));
        }
        for (int64_t j = part->j_begin; j < part->j_end; j++) {
            bwd_head(f, &w, part, j, k0, k0 + n);
        }
        if (part->make_kv) {
            ly_at_typed dk = ly_at_view_from(ly_at_view(f->a->dk, s->T, part->batch, part->g, 0), k0);
            ly_at_typed dv = ly_at_view_from(ly_at_view(f->a->dv, s->T, part->batch, part->g, 0), k0);
            ly_at_store_rows(dk, w.dk, NULL, n, s->H);
            ly_at_store_rows(dv, w.dv, NULL, n, s->H);
        }
    }
}

/* One task per (sample, KV group): everything. */
static void group_task(void *arg, int task, int thread, void *scratch)
{
    (void)thread;
    const bwd_call *f = arg;
    bwd_part part = {task / f->s.G, task % f->s.G, 0, f->s.r, 0, f->n_spans, 0, f->n_blocks, true, true};
    bwd_run(f, &part, scratch);
}

/* One task per (sample, KV group, span of keys): dK and dV. The first spans are seen by the most queries. */
static void kv_task(void *arg, int task, int thread, void *scratch)
{
    (void)thread;
    const bwd_call *f = arg;
    int64_t groups = f->s.B * f->s.G, span = task / groups, group = task % groups;
    bwd_part part = {group / f->s.G, group % f->s.G, 0, f->s.r, span, span + 1, 0, f->n_blocks, true, false};
    bwd_run(f, &part, scratch);
}

/* One task per (sample, query head, block of queries): dQ. The last blocks see the most keys. */
static void q_task(void *arg, int task, int thread, void *scratch)
{
    (void)thread;
    const bwd_call *f = arg;
    int64_t heads = f->s.B * f->s.G * f->s.r, block = f->n_blocks - 1 - task / heads, head = task % heads;
    int64_t group = head / f->s.r, j = head % f->s.r;
    bwd_part part = {group / f->s.G, group % f->s.G, j, j + 1, 0, f->n_spans, block, block + 1, false, true};
    bwd_run(f, &part, scratch);
}

LY_INLINE void delta_rows(mc_dtype type, const void *out, int64_t out_row, const void *dout, int64_t dout_row,
                          int64_t n, int64_t H, float *delta)
{
    for (int64_t t = 0; t < n; t++) {
        ly_vf sum = ly_vzero();
        for (int64_t c = 0; c < H; c += LY_LANES) {
            ly_vf x = ly_tload(type, ly_elem(type, out, t * out_row + c), H - c);
            ly_vf y = ly_tload(type, ly_elem(type, dout, t * dout_row + c), H - c);
            sum = ly_vfma(x, y, sum);
        }
        delta[t] = ly_vsum(sum);
    }
}

/* delta of one (sample, query head). */
static void delta_task(void *arg, int task, int thread, void *scratch)
{
    (void)thread;
    (void)scratch;
    const bwd_call *f = arg;
    const ly_at_shape *s = &f->s;
    int64_t heads = s->G * s->r, batch = task / heads, h = task % heads;
    ly_at_typed out = ly_at_view(f->a->out, s->T, batch, h / s->r, h % s->r);
    ly_at_typed dout = ly_at_view(f->a->dout, s->T, batch, h / s->r, h % s->r);
    float *delta = (float *)f->a->delta.data + task * s->T;
    LY_FOR_TYPE(out.type, T, delta_rows(T, out.p, out.row, dout.p, dout.row, s->T, s->H, delta));
}

/* Whether the two passes of finer tasks end sooner: time in units of one product over one (sample, group). */
static bool split_is_faster(const bwd_call *f, int n_threads)
{
    int64_t groups = f->s.B * f->s.G, rounds = (groups + n_threads - 1) / n_threads;
    return f->n_blocks > 1 && 7 * groups < 5 * rounds * n_threads;
}

/* Keys in scratch at once: as many as their budget and the scratch allow. Returns 0 if not even one block fits. */
static int64_t span_keys(const ly_at_shape *s, size_t scratch_bytes)
{
    bwd_scratch unused;
    int64_t wanted = ly_at_max(1, SPAN_BYTES / (4 * s->row * (int64_t)sizeof(float)) / s->keys);
    int64_t blocks = ly_at_min(wanted, (s->T + s->keys - 1) / s->keys);
    while (blocks > 0 && bwd_layout(s, blocks * s->keys, 1, NULL, &unused) > scratch_bytes) {
        blocks--;
    }
    return blocks * s->keys;
}

mc_status LY_CPU(attention_bwd)(const ly_ctx *cx, const ly_attention_bwd *a)
{
    MC_TRY(ly_at_check("attention_bwd", a->q, a->k, a->v, a->out, a->lse, a->seq_len));
    MC_TRY(ly_at_check("attention_bwd", a->dq, a->dk, a->dv, a->dout, a->delta, a->seq_len));
    LY_TRY_DTYPE("attention_bwd", a->dq, a->q.dtype);
    bwd_call f = {.a = a, .s = ly_at_shape_of(a->q, a->seq_len, a->window_left, a->head0, a->dropout)};
    int64_t queries = QUERIES, keys = KEYS;
    ly_at_set_block(&f.s, queries, keys);
    while ((f.span = span_keys(&f.s, mc_pool_scratch_bytes(cx->pool))) == 0) {
        MC_TRY(ly_at_smaller_block("attention_bwd", &f.s, &queries, &keys));
    }
    f.n_spans = (f.s.T + f.span - 1) / f.span;
    f.n_blocks = (f.s.T + f.s.queries - 1) / f.s.queries;
    int groups = (int)(f.s.B * f.s.G), heads = groups * (int)f.s.r;
    mc_pool_run(cx->pool, heads, delta_task, &f);
    bool split = split_is_faster(&f, mc_pool_threads(cx->pool));
    f.n_dq = 1;
    if (!split && a->dq.dtype != MC_F32 && f.n_spans > 1) {
        bwd_scratch unused;
        f.n_dq = f.s.r * f.n_blocks;
        split = bwd_layout(&f.s, f.span, f.n_dq, NULL, &unused) > mc_pool_scratch_bytes(cx->pool);
        f.n_dq = split ? 1 : f.n_dq;
    }
    if (split) {
        mc_pool_run(cx->pool, groups * (int)f.n_spans, kv_task, &f);
        mc_pool_run(cx->pool, heads * (int)f.n_blocks, q_task, &f);
    } else {
        mc_pool_run(cx->pool, groups, group_task, &f);
    }
    return MC_OK;
}
