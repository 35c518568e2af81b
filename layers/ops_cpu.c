/* The table of one CPU variant, generated from the list: an operator without a CPU version is a link error. */
#include "layers/cpu/isa.h"

extern const ly_ops LY_CPU(i_ops);

const ly_ops LY_CPU(i_ops) = {
    .backend = LY_CPU_BACKEND,
#define LY_OP(name) .name = LY_CPU(name),
#include "layers/ops.def"
#undef LY_OP
};
