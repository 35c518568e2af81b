/* What the processor can do at most. */
#ifndef TESTS_BENCH_PEAK_H
#define TESTS_BENCH_PEAK_H

#include "megac/base/pool.h"

/* GFLOP/s of independent f32 fused multiply-adds in registers on all threads of the pool together, with the widest
 * vectors that this processor has. */
double peak_gflops(mc_pool *pool);

#endif
