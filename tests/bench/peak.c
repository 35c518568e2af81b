#include "tests/bench/peak.h"

#include <stdbool.h>
#include <time.h>

enum { STEPS = 400000, CHAINS = 12, TASKS = 64 };

/* CHAINS vectors, enough to hide a latency of 4 to 6 cycles at two a cycle. The barrier keeps the loop from folding. */
#define DEFINE_LOOP(name, lanes, attributes)                       \
    attributes static float name(void)                             \
    {                                                              \
        typedef float vec __attribute__((vector_size(lanes * 4))); \
        vec x[CHAINS], m = {0}, q = {0};                           \
        float sum = 0.0f;                                          \
        for (int l = 0; l < lanes; l++) {                          \
            m[l] = 0.999f;                                         \
            q[l] = 0.001f;                                         \
        }                                                          \
        for (int i = 0; i < CHAINS; i++) {                         \
            x[i] = q * (float)i;                                   \
        }                                                          \
        for (int s = 0; s < STEPS; s++) {                          \
            for (int i = 0; i < CHAINS; i++) {                     \
                x[i] = x[i] * m + q;                               \
            }                                                      \
        }                                                          \
        for (int i = 0; i < CHAINS; i++) {                         \
            sum += x[i][0] + x[i][lanes - 1];                      \
        }                                                          \
        return sum;                                                \
    }

#if defined(__x86_64__)
DEFINE_LOOP(loop_avx512, 16, __attribute__((target("avx512f"))))
DEFINE_LOOP(loop_avx2, 8, __attribute__((target("avx2,fma"))))
#endif
DEFINE_LOOP(loop_plain, 4, )

typedef struct peak_job {
    float (*loop)(void);
    float out[TASKS];
} peak_job;

static void peak_task(void *arg, int task, int thread, void *scratch)
{
    peak_job *j = arg;
    (void)thread;
    (void)scratch;
    j->out[task] = j->loop();
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

double peak_gflops(mc_pool *pool)
{
    peak_job job = {.loop = loop_plain};
    int lanes = 4, n_tasks = mc_pool_threads(pool) * 4;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f")) {
        job.loop = loop_avx512;
        lanes = 16;
    } else if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        job.loop = loop_avx2;
        lanes = 8;
    }
#endif
    n_tasks = n_tasks < TASKS ? n_tasks : TASKS;
    double best = 1e30;
    for (int i = 0; i < 12; i++) {
        double t = now();
        mc_pool_run(pool, n_tasks, peak_task, &job);
        t = now() - t;
        best = t < best ? t : best;
    }
    return 2.0 * lanes * CHAINS * STEPS * n_tasks / best * 1e-9;
}
