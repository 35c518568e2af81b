/* The arithmetic of the stand-in for cuBLASLt: the project's own matrix product on the CPU, with one thread, between
 * conversions and the epilogue. */
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <vector>

#include "layers/ops.h"

#include "cublaslt_impl.h"
#include "machine.h"

namespace standin::cublaslt
{

static float load(const char *p, size_t i, int type)
{
    switch (type) {
    case CUDA_R_16BF:
        return __bfloat162float(reinterpret_cast<const __nv_bfloat16 *>(p)[i]);
    case CUDA_R_16F:
        return __half2float(reinterpret_cast<const __half *>(p)[i]);
    default:
        return reinterpret_cast<const float *>(p)[i];
    }
}

static void store(char *p, size_t i, int type, float v)
{
    switch (type) {
    case CUDA_R_16BF:
        reinterpret_cast<__nv_bfloat16 *>(p)[i] = __float2bfloat16_rn(v);
        break;
    case CUDA_R_16F:
        reinterpret_cast<__half *>(p)[i] = __float2half_rn(v);
        break;
    default:
        reinterpret_cast<float *>(p)[i] = v;
    }
}

/* To the 10 bits after the point that TF32 keeps; ties away from zero, as the conversion of the tensor cores. */
static float round_tf32(float v)
{
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    if ((bits & 0x7f800000) != 0x7f800000) {
        bits = (bits + 0x1000) & ~0x1fffu;
    }
    memcpy(&v, &bits, sizeof v);
    return v;
}

/* An operand as the product reads it: rows of f32, which are the lines of the matrix in memory. */
struct Operand {
    mc_tensor view;
    std::vector<float> wide; /* where the memory is not already so */
};

static void read_operand(Operand *o, const Layout &l, const char *data, bool tf32)
{
    bool by_col = l.order == CUBLASLT_ORDER_COL;
    size_t lines = by_col ? l.cols : l.rows, length = by_col ? l.rows : l.cols, ld = static_cast<size_t>(l.ld);
    if (l.type == CUDA_R_32F && !tf32) {
        float *in_place = const_cast<float *>(reinterpret_cast<const float *>(data));
        o->view = mc_tensor_2d(in_place, MC_F32, static_cast<int64_t>(lines), static_cast<int64_t>(length));
        o->view.strides[0] = l.ld;
        return;
    }
    o->wide.resize(lines * length);
    for (size_t y = 0; y < lines; y++) {
        for (size_t x = 0; x < length; x++) {
            float v = load(data, y * ld + x, l.type);
            o->wide[y * length + x] = tf32 ? round_tf32(v) : v;
        }
    }
    o->view = mc_tensor_2d(o->wide.data(), MC_F32, static_cast<int64_t>(lines), static_cast<int64_t>(length));
}

static void multiply(const ly_gemm &gemm)
{
    static const ly_ops *ops;
    static mc_pool *pool;
    if (!pool && (ly_ops_get("cpu", &ops) != MC_OK || mc_pool_create(1, LY_POOL_SCRATCH_BYTES, &pool) != MC_OK)) {
        die(96, "cublasLtMatmul: no CPU operators");
    }
    ly_ctx cx{};
    cx.ops = ops;
    cx.pool = pool;
    if (ops->gemm(&cx, &gemm) != MC_OK) {
        die(96, "cublasLtMatmul: the CPU's matrix product failed");
    }
}

/* sum, in D's order without gaps, = op(A) op(B). In row-major terms a column-major D is its transpose, and that is
 * op(B)^T op(A)^T. */
static void sums(const Problem &p, Operand *a, Operand *b, float *sum)
{
    bool a_is_op = (p.a.order == CUBLASLT_ORDER_ROW) != (p.desc.trans_a != CUBLAS_OP_N);
    bool b_is_op = (p.b.order == CUBLASLT_ORDER_ROW) != (p.desc.trans_b != CUBLAS_OP_N);
    int64_t m = static_cast<int64_t>(p.m), n = static_cast<int64_t>(p.n);
    ly_gemm gemm{};
    if (p.d.order == CUBLASLT_ORDER_ROW) {
        gemm.a = a->view;
        gemm.b = b->view;
        gemm.trans_a = !a_is_op;
        gemm.trans_b = !b_is_op;
        gemm.c = mc_tensor_2d(sum, MC_F32, m, n);
    } else {
        gemm.a = b->view;
        gemm.b = a->view;
        gemm.trans_a = b_is_op;
        gemm.trans_b = a_is_op;
        gemm.c = mc_tensor_2d(sum, MC_F32, n, m);
    }
    multiply(gemm);
}

static constexpr float GELU_C = 0.7978845608028654f, GELU_A = 0.044715f; /* sqrt(2 / pi); the tanh form */

static float gelu(float x)
{
    return 0.5f * x * (1.0f + std::tanh(GELU_C * (x + GELU_A * x * x * x)));
}

static float gelu_slope(float x)
{
    float t = std::tanh(GELU_C * (x + GELU_A * x * x * x));
    return 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * GELU_C * (1.0f + 3.0f * GELU_A * x * x);
}

/* The matrices of one batch entry. */
struct Entry {
    const char *a, *b, *c;
    char *d, *bias, *aux;
};

static Entry entry(const Problem &p, int z, const char *a, const char *b, const char *c, char *d)
{
    const Descriptor &e = p.desc;
    auto off = [z](int64_t stride, int type) {
        return static_cast<size_t>(z) * static_cast<size_t>(stride) * type_bytes(type);
    };
    return Entry{a + off(p.a.stride, p.a.type),
                 b + off(p.b.stride, p.b.type),
                 c ? c + off(p.c.stride, p.c.type) : nullptr,
                 d + off(p.d.stride, p.d.type),
                 e.bias ? static_cast<char *>(e.bias) + off(e.bias_stride, e.bias_type) : nullptr,
                 e.aux ? static_cast<char *>(e.aux) + off(e.aux_stride, e.aux_type) : nullptr};
}

/* What happens to one element of D after the product, in f32; the caller rounds it. */
static float finish(const Problem &p, const Entry &x, uint64_t i, uint64_t j, float v)
{
    const Descriptor &e = p.desc;
    size_t aux_at = i + j * static_cast<size_t>(e.aux_ld);
    if (e.epilogue & BIAS) {
        v += load(x.bias, i, e.bias_type);
    }
    if (e.epilogue & GELU) {
        if (e.epilogue & AUX) {
            store(x.aux, aux_at, e.aux_type, v);
        }
        v = gelu(v);
    }
    if (e.epilogue & DGELU) {
        v *= gelu_slope(load(x.aux, aux_at, e.aux_type));
    }
    return v;
}

/* bias = sums of op(A)'s rows or of op(B)'s columns over k, in order of k. */
static void bias_gradient(const Problem &p, const Entry &x)
{
    bool of_a = p.desc.epilogue & BGRADA;
    const Layout &l = of_a ? p.a : p.b;
    bool k_is_row = of_a ? p.desc.trans_a != CUBLAS_OP_N : p.desc.trans_b == CUBLAS_OP_N;
    uint64_t n = of_a ? p.m : p.n;
    for (uint64_t i = 0; i < n; i++) {
        float sum = 0;
        for (uint64_t k = 0; k < p.k; k++) {
            sum += load(of_a ? x.a : x.b, k_is_row ? at(l, k, i) : at(l, i, k), l.type);
        }
        store(x.bias, i, p.desc.bias_type, sum);
    }
}

static void write_d(const Problem &p, const Entry &x, const float *sum, float alpha, float beta)
{
    bool by_col = p.d.order == CUBLASLT_ORDER_COL;
    std::vector<float> dbias(p.desc.epilogue & BGRAD ? p.m : 0);
    for (uint64_t j = 0; j < p.n; j++) {
        for (uint64_t i = 0; i < p.m; i++) {
            float v = alpha * sum[by_col ? j * p.m + i : i * p.n + j];
            if (beta != 0) {
                v += beta * load(x.c, at(p.c, i, j), p.c.type);
            }
            v = finish(p, x, i, j, v);
            if (!dbias.empty()) {
                dbias[i] += v;
            }
            store(x.d, at(p.d, i, j), p.d.type, v);
        }
    }
    for (uint64_t i = 0; i < dbias.size(); i++) {
        store(x.bias, i, p.desc.bias_type, dbias[i]);
    }
}

void compute(const Problem &p, float alpha, float beta, const char *a, const char *b, const char *c, char *d)
{
    static const bool tf32_wanted = atoi(env("STANDIN_TF32", "1")) != 0;
    bool tf32 = tf32_wanted && p.desc.compute == CUBLAS_COMPUTE_32F_FAST_TF32;
    std::vector<float> sum(p.m * p.n);
    for (int z = 0; z < p.d.batch; z++) {
        Entry x = entry(p, z, a, b, c, d);
        Operand left, right;
        read_operand(&left, p.a, x.a, tf32);
        read_operand(&right, p.b, x.b, tf32);
        sums(p, &left, &right, sum.data());
        write_d(p, x, sum.data(), alpha, beta);
        if (p.desc.epilogue & (BGRADA | BGRADB)) {
            bias_gradient(p, x);
        }
    }
}

} // namespace standin::cublaslt
