/* Division by multiplication against the processor's own, where rounding could show: beside multiples of the divisor
 * and at the ends of the range. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka.h needs the four above. */
extern "C" {
#include <cmocka.h>
}
#undef fail /* a name of the runtime, too */

#include "layers/cuda/divide.cuh"

static void check(int64_t divisor)
{
    const uint32_t last = INT32_MAX, d = (uint32_t)divisor;
    const ly_divider divider = ly_divider_of(divisor);
    const uint32_t step = last / d > 1000 ? last / d / 1000 : 1; /* of quotients */
    assert_int_equal(ly_divide(0, divider), 0);
    assert_int_equal(ly_divide(last, divider), last / d);
    for (uint32_t q = last / d, i = 0; i < 1000 && q > 0; i++, q = q > step ? q - step : 0) {
        uint32_t n = q * d;
        assert_int_equal(ly_divide(n, divider), q);
        assert_int_equal(ly_divide(n - 1, divider), q - 1);
        if (n < last) {
            assert_int_equal(ly_divide(n + 1, divider), (n + 1) / d);
        }
    }
}

static void test_divide(void **)
{
    for (int64_t d = 1; d < 3000; d++) {
        check(d);
    }
    for (int bit = 1; bit <= 31; bit++) {
        for (int64_t d = (INT64_C(1) << bit) - 2; d <= (INT64_C(1) << bit) + 2; d++) {
            if (d >= 1 && d <= INT64_C(1) << 31) {
                check(d);
            }
        }
    }
    for (uint32_t i = 1; i < 2000; i++) {
        check(i * UINT32_C(2654435761) >> 1 | 1);
    }
}

int main()
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_divide)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
