/* Tensor views: element types, strides, slices, shapes. */
#include <signal.h>
#include <sys/wait.h>

#include "megac/base/tensor.h"
#include "tests/unit.h"

static void element_types(void **state)
{
    (void)state;
    const struct {
        mc_dtype dtype;
        const char *name;
        size_t bytes;
    } rows[] = {{MC_F32, "f32", 4}, {MC_F64, "f64", 8}, {MC_BF16, "bf16", 2},
                {MC_F16, "f16", 2}, {MC_I32, "i32", 4}, {MC_U8, "u8", 1}};
    assert_int_equal(sizeof rows / sizeof rows[0], MC_DTYPE_COUNT);
    for (size_t i = 0; i < MC_DTYPE_COUNT; i++) {
        mc_dtype parsed = MC_DTYPE_COUNT;
        assert_string_equal(mc_dtype_name(rows[i].dtype), rows[i].name);
        assert_int_equal(mc_dtype_bytes(rows[i].dtype), rows[i].bytes);
        assert_int_equal(mc_dtype_parse(rows[i].name, &parsed), MC_OK);
        assert_int_equal(parsed, rows[i].dtype);
    }
    assert_string_equal(mc_dtype_name(MC_DTYPE_COUNT), "?");
}

static void unknown_type_names_the_known_ones(void **state)
{
    (void)state;
    const char *const bad[] = {"", "F32", "f3", "f322", "int4"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        char text[512];
        mc_dtype parsed = MC_U8;
        mc_status st = MC_OK;
        UNIT_CAPTURE(text, st = mc_dtype_parse(bad[i], &parsed));
        assert_int_equal(st, MC_INVALID);
        assert_int_equal(parsed, MC_U8);
        for (int known = 0; known < MC_DTYPE_COUNT; known++) {
            assert_non_null(strstr(text, mc_dtype_name((mc_dtype)known)));
        }
    }
}

static void contiguous_views(void **state)
{
    (void)state;
    float data[2 * 3 * 5];
    mc_tensor t = mc_tensor_3d(data, MC_F32, 2, 3, 5);
    assert_int_equal(t.n_dims, 3);
    assert_int_equal(t.strides[0], 15);
    assert_int_equal(t.strides[1], 5);
    assert_int_equal(t.strides[2], 1);
    assert_int_equal(mc_tensor_elems(t), 30);
    assert_int_equal(mc_tensor_bytes(t), 120);
    assert_true(mc_tensor_contiguous(t));
    assert_true(mc_tensor_present(t));
    mc_tensor flat = mc_tensor_flat(t);
    assert_int_equal(flat.n_dims, 1);
    assert_int_equal(flat.dims[0], 30);
    assert_ptr_equal(flat.data, data);
    assert_false(mc_tensor_present((mc_tensor){0}));
    assert_int_equal(mc_tensor_bytes(mc_tensor_1d(data, MC_BF16, 9)), 18);
    assert_int_equal(mc_tensor_elems(mc_tensor_2d(data, MC_F32, 0, 4)), 0);
}

/* Every element of every slice is the element of the whole that arithmetic says. */
static void slices_address_the_right_elements(void **state)
{
    (void)state;
    int32_t data[4][3][5];
    for (int i = 0; i < 4 * 3 * 5; i++) {
        (&data[0][0][0])[i] = i;
    }
    mc_tensor t = mc_tensor_3d(data, MC_I32, 4, 3, 5);
    for (int dim = 0; dim < 3; dim++) {
        for (int64_t begin = 0; begin < t.dims[dim]; begin++) {
            for (int64_t count = 0; begin + count <= t.dims[dim]; count++) {
                mc_tensor s = mc_tensor_slice(t, dim, begin, count);
                int64_t off[3] = {0};
                off[dim] = begin;
                assert_int_equal(s.dims[dim], count);
                for (int64_t i = 0; i < s.dims[0]; i++) {
                    for (int64_t j = 0; j < s.dims[1]; j++) {
                        for (int64_t k = 0; k < s.dims[2]; k++) {
                            int32_t *p = (int32_t *)s.data + i * s.strides[0] + j * s.strides[1] + k * s.strides[2];
                            assert_int_equal(*p, data[i + off[0]][j + off[1]][k + off[2]]);
                        }
                    }
                }
            }
        }
    }
}

static void contiguity_of_slices(void **state)
{
    (void)state;
    float data[4 * 6];
    mc_tensor t = mc_tensor_2d(data, MC_F32, 4, 6);
    assert_true(mc_tensor_contiguous(mc_tensor_slice(t, 0, 1, 2)));
    assert_false(mc_tensor_contiguous(mc_tensor_slice(t, 1, 0, 3)));
    /* one row of some columns is contiguous whatever its row stride */
    assert_true(mc_tensor_contiguous(mc_tensor_slice(mc_tensor_slice(t, 1, 2, 3), 0, 1, 1)));
}

static void same_shape(void **state)
{
    (void)state;
    mc_tensor a = mc_tensor_2d(NULL, MC_F32, 2, 3), b = mc_tensor_2d(NULL, MC_BF16, 2, 3);
    assert_true(mc_tensor_same_shape(a, b));
    assert_false(mc_tensor_same_shape(a, mc_tensor_2d(NULL, MC_F32, 3, 2)));
    assert_false(mc_tensor_same_shape(a, mc_tensor_1d(NULL, MC_F32, 2)));
    assert_false(mc_tensor_same_shape(a, mc_tensor_3d(NULL, MC_F32, 2, 3, 1)));
}

static bool slice_dies(mc_tensor t, int dim, int64_t begin, int64_t count)
{
    char text[512];
    int how = 0, saved = unit_capture_begin();
    pid_t child = fork();
    if (child == 0) {
        mc_tensor_slice(t, dim, begin, count);
        _exit(0);
    }
    waitpid(child, &how, 0);
    unit_capture_end(saved, text, sizeof text);
    return WIFSIGNALED(how) && WTERMSIG(how) == SIGABRT;
}

static void slices_out_of_bounds_are_broken_invariants(void **state)
{
    (void)state;
    float data[6];
    mc_tensor t = mc_tensor_2d(data, MC_F32, 2, 3);
    assert_false(slice_dies(t, 1, 3, 0));
    assert_true(slice_dies(t, 1, 1, 3));
    assert_true(slice_dies(t, 1, -1, 1));
    assert_true(slice_dies(t, 1, 1, -1));
    assert_true(slice_dies(t, 2, 0, 1));
    assert_true(slice_dies(t, -1, 0, 1));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(element_types),
        cmocka_unit_test(unknown_type_names_the_known_ones),
        cmocka_unit_test(contiguous_views),
        cmocka_unit_test(slices_address_the_right_elements),
        cmocka_unit_test(contiguity_of_slices),
        cmocka_unit_test(same_shape),
        cmocka_unit_test(slices_out_of_bounds_are_broken_invariants),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
