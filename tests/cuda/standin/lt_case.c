/* A matrix product through cuBLASLt, and the same in double precision. */
#include "tests/cuda/standin/lt_case.h"

#include <math.h>

#include "megac/base/half.h"
#include "tests/unit.h"

size_t lt_bytes(cudaDataType_t type)
{
    return type == CUDA_R_32F ? 4 : 2;
}

double lt_get(const char *p, size_t i, cudaDataType_t type)
{
    if (type == CUDA_R_32F) {
        return (double)((const float *)(const void *)p)[i];
    }
    uint16_t bits = ((const uint16_t *)(const void *)p)[i];
    return (double)(type == CUDA_R_16BF ? mc_f32_from_bf16(bits) : mc_f32_from_f16(bits));
}

void lt_put(char *p, size_t i, cudaDataType_t type, double v)
{
    if (type == CUDA_R_32F) {
        ((float *)(void *)p)[i] = (float)v;
    } else {
        ((uint16_t *)(void *)p)[i] = type == CUDA_R_16BF ? mc_bf16_from_f32((float)v) : mc_f16_from_f32((float)v);
    }
}

static double number(void)
{
    static uint32_t state = 1;
    state = state * 1664525u + 1013904223u;
    return (double)(state >> 8) / (1 << 23) - 1.0;
}

void lt_bench_open(lt_bench *bench)
{
    bench->workspace_bytes = (size_t)1 << 20;
    assert_int_equal(cublasLtCreate(&bench->handle), 0);
    assert_int_equal(cudaStreamCreateWithFlags(&bench->stream, cudaStreamNonBlocking), 0);
    assert_int_equal(cudaMalloc((void **)&bench->workspace, bench->workspace_bytes), 0);
}

void lt_bench_close(lt_bench *bench)
{
    assert_int_equal(cudaFree(bench->workspace), 0);
    assert_int_equal(cudaStreamDestroy(bench->stream), 0);
    assert_int_equal(cublasLtDestroy(bench->handle), 0);
}

static void upload(const lt_array *x)
{
    assert_int_equal(cudaMemcpy(x->device, x->host, x->elems * lt_bytes(x->type), cudaMemcpyHostToDevice), 0);
}

static lt_array array(cudaDataType_t type, size_t elems, bool random)
{
    lt_array x = {.type = type, .elems = elems};
    x.host = malloc(elems * lt_bytes(type));
    assert_non_null(x.host);
    assert_int_equal(cudaMalloc((void **)&x.device, elems * lt_bytes(type)), 0);
    for (size_t i = 0; i < elems; i++) {
        lt_put(x.host, i, type, random ? number() : NAN);
    }
    upload(&x);
    return x;
}

static lt_array matrix(const lt_case *c, cudaDataType_t type, int rows, int cols, bool row_major, bool random)
{
    int64_t lines = row_major ? rows : cols, ld = (row_major ? cols : rows) + c->pad;
    lt_array x = array(type, (size_t)(lines * ld * c->batch), random);
    x.ld = ld;
    x.stride = lines * ld;
    return x;
}

static void layout(cublasLtMatrixLayout_t *out, const lt_case *c, const lt_array *x, int rows, int cols, bool row_major)
{
    int32_t order = row_major ? CUBLASLT_ORDER_ROW : CUBLASLT_ORDER_COL, batch = c->batch;
    assert_int_equal(cublasLtMatrixLayoutCreate(out, x->type, (uint64_t)rows, (uint64_t)cols, x->ld), 0);
    assert_int_equal(cublasLtMatrixLayoutSetAttribute(*out, CUBLASLT_MATRIX_LAYOUT_ORDER, &order, sizeof order), 0);
    assert_int_equal(cublasLtMatrixLayoutSetAttribute(*out, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &batch, sizeof batch),
                     0);
    assert_int_equal(cublasLtMatrixLayoutSetAttribute(*out, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &x->stride,
                                                      sizeof x->stride),
                     0);
}

#define SET(desc, attribute, value) \
    assert_int_equal(cublasLtMatmulDescSetAttribute(desc, attribute, &(value), sizeof(value)), 0)

static void describe(lt_run *r)
{
    const lt_case *c = &r->c;
    cublasOperation_t ta = c->ta ? CUBLAS_OP_T : CUBLAS_OP_N, tb = c->tb ? CUBLAS_OP_T : CUBLAS_OP_N;
    assert_int_equal(cublasLtMatmulDescCreate(&r->desc, c->compute, CUDA_R_32F), 0);
    SET(r->desc, CUBLASLT_MATMUL_DESC_TRANSA, ta);
    SET(r->desc, CUBLASLT_MATMUL_DESC_TRANSB, tb);
    SET(r->desc, CUBLASLT_MATMUL_DESC_EPILOGUE, c->epilogue);
    SET(r->desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, r->bias.device);
    SET(r->desc, CUBLASLT_MATMUL_DESC_BIAS_BATCH_STRIDE, r->bias.stride);
    SET(r->desc, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, r->aux.device);
    SET(r->desc, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, r->aux.ld);
    SET(r->desc, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_BATCH_STRIDE, r->aux.stride);
    layout(&r->la, c, &r->a, c->ta ? c->k : c->m, c->ta ? c->m : c->k, c->row_a);
    layout(&r->lb, c, &r->b, c->tb ? c->n : c->k, c->tb ? c->k : c->n, c->row_b);
    layout(&r->lc, c, &r->c_in, c->m, c->n, c->row_d);
    layout(&r->ld, c, &r->d, c->m, c->n, c->row_d);
}

void lt_open(lt_run *r, const lt_bench *bench, lt_case c)
{
    memset(r, 0, sizeof *r);
    r->c = c;
    r->a = matrix(&c, c.in, c.ta ? c.k : c.m, c.ta ? c.m : c.k, c.row_a, true);
    r->b = matrix(&c, c.in, c.tb ? c.n : c.k, c.tb ? c.k : c.n, c.row_b, true);
    r->c_in = matrix(&c, c.out, c.m, c.n, c.row_d, c.beta != 0);
    r->d = matrix(&c, c.out, c.m, c.n, c.row_d, false);
    size_t longest = (size_t)(c.m > c.n ? c.m : c.n);
    r->bias = array(c.out, longest * (size_t)c.batch, (c.epilogue & CUBLASLT_EPILOGUE_BIAS) != 0);
    r->bias.stride = (int64_t)longest;
    int64_t aux_ld = (c.m + 7) / 8 * 8;
    r->aux = array(c.out, (size_t)(aux_ld * c.n * c.batch), (c.epilogue & 64) != 0);
    r->aux.ld = aux_ld;
    r->aux.stride = aux_ld * c.n;
    describe(r);
    size_t most = bench->workspace_bytes;
    assert_int_equal(cublasLtMatmulPreferenceCreate(&r->preference), 0);
    assert_int_equal(cublasLtMatmulPreferenceSetAttribute(r->preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                          &most, sizeof most),
                     0);
    assert_int_equal(cublasLtMatmulAlgoGetHeuristic(bench->handle, r->desc, r->la, r->lb, r->lc, r->ld, r->preference,
                                                    8, r->found, &r->n_found),
                     0);
    assert_true(r->n_found > c.algorithm);
}

cublasStatus_t lt_multiply(lt_run *r, const lt_bench *bench)
{
    const lt_case *c = &r->c;
    const cublasLtMatmulAlgo_t *algorithm = c->algorithm < 0 ? NULL : &r->found[c->algorithm].algo;
    size_t need = c->algorithm < 0 ? 0 : r->found[c->algorithm].workspaceSize;
    const char *c_in = c->beta == 0 ? NULL : c->in_place ? r->d.device : r->c_in.device;
    if (c->in_place) {
        size_t bytes = r->d.elems * lt_bytes(r->d.type);
        assert_int_equal(cudaMemcpyAsync(r->d.device, r->c_in.device, bytes, cudaMemcpyDeviceToDevice, bench->stream),
                         0);
    }
    return cublasLtMatmul(bench->handle, r->desc, &c->alpha, r->a.device, r->la, r->b.device, r->lb, &c->beta, c_in,
                          r->lc, r->d.device, r->ld, algorithm, need ? bench->workspace : NULL, need, bench->stream);
}

static void drop(lt_array *x)
{
    free(x->host);
    assert_int_equal(cudaFree(x->device), 0);
}

void lt_close(lt_run *r)
{
    lt_array *all[] = {&r->a, &r->b, &r->c_in, &r->d, &r->bias, &r->aux};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        drop(all[i]);
    }
    cublasLtMatrixLayout_t layouts[] = {r->la, r->lb, r->lc, r->ld};
    for (size_t i = 0; i < 4; i++) {
        assert_int_equal(cublasLtMatrixLayoutDestroy(layouts[i]), 0);
    }
    assert_int_equal(cublasLtMatmulDescDestroy(r->desc), 0);
    assert_int_equal(cublasLtMatmulPreferenceDestroy(r->preference), 0);
}

/* ---- the reference */

static size_t place(const lt_array *x, bool row_major, int z, int row, int col)
{
    return (size_t)(z * x->stride + (row_major ? row * x->ld + col : row + col * x->ld));
}

static double op_a(const lt_run *r, int z, int i, int k)
{
    return lt_get(r->a.host, place(&r->a, r->c.row_a, z, r->c.ta ? k : i, r->c.ta ? i : k), r->c.in);
}

static double op_b(const lt_run *r, int z, int k, int j)
{
    return lt_get(r->b.host, place(&r->b, r->c.row_b, z, r->c.tb ? j : k, r->c.tb ? k : j), r->c.in);
}

static double gelu(double x)
{
    return 0.5 * x * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}

static double gelu_slope(double x)
{
    double h = 1e-4; /* a difference: independent of the formula for the slope, good to 1e-8 */
    return (gelu(x + h) - gelu(x - h)) / (2 * h);
}

/* Half a unit in the last place of the type, relative; for f32 this is in the sums' bound already. */
static double rounding(cudaDataType_t type)
{
    return type == CUDA_R_16BF ? 0x1p-8 : type == CUDA_R_16F ? 0x1p-11 : 0x1p-23;
}

static void near(const char *what, int i, int j, double got, double want, double bound)
{
    if (!(fabs(got - want) <= bound)) {
        fail_msg("%s (%d,%d) is %.9g, expected %.9g within %.3g", what, i, j, got, want, bound);
    }
}

/* Downloaded results: D, bias, aux. */
typedef struct results {
    char *d, *bias, *aux;
} results;

static char *download(const lt_array *x)
{
    char *p = malloc(x->elems * lt_bytes(x->type));
    assert_non_null(p);
    assert_int_equal(cudaMemcpy(p, x->device, x->elems * lt_bytes(x->type), cudaMemcpyDeviceToHost), 0);
    return p;
}

/* Element (i,j) of batch entry z. Returns what D should hold. */
static double verify_element(const lt_run *r, const results *got, int z, int i, int j)
{
    const lt_case *c = &r->c;
    double sum = 0, size = 0;
    for (int k = 0; k < c->k; k++) {
        double term = op_a(r, z, i, k) * op_b(r, z, k, j);
        sum += term;
        size += fabs(term);
    }
    double v = (double)c->alpha * sum, inputs = c->compute == CUBLAS_COMPUTE_32F_FAST_TF32 ? 0x1p-10 : 0;
    /* A sum of k terms in f32, in any order, with or without fused multiply-add. */
    double bound = fabs((double)c->alpha) * size * (c->k * 0x1p-24 + inputs) + 0x1p-22 * (1 + fabs(v));
    size_t at = place(&r->d, c->row_d, z, i, j), aux_at = (size_t)(z * r->aux.stride + i + j * r->aux.ld);
    if (c->beta != 0) {
        v += (double)c->beta * lt_get(r->c_in.host, at, c->out);
    }
    if (c->epilogue & CUBLASLT_EPILOGUE_BIAS) {
        v += lt_get(r->bias.host, (size_t)(z * r->bias.stride + i), c->out);
    }
    if (c->epilogue & CUBLASLT_EPILOGUE_GELU) {
        if (c->epilogue & 128) {
            near("aux", i, j, lt_get(got->aux, aux_at, c->out), v, bound + fabs(v) * rounding(c->out));
        }
        v = gelu(v);
        bound = 1.2 * bound; /* the slope is at most 1.13 */
    }
    if (c->epilogue & 64) {
        double slope = gelu_slope(lt_get(r->aux.host, aux_at, c->out));
        bound = 1.2 * bound + 1e-6 * fabs(v);
        v *= slope;
    }
    near("D", i, j, lt_get(got->d, at, c->out), v, bound + fabs(v) * rounding(c->out));
    return v;
}

static void verify_bias(const lt_run *r, const results *got, int z, const double *d_sums)
{
    const lt_case *c = &r->c;
    bool of_a = c->epilogue == CUBLASLT_EPILOGUE_BGRADA, of_b = c->epilogue == CUBLASLT_EPILOGUE_BGRADB;
    int n = of_b ? c->n : c->m;
    for (int i = 0; (of_a || of_b || c->epilogue & 16) && i < n; i++) {
        double sum = d_sums[i];
        for (int k = 0; (of_a || of_b) && k < c->k; k++) {
            sum += of_a ? op_a(r, z, i, k) : op_b(r, z, k, i);
        }
        double bound = 1e-3 + fabs(sum) * rounding(c->out);
        near("bias gradient", i, 0, lt_get(got->bias, (size_t)(z * r->bias.stride + i), c->out), sum, bound);
    }
}

/* What lies between the lines still is NaN. */
static void verify_gaps(const lt_run *r, const results *got)
{
    const lt_case *c = &r->c;
    int64_t used = c->row_d ? c->n : c->m;
    for (size_t i = 0; !c->in_place && i < r->d.elems; i++) {
        if ((int64_t)(i % (size_t)r->d.ld) >= used && !isnan(lt_get(got->d, i, c->out))) {
            fail_msg("element %zu of D's memory, between its lines, was written", i);
        }
    }
}

void lt_verify(lt_run *r, const lt_bench *bench)
{
    const lt_case *c = &r->c;
    assert_int_equal(cudaStreamSynchronize(bench->stream), 0);
    results got = {.d = download(&r->d), .bias = download(&r->bias), .aux = download(&r->aux)};
    for (int z = 0; z < c->batch; z++) {
        double d_sums[256] = {0};
        for (int i = 0; i < c->m; i++) {
            for (int j = 0; j < c->n; j++) {
                double v = verify_element(r, &got, z, i, j);
                d_sums[i] += c->epilogue & 16 ? v : 0;
            }
        }
        verify_bias(r, &got, z, d_sums);
    }
    verify_gaps(r, &got);
    free(got.d);
    free(got.bias);
    free(got.aux);
}
