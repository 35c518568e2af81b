/* Operators on bf16 and f16: the result of the f32 operator on the widened inputs, rounded exactly once where it is
 * stored, to the bit. (The f32 operators are compared with double precision in the other tests.) */
#include <math.h>
#include <string.h>

#include "megac/base/rng.h"
#include "tests/layers/op_harness.h"
#include "tests/layers/twin.h"

static const mc_dtype TYPES[] = {MC_BF16, MC_F16};
static const int64_t SIZES[][2] = {{1, 1}, {3, 5}, {17, 17}, {5, 301}, {30, 776}};
enum { N_TYPES = 2, N_SIZES = sizeof SIZES / sizeof *SIZES };

typedef struct type_case {
    mc_dtype type;
    int64_t rows, cols;
    int option;
} type_case;

/* Calls body for every type, size and option. */
static void for_types(lt_body body, int n_options)
{
    for (int t = 0; t < N_TYPES; t++) {
        for (int s = 0; s < N_SIZES; s++) {
            for (int option = 0; option < n_options; option++) {
                type_case c = {TYPES[t], SIZES[s][0], SIZES[s][1], option};
                lt_for_all(body, &c);
            }
        }
    }
}

/* option: kind, and whether operands share memory. */
static void act_body(lt_run *run, const void *arg)
{
    const type_case *c = arg;
    ly_act_kind kind = (ly_act_kind)(c->option / 2);
    int aliased = c->option % 2;
    int64_t x_cols = kind == LY_SWIGLU ? 2 * c->cols : c->cols, n = c->rows * c->cols, xn = c->rows * x_cols;
    twin x = twin_rand(c->type, xn, 1, -9.0f, 9.0f), out = twin_empty(c->type, n);
    twin dout = twin_rand(c->type, n, 2, -1.0f, 1.0f);
    twin dx = aliased ? x : twin_empty(c->type, xn), again = aliased ? dout : twin_empty(c->type, n);
    for (int wide = 0; wide < 2; wide++) {
        ly_act_fwd fwd = {
            .kind = kind, .x = view(&x, wide, c->rows, x_cols), .out = view(&out, wide, c->rows, c->cols)};
        ly_act_bwd bwd = {.kind = kind,
                          .x = fwd.x,
                          .dout = view(&dout, wide, c->rows, c->cols),
                          .dx = view(&dx, wide, c->rows, x_cols),
                          .out = view(&again, wide, c->rows, c->cols)};
        assert_int_equal(run->cx.ops->act_fwd(&run->cx, &fwd), MC_OK);
        assert_int_equal(run->cx.ops->act_bwd(&run->cx, &bwd), MC_OK);
    }
    twin_same(run, "out", &out);
    twin_same(run, "dx", &dx);
    twin_same(run, "out again", &again);
}

static void test_act(void **state)
{
    (void)state;
    for_types(act_body, 2 * (LY_SILU + 1));
}

/* q of a (R, G, r + 2, H) buffer; option: inverse, interleaved. */
static void rope_body(lt_run *run, const void *arg)
{
    enum { G = 2, HEADS = 3, D = 2 };
    const type_case *c = arg;
    int64_t size = c->cols + D, turned = c->cols / 2 * 2, group = (HEADS + 2) * size, n = c->rows * G * group;
    int64_t seq_len = (c->rows + 1) / 2, n_angles = (seq_len + 3) * (turned / 2);
    float *cosine = lt_rand(n_angles, 2, -1.0f, 1.0f), *sine = lt_rand(n_angles, 3, -1.0f, 1.0f);
    twin x = twin_rand(c->type, n, 1, -2.0f, 2.0f);
    for (int wide = 0; wide < 2; wide++) {
        ly_rope op = {.x = {.data = wide ? (void *)x.wide : x.typed,
                            .dtype = wide ? MC_F32 : c->type,
                            .n_dims = 4,
                            .dims = {c->rows, G, HEADS, size},
                            .strides = {G * group, group, size, 1}},
                      .cos = lt_2d(cosine, seq_len + 3, turned / 2),
                      .sin = lt_2d(sine, seq_len + 3, turned / 2),
                      .seq_len = seq_len,
                      .pos0 = 3,
                      .inverse = c->option % 2,
                      .interleaved = c->option / 2};
        assert_int_equal(run->cx.ops->rope(&run->cx, &op), MC_OK);
    }
    twin_same(run, "x", &x);
}

static void test_rope(void **state)
{
    (void)state;
    for_types(rope_body, 4);
}

/* option: where out lies. */
static void add_body(lt_run *run, const void *arg)
{
    const type_case *c = arg;
    int64_t n = c->rows * c->cols;
    twin a = twin_rand(c->type, n, 1, -2.0f, 2.0f), b = twin_rand(c->type, n, 2, -2.0f, 2.0f);
    twin out = c->option == 0 ? twin_empty(c->type, n) : c->option == 1 ? a : b;
    for (int wide = 0; wide < 2; wide++) {
        ly_add op = {.a = view1(&a, wide), .b = view1(&b, wide), .out = view1(&out, wide)};
        assert_int_equal(run->cx.ops->add(&run->cx, &op), MC_OK);
    }
    twin_same(run, "out", &out);
}

static void fill_body(lt_run *run, const void *arg)
{
    static const float values[] = {0.0f, -0.0f, 1.00390625f, -3.14159274f, 1e-7f, INFINITY};
    const type_case *c = arg;
    twin x = twin_empty(c->type, c->rows * c->cols);
    for (int wide = 0; wide < 2; wide++) {
        ly_fill op = {.x = view1(&x, wide), .value = values[c->option]};
        assert_int_equal(run->cx.ops->fill(&run->cx, &op), MC_OK);
    }
    twin_same(run, "x", &x);
}

static void test_add_and_fill(void **state)
{
    (void)state;
    for_types(add_body, 3);
    for_types(fill_body, 6);
}

/* x scale + out, in one rounding where the processor fuses and in two at most where it does not. */
static void cast_body(lt_run *run, const void *arg)
{
    static const float special[] = {INFINITY, -INFINITY, NAN, 65504.0f, 65520.0f, 1e30f, 3e-8f, 6e-8f, -0.0f, 1e-40f};
    const type_case *c = arg;
    int64_t n = c->rows * c->cols;
    for (mc_dtype from = MC_F32; from <= MC_F16; from++) {
        if (from == MC_F64) {
            continue;
        }
        int accumulate = c->option % 2;
        float scale = c->option / 2 ? 0.37f : 1.0f, *numbers = lt_rand(n, 1, -3.0f, 3.0f);
        memcpy(numbers, special, n < 10 ? (size_t)n * 4 : sizeof special);
        void *x = lt_round(from, numbers, n);
        twin out = twin_rand(c->type, n, 2, -3.0f, 3.0f);
        float *wide = lt_widen(from, x, n), *old = lt_copy(out.wide, n);
        ly_cast op = {.x = mc_tensor_1d(x, from, n), .out = view1(&out, 0), .scale = scale, .accumulate = accumulate};
        assert_int_equal(run->cx.ops->cast(&run->cx, &op), MC_OK);
        const uint16_t *got = out.typed;
        float *sum = lt_f32(n), *sum2 = lt_f32(n);
        for (int64_t i = 0; i < n; i++) {
            volatile float product = wide[i] * scale; /* kept from being fused */
            sum[i] = accumulate ? fmaf(wide[i], scale, old[i]) : product;
            sum2[i] = accumulate ? old[i] + product : product;
        }
        const uint16_t *fused = lt_round(c->type, sum, n), *apart = lt_round(c->type, sum2, n);
        for (int64_t i = 0; i < n; i++) {
            if (isnan(sum[i])) {
                assert_true(isnan(lt_widen(c->type, got + i, 1)[0]));
            } else if (got[i] != fused[i] && got[i] != apart[i]) {
                fail_msg("out[%lld] is 0x%04x, expected 0x%04x", (long long)i, got[i], fused[i]);
            }
        }
        lt_output(run, out.typed, n * 2);
    }
}

static void test_cast(void **state)
{
    (void)state;
    for_types(cast_body, 4);
}

/* The gradient of type T beside the logits is the one that overwrites them, rounded. option: weights. */
static void xent_body(lt_run *run, const void *arg)
{
    const type_case *c = arg;
    int64_t n = c->rows * c->cols, valid = c->cols > 3 ? c->cols - 2 : c->cols;
    float *logits = lt_rand(n, 1, -6.0f, 6.0f), *keep = lt_copy(logits, n), *stats = lt_f32(3 * c->rows);
    float *weights = lt_rand(c->rows, 2, 0.0f, 2.0f), *losses = lt_f32(c->rows);
    twin d = {c->type, n, lt_typed(c->type, n), lt_copy(logits, n)};
    mc_tensor targets = mc_tensor_1d(lt_ints(c->rows, 3, 0, (int32_t)valid), MC_I32, c->rows);
    weights[0] = 0.0f;
    ly_xent_stats first = {.logits = lt_2d(logits, c->rows, c->cols),
                           .targets = targets,
                           .stats = lt_2d(stats, c->rows, 3),
                           .vocab_valid = valid};
    assert_int_equal(run->cx.ops->xent_stats(&run->cx, &first), MC_OK);
    ly_xent_grad op = {.logits = lt_2d(d.wide, c->rows, c->cols),
                       .targets = targets,
                       .all_stats = mc_tensor_3d(stats, MC_F32, 1, c->rows, 3),
                       .losses = lt_1d(losses, c->rows),
                       .vocab_valid = valid,
                       .scale = 0.37f,
                       .write_grad = 1};
    if (c->option) {
        op.weights = lt_1d(weights, c->rows);
    }
    assert_int_equal(run->cx.ops->xent_grad(&run->cx, &op), MC_OK);
    float *losses_in_place = lt_copy(losses, c->rows);
    op.logits = lt_2d(logits, c->rows, c->cols);
    op.dlogits = view(&d, 0, c->rows, c->cols);
    assert_int_equal(run->cx.ops->xent_grad(&run->cx, &op), MC_OK);
    twin_same(run, "dlogits", &d);
    assert_memory_equal(logits, keep, (size_t)n * 4);
    assert_memory_equal(losses, losses_in_place, (size_t)c->rows * 4);
}

static void test_xent(void **state)
{
    (void)state;
    for_types(xent_body, 2);
}

/* A table of tokens, some of them other ranks'; then positions and dropout (option). */
static void embedding_body(lt_run *run, const void *arg)
{
    enum { V = 7 };
    const type_case *c = arg;
    int64_t n = c->rows * c->cols, seq_len = (c->rows + 1) / 2, pn = seq_len * c->cols;
    mc_tensor tokens = mc_tensor_1d(lt_ints(c->rows, 1, 0, V + 4), MC_I32, c->rows);
    twin table = twin_rand(c->type, V * c->cols, 2, -1.0f, 1.0f), out = twin_empty(c->type, n);
    twin dout = twin_rand(c->type, n, 3, -1.0f, 1.0f), h = twin_empty(c->type, n), dx = twin_empty(c->type, n);
    twin positions = twin_rand(c->type, pn, 4, -1.0f, 1.0f);
    float *dtable[2] = {lt_rand(V * c->cols, 5, -1.0f, 1.0f)}, *dpositions[2] = {lt_rand(pn, 6, -1.0f, 1.0f)};
    dtable[1] = lt_copy(dtable[0], V * c->cols);
    dpositions[1] = lt_copy(dpositions[0], pn);
    ly_dropout d = {.p = c->option ? 0.2f : 0.0f, .seed = 5, .stream = 9, .sample0 = 3, .row0 = 1, .seq_len = seq_len};
    for (int wide = 0; wide < 2; wide++) {
        ly_embedding_fwd fwd = {tokens, view(&table, wide, V, c->cols), view(&out, wide, c->rows, c->cols),
                                .vocab0 = 2};
        ly_embedding_bwd bwd = {tokens, view(&dout, wide, c->rows, c->cols), lt_2d(dtable[wide], V, c->cols),
                                .vocab0 = 2};
        ly_embed_finish_fwd finish = {.x = fwd.out,
                                      .positions = view(&positions, wide, seq_len, c->cols),
                                      .h = view(&h, wide, c->rows, c->cols),
                                      .dropout = d};
        ly_embed_finish_bwd back = {.dh = bwd.dout,
                                    .dx = view(&dx, wide, c->rows, c->cols),
                                    .dpositions = lt_2d(dpositions[wide], seq_len, c->cols),
                                    .dropout = d};
        assert_int_equal(run->cx.ops->embedding_fwd(&run->cx, &fwd), MC_OK);
        assert_int_equal(run->cx.ops->embedding_bwd(&run->cx, &bwd), MC_OK);
        assert_int_equal(run->cx.ops->embed_finish_fwd(&run->cx, &finish), MC_OK);
        assert_int_equal(run->cx.ops->embed_finish_bwd(&run->cx, &back), MC_OK);
    }
    twin_same(run, "out", &out);
    twin_same(run, "h", &h);
    twin_same(run, "dx", &dx);
    same_f32(run, "dtable", dtable[0], dtable[1], V * c->cols);
    same_f32(run, "dpositions", dpositions[0], dpositions[1], pn);
}

static void test_embedding(void **state)
{
    (void)state;
    for_types(embedding_body, 2);
}

/* A slab of rows * cols elements with padding around its two segments. */
typedef struct slab {
    int64_t n;
    ly_segment segments[2];
} slab;

static slab slab_of(const type_case *c)
{
    int64_t n = c->rows * c->cols, cut = n / 3;
    return (slab){n, {{n > 8 ? 3 : 0, n > 8 ? cut : n, 1.0f, 0.5f, 1.0f}, {n > 8 ? cut + 2 : n, n, 0.5f, 1.0f, 2.0f}}};
}

/* The slab's operands for one run, f32 but for gradient and model. */
typedef struct step_data {
    float *param, *m, *v;
    twin grad, model;
} step_data;

static step_data step_data_of(mc_dtype model, int64_t n)
{
    return (step_data){lt_rand(n, 1, -1.0f, 1.0f), lt_rand(n, 2, -0.5f, 0.5f), lt_rand(n, 3, 0.0f, 0.5f),
                       twin_rand(MC_BF16, n, 4, -1.0f, 1.0f), twin_rand(model, n, 5, 3.0f, 4.0f)};
}

/* With a bf16 gradient: the bits of the f32 gradient's step; model: param rounded, and padding left alone. */
static void check_step(lt_run *run, const slab *s, const step_data *got, const step_data *want)
{
    same_f32(run, "param", got->param, want->param, s->n);
    same_f32(run, "m", got->m, want->m, s->n);
    same_f32(run, "v", got->v, want->v, s->n);
    twin model = got->model;
    for (int k = 0; k < 2; k++) {
        int64_t begin = s->segments[k].begin;
        memcpy(model.wide + begin, got->param + begin, (size_t)(s->segments[k].end - begin) * 4);
    }
    twin_same(run, "model", &model);
}

/* option: clear_grad. */
static void adamw_body(lt_run *run, const void *arg)
{
    const type_case *c = arg;
    slab s = slab_of(c);
    step_data data[2] = {step_data_of(c->type, s.n), step_data_of(c->type, s.n)};
    for (int wide = 0; wide < 2; wide++) {
        ly_adamw op = {.param = lt_1d(data[wide].param, s.n),
                       .grad = view1(&data[wide].grad, wide),
                       .m = lt_1d(data[wide].m, s.n),
                       .v = lt_1d(data[wide].v, s.n),
                       .segments = s.segments,
                       .n_segments = 2,
                       .lr = 0.01f,
                       .beta1 = 0.9f,
                       .beta2 = 0.95f,
                       .eps = 1e-8f,
                       .weight_decay = 0.1f,
                       .grad_scale = 0.3f,
                       .step = 3,
                       .clear_grad = c->option};
        if (!wide) {
            op.model = view1(&data[0].model, 0);
        }
        assert_int_equal(run->cx.ops->adamw(&run->cx, &op), MC_OK);
    }
    check_step(run, &s, &data[0], &data[1]);
    data[0].grad.wide = data[1].grad.wide; /* cleared, or not, in the same places */
    twin_same(run, "grad", &data[0].grad);
}

/* option: with momentum. */
static void sgd_body(lt_run *run, const void *arg)
{
    const type_case *c = arg;
    slab s = slab_of(c);
    step_data data[2] = {step_data_of(c->type, s.n), step_data_of(c->type, s.n)};
    for (int wide = 0; wide < 2; wide++) {
        ly_sgd op = {.param = lt_1d(data[wide].param, s.n),
                     .grad = view1(&data[wide].grad, wide),
                     .segments = s.segments,
                     .n_segments = 2,
                     .lr = 0.1f,
                     .momentum = c->option ? 0.9f : 0.0f,
                     .weight_decay = 0.1f,
                     .grad_scale = 0.3f};
        if (c->option) {
            op.m = lt_1d(data[wide].m, s.n);
        }
        if (!wide) {
            op.model = view1(&data[0].model, 0);
        }
        assert_int_equal(run->cx.ops->sgd(&run->cx, &op), MC_OK);
    }
    check_step(run, &s, &data[0], &data[1]);
}

static void sq_norm_body(lt_run *run, const void *arg)
{
    const type_case *c = arg;
    slab s = slab_of(c);
    twin x = twin_rand(MC_BF16, s.n, 1, -1.0f, 1.0f);
    double *out = lt_typed(MC_F64, 2);
    for (int wide = 0; wide < 2; wide++) {
        ly_sq_norm op = {view1(&x, wide), mc_tensor_1d(out + wide, MC_F64, 1), s.segments, 2};
        assert_int_equal(run->cx.ops->sq_norm(&run->cx, &op), MC_OK);
    }
    assert_true(out[0] == out[1] && out[0] > 0.0);
    lt_output(run, out, 8);
}

static void test_optim(void **state)
{
    (void)state;
    for_types(adamw_body, 2);
    for_types(sgd_body, 2);
    for_types(sq_norm_body, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_act),   cmocka_unit_test(test_rope), cmocka_unit_test(test_add_and_fill),
        cmocka_unit_test(test_cast),  cmocka_unit_test(test_xent), cmocka_unit_test(test_embedding),
        cmocka_unit_test(test_optim),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
