/* Injected failures, leaks, and devices that are missing, old or full: the cases of faults_errors.c by their numbers
 * there. Arguments: the program, probe, the folder of NVIDIA's library. */
#include "tests/cuda/standin/planted.h"

static const char *PROGRAM, *PROBE, *NVIDIA_FOLDER;

/* Runs a case with one more setting (may be null). */
static const farm_result *run_with(int which, const char *setting)
{
    return planted_run(PROGRAM, which, (const char *[]){setting, NULL});
}

static void expect(int which, const char *setting, int status, const char *text)
{
    planted row = {which, ALL, status, text};
    planted_expect(&row, setting ? setting : "no setting", run_with(which, setting));
}

/* Lets the first, second, ... call fail until there is no such call; returns how many failed. */
static int sweep(const char *name, const char *error)
{
    for (int n = 1; n < 1000; n++) {
        char setting[64], unreached[80];
        snprintf(setting, sizeof setting, "STANDIN_FAIL=%s:%d", name, n);
        const farm_result *got = run_with(0, setting);
        snprintf(unreached, sizeof unreached, "%s was not reached, %d calls", setting, n - 1);
        if (got->status[0] == 0) {
            planted_expect(&(planted){0, ALL, 0, unreached}, setting, got);
            return n - 1;
        }
        planted_expect(&(planted){0, ALL, PLANTED_ERROR, error}, setting, got);
    }
    fail_msg("%s: no end", name);
    return 0;
}

static void check_injected(void **state)
{
    (void)state;
    assert_int_equal(sweep("cudaMalloc", "= 2 cudaErrorMemoryAllocation"), 2);
    assert_int_equal(sweep("cudaMallocHost", "= 2 cudaErrorMemoryAllocation"), 1);
    assert_int_equal(sweep("cudaStreamSynchronize", "cudaStreamSynchronize(stream) = 999 cudaErrorUnknown"), 1);
    assert_int_equal(sweep("launch", "= 701 cudaErrorLaunchOutOfResources"), 2);
    assert_int_equal(sweep("subtract", "= 701 cudaErrorLaunchOutOfResources"), 2);
    /* Copy, memset, two kernels, event, wait, begin and end of the graph, copy: a lost device is seen at a wait or
     * later. */
    assert_in_range(sweep("async", "= 719 cudaErrorLaunchFailure"), 8, 9);
    /* Every call of the program. */
    assert_int_equal(sweep("*", " = "), 23);
}

static void check_injected_rank(void **state)
{
    (void)state;
    expect(0, "STANDIN_FAIL=cudaMalloc:2@0", PLANTED_ERROR, "= 2 cudaErrorMemoryAllocation");
    expect(0, "STANDIN_FAIL=cudaMalloc:2@1", PLANTED_CLEAN, "ok");
}

static void check_leaks(void **state)
{
    (void)state;
    expect(1, NULL, PLANTED_MISUSE, "2 allocations leaked (124 bytes); the first is device allocation #1 (100 bytes)");
    expect(2, NULL, PLANTED_MISUSE, "1 allocations leaked (7 bytes); the first is pinned allocation #1 (7 bytes)");
    expect(3, NULL, PLANTED_MISUSE, "never destroyed: 1 streams, 2 events, 0 graphs");
    expect(6, NULL, PLANTED_MISUSE, "1 operations never ran; the first is memset [op 1, stream 1]");
    for (int which = 1; which <= 3; which++) {
        const farm_result *got = run_with(which, "STANDIN_LEAKS=0");
        assert_int_equal(got->status[0], 0);
        assert_null(strstr(got->text[0], "standin["));
    }
    /* The program's own error is not covered up. */
    const farm_result *got = run_with(4, NULL);
    assert_int_equal(got->status[0], PLANTED_ERROR);
    assert_null(strstr(got->text[0], "standin["));
}

static void check_lost_device(void **state)
{
    (void)state;
    expect(5, NULL, PLANTED_MISUSE, "MISUSE: fail [op 1, stream 1]: thread 3 left the barrier");
    expect(5, NULL, PLANTED_MISUSE,
           "wait cudaErrorLaunchFailure, then cudaErrorLaunchFailure, last cudaErrorLaunchFailure");
}

static void check_devices(void **state)
{
    (void)state;
    expect(7, NULL, PLANTED_MISUSE, "cudaSetDevice(1): this process has used device 0 already");
    expect(8, "STANDIN_DEVICES=2", PLANTED_ERROR, "cudaSetDevice(2) = 101 cudaErrorInvalidDevice");
    expect(8, "CUDA_VISIBLE_DEVICES=4,5", PLANTED_ERROR, "= 101 cudaErrorInvalidDevice");
    expect(8, "CUDA_VISIBLE_DEVICES=", PLANTED_ERROR, "= 100 cudaErrorNoDevice");
    expect(8, "STANDIN_DEVICES=3", PLANTED_CLEAN, "ok");
    expect(9, "STANDIN_DEVICES=4", PLANTED_CLEAN,
           "4 x NVIDIA H100 80GB HBM3 9.0, attribute 9, shared 232448, 2 blocks, used 256\nlaunch cudaSuccess");
    expect(9, "STANDIN_DEVICE=a100", PLANTED_CLEAN, "NVIDIA A100-SXM4-80GB 8.0, attribute 8, shared 166912, 1 blocks");
    expect(9, "STANDIN_DEVICE=v100", PLANTED_CLEAN,
           "launch cudaErrorNoKernelImageForDevice, last cudaErrorNoKernelImageForDevice");
    expect(10, NULL, PLANTED_ERROR, "= 9 cudaErrorInvalidConfiguration");
    expect(11, "STANDIN_MEM=1048576", PLANTED_ERROR, "= 2 cudaErrorMemoryAllocation");
    expect(11, "STANDIN_MEM=1048832", PLANTED_MISUSE, "2 allocations leaked (1048580 bytes)");
    expect(12, NULL, PLANTED_MISUSE, "attribute 21 has no value here");
    expect(13, NULL, PLANTED_MISUSE, "5 more reports were left out");
}

static void check_settings(void **state)
{
    (void)state;
    expect(0, "STANDIN_POLICY=lazy", 2, "STANDIN_POLICY=lazy: must be eager, late or random:SEED");
    expect(0, "STANDIN_FAIL=cudaMalloc", 2, "must be NAME:N");
    expect(0, "STANDIN_DEVICE=k80", 2, "STANDIN_DEVICE=k80: must be");
    expect(0, "STANDIN_DRIVER=new", 2, "STANDIN_DRIVER=new: must be");
    expect(0, "STANDIN_STATS=1", PLANTED_CLEAN, "2 device allocations, peak 2048 bytes");
    expect(0, "STANDIN_TRACE=1", PLANTED_CLEAN, "ISSUE: memcpy [op 1, stream 1]");
}

static void check_no_driver(void **state)
{
    static farm_result real;
    char folder[4096];
    (void)state;
    snprintf(folder, sizeof folder, "LD_LIBRARY_PATH=%s", NVIDIA_FOLDER);
    const farm_result *old = planted_run(PROBE, 0, (const char *[]){"STANDIN_DRIVER=old", NULL});
    assert_int_equal(old->status[0], 0);
    assert_non_null(strstr(old->text[0], "cudaMalloc(&ptr, 10) = 35"));
    assert_non_null(strstr(old->text[0], "driver 12020\n"));
    real = *planted_run(PROBE, 0, (const char *[]){folder, NULL});
    if (real.status[0] == 77) {
        print_message("this machine has a driver: nothing to compare with\n");
        skip();
    }
    const farm_result *none = planted_run(PROBE, 0, (const char *[]){"STANDIN_DRIVER=none", NULL});
    assert_int_equal(real.status[0], 0);
    assert_int_equal(none->status[0], 0);
    assert_non_null(strstr(real.text[0], "cudaMalloc(&ptr, 10) = 35"));
    assert_non_null(strstr(real.text[0], "999 cudaErrorUnknown\n")); /* all of it was kept */
    assert_string_equal(none->text[0], real.text[0]);
}

int main(int argc, char **argv)
{
    if (argc != 4) {
        return 2;
    }
    PROGRAM = argv[1];
    PROBE = argv[2];
    NVIDIA_FOLDER = argv[3];
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(check_injected),    cmocka_unit_test(check_injected_rank), cmocka_unit_test(check_leaks),
        cmocka_unit_test(check_lost_device), cmocka_unit_test(check_devices),       cmocka_unit_test(check_settings),
        cmocka_unit_test(check_no_driver),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
