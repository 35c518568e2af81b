/* Our attention kernels on the CPU against the CPU operators: every element type, head sizes of every path, sequences
 * that end inside a tile, windows, grouped heads, dropout, views of one fused buffer. Outputs start as NaN, must not
 * depend on the order of threads, blocks and asynchronous copies, and must leave everything around them alone. */
#include "layers/cuda/kernels.h"
#include "tests/cuda/attention_case.h"
#include "tests/cuda/on_cpu/control.h"

static const attention_shape shapes[] = {
    {"one token", 2, 1, 2, 1, 8, -1, 0, 0},
    {"tiny odd head", 1, 7, 1, 1, 5, -1, 0, 0},
    {"one tile", 1, 64, 1, 1, 64, -1, 0, 0},
    {"ends in a tile", 1, 150, 1, 2, 64, -1, 0, 0},
    {"several blocks", 1, 261, 1, 1, 32, -1, 0, 0},
    {"padded head", 1, 97, 2, 1, 40, -1, 0, 0},
    {"head 80", 1, 130, 1, 1, 80, -1, 0, 0},
    {"head 96", 1, 140, 1, 1, 96, -1, 0, 0},
    {"head 128", 1, 161, 1, 1, 128, -1, 0, 0},
    {"head 192", 1, 140, 1, 1, 192, -1, 0, 0},
    {"head 256", 1, 135, 1, 1, 256, -1, 0, 0},
    {"odd head 130", 1, 70, 1, 1, 130, -1, 0, 0},
    {"odd head 251", 1, 50, 1, 1, 251, -1, 0, 0},
    {"window 0", 1, 70, 1, 1, 32, 0, 0, 0},
    {"window inside a tile", 1, 300, 1, 1, 32, 10, 0, 0},
    {"window of tiles", 2, 290, 1, 1, 64, 100, 0, 0},
    {"window longer than T", 1, 90, 1, 1, 32, 1000, 0, 0},
    {"groups", 2, 70, 2, 3, 32, -1, 0, 0},
    {"groups, apart", 1, 100, 2, 2, 64, -1, 0, 0, true},
    {"groups, window", 1, 140, 1, 4, 64, 33, 0, 0},
    {"dropout", 2, 132, 1, 2, 64, -1, 0.3f, 0},
    {"dropout, odd T", 1, 133, 2, 1, 32, -1, 0.1f, 0},
    {"dropout, window, head 128", 1, 100, 1, 2, 128, 40, 0.5f, 0},
    {"dropout, odd head", 1, 45, 1, 2, 19, -1, 0.2f, 0},
    {"dropout, head 256", 1, 68, 1, 1, 256, -1, 0.2f, 0},
    {"misaligned rows", 1, 77, 1, 2, 64, -1, 0, 3},
    {"padded rows", 1, 77, 1, 2, 64, -1, 0, 8},
};
enum { N_SHAPES = sizeof shapes / sizeof shapes[0] };

/* Forward and backward through the kernels, in one order. */
static void run_kernels(const attention_shape *s, const attention_memory *m, ly_on_cpu_order order)
{
    ly_ctx cx = {0};
    ly_attention_fwd f = attention_fwd_args(s, m);
    ly_attention_bwd b = attention_bwd_args(s, m);
    ly_on_cpu_reset();
    ly_on_cpu_set_order(order, 7);
    assert_int_equal(ly_k_attention_fwd(&cx, &f), 0);
    assert_string_equal(ly_on_cpu_error(), "");
    assert_int_equal(ly_k_attention_bwd(&cx, &b), 0);
    assert_string_equal(ly_on_cpu_error(), "");
    assert_int_equal(ly_on_cpu_n_launches(), 4);
}

static void check_shape(const attention_shape *s, mc_dtype dtype)
{
    attention_memory want = attention_reference(s), got = attention_make(s, dtype), again = attention_make(s, dtype);
    run_kernels(s, &got, LY_ON_CPU_FORWARD);
    attention_check(s, &got, &want);
    /* f16 has the same code as bf16 but for conversions. */
    for (int order = LY_ON_CPU_REVERSE; order <= LY_ON_CPU_RANDOM && dtype != MC_F16; order++) {
        run_kernels(s, &again, (ly_on_cpu_order)order);
        for (int i = 0; i < ATTENTION_BUFFERS; i++) {
            attention_buffer which = (attention_buffer)i;
            assert_memory_equal(attention_start(&got, which), attention_start(&again, which),
                                attention_bytes(&got, which));
        }
    }
    attention_free(&want);
    attention_free(&got);
    attention_free(&again);
}

/* LY_TEST_SHAPES="first last" runs a part of the list. */
static void check_type(mc_dtype dtype)
{
    int first = 0, last = N_SHAPES - 1;
    const char *part = getenv("LY_TEST_SHAPES");
    if (part) {
        assert_int_equal(sscanf(part, "%d %d", &first, &last), 2);
    }
    assert_true(first < N_SHAPES && first <= last);
    for (int i = first; i <= last && i < N_SHAPES; i++) {
        check_shape(&shapes[i], dtype);
    }
}

static void test_f32(void **state)
{
    (void)state;
    check_type(MC_F32);
}

static void test_bf16(void **state)
{
    (void)state;
    check_type(MC_BF16);
}

static void test_f16(void **state)
{
    (void)state;
    check_type(MC_F16);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_f32),
        cmocka_unit_test(test_bf16),
        cmocka_unit_test(test_f16),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
