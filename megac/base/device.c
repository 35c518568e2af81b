#include "megac/base/device.h"

#include <string.h>

static const mc_device_ops *const backends[] = {&mc_device_cpu};

mc_status mc_device_open(const char *name, int ordinal, mc_device *dev_out)
{
    for (size_t i = 0; i < sizeof backends / sizeof backends[0]; i++) {
        if (strcmp(backends[i]->name, name) == 0) {
            mc_device dev = {.ops = backends[i], .ordinal = ordinal};
            MC_TRY(dev.ops->open(&dev, ordinal));
            *dev_out = dev;
            return MC_OK;
        }
    }
    return MC_FAIL(MC_UNSUPPORTED, "--device %s: this build has only the device \"cpu\"; use --device cpu", name);
}

void mc_device_close(mc_device *dev)
{
    if (dev->ops) {
        dev->ops->close(dev);
        *dev = (mc_device){0};
    }
}
