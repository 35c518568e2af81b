#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "megac/base/rng.h"
#include "tests/layers/op_harness.h"

typedef struct norm_case {
    int64_t rows, cols;
    ly_norm_kind kind;
    int one_plus, with_y, with_out, with_beta, with_bias, in_place;
    float p;
} norm_case;

static const float EPS = 1e-5f;

static ly_dropout dropout_of(float p)
{
    /* A shard that starts inside a sample and ends in the next. */
    return (ly_dropout){
        .p = p, .seed = 7, .stream = mc_rng_stream(MC_RNG_DROPOUT_MLP_OUT, 3), .sample0 = 11, .row0 = 5, .seq_len = 9};
}

/* Scale of one element by the contract of layers/dropout.h: 0, or 1 / (1 - p). */
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

/* out of one row by the definition, in double. */
static void ref_norm(const norm_case *t, const double *h, const float *gamma, const float *beta, double *out,
                     double *mean_out, double *rstd_out)
{
    double mean = 0.0, var = 0.0;
    for (int64_t c = 0; t->kind == LY_LAYERNORM && c < t->cols; c++) {
        mean += h[c] / (double)t->cols;
    }
    for (int64_t c = 0; c < t->cols; c++) {
        var += (h[c] - mean) * (h[c] - mean) / (double)t->cols;
    }
    double rstd = 1.0 / sqrt(var + (double)EPS);
    for (int64_t c = 0; c < t->cols; c++) {
        double g = (double)gamma[c] + (t->one_plus ? 1.0 : 0.0);
        out[c] = (h[c] - mean) * rstd * g + (beta ? (double)beta[c] : 0.0);
    }
    *mean_out = mean;
    *rstd_out = rstd;
}

static void fwd_body(lt_run *run, const void *arg)
{
    const norm_case *t = arg;
    int64_t n = t->rows * t->cols;
    float *x = lt_rand(n, 1, -3.0f, 5.0f), *y = lt_rand(n, 2, -2.0f, 2.0f), *yb = lt_rand(t->cols, 3, -1.0f, 1.0f);
    float *gamma = lt_rand(t->cols, 4, 0.5f, 1.5f), *beta = lt_rand(t->cols, 5, -1.0f, 1.0f), *x0 = lt_copy(x, n);
    float *h = t->in_place ? x : lt_f32(n), *out = lt_f32(n), *stats = lt_f32(2 * t->rows);
    ly_norm_fwd op = {.kind = t->kind,
                      .one_plus_gamma = t->one_plus,
                      .eps = EPS,
                      .x = lt_2d(x, t->rows, t->cols),
                      .dropout = dropout_of(t->p)};
    if (t->with_y) {
        op.y = lt_2d(y, t->rows, t->cols);
        op.h = lt_2d(h, t->rows, t->cols);
    }
    if (t->with_bias) {
        op.y_bias = lt_1d(yb, t->cols);
    }
    if (t->with_out) {
        op.out = lt_2d(out, t->rows, t->cols);
        op.stats = lt_2d(stats, t->rows, 2);
        op.gamma = lt_1d(gamma, t->cols);
    }
    if (t->with_beta) {
        op.beta = lt_1d(beta, t->cols);
    }
    assert_int_equal(run->cx.ops->norm_fwd(&run->cx, &op), MC_OK);
    if (t->with_y) {
        lt_output(run, h, n * 4);
    }
    lt_output(run, out, n * 4);
    double *hd = malloc(sizeof(double) * (size_t)t->cols), *od = malloc(sizeof(double) * (size_t)t->cols);
    for (int64_t r = 0; r < t->rows; r++) {
        double mean, rstd;
        for (int64_t c = 0; c < t->cols; c++) {
            double v = t->with_y ? (double)y[r * t->cols + c] + (t->with_bias ? (double)yb[c] : 0.0) : 0.0;
            hd[c] = (double)x0[r * t->cols + c] + v * mask_scale(&op.dropout, r, c, t->cols);
        }
        ref_norm(t, hd, gamma, t->with_beta ? beta : NULL, od, &mean, &rstd);
        if (t->with_y) { /* three roundings of numbers below 12 */
            lt_close_n("h", h + r * t->cols, hd, t->cols, 3 * 6e-8, 12.0);
        }
        if (t->with_out) {
            /* xhat * gain + beta with |.| below 10 * 2.5 + 1; the sums have relative error sqrt(cols) 2^-24 at most. */
            lt_close_n("out", out + r * t->cols, od, t->cols, 2e-6, 1.0 + 10.0 * (rstd > 100.0 ? rstd / 100.0 : 1.0));
            lt_close("mean", r, stats[2 * r], mean, 1e-6, 5.0);
            lt_close("rstd", r, stats[2 * r + 1], rstd, 1e-5, rstd);
        }
    }
    free(hd);
    free(od);
}

static void test_norm_fwd(void **state)
{
    static const int64_t sizes[][2] = {{1, 1}, {3, 5}, {17, 3}, {23, 17}, {7, 301}, {40, 768}, {2, 1408}};
    (void)state;
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        for (int form = 0; form < 12; form++) {
            norm_case t = {.rows = sizes[s][0],
                           .cols = sizes[s][1],
                           .kind = form & 1 ? LY_RMSNORM : LY_LAYERNORM,
                           .one_plus = form % 3 == 2,
                           .with_y = form >= 4,
                           .with_out = form != 11,
                           .with_beta = form % 4 < 2,
                           .with_bias = form >= 6,
                           .in_place = form >= 8,
                           .p = form >= 9 ? 0.1f : 0.0f};
            lt_for_all(fwd_body, &t);
        }
    }
}

/* A large common offset must not spoil the variance. */
static void offset_body(lt_run *run, const void *arg)
{
    enum { C = 256 };
    float *x = lt_f32(C), *gamma = lt_f32(C), *out = lt_f32(C), *stats = lt_f32(2);
    (void)arg;
    for (int c = 0; c < C; c++) {
        x[c] = 10000.0f + (c % 2 ? 1.0f : -1.0f);
        gamma[c] = 1.0f;
    }
    ly_norm_fwd op = {.kind = LY_LAYERNORM,
                      .eps = EPS,
                      .x = lt_2d(x, 1, C),
                      .out = lt_2d(out, 1, C),
                      .stats = lt_2d(stats, 1, 2),
                      .gamma = lt_1d(gamma, C)};
    assert_int_equal(run->cx.ops->norm_fwd(&run->cx, &op), MC_OK);
    for (int c = 0; c < C; c++) {
        lt_close("out", c, out[c], (c % 2 ? 1.0 : -1.0) / sqrt(1.0 + 1e-5), 1e-6, 1.0);
    }
}

static void test_norm_fwd_offset(void **state)
{
    (void)state;
    lt_for_all(offset_body, NULL);
}

/* Sum over columns of dout . norm(h), in double: what is differentiated. */
static double ref_objective(const norm_case *t, const double *h, const float *dout, const float *gamma)
{
    double *out = malloc(sizeof(double) * (size_t)t->cols), mean, rstd, sum = 0.0;
    ref_norm(t, h, gamma, NULL, out, &mean, &rstd);
    for (int64_t c = 0; c < t->cols; c++) {
        sum += out[c] * (double)dout[c];
    }
    free(out);
    return sum;
}

typedef struct bwd_buffers {
    float *h, *dout, *gamma, *beta, *stats, *dskip, *dskip0, *dh, *dy, *out, *dgamma, *dbeta, *dyb;
    float *dgamma0, *dbeta0, *dyb0;
} bwd_buffers;

static bwd_buffers bwd_make(const norm_case *t)
{
    int64_t n = t->rows * t->cols;
    bwd_buffers b = {.h = lt_rand(n, 1, -2.0f, 3.0f),
                     .dout = lt_rand(n, 2, -1.0f, 1.0f),
                     .gamma = lt_rand(t->cols, 3, 0.5f, 1.5f),
                     .beta = lt_rand(t->cols, 4, -1.0f, 1.0f),
                     .stats = lt_f32(2 * t->rows),
                     .dskip = lt_rand(n, 5, -1.0f, 1.0f),
                     .dy = lt_f32(n),
                     .out = lt_f32(n),
                     .dgamma = lt_rand(t->cols, 6, -1.0f, 1.0f),
                     .dbeta = lt_rand(t->cols, 7, -1.0f, 1.0f),
                     .dyb = lt_rand(t->cols, 8, -1.0f, 1.0f)};
    b.dskip0 = lt_copy(b.dskip, n);
    b.dh = t->in_place ? b.dskip : lt_f32(n);
    b.dgamma0 = lt_copy(b.dgamma, t->cols);
    b.dbeta0 = lt_copy(b.dbeta, t->cols);
    b.dyb0 = lt_copy(b.dyb, t->cols);
    return b;
}

/* dh of one row against central differences of the double reference. */
static void check_dh_row(const norm_case *t, const bwd_buffers *b, int64_t r, double *hd)
{
    const double step = 1e-5;
    for (int64_t c = 0; c < t->cols; c++) {
        hd[c] = (double)b->h[r * t->cols + c];
    }
    double mean, rstd, *scratch = malloc(sizeof(double) * (size_t)t->cols);
    ref_norm(t, hd, b->gamma, NULL, scratch, &mean, &rstd);
    free(scratch);
    for (int64_t c = 0; c < t->cols; c++) {
        int64_t at = r * t->cols + c;
        double keep = hd[c], want = t->with_y ? (double)b->dskip0[at] : 0.0;
        hd[c] = keep + step;
        double up = ref_objective(t, hd, b->dout + r * t->cols, b->gamma);
        hd[c] = keep - step;
        want += (up - ref_objective(t, hd, b->dout + r * t->cols, b->gamma)) / (2 * step);
        hd[c] = keep;
        lt_close("dh", at, b->dh[at], want, 3e-6, 1.0 + 3.0 * rstd + (t->cols <= 3 ? rstd * rstd * rstd * 1e-3 : 0.0));
    }
}

static void check_bwd(const norm_case *t, const bwd_buffers *b, const ly_norm_bwd *op)
{
    double *hd = malloc(sizeof(double) * (size_t)t->cols), *od = malloc(sizeof(double) * (size_t)t->cols);
    double *dg = calloc((size_t)t->cols, sizeof *dg), *db = calloc((size_t)t->cols, sizeof *db);
    double *dyb = calloc((size_t)t->cols, sizeof *dyb);
    for (int64_t r = 0; r < t->rows; r++) {
        double mean, rstd;
        check_dh_row(t, b, r, hd);
        ref_norm(t, hd, b->gamma, t->with_beta ? b->beta : NULL, od, &mean, &rstd);
        lt_close_n("out", b->out + r * t->cols, od, t->cols, 2e-6, 10.0 * (rstd > 100.0 ? rstd / 100.0 : 1.0));
        for (int64_t c = 0; c < t->cols; c++) {
            int64_t at = r * t->cols + c;
            double dy = (double)b->dh[at] * mask_scale(&op->dropout, r, c, t->cols);
            if (t->p > 0.0f) {
                lt_close("dy", at, b->dy[at], dy, 1.2e-7, fabs(dy));
            }
            dg[c] += (double)b->dout[at] * (hd[c] - mean) * rstd;
            db[c] += (double)b->dout[at];
            dyb[c] += dy;
        }
    }
    for (int64_t c = 0; c < t->cols; c++) { /* sums of `rows` terms below 4 */
        double scale = 4.0 * (double)t->rows + 1.0;
        lt_close("dgamma", c, b->dgamma[c], (double)b->dgamma0[c] + dg[c], 2e-6, scale);
        lt_close("dbeta", c, b->dbeta[c], (double)b->dbeta0[c] + db[c], 1e-6, scale);
        lt_close("dy_bias", c, b->dyb[c], (double)b->dyb0[c] + dyb[c], 1e-6, scale * 10.0);
    }
    free(hd);
    free(od);
    free(dg);
    free(db);
    free(dyb);
}

static void bwd_body(lt_run *run, const void *arg)
{
    const norm_case *t = arg;
    int64_t n = t->rows * t->cols;
    bwd_buffers b = bwd_make(t);
    for (int64_t r = 0; r < t->rows; r++) {
        double *hd = malloc(sizeof(double) * (size_t)t->cols), *od = malloc(sizeof(double) * (size_t)t->cols);
        double mean, rstd;
        for (int64_t c = 0; c < t->cols; c++) {
            hd[c] = (double)b.h[r * t->cols + c];
        }
        ref_norm(t, hd, b.gamma, NULL, od, &mean, &rstd);
        b.stats[2 * r] = (float)mean;
        b.stats[2 * r + 1] = (float)rstd;
        free(hd);
        free(od);
    }
    ly_norm_bwd op = {.kind = t->kind,
                      .one_plus_gamma = t->one_plus,
                      .dout = lt_2d(b.dout, t->rows, t->cols),
                      .h = lt_2d(b.h, t->rows, t->cols),
                      .stats = lt_2d(b.stats, t->rows, 2),
                      .gamma = lt_1d(b.gamma, t->cols),
                      .dh = lt_2d(b.dh, t->rows, t->cols),
                      .out = lt_2d(b.out, t->rows, t->cols),
                      .dgamma = lt_1d(b.dgamma, t->cols),
                      .dbeta = lt_1d(b.dbeta, t->cols),
                      .dy_bias = lt_1d(b.dyb, t->cols),
                      .dropout = dropout_of(t->p)};
    if (t->with_beta) {
        op.beta = lt_1d(b.beta, t->cols);
    }
    if (t->with_y) {
        op.dskip = lt_2d(b.dskip, t->rows, t->cols);
    }
    if (t->p > 0.0f) {
        op.dy = lt_2d(b.dy, t->rows, t->cols);
    }
    assert_int_equal(run->cx.ops->norm_bwd(&run->cx, &op), MC_OK);
    lt_output(run, b.dh, n * 4);
    lt_output(run, b.dy, n * 4);
    lt_output(run, b.dgamma, t->cols * 4);
    lt_output(run, b.dbeta, t->cols * 4);
    lt_output(run, b.dyb, t->cols * 4);
    if (run->n_threads == 1) {
        check_bwd(t, &b, &op);
    }
}

static void test_norm_bwd(void **state)
{
    static const int64_t sizes[][2] = {{1, 5}, {70, 17}, {3, 301}, {2, 64}, {40, 33}};
    (void)state;
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        for (int form = 0; form < 8; form++) {
            norm_case t = {.rows = sizes[s][0],
                           .cols = sizes[s][1],
                           .kind = form & 1 ? LY_RMSNORM : LY_LAYERNORM,
                           .one_plus = form % 3 == 2,
                           .with_y = form >= 2,
                           .with_beta = form % 4 < 2,
                           .in_place = form >= 4,
                           .p = form >= 5 ? 0.3f : 0.0f};
            lt_for_all(bwd_body, &t);
        }
    }
}

/* No norm: dh is dskip, and only dy and dy_bias are computed. */
static void last_addition_body(lt_run *run, const void *arg)
{
    const norm_case *t = arg;
    int64_t n = t->rows * t->cols;
    float *dskip = lt_rand(n, 1, -1.0f, 1.0f), *keep = lt_copy(dskip, n), *dy = lt_f32(n);
    float *dyb = lt_rand(t->cols, 2, -1.0f, 1.0f), *dyb0 = lt_copy(dyb, t->cols), *dh = t->in_place ? dskip : lt_f32(n);
    ly_norm_bwd op = {.dskip = lt_2d(dskip, t->rows, t->cols),
                      .dh = lt_2d(dh, t->rows, t->cols),
                      .dy = lt_2d(dy, t->rows, t->cols),
                      .dy_bias = lt_1d(dyb, t->cols),
                      .dropout = dropout_of(t->p)};
    assert_int_equal(run->cx.ops->norm_bwd(&run->cx, &op), MC_OK);
    assert_memory_equal(dh, keep, (size_t)n * 4);
    lt_output(run, dy, n * 4);
    lt_output(run, dyb, t->cols * 4);
    for (int64_t c = 0; c < t->cols; c++) {
        double sum = (double)dyb0[c];
        for (int64_t r = 0; r < t->rows; r++) {
            double want = (double)keep[r * t->cols + c] * mask_scale(&op.dropout, r, c, t->cols);
            lt_close("dy", r * t->cols + c, dy[r * t->cols + c], want, 1.2e-7, fabs(want));
            sum += want;
        }
        lt_close("dy_bias", c, dyb[c], sum, 1e-6, 1.0 + 2.0 * (double)t->rows);
    }
}

static void test_norm_bwd_without_norm(void **state)
{
    (void)state;
    for (int form = 0; form < 4; form++) {
        norm_case t = {.rows = 37, .cols = 301, .in_place = form & 1, .p = form & 2 ? 0.5f : 0.0f};
        lt_for_all(last_addition_body, &t);
    }
}

/* Heads inside a wider row, as queries lie in a fused QKV buffer. */
enum { HEAD_R = 5, HEAD_G = 2, HEAD_J = 3, HEADS = HEAD_R * HEAD_G * HEAD_J, HEAD_EXTRA = 2 };

typedef struct head_buffers {
    float *gamma, *beta, *stats, *dout0, *dgamma, *dgamma0, *dbeta, *dbeta0;
    mc_tensor x, out, dx;
} head_buffers;

/* Element (head i, 0) of a view. */
static const float *head_of(mc_tensor t, int64_t i)
{
    int64_t r = i / (HEAD_G * HEAD_J), g = i / HEAD_J % HEAD_G, j = i % HEAD_J;
    return (const float *)t.data + r * t.strides[0] + g * t.strides[1] + j * t.strides[2];
}

static mc_tensor heads_view(float *data, int64_t cols, int64_t extra)
{
    int64_t group = (HEAD_J + extra) * cols;
    return (mc_tensor){.data = data,
                       .dtype = MC_F32,
                       .n_dims = 4,
                       .dims = {HEAD_R, HEAD_G, HEAD_J, cols},
                       .strides = {HEAD_G * group, group, cols, 1}};
}

/* dx, out against the double reference and its central differences, and the sums of the parameters' gradients. */
static void check_heads(const norm_case *t, const head_buffers *b)
{
    int64_t cols = t->cols;
    double *hd = malloc(sizeof(double) * (size_t)cols), *od = malloc(sizeof(double) * (size_t)cols);
    double *dg = calloc((size_t)cols, sizeof *dg), *db = calloc((size_t)cols, sizeof *db), mean, rstd;
    for (int64_t i = 0; i < HEADS; i++) {
        const float *x = head_of(b->x, i), *dout = b->dout0 + i * cols, *dx = head_of(b->dx, i);
        for (int64_t c = 0; c < cols; c++) {
            hd[c] = (double)x[c];
        }
        ref_norm(t, hd, b->gamma, b->beta, od, &mean, &rstd);
        lt_close_n("out", head_of(b->out, i), od, cols, 2e-6, 10.0);
        for (int64_t c = 0; c < cols; c++) {
            double keep = hd[c];
            hd[c] = keep + 1e-5;
            double up = ref_objective(t, hd, dout, b->gamma);
            hd[c] = keep - 1e-5;
            double want = (up - ref_objective(t, hd, dout, b->gamma)) / 2e-5;
            hd[c] = keep;
            lt_close("dx", i * cols + c, dx[c], want, 5e-6, 1.0 + 3.0 * rstd);
            dg[c] += (double)dout[c] * (keep - mean) * rstd;
            db[c] += (double)dout[c];
        }
    }
    for (int64_t c = 0; c < cols; c++) {
        lt_close("dgamma", c, b->dgamma[c], (double)b->dgamma0[c] + dg[c], 1e-6, 4.0 * HEADS);
        lt_close("dbeta", c, b->dbeta[c], (double)b->dbeta0[c] + db[c], 1e-6, HEADS);
    }
    free(hd);
    free(od);
    free(dg);
    free(db);
}

static void head_body(lt_run *run, const void *arg)
{
    const norm_case *t = arg;
    int64_t cols = t->cols, wide = HEAD_R * HEAD_G * (HEAD_J + HEAD_EXTRA) * cols, n = HEADS * cols;
    float *x = lt_rand(wide, 1, -2.0f, 2.0f), *x0 = lt_copy(x, wide), *dout = lt_rand(n, 4, -1.0f, 1.0f);
    head_buffers b = {.gamma = lt_rand(cols, 2, 0.5f, 1.5f),
                      .beta = lt_rand(cols, 3, -1.0f, 1.0f),
                      .stats = lt_f32(2 * HEADS),
                      .dout0 = lt_copy(dout, n),
                      .dgamma = lt_rand(cols, 5, -1.0f, 1.0f),
                      .dbeta = lt_rand(cols, 6, -1.0f, 1.0f),
                      .x = heads_view(x, cols, HEAD_EXTRA),
                      .out = heads_view(lt_f32(n), cols, 0)};
    b.dgamma0 = lt_copy(b.dgamma, cols);
    b.dbeta0 = lt_copy(b.dbeta, cols);
    b.dx = t->in_place ? heads_view(dout, cols, 0) : heads_view(lt_f32(wide), cols, HEAD_EXTRA);
    mc_tensor stats = lt_2d(b.stats, HEADS, 2), gamma = lt_1d(b.gamma, cols);
    ly_head_norm_fwd fwd = {.kind = t->kind,
                            .one_plus_gamma = t->one_plus,
                            .eps = EPS,
                            .x = b.x,
                            .out = b.out,
                            .gamma = gamma,
                            .beta = lt_1d(b.beta, cols),
                            .stats = stats};
    assert_int_equal(run->cx.ops->head_norm_fwd(&run->cx, &fwd), MC_OK);
    ly_head_norm_bwd bwd = {.kind = t->kind,
                            .one_plus_gamma = t->one_plus,
                            .dout = heads_view(dout, cols, 0),
                            .x = b.x,
                            .dx = b.dx,
                            .gamma = gamma,
                            .stats = stats,
                            .dgamma = lt_1d(b.dgamma, cols),
                            .dbeta = lt_1d(b.dbeta, cols)};
    assert_int_equal(run->cx.ops->head_norm_bwd(&run->cx, &bwd), MC_OK);
    assert_memory_equal(x, x0, (size_t)wide * 4);
    lt_output(run, b.out.data, n * 4);
    lt_output(run, b.dx.data, (t->in_place ? n : wide) * 4);
    lt_output(run, b.dgamma, cols * 4);
    check_heads(t, &b);
}

static void test_head_norm(void **state)
{
    static const int64_t widths[] = {5, 64, 80};
    (void)state;
    for (size_t w = 0; w < sizeof widths / sizeof *widths; w++) {
        for (int form = 0; form < 4; form++) {
            norm_case t = {.cols = widths[w],
                           .kind = form & 1 ? LY_RMSNORM : LY_LAYERNORM,
                           .one_plus = form == 2,
                           .in_place = form >= 2};
            lt_for_all(head_body, &t);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_norm_fwd),  cmocka_unit_test(test_norm_fwd_offset),
        cmocka_unit_test(test_norm_bwd),  cmocka_unit_test(test_norm_bwd_without_norm),
        cmocka_unit_test(test_head_norm),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
