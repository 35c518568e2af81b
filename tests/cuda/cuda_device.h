/* The CUDA device as tests use it: opened as the program opens it, with a stream, a workspace and an operator context,
 * on the stand-in libraries or on a GPU. */
#ifndef TESTS_CUDA_CUDA_DEVICE_H
#define TESTS_CUDA_CUDA_DEVICE_H

#include "layers/ops.h"
#include "tests/unit.h"

typedef struct cuda_device {
    mc_device dev;
    ly_ctx cx;
    size_t workspace_bytes;
} cuda_device;

/* Fails the test where there is no device: what runs these tests has one, or a stand-in. */
void cuda_device_open(cuda_device *d, size_t workspace_bytes);
void cuda_device_close(cuda_device *d);

/* Pinned host memory and device memory, each filled with bytes 0xFF: NaN in every float type. */
void *cuda_host(cuda_device *d, size_t bytes);
void *cuda_memory(cuda_device *d, size_t bytes);
void cuda_host_free(cuda_device *d, void *ptr, size_t bytes);
void cuda_memory_free(cuda_device *d, void *ptr, size_t bytes);

/* Queues a copy on the context's stream; `wait` waits for the stream. */
void cuda_copy(cuda_device *d, void *dst, const void *src, size_t bytes);
void cuda_wait(cuda_device *d);

/* A function of the module that the open device came from. */
void *cuda_module_symbol(const mc_device *dev, const char *name);

/* A function of the stand-in runtime (standin/control.h), or NULL on NVIDIA's. */
void *cuda_standin(const char *name);

#endif
