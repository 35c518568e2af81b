/* What finds what: kernels with one planted fault each, and sound ones, under every way in which kernels are run here.
 * A mode must find exactly the faults that the table says, so that a mode that goes blind, or cries wolf, fails.
 *
 * Built three times: plain; with kernels under ThreadSanitizer (LY_ON_CPU_TSAN; LY_ON_CPU_TSAN_BLOCKS=1 looks between
 * blocks); and with the whole build under AddressSanitizer, where a fault ends a child process. */
#include <fcntl.h>
#include <math.h>
#include <stdbool.h>
#include <sys/wait.h>

#include "tests/cuda/faults.h"
#include "tests/cuda/on_cpu/control.h"
#include "tests/cuda/races.h"
#include "tests/unit.h"

#if defined(__SANITIZE_ADDRESS__)
enum { UNDER_ASAN = 1 };
#else
enum { UNDER_ASAN = 0 };
#endif

enum {
    ERROR = 1,       /* the launch fails with this text */
    ORDER = 2,       /* results depend on the order of threads and blocks */
    NANS = 4,        /* the result has NaN */
    OUTSIDE = 8,     /* memory around the output has changed */
    RACE = 16,       /* ThreadSanitizer, blocks one after another */
    BLOCK_RACE = 32, /* ThreadSanitizer, blocks not ordered; shared memory is not looked at */
    ADDRESS = 64,    /* AddressSanitizer or UndefinedBehaviorSanitizer */
    PLAIN = ERROR | ORDER | NANS | OUTSIDE,
};

static const struct fault {
    const char *name;
    unsigned found_by;
    const char *text; /* in the launch's error */
} faults[] = {
    {"missing_barrier", ORDER | NANS | RACE, NULL},
    {"missing_barrier_in_loop", ORDER | RACE, NULL},
    {"barrier_in_branch", ERROR, "reached by 64 of 128 threads"},
    {"two_barriers", ERROR, "while other threads of the block wait at"},
    {"return_before_barrier", ERROR, "reached by 100 of 128 threads"},
    {"shuffle_in_branch", ERROR, "mask ffffffff, but only lanes 0000ffff arrived"},
    {"shuffle_from_returned", ERROR, "lane 4 reads lane 20, which does not take part"},
    {"shuffle_mask_lacks_caller", ERROR, "calls with mask 0000ffff, which lacks it"},
    {"masks_overlap", ERROR, "overlaps mask"},
    {"collectives_differ", ERROR, "while other lanes of its mask wait at"},
    {"missing_warp_barrier", ORDER | NANS | RACE, NULL},
    {"uninitialised_shared", NANS, NULL},
    {"uninitialised_in_template<float>", NANS, NULL},
    {"uninitialised_dynamic", NANS, NULL},
    {"outside_static_shared", ERROR | ADDRESS, "index 128 is outside 'float [128]'"},
    {"write_outside_dynamic_shared", ERROR | ADDRESS, "past the 512 bytes of dynamic shared memory"},
    {"read_outside_dynamic_shared", ADDRESS, NULL},
    {"write_outside_global", OUTSIDE | ADDRESS, NULL},
    {"misaligned_vector", ERROR | ADDRESS, "misaligned address"},
    {"blocks_write_one_place", ORDER | BLOCK_RACE, NULL},
    {"blocks_write_one_value", BLOCK_RACE, NULL},
    {"float_atomics", ORDER, NULL},
    {"last_block_without_fence", BLOCK_RACE, NULL},
    {"weak_pipeline_wait", ORDER | NANS, NULL},
    {"buffer_still_read", ORDER | RACE, NULL},
    {"misaligned_copy", ERROR, "aligned to as many"},
    {"misaligned_tile", ERROR, "32-byte alignment"},
    {"sound_barrier", 0, NULL},
    {"sound_dynamic_shared", 0, NULL},
    {"sound_warp_barrier", 0, NULL},
    {"sound_half_warps", 0, NULL},
    {"sound_block_sum", 0, NULL},
    {"sound_integer_atomics", 0, NULL},
    {"sound_last_block", 0, NULL},
    {"sound_pipeline", 0, NULL},
    {"sound_tile", 0, NULL},
};
enum { N_FAULTS = sizeof faults / sizeof *faults, GUARD = UNDER_ASAN ? 0 : 32, N_ORDERS = 5 };

static const struct {
    ly_on_cpu_order order;
    unsigned seed;
} orders[N_ORDERS] = {
    {LY_ON_CPU_FORWARD, 0}, {LY_ON_CPU_REVERSE, 0}, {LY_ON_CPU_RANDOM, 1}, {LY_ON_CPU_RANDOM, 2}, {LY_ON_CPU_RANDOM, 3},
};

/* --- running --- */

typedef struct outcome {
    float y[FAULT_OUT];
    bool outside, failed;
    char error[1024];
} outcome;

static void run(const char *name, int order, outcome *out)
{
    /* Exact blocks, so that AddressSanitizer sees their ends; its memory functions see the rest. */
    float *x = aligned_alloc(64, FAULT_IN * sizeof *x), *y = aligned_alloc(64, (FAULT_OUT + 2 * GUARD) * sizeof *y);
    assert_non_null(x);
    assert_non_null(y);
    for (int i = 0; i < FAULT_IN; i++) {
        x[i] = (float)(i * 37 % 101) / 64.0f;
    }
    for (int i = 0; i < FAULT_OUT + 2 * GUARD; i++) {
        y[i] = 0;
    }
    ly_on_cpu_reset();
    ly_on_cpu_set_order(orders[order].order, orders[order].seed);
    int error = fault_launch(name, y + GUARD, x);
    assert_int_not_equal(error, -1);
    out->failed = error != 0;
    snprintf(out->error, sizeof out->error, "%s", ly_on_cpu_error());
    assert_int_equal(out->failed, out->error[0] != '\0');
    assert_int_equal(ly_on_cpu_n_launches(), 1);
    out->outside = false;
    for (int i = 0; i < GUARD; i++) {
        out->outside |= y[i] != 0 || y[GUARD + FAULT_OUT + i] != 0;
    }
    memcpy(out->y, y + GUARD, sizeof out->y);
    free(x);
    free(y);
}

static unsigned look(const struct fault *f)
{
    static outcome first, other;
    unsigned found = 0;
    for (int o = 0; o < N_ORDERS; o++) {
        outcome *out = o == 0 ? &first : &other;
        run(f->name, o, out);
        found |= out->failed ? ERROR : 0;
        found |= out->outside ? OUTSIDE : 0;
        /* What a failed launch leaves is not a result. */
        found |= !first.failed && memcmp(first.y, out->y, sizeof first.y) != 0 ? ORDER : 0;
        for (int i = 0; i < FAULT_OUT; i++) {
            found |= !out->failed && isnan(out->y[i]) ? NANS : 0;
        }
        if (out->failed && f->text && !strstr(out->error, f->text)) {
            fail_msg("%s: the error is \"%s\", which lacks \"%s\"", f->name, out->error, f->text);
        }
        if (out->failed && !strstr(out->error, f->name)) {
            fail_msg("%s: the error \"%s\" does not name the kernel", f->name, out->error);
        }
    }
    return found;
}

#if defined(__SANITIZE_ADDRESS__)
/* In a child, which a fault ends with a report. */
static bool ends_a_child(const char *name)
{
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        static outcome out;
        dup2(open("/dev/null", O_WRONLY), STDERR_FILENO);
        run(name, 0, &out);
        _exit(0);
    }
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    return status != 0;
}
#endif

static const char *words(unsigned found)
{
    static char text[128];
    static const char *const names[] = {"error", "order", "NaN", "outside", "race", "block race", "address"};
    text[0] = '\0';
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (found >> i & 1) {
            snprintf(text + strlen(text), sizeof text - strlen(text), "%s%s", text[0] ? ", " : "", names[i]);
        }
    }
    return text[0] ? text : "nothing";
}

static void fault_is_found(void **state)
{
    const struct fault *f = *state;
    unsigned looked_for, found;
#if defined(LY_ON_CPU_TSAN)
    /* Static shared memory is not filled with NaN, nor are indices checked, in this build. */
    looked_for = getenv("LY_ON_CPU_TSAN_BLOCKS") ? BLOCK_RACE : RACE;
    races_reset(1);
    (void)look(f);
    found = races_seen() ? looked_for : 0;
    /* By name: the kernel, or a function that it calls. */
    char name[64];
    snprintf(name, sizeof name, "%.*s", (int)strcspn(f->name, "<"), f->name);
    if (found && !strstr(races_first(), name) && !strstr(races_first(), "pipelined_sum") &&
        !strstr(races_first(), "copy_now")) {
        fail_msg("%s: a race was found in %s instead", f->name, races_first());
    }
#elif defined(__SANITIZE_ADDRESS__)
    looked_for = f->found_by & ADDRESS ? ADDRESS : ERROR;
    found = f->found_by & ADDRESS ? (ends_a_child(f->name) ? ADDRESS : 0) : look(f) & ERROR;
#else
    looked_for = PLAIN;
    found = look(f);
#endif
    if (found != (f->found_by & looked_for)) {
        print_error("%s must be found by: %s\n", f->name, words(f->found_by & looked_for));
        fail_msg("%s was found by: %s", f->name, words(found));
    }
    if (found) {
        printf("# %-34s %s\n", f->name, words(found));
    }
}

/* --- sound kernels compute what they say --- */

static void sound_kernels_are_right(void **state)
{
    (void)state;
    static outcome out;
    float x[512];
    for (int i = 0; i < 512; i++) {
        x[i] = (float)(i * 37 % 101) / 64.0f;
    }
    run("sound_block_sum", 2, &out);
    double sum = 0;
    for (int i = 0; i < 128; i++) {
        sum += x[i];
    }
    assert_true(fabs(out.y[255] - sum) < 1e-4 && out.y[0] == out.y[255]);
    run("sound_last_block", 2, &out);
    assert_true(out.y[FAULT_OUT - 1] == x[0] + x[1] + x[2] + x[3]);
    run("sound_pipeline", 3, &out);
    for (int t = 0; t < 32; t++) {
        double want = 0;
        for (int k = 0; k < 4; k++) {
            for (int i = 0; i < 4; i++) {
                want += x[128 * k + (4 * t + 4 + i) % 128];
            }
        }
        assert_true(fabs(out.y[t] - want) < 1e-4);
    }
    /* x has 7 significant bits: exact in bf16, and so are the products in f32. */
    run("sound_tile", 2, &out);
    for (int r = 0; r < 16; r++) {
        for (int c = 0; c < 16; c++) {
            double want = 0;
            for (int k = 0; k < 16; k++) {
                want += (double)x[r * 16 + k] * x[c * 16 + k];
            }
            assert_true(fabs(out.y[r * 16 + c] - want) < 1e-5);
        }
    }
}

/* --- configurations --- */

static void configurations_are_checked(void **state)
{
    (void)state;
    static const struct {
        unsigned grid[3], block[3];
        int shared_bytes, ask, error;
        const char *text;
    } rows[] = {
        {{1, 1, 1}, {1024, 1, 1}, 0, 0, 0, ""},
        {{1, 1, 1}, {1025, 1, 1}, 0, 0, 9, "a block of (1025,1,1) threads"},
        {{1, 1, 1}, {32, 33, 1}, 0, 0, 9, "a block of (32,33,1) threads"},
        {{1, 1, 1}, {0, 1, 1}, 0, 0, 9, "a block of (0,1,1) threads"},
        {{1, 1, 1}, {1, 1, 64}, 0, 0, 0, ""},
        {{1, 1, 1}, {1, 1, 65}, 0, 0, 9, "a block of (1,1,65) threads"},
        {{0, 1, 1}, {32, 1, 1}, 0, 0, 9, "a grid of (0,1,1) blocks"},
        {{1, 65536, 1}, {32, 1, 1}, 0, 0, 9, "a grid of (1,65536,1) blocks"},
        {{1, 1, 65536}, {32, 1, 1}, 0, 0, 9, "a grid of (1,1,65536) blocks"},
        {{1, 65535, 1}, {1, 1, 1}, 0, 0, 0, ""},
        {{1, 1, 1}, {32, 1, 1}, 49152, 0, 0, ""},
        {{1, 1, 1}, {32, 1, 1}, 49153, 0, 1, "49153 bytes of dynamic shared memory"},
        {{1, 1, 1}, {32, 1, 1}, 163 * 1024, 1, 0, ""},
        {{1, 1, 1}, {32, 1, 1}, 163 * 1024 + 1, 1, 1, ""},
    };
    float y[FAULT_OUT] = {0};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        ly_on_cpu_reset();
        int error = fault_configure(rows[i].grid, rows[i].block, rows[i].shared_bytes, rows[i].ask, y);
        assert_int_equal(error, rows[i].error);
        assert_non_null(strstr(ly_on_cpu_error(), rows[i].text));
        assert_int_equal(ly_on_cpu_n_launches(), error ? 0 : 1);
    }
}

/* usage: test_on_cpu [PATTERN] */
int main(int argc, char **argv)
{
    if (argc > 1) {
        cmocka_set_test_filter(argv[1]);
    }
    static struct CMUnitTest tests[N_FAULTS + 2];
    for (int i = 0; i < N_FAULTS; i++) {
        tests[i] = (struct CMUnitTest){
            .name = faults[i].name, .test_func = fault_is_found, .initial_state = (void *)(uintptr_t)&faults[i]};
    }
    tests[N_FAULTS] = (struct CMUnitTest)cmocka_unit_test(sound_kernels_are_right);
    tests[N_FAULTS + 1] = (struct CMUnitTest)cmocka_unit_test(configurations_are_checked);
    return _cmocka_run_group_tests("on_cpu", tests, N_FAULTS + 2, NULL, NULL);
}
