/* Handles and descriptors of the stand-in for cuBLASLt. Attributes are members of a structure, found in a table. */
#include <cstdlib>
#include <cstring>
#include <vector>

#include "cublaslt_impl.h"
#include "machine.h"

using namespace standin::cublaslt;

namespace
{

struct Field {
    int attribute;
    size_t offset, bytes;
};

#define FIELD(attribute, type, member)                          \
    {                                                           \
        attribute, offsetof(type, member), sizeof(type::member) \
    }

const Field layout_fields[] = {
    FIELD(CUBLASLT_MATRIX_LAYOUT_TYPE, Layout, type),
    FIELD(CUBLASLT_MATRIX_LAYOUT_ORDER, Layout, order),
    FIELD(CUBLASLT_MATRIX_LAYOUT_ROWS, Layout, rows),
    FIELD(CUBLASLT_MATRIX_LAYOUT_COLS, Layout, cols),
    FIELD(CUBLASLT_MATRIX_LAYOUT_LD, Layout, ld),
    FIELD(CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, Layout, batch),
    FIELD(CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, Layout, stride),
};

const Field desc_fields[] = {
    FIELD(CUBLASLT_MATMUL_DESC_COMPUTE_TYPE, Descriptor, compute),
    FIELD(CUBLASLT_MATMUL_DESC_SCALE_TYPE, Descriptor, scale),
    FIELD(CUBLASLT_MATMUL_DESC_POINTER_MODE, Descriptor, pointer_mode),
    FIELD(CUBLASLT_MATMUL_DESC_TRANSA, Descriptor, trans_a),
    FIELD(CUBLASLT_MATMUL_DESC_TRANSB, Descriptor, trans_b),
    FIELD(CUBLASLT_MATMUL_DESC_TRANSC, Descriptor, trans_c),
    FIELD(CUBLASLT_MATMUL_DESC_EPILOGUE, Descriptor, epilogue),
    FIELD(CUBLASLT_MATMUL_DESC_BIAS_POINTER, Descriptor, bias),
    FIELD(CUBLASLT_MATMUL_DESC_BIAS_BATCH_STRIDE, Descriptor, bias_stride),
    FIELD(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, Descriptor, bias_type),
    FIELD(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, Descriptor, aux),
    FIELD(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, Descriptor, aux_ld),
    FIELD(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_BATCH_STRIDE, Descriptor, aux_stride),
    FIELD(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_DATA_TYPE, Descriptor, aux_type),
    FIELD(CUBLASLT_MATMUL_DESC_SM_COUNT_TARGET, Descriptor, sm_count),
};

const Field preference_fields[] = {
    FIELD(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, Preference, workspace),
    FIELD(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, Preference, align[0]),
    FIELD(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, Preference, align[1]),
    FIELD(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, Preference, align[2]),
    FIELD(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, Preference, align[3]),
    FIELD(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, Preference, reductions),
};

template <size_t N> const Field *find(const Field (&fields)[N], int attribute)
{
    for (const Field &field : fields) {
        if (field.attribute == attribute) {
            return &field;
        }
    }
    return nullptr;
}

template <class T, size_t N>
cublasStatus_t set(const Field (&fields)[N], Tag tag, void *handle, int attribute, const void *value, size_t bytes)
{
    const Field *field = find(fields, attribute);
    if (!behind<T>(handle, tag) || !field || !value || bytes != field->bytes) {
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    memcpy(static_cast<char *>(handle) + field->offset, value, bytes);
    return CUBLAS_STATUS_SUCCESS;
}

/* With bytes == 0 only the size is asked for. */
template <class T, size_t N>
cublasStatus_t get(const Field (&fields)[N], Tag tag, const void *handle, int attribute, void *value, size_t bytes,
                   size_t *written)
{
    const Field *field = find(fields, attribute);
    if (!behind<T>(handle, tag) || !field || (bytes ? !value || bytes < field->bytes : !written)) {
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    if (bytes) {
        memcpy(value, static_cast<const char *>(handle) + field->offset, field->bytes);
    }
    if (written) {
        *written = field->bytes;
    }
    return CUBLAS_STATUS_SUCCESS;
}

/* Opaque structures are the caller's or come from the heap. A destroyed one keeps its memory and loses its tag, so that
 * later uses are seen. */
auto &destroyed = *new std::vector<void *>;

template <class Opaque> cublasStatus_t make(Opaque **out)
{
    *out = static_cast<Opaque *>(calloc(1, sizeof(Opaque)));
    return *out ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_ALLOC_FAILED;
}

template <class T> cublasStatus_t destroy(void *handle, Tag tag, const char *who)
{
    if (!handle) {
        return CUBLAS_STATUS_SUCCESS;
    }
    standin::Lock lock(who);
    if (!behind<T>(handle, tag)) {
        standin::misuse("%s: %p is not a live object of its kind", who, handle);
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    static_cast<T *>(handle)->tag = Tag::none;
    destroyed.push_back(handle);
    return CUBLAS_STATUS_SUCCESS;
}

} // namespace

extern "C" {

cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle)
{
    standin::Lock lock("cublasLtCreate");
    if (lock.inject) {
        return CUBLAS_STATUS_NOT_INITIALIZED;
    }
    *handle = new cublasLtContext;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle)
{
    standin::Lock lock("cublasLtDestroy");
    if (!behind<cublasLtContext>(handle, Tag::handle)) {
        return CUBLAS_STATUS_NOT_INITIALIZED;
    }
    handle->tag = Tag::none;
    destroyed.push_back(handle);
    return CUBLAS_STATUS_SUCCESS;
}

size_t cublasLtGetVersion(void)
{
    return CUBLAS_VERSION;
}

const char *cublasLtGetStatusName(cublasStatus_t status)
{
    switch (status) {
    case CUBLAS_STATUS_SUCCESS:
        return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_NOT_INITIALIZED:
        return "CUBLAS_STATUS_NOT_INITIALIZED";
    case CUBLAS_STATUS_ALLOC_FAILED:
        return "CUBLAS_STATUS_ALLOC_FAILED";
    case CUBLAS_STATUS_INVALID_VALUE:
        return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_STATUS_NOT_SUPPORTED:
        return "CUBLAS_STATUS_NOT_SUPPORTED";
    case CUBLAS_STATUS_EXECUTION_FAILED:
        return "CUBLAS_STATUS_EXECUTION_FAILED";
    default:
        return "CUBLAS_STATUS_UNKNOWN";
    }
}

const char *cublasLtGetStatusString(cublasStatus_t status)
{
    return cublasLtGetStatusName(status);
}

cublasStatus_t cublasLtMatrixLayoutInit_internal(cublasLtMatrixLayout_t layout, size_t size, cudaDataType type,
                                                 uint64_t rows, uint64_t cols, int64_t ld)
{
    if (!layout || size < sizeof(Layout)) {
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    Layout l{Tag::layout, type, CUBLASLT_ORDER_COL, rows, cols, ld, 1, 0};
    memcpy(layout, &l, sizeof l);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *layout, cudaDataType type, uint64_t rows,
                                          uint64_t cols, int64_t ld)
{
    cublasStatus_t status = make(layout);
    return status ? status : cublasLtMatrixLayoutInit_internal(*layout, sizeof **layout, type, rows, cols, ld);
}

cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout)
{
    return destroy<Layout>(layout, Tag::layout, "cublasLtMatrixLayoutDestroy");
}

cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t layout, cublasLtMatrixLayoutAttribute_t attr,
                                                const void *value, size_t bytes)
{
    return set<Layout>(layout_fields, Tag::layout, layout, attr, value, bytes);
}

cublasStatus_t cublasLtMatrixLayoutGetAttribute(cublasLtMatrixLayout_t layout, cublasLtMatrixLayoutAttribute_t attr,
                                                void *value, size_t bytes, size_t *written)
{
    return get<Layout>(layout_fields, Tag::layout, layout, attr, value, bytes, written);
}

cublasStatus_t cublasLtMatmulDescInit_internal(cublasLtMatmulDesc_t desc, size_t size, cublasComputeType_t compute,
                                               cudaDataType_t scale)
{
    if (!desc || size < sizeof(Descriptor)) {
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    Descriptor d{};
    d.tag = Tag::descriptor;
    d.compute = compute;
    d.scale = scale;
    d.pointer_mode = CUBLASLT_POINTER_MODE_HOST;
    d.epilogue = CUBLASLT_EPILOGUE_DEFAULT;
    d.bias_type = d.aux_type = -1;
    memcpy(desc, &d, sizeof d);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *desc, cublasComputeType_t compute, cudaDataType_t scale)
{
    cublasStatus_t status = make(desc);
    return status ? status : cublasLtMatmulDescInit_internal(*desc, sizeof **desc, compute, scale);
}

cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc)
{
    return destroy<Descriptor>(desc, Tag::descriptor, "cublasLtMatmulDescDestroy");
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t attr,
                                              const void *value, size_t bytes)
{
    return set<Descriptor>(desc_fields, Tag::descriptor, desc, attr, value, bytes);
}

cublasStatus_t cublasLtMatmulDescGetAttribute(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t attr,
                                              void *value, size_t bytes, size_t *written)
{
    return get<Descriptor>(desc_fields, Tag::descriptor, desc, attr, value, bytes, written);
}

cublasStatus_t cublasLtMatmulPreferenceInit_internal(cublasLtMatmulPreference_t preference, size_t size)
{
    if (!preference || size < sizeof(Preference)) {
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    Preference p{Tag::preference, 0, {256, 256, 256, 256}, 0xffffffffu};
    memcpy(preference, &p, sizeof p);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *preference)
{
    cublasStatus_t status = make(preference);
    return status ? status : cublasLtMatmulPreferenceInit_internal(*preference, sizeof **preference);
}

cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference)
{
    return destroy<Preference>(preference, Tag::preference, "cublasLtMatmulPreferenceDestroy");
}

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t attr, const void *value,
                                                    size_t bytes)
{
    return set<Preference>(preference_fields, Tag::preference, preference, attr, value, bytes);
}

cublasStatus_t cublasLtMatmulPreferenceGetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t attr, void *value,
                                                    size_t bytes, size_t *written)
{
    return get<Preference>(preference_fields, Tag::preference, preference, attr, value, bytes, written);
}
}
