/* Where the time of a step goes, operator by operator: a table that times each call and passes it on. */
#ifndef LAYERS_PROFILE_H
#define LAYERS_PROFILE_H

#include <stdint.h>
#include <stdio.h>

#include "layers/ops.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
#define LY_OP(name) LY_OP_##name,
#include "layers/ops.def"
#undef LY_OP
    LY_OP_COUNT
};

typedef struct ly_profile {
    const ly_ops *inner; /* the table that does the work */
    double seconds[LY_OP_COUNT];
    int64_t calls[LY_OP_COUNT];
    double gemm_flops; /* 2 M N K of every product */
} ly_profile;

/* Makes `cx` time its operators into `profile` (kept, and cleared here) from now on. Each call waits for its own end,
 * so on a device with streams the sum is longer than the step. */
void ly_profile_attach(ly_profile *profile, ly_ctx *cx);

/* One line an operator, the most expensive first: seconds, calls, share of `total_seconds`; then what is left of them.
 */
void ly_profile_print(const ly_profile *profile, double total_seconds, FILE *out);

#ifdef __cplusplus
}
#endif
#endif
