#include <math.h>
#include <string.h>

#include "tests/layers/op_harness.h"

typedef struct rope_case {
    int64_t rows, seq_len, pos0, head, half; /* head size H; rotated elements 2 * half */
    int interleaved;
} rope_case;

enum { G = 2, J = 3, POSITIONS = 64 };

static void rope_body(lt_run *run, const void *arg)
{
    const rope_case *t = arg;
    int64_t row = G * (J + 1) * t->head + 3, n = t->rows * row;
    float *x = lt_rand(n, 1, -1.0f, 1.0f), *x0 = lt_copy(x, n);
    float *cos_t = lt_f32(POSITIONS * t->half), *sin_t = lt_f32(POSITIONS * t->half);
    for (int64_t i = 0; i < POSITIONS * t->half; i++) {
        double angle = (double)(i / t->half) * pow(10000.0, -(double)(i % t->half) / (double)t->half);
        cos_t[i] = (float)cos(angle);
        sin_t[i] = (float)sin(angle);
    }
    ly_rope op = {.x = {.data = x,
                        .dtype = MC_F32,
                        .n_dims = 4,
                        .dims = {t->rows, G, J, t->head},
                        .strides = {row, (J + 1) * t->head, t->head, 1}},
                  .cos = lt_2d(cos_t, POSITIONS, t->half),
                  .sin = lt_2d(sin_t, POSITIONS, t->half),
                  .seq_len = t->seq_len,
                  .pos0 = t->pos0,
                  .interleaved = t->interleaved};
    assert_int_equal(run->cx.ops->rope(&run->cx, &op), MC_OK);
    lt_output(run, x, n * 4);
    float *want = lt_copy(x0, n); /* what is not rotated must stay, bit for bit */
    for (int64_t r = 0; r < t->rows; r++) {
        for (int64_t h = 0; h < G * J; h++) {
            int64_t base = r * row + (h / J * (J + 1) + h % J) * t->head;
            for (int64_t i = 0; i < t->half; i++) {
                int64_t at = (t->pos0 + r % t->seq_len) * t->half + i;
                int64_t u = base + (t->interleaved ? 2 * i : i), v = base + (t->interleaved ? 2 * i + 1 : i + t->half);
                double c = (double)cos_t[at], s = (double)sin_t[at];
                lt_close("x", u, x[u], (double)x0[u] * c - (double)x0[v] * s, 1.2e-7, 1.5);
                lt_close("x", v, x[v], (double)x0[v] * c + (double)x0[u] * s, 1.2e-7, 1.5);
                want[u] = x[u];
                want[v] = x[v];
            }
        }
    }
    assert_memory_equal(x, want, (size_t)n * 4);
    /* The inverse rotates back; being orthogonal and linear, it is also the backward. */
    op.inverse = true;
    assert_int_equal(run->cx.ops->rope(&run->cx, &op), MC_OK);
    for (int64_t i = 0; i < n; i++) {
        lt_close("back", i, x[i], (double)x0[i], 4e-7, 1.0);
    }
}

static void test_rope(void **state)
{
    static const rope_case cases[] = {
        {1, 1, 0, 2, 1, 0},     {7, 3, 5, 10, 3, 0}, {40, 20, 0, 64, 32, 0}, {40, 20, 44, 64, 16, 0},
        {12, 12, 1, 80, 40, 0}, {7, 3, 5, 10, 3, 1}, {40, 20, 0, 64, 32, 1}, {9, 64, 0, 34, 17, 1},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        lt_for_all(rope_body, &cases[i]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_rope)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
