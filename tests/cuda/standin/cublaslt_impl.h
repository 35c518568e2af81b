/* Inside the stand-in for cuBLASLt: what the opaque structures hold, and a checked problem. */
#ifndef TESTS_CUDA_STANDIN_CUBLASLT_IMPL_H
#define TESTS_CUDA_STANDIN_CUBLASLT_IMPL_H

#include <cstddef>
#include <cstdint>
#include <cublasLt.h>

namespace standin::cublaslt
{

/* First member of each structure, so that a handle of another kind, or a destroyed one, is seen. */
enum class Tag : uint64_t {
    none,
    layout = 0x6c61796f7574,
    descriptor = 0x64657363,
    preference = 0x70726566,
    algorithm = 0x616c676f,
    handle = 0x68616e64
};

struct Layout {
    Tag tag;
    int32_t type, order;
    uint64_t rows, cols;
    int64_t ld;
    int32_t batch;
    int64_t stride;
};

struct Descriptor {
    Tag tag;
    int32_t compute, scale, pointer_mode, trans_a, trans_b, trans_c;
    int32_t epilogue, bias_type, aux_type, sm_count; /* types: -1 as D */
    void *bias, *aux;
    int64_t bias_stride, aux_ld, aux_stride;
};

struct Preference {
    Tag tag;
    uint64_t workspace;
    uint32_t align[4];   /* of A, B, C, D */
    uint32_t reductions; /* schemes allowed; K is never split here */
};

/* An algorithm holds for one problem: its fingerprint, and alignments that were promised when it was selected. */
struct Algorithm {
    Tag tag;
    uint64_t problem, workspace;
    uint16_t align, align_bias, align_aux, id;
};

} // namespace standin::cublaslt

struct cublasLtContext {
    standin::cublaslt::Tag tag = standin::cublaslt::Tag::handle;
};

namespace standin::cublaslt
{

static_assert(sizeof(Layout) <= sizeof(cublasLtMatrixLayoutOpaque_t), "opaque size");
static_assert(sizeof(Descriptor) <= sizeof(cublasLtMatmulDescOpaque_t), "opaque size");
static_assert(sizeof(Preference) <= sizeof(cublasLtMatmulPreferenceOpaque_t), "opaque size");
static_assert(sizeof(Algorithm) <= sizeof(cublasLtMatmulAlgo_t), "opaque size");

/* D (m,n) = epilogue(alpha op(A) (m,k) op(B) (k,n) + beta C), as described and checked. */
struct Problem {
    Layout a, b, c, d;
    Descriptor desc;
    uint64_t m, n, k;
};

/* Parts of an epilogue's number. */
constexpr int BIAS = CUBLASLT_EPILOGUE_BIAS, BGRAD = 16, GELU = CUBLASLT_EPILOGUE_GELU, DGELU = 64, AUX = 128,
              BGRADA = CUBLASLT_EPILOGUE_BGRADA, BGRADB = CUBLASLT_EPILOGUE_BGRADB;

inline size_t type_bytes(int type) /* 0: not supported here */
{
    return type == CUDA_R_32F ? 4 : type == CUDA_R_16BF || type == CUDA_R_16F ? 2 : 0;
}

inline size_t at(const Layout &l, uint64_t row, uint64_t col)
{
    size_t ld = static_cast<size_t>(l.ld);
    return l.order == CUBLASLT_ORDER_COL ? row + col * ld : row * ld + col;
}

/* Bytes from the first to the last element of all matrices of the batch. */
inline size_t extent(const Layout &l)
{
    size_t batches = static_cast<size_t>(l.batch - 1) * static_cast<size_t>(l.stride);
    return (at(l, l.rows - 1, l.cols - 1) + 1 + batches) * type_bytes(l.type);
}

/* The structure behind a handle; null where it is not one of this kind. */
template <class T> const T *behind(const void *handle, Tag tag)
{
    const T *p = static_cast<const T *>(handle);
    return p && p->tag == tag ? p : nullptr;
}

/* cublaslt_problem.cpp: what cublasLtMatmul and the heuristic both refuse. */
cublasStatus_t make_problem(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, const void *a, const void *b,
                            const void *c, const void *d, Problem *problem_out);

/* cublaslt_product.cpp: computes it, in the memory given. Each element's sum has one order, whatever m, n and the
 * algorithm. */
void compute(const Problem &problem, float alpha, float beta, const char *a, const char *b, const char *c, char *d);

} // namespace standin::cublaslt

#endif
