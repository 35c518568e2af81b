/* Attention of the whole CUDA backend, each shape by cuDNN and by our kernels, against the CPU operators; which calls
 * go where, and what is said of it. */
#include "layers/workspace.h"
#include "megac/base/log.h"
#include "tests/cuda/attention_case.h"
#include "tests/cuda/cuda_device.h"

enum { TEXT = 4096, WORKSPACE = 1 << 20 };

static cuda_device d;
static char text[TEXT]; /* logged by the last run */

/* The tensors of m in device memory. */
static attention_memory to_device(const attention_memory *m)
{
    attention_memory on = *m;
    for (int i = 0; i < ATTENTION_BUFFERS; i++) {
        attention_buffer which = (attention_buffer)i;
        size_t bytes = attention_bytes(m, which);
        void *host = cuda_host(&d, bytes), *device = cuda_memory(&d, bytes);
        memcpy(host, attention_start(m, which), bytes);
        cuda_copy(&d, device, host, bytes);
        cuda_wait(&d);
        cuda_host_free(&d, host, bytes);
        on.data[i] = (char *)device + ((char *)m->data[i] - (char *)attention_start(m, which));
    }
    return on;
}

/* Copies everything back to m, and frees it. */
static void from_device(attention_memory *m, attention_memory *on)
{
    for (int i = 0; i < ATTENTION_BUFFERS; i++) {
        attention_buffer which = (attention_buffer)i;
        size_t bytes = attention_bytes(m, which);
        void *host = cuda_host(&d, bytes);
        cuda_copy(&d, host, attention_start(on, which), bytes);
        cuda_wait(&d);
        memcpy(attention_start(m, which), host, bytes);
        cuda_host_free(&d, host, bytes);
        cuda_memory_free(&d, attention_start(on, which), bytes);
    }
}

/* Forward and backward on the device, whose results are checked. */
static void run(const attention_shape *s, mc_dtype dtype, size_t workspace_bytes)
{
    attention_memory want = attention_reference(s), got = attention_make(s, dtype), on = to_device(&got);
    ly_attention_fwd f = attention_fwd_args(s, &on);
    ly_attention_bwd b = attention_bwd_args(s, &on);
    ly_ctx cx = d.cx;
    cx.workspace_bytes = workspace_bytes;
    assert_true(ly_workspace_bytes_attention_fwd(&f) <= WORKSPACE && ly_workspace_bytes_attention_bwd(&b) <= WORKSPACE);
    mc_status st = MC_OK;
    UNIT_CAPTURE(text, {
        st = cx.ops->attention_fwd(&cx, &f);
        st = st == MC_OK ? cx.ops->attention_bwd(&cx, &b) : st;
    });
    if (st != MC_OK) {
        fail_msg("%s: %s", s->name, text);
    }
    from_device(&got, &on);
    attention_check(s, &got, &want);
    attention_free(&want);
    attention_free(&got);
}

static void expect(const char *words)
{
    if (!strstr(text, words)) {
        fail_msg("\"%s\" was not said, but \"%s\"", words, text);
    }
}

static void open_device(const char *use_cudnn)
{
    assert_int_equal(setenv("MC_CUDNN", use_cudnn, 1), 0);
    cuda_device_open(&d, WORKSPACE);
}

static int close_device(void **state)
{
    (void)state;
    cuda_device_close(&d);
    return 0;
}

static const attention_shape by_cudnn[] = {
    {"heads in one buffer", 2, 70, 3, 1, 64, -1, 0, 0, false},
    {"groups in one buffer", 3, 50, 2, 3, 32, -1, 0, 0, false},
    {"one group in one buffer", 2, 40, 1, 4, 64, -1, 0, 0, false},
    {"groups apart", 2, 45, 2, 2, 40, -1, 0, 0, true},
    {"a window that hides nothing", 1, 33, 2, 1, 128, 32, 0, 0, false},
    {"padded heads", 1, 20, 2, 1, 64, -1, 0, 8, false},
    {"one token", 2, 1, 2, 1, 16, -1, 0, 0, false},
};

static int with_cudnn(void **state)
{
    (void)state;
    open_device("1");
    return 0;
}

static int without_cudnn(void **state)
{
    (void)state;
    UNIT_CAPTURE(text, open_device("0"));
    return 0;
}

static void test_by_cudnn(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof by_cudnn / sizeof *by_cudnn; i++) {
        for (int type = 0; type < 2; type++) {
            mc_dtype dtype = type ? MC_F16 : MC_BF16;
            run(&by_cudnn[i], dtype, WORKSPACE);
            expect("attention_fwd: cuDNN, ");
            expect("attention_bwd: cuDNN, ");
            run(&by_cudnn[i], dtype, WORKSPACE); /* the plans are remembered: nothing is decided again */
            assert_string_equal(text, "");
        }
    }
}

/* The same shapes by our kernels. */
static void test_by_kernels(void **state)
{
    (void)state;
    expect("MC_CUDNN=0");
    for (size_t i = 0; i < sizeof by_cudnn / sizeof *by_cudnn; i++) {
        run(&by_cudnn[i], MC_BF16, WORKSPACE);
        run(&by_cudnn[i], MC_F16, 0);
        assert_string_equal(text, "");
    }
}

/* What cuDNN cannot do runs on our kernels, and each reason is told once. */
static void test_refused(void **state)
{
    (void)state;
    static const struct {
        attention_shape shape;
        mc_dtype dtype;
        const char *why;
    } cases[] = {
        {{"f32", 1, 30, 2, 1, 64, -1, 0, 0, false}, MC_F32, "in 16 bits only"},
        {{"dropout", 1, 36, 1, 2, 64, -1, 0.25f, 0, false}, MC_BF16, "dropout mask"},
        {{"window", 1, 50, 1, 1, 64, 7, 0, 0, false}, MC_F16, "it has a window"},
        {{"odd head", 1, 30, 2, 1, 36, -1, 0, 0, false}, MC_BF16, "not a multiple of 8"},
        {{"rows not aligned", 1, 30, 2, 1, 64, -1, 0, 3, false}, MC_BF16, "not aligned to 16 bytes"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        run(&cases[i].shape, cases[i].dtype, WORKSPACE);
        expect("attention_fwd runs on megac's own kernel: ");
        expect(cases[i].why);
        assert_null(strstr(strchr(text, '\n') + 1, "own kernel")); /* once, not for the backward again */
        run(&cases[i].shape, cases[i].dtype, WORKSPACE);
        assert_string_equal(text, "");
    }
}

static void test_no_workspace(void **state)
{
    (void)state;
    attention_shape s = {"without workspace", 1, 24, 2, 1, 64, -1, 0, 0, false};
    run(&s, MC_BF16, 0);
    expect("attention_bwd of 1 x 2 heads");
    expect("bytes of workspace, 0 are planned");
    run(&s, MC_BF16, 0);
    assert_string_equal(text, "");
    run(&s, MC_BF16, WORKSPACE); /* with more of it, it is decided again */
    expect("attention_bwd: cuDNN, ");
}

/* More shapes than plans: the rest runs on our kernels. */
static void test_full_table(void **state)
{
    (void)state;
    int told = 0, planned = 0;
    for (int T = 1; T <= 40; T++) {
        attention_shape s = {"many shapes", 1, T, 1, 1, 8, -1, 0, 0, false};
        run(&s, MC_BF16, WORKSPACE);
        planned += strstr(text, "attention_bwd: cuDNN, ") != NULL;
        told += strstr(text, "fill the table") != NULL;
    }
    assert_int_equal(told, 1);
    assert_int_equal(planned, 32);
}

static void test_head_too_large(void **state)
{
    (void)state;
    attention_shape s = {"head of 264", 1, 4, 1, 1, 264, -1, 0, 0, false};
    attention_memory m = attention_make(&s, MC_BF16);
    ly_attention_fwd f = attention_fwd_args(&s, &m);
    mc_status st = MC_OK;
    UNIT_CAPTURE(text, st = d.cx.ops->attention_fwd(&d.cx, &f));
    assert_int_equal(st, MC_UNSUPPORTED);
    expect("264");
    attention_free(&m);
}

int main(void)
{
    mc_log_set_level(MC_LOG_DEBUG);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_by_cudnn, with_cudnn, close_device),
        cmocka_unit_test_setup_teardown(test_by_kernels, without_cudnn, close_device),
        cmocka_unit_test_setup_teardown(test_refused, with_cudnn, close_device),
        cmocka_unit_test_setup_teardown(test_no_workspace, with_cudnn, close_device),
        cmocka_unit_test_setup_teardown(test_full_table, with_cudnn, close_device),
        cmocka_unit_test_setup_teardown(test_head_too_large, with_cudnn, close_device),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
