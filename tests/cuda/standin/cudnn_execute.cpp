/* Execution in the stand-in for cuDNN: an interpreter of graphs. Values are f32 and are rounded to the type of each
 * tensor, virtual or not, that they pass through. Sums run in the order of the index. */
#include <cmath>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <set>

#include "cudnn_impl.h"
#include "machine.h"

namespace standin::cudnn
{

/* A tensor's memory: the device's, or a value that was read when the plan was executed. */
struct Memory {
    char *ptr;
    alignas(8) char scalar[8];

    const char *data(const Tensor &t) const
    {
        return t.by_value ? scalar : ptr;
    }
};

using Memories = std::map<int64_t, Memory>;

static float load(const char *p, int64_t i, int type)
{
    switch (type) {
    case CUDNN_DATA_BFLOAT16:
        return __bfloat162float(reinterpret_cast<const __nv_bfloat16 *>(p)[i]);
    case CUDNN_DATA_HALF:
        return __half2float(reinterpret_cast<const __half *>(p)[i]);
    case CUDNN_DATA_INT32:
        return static_cast<float>(reinterpret_cast<const int32_t *>(p)[i]);
    case CUDNN_DATA_INT64:
        return static_cast<float>(reinterpret_cast<const int64_t *>(p)[i]);
    case CUDNN_DATA_BOOLEAN:
        return p[i] ? 1.0f : 0.0f;
    default:
        return reinterpret_cast<const float *>(p)[i];
    }
}

static void store(char *p, int64_t i, int type, float v)
{
    switch (type) {
    case CUDNN_DATA_BFLOAT16:
        reinterpret_cast<__nv_bfloat16 *>(p)[i] = __float2bfloat16_rn(v);
        break;
    case CUDNN_DATA_HALF:
        reinterpret_cast<__half *>(p)[i] = __float2half_rn(v);
        break;
    case CUDNN_DATA_INT32:
        reinterpret_cast<int32_t *>(p)[i] = static_cast<int32_t>(v);
        break;
    case CUDNN_DATA_INT64:
        reinterpret_cast<int64_t *>(p)[i] = static_cast<int64_t>(v);
        break;
    case CUDNN_DATA_BOOLEAN:
        p[i] = v != 0;
        break;
    default:
        reinterpret_cast<float *>(p)[i] = v;
    }
}

/* Calls f(place in memory) for all elements in the order of their indices. */
template <class F> static void each_place(const Tensor &t, F f)
{
    for (int64_t i = 0; i < t.dim[0]; i++) {
        for (int64_t j = 0; j < t.dim[1]; j++) {
            for (int64_t k = 0; k < t.dim[2]; k++) {
                int64_t at = i * t.stride[0] + j * t.stride[1] + k * t.stride[2];
                for (int64_t l = 0; l < t.dim[3]; l++) {
                    f(at + l * t.stride[3]);
                }
            }
        }
    }
}

/* Elements of a tensor in the order of their indices, without gaps. */
using Values = std::vector<float>;

static const float one_zero = 0;

/* How an operand, perhaps broadcast, is walked along with y's elements. */
struct Walk {
    const float *v;
    int64_t step[4];

    Walk(const Values &values, const Tensor &t) : v(values.data())
    {
        int64_t size = 1;
        for (int i = 3; i >= 0; i--) {
            step[i] = t.dim[i] == 1 ? 0 : size;
            size *= t.dim[i];
        }
    }

    Walk() : v(&one_zero), step{0, 0, 0, 0}
    {
    }

    const float *row(int64_t i, int64_t j, int64_t k) const
    {
        return v + i * step[0] + j * step[1] + k * step[2];
    }
};

struct Interpreter {
    const Graph &graph_;
    const Memories &memories_;
    std::map<int64_t, Values> values_; /* by unique id: read so far, or made */

    Interpreter(const Graph &graph, const Memories &memories) : graph_(graph), memories_(memories)
    {
    }

    void run();

    /* A tensor's elements; what the caller passed is read at the first use. */
    const Values &of(const Tensor &t);
    /* Rounds to the tensor's type; what the caller gave memory for goes there too. */
    void keep(const Tensor &t, Values out);
    int64_t length(const std::optional<Tensor> &limit, int64_t batch, int64_t whole);

    void matmul(const Node &node, Values *out);
    template <class F> void apply(const Node &node, Values *out, F f); /* out = f(x, b, t) */
    void gen_index(const Node &node, Values *out);
    void pointwise(const Node &node, Values *out);
    void pointwise_unary(const Node &node, Values *out);
    void reduction(const Node &node, Values *out);
    void reshape(const Node &node, Values *out);
    void rng(const Node &node, Values *out);
};

void Interpreter::run()
{
    for (const Node &node : graph_.nodes) {
        Values out(static_cast<size_t>(node.y.elements()), NAN);
        switch (node.op) {
        case Op::matmul:
            matmul(node, &out);
            break;
        case Op::pointwise:
            pointwise(node, &out);
            break;
        case Op::reduction:
            reduction(node, &out);
            break;
        case Op::reshape:
            reshape(node, &out);
            break;
        case Op::rng:
            rng(node, &out);
        }
        keep(node.y, std::move(out));
    }
}

const Values &Interpreter::of(const Tensor &t)
{
    auto it = values_.find(t.uid);
    if (it == values_.end()) {
        Values v;
        const char *data = memories_.at(t.uid).data(t);
        v.reserve(static_cast<size_t>(t.elements()));
        each_place(t, [&](int64_t at) { v.push_back(load(data, at, t.type)); });
        it = values_.emplace(t.uid, std::move(v)).first;
    }
    return it->second;
}

void Interpreter::keep(const Tensor &t, Values out)
{
    char *memory = t.is_virtual ? nullptr : memories_.at(t.uid).ptr;
    size_t i = 0;
    each_place(t, [&](int64_t at) {
        alignas(8) char bits[8];
        store(bits, 0, t.type, out[i]);
        if (memory) {
            memcpy(memory + at * static_cast<int64_t>(type_bytes(t.type)), bits, type_bytes(t.type));
        }
        out[i++] = load(bits, 0, t.type);
    });
    values_[t.uid] = std::move(out);
}

int64_t Interpreter::length(const std::optional<Tensor> &limit, int64_t batch, int64_t whole)
{
    int64_t n = limit ? static_cast<int64_t>(of(*limit)[static_cast<size_t>(batch)]) : whole;
    return n < 0 ? 0 : n < whole ? n : whole;
}

/* Beyond the lengths of m and n there are zeros; beyond that of k nothing is added. */
void Interpreter::matmul(const Node &node, Values *out)
{
    const Tensor &x = node.x, &b = *node.b, &y = node.y;
    const float *left = of(x).data(), *right = of(b).data();
    int64_t rows = y.dim[2], cols = y.dim[3], inner = x.dim[3], group = y.dim[1] / b.dim[1];
    for (int64_t z = 0; z < y.dim[0]; z++) {
        int64_t m = length(node.limit[0], z, rows), n = length(node.limit[1], z, cols);
        int64_t depth = length(node.limit[2], z, inner);
        for (int64_t h = 0; h < y.dim[1]; h++) {
            const float *p = left + (z * y.dim[1] + h) * rows * inner;
            const float *q = right + ((b.dim[0] == 1 ? 0 : z) * b.dim[1] + h / group) * inner * cols;
            float *c = out->data() + (z * y.dim[1] + h) * rows * cols;
            std::fill(c, c + rows * cols, 0.0f);
            for (int64_t i = 0; i < m; i++) {
                for (int64_t k = 0; k < depth; k++) {
                    float s = p[i * inner + k];
                    for (int64_t j = 0; j < n; j++) {
                        c[i * cols + j] += s * q[k * cols + j];
                    }
                }
            }
        }
    }
}

template <class F> void Interpreter::apply(const Node &node, Values *out, F f)
{
    Walk x(of(node.x), node.x), b = node.b ? Walk(of(*node.b), *node.b) : Walk();
    Walk t = node.t ? Walk(of(*node.t), *node.t) : Walk();
    float *y = out->data();
    const int64_t *dim = node.y.dim;
    for (int64_t i = 0; i < dim[0]; i++) {
        for (int64_t j = 0; j < dim[1]; j++) {
            for (int64_t k = 0; k < dim[2]; k++) {
                const float *p = x.row(i, j, k), *q = b.row(i, j, k), *r = t.row(i, j, k);
                for (int64_t l = 0; l < dim[3]; l++) {
                    *y++ = f(p[l * x.step[3]], q[l * b.step[3]], r[l * t.step[3]]);
                }
            }
        }
    }
}

void Interpreter::gen_index(const Node &node, Values *out)
{
    const int64_t *dim = node.y.dim;
    size_t at = 0;
    for (int64_t i = 0; i < node.y.elements(); i++) {
        int64_t index[4] = {i / (dim[1] * dim[2] * dim[3]), i / (dim[2] * dim[3]) % dim[1], i / dim[3] % dim[2],
                            i % dim[3]};
        (*out)[at++] = static_cast<float>(index[node.axis]);
    }
}

void Interpreter::reduction(const Node &node, Values *out)
{
    const Tensor &x = node.x, &y = node.y;
    const float *v = of(x).data();
    bool max = node.mode == CUDNN_REDUCE_TENSOR_MAX;
    std::fill(out->begin(), out->end(), max ? -INFINITY : 0.0f);
    int64_t block[4];
    for (int i = 0; i < 4; i++) {
        block[i] = x.dim[i] / y.dim[i];
    }
    for (int64_t i = 0; i < x.dim[0]; i++) {
        for (int64_t j = 0; j < x.dim[1]; j++) {
            for (int64_t k = 0; k < x.dim[2]; k++) {
                int64_t row = (i / block[0] * y.dim[1] + j / block[1]) * y.dim[2] + k / block[2];
                for (int64_t l = 0; l < x.dim[3]; l++, v++) {
                    float &r = (*out)[static_cast<size_t>(row * y.dim[3] + l / block[3])];
                    r = !max ? r + *v : *v > r || *v != *v ? *v : r;
                }
            }
        }
    }
}

void Interpreter::reshape(const Node &node, Values *out)
{
    const Values &from = of(node.x);
    Values memory(static_cast<size_t>(node.x.extent()), NAN);
    size_t i = 0, o = 0;
    each_place(node.x, [&](int64_t at) { memory[static_cast<size_t>(at)] = from[i++]; });
    each_place(node.y, [&](int64_t at) { (*out)[o++] = memory[static_cast<size_t>(at)]; });
}

/* Element i depends on seed, offset and i alone: forward and backward draw the same mask. */
void Interpreter::rng(const Node &node, Values *out)
{
    uint64_t seed, offset;
    memcpy(&seed, memories_.at(node.x.uid).data(node.x), sizeof seed);
    memcpy(&offset, memories_.at(node.b->uid).data(*node.b), sizeof offset);
    uint64_t threshold = static_cast<uint64_t>(node.keep * 4294967296.0);
    for (size_t i = 0; i < out->size(); i++) {
        uint64_t h = seed * 0x9e3779b97f4a7c15 + offset * 0xd1342543de82ef95 + i;
        h = (h ^ h >> 30) * 0xbf58476d1ce4e5b9;
        h = (h ^ h >> 27) * 0x94d049bb133111eb;
        h ^= h >> 31;
        (*out)[i] = (h >> 32) < threshold ? 1.0f : 0.0f;
    }
}

void Interpreter::pointwise(const Node &node, Values *out)
{
    switch (node.mode) {
    case CUDNN_POINTWISE_ADD:
        return apply(node, out, [](float x, float b, float) { return x + b; });
    case CUDNN_POINTWISE_SUB:
        return apply(node, out, [](float x, float b, float) { return x - b; });
    case CUDNN_POINTWISE_MUL:
        return apply(node, out, [](float x, float b, float) { return x * b; });
    case CUDNN_POINTWISE_DIV:
        return apply(node, out, [](float x, float b, float) { return x / b; });
    case CUDNN_POINTWISE_MAX:
        return apply(node, out, [](float x, float b, float) { return std::fmax(x, b); });
    case CUDNN_POINTWISE_MIN:
        return apply(node, out, [](float x, float b, float) { return std::fmin(x, b); });
    case CUDNN_POINTWISE_CMP_EQ:
        return apply(node, out, [](float x, float b, float) -> float { return x == b; });
    case CUDNN_POINTWISE_CMP_NEQ:
        return apply(node, out, [](float x, float b, float) -> float { return x != b; });
    case CUDNN_POINTWISE_CMP_GT:
        return apply(node, out, [](float x, float b, float) -> float { return x > b; });
    case CUDNN_POINTWISE_CMP_GE:
        return apply(node, out, [](float x, float b, float) -> float { return x >= b; });
    case CUDNN_POINTWISE_CMP_LT:
        return apply(node, out, [](float x, float b, float) -> float { return x < b; });
    case CUDNN_POINTWISE_CMP_LE:
        return apply(node, out, [](float x, float b, float) -> float { return x <= b; });
    case CUDNN_POINTWISE_LOGICAL_AND:
        return apply(node, out, [](float x, float b, float) -> float { return x != 0 && b != 0; });
    case CUDNN_POINTWISE_LOGICAL_OR:
        return apply(node, out, [](float x, float b, float) -> float { return x != 0 || b != 0; });
    case CUDNN_POINTWISE_BINARY_SELECT:
        return apply(node, out, [](float x, float b, float t) { return t != 0 ? x : b; });
    case CUDNN_POINTWISE_GEN_INDEX:
        return gen_index(node, out);
    default:
        return pointwise_unary(node, out);
    }
}

void Interpreter::pointwise_unary(const Node &node, Values *out)
{
    switch (node.mode) {
    case CUDNN_POINTWISE_EXP:
        return apply(node, out, [](float x, float, float) { return std::exp(x); });
    case CUDNN_POINTWISE_LOG:
        return apply(node, out, [](float x, float, float) { return std::log(x); });
    case CUDNN_POINTWISE_SQRT:
        return apply(node, out, [](float x, float, float) { return std::sqrt(x); });
    case CUDNN_POINTWISE_RSQRT:
        return apply(node, out, [](float x, float, float) { return 1.0f / std::sqrt(x); });
    case CUDNN_POINTWISE_RECIPROCAL:
        return apply(node, out, [](float x, float, float) { return 1.0f / x; });
    case CUDNN_POINTWISE_ABS:
        return apply(node, out, [](float x, float, float) { return std::fabs(x); });
    case CUDNN_POINTWISE_NEG:
        return apply(node, out, [](float x, float, float) { return -x; });
    case CUDNN_POINTWISE_TANH_FWD:
        return apply(node, out, [](float x, float, float) { return std::tanh(x); });
    case CUDNN_POINTWISE_LOGICAL_NOT:
        return apply(node, out, [](float x, float, float) -> float { return x == 0; });
    default: /* identity; operands() knows no other */
        return apply(node, out, [](float x, float, float) { return x; });
    }
}

/* One execution, as queued. */
struct Job {
    std::shared_ptr<Graph> graph;
    Memories memories;
    std::vector<Access> accesses;
    char *workspace;
    size_t workspace_bytes;
};

/* Finds the memory of every real tensor among the pack's pointers. */
static cudnnStatus_t bind(const Descriptor &pack, Job *job)
{
    const Attribute *ids = attribute(pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS);
    const Attribute *pointers = attribute(pack, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS);
    if (!ids || !pointers || ids->count != pointers->count) {
        return refuse(CUDNN_STATUS_BAD_PARAM, "variant pack: unique ids and pointers do not go together");
    }
    std::map<int64_t, char *> given;
    for (int64_t i = 0; i < ids->count; i++) {
        int64_t uid;
        char *ptr;
        memcpy(&uid, ids->bytes.data() + i * 8, sizeof uid);
        memcpy(&ptr, pointers->bytes.data() + i * 8, sizeof ptr);
        given[uid] = ptr;
    }
    std::set<int64_t> made;
    for (const Node &node : job->graph->nodes) {
        made.insert(node.y.uid);
    }
    for (auto &[uid, t] : job->graph->real) {
        char *ptr = given.count(uid) ? given[uid] : nullptr;
        if (!ptr) {
            return refuse(CUDNN_STATUS_BAD_PARAM_NULL_POINTER, "variant pack: no pointer for " + std::to_string(uid));
        }
        Memory &memory = job->memories[uid];
        memory.ptr = ptr;
        if (t.by_value) { /* read now, as the library does */
            memcpy(memory.scalar, ptr, type_bytes(t.type));
            continue;
        }
        if (reinterpret_cast<uintptr_t>(ptr) % static_cast<uintptr_t>(t.align)) {
            return refuse(CUDNN_STATUS_BAD_PARAM_MISALIGNED_POINTER, "variant pack: the pointer of " +
                                                                         std::to_string(uid) + " is not aligned to " +
                                                                         std::to_string(t.align) + " bytes");
        }
        size_t bytes = static_cast<size_t>(t.extent()) * type_bytes(t.type);
        if (!check_range("cudnnBackendExecute", ptr, bytes, true)) {
            return refuse(CUDNN_STATUS_BAD_PARAM, "variant pack: memory of " + std::to_string(uid));
        }
        job->accesses.push_back({ptr, bytes, made.count(uid) != 0});
    }
    return CUDNN_STATUS_SUCCESS;
}

/* What an engine leaves in its workspace is nobody's. */
static Step execute(const Job &job)
{
    memset(job.workspace, 0xff, job.workspace_bytes);
    Interpreter(*job.graph, job.memories).run();
    return Step::done;
}

} // namespace standin::cudnn

using namespace standin::cudnn;

extern "C" cudnnStatus_t cudnnBackendExecute(cudnnHandle_t handle, cudnnBackendDescriptor_t plan_handle,
                                             cudnnBackendDescriptor_t pack_handle)
{
    standin::Lock lock("cudnnBackendExecute");
    if (lock.inject) {
        return CUDNN_STATUS_EXECUTION_FAILED;
    }
    Ref plan = find(plan_handle), pack = find(pack_handle);
    if (!handle || !plan || !pack || plan->type != CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR ||
        pack->type != CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR) {
        return refuse(CUDNN_STATUS_BAD_PARAM_NULL_POINTER, "execute: a handle, a plan and a variant pack");
    }
    if (!plan->finalized || !pack->finalized) {
        return refuse(CUDNN_STATUS_BAD_PARAM_NOT_FINALIZED, "execute: the plan or the variant pack is not finalized");
    }
    Job job{plan->graph, {}, {}, value<char *>(*pack, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, nullptr), 0};
    if (cudnnStatus_t status = bind(*pack, &job)) {
        return status;
    }
    job.workspace_bytes = static_cast<size_t>(workspace_bytes(*plan->graph, plan->engine));
    if (!job.workspace || !standin::check_range("cudnnBackendExecute", job.workspace, job.workspace_bytes, true)) {
        return refuse(CUDNN_STATUS_BAD_PARAM,
                      "execute: no workspace of " + std::to_string(job.workspace_bytes) + " bytes");
    }
    job.accesses.push_back({job.workspace, job.workspace_bytes, true});
    standin::enqueue({handle->stream}, "cudnn graph", standin::always([job] { return execute(job); }), job.accesses);
    return CUDNN_STATUS_SUCCESS;
}
