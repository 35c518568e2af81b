/* Runs the vector functions' tests of one variant, or skips them. Compiled for the baseline, unlike test_simd.c, whose
 * every function may hold instructions that this processor lacks. */
#include <stdio.h>

#include "layers/ops.h"

int lt_simd_tests(void);

int main(void)
{
    const ly_ops *ops = NULL;
    if (ly_ops_get(LT_BACKEND, &ops) != MC_OK) {
        puts("skipped: " LT_BACKEND " does not run on this processor");
        return 77;
    }
    return lt_simd_tests();
}
