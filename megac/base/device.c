/* Devices by name. The CUDA backend is a module beside the program, so that the program starts without CUDA's
 * libraries. */
#include "megac/base/device.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "megac/base/log.h"

#define MODULE "libmegac_cuda.so"

/* MODULE in the program's own folder, or by name alone where it is not there: then the loader looks. */
static const char *module_path(char *path, size_t cap)
{
    ssize_t n = readlink("/proc/self/exe", path, cap - 1);
    if (n > 0) {
        path[n] = '\0';
        char *name = strrchr(path, '/');
        size_t folder = name ? (size_t)(name + 1 - path) : 0;
        if (folder + sizeof MODULE <= cap) {
            memcpy(path + folder, MODULE, sizeof MODULE);
            if (access(path, F_OK) == 0) {
                return path;
            }
        }
    }
    return MODULE;
}

static void explain_load(const char *error, char *why_out, size_t cap)
{
    static const char missing[] = "cannot open shared object file";
    if (strncmp(error, MODULE ":", sizeof MODULE) == 0 && strstr(error, missing)) {
        snprintf(why_out, cap,
                 MODULE " is neither beside the program nor on the loader's path: this build has no CUDA module; "
                        "build megac where nvcc and the CUDA toolkit are, or use --device cpu");
    } else if (strstr(error, missing)) {
        snprintf(why_out, cap,
                 "a library is missing: %s; install it or add its folder to LD_LIBRARY_PATH, or use --device cpu",
                 error);
    } else {
        snprintf(why_out, cap, MODULE " cannot be loaded: %s; build megac again, or use --device cpu", error);
    }
}

/* The table of MODULE, or NULL and why. The module is never unloaded: CUDA's libraries keep threads and exit handlers,
 * and loading it again only finds it. */
static const mc_device_ops *load_cuda(char *why_out, size_t cap)
{
    char path[4096];
    void *module = dlopen(module_path(path, sizeof path), RTLD_NOW | RTLD_LOCAL);
    const mc_device_ops *ops = module ? dlsym(module, "mc_device_cuda") : NULL;
    if (!ops) {
        const char *error = dlerror();
        explain_load(error ? error : "mc_device_cuda is empty", why_out, cap);
    }
    return ops;
}

/* Whether --device auto should look for CUDA at all: loading its libraries takes a second on a cold machine, and
 * without the driver's device file it would be in vain. The three are those of Linux, WSL 2 and Jetson;
 * MC_CUDA_DEVICE_FILE in the environment names another. */
static bool has_driver_file(void)
{
    static const char *const known[] = {"/dev/nvidiactl", "/dev/dxg", "/dev/nvhost-gpu"};
    const char *named = getenv("MC_CUDA_DEVICE_FILE");
    if (named) {
        return access(named, F_OK) == 0;
    }
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (access(known[i], F_OK) == 0) {
            return true;
        }
    }
    return false;
}

/* CUDA where it can be used; where only a driver is there, says why not. */
static const mc_device_ops *choose(int ordinal)
{
    char why[1024];
    if (!has_driver_file()) {
        return &mc_device_cpu;
    }
    const mc_device_ops *cuda = load_cuda(why, sizeof why);
    if (cuda && (!cuda->usable || cuda->usable(ordinal, why, sizeof why))) {
        return cuda;
    }
    MC_WARN("--device auto runs on the CPU although this machine has an NVIDIA driver: %s", why);
    return &mc_device_cpu;
}

mc_status mc_device_open(const char *name, int ordinal, mc_device *dev_out)
{
    mc_device dev = {.ordinal = ordinal};
    if (strcmp(name, "cpu") == 0) {
        dev.ops = &mc_device_cpu;
    } else if (strcmp(name, "auto") == 0) {
        dev.ops = choose(ordinal);
    } else if (strcmp(name, "cuda") == 0) {
        char why[1024];
        dev.ops = load_cuda(why, sizeof why);
        if (!dev.ops) {
            return MC_FAIL(MC_UNSUPPORTED, "--device cuda: %s", why);
        }
    } else {
        return MC_FAIL(MC_UNSUPPORTED, "--device %s: known are \"auto\", \"cpu\" and \"cuda\"; use --device cpu", name);
    }
    MC_TRY(dev.ops->open(&dev, ordinal));
    *dev_out = dev;
    return MC_OK;
}

void mc_device_close(mc_device *dev)
{
    if (dev->ops) {
        dev->ops->close(dev);
        *dev = (mc_device){0};
    }
}
