/* Conversion between element types on the CPU. */
#include "layers/cpu/isa.h"
#include "layers/cpu/rows.h"

enum { CAST_BLOCK = 8192 };

typedef struct cast_job {
    const ly_cast *a;
    int64_t n;
    int n_tasks;
} cast_job;

LY_INLINE void cast_of(mc_dtype from, mc_dtype to, const ly_cast *a, int64_t begin, int64_t end)
{
    ly_vf scale = ly_vset1(a->scale);
    for (int64_t i = begin; i < end; i += LY_LANES) {
        int64_t n = end - i;
        void *out = ly_elem_out(to, a->out.data, i);
        ly_vf x = ly_tload(from, ly_elem(from, a->x.data, i), n);
        ly_tstore(to, out, a->accumulate ? ly_vfma(x, scale, ly_tload(to, out, n)) : ly_vmul(x, scale), n);
    }
}

static void cast_task(void *arg, int task, int thread, void *scratch)
{
    const cast_job *j = arg;
    long b, e;
    (void)thread;
    (void)scratch;
    mc_pool_range((long)j->n, j->n_tasks, task, CAST_BLOCK, &b, &e);
    LY_FOR_TYPE(j->a->x.dtype, FROM, LY_FOR_TYPE(j->a->out.dtype, TO, cast_of(FROM, TO, j->a, b, e)));
}

mc_status LY_CPU(cast)(const ly_ctx *cx, const ly_cast *a)
{
    LY_TRY_TYPE("cast", a->x);
    LY_TRY_TYPE("cast", a->out);
    MC_ASSERT(mc_tensor_contiguous(a->x) && mc_tensor_contiguous(a->out));
    MC_ASSERT(mc_tensor_elems(a->x) == mc_tensor_elems(a->out));
    cast_job job = {.a = a, .n = mc_tensor_elems(a->x)};
    job.n_tasks = ly_tasks(job.n / CAST_BLOCK + 1, CAST_BLOCK);
    mc_pool_run(cx->pool, job.n_tasks, cast_task, &job);
    return MC_OK;
}
