/* Communicators of one process (self and plan), and the checks of arguments that all backends share. */
#include "megac/base/comm.h"
#include "megac/base/comm_impl.h"
#include "tests/unit.h"

#define EXPECT(name, text, expr)                                 \
    do {                                                         \
        char said_[2048];                                        \
        mc_status st_;                                           \
        UNIT_CAPTURE(said_, st_ = (expr));                       \
        assert_string_equal(mc_status_name(st_), name);          \
        if (!strstr(said_, text)) {                              \
            fail_msg("\"%s\" is missing from: %s", text, said_); \
        }                                                        \
    } while (0)

static float data[64], other[64];

static mc_tensor f32(float *p, int64_t n)
{
    return mc_tensor_1d(p, MC_F32, n);
}

static void test_self_copies(void **state)
{
    (void)state;
    mc_comm c = mc_comm_self("tp");
    assert_int_equal(c.size, 1);
    assert_int_equal(c.rank, 0);
    for (int op = 0; op < 3; op++) {
        for (int i = 0; i < 64; i++) {
            data[i] = (float)i + 0.5f;
            other[i] = -1;
        }
        mc_request req;
        mc_status st = op == 0   ? mc_comm_all_reduce_begin(&c, f32(data, 63), f32(other, 63), MC_MAX, &req)
                       : op == 1 ? mc_comm_all_gather_begin(&c, f32(data, 63), f32(other, 63), &req)
                                 : mc_comm_reduce_scatter_begin(&c, f32(data, 63), f32(other, 63), &req);
        assert_int_equal(st, MC_OK);
        assert_int_equal(mc_comm_wait(&req), MC_OK);
        assert_memory_equal(data, other, 63 * sizeof(float));
        assert_true(other[63] == -1);
    }
    assert_int_equal(mc_comm_all_reduce(&c, f32(data, 64), f32(data, 64), MC_SUM), MC_OK);
    assert_true(data[10] == 10.5f);
    assert_int_equal(mc_comm_broadcast(&c, f32(data, 64), 0), MC_OK);
    assert_int_equal(mc_comm_barrier(&c), MC_OK);
    mc_comm_destroy(&c);
    assert_null(c.ops);
}

static void test_plan_touches_nothing(void **state)
{
    (void)state;
    mc_comm c = mc_comm_plan("tp", 1, 4);
    mc_tensor part = f32((float *)16, 8), whole = f32((float *)32, 32);
    mc_request req;
    assert_int_equal(mc_comm_all_reduce(&c, whole, whole, MC_SUM), MC_OK);
    assert_int_equal(mc_comm_all_gather(&c, part, whole), MC_OK);
    assert_int_equal(mc_comm_reduce_scatter(&c, whole, part), MC_OK);
    assert_int_equal(mc_comm_broadcast(&c, whole, 3), MC_OK);
    assert_int_equal(mc_comm_barrier(&c), MC_OK);
    assert_int_equal(mc_comm_send_begin(&c, f32(NULL, 8), 2, &req), MC_OK);
    assert_int_equal(mc_comm_wait(&req), MC_OK);
    assert_int_equal(mc_comm_recv_begin(&c, part, 0, &req), MC_OK);
    assert_int_equal(mc_comm_wait(&req), MC_OK);
    /* Its arguments are checked like the others'. */
    EXPECT("INVALID", "is not 4 parts", mc_comm_all_gather(&c, part, part));
    mc_comm_destroy(&c);
}

static void test_bad_arguments(void **state)
{
    (void)state;
    mc_comm c = mc_comm_plan("tp", 1, 4), self = mc_comm_self("dp");
    mc_request req;
    mc_tensor t = f32(data, 32), strided = mc_tensor_2d(data, MC_F32, 4, 8), none = {0};
    strided = mc_tensor_slice(strided, 1, 0, 4);
    mc_tensor bytes = mc_tensor_1d(data, MC_U8, 32);
    EXPECT("INVALID", "all_reduce of tp: in is not contiguous", mc_comm_all_reduce(&c, strided, strided, MC_SUM));
    EXPECT("INVALID", "all_reduce of tp: in is no tensor", mc_comm_all_reduce(&c, none, t, MC_SUM));
    EXPECT("UNSUPPORTED", "cannot reduce u8", mc_comm_all_reduce(&c, bytes, bytes, MC_SUM));
    EXPECT("INVALID", "differ in shape or type", mc_comm_all_reduce(&c, t, f32(other, 31), MC_SUM));
    EXPECT("INVALID", "unknown reduction 7", mc_comm_all_reduce(&c, t, t, (mc_reduce)7));
    EXPECT("INVALID", "4 parts", mc_comm_all_gather(&c, t, f32(other, 32)));
    EXPECT("INVALID", "4 parts", mc_comm_all_gather(&c, f32(data, 8), mc_tensor_1d(other, MC_I32, 32)));
    EXPECT("INVALID", "4 parts",
           mc_comm_all_gather(&c, mc_tensor_2d(data, MC_F32, 1, 4), mc_tensor_2d(other, MC_F32, 4, 5)));
    EXPECT("INVALID", "4 parts", mc_comm_reduce_scatter(&c, t, f32(other, 9)));
    EXPECT("UNSUPPORTED", "cannot reduce u8", mc_comm_reduce_scatter(&c, bytes, mc_tensor_1d(other, MC_U8, 8)));
    EXPECT("INVALID", "no rank 4 among 4", mc_comm_broadcast(&c, t, 4));
    EXPECT("INVALID", "no other rank 1 among 4", mc_comm_send_begin(&c, t, 1, &req));
    EXPECT("INVALID", "no other rank -1 among 4", mc_comm_recv_begin(&c, t, -1, &req));
    EXPECT("INVALID", "no other rank 0 among 1", mc_comm_send_begin(&self, t, 0, &req));
    EXPECT("INVALID", "has no data", mc_comm_broadcast(&self, f32(NULL, 3), 0));
    EXPECT("INVALID", "overlap", mc_comm_all_reduce(&self, f32(data, 32), f32(data + 1, 32), MC_SUM));
}

static void test_reduce_kernels(void **state)
{
    (void)state;
    static double in[3][3000], out[3000];
    const void *ins[] = {in[0], in[1], in[2]};
    for (int i = 0; i < 3000; i++) {
        in[0][i] = i % 7;
        in[1][i] = 3;
        in[2][i] = -i;
    }
    for (int n = 1; n <= 3; n++) {
        mc_i_reduce(MC_F64, MC_MIN, out, ins, n, 3000);
        for (int i = 0; i < 3000; i++) {
            double want = i % 7;
            want = n > 1 && want > 3 ? 3 : want;
            assert_true(out[i] == (n > 2 && -i < want ? -i : want));
        }
    }
    int32_t big[2] = {INT32_MAX, INT32_MAX};
    mc_i_reduce(MC_I32, MC_SUM, big, (const void *[]){&big[0], &big[1]}, 2, 1);
    assert_int_equal(big[0], -2); /* wraps */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_self_copies),
        cmocka_unit_test(test_plan_touches_nothing),
        cmocka_unit_test(test_bad_arguments),
        cmocka_unit_test(test_reduce_kernels),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
