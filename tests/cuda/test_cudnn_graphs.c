/* NVIDIA's cuDNN itself, without a GPU: for devices that are described to it, it finds engines for the graphs that we
 * make of attention calls, and these need no more workspace than is planned. That the numbers are right is for the
 * stand-in (test_attention_cuda.c) and for a GPU to show.
 *
 * usage: test_cudnn_graphs LIBCUDNN LIBCUDA
 * Exit status 77 (skipped) where cuDNN is older than 9.11, which takes no described devices. */
#include <dlfcn.h>
#include <stdio.h>

#include "layers/cuda/sdpa_cudnn.h"
#include "layers/workspace.h"
#include "tests/unit.h"

typedef struct device {
    const char *name;
    int capability, n_sms, shared_bytes, memory_khz, l2_bytes;
    long long memory_bytes;
} device;

/* Public figures; what cuDNN asks for besides is the same for all. */
static const device devices[] = {
    {"NVIDIA A100-SXM4-80GB", 800, 108, 166912, 1593000, 41943040, 85049802752},
    {"NVIDIA H100 80GB HBM3", 900, 132, 232448, 2619000, 52428800, 85017493504},
    {"NVIDIA H200", 900, 132, 232448, 3201000, 62914560, 150754820096},
};
enum { N_DEVICES = sizeof devices / sizeof *devices, CONFIGS = 16 };

typedef struct call {
    int64_t B, T, G, r, H;
    bool fused; /* q, k, v are views of one buffer, group by group; else three buffers */
    mc_dtype dtype;
} call;

static const call calls[] = {
    {8, 1024, 12, 1, 64, true, MC_BF16}, {8, 1024, 12, 1, 64, true, MC_F16},   {1, 1024, 25, 1, 64, true, MC_BF16},
    {2, 2048, 8, 4, 128, true, MC_BF16}, {1, 4096, 2, 4, 128, true, MC_F16},   {4, 1024, 8, 4, 128, false, MC_BF16},
    {1, 1024, 8, 1, 80, true, MC_BF16},  {2, 1000, 4, 1, 96, true, MC_BF16},   {1, 512, 1, 8, 64, true, MC_BF16},
    {16, 128, 2, 2, 32, true, MC_BF16},  {2, 100, 3, 1, 40, true, MC_BF16},    {2, 37, 2, 2, 64, true, MC_BF16},
    {1, 1, 2, 1, 64, true, MC_BF16},     {32, 1024, 12, 1, 64, true, MC_BF16}, {4, 2048, 16, 1, 128, true, MC_BF16},
    {1, 8192, 1, 1, 128, true, MC_BF16},
};
enum { N_CALLS = sizeof calls / sizeof *calls };

static const char *cudnn_path, *cuda_path;
static ly_i_cudnn_api api;

static void load_functions(void)
{
    /* cuDNN looks for libcuda.so.1: the toolkit's empty one, for linking, has that name too and is never called. */
    void *cuda = dlopen(cuda_path, RTLD_NOW | RTLD_GLOBAL), *cudnn = dlopen(cudnn_path, RTLD_NOW);
    if (!cuda || !cudnn) {
        fail_msg("%s", dlerror());
    }
#define LOAD(function)                                         \
    *(void **)&api.function = dlsym(cudnn, "cudnn" #function); \
    assert_non_null(api.function);
    LY_I_CUDNN_FUNCTIONS(LOAD)
#undef LOAD
}

static cudnnBackendDescriptor_t describe(const device *d)
{
    char json[2048];
    int n = snprintf(json, sizeof json,
                     "{\"maxGridSize\":[2147483647,65535,65535],\"maxBlockSize\":[1024,1024,64],\"regsPerBlock\":65536,"
                     "\"multiProcessorCount\":%d,\"smClockRateKHz\":1755000,\"memClockRateKHz\":%d,\"l2CacheSize\":%d,"
                     "\"warpSize\":32,\"maxSharedMemoryPerBlock\":49152,\"maxSharedMemoryPerBlockOptin\":%d,"
                     "\"reservedSharedMemoryPerBlock\":1024,\"maxRegistersPerSM\":65536,\"pciDeviceId\":0,"
                     "\"maxCtasPerSM\":32,\"maxThreadsPerBlock\":1024,\"maxThreadsPerSM\":2048,\"isTccDriver\":0,"
                     "\"supportCoopLaunch\":1,\"deviceVer\":%d,\"driverVer\":13000,\"deviceName\":\"%s\","
                     "\"cudaDeviceId\":0,\"totalGlobalMem\":%lld}",
                     d->n_sms, d->memory_khz, d->l2_bytes, d->shared_bytes, d->capability, d->name, d->memory_bytes);
    cudnnBackendDescriptor_t described;
    assert_int_equal(api.BackendCreateDescriptor(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR, &described), 0);
    assert_int_equal(
        api.BackendSetAttribute(described, CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, CUDNN_TYPE_CHAR, n, json), 0);
    cudnnStatus_t st = api.BackendFinalize(described);
    if (st != CUDNN_STATUS_SUCCESS) {
        char why[256] = "";
        api.GetLastErrorString(why, sizeof why);
        fail_msg("description of %s: %s: %s", d->name, api.GetErrorString(st), why);
    }
    return described;
}

/* Heads `first`.. of a buffer whose groups have `all` heads. No memory is behind it. */
static mc_tensor view(const call *c, int64_t first, int64_t heads, int64_t all)
{
    return (mc_tensor){.data = (char *)0x1000 + first * c->H * 2,
                       .dtype = c->dtype,
                       .n_dims = 4,
                       .dims = {c->B * c->T, c->G, heads, c->H},
                       .strides = {c->G * all * c->H, all * c->H, c->H, 1}};
}

static ly_attention_bwd backward_of(const call *c)
{
    int64_t all = c->fused ? c->r + 2 : 0;
    ly_attention_bwd a = {
        .q = view(c, 0, c->r, c->fused ? all : c->r),
        .k = view(c, c->fused ? c->r : 0, 1, c->fused ? all : 1),
        .v = view(c, c->fused ? c->r + 1 : 0, 1, c->fused ? all : 1),
        .out = view(c, 0, c->r, c->r),
        .seq_len = c->T,
        .scale = 0.125f,
        .window_left = -1,
    };
    a.dout = a.out;
    a.dq = a.q;
    a.dk = a.k;
    a.dv = a.v;
    return a;
}

static ly_attention_fwd forward_of(const ly_attention_bwd *b)
{
    return (ly_attention_fwd){.q = b->q,
                              .k = b->k,
                              .v = b->v,
                              .out = b->out,
                              .seq_len = b->seq_len,
                              .scale = b->scale,
                              .window_left = b->window_left};
}

/* At least one proposal; the least workspace of them. */
static int64_t least_bytes(const ly_i_sdpa *shape, cudnnBackendDescriptor_t described, int *n_out)
{
    ly_i_sdpa_graph graph;
    cudnnBackendDescriptor_t configs[CONFIGS];
    cudnnStatus_t st = ly_i_sdpa_graph_make(&api, NULL, shape, &graph);
    if (st != CUDNN_STATUS_SUCCESS) {
        char why[512] = "";
        api.GetLastErrorString(why, sizeof why);
        fail_msg("graph: %s: %s", api.GetErrorString(st), why);
    }
    (void)ly_i_sdpa_configs(&api, &graph, described, CONFIGS, configs, n_out);
    int64_t least = -1;
    for (int i = 0; i < *n_out; i++) {
        int64_t bytes = ly_i_sdpa_config_bytes(&api, configs[i]);
        least = bytes >= 0 && (least < 0 || bytes < least) ? bytes : least;
        (void)api.BackendDestroyDescriptor(configs[i]);
    }
    ly_i_sdpa_graph_destroy(&api, &graph);
    assert_null(graph.graph);
    return least;
}

static void check_call(const call *c, const device *d, cudnnBackendDescriptor_t described)
{
    ly_attention_bwd b = backward_of(c);
    ly_attention_fwd f = forward_of(&b);
    ly_i_sdpa_split split = ly_i_sdpa_split_fwd(&f), split_bwd = ly_i_sdpa_split_bwd(&b);
    int n = 0, n_bwd = 0;
    ly_i_sdpa shape = ly_i_sdpa_of_fwd(&f, &split);
    int64_t bytes = least_bytes(&shape, described, &n), bytes_bwd = -1;
    if (split_bwd.runs > 0) {
        shape = ly_i_sdpa_of_bwd(&b, &split_bwd);
        bytes_bwd = least_bytes(&shape, described, &n_bwd);
    }
    print_message("  %-21s B %2d T %4d G %2d r %d H %3d %s %-4s fwd %d, %lld B; bwd %lld runs, %d, %lld of %zu B\n",
                  d->name, (int)c->B, (int)c->T, (int)c->G, (int)c->r, (int)c->H, c->fused ? "fused" : "apart",
                  mc_dtype_name(c->dtype), n, (long long)bytes, (long long)split_bwd.runs, n_bwd, (long long)bytes_bwd,
                  ly_workspace_bytes_attention_bwd(&b));
    assert_true(split.runs > 0 && n > 0);
    assert_true(bytes <= (int64_t)ly_workspace_bytes_attention_fwd(&f));
    assert_int_equal(split.runs * split.samples, c->B);
    if (split_bwd.runs > 0) {
        assert_true(n_bwd > 0);
        assert_true(bytes_bwd <= (int64_t)ly_workspace_bytes_attention_bwd(&b));
        assert_int_equal(split_bwd.runs * split_bwd.samples, c->B);
    } else { /* what is planned for must be what is too large */
        assert_true(ly_i_sdpa_bwd_bytes(c->G * c->r, c->r, c->T, c->H) > LY_I_SDPA_MOST_BYTES);
        assert_int_equal(ly_workspace_bytes_attention_bwd(&b), 0);
    }
}

static void test_engines(void **state)
{
    (void)state;
    for (int i = 0; i < N_DEVICES; i++) {
        cudnnBackendDescriptor_t described = describe(&devices[i]);
        for (int j = 0; j < N_CALLS; j++) {
            check_call(&calls[j], &devices[i], described);
        }
        (void)api.BackendDestroyDescriptor(described);
    }
}

/* The library tells good graphs from bad ones: a head size that it does not know has no engine. */
static void test_bad_head_size(void **state)
{
    (void)state;
    call c = {1, 256, 2, 1, 36, true, MC_BF16};
    ly_attention_bwd b = backward_of(&c);
    ly_attention_fwd f = forward_of(&b);
    assert_int_equal(ly_i_sdpa_split_fwd(&f).runs, 0);
    assert_int_equal(ly_i_sdpa_split_bwd(&b).runs, 0);
    ly_i_sdpa_split split = {.runs = 1, .samples = 1};
    ly_i_sdpa shape = ly_i_sdpa_of_fwd(&f, &split);
    cudnnBackendDescriptor_t described = describe(&devices[1]);
    int n = -1;
    (void)least_bytes(&shape, described, &n);
    assert_int_equal(n, 0);
    (void)api.BackendDestroyDescriptor(described);
}

int main(int argc, char **argv)
{
    if (argc != 3) {
        (void)fprintf(stderr, "usage: test_cudnn_graphs LIBCUDNN LIBCUDA\n");
        return 2;
    }
    cudnn_path = argv[1];
    cuda_path = argv[2];
    load_functions();
    enum { DESCRIBED_DEVICES = 91100 };
    if (api.GetVersion() < DESCRIBED_DEVICES) {
        printf("cuDNN %zu takes no described devices (9.11 does)\n", api.GetVersion());
        return 77;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_engines),
        cmocka_unit_test(test_bad_head_size),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
