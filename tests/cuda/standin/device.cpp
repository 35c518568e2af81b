/* libcudart: which devices there are, and what they say of themselves. */
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "tests/cuda/standin/machine_impl.h"

using namespace standin;

/* As NVIDIA's documents describe them; what no host code of ours asks is left out. */
struct Model {
    const char *key, *name;
    int major, minor, n_processors, shared_optin_bytes, shared_processor_bytes, l2_bytes, bus_bits, max_blocks;
};

static const Model MODELS[] = {
    {"h100", "NVIDIA H100 80GB HBM3", 9, 0, 132, 227 << 10, 228 << 10, 50 << 20, 5120, 32},
    {"a100", "NVIDIA A100-SXM4-80GB", 8, 0, 108, 163 << 10, 164 << 10, 40 << 20, 5120, 32},
    {"b200", "NVIDIA B200", 10, 0, 148, 227 << 10, 228 << 10, 126 << 20, 8192, 32},
    {"v100", "Tesla V100-SXM2-16GB", 7, 0, 80, 96 << 10, 96 << 10, 6 << 20, 4096, 32},
};

enum {
    WARP = 32,
    BLOCK_THREADS = 1024,
    PROCESSOR_THREADS = 2048,
    PROCESSOR_REGISTERS = 65536,
    SHARED_BYTES = 48 << 10, /* per block, without asking */
    SHARED_RESERVED_BYTES = 1 << 10,
    MAX_GRID_X = 2147483647,
    MAX_GRID_YZ = 65535,
    OLD_DRIVER = 12020,
};

static const Model *model = &MODELS[0];
static int n_devices = 8;

/* CUDA_VISIBLE_DEVICES hides what it does not list. */
static int n_visible()
{
    const char *list = getenv("CUDA_VISIBLE_DEVICES");
    int n = atoi(env("STANDIN_DEVICES", "8"));
    if (!list)
        return n;
    int n_listed = *list != '\0';
    for (const char *p = list; *p; p++)
        n_listed += *p == ',';
    return n_listed < n ? n_listed : n;
}

void standin::device_start(Machine &m)
{
    std::string driver = env("STANDIN_DRIVER", "present"), key = env("STANDIN_DEVICE", "h100");
    if (driver != "present" && driver != "none" && driver != "old")
        die(2, "STANDIN_DRIVER=%s: must be present, none or old", driver.c_str());
    n_devices = n_visible();
    m.driver = driver == "none"  ? Driver::none
               : driver == "old" ? Driver::old
               : n_devices < 1   ? Driver::no_device
                                 : Driver::present;
    model = nullptr;
    for (const Model &candidate : MODELS) {
        if (key == candidate.key)
            model = &candidate;
    }
    if (!model)
        die(2, "STANDIN_DEVICE=%s: must be h100, a100, b200 or v100", key.c_str());
}

cudaError_t standin::device_error()
{
    const Machine &m = machine();
    switch (m.driver) {
    case Driver::none:
    case Driver::old:
        return cudaErrorInsufficientDriver;
    case Driver::no_device:
        return cudaErrorNoDevice;
    case Driver::present:
        break;
    }
    return m.lost;
}

void standin::device_touch()
{
    machine().device_used = true;
}

size_t standin::device_shared_bytes()
{
    return static_cast<size_t>(model->shared_optin_bytes);
}

cudaError_t standin::device_accepts(dim3 grid, dim3 block)
{
    uint64_t threads = static_cast<uint64_t>(block.x) * block.y * block.z;
    bool fits = threads >= 1 && threads <= BLOCK_THREADS && block.x <= 1024 && block.y <= 1024 && block.z <= 64 &&
                grid.x >= 1 && grid.x <= MAX_GRID_X && grid.y >= 1 && grid.y <= MAX_GRID_YZ && grid.z >= 1 &&
                grid.z <= MAX_GRID_YZ;
    if (model->major < 8)
        return cudaErrorNoKernelImageForDevice;
    return fits ? cudaSuccess : cudaErrorInvalidConfiguration;
}

STANDIN_API cudaRuntimeGetVersion(int *version)
{
    *version = CUDART_VERSION;
    return cudaSuccess;
}

/* 0: there is none. */
STANDIN_API cudaDriverGetVersion(int *version)
{
    Driver driver = machine().driver;
    *version = driver == Driver::none ? 0 : driver == Driver::old ? OLD_DRIVER : CUDART_VERSION;
    return cudaSuccess;
}

STANDIN_API cudaGetDeviceCount(int *n)
{
    STANDIN_ENTER(cudaGetDeviceCount);
    *n = n_devices;
    return cudaSuccess;
}

/* One device per process: memory and streams of two are not kept apart here. */
STANDIN_API cudaSetDevice(int device)
{
    STANDIN_ENTER(cudaSetDevice);
    Machine &m = machine();
    STANDIN_NEEDS(device >= 0 && device < n_devices, cudaErrorInvalidDevice);
    if (m.device_used && device != m.device)
        misuse("cudaSetDevice(%d): this process has used device %d already; one device per process", device, m.device);
    m.device = device;
    return cudaSuccess;
}

STANDIN_API cudaInitDevice(int device, unsigned, unsigned)
{
    STANDIN_ENTER(cudaInitDevice);
    STANDIN_NEEDS(device >= 0 && device < n_devices, cudaErrorInvalidDevice);
    return cudaSuccess;
}

STANDIN_API cudaGetDevice(int *device)
{
    STANDIN_ENTER(cudaGetDevice);
    *device = machine().device;
    return cudaSuccess;
}

STANDIN_API cudaSetDeviceFlags(unsigned)
{
    STANDIN_ENTER(cudaSetDeviceFlags);
    return cudaSuccess;
}

STANDIN_API cudaDeviceGetStreamPriorityRange(int *least, int *greatest)
{
    STANDIN_ENTER(cudaDeviceGetStreamPriorityRange);
    *least = 0;
    *greatest = -5;
    return cudaSuccess;
}

STANDIN_API cudaDeviceCanAccessPeer(int *can, int, int)
{
    STANDIN_ENTER(cudaDeviceCanAccessPeer);
    *can = 0;
    return cudaSuccess;
}

STANDIN_API cudaDeviceGetPCIBusId(char *text, int cap, int device)
{
    STANDIN_ENTER(cudaDeviceGetPCIBusId);
    STANDIN_NEEDS(device >= 0 && device < n_devices && cap > 0, cudaErrorInvalidValue);
    snprintf(text, static_cast<size_t>(cap), "0000:%02X:00.0", device + 1);
    return cudaSuccess;
}

STANDIN_API cudaGetDeviceProperties(cudaDeviceProp *p, int device)
{
    STANDIN_ENTER(cudaGetDeviceProperties);
    STANDIN_NEEDS(device >= 0 && device < n_devices, cudaErrorInvalidDevice);
    memset(p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "%s", model->name);
    memset(&p->uuid, device + 1, sizeof p->uuid);
    p->totalGlobalMem = machine().capacity;
    p->major = model->major;
    p->minor = model->minor;
    p->multiProcessorCount = model->n_processors;
    p->sharedMemPerBlock = SHARED_BYTES;
    p->sharedMemPerBlockOptin = static_cast<size_t>(model->shared_optin_bytes);
    p->sharedMemPerMultiprocessor = static_cast<size_t>(model->shared_processor_bytes);
    p->reservedSharedMemPerBlock = SHARED_RESERVED_BYTES;
    p->regsPerBlock = p->regsPerMultiprocessor = PROCESSOR_REGISTERS;
    p->warpSize = WARP;
    p->maxThreadsPerBlock = BLOCK_THREADS;
    p->maxThreadsPerMultiProcessor = PROCESSOR_THREADS;
    p->maxBlocksPerMultiProcessor = model->max_blocks;
    p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
    p->maxThreadsDim[2] = 64;
    p->maxGridSize[0] = MAX_GRID_X;
    p->maxGridSize[1] = p->maxGridSize[2] = MAX_GRID_YZ;
    p->totalConstMem = 64 << 10;
    p->l2CacheSize = model->l2_bytes;
    p->memoryBusWidth = model->bus_bits;
    p->concurrentKernels = p->unifiedAddressing = p->canMapHostMemory = p->streamPrioritiesSupported = 1;
    p->memoryPoolsSupported = p->hostRegisterSupported = p->ECCEnabled = 1;
    p->asyncEngineCount = 3;
    p->pciBusID = device + 1;
    return cudaSuccess;
}

static bool find_attribute(cudaDeviceAttr attribute, int device, int *value)
{
    const std::map<cudaDeviceAttr, int> known{
        {cudaDevAttrComputeCapabilityMajor, model->major},
        {cudaDevAttrComputeCapabilityMinor, model->minor},
        {cudaDevAttrMultiProcessorCount, model->n_processors},
        {cudaDevAttrMaxSharedMemoryPerBlock, SHARED_BYTES},
        {cudaDevAttrMaxSharedMemoryPerBlockOptin, model->shared_optin_bytes},
        {cudaDevAttrMaxSharedMemoryPerMultiprocessor, model->shared_processor_bytes},
        {cudaDevAttrReservedSharedMemoryPerBlock, SHARED_RESERVED_BYTES},
        {cudaDevAttrMaxRegistersPerBlock, PROCESSOR_REGISTERS},
        {cudaDevAttrMaxRegistersPerMultiprocessor, PROCESSOR_REGISTERS},
        {cudaDevAttrWarpSize, WARP},
        {cudaDevAttrMaxThreadsPerBlock, BLOCK_THREADS},
        {cudaDevAttrMaxThreadsPerMultiProcessor, PROCESSOR_THREADS},
        {cudaDevAttrMaxBlocksPerMultiprocessor, model->max_blocks},
        {cudaDevAttrMaxBlockDimX, 1024},
        {cudaDevAttrMaxBlockDimY, 1024},
        {cudaDevAttrMaxBlockDimZ, 64},
        {cudaDevAttrMaxGridDimX, MAX_GRID_X},
        {cudaDevAttrMaxGridDimY, MAX_GRID_YZ},
        {cudaDevAttrMaxGridDimZ, MAX_GRID_YZ},
        {cudaDevAttrL2CacheSize, model->l2_bytes},
        {cudaDevAttrGlobalMemoryBusWidth, model->bus_bits},
        {cudaDevAttrMemoryPoolsSupported, 1},
        {cudaDevAttrHostRegisterSupported, 1},
        {cudaDevAttrUnifiedAddressing, 1},
        {cudaDevAttrConcurrentKernels, 1},
        {cudaDevAttrPciBusId, device + 1},
        {cudaDevAttrPciDeviceId, 0},
        {cudaDevAttrPciDomainId, 0},
        {cudaDevAttrComputeMode, cudaComputeModeDefault},
        {cudaDevAttrIntegrated, 0},
        {cudaDevAttrManagedMemory, 0},
    };
    auto found = known.find(attribute);
    if (found != known.end())
        *value = found->second;
    return found != known.end();
}

STANDIN_API cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int device)
{
    STANDIN_ENTER(cudaDeviceGetAttribute);
    STANDIN_NEEDS(device >= 0 && device < n_devices, cudaErrorInvalidDevice);
    if (!find_attribute(attribute, device, value)) {
        misuse("cudaDeviceGetAttribute: attribute %d has no value here; add it to device.cpp", attribute);
        return set_error(cudaErrorInvalidValue);
    }
    return cudaSuccess;
}

STANDIN_API cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *n, const void *, int threads, size_t shared_bytes)
{
    STANDIN_ENTER(cudaOccupancyMaxActiveBlocksPerMultiprocessor);
    STANDIN_NEEDS(threads >= 1, cudaErrorInvalidValue);
    /* Registers are not known on the CPU: an upper limit. */
    int warps = (threads + WARP - 1) / WARP, by_threads = PROCESSOR_THREADS / WARP / warps;
    size_t by_shared = static_cast<size_t>(model->shared_processor_bytes) / (shared_bytes + SHARED_RESERVED_BYTES);
    int limit = by_threads < model->max_blocks ? by_threads : model->max_blocks;
    bool too_much = threads > BLOCK_THREADS || shared_bytes > device_shared_bytes();
    *n = too_much ? 0 : by_shared < static_cast<size_t>(limit) ? static_cast<int>(by_shared) : limit;
    return cudaSuccess;
}

STANDIN_API cudaProfilerStart()
{
    STANDIN_ENTER(cudaProfilerStart);
    return cudaSuccess;
}

STANDIN_API cudaProfilerStop()
{
    STANDIN_ENTER(cudaProfilerStop);
    return cudaSuccess;
}
