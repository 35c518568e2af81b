/* Handles and descriptors of the stand-in for cuDNN. Attributes are kept as bytes until cudnnBackendFinalize. */
#include <cstdio>

#include "cudnn_impl.h"
#include "machine.h"

using namespace standin::cudnn;

namespace standin::cudnn
{

static auto &descriptors = *new std::map<Descriptor *, Ref>; /* for calls made while the process ends */
static thread_local std::string last_error;

Ref find(cudnnBackendDescriptor_t handle)
{
    auto it = descriptors.find(static_cast<Descriptor *>(handle));
    return it == descriptors.end() ? nullptr : it->second;
}

cudnnStatus_t refuse(cudnnStatus_t status, const std::string &text)
{
    last_error = text;
    return status;
}

const Attribute *attribute(const Descriptor &d, int name)
{
    auto it = d.attributes.find(name);
    return it == d.attributes.end() ? nullptr : &it->second;
}

Ref reference(const Descriptor &d, int name)
{
    const Attribute *a = attribute(d, name);
    return a && !a->refs.empty() ? a->refs[0] : nullptr;
}

size_t type_bytes(int type)
{
    switch (type) {
    case CUDNN_DATA_FLOAT:
    case CUDNN_DATA_INT32:
        return 4;
    case CUDNN_DATA_BFLOAT16:
    case CUDNN_DATA_HALF:
        return 2;
    case CUDNN_DATA_INT64:
        return 8;
    case CUDNN_DATA_BOOLEAN:
        return 1;
    default:
        return 0;
    }
}

static size_t element_bytes(cudnnBackendAttributeType_t type)
{
    switch (type) {
    case CUDNN_TYPE_INT64:
    case CUDNN_TYPE_DOUBLE:
    case CUDNN_TYPE_VOID_PTR:
    case CUDNN_TYPE_HANDLE:
    case CUDNN_TYPE_BACKEND_DESCRIPTOR:
        return 8;
    case CUDNN_TYPE_BOOLEAN:
    case CUDNN_TYPE_CHAR:
        return 1;
    default:
        return 4;
    }
}

/* Attributes that are not set but follow from the graph. */
struct Derived {
    int64_t numbers[2];
    int64_t count = -1; /* -1: the attribute is not one of these */
};

static Derived derived(const Descriptor &d, int name)
{
    Derived out;
    switch (name) {
    case CUDNN_ATTR_OPERATIONGRAPH_ENGINE_GLOBAL_COUNT:
        out.numbers[0] = 2;
        out.count = 1;
        break;
    case CUDNN_ATTR_ENGINE_GLOBAL_INDEX:
        out.numbers[0] = d.engine;
        out.count = 1;
        break;
    case CUDNN_ATTR_ENGINECFG_WORKSPACE_SIZE:
    case CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE:
        out.numbers[0] = d.graph ? workspace_bytes(*d.graph, d.engine) : 0;
        out.count = 1;
        break;
    case CUDNN_ATTR_ENGINE_BEHAVIOR_NOTE:
        out.count = 0;
        break;
    case CUDNN_ATTR_ENGINE_NUMERICAL_NOTE: {
        int note = CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC;
        out.count = d.graph && !deterministic(*d.graph);
        memcpy(out.numbers, &note, sizeof note);
        break;
    }
    default:
        break;
    }
    return out;
}

/* Puts the configurations of a graph's engines into the caller's descriptors. */
static cudnnStatus_t heuristic_results(const Descriptor &d, int64_t room, int64_t *count, void *out)
{
    int64_t n = n_engines(*d.graph);
    for (int64_t i = 0; out && i < n && i < room; i++) {
        Ref config = find(static_cast<cudnnBackendDescriptor_t *>(out)[i]);
        if (!config || config->type != CUDNN_BACKEND_ENGINECFG_DESCRIPTOR) {
            return refuse(CUDNN_STATUS_BAD_PARAM_DESCRIPTOR_TYPE, "results need descriptors of engine configurations");
        }
        config->graph = d.graph;
        config->engine = i;
        config->finalized = true;
    }
    if (count) {
        *count = out && n > room ? room : n;
    }
    return CUDNN_STATUS_SUCCESS;
}

/* The engine of a configuration, into the caller's descriptor. */
static cudnnStatus_t engine_of(const Descriptor &d, int64_t room, int64_t *count, void *out)
{
    Ref engine = out && room > 0 ? find(*static_cast<cudnnBackendDescriptor_t *>(out)) : nullptr;
    if (engine) {
        engine->graph = d.graph;
        engine->engine = d.engine;
        engine->finalized = true;
    }
    if (count) {
        *count = 1;
    }
    return CUDNN_STATUS_SUCCESS;
}

static cudnnStatus_t get(const Descriptor &d, int name, cudnnBackendAttributeType_t type, int64_t room, int64_t *count,
                         void *out)
{
    if (name == CUDNN_ATTR_ENGINEHEUR_RESULTS && d.graph) {
        return heuristic_results(d, room, count, out);
    }
    if (name == CUDNN_ATTR_ENGINECFG_ENGINE && d.graph) {
        return engine_of(d, room, count, out);
    }
    Derived known = derived(d, name);
    const Attribute *a = attribute(d, name);
    if (known.count < 0 && (!a || a->type != type)) {
        return refuse(a ? CUDNN_STATUS_BAD_PARAM_ATTRIBUTE_TYPE : CUDNN_STATUS_BAD_PARAM,
                      "attribute " + std::to_string(name) + (a ? " has another type" : " is not set"));
    }
    int64_t n = known.count >= 0 ? known.count : a->count, given = n < room ? n : room;
    if (count) {
        *count = n;
    }
    if (!out) {
        return CUDNN_STATUS_SUCCESS;
    }
    if (known.count >= 0) {
        memcpy(out, known.numbers, static_cast<size_t>(given) * element_bytes(type));
    } else if (type == CUDNN_TYPE_BACKEND_DESCRIPTOR) { /* contents go into the caller's descriptors */
        for (int64_t i = 0; i < given; i++) {
            Ref target = find(static_cast<cudnnBackendDescriptor_t *>(out)[i]);
            if (!target) {
                return refuse(CUDNN_STATUS_BAD_PARAM, "a descriptor to fill is not a live one");
            }
            *target = *a->refs[static_cast<size_t>(i)];
        }
    } else {
        memcpy(out, a->bytes.data(), static_cast<size_t>(given) * element_bytes(type));
    }
    return CUDNN_STATUS_SUCCESS;
}

} // namespace standin::cudnn

using standin::Lock;

extern "C" {

cudnnStatus_t cudnnCreate(cudnnHandle_t *handle)
{
    Lock lock("cudnnCreate");
    if (lock.inject) {
        return CUDNN_STATUS_NOT_INITIALIZED;
    }
    *handle = new cudnnContext;
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnDestroy(cudnnHandle_t handle)
{
    delete handle;
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnSetStream(cudnnHandle_t handle, cudaStream_t stream)
{
    if (!handle) {
        return CUDNN_STATUS_BAD_PARAM_NULL_POINTER;
    }
    handle->stream = stream;
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnGetStream(cudnnHandle_t handle, cudaStream_t *stream)
{
    if (!handle || !stream) {
        return CUDNN_STATUS_BAD_PARAM_NULL_POINTER;
    }
    *stream = handle->stream;
    return CUDNN_STATUS_SUCCESS;
}

size_t cudnnGetVersion(void)
{
    return CUDNN_VERSION;
}

size_t cudnnGetCudartVersion(void)
{
    return CUDART_VERSION;
}

const char *cudnnGetErrorString(cudnnStatus_t status)
{
    switch (status) {
    case CUDNN_STATUS_SUCCESS:
        return "CUDNN_STATUS_SUCCESS";
    case CUDNN_STATUS_NOT_INITIALIZED:
        return "CUDNN_STATUS_NOT_INITIALIZED";
    default:
        return status >= 5000   ? "CUDNN_STATUS_EXECUTION_FAILED"
               : status >= 4000 ? "CUDNN_STATUS_INTERNAL_ERROR"
               : status >= 3000 ? "CUDNN_STATUS_NOT_SUPPORTED"
               : status >= 2000 ? "CUDNN_STATUS_BAD_PARAM"
                                : "CUDNN_STATUS of an unknown number";
    }
}

void cudnnGetLastErrorString(char *message, size_t size)
{
    Lock lock("cudnnGetLastErrorString");
    if (size) {
        snprintf(message, size, "%s", last_error.c_str());
    }
    last_error.clear();
}

cudnnStatus_t cudnnBackendCreateDescriptor(cudnnBackendDescriptorType_t type, cudnnBackendDescriptor_t *out)
{
    Lock lock("cudnnBackendCreateDescriptor");
    auto d = std::make_shared<Descriptor>();
    d->type = type;
    descriptors[d.get()] = d;
    *out = d.get();
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendDestroyDescriptor(cudnnBackendDescriptor_t handle)
{
    Lock lock("cudnnBackendDestroyDescriptor");
    if (handle && !descriptors.erase(static_cast<Descriptor *>(handle))) {
        standin::misuse("cudnnBackendDestroyDescriptor: %p is not a live descriptor", handle);
        return CUDNN_STATUS_BAD_PARAM;
    }
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendSetAttribute(cudnnBackendDescriptor_t handle, cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t type, int64_t count, const void *elements)
{
    Lock lock("cudnnBackendSetAttribute");
    Ref d = find(handle);
    std::string what = "attribute " + std::to_string(name);
    if (!d || !elements || count < 0) {
        return refuse(CUDNN_STATUS_BAD_PARAM_NULL_POINTER, what + ": no descriptor or no elements");
    }
    if (d->finalized) {
        return refuse(CUDNN_STATUS_BAD_PARAM, what + ": the descriptor is finalized already");
    }
    Attribute a{type, count, {}, {}};
    if (type != CUDNN_TYPE_BACKEND_DESCRIPTOR) {
        a.bytes.assign(static_cast<const char *>(elements), static_cast<size_t>(count) * element_bytes(type));
    }
    for (int64_t i = 0; type == CUDNN_TYPE_BACKEND_DESCRIPTOR && i < count; i++) {
        Ref other = find(static_cast<cudnnBackendDescriptor_t const *>(elements)[i]);
        if (!other || !other->finalized) {
            return refuse(CUDNN_STATUS_BAD_PARAM_NOT_FINALIZED,
                          what + ": descriptor " + std::to_string(i) + " is not a finalized one");
        }
        a.refs.push_back(other);
    }
    d->attributes[name] = a;
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendGetAttribute(cudnnBackendDescriptor_t const handle, cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t type, int64_t room, int64_t *count, void *elements)
{
    Lock lock("cudnnBackendGetAttribute");
    Ref d = find(handle);
    if (!d || !d->finalized) {
        return refuse(CUDNN_STATUS_BAD_PARAM_NOT_FINALIZED, "attributes are read from finalized descriptors");
    }
    return get(*d, name, type, room, count, elements);
}
}
