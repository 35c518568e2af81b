/* What the stand-in for cuBLASLt accepts: the checks of a problem, the heuristic and cublasLtMatmul itself. */
#include <algorithm>
#include <cstring>
#include <initializer_list>
#include <vector>

#include "cublaslt_impl.h"
#include "machine.h"

namespace standin::cublaslt
{

static bool layout_ok(const Layout &l)
{
    if ((l.order != CUBLASLT_ORDER_COL && l.order != CUBLASLT_ORDER_ROW) || !type_bytes(l.type)) {
        return false;
    }
    uint64_t line = l.order == CUBLASLT_ORDER_COL ? l.rows : l.cols;
    return l.rows && l.cols && l.ld > 0 && static_cast<uint64_t>(l.ld) >= line && l.batch >= 1;
}

static bool epilogue_known(int epilogue)
{
    for (int known :
         {CUBLASLT_EPILOGUE_DEFAULT, CUBLASLT_EPILOGUE_BIAS, CUBLASLT_EPILOGUE_GELU, CUBLASLT_EPILOGUE_GELU_BIAS,
          CUBLASLT_EPILOGUE_GELU_AUX, CUBLASLT_EPILOGUE_GELU_AUX_BIAS, CUBLASLT_EPILOGUE_DGELU,
          CUBLASLT_EPILOGUE_DGELU_BGRAD, CUBLASLT_EPILOGUE_BGRADA, CUBLASLT_EPILOGUE_BGRADB}) {
        if (epilogue == known) {
            return true;
        }
    }
    return false;
}

/* f32 with f32; 16-bit with 16-bit or f32 out; sums and scalars in f32, products of f32 perhaps in TF32. */
static bool types_ok(const Problem &p)
{
    bool wide = p.a.type == CUDA_R_32F;
    bool compute = p.desc.compute == CUBLAS_COMPUTE_32F || p.desc.compute == CUBLAS_COMPUTE_32F_PEDANTIC ||
                   (wide && p.desc.compute == CUBLAS_COMPUTE_32F_FAST_TF32);
    return compute && p.desc.scale == CUDA_R_32F && p.a.type == p.b.type && p.c.type == p.d.type &&
           (p.d.type == p.a.type || p.d.type == CUDA_R_32F);
}

static bool shapes_ok(Problem *p)
{
    bool ta = p->desc.trans_a != CUBLAS_OP_N, tb = p->desc.trans_b != CUBLAS_OP_N;
    p->m = p->d.rows;
    p->n = p->d.cols;
    p->k = ta ? p->a.rows : p->a.cols;
    uint64_t a_m = ta ? p->a.cols : p->a.rows;
    uint64_t b_k = tb ? p->b.cols : p->b.rows, b_n = tb ? p->b.rows : p->b.cols;
    return a_m == p->m && b_k == p->k && b_n == p->n && p->c.rows == p->m && p->c.cols == p->n &&
           p->desc.trans_c == CUBLAS_OP_N && p->c.order == p->d.order && p->a.batch == p->d.batch &&
           p->b.batch == p->d.batch && p->c.batch == p->d.batch;
}

cublasStatus_t make_problem(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, const void *a, const void *b,
                            const void *c, const void *d, Problem *problem_out)
{
    if (!behind<cublasLtContext>(handle, Tag::handle)) {
        return CUBLAS_STATUS_NOT_INITIALIZED;
    }
    auto *what = behind<Descriptor>(desc, Tag::descriptor);
    const Layout *layouts[] = {behind<Layout>(a, Tag::layout), behind<Layout>(b, Tag::layout),
                               behind<Layout>(c, Tag::layout), behind<Layout>(d, Tag::layout)};
    for (const Layout *l : layouts) {
        if (!what || !l || !layout_ok(*l)) {
            return CUBLAS_STATUS_INVALID_VALUE;
        }
    }
    Problem &p = *problem_out;
    p = Problem{*layouts[0], *layouts[1], *layouts[2], *layouts[3], *what, 0, 0, 0};
    if (!shapes_ok(&p)) {
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    if (!types_ok(p) || !epilogue_known(p.desc.epilogue) ||
        (p.desc.epilogue != CUBLASLT_EPILOGUE_DEFAULT && p.d.order == CUBLASLT_ORDER_ROW)) {
        return CUBLAS_STATUS_NOT_SUPPORTED;
    }
    p.desc.bias_type = p.desc.bias_type < 0 ? p.d.type : p.desc.bias_type;
    p.desc.aux_type = p.desc.aux_type < 0 ? p.d.type : p.desc.aux_type;
    if (p.desc.bias_type != p.d.type || p.desc.aux_type != p.d.type) {
        return CUBLAS_STATUS_NOT_SUPPORTED;
    }
    if (p.desc.epilogue & AUX && (p.desc.aux_ld % 8 || p.desc.aux_ld < static_cast<int64_t>(p.m))) {
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    return CUBLAS_STATUS_SUCCESS;
}

/* Of everything but addresses. */
static uint64_t fingerprint(const Problem &p)
{
    uint64_t hash = 0xcbf29ce484222325;
    auto mix = [&hash](std::initializer_list<int64_t> values) {
        for (int64_t v : values) {
            hash = (hash ^ static_cast<uint64_t>(v)) * 0x9e3779b97f4a7c15;
            hash ^= hash >> 29;
        }
    };
    for (const Layout *l : {&p.a, &p.b, &p.c, &p.d}) {
        mix({l->type, l->order, static_cast<int64_t>(l->rows), static_cast<int64_t>(l->cols), l->ld, l->batch,
             l->stride});
    }
    const Descriptor &e = p.desc;
    mix({e.compute, e.scale, e.pointer_mode, e.trans_a, e.trans_b, e.epilogue, e.bias_type, e.aux_type, e.sm_count,
         e.bias_stride, e.aux_ld, e.aux_stride});
    return hash;
}

/* The largest power of two, at most 16, that divides all of them. */
static uint16_t alignment(std::initializer_list<uint64_t> values)
{
    uint64_t all = 16;
    for (uint64_t v : values) {
        all |= v;
    }
    return static_cast<uint16_t>(all & (~all + 1));
}

/* What vector accesses of an algorithm rely on: the layouts, and what the preference promises of the pointers. */
static uint16_t promised_alignment(const Problem &p, const Preference &preference)
{
    uint16_t all = 16;
    const Layout *layouts[] = {&p.a, &p.b, &p.c, &p.d};
    for (int i = 0; i < 4; i++) {
        uint64_t element = type_bytes(layouts[i]->type);
        uint16_t one = alignment({static_cast<uint64_t>(layouts[i]->ld) * element,
                                  static_cast<uint64_t>(layouts[i]->stride) * element, preference.align[i]});
        all = std::min(all, one);
    }
    return all;
}

/* Three algorithms: as if it split k, with a partial result in the workspace; with a little workspace; with none. Their
 * results have the same bits. */
static uint64_t workspace_of(const Problem &p, int id)
{
    uint64_t partial = (p.m * p.n * sizeof(float) + 255) / 256 * 256;
    return id == 0 ? partial + 4096 : id == 1 ? 4096 : 0;
}

/* What a call of cublasLtMatmul touches beside its operands. */
static bool reads_bias(int epilogue)
{
    return epilogue & BIAS;
}

static bool writes_bias(int epilogue)
{
    return epilogue & (BGRAD | BGRADA | BGRADB);
}

struct Call {
    Problem problem;
    const void *alpha, *a, *b, *beta, *c;
    void *d, *workspace;
    uint64_t workspace_bytes; /* that the algorithm uses */
    bool reads_c;
};

static bool overlap(const void *p, size_t n, const void *q, size_t m)
{
    const char *a = static_cast<const char *>(p), *b = static_cast<const char *>(q);
    return a < b + m && b < a + n;
}

static std::vector<Access> accesses_of(const Call &call)
{
    const Problem &p = call.problem;
    const Descriptor &e = p.desc;
    std::vector<Access> list{{call.a, extent(p.a), false}, {call.b, extent(p.b), false}, {call.d, extent(p.d), true}};
    size_t batches = static_cast<size_t>(p.d.batch - 1);
    if (call.reads_c) {
        list.push_back({call.c, extent(p.c), false});
    }
    if (reads_bias(e.epilogue) || writes_bias(e.epilogue)) {
        size_t n = e.epilogue & BGRADB ? p.n : p.m;
        n += batches * static_cast<size_t>(e.bias_stride);
        list.push_back({e.bias, n * type_bytes(e.bias_type), writes_bias(e.epilogue)});
    }
    if (e.epilogue & AUX) {
        size_t n = (p.n - 1) * static_cast<size_t>(e.aux_ld) + p.m + batches * static_cast<size_t>(e.aux_stride);
        list.push_back({e.aux, n * type_bytes(e.aux_type), (e.epilogue & GELU) != 0});
    }
    if (call.workspace_bytes) {
        list.push_back({call.workspace, call.workspace_bytes, true});
    }
    if (e.pointer_mode == CUBLASLT_POINTER_MODE_DEVICE) {
        list.push_back({call.alpha, sizeof(float), false});
        list.push_back({call.beta, sizeof(float), false});
    }
    return list;
}

static cublasStatus_t misaligned(const char *what, const void *ptr, unsigned bytes)
{
    misuse("cublasLtMatmul: %s %p is not aligned to the %u bytes that were promised when the algorithm was selected",
           what, ptr, bytes);
    return CUBLAS_STATUS_INVALID_VALUE;
}

/* Checks the algorithm against the call; leaves what it needs of the workspace. */
static cublasStatus_t check_algorithm(const Algorithm *algorithm, Call *call, size_t given)
{
    const Problem &p = call->problem;
    const Descriptor &e = p.desc;
    uint16_t plain = static_cast<uint16_t>(type_bytes(p.a.type));
    Algorithm none{Tag::algorithm, 0, 0, plain, static_cast<uint16_t>(type_bytes(p.d.type)), 16, 2};
    if (algorithm && algorithm->tag != Tag::algorithm) {
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    if (algorithm && algorithm->problem != fingerprint(p)) {
        misuse("cublasLtMatmul: the algorithm was selected for another problem");
        return CUBLAS_STATUS_NOT_SUPPORTED;
    }
    const Algorithm &use = algorithm ? *algorithm : none;
    const void *pointers[] = {call->a, call->b, call->reads_c ? call->c : call->d, call->d};
    static const char *const names[] = {"A", "B", "C", "D"};
    for (int i = 0; i < 4; i++) {
        if (reinterpret_cast<uintptr_t>(pointers[i]) % use.align) {
            return misaligned(names[i], pointers[i], use.align);
        }
    }
    if ((reads_bias(e.epilogue) || writes_bias(e.epilogue)) && reinterpret_cast<uintptr_t>(e.bias) % use.align_bias) {
        return misaligned("bias", e.bias, use.align_bias);
    }
    if (e.epilogue & AUX && reinterpret_cast<uintptr_t>(e.aux) % use.align_aux) {
        return misaligned("aux", e.aux, use.align_aux);
    }
    call->workspace_bytes = use.workspace;
    bool too_small = given < use.workspace || (use.workspace && !call->workspace);
    return too_small || reinterpret_cast<uintptr_t>(call->workspace) % 16 ? CUBLAS_STATUS_INVALID_VALUE
                                                                          : CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t check_memory(const Call &call, const std::vector<Access> &accesses)
{
    const Problem &p = call.problem;
    for (const Access &x : accesses) {
        if (!check_range("cublasLtMatmul", x.ptr, x.bytes, true)) {
            return CUBLAS_STATUS_INVALID_VALUE;
        }
    }
    if (overlap(call.d, extent(p.d), call.a, extent(p.a)) || overlap(call.d, extent(p.d), call.b, extent(p.b))) {
        misuse("cublasLtMatmul: D %s overlaps A or B", describe(call.d).c_str());
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    bool same = p.c.ld == p.d.ld && p.c.stride == p.d.stride;
    if (call.reads_c && (call.c == call.d ? !same : overlap(call.c, extent(p.c), call.d, extent(p.d)))) {
        misuse("cublasLtMatmul: C %s and D %s overlap and are not the same matrix", describe(call.c).c_str(),
               describe(call.d).c_str());
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    return CUBLAS_STATUS_SUCCESS;
}

/* The device's side of a call. What an algorithm leaves in its workspace is nobody's. */
static Step execute(const Call &call, float alpha, float beta)
{
    if (call.problem.desc.pointer_mode == CUBLASLT_POINTER_MODE_DEVICE) {
        memcpy(&alpha, call.alpha, sizeof alpha);
        memcpy(&beta, call.beta, sizeof beta);
    }
    if (call.workspace_bytes) {
        memset(call.workspace, 0xff, call.workspace_bytes);
    }
    compute(call.problem, alpha, beta, static_cast<const char *>(call.a), static_cast<const char *>(call.b),
            static_cast<const char *>(call.c), static_cast<char *>(call.d));
    return Step::done;
}

} // namespace standin::cublaslt

using namespace standin::cublaslt;

extern "C" {

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int requested,
                                              cublasLtMatmulHeuristicResult_t results[], int *returned)
{
    standin::Lock lock("cublasLtMatmulAlgoGetHeuristic");
    auto *wish = behind<Preference>(preference, Tag::preference);
    if (!returned || !results || requested < 1 || !wish) {
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    *returned = 0;
    Problem problem;
    if (lock.inject) {
        return CUBLAS_STATUS_NOT_SUPPORTED;
    }
    if (cublasStatus_t status = make_problem(handle, desc, a, b, c, d, &problem)) {
        return status;
    }
    for (int id = 0; id < 3 && *returned < requested; id++) {
        uint64_t workspace = workspace_of(problem, id);
        if (workspace > wish->workspace) {
            continue;
        }
        Algorithm algorithm{Tag::algorithm,
                            fingerprint(problem),
                            workspace,
                            promised_alignment(problem, *wish),
                            alignment({reinterpret_cast<uintptr_t>(problem.desc.bias)}),
                            alignment({reinterpret_cast<uintptr_t>(problem.desc.aux)}),
                            static_cast<uint16_t>(id)};
        cublasLtMatmulHeuristicResult_t &result = results[(*returned)++];
        memset(&result, 0, sizeof result);
        memcpy(&result.algo, &algorithm, sizeof algorithm);
        result.workspaceSize = workspace;
        result.wavesCount = 1.0f;
        result.state = CUBLAS_STATUS_SUCCESS;
    }
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, const void *alpha, const void *a,
                              cublasLtMatrixLayout_t layout_a, const void *b, cublasLtMatrixLayout_t layout_b,
                              const void *beta, const void *c, cublasLtMatrixLayout_t layout_c, void *d,
                              cublasLtMatrixLayout_t layout_d, const cublasLtMatmulAlgo_t *algo, void *workspace,
                              size_t workspace_bytes, cudaStream_t stream)
{
    standin::Lock lock("cublasLtMatmul");
    if (lock.inject) {
        return CUBLAS_STATUS_EXECUTION_FAILED;
    }
    Call call{{}, alpha, a, b, beta, c, d, workspace, 0, true};
    if (cublasStatus_t status = make_problem(handle, desc, layout_a, layout_b, layout_c, layout_d, &call.problem)) {
        return status;
    }
    const Descriptor &e = call.problem.desc;
    bool on_host = e.pointer_mode == CUBLASLT_POINTER_MODE_HOST;
    if (!on_host && e.pointer_mode != CUBLASLT_POINTER_MODE_DEVICE) {
        return CUBLAS_STATUS_NOT_SUPPORTED;
    }
    bool needs_bias = reads_bias(e.epilogue) || writes_bias(e.epilogue);
    if (!alpha || !beta || !a || !b || !d || (needs_bias && !e.bias) || (e.epilogue & AUX && !e.aux)) {
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    float alpha_now = on_host ? *static_cast<const float *>(alpha) : 0;
    float beta_now = on_host ? *static_cast<const float *>(beta) : 0;
    call.reads_c = !on_host || beta_now != 0;
    if (call.reads_c && !c) {
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    auto *algorithm = reinterpret_cast<const Algorithm *>(algo);
    if (cublasStatus_t status = check_algorithm(algorithm, &call, workspace_bytes)) {
        return status;
    }
    std::vector<standin::Access> accesses = accesses_of(call);
    if (cublasStatus_t status = check_memory(call, accesses)) {
        return status;
    }
    standin::enqueue({stream}, "matmul", standin::always([=] { return execute(call, alpha_now, beta_now); }), accesses);
    return CUBLAS_STATUS_SUCCESS;
}
}
