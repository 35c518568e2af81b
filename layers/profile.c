#include "layers/profile.h"

#include <string.h>

#include "megac/base/clock.h"

static const char *const names[LY_OP_COUNT] = {
#define LY_OP(name) [LY_OP_##name] = #name,
#include "layers/ops.def"
#undef LY_OP
};

/* Operations of a call, where they are worth counting: products only. */
static double flops_of_gemm(const ly_gemm *a)
{
    return 2.0 * (double)mc_tensor_elems(a->c) * (double)a->a.dims[a->trans_a ? 0 : 1];
}

#define LY_OP(name)                                                     \
    static mc_status name##_timed(const ly_ctx *cx, const ly_##name *a) \
    {                                                                   \
        ly_profile *p = cx->profile;                                    \
        double start = mc_now();                                        \
        mc_status st = p->inner->name(cx, a);                           \
        if (LY_OP_##name == LY_OP_gemm) {                               \
            p->gemm_flops += flops_of_gemm((const void *)a);            \
        }                                                               \
        p->seconds[LY_OP_##name] += mc_now() - start;                   \
        p->calls[LY_OP_##name]++;                                       \
        return st;                                                      \
    }
#include "layers/ops.def"
#undef LY_OP

static const ly_ops timed = {
    .backend = "timed",
#define LY_OP(name) .name = name##_timed,
#include "layers/ops.def"
#undef LY_OP
};

void ly_profile_attach(ly_profile *profile, ly_ctx *cx)
{
    *profile = (ly_profile){.inner = cx->profile ? cx->profile->inner : cx->ops};
    cx->profile = profile;
    cx->ops = &timed;
}

void ly_profile_print(const ly_profile *profile, double total_seconds, FILE *out)
{
    bool printed[LY_OP_COUNT] = {false};
    double sum = 0;
    fprintf(out, "%-18s %10s %10s %8s\n", "operator", "seconds", "calls", "share");
    for (int n = 0; n < LY_OP_COUNT; n++) {
        int top = -1;
        for (int i = 0; i < LY_OP_COUNT; i++) {
            if (!printed[i] && profile->calls[i] > 0 && (top < 0 || profile->seconds[i] > profile->seconds[top])) {
                top = i;
            }
        }
        if (top < 0) {
            break;
        }
        printed[top] = true;
        sum += profile->seconds[top];
        fprintf(out, "%-18s %10.4f %10lld %7.2f%%\n", names[top], profile->seconds[top], (long long)profile->calls[top],
                100 * profile->seconds[top] / total_seconds);
    }
    fprintf(out, "%-18s %10.4f %10s %7.2f%%\n", "all else", total_seconds - sum, "",
            100 * (total_seconds - sum) / total_seconds);
    if (profile->seconds[LY_OP_gemm] > 0) {
        fprintf(out, "gemm: %.1f GFLOP/s\n", 1e-9 * profile->gemm_flops / profile->seconds[LY_OP_gemm]);
    }
}
