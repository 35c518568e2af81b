/* The CPU as a device: memory from mmap with huge pages where the system gives them, work done at once. */
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "megac/base/device.h"

static mc_status cpu_open(mc_device *dev, int ordinal)
{
    (void)dev;
    (void)ordinal;
    return MC_OK;
}

static void cpu_close(mc_device *dev)
{
    (void)dev;
}

static mc_status cpu_alloc(mc_device *dev, mc_mem kind, size_t bytes, const char *what, void **out)
{
    (void)dev;
    (void)kind;
    void *p = mmap(NULL, bytes ? bytes : 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) {
        return MC_FAIL(MC_NOMEM,
                       "no memory for the %s arena (%zu bytes); see `megac plan` and use a smaller model or "
                       "micro-batch, or more ranks",
                       what, bytes);
    }
    madvise(p, bytes, MADV_HUGEPAGE); /* advice only: fewer page faults and TLB misses */
    *out = p;
    return MC_OK;
}

static void cpu_free(mc_device *dev, mc_mem kind, void *ptr, size_t bytes)
{
    (void)dev;
    (void)kind;
    if (ptr) {
        munmap(ptr, bytes ? bytes : 1);
    }
}

static mc_status cpu_copy(mc_device *dev, void *dst, const void *src, size_t bytes, mc_stream stream)
{
    (void)dev;
    (void)stream;
    memmove(dst, src, bytes);
    return MC_OK;
}

static mc_status cpu_clear(mc_device *dev, void *dst, size_t bytes, mc_stream stream)
{
    (void)dev;
    (void)stream;
    memset(dst, 0, bytes);
    return MC_OK;
}

static mc_status cpu_stream_create(mc_device *dev, mc_stream *stream_out)
{
    (void)dev;
    *stream_out = (mc_stream){0};
    return MC_OK;
}

static void cpu_stream_destroy(mc_device *dev, mc_stream stream)
{
    (void)dev;
    (void)stream;
}

static mc_status cpu_stream_sync(mc_device *dev, mc_stream stream)
{
    (void)dev;
    (void)stream;
    return MC_OK;
}

static mc_status cpu_event_create(mc_device *dev, mc_event *event_out)
{
    (void)dev;
    *event_out = (mc_event){0};
    return MC_OK;
}

static void cpu_event_destroy(mc_device *dev, mc_event event)
{
    (void)dev;
    (void)event;
}

static mc_status cpu_event_order(mc_device *dev, mc_event event, mc_stream stream)
{
    (void)dev;
    (void)event;
    (void)stream;
    return MC_OK;
}

static mc_status cpu_event_sync(mc_device *dev, mc_event event)
{
    (void)dev;
    (void)event;
    return MC_OK;
}

static void cpu_describe(mc_device *dev, char *text_out, size_t cap)
{
    (void)dev;
    snprintf(text_out, cap, "CPU");
}

const mc_device_ops mc_device_cpu = {
    .name = "cpu",
    .host_memory = true,
    .open = cpu_open,
    .close = cpu_close,
    .alloc = cpu_alloc,
    .free = cpu_free,
    .copy = cpu_copy,
    .clear = cpu_clear,
    .stream_create = cpu_stream_create,
    .stream_destroy = cpu_stream_destroy,
    .stream_sync = cpu_stream_sync,
    .event_create = cpu_event_create,
    .event_destroy = cpu_event_destroy,
    .event_record = cpu_event_order,
    .event_wait = cpu_event_order,
    .event_sync = cpu_event_sync,
    .describe = cpu_describe,
};
