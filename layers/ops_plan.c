/* The "plan" table: every operator succeeds and touches nothing, so that a whole step can be walked without memory.
 * What it would need of a device's workspace is kept. */
#include "layers/workspace.h"

static void keep_peak(const ly_ctx *cx, size_t bytes)
{
    if (bytes > *cx->workspace_peak) {
        *cx->workspace_peak = bytes;
    }
}

#define LY_OP(name)                                                    \
    static mc_status name##_plan(const ly_ctx *cx, const ly_##name *a) \
    {                                                                  \
        if (cx && cx->workspace_peak) {                                \
            keep_peak(cx, ly_workspace_bytes_##name(a));               \
        }                                                              \
        return MC_OK;                                                  \
    }
#include "layers/ops.def"
#undef LY_OP

extern const ly_ops ly_i_ops_plan;

const ly_ops ly_i_ops_plan = {
    .backend = "plan",
#define LY_OP(name) .name = name##_plan,
#include "layers/ops.def"
#undef LY_OP
};
