/* Attention by cuDNN where it has a plan, remembered for each shape. The library is loaded when the device is opened; a
 * machine without it runs our kernels. */
#include <dlfcn.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "layers/cuda/attention_split.h"
#include "layers/cuda/context_cuda.h"
#include "layers/cuda/sdpa_cudnn.h"
#include "megac/base/alloc.h"
#include "megac/base/log.h"

enum { PLANS = 64, REASONS = 8 };

/* What was decided for one shape and workspace. */
typedef struct sdpa_plan {
    ly_i_sdpa shape;
    int64_t limit;                 /* of the workspace */
    cudnnBackendDescriptor_t plan; /* NULL: our kernel */
    int64_t workspace_bytes;
} sdpa_plan;

struct ly_i_cudnn {
    void *library;
    ly_i_cudnn_api api;
    cudnnHandle_t handle;
    int n_plans, n_told;
    const char *told[REASONS]; /* why a call went to our kernel: each is told once */
    sdpa_plan plans[PLANS];
};

/* The tensors of a call, by LY_I_SDPA_Q.. numbers; those of a forward have no data after LY_I_SDPA_LSE. */
typedef struct sdpa_call {
    const char *name;
    mc_tensor t[LY_I_SDPA_SCALE];
    float scale;
    ly_i_sdpa_split split;
    ly_i_sdpa shape; /* of one run; zero where there are none */
} sdpa_call;

/* --- the library --- */

static mc_status load(struct ly_i_cudnn *c)
{
    c->library = dlopen("libcudnn.so.9", RTLD_NOW | RTLD_LOCAL);
    if (!c->library) {
        MC_INFO("cuDNN 9 is not installed (%s): attention runs on megac's own kernels", dlerror());
        return MC_UNSUPPORTED;
    }
    struct {
        const char *name;
        void *slot;
    } functions[] = {
#define FUNCTION(name) {"cudnn" #name, &c->api.name},
        LY_I_CUDNN_FUNCTIONS(FUNCTION)
#undef FUNCTION
    };
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++) {
        void *function = dlsym(c->library, functions[i].name);
        if (!function) {
            MC_WARN("cuDNN has no function %s: attention runs on megac's own kernels", functions[i].name);
            return MC_UNSUPPORTED;
        }
        memcpy(functions[i].slot, &function, sizeof function);
    }
    cudnnStatus_t st = c->api.Create(&c->handle);
    if (st != CUDNN_STATUS_SUCCESS) {
        c->handle = NULL;
        MC_WARN("cuDNN %zu cannot start: %s; attention runs on megac's own kernels", c->api.GetVersion(),
                c->api.GetErrorString(st));
        return MC_UNSUPPORTED;
    }
    return MC_OK;
}

mc_status ly_i_cudnn_create(const mc_cuda *device, struct ly_i_cudnn **cudnn_out)
{
    struct ly_i_cudnn *c;
    (void)device;
    *cudnn_out = NULL;
    const char *wanted = getenv("MC_CUDNN");
    if (wanted && strcmp(wanted, "0") == 0) {
        MC_INFO("MC_CUDNN=0: attention runs on megac's own kernels");
        return MC_OK;
    }
    MC_TRY(MC_NEW(&c, "attention plans"));
    if (load(c) != MC_OK) {
        ly_i_cudnn_destroy(c);
        return MC_OK;
    }
    *cudnn_out = c;
    return MC_OK;
}

void ly_i_cudnn_destroy(struct ly_i_cudnn *c)
{
    if (!c) {
        return;
    }
    for (int i = 0; i < c->n_plans; i++) {
        if (c->plans[i].plan) {
            (void)c->api.BackendDestroyDescriptor(c->plans[i].plan);
        }
    }
    if (c->handle) {
        (void)c->api.Destroy(c->handle);
    }
    if (c->library) {
        dlclose(c->library);
    }
    mc_free(c);
}

static mc_status failed(const struct ly_i_cudnn *c, cudnnStatus_t status, const char *call)
{
    char why[256] = "";
    c->api.GetLastErrorString(why, sizeof why);
    return MC_FAIL(status == CUDNN_STATUS_ALLOC_FAILED ? MC_NOMEM : MC_DEVICE, "cuDNN, %s: %s: %s", call,
                   c->api.GetErrorString(status), why);
}

/* --- plans --- */

/* Makes the plan of a new shape; leaves it NULL, with a line that says why, where cuDNN has none. */
static void decide(struct ly_i_cudnn *c, sdpa_plan *p, const char *name)
{
    const ly_i_sdpa *s = &p->shape;
    ly_i_sdpa_graph graph;
    int64_t least = -1;
    char why[256] = "it proposes none that suits";
    cudnnStatus_t st = ly_i_sdpa_graph_make(&c->api, c->handle, s, &graph);
    if (st == CUDNN_STATUS_SUCCESS) {
        st = ly_i_sdpa_plan(&c->api, c->handle, &graph, p->limit, &p->plan, &p->workspace_bytes, &least);
        if (st != CUDNN_STATUS_SUCCESS) {
            c->api.GetLastErrorString(why, sizeof why);
        }
        ly_i_sdpa_graph_destroy(&c->api, &graph);
    } else {
        c->api.GetLastErrorString(why, sizeof why);
    }
    if (p->plan) {
        MC_DEBUG("%s: cuDNN, %lld bytes of workspace", name, (long long)p->workspace_bytes);
        return;
    }
    if (least >= 0) {
        (void)snprintf(why, sizeof why, "it wants %lld bytes of workspace, %lld are planned", (long long)least,
                       (long long)p->limit);
    }
    MC_INFO("%s of %lld x %lld heads (%lld of keys) of size %lld, %lld tokens, in %s: on megac's own kernel; cuDNN %zu "
            "has no plan: %s (%s)",
            name, (long long)s->batch, (long long)s->heads, (long long)s->kv_heads, (long long)s->head_size,
            (long long)s->seq, mc_dtype_name((mc_dtype)s->dtype), c->api.GetVersion(), c->api.GetErrorString(st), why);
}

static void tell(struct ly_i_cudnn *c, const char *name, const char *why)
{
    for (int i = 0; i < c->n_told; i++) {
        if (c->told[i] == why) {
            return;
        }
    }
    if (c->n_told < REASONS) {
        c->told[c->n_told++] = why;
        MC_INFO("%s runs on megac's own kernel: %s", name, why);
    }
}

/* NULL: our kernel. */
static const sdpa_plan *find_plan(struct ly_i_cudnn *c, const ly_ctx *cx, const sdpa_call *a)
{
    int64_t limit = a->split.workspace_bytes;
    limit = limit < (int64_t)cx->workspace_bytes ? limit : (int64_t)cx->workspace_bytes;
    for (int i = 0; i < c->n_plans; i++) {
        if (c->plans[i].limit == limit && memcmp(&c->plans[i].shape, &a->shape, sizeof a->shape) == 0) {
            return c->plans[i].plan ? &c->plans[i] : NULL;
        }
    }
    if (c->n_plans == PLANS) {
        tell(c, a->name, "its plans for other shapes fill the table");
        return NULL;
    }
    sdpa_plan *p = &c->plans[c->n_plans++];
    *p = (sdpa_plan){.shape = a->shape, .limit = limit};
    decide(c, p, a->name);
    return p->plan ? p : NULL;
}

/* --- runs --- */

static cudnnStatus_t execute(const struct ly_i_cudnn *c, const sdpa_plan *p, int n, const int64_t *ids,
                             void *const *pointers, void *workspace)
{
    cudnnBackendDescriptor_t pack = NULL;
    cudnnStatus_t st = c->api.BackendCreateDescriptor(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, &pack);
    if (st != CUDNN_STATUS_SUCCESS) {
        return st;
    }
    st = c->api.BackendSetAttribute(pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, n, ids);
    if (st == CUDNN_STATUS_SUCCESS) {
        st = c->api.BackendSetAttribute(pack, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, n, pointers);
    }
    if (st == CUDNN_STATUS_SUCCESS) {
        st = c->api.BackendSetAttribute(pack, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, &workspace);
    }
    st = st == CUDNN_STATUS_SUCCESS ? c->api.BackendFinalize(pack) : st;
    st = st == CUDNN_STATUS_SUCCESS ? c->api.BackendExecute(c->handle, p->plan, pack) : st;
    (void)c->api.BackendDestroyDescriptor(pack);
    return st;
}

/* Samples from `first` on. */
static mc_status run(const struct ly_i_cudnn *c, const ly_ctx *cx, const sdpa_plan *p, const sdpa_call *a,
                     int64_t first)
{
    mc_tensor q = a->t[LY_I_SDPA_Q];
    int64_t ids[LY_I_SDPA_VIRTUAL];
    void *pointers[LY_I_SDPA_VIRTUAL];
    float scale = a->scale, hidden = -INFINITY, one = 1.0f, *values[] = {&scale, &hidden, &one};
    int n = 0;
    for (int id = LY_I_SDPA_Q; id < LY_I_SDPA_SCALE; id++) {
        mc_tensor t = a->t[id];
        if (mc_tensor_present(t)) {
            bool stats = id == LY_I_SDPA_LSE || id == LY_I_SDPA_DELTA;
            int64_t sample = a->shape.seq * (stats ? q.dims[1] * q.dims[2] : t.strides[0]);
            ids[n] = id;
            pointers[n++] = (char *)t.data + (size_t)(first * sample) * mc_dtype_bytes(t.dtype);
        }
    }
    for (int id = LY_I_SDPA_SCALE; id < (a->shape.backward ? LY_I_SDPA_VIRTUAL : LY_I_SDPA_ONE); id++) {
        ids[n] = id;
        pointers[n++] = values[id - LY_I_SDPA_SCALE];
    }
    cudnnStatus_t st = execute(c, p, n, ids, pointers, cx->workspace);
    return st == CUDNN_STATUS_SUCCESS ? MC_OK : failed(c, st, a->name);
}

static bool aligned(const sdpa_call *a)
{
    for (int id = LY_I_SDPA_Q; id < LY_I_SDPA_SCALE; id++) {
        mc_tensor t = a->t[id];
        bool stats = id == LY_I_SDPA_LSE || id == LY_I_SDPA_DELTA, present = mc_tensor_present(t);
        bool steps = stats || !present || (t.strides[0] % 8 == 0 && t.strides[1] % 8 == 0 && t.strides[2] % 8 == 0);
        if (present && ((uintptr_t)t.data % 16 != 0 || !steps)) {
            return false;
        }
    }
    return true;
}

static mc_status attention(const ly_ctx *cx, sdpa_call *a, bool *done_out)
{
    struct ly_i_cudnn *c = ly_i_cuda(cx)->cudnn;
    *done_out = false;
    if (!c) {
        return MC_OK;
    }
    if (a->split.runs == 0 || !aligned(a)) {
        tell(c, a->name, a->split.runs == 0 ? a->split.why : "its rows are not aligned to 16 bytes");
        return MC_OK;
    }
    cudnnStatus_t st = c->api.SetStream(c->handle, (cudaStream_t)cx->stream.handle);
    if (st != CUDNN_STATUS_SUCCESS) {
        return failed(c, st, "cudnnSetStream");
    }
    const sdpa_plan *p = find_plan(c, cx, a);
    if (!p) {
        return MC_OK;
    }
    for (int64_t i = 0; i < a->split.runs; i++) {
        MC_TRY(run(c, cx, p, a, i * a->split.samples));
    }
    *done_out = true;
    return MC_OK;
}

mc_status ly_i_attention_fwd_cudnn(const ly_ctx *cx, const ly_attention_fwd *a, bool *done_out)
{
    sdpa_call call = {
        .name = "attention_fwd",
        .t = {[LY_I_SDPA_Q] = a->q,
              [LY_I_SDPA_K] = a->k,
              [LY_I_SDPA_V] = a->v,
              [LY_I_SDPA_OUT] = a->out,
              [LY_I_SDPA_LSE] = a->lse},
        .scale = a->scale,
        .split = ly_i_sdpa_split_fwd(a),
    };
    if (call.split.runs > 0) {
        call.shape = ly_i_sdpa_of_fwd(a, &call.split);
    }
    return attention(cx, &call, done_out);
}

mc_status ly_i_attention_bwd_cudnn(const ly_ctx *cx, const ly_attention_bwd *a, bool *done_out)
{
    sdpa_call call = {
        .name = "attention_bwd",
        .t = {[LY_I_SDPA_Q] = a->q,
              [LY_I_SDPA_K] = a->k,
              [LY_I_SDPA_V] = a->v,
              [LY_I_SDPA_OUT] = a->out,
              [LY_I_SDPA_LSE] = a->lse,
              [LY_I_SDPA_DOUT] = a->dout,
              [LY_I_SDPA_DELTA] = a->delta,
              [LY_I_SDPA_DQ] = a->dq,
              [LY_I_SDPA_DK] = a->dk,
              [LY_I_SDPA_DV] = a->dv},
        .scale = a->scale,
        .split = ly_i_sdpa_split_bwd(a),
    };
    if (call.split.runs > 0) {
        call.shape = ly_i_sdpa_of_bwd(a, &call.split);
    }
    return attention(cx, &call, done_out);
}
