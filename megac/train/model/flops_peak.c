/* How fast can this processor multiply and add? Independent accumulators in registers, enough of them to fill the
 * pipelines of every port (latency 4, two ports: 8 at least). */
#include <stdint.h>

#include "megac/base/clock.h"
#include "megac/train/model/flops.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

enum { CHAINS = 12, REPEATS = 5 };
static const double BUDGET_SECONDS = 3e-3;
/* Rounds of CHAINS operations: at two operations a cycle and 3 GHz, 0.3 ms. */
enum { ROUNDS = 150000 };

/* Each kernel runs x = x a + b on CHAINS vectors; with |a| < 1 the numbers stay normal. Returns their sum, so that
 * nothing can be left out. The loop over the chains is unrolled by hand: it must stay in registers. */
#define EACH_CHAIN(op) op(0) op(1) op(2) op(3) op(4) op(5) op(6) op(7) op(8) op(9) op(10) op(11)

#define DEFINE_KERNEL(name, attributes, vec, set1, step, lanes)                                   \
    attributes static float name(void)                                                            \
    {                                                                                             \
        vec a = set1(0.999f), b = set1(0.001f);                                                   \
        vec x0 = set1(0.0f), x1 = set1(0.1f), x2 = set1(0.2f);                                    \
        vec x3 = set1(0.3f), x4 = set1(0.4f), x5 = set1(0.5f);                                    \
        vec x6 = set1(0.6f), x7 = set1(0.7f), x8 = set1(0.8f);                                    \
        vec x9 = set1(0.9f), x10 = set1(1.1f), x11 = set1(1.2f);                                  \
        for (int r = 0; r < ROUNDS; r++) {                                                        \
            EACH_CHAIN(step)                                                                      \
        }                                                                                         \
        union {                                                                                   \
            vec v;                                                                                \
            float f[lanes];                                                                       \
        } u[CHAINS] = {{x0}, {x1}, {x2}, {x3}, {x4}, {x5}, {x6}, {x7}, {x8}, {x9}, {x10}, {x11}}; \
        float sum = 0.0f;                                                                         \
        for (int i = 0; i < CHAINS; i++) {                                                        \
            for (int l = 0; l < (lanes); l++) {                                                   \
                sum += u[i].f[l];                                                                 \
            }                                                                                     \
        }                                                                                         \
        return sum;                                                                               \
    }

#if defined(__x86_64__)
#define STEP_SSE(i) x##i = _mm_add_ps(_mm_mul_ps(x##i, a), b);
#define STEP_FMA(i) x##i = _mm256_fmadd_ps(x##i, a, b);
#define STEP_512(i) x##i = _mm512_fmadd_ps(x##i, a, b);
DEFINE_KERNEL(peak_v2, , __m128, _mm_set1_ps, STEP_SSE, 4)
DEFINE_KERNEL(peak_v3, __attribute__((target("avx2,fma"))), __m256, _mm256_set1_ps, STEP_FMA, 8)
DEFINE_KERNEL(peak_v4, __attribute__((target("avx512f"))), __m512, _mm512_set1_ps, STEP_512, 16)
#elif defined(__aarch64__)
#define STEP_NEON(i) x##i = vfmaq_f32(b, x##i, a);
DEFINE_KERNEL(peak_neon, , float32x4_t, vdupq_n_f32, STEP_NEON, 4)
#else
#define STEP_PLAIN(i) x##i = x##i * a + b;
#define SAME(x) (x)
DEFINE_KERNEL(peak_plain, , float, SAME, STEP_PLAIN, 1)
#endif

typedef struct kernel {
    float (*run)(void);
    int lanes;
} kernel;

static kernel choose_kernel(void)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f")) {
        return (kernel){peak_v4, 16};
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        return (kernel){peak_v3, 8};
    }
    return (kernel){peak_v2, 4};
#elif defined(__aarch64__)
    return (kernel){peak_neon, 4};
#else
    return (kernel){peak_plain, 1};
#endif
}

typedef struct job {
    kernel k;
    volatile float sink;
} job;

static void task(void *arg, int number, int thread, void *scratch)
{
    (void)number, (void)thread, (void)scratch;
    job *j = arg;
    float sum = j->k.run();
    if (sum == -1.0f) { /* never: the sum is positive */
        j->sink = sum;
    }
}

double mt_measure_peak(mc_pool *pool)
{
    job j = {.k = choose_kernel()};
    int threads = mc_pool_threads(pool);
    double flops = 2.0 * ROUNDS * CHAINS * j.k.lanes * threads, best = 0.0;
    double begin = mc_now(), start = begin;
    /* On a machine that others use too, a repeat can take many times as long: start-up must not wait for that. */
    for (int i = 0; i < REPEATS && start - begin < BUDGET_SECONDS; i++) {
        mc_pool_run(pool, threads, task, &j);
        double end = mc_now(), rate = flops / (end - start);
        best = rate > best ? rate : best;
        start = end;
    }
    return best;
}
