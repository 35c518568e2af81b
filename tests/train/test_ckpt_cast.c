/* Element conversions on load, each value of the 16-bit types, against the definitions of the formats. */
#include <math.h>

#include "megac/base/rng.h"
#include "megac/train/checkpoint/ckpt_impl.h"
#include "tests/unit.h"

/* Value of a binary floating-point number with `e` exponent bits and `m` mantissa bits, from its definition. */
static double decode(uint32_t v, int e, int m)
{
    int bias = (1 << (e - 1)) - 1, exponent = (int)(v >> m) & ((1 << e) - 1);
    double mantissa = (double)(v & ((1u << m) - 1)) / (double)(1u << m), sign = v >> (e + m) & 1 ? -1 : 1;
    if (exponent == (1 << e) - 1) {
        return mantissa > 0 ? NAN : sign * INFINITY;
    }
    return sign * (exponent == 0 ? ldexp(mantissa, 1 - bias) : ldexp(1 + mantissa, exponent - bias));
}

static const struct {
    mt_st_dtype st;
    mc_dtype mc;
    int e, m;
} halves[] = {{MT_ST_F16, MC_F16, 5, 10}, {MT_ST_BF16, MC_BF16, 8, 7}};

static bool same(double a, double b)
{
    return isnan(a) ? isnan(b) : a == b && signbit(a) == signbit(b);
}

/* All 65,536 values to float and double and back. */
static void test_every_value(void **state)
{
    (void)state;
    for (int h = 0; h < 2; h++) {
        for (uint32_t i = 0; i < 65536; i++) {
            uint16_t v = (uint16_t)i, back32 = 1, back64 = 1;
            float f;
            double d, want = decode(i, halves[h].e, halves[h].m);
            mt_i_cast(halves[h].st, MC_F32)(&f, &v, 1);
            mt_i_cast(halves[h].st, MC_F64)(&d, &v, 1);
            assert_true(same(f, want) && same(d, want));
            mt_i_cast(MT_ST_F32, halves[h].mc)(&back32, &f, 1);
            mt_i_cast(MT_ST_F64, halves[h].mc)(&back64, &d, 1);
            if (isnan(want)) {
                assert_true(isnan(decode(back32, halves[h].e, halves[h].m)));
            } else {
                assert_int_equal(back32, i);
                assert_int_equal(back64, i);
            }
        }
    }
}

/* A float between two neighbours goes to the nearer, a tie to the even one. */
static void test_rounding(void **state)
{
    (void)state;
    for (int h = 0; h < 2; h++) {
        for (uint32_t i = 0; i < 0x7fff; i++) {
            double a = decode(i, halves[h].e, halves[h].m), b = decode(i + 1, halves[h].e, halves[h].m);
            if (isnan(a) || isnan(b) || isinf(a)) {
                break;
            }
            if (isinf(b)) {
                b = a + (a - decode(i - 1, halves[h].e, halves[h].m));
                if ((double)(float)b != b) {
                    break; /* beyond float: nothing rounds there */
                }
            }
            double middle = (a + b) / 2;
            const struct {
                float x;
                uint32_t want;
            } rows[] = {
                {(float)middle, i + (i & 1)},
                {nextafterf((float)middle, 0), i},
                {nextafterf((float)middle, INFINITY), i + 1},
            };
            for (int k = 0; k < 3; k++) {
                uint16_t v, negative;
                float minus = -rows[k].x;
                mt_i_cast(MT_ST_F32, halves[h].mc)(&v, &rows[k].x, 1);
                mt_i_cast(MT_ST_F32, halves[h].mc)(&negative, &minus, 1);
                assert_int_equal(v, rows[k].want);
                assert_int_equal(negative, rows[k].want | 0x8000);
            }
        }
    }
}

static void test_table(void **state)
{
    (void)state;
    static const mt_st_dtype from[] = {MT_ST_F32, MT_ST_F64, MT_ST_F16, MT_ST_BF16};
    static const mc_dtype to[] = {MC_F32, MC_F64, MC_F16, MC_BF16};
    for (int i = 0; i < 4; i++) {
        for (int k = 0; k < 4; k++) {
            assert_non_null(mt_i_cast(from[i], to[k]));
        }
        assert_null(mt_i_cast(from[i], MC_I32));
    }
    assert_non_null(mt_i_cast(MT_ST_I32, MC_I32));
    assert_non_null(mt_i_cast(MT_ST_U8, MC_U8));
    assert_null(mt_i_cast(MT_ST_I64, MC_F32));
    uint16_t half[3] = {0x3c00, 0xc000, 0x7bff}, brain[3], back[3];
    mt_i_cast(MT_ST_F16, MC_BF16)(brain, half, 3); /* 1, -2, 65504 -> 65536 */
    assert_int_equal(brain[0], 0x3f80);
    assert_int_equal(brain[1], 0xc000);
    assert_int_equal(brain[2], 0x4780);
    mt_i_cast(MT_ST_BF16, MC_F16)(back, brain, 3);
    assert_int_equal(back[0], 0x3c00);
    assert_int_equal(back[2], 0x7c00);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_value),
        cmocka_unit_test(test_rounding),
        cmocka_unit_test(test_table),
    };
    return cmocka_run_group_tests_name("checkpoint casts", tests, NULL, NULL);
}
