/* Called for every access of a kernel to memory, by traffic_hooks.cpp. */
#ifndef TESTS_CUDA_TRAFFIC_H
#define TESTS_CUDA_TRAFFIC_H

#include <stdbool.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

void traffic_access(const void *ptr, size_t bytes, bool writes);

#ifdef __cplusplus
}
#endif
#endif
