/* Inside the stand-in for cuDNN: descriptors of the graph API, and graphs ready to be interpreted. */
#ifndef TESTS_CUDA_STANDIN_CUDNN_IMPL_H
#define TESTS_CUDA_STANDIN_CUDNN_IMPL_H

#include <cstdint>
#include <cstring>
#include <cudnn.h>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace standin::cudnn
{

/* Always four dimensions; missing leading ones are 1. */
struct Tensor {
    int64_t uid = 0, align = 16;
    int type = 0;
    bool is_virtual = false, by_value = false;
    int64_t dim[4] = {1, 1, 1, 1}, stride[4] = {0, 0, 0, 0};

    int64_t elements() const
    {
        return dim[0] * dim[1] * dim[2] * dim[3];
    }

    /* Elements from the first to the last in memory. */
    int64_t extent() const
    {
        int64_t n = 1;
        for (int i = 0; i < 4; i++) {
            n += (dim[i] - 1) * stride[i];
        }
        return n;
    }
};

enum class Op { matmul, pointwise, reduction, reshape, rng };

/* One operation: y from x and, if it has them, b and t. rng: x is the seed, b the offset. */
struct Node {
    Op op;
    int mode = 0;      /* pointwise mode, reduction operator */
    int64_t axis = -1; /* of GEN_INDEX */
    double keep = 0;   /* probability of a 1 */
    Tensor x, y;
    std::optional<Tensor> b, t;
    std::optional<Tensor> limit[3]; /* matmul: lengths of m, n, k of each batch entry */

    std::vector<const Tensor *> inputs() const;
};

struct Graph {
    std::vector<Node> nodes;        /* in an order in which they can run */
    std::map<int64_t, Tensor> real; /* tensors that the caller gives memory or values */
};

struct Descriptor;
using Ref = std::shared_ptr<Descriptor>;

/* As set: bytes, or the descriptors that it names (which it keeps, though their handles be destroyed). */
struct Attribute {
    cudnnBackendAttributeType_t type;
    int64_t count;
    std::string bytes;
    std::vector<Ref> refs;
};

struct Descriptor {
    cudnnBackendDescriptorType_t type;
    bool finalized = false;
    std::map<int, Attribute> attributes;
    Tensor tensor;                /* of a tensor */
    std::optional<Node> node;     /* of an operation */
    std::shared_ptr<Graph> graph; /* of a graph and of all that is made from it */
    int64_t engine = 0;           /* of an engine and of all that is made from it */
};

/* The descriptor behind a handle; null where it is not a live one. */
Ref find(cudnnBackendDescriptor_t handle);

/* Keeps the text for cudnnGetLastErrorString and returns the status. */
cudnnStatus_t refuse(cudnnStatus_t status, const std::string &text);

/* An attribute's first element, or `preset`. */
const Attribute *attribute(const Descriptor &d, int name);
Ref reference(const Descriptor &d, int name); /* null: not set */

template <class T> T value(const Descriptor &d, int name, T preset)
{
    const Attribute *a = attribute(d, name);
    if (a && a->bytes.size() >= sizeof preset) {
        memcpy(&preset, a->bytes.data(), sizeof preset);
    }
    return preset;
}

size_t type_bytes(int type); /* 0: not supported here */

/* cudnn_operations.cpp: what cudnnBackendFinalize does for tensors and operations. */
cudnnStatus_t finish_tensor(Descriptor *d);
cudnnStatus_t finish_operation(Descriptor *d);

/* cudnn_graph.cpp */
cudnnStatus_t finish_graph(Descriptor *d);
/* Whether an engine can run it: as the fused attention of the library, 16-bit matrices whose head size is a multiple of
 * 8. If not, the reason is kept for cudnnGetLastErrorString. */
bool supported(const Graph &graph);
int64_t n_engines(const Graph &graph); /* 0: not supported */
int64_t workspace_bytes(const Graph &graph, int64_t engine);
bool deterministic(const Graph &graph);

} // namespace standin::cudnn

struct cudnnContext {
    cudaStream_t stream = nullptr;
};

#endif
