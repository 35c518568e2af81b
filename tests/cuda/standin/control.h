/* What a test may ask of the stand-in CUDA runtime beyond CUDA's own interface. The functions are in libcudart.so.13 of
 * the stand-in only: a program that is linked with NVIDIA's finds them with dlsym. */
#ifndef TESTS_CUDA_STANDIN_CONTROL_H
#define TESTS_CUDA_STANDIN_CONTROL_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Device allocations made so far, operations finished so far, reports so far. */
uint64_t standin_n_allocations(void);
uint64_t standin_n_operations(void);
int standin_n_misuses(void);
/* Forgets the reports: after a test that expected one, so that the process can end with status 0. */
void standin_forgive(void);
/* Tells the race detector of a host access that no instrumented code makes: read(2), a message, memcpy in a library. */
void standin_host_access(const void *ptr, size_t bytes, int writes);

#ifdef __cplusplus
}
#endif
#endif
