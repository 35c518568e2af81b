/* The accesses that kernels compiled with -fsanitize=thread report (standin/tsan_hooks.cpp), passed on to C. */
#include "tests/cuda/standin/machine.h"
#include "tests/cuda/traffic.h"

void standin::access(const void *ptr, size_t bytes, bool writes, const void *)
{
    traffic_access(ptr, bytes, writes);
}
