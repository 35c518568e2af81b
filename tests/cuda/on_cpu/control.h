/* What a test says to the runtime that executes kernels on the CPU, and what it hears from it. */
#ifndef TESTS_CUDA_ON_CPU_CONTROL_H
#define TESTS_CUDA_ON_CPU_CONTROL_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* In which order threads of a block, blocks of a grid and pending asynchronous copies take their turns. A kernel whose
 * result depends on it has a race. Default: forward, or what LY_ON_CPU_ORDER says (forward, reverse, random:SEED). */
typedef enum { LY_ON_CPU_FORWARD, LY_ON_CPU_REVERSE, LY_ON_CPU_RANDOM } ly_on_cpu_order;

/* For the launches that follow; the seed counts for LY_ON_CPU_RANDOM only. */
void ly_on_cpu_set_order(ly_on_cpu_order order, uint64_t seed);

/* Forgets the error and the count of launches. */
void ly_on_cpu_reset(void);
/* What went wrong in the first failed launch since ly_on_cpu_reset ("" where none did): kernel, block, thread, cause
 * and source line. With LY_ON_CPU_ABORT=1 in the environment it is printed and the process aborts at that point. */
const char *ly_on_cpu_error(void);
/* Grids executed since ly_on_cpu_reset. */
int ly_on_cpu_n_launches(void);

#ifdef __cplusplus
}
#endif
#endif
