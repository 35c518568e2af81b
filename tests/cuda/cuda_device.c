#include "tests/cuda/cuda_device.h"

#include <dlfcn.h>

void cuda_device_open(cuda_device *d, size_t workspace_bytes)
{
    *d = (cuda_device){.workspace_bytes = workspace_bytes};
    assert_int_equal(mc_device_open("cuda", 0, &d->dev), MC_OK);
    const mc_device_ops *o = d->dev.ops;
    d->cx.ops = o->operators;
    d->cx.backend = d->dev.impl;
    assert_non_null(d->cx.ops);
    assert_int_equal(o->stream_create(&d->dev, &d->cx.stream), MC_OK);
    if (workspace_bytes > 0) {
        d->cx.workspace = cuda_memory(d, workspace_bytes);
        d->cx.workspace_bytes = workspace_bytes;
    }
}

void cuda_device_close(cuda_device *d)
{
    if (!d->dev.ops) { /* opening failed */
        return;
    }
    cuda_wait(d);
    if (d->cx.workspace) {
        cuda_memory_free(d, d->cx.workspace, d->workspace_bytes);
    }
    d->dev.ops->stream_destroy(&d->dev, d->cx.stream);
    mc_device_close(&d->dev);
}

void *cuda_host(cuda_device *d, size_t bytes)
{
    void *p = NULL;
    assert_int_equal(d->dev.ops->alloc(&d->dev, MC_MEM_PINNED_HOST, bytes, "test", &p), MC_OK);
    memset(p, 0xff, bytes);
    return p;
}

void *cuda_memory(cuda_device *d, size_t bytes)
{
    void *p = NULL, *nan = cuda_host(d, bytes);
    assert_int_equal(d->dev.ops->alloc(&d->dev, MC_MEM_DEVICE, bytes, "test", &p), MC_OK);
    cuda_copy(d, p, nan, bytes);
    cuda_wait(d);
    cuda_host_free(d, nan, bytes);
    return p;
}

void cuda_host_free(cuda_device *d, void *ptr, size_t bytes)
{
    d->dev.ops->free(&d->dev, MC_MEM_PINNED_HOST, ptr, bytes);
}

void cuda_memory_free(cuda_device *d, void *ptr, size_t bytes)
{
    d->dev.ops->free(&d->dev, MC_MEM_DEVICE, ptr, bytes);
}

void cuda_copy(cuda_device *d, void *dst, const void *src, size_t bytes)
{
    assert_int_equal(d->dev.ops->copy(&d->dev, dst, src, bytes, d->cx.stream), MC_OK);
}

void cuda_wait(cuda_device *d)
{
    assert_int_equal(d->dev.ops->stream_sync(&d->dev, d->cx.stream), MC_OK);
}

static void *symbol(const char *library, const char *name)
{
    void *handle = dlopen(library, RTLD_NOW | RTLD_NOLOAD);
    return handle ? dlsym(handle, name) : NULL;
}

void *cuda_module_symbol(const mc_device *dev, const char *name)
{
    Dl_info module; /* wherever it was found */
    assert_true(dladdr(dev->ops, &module));
    return symbol(module.dli_fname, name);
}

void *cuda_standin(const char *name)
{
    return symbol("libcudart.so.13", name);
}
