/* The operator table: one struct of functions per backend, generated from ops.def. Operators know nothing of sharding;
 * they see local shapes. Laws: weight gradients accumulate (+=), activations and activation gradients are overwritten;
 * results do not depend on the number of threads; nothing is allocated (per-thread scratch comes with the pool, device
 * workspace with the context).
 *
 * Element types. "f32" in a contract means f32 whatever the precision of the run. A tensor without a type has type T:
 * f32, bf16 or f16, the same for all such tensors of one call (parameters, activations and their gradients). Where T is
 * 16 bits wide, every operator widens what it reads to f32, computes and adds in f32, and rounds to nearest even once,
 * where it stores: contracts name any further rounding point. Weight gradients, statistics and losses are f32. */
#ifndef LAYERS_OPS_H
#define LAYERS_OPS_H

#include <stdbool.h>

#include "layers/attention.h"
#include "layers/elementwise.h"
#include "layers/embedding.h"
#include "layers/gemm.h"
#include "layers/kv_cache.h"
#include "layers/norm.h"
#include "layers/optim.h"
#include "layers/xent.h"
#include "megac/base/device.h"
#include "megac/base/pool.h"
#include "megac/base/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct ly_ops ly_ops;

/* What every operator call runs on. */
typedef struct ly_ctx {
    const ly_ops *ops;
    mc_pool *pool;          /* CPU threads; NULL on other devices */
    mc_stream stream;       /* compute stream; ignored on the CPU */
    void *workspace;        /* device memory for one operator at a time on `stream`; NULL on the CPU */
    size_t workspace_bytes; /* at least ly_workspace_bytes of every call (workspace.h) */
    size_t *workspace_peak; /* (optional) default: not kept. The "plan" table keeps the largest need here */
    void *backend;          /* the device's own state (mc_device.impl): handles of libraries, plans; NULL on the CPU */
    bool tf32;              /* f32 products may round what they read to TF32 (10 bits); ignored on the CPU */
    struct ly_profile *profile; /* (optional) default: nothing is timed; set by ly_profile_attach */
} ly_ctx;

struct ly_ops {
    const char *backend;
#define LY_OP(name) mc_status (*name)(const ly_ctx *cx, const ly_##name *a);
#include "layers/ops.def"
#undef LY_OP
};

/* Scratch that CPU operators expect from each thread of the pool. */
enum { LY_POOL_SCRATCH_BYTES = 2 << 20 };

/* The table of `backend`: "cpu" is the fastest variant that this processor can run ("cpu-v2", "cpu-v3", "cpu-v4" name
 * them one by one, MC_UNSUPPORTED where it cannot); "plan" does nothing, for dry runs. MC_UNSUPPORTED names every
 * operator that a backend lacks. */
mc_status ly_ops_get(const char *backend, const ly_ops **ops_out) MC_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
