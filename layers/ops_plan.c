/* The "plan" table: every operator succeeds and touches nothing, so that a whole step can be walked without memory. */
#include "layers/ops.h"

#define LY_OP(name)                                                    \
    static mc_status name##_plan(const ly_ctx *cx, const ly_##name *a) \
    {                                                                  \
        (void)cx;                                                      \
        (void)a;                                                       \
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
