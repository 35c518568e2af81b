/* The vector functions of one variant, against the C library in double over the whole range of float. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "layers/cpu/isa.h"
#include "layers/cpu/philox.h"
#include "layers/cpu/typed.h"
#include "layers/cpu/vmath.h"
#include "tests/layers/op_harness.h"

enum { EXP, TANH, ERF, SIGMOID, LOG, N_FUNCTIONS };
static const char *const NAMES[N_FUNCTIONS] = {"exp", "tanh", "erf", "sigmoid", "log"};

static double reference(int f, double x)
{
    switch (f) {
    case EXP:
        return exp(x);
    case TANH:
        return tanh(x);
    case ERF:
        return erf(x);
    case SIGMOID:
        return 1.0 / (1.0 + exp(-x));
    default:
        return fabs(x) < 1.17549435e-38 && !(x < 0.0) ? -INFINITY : log(x); /* denormals count as 0 */
    }
}

/* Units in the last place of `want`; below the normal range any denormal or 0 will do. */
static double ulps(float got, double want)
{
    if (isnan(want)) {
        return isnan(got) ? 0.0 : INFINITY;
    }
    if (isinf((float)want)) {
        return (isinf(got) || fabsf(got) >= 3.4028e38f) && (got < 0.0f) == (want < 0.0) ? 0.0 : INFINITY;
    }
    if (fabs(want) < 1.1755e-38) {
        return fabs((double)got - want) <= 1.1755e-38 ? 0.0 : INFINITY;
    }
    int e;
    frexp(want, &e);
    return fabs((double)got - want) / ldexp(1.0, e - 24);
}

static void check_16(const float *x, double *worst)
{
    float y[N_FUNCTIONS][LY_LANES];
    ly_vf v = ly_vload(x);
    ly_vstore(y[EXP], ly_vexp(v));
    ly_vstore(y[TANH], ly_vtanh(v));
    ly_vstore(y[ERF], ly_verf(v));
    ly_vstore(y[SIGMOID], ly_vsigmoid(v));
    ly_vstore(y[LOG], ly_vlog(v));
    for (int f = 0; f < N_FUNCTIONS; f++) {
        for (int i = 0; i < LY_LANES; i++) {
            double e = ulps(y[f][i], reference(f, (double)x[i]));
            worst[f] = e > worst[f] ? e : worst[f];
            if (!(e <= 2.5)) {
                fail_msg("%s(%.9g) is %.9g, %g units off", NAMES[f], (double)x[i], (double)y[f][i], e);
            }
        }
    }
}

static void test_functions(void **state)
{
    const uint64_t stride = 997; /* odd: every 997th float of all 2^32, infinities and NaN included */
    double worst[N_FUNCTIONS] = {0};
    float x[LY_LANES];
    (void)state;
    for (uint64_t bits = 0; bits < (1ull << 32); bits += stride * LY_LANES) {
        for (uint32_t i = 0; i < LY_LANES; i++) {
            uint32_t u = (uint32_t)(bits + stride * i);
            memcpy(&x[i], &u, sizeof u);
        }
        check_16(x, worst);
    }
    static const float special[LY_LANES] = {0.0f,  -0.0f,  1.0f,    -1.0f,   INFINITY, -INFINITY, NAN,  88.8f,
                                            88.7f, -87.4f, -103.0f, -104.5f, 0.625f,   0.92f,     4.0f, 3e38f};
    check_16(special, worst);
    for (int f = 0; f < N_FUNCTIONS; f++) {
        print_message("%s: %.2f units in the last place\n", NAMES[f], worst[f]);
        assert_true(worst[f] > 0.0);
    }
}

static void test_folds_and_tails(void **state)
{
    (void)state;
    float x[LY_LANES], out[2 * LY_LANES];
    for (int i = 0; i < LY_LANES; i++) {
        x[i] = (float)(i * i) - 40.5f;
    }
    for (int64_t n = 1; n <= LY_LANES; n++) {
        float *exact = lt_rand(n, 3, -1.0f, 1.0f); /* a read past it would meet a guard, which is NaN */
        ly_vf v = ly_vload_n(exact, n);
        float sum = ly_vsum(v);
        assert_false(isnan(sum));
        for (int i = 0; i < 2 * LY_LANES; i++) {
            out[i] = 7.0f;
        }
        ly_vstore_n(out + 3, ly_vload(x), n);
        for (int i = 0; i < 2 * LY_LANES; i++) {
            assert_true(out[i] == (i >= 3 && i < 3 + n ? x[i - 3] : 7.0f));
        }
    }
    assert_true(ly_vsum(ly_vload(x)) == 1240.0f - 16.0f * 40.5f && ly_vmaxlane(ly_vload(x)) == 184.5f);
    /* Distance 8, 4, 2, 1: lanes 0 and 8 cancel before anything small is added. */
    float tree[LY_LANES] = {1e8f, 1.0f, 0, 0, 0, 0, 0, 0, -1e8f};
    assert_true(ly_vsum(ly_vload(tree)) == 1.0f);
}

static void test_philox_matches_scalar(void **state)
{
    static const uint64_t firsts[] = {0, 1, 2, 3, 5, 63, 0x3fffffff8ull, 0x3fffffffdull, 0xfffffffff01ull};
    uint32_t buf[400 + 2 * LY_PHILOX_STEP];
    (void)state;
    for (size_t f = 0; f < sizeof firsts / sizeof *firsts; f++) {
        for (int64_t count = 1; count <= 400; count += 19) {
            uint64_t sample = 0x123456789abull * f;
            const uint32_t *w = ly_philox_words(buf, 7, 0x05000003u, sample, firsts[f], count);
            for (int64_t i = 0; i < count; i++) {
                uint64_t e = firsts[f] + (uint64_t)i;
                assert_int_equal(w[i], mc_rng_bits(7, 0x05000003u, sample, e / 4).w[e % 4]);
            }
        }
    }
}

static void check_rounding(const float *x)
{
    uint16_t bf16[LY_LANES], f16[LY_LANES];
    ly_vstore_bf16(bf16, ly_vload(x));
    ly_vstore_f16(f16, ly_vload(x));
    for (int i = 0; i < LY_LANES; i++) {
        if (bf16[i] != mc_bf16_from_f32(x[i]) || f16[i] != mc_f16_from_f32(x[i])) {
            fail_msg("%.9g is rounded to bf16 0x%04x and f16 0x%04x, expected 0x%04x and 0x%04x", (double)x[i], bf16[i],
                     f16[i], mc_bf16_from_f32(x[i]), mc_f16_from_f32(x[i]));
        }
    }
}

/* Every 16-bit number is widened, and numbers from all of f32, with every pattern of the bits that rounding looks at,
 * are rounded, as by the scalar conversions. */
static void test_16_bits(void **state)
{
    (void)state;
    for (uint32_t first = 0; first < 65536; first += LY_LANES) {
        uint16_t h[LY_LANES];
        float got[2][LY_LANES], want[2][LY_LANES];
        for (uint32_t i = 0; i < LY_LANES; i++) {
            h[i] = (uint16_t)(first + i);
            want[0][i] = mc_f32_from_bf16(h[i]);
            want[1][i] = mc_f32_from_f16(h[i]);
        }
        ly_vstore(got[0], ly_vload_bf16(h));
        ly_vstore(got[1], ly_vload_f16(h));
        for (int t = 0; t < 2; t++) {
            for (int i = 0; i < LY_LANES; i++) { /* a signalling NaN may come out quiet */
                assert_true(memcmp(&got[t][i], &want[t][i], 4) == 0 || (isnan(got[t][i]) && isnan(want[t][i])));
            }
        }
        /* Around each bf16 number, and the ties between two of them and between two f16 numbers. */
        static const uint32_t low[LY_LANES] = {0,      1,      0x7fff, 0x8000, 0x8001, 0xffff, 0x0fff, 0x1000,
                                               0x1001, 0x2fff, 0x3000, 0x3001, 0x4000, 0xc000, 0xf000, 0x0800};
        for (uint32_t i = 0; i < LY_LANES; i++) {
            float x[LY_LANES];
            for (uint32_t k = 0; k < LY_LANES; k++) {
                uint32_t bits = (first + i) << 16 | low[k];
                memcpy(&x[k], &bits, 4);
            }
            check_rounding(x);
        }
    }
    for (uint64_t bits = 0; bits < (1ull << 32); bits += 997 * LY_LANES) {
        float x[LY_LANES];
        for (uint32_t i = 0; i < LY_LANES; i++) {
            uint32_t u = (uint32_t)(bits + 997 * i);
            memcpy(&x[i], &u, sizeof u);
        }
        check_rounding(x);
    }
}

static void test_typed_tails(void **state)
{
    (void)state;
    for (mc_dtype type = MC_F32; type <= MC_F16; type++) {
        if (type == MC_F64) {
            continue;
        }
        for (int64_t n = 1; n <= LY_LANES + 1; n++) {
            unsigned char memory[4 * 40];
            float x[LY_LANES], y[LY_LANES];
            int64_t kept = n < LY_LANES ? n : LY_LANES, width = type == MC_F32 ? 4 : 2;
            for (int i = 0; i < LY_LANES; i++) {
                x[i] = (float)i - 7.5f;
            }
            memset(memory, 0xff, sizeof memory); /* NaN of any type */
            ly_tstore(type, ly_elem_out(type, memory, 3), ly_vload(x), n);
            for (int64_t i = 0; i < (int64_t)sizeof memory; i++) {
                assert_true((i >= 3 * width && i < (3 + kept) * width) || memory[i] == 0xff);
            }
            ly_vstore(y, ly_tload(type, ly_elem(type, memory, 3), n));
            for (int64_t i = 0; i < LY_LANES; i++) {
                assert_true(y[i] == (i < kept ? x[i] : 0.0f));
            }
        }
    }
    assert_null(ly_elem(MC_BF16, NULL, 5));
}

int lt_simd_tests(void);

int lt_simd_tests(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_functions),
        cmocka_unit_test(test_folds_and_tails),
        cmocka_unit_test(test_16_bits),
        cmocka_unit_test(test_typed_tails),
        cmocka_unit_test(test_philox_matches_scalar),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
