#include "layers/ops.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#if defined(__x86_64__)
extern const ly_ops ly_i_ops_cpu_v2, ly_i_ops_cpu_v3, ly_i_ops_cpu_v4;

/* The features that a variant's compiler flag lets the compiler use and that matter in kernels; the rest of each level
 * comes with them on every processor made. */
static bool runs_v2(void)
{
    return __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("popcnt");
}

static bool runs_v3(void)
{
    return runs_v2() && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
}

static bool runs_v4(void)
{
    return runs_v3() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
}
#else
extern const ly_ops ly_i_ops_cpu_base;

static bool runs_base(void)
{
    return true;
}
#endif

extern const ly_ops ly_i_ops_plan;

static bool runs_always(void)
{
    return true;
}

/* CPU variants fastest first. */
static const struct {
    const ly_ops *ops;
    bool (*runs)(void);
} backends[] = {
#if defined(__x86_64__)
    {&ly_i_ops_cpu_v4, runs_v4},
    {&ly_i_ops_cpu_v3, runs_v3},
    {&ly_i_ops_cpu_v2, runs_v2},
#else
    {&ly_i_ops_cpu_base, runs_base},
#endif
    {&ly_i_ops_plan, runs_always},
};

/* Appends " name" for every operator that the table lacks. */
static void list_missing(const ly_ops *ops, char *text, size_t bytes)
{
    text[0] = '\0';
#define LY_OP(name)                                           \
    if (!ops->name) {                                         \
        size_t used = strlen(text);                           \
        snprintf(text + used, bytes - used, "%s", " " #name); \
    }
#include "layers/ops.def"
#undef LY_OP
}

mc_status ly_ops_get(const char *backend, const ly_ops **ops_out)
{
    bool any_cpu = strcmp(backend, "cpu") == 0, known = false;
    for (size_t i = 0; i < sizeof backends / sizeof *backends; i++) {
        const ly_ops *ops = backends[i].ops;
        bool named = any_cpu ? strncmp(ops->backend, "cpu-", 4) == 0 : strcmp(ops->backend, backend) == 0;
        known |= named;
        if (!named || !backends[i].runs()) {
            continue;
        }
        char missing[512];
        list_missing(ops, missing, sizeof missing);
        if (missing[0]) {
            return MC_FAIL(MC_UNSUPPORTED, "backend %s lacks the operators:%s", ops->backend, missing);
        }
        *ops_out = ops;
        return MC_OK;
    }
    if (known) {
        return MC_FAIL(MC_UNSUPPORTED, "this processor cannot run the operators of \"%s\"; use \"cpu\"%s", backend,
                       any_cpu ? " on an x86-64-v2 processor or newer" : "");
    }
    return MC_FAIL(MC_UNSUPPORTED, "no operator backend \"%s\" in this build; known: cpu cpu-v2 cpu-v3 cpu-v4 plan",
                   backend);
}
