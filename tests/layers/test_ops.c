#include <stdint.h>
#include <string.h>

#include "megac/base/log.h"
#include "tests/layers/op_harness.h"

static void test_cpu_is_one_of_the_variants(void **state)
{
    const ly_ops *best = NULL, *again = NULL;
    (void)state;
    assert_int_equal(ly_ops_get("cpu", &best), MC_OK);
    assert_int_equal(strncmp(best->backend, "cpu-", 4), 0);
    assert_int_equal(ly_ops_get(best->backend, &again), MC_OK);
    assert_ptr_equal(best, again);
}

static void test_unknown_backend_is_refused(void **state)
{
    const ly_ops *ops = (const ly_ops *)(uintptr_t)1;
    (void)state;
    assert_int_equal(ly_ops_get("tpu", &ops), MC_UNSUPPORTED);
    assert_int_equal(ly_ops_get("", &ops), MC_UNSUPPORTED);
    assert_ptr_equal(ops, (const ly_ops *)(uintptr_t)1); /* untouched */
}

/* A whole table walked with arguments that would crash any operator that looked at them. */
static void test_plan_touches_nothing(void **state)
{
    const ly_ops *plan = NULL;
    int n = 0;
    (void)state;
    assert_int_equal(ly_ops_get("plan", &plan), MC_OK);
    assert_string_equal(plan->backend, "plan");
#define LY_OP(name)                                      \
    {                                                    \
        ly_##name bad;                                   \
        memset(&bad, 0xff, sizeof bad);                  \
        assert_int_equal(plan->name(NULL, &bad), MC_OK); \
        n++;                                             \
    }
#include "layers/ops.def"
#undef LY_OP
    assert_true(n > 0);
}

/* Types that the CPU operators do not take are refused, and the output stays as it was. */
static void dtype_body(lt_run *run, const void *arg)
{
    float *x = lt_rand(64, 1, -1.0f, 1.0f), *keep = lt_copy(x, 64);
    mc_tensor half = mc_tensor_2d(x, MC_BF16, 8, 8), full = lt_2d(x, 8, 8), flat = mc_tensor_1d(x, MC_BF16, 64);
    (void)arg;
    ly_gemm gemm = {.a = full, .b = half, .c = full};
    assert_int_equal(run->cx.ops->gemm(&run->cx, &gemm), MC_UNSUPPORTED);
    ly_norm_fwd norm = {.x = half, .out = full};
    assert_int_equal(run->cx.ops->norm_fwd(&run->cx, &norm), MC_UNSUPPORTED);
    ly_norm_bwd norm_bwd = {.dskip = full, .dh = half};
    assert_int_equal(run->cx.ops->norm_bwd(&run->cx, &norm_bwd), MC_UNSUPPORTED);
    ly_act_fwd act = {.x = full, .out = half};
    assert_int_equal(run->cx.ops->act_fwd(&run->cx, &act), MC_UNSUPPORTED);
    ly_embedding_fwd embedding = {.tokens = flat, .table = full, .out = full};
    assert_int_equal(run->cx.ops->embedding_fwd(&run->cx, &embedding), MC_UNSUPPORTED);
    mc_tensor line = lt_1d(x, 64), f16 = mc_tensor_1d(x, MC_F16, 64);
    ly_adamw adamw = {.param = f16, .grad = flat, .m = flat, .v = flat, .step = 1};
    assert_int_equal(run->cx.ops->adamw(&run->cx, &adamw), MC_UNSUPPORTED);
    adamw = (ly_adamw){.param = line, .grad = f16, .m = line, .v = line, .step = 1};
    assert_int_equal(run->cx.ops->adamw(&run->cx, &adamw), MC_UNSUPPORTED);
    adamw.grad = line;
    adamw.model = line;
    assert_int_equal(run->cx.ops->adamw(&run->cx, &adamw), MC_UNSUPPORTED);
    ly_sgd sgd = {.param = line, .grad = f16};
    assert_int_equal(run->cx.ops->sgd(&run->cx, &sgd), MC_UNSUPPORTED);
    ly_sq_norm sq = {.x = line, .out = lt_1d(x, 1)};
    assert_int_equal(run->cx.ops->sq_norm(&run->cx, &sq), MC_UNSUPPORTED);
    sq = (ly_sq_norm){.x = f16, .out = mc_tensor_1d(x, MC_F64, 1)};
    assert_int_equal(run->cx.ops->sq_norm(&run->cx, &sq), MC_UNSUPPORTED);
    ly_fill fill = {.x = mc_tensor_1d(x, MC_I32, 64)};
    assert_int_equal(run->cx.ops->fill(&run->cx, &fill), MC_UNSUPPORTED);
    ly_add add = {.a = half, .b = full, .out = half};
    assert_int_equal(run->cx.ops->add(&run->cx, &add), MC_UNSUPPORTED);
    ly_cast cast = {.x = line, .out = mc_tensor_1d(x, MC_I32, 64)};
    assert_int_equal(run->cx.ops->cast(&run->cx, &cast), MC_UNSUPPORTED);
    assert_memory_equal(x, keep, 64 * 4);
}

static void test_other_dtypes_are_refused(void **state)
{
    (void)state;
    lt_for_all(dtype_body, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cpu_is_one_of_the_variants),
        cmocka_unit_test(test_unknown_backend_is_refused),
        cmocka_unit_test(test_plan_touches_nothing),
        cmocka_unit_test(test_other_dtypes_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
