/* AdamW with states of 16 bits: the f32 step's numbers, rounded as the contract says, wherever the elements stand. */
#include <math.h>
#include <string.h>

#include "megac/base/half.h"
#include "megac/base/rng.h"
#include "tests/layers/op_harness.h"

enum { SEED = 77, STEP = 5 };

/* A (rows, cols) part of a (rows, all_cols) tensor from column `col0` on, flat from element `from` to its end, at `at`
 * of the slab: as a rank has it that holds columns, and of those only its share. */
typedef struct part {
    int64_t at, rows, cols, all_cols, col0, from;
    uint32_t tensor;
} part;

static const part PARTS[] = {{0, 7, 13, 13, 0, 0, 3}, {96, 9, 10, 37, 20, 4, 0x123456}, {200, 1, 9000, 9000, 0, 11, 9}};

static int64_t part_elems(const part *p)
{
    return p->rows * p->cols - p->from;
}

/* The global index of element i of a part, the slow and sure way. */
static uint64_t global_of(const part *p, int64_t i)
{
    int64_t flat = p->from + i, row = flat / p->cols, col = flat % p->cols;
    return (uint64_t)(row * p->all_cols + p->col0 + col);
}

static ly_segment segment_of(const part *p)
{
    return (ly_segment){
        .begin = p->at,
        .end = p->at + part_elems(p),
        .lr_mult = 1,
        .decay_mult = 1,
        .tensor = p->tensor,
        .global0 = (int64_t)global_of(p, 0),
        .gap = p->all_cols - p->cols,
        .cols = p->cols,
        .col0 = p->from % p->cols,
    };
}

static uint16_t narrow(mc_dtype type, float x)
{
    return type == MC_BF16 ? mc_bf16_from_f32(x) : mc_f16_from_f32(x);
}

static float widen(mc_dtype type, uint16_t x)
{
    return type == MC_BF16 ? mc_f32_from_bf16(x) : mc_f32_from_f16(x);
}

/* One operand in two forms: `wide` f32 with the values that `x`, of `type`, holds. */
typedef struct both {
    mc_dtype type;
    float *wide;
    uint16_t *x;
} both;

static both both_of(mc_dtype type, int64_t n, int salt, float low, float high)
{
    both b = {type, lt_rand(n, salt, low, high), NULL};
    if (type != MC_F32) {
        b.x = lt_typed(type, n);
        for (int64_t i = 0; i < n; i++) {
            b.x[i] = narrow(type, b.wide[i]);
            b.wide[i] = widen(type, b.x[i]);
        }
    }
    return b;
}

static mc_tensor narrow_view(const both *b, int64_t n)
{
    return mc_tensor_1d(b->x ? (void *)b->x : (void *)b->wide, b->type, n);
}

/* What the wide step left, against the narrow one. */
static void check(const both *wide, const both *got, mc_rng_kind kind)
{
    for (size_t p = 0; p < sizeof PARTS / sizeof *PARTS; p++) {
        for (int64_t i = 0; i < part_elems(&PARTS[p]); i++) {
            uint64_t e = global_of(&PARTS[p], i);
            int64_t at = PARTS[p].at + i;
            uint32_t word = mc_rng_bits(SEED, mc_rng_stream(kind, PARTS[p].tensor), STEP, e / 4).w[e % 4];
            if (got->type == MC_F32) {
                assert_memory_equal(&wide->wide[at], &got->wide[at], 4);
            } else if (got->type == MC_BF16) {
                assert_int_equal(got->x[at], mc_bf16_stochastic(wide->wide[at], word));
            } else {
                assert_int_equal(got->x[at], mc_f16_from_f32(wide->wide[at]));
            }
        }
    }
}

typedef struct types {
    mc_dtype param, m, v, grad;
} types;

static void step_body(lt_run *run, const void *arg)
{
    const types *t = arg;
    const part *last = &PARTS[sizeof PARTS / sizeof *PARTS - 1];
    int64_t n = last->at + part_elems(last);
    ly_segment segments[sizeof PARTS / sizeof *PARTS];
    for (size_t p = 0; p < sizeof PARTS / sizeof *PARTS; p++) {
        segments[p] = segment_of(&PARTS[p]);
    }
    both param = both_of(t->param, n, 1, -1.0f, 1.0f), m = both_of(t->m, n, 2, -0.5f, 0.5f);
    both v = both_of(t->v, n, 3, 0.0f, 0.5f), grad = both_of(t->grad, n, 4, -1.0f, 1.0f);
    ly_adamw op = {.segments = segments,
                   .n_segments = sizeof PARTS / sizeof *PARTS,
                   .seed = SEED,
                   .lr = 0.01f,
                   .beta1 = 0.9f,
                   .beta2 = 0.95f,
                   .eps = 1e-8f,
                   .weight_decay = 0.1f,
                   .grad_scale = 0.5f,
                   .step = STEP};
    both wide[3] = {param, m, v}; /* f32 operands are worked on in place: the wide step gets copies */
    for (int i = 0; i < 3; i++) {
        wide[i].wide = lt_copy(wide[i].wide, n);
    }
    op.param = narrow_view(&param, n);
    op.m = narrow_view(&m, n);
    op.v = narrow_view(&v, n);
    op.grad = narrow_view(&grad, n);
    assert_int_equal(run->cx.ops->adamw(&run->cx, &op), MC_OK);
    op.param = lt_1d(wide[0].wide, n);
    op.m = lt_1d(wide[1].wide, n);
    op.v = lt_1d(wide[2].wide, n);
    op.grad = lt_1d(grad.wide, n);
    assert_int_equal(run->cx.ops->adamw(&run->cx, &op), MC_OK);
    check(&wide[0], &param, MC_RNG_ROUND_PARAM);
    check(&wide[1], &m, MC_RNG_ROUND_M);
    check(&wide[2], &v, MC_RNG_ROUND_V);
}

static void test_steps(void **state)
{
    static const types cases[] = {
        {MC_BF16, MC_BF16, MC_BF16, MC_BF16}, {MC_F32, MC_BF16, MC_BF16, MC_F32}, {MC_F32, MC_F16, MC_BF16, MC_F32},
        {MC_BF16, MC_F32, MC_F16, MC_BF16},   {MC_F32, MC_BF16, MC_F32, MC_BF16},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        lt_for_all(step_body, &cases[i]);
    }
}

/* The mean of many roundings is the number itself; each is one of its two neighbours; what bf16 holds is kept. */
static void test_mean(void **state)
{
    static const float values[] = {1.0f, 1.001f, -3.14159f, 1e-30f, 6.1e4f, -1.0039f};
    (void)state;
    for (size_t k = 0; k < sizeof values / sizeof *values; k++) {
        double sum = 0, ulp = ldexp(1.0, ilogb((double)values[k]) - 7);
        enum { N = 1 << 16 };
        for (uint32_t i = 0; i < N; i++) {
            double got = (double)mc_f32_from_bf16(mc_bf16_stochastic(values[k], mc_rng_bits(1, 2, 3, i).w[0]));
            assert_true(fabs(got - (double)values[k]) < ulp);
            sum += got;
        }
        assert_true(fabs(sum / N - (double)values[k]) <= ulp * 4 * 0.5 / sqrt(N)); /* four standard deviations */
    }
    assert_int_equal(mc_bf16_stochastic(INFINITY, 0xffff), mc_bf16_from_f32(INFINITY));
    assert_true(isnan(mc_f32_from_bf16(mc_bf16_stochastic(NAN, 0xffff))));
    assert_int_equal(mc_bf16_stochastic(0.0f, 0xffff), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_steps), cmocka_unit_test(test_mean)};
    return cmocka_run_group_tests_name("rounding", tests, NULL, NULL);
}
