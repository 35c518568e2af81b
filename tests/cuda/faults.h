/* Kernels with one known fault each, and sound ones: what the runtime in on_cpu/ must find, and must not. */
#ifndef TESTS_CUDA_FAULTS_H
#define TESTS_CUDA_FAULTS_H

#ifdef __cplusplus
extern "C" {
#endif

enum { FAULT_OUT = 256, FAULT_IN = 1024 }; /* elements of y, of x */

/* Launches kernel `name` on y (FAULT_OUT) and x (FAULT_IN); returns what the launch said, or -1 for an unknown name. */
int fault_launch(const char *name, float *y, const float *x);
/* Launches a sound kernel in this configuration; returns what the launch said. With `ask`, cudaFuncSetAttribute first
 * (its error, if it has one, is returned). */
int fault_configure(const unsigned grid[3], const unsigned block[3], int shared_bytes, int ask, float *y);

#ifdef __cplusplus
}
#endif
#endif
