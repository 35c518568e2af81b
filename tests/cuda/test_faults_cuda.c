/* What is said and done when the CUDA device cannot be opened, or a call of a library or an operator on the device
 * fails: every failure ends in an error that names it, and nothing is left behind. Needs the stand-in libraries, which
 * fail on demand. */
#include <math.h>

#include "megac/base/alloc.h"
#include "megac/base/device_cuda.h"
#include "tests/cuda/child.h"
#include "tests/cuda/cuda_device.h"

enum { STANDIN_MISUSE = 97, WRONG_VALUE = 50, LEAK = 51, ROWS = 8, BYTES = 32768 };

static int open_status(const void *arg)
{
    mc_device dev = {0};
    int ordinal = arg ? *(const int *)arg : 0;
    mc_status st = mc_device_open("cuda", ordinal, &dev);
    mc_device_close(&dev);
    return mc_alloc_report_leaks() ? LEAK : (int)st;
}

static void refused(const char *const *environment, const char *const *words)
{
    child_end end;
    child_run(environment, open_status, NULL, &end);
    assert_int_equal(end.exit_status, MC_UNSUPPORTED);
    child_said_once(&end, "error", words);
}

#define LIST(...) ((const char *const[]){__VA_ARGS__, NULL})

static void no_driver(void **state)
{
    (void)state;
    refused(LIST("STANDIN_DRIVER=none"), LIST("--device cuda", "no NVIDIA driver", "--device cpu"));
}

static void old_driver(void **state)
{
    (void)state;
    refused(LIST("STANDIN_DRIVER=old"), LIST("too old", "CUDA 12.2", "needs 13.", "update the driver"));
}

static void no_device(void **state)
{
    (void)state;
    refused(LIST("STANDIN_DEVICES=0", "CUDA_VISIBLE_DEVICES"),
            LIST("no CUDA device is visible", "CUDA_VISIBLE_DEVICES is not set"));
    refused(LIST("CUDA_VISIBLE_DEVICES="), LIST("no CUDA device is visible", "CUDA_VISIBLE_DEVICES is \"\""));
}

static void old_device(void **state)
{
    (void)state;
    refused(LIST("STANDIN_DEVICE=v100"), LIST("compute capability 7.0", "8.0"));
}

static int open_shared(const void *arg)
{
    mc_device dev = {0};
    int ordinal = *(const int *)arg;
    mc_status st = mc_device_open("cuda", ordinal, &dev);
    if (st != MC_OK) {
        return (int)st;
    }
    mc_cuda *c = dev.impl;
    mc_status (*own)(const mc_device *, const char *) = cuda_module_symbol(&dev, "mc_cuda_require_own");
    bool right =
        dev.ordinal == ordinal && c->ordinal == ordinal % 2 && c->n_visible == 2 && c->shared == (ordinal >= 2);
    st = own(&dev, "NCCL");
    mc_device_close(&dev);
    return right ? (int)st : WRONG_VALUE;
}

/* The third local rank of two devices shares the first; only NCCL minds. */
static void more_ranks_than_devices(void **state)
{
    (void)state;
    child_end end;
    for (int ordinal = 0; ordinal < 2; ordinal++) {
        child_run(LIST("STANDIN_DEVICES=2"), open_shared, &ordinal, &end);
        assert_int_equal(end.exit_status, MC_OK);
    }
    child_run(LIST("STANDIN_DEVICES=2"), open_shared, &(int){2}, &end);
    assert_int_equal(end.exit_status, MC_UNSUPPORTED);
    child_said_once(&end, "error", LIST("NCCL", "local rank 2", "only 2 visible", "--comm mpi"));
}

static bool is_loaded(const char *library)
{
    char line[512];
    bool found = false;
    FILE *maps = fopen("/proc/self/maps", "r");
    while (maps && fgets(line, sizeof line, maps)) {
        found |= strstr(line, library) != NULL;
    }
    if (maps) {
        fclose(maps);
    }
    return found;
}

/* 0: the device that `arg` names was chosen, and nothing was loaded for "cpu-unloaded". */
static int open_auto(const void *arg)
{
    const char *want = arg;
    mc_device dev = {0};
    if (mc_device_open("auto", 0, &dev) != MC_OK) {
        return 1;
    }
    bool right = strncmp(want, dev.ops->name, strlen(dev.ops->name)) == 0;
    right = right && (strcmp(want, "cpu-unloaded") != 0 || !is_loaded("libmegac_cuda"));
    mc_device_close(&dev);
    return right ? 0 : WRONG_VALUE;
}

static void auto_takes_what_is_usable(void **state)
{
    (void)state;
    child_end end;
    child_run(LIST("MC_CUDA_DEVICE_FILE=/nonexistent"), open_auto, "cpu-unloaded", &end);
    assert_int_equal(end.exit_status, 0);
    assert_string_equal(end.text, "");
    child_run(LIST("MC_CUDA_DEVICE_FILE=/dev/null"), open_auto, "cuda", &end);
    assert_int_equal(end.exit_status, 0);
    assert_string_equal(end.text, "");
    child_run(LIST("MC_CUDA_DEVICE_FILE=/dev/null", "STANDIN_DEVICE=v100"), open_auto, "cpu", &end);
    assert_int_equal(end.exit_status, 0);
    child_said_once(&end, "warning", LIST("--device auto", "compute capability 7.0"));
}

/* ---- a small use of everything, stopping at the first failure and releasing all */

typedef struct use {
    mc_device dev;
    ly_ctx cx;
    mc_event event;
    void *device, *host;
} use;

static mc_status begin(use *u)
{
    MC_TRY(mc_device_open("cuda", 0, &u->dev));
    const mc_device_ops *o = u->dev.ops;
    u->cx.ops = o->operators;
    u->cx.backend = u->dev.impl;
    MC_TRY(o->stream_create(&u->dev, &u->cx.stream));
    MC_TRY(o->event_create(&u->dev, &u->event));
    MC_TRY(o->alloc(&u->dev, MC_MEM_DEVICE, BYTES, "the model", &u->device));
    MC_TRY(o->alloc(&u->dev, MC_MEM_PINNED_HOST, BYTES, "batches", &u->host));
    u->cx.workspace = (char *)u->device + BYTES / 2;
    u->cx.workspace_bytes = BYTES / 2;
    return MC_OK;
}

/* host[0] = sum over k of 2 * 3, k < ROWS */
static mc_status work(use *u)
{
    const mc_device_ops *o = u->dev.ops;
    float *x = u->device;
    mc_tensor a = mc_tensor_2d(x, MC_F32, ROWS, ROWS), b = mc_tensor_2d(x + 64, MC_F32, ROWS, ROWS);
    mc_tensor c = mc_tensor_2d(x + 128, MC_F32, ROWS, ROWS);
    MC_TRY(o->clear(&u->dev, u->device, BYTES, u->cx.stream));
    MC_TRY(u->cx.ops->fill(&u->cx, &(ly_fill){mc_tensor_flat(a), 2.0f}));
    MC_TRY(u->cx.ops->fill(&u->cx, &(ly_fill){mc_tensor_flat(b), 3.0f}));
    MC_TRY(u->cx.ops->gemm(&u->cx, &(ly_gemm){.a = a, .b = b, .c = c, .beta = 1.0f}));
    MC_TRY(o->event_record(&u->dev, u->event, u->cx.stream));
    MC_TRY(o->event_wait(&u->dev, u->event, u->cx.stream));
    MC_TRY(o->copy(&u->dev, u->host, c.data, mc_tensor_bytes(c), u->cx.stream));
    MC_TRY(o->event_sync(&u->dev, u->event));
    return o->stream_sync(&u->dev, u->cx.stream);
}

static void end_use(use *u)
{
    const mc_device_ops *o = u->dev.ops;
    if (o) {
        char text[512];
        UNIT_CAPTURE(text, (void)!o->stream_sync(&u->dev, u->cx.stream)); /* what was queued may still use the memory */
        o->free(&u->dev, MC_MEM_PINNED_HOST, u->host, BYTES);
        o->free(&u->dev, MC_MEM_DEVICE, u->device, BYTES);
        o->event_destroy(&u->dev, u->event);
        o->stream_destroy(&u->dev, u->cx.stream);
    }
    mc_device_close(&u->dev);
}

static int use_all(const void *arg)
{
    (void)arg;
    use u = {0};
    mc_status st = begin(&u);
    st = st == MC_OK ? work(&u) : st;
    bool wrong = st == MC_OK && ((float *)u.host)[0] != 6.0f * ROWS;
    end_use(&u);
    return mc_alloc_report_leaks() ? LEAK : wrong ? WRONG_VALUE : (int)st;
}

/* Fails the nth of what `group` names, for n = 1, 2, ... until the run succeeds; returns how many runs failed. Each
 * says so in one error line; a failed release is a warning, and then the stand-in reports the leak. */
static int sweep(const char *group, const char *sync, const char *autotune, bool (*right)(const child_end *end))
{
    for (int n = 1; n < 300; n++) {
        char fail[64];
        child_end end;
        snprintf(fail, sizeof fail, "STANDIN_FAIL=%s:%d", group, n);
        child_run(LIST(fail, sync, autotune), use_all, NULL, &end);
        bool absorbed = strstr(end.text, "warning: cuDNN"); /* attention has kernels of its own */
        if (end.exit_status == MC_OK && !absorbed) {
            return n - 1;
        }
        if (!absorbed && !right(&end)) {
            fail_msg("%s: status %d, and it said:\n%s", fail, end.exit_status, end.text);
        }
    }
    fail_msg("%s: no end of failures", group);
    return 0;
}

/* A call or error of cudart's ("cudaMalloc") or of cuBLASLt's, or what was wanted of the memory. */
static bool names_a_cause(const char *text)
{
    for (const char *at = strstr(text, "cuda"); at; at = strstr(at + 1, "cuda")) {
        if (at[4] >= 'A' && at[4] <= 'Z') {
            return true;
        }
    }
    return strstr(text, "cublasLt") || strstr(text, "cuBLASLt") || strstr(text, "no device memory for") ||
           strstr(text, "no page-locked host memory for");
}

static bool is_error(const child_end *end)
{
    int st = end->exit_status;
    bool named = strstr(end->text, "megac: error: ") && names_a_cause(end->text);
    return (st == MC_DEVICE || st == MC_NOMEM || st == MC_UNSUPPORTED) && named && !strstr(end->text, "MISUSE");
}

/* Calls that release cannot return an error, and what they did not release stays. */
static bool is_error_or_warning(const child_end *end)
{
    return is_error(end) || strstr(end->text, "megac: warning: cuda");
}

static void every_failing_call_is_an_error(void **state)
{
    (void)state;
    assert_in_range(sweep("*", "MC_SYNC", "MC_GEMM_AUTOTUNE=0", is_error_or_warning), 25, 200);
}

static void every_failing_allocation_is_an_error(void **state)
{
    (void)state;
    assert_in_range(sweep("cudaMalloc", "MC_SYNC", "MC_GEMM_AUTOTUNE=0", is_error), 2, 10);
    assert_in_range(sweep("cudaHostAlloc", "MC_SYNC", "MC_GEMM_AUTOTUNE=0", is_error), 2, 10);
}

static bool is_launch_error(const child_end *end)
{
    return is_error(end) && strstr(end->text, "cudaErrorLaunchOutOfResources");
}

static void every_failing_launch_names_operator_and_shapes(void **state)
{
    (void)state;
    child_end end;
    assert_in_range(sweep("launch", "MC_SYNC", "MC_GEMM_AUTOTUNE=0", is_launch_error), 3, 10);
    child_run(LIST("STANDIN_FAIL=launch:2", "MC_GEMM_AUTOTUNE=0"), use_all, NULL,
              &end); /* 1: when the device is opened */
    assert_int_equal(end.exit_status, MC_DEVICE);
    child_said_once(&end, "error", LIST("operator fill", "x f32(64)", "cudaErrorLaunchOutOfResources", "H100"));
}

static bool is_fault_with_hint(const child_end *end)
{
    return is_error(end) && end->exit_status == MC_DEVICE && strstr(end->text, "MC_SYNC=1");
}

static void a_fault_on_the_device_is_an_error(void **state)
{
    (void)state;
    assert_in_range(sweep("async", "MC_SYNC", "MC_GEMM_AUTOTUNE=0", is_fault_with_hint), 5, 20);
}

static int n_fill, n_gemm;

static bool count_named(const child_end *end)
{
    n_fill += strstr(end->text, "operator fill: x f32(64) failed on the device") != NULL;
    n_gemm += strstr(end->text, "operator gemm: a f32(8,8) b f32(8,8) c f32(8,8) failed on the device") != NULL;
    return is_error(end);
}

static void mc_sync_names_the_operator(void **state)
{
    (void)state;
    sweep("async", "MC_SYNC=1", "MC_GEMM_AUTOTUNE=0", count_named);
    assert_in_range(n_fill, 1, 20);
    assert_in_range(n_gemm, 1, 20);
    child_end end;
    child_run(LIST("MC_SYNC=1"), use_all, NULL, &end);
    assert_int_equal(end.exit_status, MC_OK);
}

static void memory_that_is_too_small_is_named(void **state)
{
    (void)state;
    child_end end;
    child_run(LIST("STANDIN_MEM=3000"), use_all, NULL, &end);
    assert_int_equal(end.exit_status, MC_NOMEM);
    child_said_once(&end, "error", LIST("the model", "32768 bytes", "free", "megac plan"));
}

/* Candidates that fail to run are not chosen, and one that runs is; without memory for the trials, the first. */
static void choosing_survives_failures(void **state)
{
    (void)state;
    child_end end;
    for (int n = 1; n <= 4; n++) {
        char fail[64];
        snprintf(fail, sizeof fail, "STANDIN_FAIL=cublasLtMatmul:%d", n);
        child_run(LIST(fail, "MC_GEMM_AUTOTUNE=1"), use_all, NULL, &end);
        assert_int_equal(end.exit_status, MC_OK);
        assert_string_equal(end.text, "");
    }
    child_run(LIST("STANDIN_FAIL=cudaMalloc:3", "MC_GEMM_AUTOTUNE=1"), use_all, NULL, &end);
    assert_int_equal(end.exit_status, MC_OK);
    child_run(LIST("STANDIN_FAIL=cublasLtMatmul:1", "MC_GEMM_AUTOTUNE=0"), use_all, NULL, &end);
    assert_int_equal(end.exit_status, MC_DEVICE);
    child_said_once(&end, "error", LIST("operator gemm: a f32(8,8)", "cublasLtMatmul"));
    child_run(LIST("STANDIN_FAIL=cublasLtMatmulAlgoGetHeuristic:1"), use_all, NULL, &end);
    assert_int_equal(end.exit_status, MC_UNSUPPORTED);
    child_said_once(&end, "error", LIST("cuBLASLt", "no algorithm"));
}

static void nothing_fails_unasked(void **state)
{
    (void)state;
    child_end end;
    child_run(LIST("STANDIN_FAIL"), use_all, NULL, &end);
    assert_int_equal(end.exit_status, MC_OK);
    assert_string_equal(end.text, "");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_fails_unasked),
        cmocka_unit_test(no_driver),
        cmocka_unit_test(old_driver),
        cmocka_unit_test(no_device),
        cmocka_unit_test(old_device),
        cmocka_unit_test(more_ranks_than_devices),
        cmocka_unit_test(auto_takes_what_is_usable),
        cmocka_unit_test(every_failing_call_is_an_error),
        cmocka_unit_test(every_failing_allocation_is_an_error),
        cmocka_unit_test(every_failing_launch_names_operator_and_shapes),
        cmocka_unit_test(a_fault_on_the_device_is_an_error),
        cmocka_unit_test(mc_sync_names_the_operator),
        cmocka_unit_test(memory_that_is_too_small_is_named),
        cmocka_unit_test(choosing_survives_failures),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
