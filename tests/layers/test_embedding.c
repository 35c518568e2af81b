#include <math.h>
#include <string.h>

#include "megac/base/rng.h"
#include "tests/layers/op_harness.h"

typedef struct embedding_case {
    int64_t rows, cols, vocab, vocab0, row0, seq_len;
    float p;
    int positions;
} embedding_case;

static const embedding_case CASES[] = {
    {1, 1, 1, 0, 0, 1, 0.0f, 1},       {17, 5, 30, 10, 3, 4, 0.0f, 1},     {30, 17, 7, 0, 0, 10, 0.2f, 1},
    {64, 301, 50, 25, 5, 32, 0.1f, 1}, {9, 768, 100, 0, 40, 100, 0.5f, 0}, {200, 64, 10, 3, 0, 100, 0.1f, 1},
};

static mc_tensor ints(const int32_t *x, int64_t n)
{
    return mc_tensor_1d((void *)(uintptr_t)x, MC_I32, n);
}

static void table_body(lt_run *run, const void *arg)
{
    const embedding_case *t = arg;
    int64_t n = t->rows * t->cols, tn = t->vocab * t->cols;
    /* Tokens of other ranks' shards on both sides. */
    int32_t low = (int32_t)(t->vocab0 > 2 ? t->vocab0 - 3 : 0), high = (int32_t)(t->vocab0 + t->vocab + 3);
    int32_t *tokens = lt_ints(t->rows, 1, low, high);
    float *table = lt_rand(tn, 2, -1.0f, 1.0f), *out = lt_f32(n), *dout = lt_rand(n, 3, -1.0f, 1.0f);
    float *dtable = lt_rand(tn, 4, -1.0f, 1.0f), *want = lt_copy(dtable, tn);
    ly_embedding_fwd fwd = {.tokens = ints(tokens, t->rows),
                            .table = lt_2d(table, t->vocab, t->cols),
                            .out = lt_2d(out, t->rows, t->cols),
                            .vocab0 = t->vocab0};
    assert_int_equal(run->cx.ops->embedding_fwd(&run->cx, &fwd), MC_OK);
    ly_embedding_bwd bwd = {.tokens = ints(tokens, t->rows),
                            .dout = lt_2d(dout, t->rows, t->cols),
                            .dtable = lt_2d(dtable, t->vocab, t->cols),
                            .vocab0 = t->vocab0};
    assert_int_equal(run->cx.ops->embedding_bwd(&run->cx, &bwd), MC_OK);
    for (int64_t r = 0; r < t->rows; r++) {
        int64_t token = tokens[r] - t->vocab0;
        for (int64_t c = 0; c < t->cols; c++) {
            int here = token >= 0 && token < t->vocab;
            assert_true(out[r * t->cols + c] == (here ? table[token * t->cols + c] : 0.0f));
            if (here) { /* in row order: the same additions, so the same bits */
                want[token * t->cols + c] += dout[r * t->cols + c];
            }
        }
    }
    assert_memory_equal(dtable, want, (size_t)tn * 4);
}

static double mask_scale(const ly_dropout *d, int64_t row, int64_t col, int64_t width)
{
    if (d->p == 0.0f) {
        return 1.0;
    }
    int64_t global = d->row0 + row;
    uint64_t e = (uint64_t)(global % d->seq_len * width + col);
    mc_rng_block b = mc_rng_bits(d->seed, d->stream, d->sample0 + (uint64_t)(global / d->seq_len), e / 4);
    return b.w[e % 4] >= mc_rng_threshold(d->p) ? 1.0 / (1.0 - (double)d->p) : 0.0;
}

static void finish_body(lt_run *run, const void *arg)
{
    const embedding_case *t = arg;
    int64_t n = t->rows * t->cols, pn = t->seq_len * t->cols;
    ly_dropout d = {.p = t->p,
                    .seed = 5,
                    .stream = mc_rng_stream(MC_RNG_DROPOUT_EMBEDDING, 0),
                    .sample0 = 1ull << 33,
                    .row0 = t->row0,
                    .seq_len = t->seq_len};
    float *x = lt_rand(n, 1, -1.0f, 1.0f), *x0 = lt_copy(x, n), *positions = lt_rand(pn, 2, -1.0f, 1.0f);
    float *dh = lt_rand(n, 3, -1.0f, 1.0f), *dh0 = lt_copy(dh, n), *dx = lt_f32(n);
    float *dpos = lt_rand(pn, 4, -1.0f, 1.0f), *dpos0 = lt_copy(dpos, pn);
    ly_embed_finish_fwd fwd = {.x = lt_2d(x, t->rows, t->cols), .h = lt_2d(x, t->rows, t->cols), .dropout = d};
    ly_embed_finish_bwd bwd = {.dh = lt_2d(dh, t->rows, t->cols), .dx = lt_2d(dx, t->rows, t->cols), .dropout = d};
    if (t->positions) {
        fwd.positions = lt_2d(positions, t->seq_len, t->cols);
        bwd.dpositions = lt_2d(dpos, t->seq_len, t->cols);
    } else {
        bwd.dx = bwd.dh; /* in place */
        dx = dh;
    }
    assert_int_equal(run->cx.ops->embed_finish_fwd(&run->cx, &fwd), MC_OK);
    assert_int_equal(run->cx.ops->embed_finish_bwd(&run->cx, &bwd), MC_OK);
    lt_output(run, x, n * 4);
    lt_output(run, dx, n * 4);
    lt_output(run, dpos, pn * 4);
    for (int64_t r = 0; r < t->rows; r++) {
        int64_t position = (t->row0 + r) % t->seq_len;
        for (int64_t c = 0; c < t->cols; c++) {
            int64_t i = r * t->cols + c;
            double m = mask_scale(&d, r, c, t->cols),
                   p = t->positions ? (double)positions[position * t->cols + c] : 0.0;
            lt_close("h", i, x[i], ((double)x0[i] + p) * m, 1.8e-7, 4.0);
            lt_close("dx", i, dx[i], (double)dh0[i] * m, 1.2e-7, 2.0);
        }
    }
    for (int64_t i = 0; i < pn; i++) {
        double sum = (double)dpos0[i];
        for (int64_t r = 0; t->positions && r < t->rows; r++) {
            if ((t->row0 + r) % t->seq_len == i / t->cols) {
                sum += (double)dx[r * t->cols + i % t->cols];
            }
        }
        lt_close("dpositions", i, dpos[i], sum, 6e-7, 10.0);
    }
}

static void test_embedding(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        lt_for_all(table_body, &CASES[i]);
        lt_for_all(finish_body, &CASES[i]);
    }
}

/* The share of dropped elements is p, to five standard deviations. */
static void share_body(lt_run *run, const void *arg)
{
    enum { R = 100, C = 1000 };
    const float p = 0.25f;
    float *x = lt_f32(R * C);
    int dropped = 0;
    (void)arg;
    for (int i = 0; i < R * C; i++) {
        x[i] = 1.0f;
    }
    ly_embed_finish_fwd op = {.x = lt_2d(x, R, C), .h = lt_2d(x, R, C), .dropout = {.p = p, .seed = 1, .seq_len = R}};
    assert_int_equal(run->cx.ops->embed_finish_fwd(&run->cx, &op), MC_OK);
    for (int i = 0; i < R * C; i++) {
        dropped += x[i] == 0.0f;
    }
    assert_true(fabs(dropped - p * R * C) < 5.0 * sqrt(R * C * 0.25 * 0.75));
}

static void test_dropout_share(void **state)
{
    (void)state;
    lt_for_all(share_body, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_embedding), cmocka_unit_test(test_dropout_share)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
