/* Devices: where tensors live and work is queued. One const table of functions per backend; `cpu` runs everything at
 * once and in order, so that its streams and events cost nothing; `cuda` is a module loaded on demand. */
#ifndef MEGAC_BASE_DEVICE_H
#define MEGAC_BASE_DEVICE_H

#include <stdbool.h>
#include <stddef.h>

#include "megac/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct mc_device mc_device;
struct mc_comm;

/* A queue of work and a point in it. NULL handles are the CPU's. */
typedef struct mc_stream {
    void *handle;
} mc_stream;
typedef struct mc_event {
    void *handle;
} mc_event;

/* Recorded work. */
typedef struct mc_graph {
    void *handle;
} mc_graph;

typedef enum { MC_MEM_DEVICE, MC_MEM_PINNED_HOST } mc_mem;

typedef struct mc_device_ops {
    const char *name; /* "cpu" */
    bool host_memory; /* the host reads and writes device memory as its own */
    /* (optional) default: always. Without opening device `ordinal`, false with the reason and the remedy. */
    bool (*usable)(int ordinal, char *why_out, size_t cap);
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
    mc_status (*event_sync)(mc_device *dev, mc_event event);                   /* host waits */
    /* (optional) default: no graphs. Work queued on `stream` between begin and end is not run but recorded; launch runs
     * it, as often as wanted. end returns MC_UNSUPPORTED, with the reason and nothing to launch, where something in
     * between cannot be recorded. */
    mc_status (*graph_begin)(mc_device *dev, mc_stream stream);
    mc_status (*graph_end)(mc_device *dev, mc_stream stream, mc_graph *graph_out);
    mc_status (*graph_launch)(mc_device *dev, mc_graph graph, mc_stream stream);
    void (*graph_destroy)(mc_device *dev, mc_graph graph);
    /* "NVIDIA H100 80GB HBM3, 79.1 GiB" */
    void (*describe)(mc_device *dev, char *text_out, size_t cap);
    /* (optional) default: ranks of this device exchange tensors through host communicators. Makes a communicator of the
     * device's own between the members of `host`, over which it meets them; its operations follow the work queued on
     * `stream` and `mc_comm_wait` makes `stream` follow them, without the host waiting. Without `sends` it can do
     * collectives only. Collective over `host`, which must outlive it. */
    mc_status (*comm_create)(mc_device *dev, const struct mc_comm *host, mc_stream stream, bool sends,
                             double deadline_seconds, struct mc_comm *comm_out);
    /* (optional) default: ly_ops_get("cpu"). The device's `const ly_ops *`. */
    const void *operators;
} mc_device_ops;

struct mc_device {
    const mc_device_ops *ops;
    int ordinal;
    void *impl;
};

/* Opens device `ordinal` (local rank) of the backend called `name`. "cuda" loads libmegac_cuda.so, from the program's
 * folder or the loader's path, whose symbol `mc_device_cuda` is its table; ordinals count modulo the visible devices.
 * "auto" is "cuda" where it is usable, else "cpu"; where the machine has no driver it loads nothing, and where one is
 * there but unusable it warns. MC_UNSUPPORTED lists the known names, or says which library, driver or device is missing
 * and what to do. */
mc_status mc_device_open(const char *name, int ordinal, mc_device *dev_out) MC_MUST_CHECK;
void mc_device_close(mc_device *dev);

extern const mc_device_ops mc_device_cpu;

#ifdef __cplusplus
}
#endif
#endif
