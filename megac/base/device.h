/* Devices: where tensors live and work is queued. One const table of functions per backend; `cpu` runs everything at
 * once and in order, so that its streams and events cost nothing; `cuda` is a module loaded on demand. */
#ifndef MEGAC_BASE_DEVICE_H
#define MEGAC_BASE_DEVICE_H

#include <stddef.h>

#include "megac/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct mc_device mc_device;

/* A queue of work and a point in it. NULL handles are the CPU's. */
typedef struct mc_stream {
    void *handle;
} mc_stream;
typedef struct mc_event {
    void *handle;
} mc_event;

typedef enum { MC_MEM_DEVICE, MC_MEM_PINNED_HOST } mc_mem;

typedef struct mc_device_ops {
    const char *name; /* "cpu" */
    /* MC_UNSUPPORTED tells why this machine has no such device. */
    mc_status (*open)(mc_device *dev, int ordinal);
    void (*close)(mc_device *dev);
    /* 256-byte aligned, not cleared. MC_NOMEM names `what` and the bytes. */
    mc_status (*alloc)(mc_device *dev, mc_mem kind, size_t bytes, const char *what, void **out);
    void (*free)(mc_device *dev, mc_mem kind, void *ptr, size_t bytes);
    /* Any direction; asynchronous on `stream` where the device has streams (host side must then be pinned). */
    mc_status (*copy)(mc_device *dev, void *dst, const void *src, size_t bytes, mc_stream stream);
    mc_status (*clear)(mc_device *dev, void *dst, size_t bytes, mc_stream stream);
    mc_status (*stream_create)(mc_device *dev, mc_stream *stream_out);
    void (*stream_destroy)(mc_device *dev, mc_stream stream);
    mc_status (*stream_sync)(mc_device *dev, mc_stream stream); /* host waits */
    mc_status (*event_create)(mc_device *dev, mc_event *event_out);
    void (*event_destroy)(mc_device *dev, mc_event event);
    mc_status (*event_record)(mc_device *dev, mc_event event, mc_stream stream);
    mc_status (*event_wait)(mc_device *dev, mc_event event, mc_stream stream); /* stream waits */
} mc_device_ops;

struct mc_device {
    const mc_device_ops *ops;
    int ordinal;
    void *impl;
};

/* Opens device `ordinal` of the backend called `name`. MC_UNSUPPORTED lists the backends of this build. */
mc_status mc_device_open(const char *name, int ordinal, mc_device *dev_out) MC_MUST_CHECK;
void mc_device_close(mc_device *dev);

extern const mc_device_ops mc_device_cpu;

#ifdef __cplusplus
}
#endif
#endif
