/* Attention forward: a task is one block of queries of one head; it walks the blocks of keys that they see, with the
 * running maximum and sum of each query (online softmax). */
#include <math.h>

#include "layers/cpu/attention_block.h"
#include "layers/cpu/attention_dropout.h"
#include "layers/cpu/isa.h"

#define LOG2_E 1.44269504088896340736f
#define LN_2 0.69314718055994530942f

/* Below any score: the maximum of a query that has seen no key. Finite, so that differences are never NaN. */
#define NO_SCORE (-1e30f)

/* Block of scores: measured best of 48 .. 192 (the backward has smaller ones). */
enum { QUERIES = 96, KEYS = 96 };

typedef struct fwd_call {
    const ly_attention_fwd *a;
    ly_at_shape s;
    int64_t n_blocks; /* query blocks of a head */
} fwd_call;

/* A task's blocks in scratch, all float. */
typedef struct fwd_scratch {
    float *q;                /* panels (queries / LANES, H, LANES), times scale * log2(e) */
    ly_at_rows k, v;         /* (keys, H) */
    ly_at_rows out;          /* (queries, H), not yet divided by the sum */
    float *p;                /* (keys, queries): scores, then exponentials */
    uint32_t *mask;          /* dropout, like p */
    float *max, *sum, *fade; /* (queries): of base-2 scores; fade: factor on what was summed before */
} fwd_scratch;

static size_t fwd_layout(const ly_at_shape *s, float *base, fwd_scratch *out)
{
    int64_t rows = ly_at_round_up(s->queries, LY_AT_ROWS), at = 0;
    int64_t p_floats = s->keys * s->s_row;
    out->q = ly_at_take(base, &at, s->queries * s->H);
    out->k = (ly_at_rows){ly_at_take(base, &at, s->keys * s->row), s->row};
    out->v = (ly_at_rows){ly_at_take(base, &at, s->keys * s->row), s->row};
    out->out = (ly_at_rows){ly_at_take(base, &at, rows * s->row), s->row};
    out->p = ly_at_take(base, &at, p_floats);
    out->mask = (uint32_t *)ly_at_take(base, &at, s->dropout.p > 0 ? p_floats : 0);
    out->max = ly_at_take(base, &at, s->queries);
    out->sum = ly_at_take(base, &at, s->queries);
    out->fade = ly_at_take(base, &at, s->queries);
    return (size_t)at * sizeof(float);
}

/* One panel of 16 queries from `q` on, rows `keys` of x (keys, 16 lanes): scores become exponentials, dropped ones 0;
 * max, sum and fade (16) follow. */
LY_INLINE void softmax_lanes(float *x, int64_t row, ly_at_range keys, const ly_at_block *b, int64_t q, bool masked,
                             const uint32_t *mask, float *max, float *sum, float *fade)
{
    ly_vf old = ly_vload(max), top = old;
    for (int64_t i = keys.begin; i < keys.end; i++) {
        ly_vf s = ly_vload(x + i * row);
        if (masked) {
            s = ly_vselect(ly_at_visible(q, b->k0 + i, b->window), s, top);
        }
        top = ly_vmax(s, top);
    }
    ly_vf factor = ly_at_exp2(ly_vsub(old, top)), total = ly_vmul(ly_vload(sum), factor);
    for (int64_t i = keys.begin; i < keys.end; i++) {
        ly_vf e = ly_at_exp2(ly_vsub(ly_vload(x + i * row), top));
        if (masked) {
            e = ly_vkeep(ly_at_visible(q, b->k0 + i, b->window), e);
        }
        total = ly_vadd(total, e);
        if (mask) {
            e = ly_vkeep(ly_viload(mask + i * row), e);
        }
        ly_vstore(x + i * row, e);
    }
    ly_vstore(max, top);
    ly_vstore(sum, total);
    ly_vstore(fade, factor);
}

static void softmax_panel(const ly_at_shape *s, const fwd_scratch *w, const ly_at_block *b, int64_t lane,
                          ly_at_range keys)
{
    for (int64_t l = lane; l < lane + LY_AT_LANES; l += LY_LANES) {
        const uint32_t *mask = s->dropout.p > 0 ? w->mask + l : NULL;
        float *x = w->p + l, *max = w->max + l, *sum = w->sum + l, *fade = w->fade + l;
        if (b->masked) {
            softmax_lanes(x, s->s_row, keys, b, b->q0 + l, true, mask, max, sum, fade);
        } else {
            softmax_lanes(x, s->s_row, keys, b, b->q0 + l, false, mask, max, sum, fade);
        }
    }
}

/* Multiplies each query's row of `out` by its factor, where that is not 1. */
static void fade_rows(const ly_at_shape *s, ly_at_rows out, const float *factor, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        if (factor[i] == 1.0f) {
            continue;
        }
        float *o = out.p + i * out.row;
        for (int64_t h = 0; h < s->cols; h += LY_LANES) {
            ly_vstore(o + h, ly_vmul(ly_vload(o + h), ly_vset1(factor[i])));
        }
    }
}

/* Scores, softmax and P V of one block. `batch` and `head` place the dropout mask. */
static void fwd_block(const ly_at_shape *s, const fwd_scratch *w, const ly_at_block *b, int64_t batch, int64_t head)
{
    if (b->masked) {
        memset(w->p, 0, (size_t)(s->keys * s->s_row) * sizeof(float));
    }
    for (int64_t lane = 0; lane < b->n_q_padded; lane += LY_AT_LANES) {
        ly_at_range keys = ly_at_keys_seen(b, lane, LY_AT_LANES);
        ly_at_scores(s, keys, w->k, w->q + lane * s->H, w->p + lane);
        if (s->dropout.p > 0) {
            ly_at_drop_panel(s, batch, head, b->q0 + lane, b->k0, keys, w->mask + lane);
        }
        softmax_panel(s, w, b, lane, keys);
    }
    fade_rows(s, w->out, w->fade, b->n_q);
    for (int64_t i = 0; i < b->n_q; i += LY_AT_ROWS) {
        ly_at_range keys = ly_at_keys_seen(b, i, LY_AT_ROWS);
        ly_at_operand p = {w->p + i, 1, s->s_row};
        ly_at_row_tile(keys.begin, keys.end, p, w->v, ly_at_from(w->out, i), s->cols);
    }
}

/* Divides by the sums and the share that dropout keeps; writes out and lse. */
static void fwd_finish(const fwd_call *f, const fwd_scratch *w, ly_at_typed out, float *lse, int64_t n)
{
    const ly_at_shape *s = &f->s;
    float *inverse = w->fade; /* of the last block of keys: done with */
    for (int64_t i = 0; i < n; i++) {
        inverse[i] = 1.0f / (w->sum[i] * (1.0f - s->dropout.p));
        lse[i] = w->max[i] * LN_2 + logf(w->sum[i]);
    }
    ly_at_store_rows(out, w->out, inverse, n, s->H);
}

/* Within a head the last block of queries, which sees the most keys, comes first. */
static void fwd_task(void *arg, int task, int thread, void *scratch)
{
    (void)thread;
    const fwd_call *f = arg;
    const ly_at_shape *s = &f->s;
    int64_t head = task / f->n_blocks, block = f->n_blocks - 1 - task % f->n_blocks;
    int64_t heads = s->G * s->r, batch = head / heads, h = head % heads, g = h / s->r, j = h % s->r;
    int64_t q0 = block * s->queries, n_q = ly_at_min(s->queries, s->T - q0);
    fwd_scratch w;
    (void)fwd_layout(s, scratch, &w);

    ly_at_typed q = ly_at_view(f->a->q, s->T, batch, g, j);
    ly_at_typed k = ly_at_view(f->a->k, s->T, batch, g, 0), v = ly_at_view(f->a->v, s->T, batch, g, 0);
    ly_at_pack_lanes(w.q, ly_at_view_from(q, q0), n_q, ly_at_round_up(n_q, LY_AT_LANES), s->H, f->a->scale * LOG2_E);
    memset(w.out.p, 0, (size_t)(ly_at_round_up(s->queries, LY_AT_ROWS) * s->row) * sizeof(float));
    memset(w.p, 0, (size_t)(s->keys * s->s_row) * sizeof(float));
    for (int64_t i = 0; i < s->queries; i++) {
        w.max[i] = NO_SCORE;
        w.sum[i] = 0.0f;
    }
    int64_t first = ly_at_max(0, q0 - s->window) / s->keys * s->keys;
    for (int64_t k0 = first; k0 < q0 + n_q; k0 += s->keys) {
        ly_at_block b = ly_at_block_of(s, q0, k0);
        int64_t n_k = ly_at_min(b.n_k, s->T - k0);
        ly_at_pack_rows(w.k, ly_at_view_from(k, k0), n_k, b.n_k, s->H, s->H);
        ly_at_pack_rows(w.v, ly_at_view_from(v, k0), n_k, b.n_k, s->H, s->cols);
        fwd_block(s, &w, &b, batch, h);
    }
    float *lse = (float *)f->a->lse.data + (batch * heads + h) * s->T + q0;
    fwd_finish(f, &w, ly_at_view_from(ly_at_view(f->a->out, s->T, batch, g, j), q0), lse, n_q);
}

mc_status LY_CPU(attention_fwd)(const ly_ctx *cx, const ly_attention_fwd *a)
{
    MC_TRY(ly_at_check("attention_fwd", a->q, a->k, a->v, a->out, a->lse, a->seq_len));
    fwd_call f = {.a = a, .s = ly_at_shape_of(a->q, a->seq_len, a->window_left, a->head0, a->dropout)};
    int64_t queries = QUERIES, keys = KEYS;
    fwd_scratch unused;
    ly_at_set_block(&f.s, queries, keys);
    while (fwd_layout(&f.s, NULL, &unused) > mc_pool_scratch_bytes(cx->pool)) {
        MC_TRY(ly_at_smaller_block("attention_fwd", &f.s, &queries, &keys));
    }
    f.n_blocks = (f.s.T + f.s.queries - 1) / f.s.queries;
    mc_pool_run(cx->pool, (int)(f.s.B * f.s.G * f.s.r * f.n_blocks), fwd_task, &f);
    return MC_OK;
}
