/* Tensors and operations of the stand-in for cuDNN: what cudnnBackendFinalize makes of their attributes. */
#include "cudnn_impl.h"

namespace standin::cudnn
{

std::vector<const Tensor *> Node::inputs() const
{
    std::vector<const Tensor *> all{&x};
    for (const auto *other : {&b, &t, &limit[0], &limit[1], &limit[2]}) {
        if (*other) {
            all.push_back(&**other);
        }
    }
    return all;
}

cudnnStatus_t finish_tensor(Descriptor *d)
{
    const Attribute *dims = attribute(*d, CUDNN_ATTR_TENSOR_DIMENSIONS);
    const Attribute *strides = attribute(*d, CUDNN_ATTR_TENSOR_STRIDES);
    if (!dims || !strides || !attribute(*d, CUDNN_ATTR_TENSOR_UNIQUE_ID) ||
        !attribute(*d, CUDNN_ATTR_TENSOR_DATA_TYPE)) {
        return refuse(CUDNN_STATUS_BAD_PARAM, "tensor: dimensions, strides, data type or unique id is missing");
    }
    if (dims->count != strides->count || dims->count < 1 || dims->count > 4) {
        return refuse(CUDNN_STATUS_NOT_SUPPORTED, "tensor: one to four dimensions, each with a stride");
    }
    Tensor &t = d->tensor;
    size_t n = static_cast<size_t>(dims->count);
    memcpy(t.dim + 4 - n, dims->bytes.data(), n * sizeof(int64_t));
    memcpy(t.stride + 4 - n, strides->bytes.data(), n * sizeof(int64_t));
    for (int i = 0; i < 4; i++) {
        if (t.dim[i] < 1 || t.stride[i] < 0) {
            return refuse(CUDNN_STATUS_BAD_PARAM, "tensor: a dimension is below 1 or a stride below 0");
        }
    }
    t.uid = value<int64_t>(*d, CUDNN_ATTR_TENSOR_UNIQUE_ID, 0);
    t.type = value<int>(*d, CUDNN_ATTR_TENSOR_DATA_TYPE, 0);
    t.align = value<int64_t>(*d, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, 16);
    t.is_virtual = value<char>(*d, CUDNN_ATTR_TENSOR_IS_VIRTUAL, 0);
    t.by_value = value<char>(*d, CUDNN_ATTR_TENSOR_IS_BY_VALUE, 0);
    if (!type_bytes(t.type) || t.align < 1) {
        return refuse(CUDNN_STATUS_NOT_SUPPORTED_DATA_TYPE, "tensor: data type " + std::to_string(t.type));
    }
    return CUDNN_STATUS_SUCCESS;
}

static std::optional<Tensor> tensor(const Descriptor &d, int name)
{
    Ref ref = reference(d, name);
    return ref && ref->type == CUDNN_BACKEND_TENSOR_DESCRIPTOR ? std::optional<Tensor>(ref->tensor) : std::nullopt;
}

/* x and y of every operation. */
static bool take_ends(const Descriptor &d, int x, int y, Node *node)
{
    std::optional<Tensor> from = tensor(d, x), to = tensor(d, y);
    if (from && to) {
        node->x = *from;
        node->y = *to;
    }
    return from && to;
}

static cudnnStatus_t incomplete(const char *what)
{
    return refuse(CUDNN_STATUS_BAD_PARAM, std::string(what) + ": a required attribute is missing");
}

static cudnnStatus_t bad_shapes(const char *what)
{
    return refuse(CUDNN_STATUS_BAD_PARAM_SHAPE_MISMATCH, std::string(what) + ": shapes do not fit");
}

/* (B,H,M,N) = (B,H,M,K) (B or 1, a divisor of H, K,N): fewer heads on the right serve groups of those on the left. */
static cudnnStatus_t matmul(const Descriptor &d, Node *node)
{
    bool ends = take_ends(d, CUDNN_ATTR_OPERATION_MATMUL_ADESC, CUDNN_ATTR_OPERATION_MATMUL_CDESC, node);
    node->b = tensor(d, CUDNN_ATTR_OPERATION_MATMUL_BDESC);
    if (!ends || !node->b || !reference(d, CUDNN_ATTR_OPERATION_MATMUL_DESC)) {
        return incomplete("matmul");
    }
    const int64_t *a = node->x.dim, *b = node->b->dim, *c = node->y.dim;
    bool inner = a[3] == b[2] && c[2] == a[2] && c[3] == b[3];
    bool outer = a[0] == c[0] && a[1] == c[1] && (b[0] == c[0] || b[0] == 1) && c[1] % b[1] == 0;
    if (!inner || !outer) {
        return bad_shapes("matmul");
    }
    static const int limits[] = {CUDNN_ATTR_OPERATION_MATMUL_GEMM_M_OVERRIDE_DESC,
                                 CUDNN_ATTR_OPERATION_MATMUL_GEMM_N_OVERRIDE_DESC,
                                 CUDNN_ATTR_OPERATION_MATMUL_GEMM_K_OVERRIDE_DESC};
    for (int i = 0; i < 3; i++) {
        node->limit[i] = tensor(d, limits[i]);
        if (node->limit[i] && (node->limit[i]->elements() != c[0] || node->limit[i]->type != CUDNN_DATA_INT32)) {
            return bad_shapes("matmul: lengths are one int32 for each batch entry");
        }
    }
    return CUDNN_STATUS_SUCCESS;
}

static bool broadcasts(const Tensor &from, const Tensor &to)
{
    for (int i = 0; i < 4; i++) {
        if (from.dim[i] != to.dim[i] && from.dim[i] != 1) {
            return false;
        }
    }
    return true;
}

/* Operands beside x of a pointwise mode; -1: not one of those interpreted here. */
static int operands(int mode)
{
    switch (mode) {
    case CUDNN_POINTWISE_ADD:
    case CUDNN_POINTWISE_SUB:
    case CUDNN_POINTWISE_MUL:
    case CUDNN_POINTWISE_DIV:
    case CUDNN_POINTWISE_MAX:
    case CUDNN_POINTWISE_MIN:
    case CUDNN_POINTWISE_CMP_EQ:
    case CUDNN_POINTWISE_CMP_NEQ:
    case CUDNN_POINTWISE_CMP_GT:
    case CUDNN_POINTWISE_CMP_GE:
    case CUDNN_POINTWISE_CMP_LT:
    case CUDNN_POINTWISE_CMP_LE:
    case CUDNN_POINTWISE_LOGICAL_AND:
    case CUDNN_POINTWISE_LOGICAL_OR:
        return 1;
    case CUDNN_POINTWISE_BINARY_SELECT:
        return 2;
    case CUDNN_POINTWISE_IDENTITY:
    case CUDNN_POINTWISE_EXP:
    case CUDNN_POINTWISE_LOG:
    case CUDNN_POINTWISE_SQRT:
    case CUDNN_POINTWISE_RSQRT:
    case CUDNN_POINTWISE_RECIPROCAL:
    case CUDNN_POINTWISE_ABS:
    case CUDNN_POINTWISE_NEG:
    case CUDNN_POINTWISE_TANH_FWD:
    case CUDNN_POINTWISE_LOGICAL_NOT:
    case CUDNN_POINTWISE_GEN_INDEX:
        return 0;
    default:
        return -1;
    }
}

static cudnnStatus_t pointwise(const Descriptor &d, Node *node)
{
    Ref how = reference(d, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR);
    if (!how || !take_ends(d, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, node)) {
        return incomplete("pointwise");
    }
    node->b = tensor(d, CUDNN_ATTR_OPERATION_POINTWISE_BDESC);
    node->t = tensor(d, CUDNN_ATTR_OPERATION_POINTWISE_TDESC);
    node->mode = value<int>(*how, CUDNN_ATTR_POINTWISE_MODE, -1);
    node->axis = value<int64_t>(*how, CUDNN_ATTR_POINTWISE_AXIS, -1);
    int n = operands(node->mode);
    if (n < 0) {
        return refuse(CUDNN_STATUS_NOT_SUPPORTED, "pointwise: mode " + std::to_string(node->mode));
    }
    bool indexes = node->mode == CUDNN_POINTWISE_GEN_INDEX;
    if ((n >= 1 && !node->b) || (n == 2 && !node->t) || (indexes && (node->axis < 0 || node->axis > 3))) {
        return incomplete("pointwise");
    }
    if (!broadcasts(node->x, node->y) || (node->b && !broadcasts(*node->b, node->y)) ||
        (node->t && !broadcasts(*node->t, node->y))) {
        return bad_shapes("pointwise");
    }
    return CUDNN_STATUS_SUCCESS;
}

/* Each element of y covers a block of x, which is dim(x) / dim(y) long in each dimension. */
static cudnnStatus_t reduction(const Descriptor &d, Node *node)
{
    Ref how = reference(d, CUDNN_ATTR_OPERATION_REDUCTION_DESC);
    if (!how || !take_ends(d, CUDNN_ATTR_OPERATION_REDUCTION_XDESC, CUDNN_ATTR_OPERATION_REDUCTION_YDESC, node)) {
        return incomplete("reduction");
    }
    node->mode = value<int>(*how, CUDNN_ATTR_REDUCTION_OPERATOR, -1);
    for (int i = 0; i < 4; i++) {
        if (node->x.dim[i] % node->y.dim[i]) {
            return bad_shapes("reduction");
        }
    }
    bool known = node->mode == CUDNN_REDUCE_TENSOR_ADD || node->mode == CUDNN_REDUCE_TENSOR_MAX;
    return known ? CUDNN_STATUS_SUCCESS : refuse(CUDNN_STATUS_NOT_SUPPORTED, "reduction: operator");
}

/* The same memory, read with other dimensions and strides. */
static cudnnStatus_t reshape(const Descriptor &d, Node *node)
{
    if (!take_ends(d, CUDNN_ATTR_OPERATION_RESHAPE_XDESC, CUDNN_ATTR_OPERATION_RESHAPE_YDESC, node)) {
        return incomplete("reshape");
    }
    return node->x.extent() == node->y.extent() ? CUDNN_STATUS_SUCCESS : bad_shapes("reshape");
}

static cudnnStatus_t rng(const Descriptor &d, Node *node)
{
    Ref how = reference(d, CUDNN_ATTR_OPERATION_RNG_DESC);
    node->b = tensor(d, CUDNN_ATTR_OPERATION_RNG_OFFSET_DESC);
    if (!how || !node->b || !take_ends(d, CUDNN_ATTR_OPERATION_RNG_SEED, CUDNN_ATTR_OPERATION_RNG_YDESC, node)) {
        return incomplete("rng");
    }
    node->keep = value<double>(*how, CUDNN_ATTR_RNG_BERNOULLI_DIST_PROBABILITY, -1);
    int distribution = value<int>(*how, CUDNN_ATTR_RNG_DISTRIBUTION, -1);
    if (distribution != CUDNN_RNG_DISTRIBUTION_BERNOULLI || !(node->keep >= 0 && node->keep <= 1)) {
        return refuse(CUDNN_STATUS_NOT_SUPPORTED, "rng: only Bernoulli, with a probability");
    }
    bool seeds = node->x.type == CUDNN_DATA_INT64 && node->b->type == CUDNN_DATA_INT64;
    return seeds ? CUDNN_STATUS_SUCCESS
                 : refuse(CUDNN_STATUS_NOT_SUPPORTED_DATA_TYPE, "rng: seed and offset are int64");
}

cudnnStatus_t finish_operation(Descriptor *d)
{
    Node node{};
    cudnnStatus_t status;
    switch (static_cast<int>(d->type)) {
    case CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR:
        node.op = Op::matmul;
        status = matmul(*d, &node);
        break;
    case CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR:
        node.op = Op::pointwise;
        status = pointwise(*d, &node);
        break;
    case CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR:
        node.op = Op::reduction;
        status = reduction(*d, &node);
        break;
    case CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR:
        node.op = Op::reshape;
        status = reshape(*d, &node);
        break;
    case CUDNN_BACKEND_OPERATION_RNG_DESCRIPTOR:
        node.op = Op::rng;
        status = rng(*d, &node);
        break;
    default:
        return refuse(CUDNN_STATUS_NOT_SUPPORTED, "operation of descriptor type " + std::to_string(d->type));
    }
    d->node = node;
    return status;
}

} // namespace standin::cudnn
