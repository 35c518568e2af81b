/* Kernels whose tensors have types of their own, which the cases of test_kernels do not vary: optimizers with 16-bit
 * gradients and models, cross entropy's gradient in T, casts between all types. The same call on the CPU, in f32 and
 * rounded here, says what is right; every order of threads must give the same bits. */
#include <math.h>
#include <stdlib.h>

#include "layers/cuda/kernels.h"
#include "layers/workspace.h"
#include "megac/base/half.h"
#include "tests/cuda/on_cpu/control.h"
#include "tests/cuda/races.h"
#include "tests/unit.h"

static const mc_dtype types[] = {MC_F32, MC_BF16, MC_F16};
enum { N_TYPES = sizeof types / sizeof *types, MAX_N = 5000, GUARD = 16, N_ORDERS = 3 };
static const ly_on_cpu_order orders[N_ORDERS] = {LY_ON_CPU_FORWARD, LY_ON_CPU_REVERSE, LY_ON_CPU_RANDOM};

/* An array of any type between guards; `x` holds its values in f32, rounded to the type. */
typedef struct array {
    mc_dtype type;
    int64_t n;
    float x[MAX_N];
    _Alignas(16) unsigned char bytes[(MAX_N + 2 * GUARD) * sizeof(float)];
} array;

static float rounded(mc_dtype type, float x)
{
    return type == MC_F32    ? x
           : type == MC_BF16 ? mc_f32_from_bf16(mc_bf16_from_f32(x))
                             : mc_f32_from_f16(mc_f16_from_f32(x));
}

static float get(const array *a, int64_t i)
{
    const void *at = a->bytes + (size_t)(GUARD + i) * mc_dtype_bytes(a->type);
    float f;
    uint16_t h;
    memcpy(&f, at, a->type == MC_F32 ? sizeof f : 0);
    memcpy(&h, at, sizeof h);
    return a->type == MC_F32 ? f : a->type == MC_BF16 ? mc_f32_from_bf16(h) : mc_f32_from_f16(h);
}

static void put(array *a, int64_t i, float x)
{
    void *at = a->bytes + (size_t)(GUARD + i) * mc_dtype_bytes(a->type);
    uint16_t h = a->type == MC_BF16 ? mc_bf16_from_f32(x) : mc_f16_from_f32(x);
    memcpy(at, a->type == MC_F32 ? (const void *)&x : (const void *)&h, mc_dtype_bytes(a->type));
}

/* Element i of an array is value(i), or NaN where value is NULL. */
static void array_init(array *a, mc_dtype type, int64_t n, float (*value)(int64_t))
{
    assert_true(n <= MAX_N);
    a->type = type;
    a->n = n;
    memset(a->bytes, 0xfb, sizeof a->bytes);
    for (int64_t i = 0; i < n; i++) {
        a->x[i] = value ? rounded(type, value(i)) : NAN;
        put(a, i, a->x[i]);
    }
}

static mc_tensor view(array *a)
{
    return mc_tensor_1d(a->bytes + GUARD * mc_dtype_bytes(a->type), a->type, a->n);
}
static mc_tensor plain(array *a)
{
    return mc_tensor_1d(a->x, MC_F32, a->n);
}

/* The array holds a->x, each rounded, within `units` roundoffs of f32 of it and of `terms`, the size of what was added
 * up; its guards are whole. */
static void check(const char *what, const array *a, double units, double terms)
{
    size_t size = mc_dtype_bytes(a->type);
    for (size_t i = 0; i < GUARD * size; i++) {
        assert_int_equal(a->bytes[i], 0xfb);
        assert_int_equal(a->bytes[(size_t)(GUARD + a->n) * size + i], 0xfb);
    }
    double unit = a->type == MC_F32 ? 0 : a->type == MC_BF16 ? 0x1p-8 : 0x1p-11;
    for (int64_t i = 0; i < a->n; i++) {
        double got = get(a, i), want = a->x[i];
        double tol =
            unit * 1.001 * fabs(want) + units * 0x1p-24 * (fabs(want) + terms) + (a->type == MC_F16 ? 0x1p-25 : 0);
        bool right = isnan(want) ? isnan(got) : got == rounded(a->type, a->x[i]) || fabs(got - want) <= tol;
        if (!right) {
            fail_msg("%s[%lld] is %.9g, want %.9g within %.3g", what, (long long)i, got, want, tol);
        }
    }
}

static float wave(int64_t i)
{
    return sinf((float)i * 0.7f) * (1.0f + (float)(i % 13));
}
static float other_wave(int64_t i)
{
    return cosf((float)i * 1.3f) * 0.5f;
}
static float small_square(int64_t i)
{
    return 0.01f + 0.001f * (float)(i % 29);
}

static void begin(int order)
{
    ly_on_cpu_reset();
    ly_on_cpu_set_order(orders[order], 5);
    races_reset(0);
}

static void end(int error, const char *what)
{
    if (error || ly_on_cpu_error()[0] || ly_on_cpu_n_launches() == 0 || races_seen()) {
        fail_msg("%s: error %d, %d launches: %s%s", what, error, ly_on_cpu_n_launches(), ly_on_cpu_error(),
                 races_first());
    }
}

static mc_pool *pool;
static ly_ctx cpu(void)
{
    ly_ctx cx = {.pool = pool};
    assert_int_equal(ly_ops_get("cpu", &cx.ops), MC_OK);
    return cx;
}

/* Sizes around whole vectors and blocks. */
static const int64_t sizes[] = {1, 7, 8, 255, 256, 1029, 4096, MAX_N};
enum { N_SIZES = sizeof sizes / sizeof *sizes };

static void casts(void **state)
{
    (void)state;
    static array x, out;
    for (int from = 0; from < N_TYPES; from++) {
        for (int to = 0; to < N_TYPES; to++) {
            for (int c = 0; c < N_SIZES * N_ORDERS; c++) {
                ly_cast a = {.scale = c % 2 ? 1.0f : 0.37f, .accumulate = c % 3 == 1};
                array_init(&x, types[from], sizes[c / N_ORDERS], wave);
                array_init(&out, types[to], sizes[c / N_ORDERS], a.accumulate ? other_wave : NULL);
                if (x.n > 6) { /* not numbers, and too large for f16 */
                    put(&x, 1, x.x[1] = INFINITY);
                    put(&x, 2, x.x[2] = -INFINITY);
                    put(&x, 3, x.x[3] = NAN);
                    x.x[4] = rounded(x.type, types[from] == MC_F16 ? 60000.0f : 3e5f);
                    put(&x, 4, x.x[4]);
                }
                a.x = view(&x);
                a.out = view(&out);
                ly_ctx cx = {0};
                begin(c % N_ORDERS);
                end(ly_k_cast(&cx, &a), "cast");
                for (int64_t i = 0; i < x.n; i++) {
                    out.x[i] = x.x[i] * a.scale + (a.accumulate ? out.x[i] : 0);
                }
                check("cast", &out, 2, a.accumulate ? 8 : 0);
            }
        }
    }
}

static void fills(void **state)
{
    (void)state;
    static array x;
    for (int t = 0; t < N_TYPES; t++) {
        for (int c = 0; c < N_SIZES; c++) {
            array_init(&x, types[t], sizes[c], NULL);
            ly_fill a = {.x = view(&x), .value = -1.2345678f};
            ly_ctx cx = {0};
            begin(c % N_ORDERS);
            end(ly_k_fill(&cx, &a), "fill");
            for (int64_t i = 0; i < x.n; i++) {
                x.x[i] = a.value;
            }
            check("fill", &x, 0, 0);
        }
    }
}

/* Two segments with padding before, between and after, where there is room. */
static int make_segments(int64_t n, ly_segment out[2])
{
    if (n < 16) {
        out[0] = (ly_segment){0, n, 1.0f, 1.0f, 1.0f};
        return 1;
    }
    out[0] = (ly_segment){1, n / 3, 1.0f, 0.0f, 1.0f};
    out[1] = (ly_segment){n / 3 + 2, n - 1, 0.5f, 1.0f, 1.0f};
    return 2;
}

/* Elements that no segment holds keep what they were: for the model, NaN. */
static void model_of(const array *param, const ly_segment *segments, int n_segments, array *model)
{
    for (int s = 0; s < n_segments; s++) {
        for (int64_t i = segments[s].begin; i < segments[s].end; i++) {
            model->x[i] = param->x[i];
        }
    }
}

static void optimizer_case(bool adam, mc_dtype grad_type, int model_type, int64_t n, int order)
{
    static array param, grad, m, v, model;
    ly_segment segments[2];
    bool momentum = n % 2 == 0;
    array_init(&param, MC_F32, n, wave);
    array_init(&grad, grad_type, n, other_wave);
    array_init(&m, MC_F32, n, other_wave);
    array_init(&v, MC_F32, n, small_square);
    array_init(&model, types[model_type], n, NULL);
    ly_adamw w = {.param = view(&param),
                  .grad = view(&grad),
                  .m = view(&m),
                  .v = view(&v),
                  .segments = segments,
                  .n_segments = make_segments(n, segments),
                  .lr = 0.01f,
                  .beta1 = 0.9f,
                  .beta2 = 0.95f,
                  .eps = 1e-8f,
                  .weight_decay = 0.1f,
                  .grad_scale = 0.5f,
                  .step = 3,
                  .clear_grad = order == 0};
    ly_sgd s = {.param = w.param,
                .grad = w.grad,
                .segments = segments,
                .n_segments = w.n_segments,
                .lr = 0.01f,
                .momentum = momentum ? 0.9f : 0.0f,
                .weight_decay = 0.1f,
                .grad_scale = 0.5f};
    if (momentum) {
        s.m = w.m;
    }
    if (model_type > 0) {
        w.model = s.model = view(&model);
    }
    ly_ctx cx = {0}, host = cpu();
    begin(order);
    end(adam ? ly_k_adamw(&cx, &w) : ly_k_sgd(&cx, &s), adam ? "adamw" : "sgd");
    w.param = s.param = plain(&param);
    w.grad = s.grad = plain(&grad);
    w.m = plain(&m);
    w.v = plain(&v);
    if (momentum) {
        s.m = w.m;
    }
    w.model = s.model = (mc_tensor){0};
    assert_int_equal(adam ? host.ops->adamw(&host, &w) : host.ops->sgd(&host, &s), MC_OK);
    if (model_type > 0) {
        model_of(&param, segments, w.n_segments, &model);
        check("model", &model, 8, 1);
    }
    check("param", &param, 8, 1);
    check("grad", &grad, 0, 0);
    check("m", &m, 4, 1);
    check("v", &v, 4, 0.1);
}

static void optimizers(void **state)
{
    (void)state;
    for (int g = 0; g < 2; g++) {
        for (int model = 0; model < N_TYPES; model++) {
            for (int c = 0; c < N_SIZES; c++) {
                optimizer_case(true, types[g], model, sizes[c], c % N_ORDERS);
                optimizer_case(false, types[g], model, sizes[c], c % N_ORDERS);
            }
        }
    }
}

static int32_t raw_bits(const array *a, int64_t i)
{
    int32_t bits = 0;
    size_t size = mc_dtype_bytes(a->type);
    memcpy(&bits, a->bytes + (size_t)(GUARD + i) * size, size);
    return bits;
}

/* States of 16 bits. Both sides round the same f32 numbers by the same words, but for those numbers' own last bits:
 * where these fall on either side of a rounding, the results are neighbours. */
static void mixed_case(mc_dtype param_type, mc_dtype m_type, mc_dtype v_type, int64_t n, int order)
{
    static array param[2], grad[2], m[2], v[2];
    ly_segment segments[2];
    int64_t others = 0, total = 0;
    int n_segments = make_segments(n, segments);
    segments[0].tensor = 5;
    segments[0].global0 = 3;
    segments[n_segments - 1].tensor = 6; /* columns [2, 9) of rows of 20 */
    segments[n_segments - 1].cols = 7;
    segments[n_segments - 1].gap = 13;
    segments[n_segments - 1].col0 = 4;
    segments[n_segments - 1].global0 = 6;
    for (int device = 0; device < 2; device++) {
        array_init(&param[device], param_type, n, wave);
        array_init(&grad[device], MC_BF16, n, other_wave);
        array_init(&m[device], m_type, n, wave); /* no tie with the gradient */
        array_init(&v[device], v_type, n, small_square);
        ly_adamw w = {.param = view(&param[device]),
                      .grad = view(&grad[device]),
                      .m = view(&m[device]),
                      .v = view(&v[device]),
                      .segments = segments,
                      .n_segments = n_segments,
                      .seed = 11,
                      .lr = 0.01f,
                      .beta1 = 0.9f,
                      .beta2 = 0.95f,
                      .eps = 1e-8f,
                      .weight_decay = 0.1f,
                      .grad_scale = 0.5f,
                      .step = 3,
                      .clear_grad = order == 0};
        ly_ctx cx = {0}, host = cpu();
        if (device) {
            begin(order);
            end(ly_k_adamw(&cx, &w), "adamw");
        } else {
            assert_int_equal(host.ops->adamw(&host, &w), MC_OK);
        }
    }
    array *const all[3] = {param, m, v};
    for (int k = 0; k < 3; k++) {
        for (int64_t i = 0; i < n; i++) {
            int32_t a = raw_bits(&all[k][0], i), b = raw_bits(&all[k][1], i);
            double want = get(&all[k][0], i), got = get(&all[k][1], i);
            bool same = a == b ||
                        (all[k][0].type == MC_F32 ? fabs(got - want) <= 0x1p-21 * (fabs(want) + 1.0) : abs(a - b) <= 1);
            if (!same) {
                fail_msg("operand %d, element %lld is %.9g, want %.9g", k, (long long)i, got, want);
            }
            others += a != b && all[k][0].type != MC_F32;
            total++;
        }
    }
    assert_true(others * 200 <= total);
    for (int64_t i = 0; i < n; i++) {
        assert_int_equal(raw_bits(&grad[0], i), raw_bits(&grad[1], i));
    }
}

static void optimizers_of_16_bits(void **state)
{
    (void)state;
    for (int c = 0; c < N_SIZES; c++) {
        mixed_case(MC_BF16, MC_BF16, MC_BF16, sizes[c], c % N_ORDERS);
        mixed_case(MC_F32, MC_F16, MC_BF16, sizes[c], c % N_ORDERS);
        mixed_case(MC_BF16, MC_F32, MC_F16, sizes[c], c % N_ORDERS);
    }
}

static void xent_case(mc_dtype type, int64_t n_cols, int64_t valid, int order)
{
    enum { R = 5 };
    static array logits, losses, weights, dlogits, stats;
    static int32_t targets[R];
    array_init(&logits, MC_F32, R * n_cols, wave);
    array_init(&losses, MC_F32, R, NULL);
    array_init(&weights, MC_F32, R, small_square);
    array_init(&dlogits, type, R * n_cols, NULL);
    array_init(&stats, MC_F32, 3 * R, NULL);
    for (int r = 0; r < R; r++) {
        targets[r] = (int32_t)((r * 31) % valid);
    }
    ly_ctx cx = {0}, host = cpu();
    mc_tensor wanted = mc_tensor_2d(logits.x, MC_F32, R, n_cols), given = view(&logits);
    given = mc_tensor_2d(given.data, MC_F32, R, n_cols);
    mc_tensor seen = mc_tensor_1d(targets, MC_I32, R);
    ly_xent_stats s = {
        .logits = wanted, .targets = seen, .stats = mc_tensor_2d(stats.x, MC_F32, R, 3), .vocab_valid = valid};
    assert_int_equal(host.ops->xent_stats(&host, &s), MC_OK);
    mc_tensor all = mc_tensor_3d(stats.x, MC_F32, 1, R, 3), out = view(&dlogits);
    ly_xent_grad g = {.logits = given,
                      .targets = seen,
                      .all_stats = all,
                      .losses = view(&losses),
                      .weights = view(&weights),
                      .dlogits = mc_tensor_2d(out.data, type, R, n_cols),
                      .vocab_valid = valid,
                      .scale = 3.0f,
                      .write_grad = 1};
    begin(order);
    end(ly_k_xent_grad(&cx, &g), "xent_grad");
    check("logits, which stay", &logits, 0, 0);
    g.logits = wanted;
    g.losses = plain(&losses);
    g.dlogits = (mc_tensor){0};
    assert_int_equal(host.ops->xent_grad(&host, &g), MC_OK);
    memcpy(dlogits.x, logits.x, sizeof dlogits.x);
    check("dlogits", &dlogits, 64, 0);
    check("losses", &losses, 64, 0);
}

static void xent_gradients(void **state)
{
    (void)state;
    static const int64_t widths[][2] = {{1, 1}, {37, 37}, {64, 50}, {1000, 999}};
    for (int t = 0; t < N_TYPES; t++) {
        for (size_t w = 0; w < sizeof widths / sizeof *widths; w++) {
            for (int order = 0; order < N_ORDERS; order++) {
                xent_case(types[t], widths[w][0], widths[w][1], order);
            }
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(casts), cmocka_unit_test(fills), cmocka_unit_test(optimizers),
                                       cmocka_unit_test(optimizers_of_16_bits), cmocka_unit_test(xent_gradients)};
    if (mc_pool_create(1, LY_POOL_SCRATCH_BYTES, &pool) != MC_OK) {
        return 1;
    }
    int failed = cmocka_run_group_tests_name("kernel_types", tests, NULL, NULL);
    mc_pool_destroy(pool);
    return failed;
}
