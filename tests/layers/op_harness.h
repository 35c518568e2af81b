/* Runs an operator on every CPU variant of this machine with 1, 2 and 3 threads: guarded buffers, NaN-filled outputs,
 * bitwise equality over thread counts, comparison with a double-precision reference written in each test. */
#ifndef TESTS_LAYERS_OP_HARNESS_H
#define TESTS_LAYERS_OP_HARNESS_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka.h needs the four above. */
#include <cmocka.h>

#include "layers/ops.h"

/* One run of a test body: where it runs, and what it produced so far. */
typedef struct lt_run {
    ly_ctx cx;
    int n_threads;
    uint64_t digest; /* of everything given to lt_output */
} lt_run;

typedef void (*lt_body)(lt_run *run, const void *arg);

/* Calls body for every variant and thread count; asserts that lt_output saw the same bytes for every thread count and
 * that no guard was touched. Frees the buffers that the functions below gave. At least one variant must run. */
void lt_for_all(lt_body body, const void *arg);

/* n floats between guards, all NaN. */
float *lt_f32(int64_t n);
/* n floats between guards, uniform in [low, high), the same for the same seed. */
float *lt_rand(int64_t n, uint32_t seed, float low, float high);
/* A guarded copy of n floats. */
float *lt_copy(const float *x, int64_t n);
/* n integers between guards, uniform in [low, high). */
int32_t *lt_ints(int64_t n, uint32_t seed, int32_t low, int32_t high);

/* n elements of `type` between guards: all NaN; x rounded to the type; and x of that type widened, as f32. */
void *lt_typed(mc_dtype type, int64_t n);
void *lt_round(mc_dtype type, const float *x, int64_t n);
float *lt_widen(mc_dtype type, const void *x, int64_t n);

/* Adds an output to the digest of the run. */
void lt_output(lt_run *run, const void *data, int64_t bytes);
/* |got - want| <= tolerance * scale, and NaN only where want is; names the element otherwise. */
void lt_close(const char *what, int64_t index, float got, double want, double tolerance, double scale);
void lt_close_n(const char *what, const float *got, const double *want, int64_t n, double tolerance, double scale);

mc_tensor lt_1d(const float *x, int64_t n);
mc_tensor lt_2d(const float *x, int64_t rows, int64_t cols);

#endif
