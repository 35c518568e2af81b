/* Norms and attention on bf16 and f16: as in test_types.c, the f32 operator's results on the widened inputs, rounded
 * once. Where the backward reads what the forward stored, the f32 operator gets the stored numbers, widened. */
#include <math.h>

#include "megac/base/rng.h"
#include "tests/layers/twin.h"

static const mc_dtype TYPES[] = {MC_BF16, MC_F16};
enum { N_TYPES = 2 };

/* What memory of type T holds, for the f32 operator too. */
static void reread(twin *t)
{
    t->wide = lt_widen(t->type, t->typed, t->n);
}

typedef struct norm_case {
    mc_dtype type;
    int64_t rows, cols;
    ly_norm_kind kind;
    bool one_plus, beta, bias, skip, in_place;
    float p;
} norm_case;

static ly_dropout dropout_of(const norm_case *t)
{
    return (ly_dropout){.p = t->p,
                        .seed = 7,
                        .stream = mc_rng_stream(MC_RNG_DROPOUT_MLP_OUT, 3),
                        .sample0 = 11,
                        .row0 = 5,
                        .seq_len = 9};
}

static void norm_fwd_body(lt_run *run, const void *arg)
{
    const norm_case *t = arg;
    int64_t R = t->rows, C = t->cols, n = R * C;
    twin x = twin_rand(t->type, n, 1, -3.0f, 5.0f), y = twin_rand(t->type, n, 2, -2.0f, 2.0f);
    twin y_bias = twin_rand(t->type, C, 3, -1.0f, 1.0f), gamma = twin_rand(t->type, C, 4, 0.5f, 1.5f);
    twin beta = twin_rand(t->type, C, 5, -1.0f, 1.0f), h = t->in_place ? x : twin_empty(t->type, n);
    twin out = twin_empty(t->type, n);
    float *stats[2] = {lt_f32(2 * R), lt_f32(2 * R)};
    for (int wide = 0; wide < 2; wide++) {
        ly_norm_fwd op = {.kind = t->kind,
                          .one_plus_gamma = t->one_plus,
                          .eps = 1e-5f,
                          .x = view(&x, wide, R, C),
                          .y = view(&y, wide, R, C),
                          .h = view(&h, wide, R, C),
                          .dropout = dropout_of(t)};
        op.y_bias = t->bias ? view1(&y_bias, wide) : (mc_tensor){0};
        ly_norm_fwd norm = {.kind = t->kind, .one_plus_gamma = t->one_plus, .eps = 1e-5f, .x = op.h};
        norm.gamma = view1(&gamma, wide);
        norm.beta = t->beta ? view1(&beta, wide) : (mc_tensor){0};
        norm.out = view(&out, wide, R, C);
        norm.stats = lt_2d(stats[wide], R, 2);
        if (!wide) { /* all in one call; the f32 operator adds first, and its norm reads h rounded */
            op.gamma = norm.gamma;
            op.beta = norm.beta;
            op.out = norm.out;
            op.stats = norm.stats;
        }
        assert_int_equal(run->cx.ops->norm_fwd(&run->cx, &op), MC_OK);
        if (wide) {
            twin_same(run, "h", &h);
            reread(&h);
            norm.x = view(&h, 1, R, C);
            assert_int_equal(run->cx.ops->norm_fwd(&run->cx, &norm), MC_OK);
        }
    }
    twin_same(run, "out", &out);
    same_f32(run, "stats", stats[0], stats[1], 2 * R);
}

static void norm_bwd_body(lt_run *run, const void *arg)
{
    const norm_case *t = arg;
    int64_t R = t->rows, C = t->cols, n = R * C;
    twin dout = twin_rand(t->type, n, 1, -1.0f, 1.0f), h = twin_rand(t->type, n, 2, -2.0f, 3.0f);
    twin gamma = twin_rand(t->type, C, 3, 0.5f, 1.5f), beta = twin_rand(t->type, C, 4, -1.0f, 1.0f);
    twin dskip = twin_rand(t->type, n, 5, -1.0f, 1.0f), dy = twin_empty(t->type, n), out = twin_empty(t->type, n);
    twin dh = t->in_place ? dskip : twin_empty(t->type, n);
    float *stats = lt_rand(2 * R, 6, 0.3f, 0.9f), *sums[3][2];
    for (int i = 0; i < 3; i++) {
        sums[i][0] = lt_rand(C, 7 + (uint32_t)i, -1.0f, 1.0f);
        sums[i][1] = lt_copy(sums[i][0], C);
    }
    for (int wide = 0; wide < 2; wide++) {
        ly_norm_bwd op = {.kind = t->kind,
                          .one_plus_gamma = t->one_plus,
                          .dout = view(&dout, wide, R, C),
                          .h = view(&h, wide, R, C),
                          .stats = lt_2d(stats, R, 2),
                          .gamma = view1(&gamma, wide),
                          .dh = view(&dh, wide, R, C),
                          .dy = view(&dy, wide, R, C),
                          .out = view(&out, wide, R, C),
                          .dgamma = lt_1d(sums[0][wide], C),
                          .dy_bias = lt_1d(sums[2][wide], C),
                          .dropout = dropout_of(t)};
        op.beta = t->beta ? view1(&beta, wide) : (mc_tensor){0};
        op.dbeta = t->beta ? lt_1d(sums[1][wide], C) : (mc_tensor){0};
        op.dskip = t->skip ? view(&dskip, wide, R, C) : (mc_tensor){0};
        assert_int_equal(run->cx.ops->norm_bwd(&run->cx, &op), MC_OK);
    }
    twin_same(run, "dh", &dh);
    twin_same(run, "dy", &dy);
    twin_same(run, "out again", &out);
    same_f32(run, "dgamma", sums[0][0], sums[0][1], C);
    same_f32(run, "dbeta", sums[1][0], sums[1][1], C);
    same_f32(run, "dy_bias", sums[2][0], sums[2][1], C);
}

/* The block's last addition: no norm. */
static void last_addition_body(lt_run *run, const void *arg)
{
    const norm_case *t = arg;
    int64_t R = t->rows, C = t->cols, n = R * C;
    twin dskip = twin_rand(t->type, n, 1, -1.0f, 1.0f), dy = twin_empty(t->type, n);
    float *bias[2] = {lt_rand(C, 2, -1.0f, 1.0f)};
    bias[1] = lt_copy(bias[0], C);
    for (int wide = 0; wide < 2; wide++) {
        ly_norm_bwd op = {.dskip = view(&dskip, wide, R, C),
                          .dy = view(&dy, wide, R, C),
                          .dy_bias = lt_1d(bias[wide], C),
                          .dropout = dropout_of(t)};
        assert_int_equal(run->cx.ops->norm_bwd(&run->cx, &op), MC_OK);
    }
    twin_same(run, "dy", &dy);
    same_f32(run, "dy_bias", bias[0], bias[1], C);
}

/* 2500 rows of 776 columns need more sums of blocks than one thread's scratch holds. */
static void test_norm(void **state)
{
    static const int64_t sizes[][2] = {{1, 1}, {3, 5}, {33, 17}, {5, 301}, {70, 96}, {2500, 776}};
    (void)state;
    for (int type = 0; type < N_TYPES; type++) {
        for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
            for (int form = sizes[s][0] < 2000 ? 0 : 7; form < 8; form++) {
                norm_case t = {.type = TYPES[type],
                               .rows = sizes[s][0],
                               .cols = sizes[s][1],
                               .kind = form & 1 ? LY_RMSNORM : LY_LAYERNORM,
                               .one_plus = form == 2,
                               .beta = form % 4 < 2,
                               .bias = form != 3,
                               .skip = form > 1,
                               .in_place = form >= 5,
                               .p = form >= 6 ? 0.3f : 0.0f};
                lt_for_all(norm_fwd_body, &t);
                lt_for_all(norm_bwd_body, &t);
                lt_for_all(last_addition_body, &t);
            }
        }
    }
}

enum { HEAD_R = 17, HEAD_G = 2, HEAD_J = 3, HEADS = HEAD_R * HEAD_G * HEAD_J };

/* (R, G, j, H) heads of a row of G groups of `in_group` heads each. */
static mc_tensor heads(const twin *t, int wide, int64_t rows, int64_t groups, int64_t n, int64_t in_group,
                       int64_t first, int64_t size)
{
    mc_dtype type = wide ? MC_F32 : t->type;
    char *data = wide ? (char *)t->wide : t->typed;
    return (mc_tensor){.data = data + first * size * (int64_t)mc_dtype_bytes(type),
                       .dtype = type,
                       .n_dims = 4,
                       .dims = {rows, groups, n, size},
                       .strides = {groups * in_group * size, in_group * size, size, 1}};
}

static void head_norm_body(lt_run *run, const void *arg)
{
    const norm_case *t = arg;
    int64_t C = t->cols, wide_n = HEAD_R * HEAD_G * (HEAD_J + 2) * C, n = HEADS * C;
    twin x = twin_rand(t->type, wide_n, 1, -2.0f, 2.0f), gamma = twin_rand(t->type, C, 2, 0.5f, 1.5f);
    twin beta = twin_rand(t->type, C, 3, -1.0f, 1.0f), dout = twin_rand(t->type, n, 4, -1.0f, 1.0f);
    twin out = twin_empty(t->type, n), dx = t->in_place ? dout : twin_empty(t->type, n);
    float *stats[2] = {lt_f32(2 * HEADS), lt_f32(2 * HEADS)}, *dgamma[2] = {lt_rand(C, 5, -1.0f, 1.0f)};
    float *dbeta[2] = {lt_rand(C, 6, -1.0f, 1.0f)};
    dgamma[1] = lt_copy(dgamma[0], C);
    dbeta[1] = lt_copy(dbeta[0], C);
    for (int wide = 0; wide < 2; wide++) {
        ly_head_norm_fwd fwd = {.kind = t->kind,
                                .one_plus_gamma = t->one_plus,
                                .eps = 1e-5f,
                                .x = heads(&x, wide, HEAD_R, HEAD_G, HEAD_J, HEAD_J + 2, 0, C),
                                .gamma = view1(&gamma, wide),
                                .beta = view1(&beta, wide),
                                .out = heads(&out, wide, HEAD_R, HEAD_G, HEAD_J, HEAD_J, 0, C),
                                .stats = lt_2d(stats[wide], HEADS, 2)};
        ly_head_norm_bwd bwd = {.kind = t->kind,
                                .one_plus_gamma = t->one_plus,
                                .dout = heads(&dout, wide, HEAD_R, HEAD_G, HEAD_J, HEAD_J, 0, C),
                                .x = fwd.x,
                                .stats = fwd.stats,
                                .gamma = fwd.gamma,
                                .dx = heads(&dx, wide, HEAD_R, HEAD_G, HEAD_J, HEAD_J, 0, C),
                                .dgamma = lt_1d(dgamma[wide], C),
                                .dbeta = lt_1d(dbeta[wide], C)};
        assert_int_equal(run->cx.ops->head_norm_fwd(&run->cx, &fwd), MC_OK);
        assert_int_equal(run->cx.ops->head_norm_bwd(&run->cx, &bwd), MC_OK);
    }
    twin_same(run, "out", &out);
    twin_same(run, "dx", &dx);
    same_f32(run, "stats", stats[0], stats[1], 2 * HEADS);
    same_f32(run, "dgamma", dgamma[0], dgamma[1], C);
    same_f32(run, "dbeta", dbeta[0], dbeta[1], C);
}

static void test_head_norm(void **state)
{
    static const int64_t widths[] = {5, 64, 80};
    (void)state;
    for (int type = 0; type < N_TYPES; type++) {
        for (size_t w = 0; w < sizeof widths / sizeof *widths; w++) {
            for (int form = 0; form < 4; form++) {
                norm_case t = {.type = TYPES[type],
                               .cols = widths[w],
                               .kind = form & 1 ? LY_RMSNORM : LY_LAYERNORM,
                               .one_plus = form == 2,
                               .in_place = form >= 2};
                lt_for_all(head_norm_body, &t);
            }
        }
    }
}

typedef struct attention_case {
    mc_dtype type;
    int64_t B, T, G, r, H, window;
    float p;
} attention_case;

static void attention_body(lt_run *run, const void *arg)
{
    const attention_case *t = arg;
    int64_t R = t->B * t->T, in_group = t->r + 2, n = R * t->G * in_group * t->H, n_out = R * t->G * t->r * t->H;
    int64_t n_lse = R * t->G * t->r;
    twin qkv = twin_rand(t->type, n, 1, -2.0f, 2.0f), dout = twin_rand(t->type, n_out, 2, -1.0f, 1.0f);
    twin out = twin_empty(t->type, n_out), d = twin_empty(t->type, n);
    float *lse[2] = {lt_f32(n_lse), lt_f32(n_lse)}, *delta[2] = {lt_f32(n_lse), lt_f32(n_lse)};
    ly_dropout dropout = {.p = t->p, .seed = 9, .stream = mc_rng_stream(MC_RNG_DROPOUT_ATTENTION, 3), .sample0 = 77};
    float scale = 1.0f / sqrtf((float)t->H);
    for (int wide = 0; wide < 2; wide++) {
#define PART(of, count, first) heads(&of, wide, R, t->G, count, in_group, first, t->H)
        ly_attention_fwd fwd = {.q = PART(qkv, t->r, 0),
                                .k = PART(qkv, 1, t->r),
                                .v = PART(qkv, 1, t->r + 1),
                                .out = heads(&out, wide, R, t->G, t->r, t->r, 0, t->H),
                                .lse = mc_tensor_3d(lse[wide], MC_F32, t->B, t->G * t->r, t->T),
                                .seq_len = t->T,
                                .scale = scale,
                                .window_left = t->window,
                                .head0 = 5,
                                .dropout = dropout};
        assert_int_equal(run->cx.ops->attention_fwd(&run->cx, &fwd), MC_OK);
        if (wide) {
            twin_same(run, "out", &out);
            reread(&out);
        }
        ly_attention_bwd bwd = {.q = fwd.q,
                                .k = fwd.k,
                                .v = fwd.v,
                                .out = heads(&out, wide, R, t->G, t->r, t->r, 0, t->H),
                                .lse = fwd.lse,
                                .dout = heads(&dout, wide, R, t->G, t->r, t->r, 0, t->H),
                                .delta = mc_tensor_3d(delta[wide], MC_F32, t->B, t->G * t->r, t->T),
                                .dq = PART(d, t->r, 0),
                                .dk = PART(d, 1, t->r),
                                .dv = PART(d, 1, t->r + 1),
                                .seq_len = t->T,
                                .scale = scale,
                                .window_left = t->window,
                                .head0 = 5,
                                .dropout = dropout};
#undef PART
        assert_int_equal(run->cx.ops->attention_bwd(&run->cx, &bwd), MC_OK);
    }
    twin_same(run, "dqkv", &d);
    same_f32(run, "lse", lse[0], lse[1], n_lse);
    same_f32(run, "delta", delta[0], delta[1], n_lse);
}

/* Among them: several spans of keys, whose dQ waits in scratch (300 x 64), and one for which there is no room
 * (201 x 8 heads of 256). */
static void test_attention(void **state)
{
    static const attention_case cases[] = {
        {0, 1, 5, 1, 1, 8, -1, 0.0f},    {0, 2, 33, 2, 2, 20, -1, 0.1f},   {0, 1, 300, 1, 2, 64, -1, 0.0f},
        {0, 1, 150, 2, 1, 80, 40, 0.2f}, {0, 1, 201, 1, 8, 256, -1, 0.0f},
    };
    (void)state;
    for (int type = 0; type < N_TYPES; type++) {
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
            attention_case t = cases[i];
            t.type = TYPES[type];
            lt_for_all(attention_body, &t);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_norm),
        cmocka_unit_test(test_head_norm),
        cmocka_unit_test(test_attention),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
