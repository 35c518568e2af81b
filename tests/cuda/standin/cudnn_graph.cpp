/* Graphs of the stand-in for cuDNN: order, consistency, what an engine takes, and cudnnBackendFinalize. */
#include <set>

#include "cudnn_impl.h"
#include "machine.h"

namespace standin::cudnn
{

static bool same(const Tensor &a, const Tensor &b)
{
    return a.type == b.type && a.is_virtual == b.is_virtual && a.by_value == b.by_value &&
           memcmp(a.dim, b.dim, sizeof a.dim) == 0 && memcmp(a.stride, b.stride, sizeof a.stride) == 0;
}

/* Collects the tensors of all operations; each number names one tensor, and each tensor is made at most once. */
static cudnnStatus_t collect(const std::vector<Node> &nodes, std::map<int64_t, Tensor> *seen, std::set<int64_t> *made)
{
    for (const Node &node : nodes) {
        std::vector<const Tensor *> all = node.inputs();
        all.push_back(&node.y);
        for (const Tensor *t : all) {
            auto it = seen->emplace(t->uid, *t).first;
            if (!same(it->second, *t)) {
                return refuse(CUDNN_STATUS_BAD_PARAM_DUPLICATED_ENTRIES,
                              "graph: unique id " + std::to_string(t->uid) + " names two different tensors");
            }
        }
        if (node.y.by_value || !made->insert(node.y.uid).second) {
            return refuse(CUDNN_STATUS_BAD_PARAM,
                          "graph: tensor " + std::to_string(node.y.uid) + " is made twice or passed by value");
        }
    }
    for (auto &[uid, t] : *seen) {
        if (t.is_virtual && !made->count(uid)) {
            return refuse(CUDNN_STATUS_BAD_PARAM, "graph: nothing makes virtual tensor " + std::to_string(uid));
        }
    }
    return CUDNN_STATUS_SUCCESS;
}

/* Moves nodes whose inputs are there from `left` to `graph`, until none is left. */
static cudnnStatus_t order(std::vector<Node> left, const std::set<int64_t> &made, Graph *graph)
{
    std::set<int64_t> there;
    while (!left.empty()) {
        size_t before = left.size();
        std::vector<Node> later;
        for (const Node &node : left) {
            bool ready = true;
            for (const Tensor *t : node.inputs()) {
                ready = ready && (!made.count(t->uid) || there.count(t->uid));
            }
            if (ready) {
                there.insert(node.y.uid);
                graph->nodes.push_back(node);
            } else {
                later.push_back(node);
            }
        }
        left.swap(later);
        if (left.size() == before) {
            return refuse(CUDNN_STATUS_BAD_PARAM, "graph: operations wait for each other");
        }
    }
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t finish_graph(Descriptor *d)
{
    const Attribute *ops = attribute(*d, CUDNN_ATTR_OPERATIONGRAPH_OPS);
    std::vector<Node> nodes;
    for (size_t i = 0; ops && i < ops->refs.size(); i++) {
        if (!ops->refs[i]->node) {
            return refuse(CUDNN_STATUS_BAD_PARAM_DESCRIPTOR_TYPE, "graph: one of its descriptors is no operation");
        }
        nodes.push_back(*ops->refs[i]->node);
    }
    if (nodes.empty()) {
        return refuse(CUDNN_STATUS_BAD_PARAM, "graph: no operations");
    }
    std::map<int64_t, Tensor> seen;
    std::set<int64_t> made;
    if (cudnnStatus_t status = collect(nodes, &seen, &made)) {
        return status;
    }
    auto graph = std::make_shared<Graph>();
    for (auto &[uid, t] : seen) {
        if (!t.is_virtual) {
            graph->real[uid] = t;
        }
    }
    d->graph = graph;
    return order(nodes, made, graph.get());
}

bool supported(const Graph &graph)
{
    for (const Node &node : graph.nodes) {
        if (node.op != Op::matmul) {
            continue;
        }
        for (const Tensor *t : {&node.x, &*node.b, &node.y}) {
            if (t->is_virtual) {
                continue;
            }
            bool narrow = t->type == CUDNN_DATA_BFLOAT16 || t->type == CUDNN_DATA_HALF;
            bool sums = t == &node.y && t->type == CUDNN_DATA_FLOAT; /* a gradient that blocks add up in f32 */
            int64_t head = t->stride[3] == 1 ? t->dim[3] : t->dim[2];
            if (!narrow && !sums) {
                refuse(CUDNN_STATUS_NOT_SUPPORTED_DATA_TYPE, "attention: matrices are bf16 or f16");
                return false;
            }
            if (t->stride[3] != 1 && t->stride[2] != 1) {
                refuse(CUDNN_STATUS_NOT_SUPPORTED_LAYOUT, "attention: the head dimension is not contiguous");
                return false;
            }
            if (head % 8 || head > 256) {
                refuse(CUDNN_STATUS_NOT_SUPPORTED_SHAPE,
                       "attention: head size " + std::to_string(head) + " is not a multiple of 8 up to 256");
                return false;
            }
        }
    }
    return true;
}

int64_t n_engines(const Graph &graph)
{
    return supported(graph) ? 2 : 0;
}

/* Never none, so that passing it is tested; the second engine wants more. */
int64_t workspace_bytes(const Graph &graph, int64_t engine)
{
    return 256 * static_cast<int64_t>(graph.nodes.size()) + (engine > 0 ? 65536 : 0);
}

/* A matrix product into f32 memory of the caller's stands for blocks that add to it in the order of their coming. */
bool deterministic(const Graph &graph)
{
    for (const Node &node : graph.nodes) {
        if (node.op == Op::matmul && !node.y.is_virtual && node.y.type == CUDNN_DATA_FLOAT) {
            return false;
        }
    }
    return true;
}

/* Engines, configurations and plans: the graph of the descriptor that they are made from. */
static cudnnStatus_t inherit(Descriptor *d, int from, const char *what)
{
    Ref parent = reference(*d, from);
    if (!parent || !parent->graph) {
        return refuse(CUDNN_STATUS_BAD_PARAM, std::string(what) + ": it is made from nothing");
    }
    d->graph = parent->graph;
    d->engine = parent->engine;
    return CUDNN_STATUS_SUCCESS;
}

static cudnnStatus_t need_support(cudnnStatus_t status, const Descriptor &d)
{
    return status != CUDNN_STATUS_SUCCESS ? status
           : supported(*d.graph)          ? CUDNN_STATUS_SUCCESS
                                          : CUDNN_STATUS_NOT_SUPPORTED;
}

static cudnnStatus_t finish(Descriptor *d)
{
    switch (static_cast<int>(d->type)) {
    case CUDNN_BACKEND_TENSOR_DESCRIPTOR:
        return finish_tensor(d);
    case CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR:
    case CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR:
    case CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR:
    case CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR:
    case CUDNN_BACKEND_OPERATION_RNG_DESCRIPTOR:
    case CUDNN_BACKEND_OPERATION_SDPA_FWD_DESCRIPTOR:
    case CUDNN_BACKEND_OPERATION_SDPA_BWD_DESCRIPTOR:
        return finish_operation(d);
    case CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR:
        return finish_graph(d);
    case CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR:
        return inherit(d, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, "heuristic");
    case CUDNN_BACKEND_ENGINE_DESCRIPTOR: {
        cudnnStatus_t status = inherit(d, CUDNN_ATTR_ENGINE_OPERATION_GRAPH, "engine");
        d->engine = value<int64_t>(*d, CUDNN_ATTR_ENGINE_GLOBAL_INDEX, 0);
        return need_support(status, *d);
    }
    case CUDNN_BACKEND_ENGINECFG_DESCRIPTOR:
        return d->graph ? CUDNN_STATUS_SUCCESS : inherit(d, CUDNN_ATTR_ENGINECFG_ENGINE, "engine configuration");
    case CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR:
        return need_support(inherit(d, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, "plan"), *d);
    default: /* matmul, pointwise, reduction, rng, variant pack, device properties: nothing to derive */
        return CUDNN_STATUS_SUCCESS;
    }
}

} // namespace standin::cudnn

extern "C" cudnnStatus_t cudnnBackendFinalize(cudnnBackendDescriptor_t handle)
{
    standin::Lock lock("cudnnBackendFinalize");
    standin::cudnn::Ref d = standin::cudnn::find(handle);
    if (!d) {
        return standin::cudnn::refuse(CUDNN_STATUS_BAD_PARAM_NULL_POINTER, "finalize: not a live descriptor");
    }
    if (lock.inject) {
        return CUDNN_STATUS_NOT_SUPPORTED;
    }
    cudnnStatus_t status = standin::cudnn::finish(d.get());
    d->finalized = status == CUDNN_STATUS_SUCCESS;
    return status;
}
