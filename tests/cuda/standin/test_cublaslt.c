/* The stand-in for cuBLASLt: values against double precision, and what it refuses and reports. The program runs itself
 * (argv[1]: a fault) for reports, which end a process with status 97. */
#include <math.h>

#include "tests/cuda/standin/farm.h"
#include "tests/cuda/standin/lt_case.h"
#include "tests/unit.h"

static lt_bench bench;

static lt_case plain(cudaDataType_t in, cudaDataType_t out)
{
    return (lt_case){.in = in,
                     .out = out,
                     .m = 40,
                     .n = 24,
                     .k = 56,
                     .pad = 8,
                     .batch = 1,
                     .epilogue = CUBLASLT_EPILOGUE_DEFAULT,
                     .compute = CUBLAS_COMPUTE_32F,
                     .alpha = 1};
}

static void verify(lt_case c)
{
    lt_run r;
    lt_open(&r, &bench, c);
    assert_int_equal(lt_multiply(&r, &bench), 0);
    lt_verify(&r, &bench);
    lt_close(&r);
}

static const struct {
    cudaDataType_t in, out;
} types[] = {{CUDA_R_32F, CUDA_R_32F},
             {CUDA_R_16BF, CUDA_R_16BF},
             {CUDA_R_16BF, CUDA_R_32F},
             {CUDA_R_16F, CUDA_R_16F},
             {CUDA_R_16F, CUDA_R_32F}};
enum { N_TYPES = sizeof types / sizeof *types };

/* Types x transposes x orders of memory, with batches, odd sizes, scalars and C in place or not, all algorithms. */
static void layouts(void **state)
{
    (void)state;
    for (int t = 0; t < N_TYPES; t++) {
        for (int i = 0; i < 32; i++) {
            lt_case c = plain(types[t].in, types[t].out);
            c.ta = i & 1;
            c.tb = i & 2;
            c.row_a = i & 4;
            c.row_b = i & 8;
            c.row_d = i & 16;
            c.batch = 1 + i % 3;
            c.alpha = i % 4 == 3 ? 1.5f : 1.0f;
            c.beta = i % 5 == 0 ? 0.0f : i % 5 == 1 ? 0.5f : 1.0f;
            c.in_place = i % 2;
            c.algorithm = i % 4 - 1;
            if (i % 3 == 1) {
                c.m = 37;
                c.n = 23;
                c.k = 53;
                c.pad = 3;
            }
            verify(c);
        }
    }
}

static void epilogues(void **state)
{
    (void)state;
    static const cublasLtEpilogue_t all[] = {
        CUBLASLT_EPILOGUE_BIAS,          CUBLASLT_EPILOGUE_GELU,   CUBLASLT_EPILOGUE_GELU_BIAS,
        CUBLASLT_EPILOGUE_GELU_AUX,      CUBLASLT_EPILOGUE_DGELU,  CUBLASLT_EPILOGUE_DGELU_BGRAD,
        CUBLASLT_EPILOGUE_GELU_AUX_BIAS, CUBLASLT_EPILOGUE_BGRADA, CUBLASLT_EPILOGUE_BGRADB};
    for (int t = 0; t < N_TYPES; t++) {
        for (size_t e = 0; e < sizeof all / sizeof *all; e++) {
            for (int i = 0; i < 4; i++) {
                lt_case c = plain(types[t].in, types[t].out);
                c.epilogue = all[e];
                c.ta = i & 1;
                c.tb = i & 2;
                c.batch = 1 + i % 2;
                c.beta = i == 3 ? 1.0f : 0.0f;
                c.m = i == 1 ? 37 : c.m;
                verify(c);
            }
        }
    }
}

static void tensor_float_32(void **state)
{
    (void)state;
    lt_case c = plain(CUDA_R_32F, CUDA_R_32F);
    c.compute = CUBLAS_COMPUTE_32F_FAST_TF32;
    verify(c);
    /* 1 + 2^-11 becomes 1 + 2^-10, and 1 + 2^-12 becomes 1; in f32 both stay. */
    lt_run r;
    for (int tf32 = 0; tf32 < 2; tf32++) {
        c.compute = tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
        c.m = c.n = c.k = 1;
        lt_open(&r, &bench, c);
        float a = 1 + 0x1p-11f, b = 1 + 0x1p-12f, d;
        assert_int_equal(cudaMemcpy(r.a.device, &a, sizeof a, cudaMemcpyHostToDevice), 0);
        assert_int_equal(cudaMemcpy(r.b.device, &b, sizeof b, cudaMemcpyHostToDevice), 0);
        assert_int_equal(lt_multiply(&r, &bench), 0);
        assert_int_equal(cudaStreamSynchronize(bench.stream), 0);
        assert_int_equal(cudaMemcpy(&d, r.d.device, sizeof d, cudaMemcpyDeviceToHost), 0);
        assert_true(d == (tf32 ? 1 + 0x1p-10f : a * b));
        lt_close(&r);
    }
}

/* Columns [first, first + n) of D, computed alone with every algorithm, have the bits that they have in the whole. */
static void splits_change_no_bits(void **state)
{
    (void)state;
    for (int t = 0; t < N_TYPES; t++) {
        lt_case c = plain(types[t].in, types[t].out);
        c.m = 130;
        c.n = 96;
        c.k = 301;
        c.tb = true; /* B is (n,k): its first columns are all rows' first elements */
        lt_run r;
        lt_open(&r, &bench, c);
        assert_int_equal(lt_multiply(&r, &bench), 0);
        assert_int_equal(cudaStreamSynchronize(bench.stream), 0);
        size_t bytes = r.d.elems * lt_bytes(c.out);
        char *whole = malloc(bytes), *part = malloc(bytes);
        assert_int_equal(cudaMemcpy(whole, r.d.device, bytes, cudaMemcpyDeviceToHost), 0);
        uint64_t rows = 77, cols = 31;
        uint64_t first_rows[] = {rows, cols};
        cublasLtMatrixLayout_t l[] = {r.la, r.lb};
        for (int i = 0; i < 2; i++) {
            assert_int_equal(cublasLtMatrixLayoutSetAttribute(l[i], CUBLASLT_MATRIX_LAYOUT_ROWS, &first_rows[i], 8), 0);
        }
        assert_int_equal(cublasLtMatrixLayoutSetAttribute(r.lc, CUBLASLT_MATRIX_LAYOUT_ROWS, &rows, 8), 0);
        assert_int_equal(cublasLtMatrixLayoutSetAttribute(r.lc, CUBLASLT_MATRIX_LAYOUT_COLS, &cols, 8), 0);
        assert_int_equal(cublasLtMatrixLayoutSetAttribute(r.ld, CUBLASLT_MATRIX_LAYOUT_ROWS, &rows, 8), 0);
        assert_int_equal(cublasLtMatrixLayoutSetAttribute(r.ld, CUBLASLT_MATRIX_LAYOUT_COLS, &cols, 8), 0);
        assert_int_equal(cublasLtMatmulAlgoGetHeuristic(bench.handle, r.desc, r.la, r.lb, r.lc, r.ld, r.preference, 8,
                                                        r.found, &r.n_found),
                         0);
        for (r.c.algorithm = 0; r.c.algorithm < r.n_found; r.c.algorithm++) {
            assert_int_equal(cudaMemset(r.d.device, 0xff, bytes), 0);
            assert_int_equal(cudaDeviceSynchronize(), 0);
            assert_int_equal(lt_multiply(&r, &bench), 0);
            assert_int_equal(cudaStreamSynchronize(bench.stream), 0);
            assert_int_equal(cudaMemcpy(part, r.d.device, bytes, cudaMemcpyDeviceToHost), 0);
            for (size_t j = 0; j < cols; j++) {
                size_t at = j * (size_t)r.d.ld * lt_bytes(c.out);
                assert_memory_equal(part + at, whole + at, rows * lt_bytes(c.out));
            }
        }
        free(whole);
        free(part);
        lt_close(&r);
    }
}

/* Algorithms differ in the workspace they need; they leave garbage there, and touch no more. */
static void workspaces(void **state)
{
    (void)state;
    lt_run r;
    lt_open(&r, &bench, plain(CUDA_R_16BF, CUDA_R_16BF));
    assert_int_equal(r.n_found, 3);
    assert_true(r.found[0].workspaceSize > r.found[1].workspaceSize);
    assert_true(r.found[1].workspaceSize > r.found[2].workspaceSize);
    assert_int_equal(r.found[2].workspaceSize, 0);
    unsigned char *seen = malloc(bench.workspace_bytes);
    size_t need = r.found[0].workspaceSize;
    assert_int_equal(cudaMemsetAsync(bench.workspace, 0x11, bench.workspace_bytes, bench.stream), 0);
    assert_int_equal(lt_multiply(&r, &bench), 0);
    assert_int_equal(cudaStreamSynchronize(bench.stream), 0);
    assert_int_equal(cudaMemcpy(seen, bench.workspace, bench.workspace_bytes, cudaMemcpyDeviceToHost), 0);
    assert_int_equal(seen[0], 0xff);
    assert_int_equal(seen[need - 1], 0xff);
    assert_int_equal(seen[need], 0x11);
    free(seen);
    const size_t most[] = {need, need - 1, r.found[1].workspaceSize - 1};
    for (int i = 0; i < 3; i++) {
        assert_int_equal(cublasLtMatmulPreferenceSetAttribute(r.preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                              &most[i], sizeof most[i]),
                         0);
        assert_int_equal(cublasLtMatmulAlgoGetHeuristic(bench.handle, r.desc, r.la, r.lb, r.lc, r.ld, r.preference, 8,
                                                        r.found, &r.n_found),
                         0);
        assert_int_equal(r.n_found, 3 - i);
    }
    lt_close(&r);
}

static void scalars_on_the_device(void **state)
{
    (void)state;
    lt_case c = plain(CUDA_R_32F, CUDA_R_32F);
    c.alpha = 2;
    c.beta = 1;
    lt_run r;
    lt_open(&r, &bench, c);
    cublasLtPointerMode_t mode = CUBLASLT_POINTER_MODE_DEVICE;
    assert_int_equal(cublasLtMatmulDescSetAttribute(r.desc, CUBLASLT_MATMUL_DESC_POINTER_MODE, &mode, sizeof mode), 0);
    float *scalars, host[2] = {2, 1};
    assert_int_equal(cudaMalloc((void **)&scalars, sizeof host), 0);
    assert_int_equal(cudaMemcpy(scalars, host, sizeof host, cudaMemcpyHostToDevice), 0);
    assert_int_equal(cublasLtMatmul(bench.handle, r.desc, &scalars[0], r.a.device, r.la, r.b.device, r.lb, &scalars[1],
                                    r.c_in.device, r.lc, r.d.device, r.ld, NULL, NULL, 0, bench.stream),
                     0);
    lt_verify(&r, &bench);
    assert_int_equal(cudaFree(scalars), 0);
    lt_close(&r);
}

static cublasStatus_t ask(lt_run *r)
{
    return cublasLtMatmulAlgoGetHeuristic(bench.handle, r->desc, r->la, r->lb, r->lc, r->ld, r->preference, 1, r->found,
                                          &r->n_found);
}

static void set_layout(cublasLtMatrixLayout_t layout, cublasLtMatrixLayoutAttribute_t attribute, int64_t value)
{
    assert_int_equal(cublasLtMatrixLayoutSetAttribute(layout, attribute, &value, 8), 0);
}

static void refused_arguments(void **state)
{
    (void)state;
    lt_run r;
    lt_case c = plain(CUDA_R_16BF, CUDA_R_16BF);
    lt_open(&r, &bench, c);
    int64_t number = 0;
    size_t written = 0;
    assert_int_equal(cublasLtMatrixLayoutSetAttribute(r.la, CUBLASLT_MATRIX_LAYOUT_LD, &number, 4),
                     CUBLAS_STATUS_INVALID_VALUE);
    assert_int_equal(cublasLtMatrixLayoutGetAttribute(r.la, CUBLASLT_MATRIX_LAYOUT_LD, &number, 8, &written), 0);
    assert_int_equal(number, r.a.ld);
    assert_int_equal(written, 8);
    set_layout(r.la, CUBLASLT_MATRIX_LAYOUT_LD, c.m - 1);
    assert_int_equal(ask(&r), CUBLAS_STATUS_INVALID_VALUE);
    set_layout(r.la, CUBLASLT_MATRIX_LAYOUT_LD, r.a.ld);
    set_layout(r.lb, CUBLASLT_MATRIX_LAYOUT_ROWS, c.k - 1);
    assert_int_equal(ask(&r), CUBLAS_STATUS_INVALID_VALUE);
    set_layout(r.lb, CUBLASLT_MATRIX_LAYOUT_ROWS, c.k);
    assert_int_equal(ask(&r), 0);
    cudaDataType_t type = CUDA_R_16F;
    assert_int_equal(cublasLtMatrixLayoutSetAttribute(r.lb, CUBLASLT_MATRIX_LAYOUT_TYPE, &type, sizeof type), 0);
    assert_int_equal(ask(&r), CUBLAS_STATUS_NOT_SUPPORTED);
    type = CUDA_R_16BF;
    assert_int_equal(cublasLtMatrixLayoutSetAttribute(r.lb, CUBLASLT_MATRIX_LAYOUT_TYPE, &type, sizeof type), 0);
    cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_RELU;
    assert_int_equal(cublasLtMatmulDescSetAttribute(r.desc, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue),
                     0);
    assert_int_equal(ask(&r), CUBLAS_STATUS_NOT_SUPPORTED);
    epilogue = CUBLASLT_EPILOGUE_GELU_AUX;
    number = c.m + 4;
    assert_int_equal(cublasLtMatmulDescSetAttribute(r.desc, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue),
                     0);
    assert_int_equal(cublasLtMatmulDescSetAttribute(r.desc, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, &number, 8), 0);
    assert_int_equal(ask(&r), CUBLAS_STATUS_INVALID_VALUE);
    lt_close(&r);

    lt_open(&r, &bench, c);
    float one = 1, zero = 0;
    assert_int_equal(cublasLtMatmul(bench.handle, r.desc, &one, r.a.device, r.la, r.b.device, r.lb, &zero, NULL, r.lc,
                                    r.d.device, r.ld, &r.found[0].algo, bench.workspace, 16, bench.stream),
                     CUBLAS_STATUS_INVALID_VALUE);
    assert_int_equal(cublasLtMatmul(NULL, r.desc, &one, r.a.device, r.la, r.b.device, r.lb, &zero, NULL, r.lc,
                                    r.d.device, r.ld, NULL, NULL, 0, bench.stream),
                     CUBLAS_STATUS_NOT_INITIALIZED);
    assert_int_equal(cublasLtMatmul(bench.handle, r.desc, &one, r.a.device, r.la, r.b.device, r.lb, &one, NULL, r.lc,
                                    r.d.device, r.ld, NULL, NULL, 0, bench.stream),
                     CUBLAS_STATUS_INVALID_VALUE);
    lt_close(&r);
}

/* ---- faults: each in a process of its own */

static int planted(const char *fault)
{
    lt_bench_open(&bench);
    lt_case c = plain(CUDA_R_16BF, CUDA_R_16BF);
    if (!strcmp(fault, "bias")) {
        c.epilogue = CUBLASLT_EPILOGUE_BIAS;
    }
    lt_run r;
    lt_open(&r, &bench, c);
    if (!strcmp(fault, "algorithm")) {
        set_layout(r.la, CUBLASLT_MATRIX_LAYOUT_LD, r.a.ld - 8);
    } else if (!strcmp(fault, "alignment")) {
        r.a.device += 2;
    } else if (!strcmp(fault, "bias")) {
        char *moved = r.bias.device + 4;
        cublasLtMatmulDescSetAttribute(r.desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &moved, sizeof moved);
    } else if (!strcmp(fault, "overlap")) {
        r.d.device = r.a.device + 16;
    } else if (!strcmp(fault, "host")) {
        r.b.device = r.b.host;
    } else if (!strcmp(fault, "end")) {
        r.b.device += 256;
    } else if (!strcmp(fault, "workspace")) { /* shared with a product in another stream */
        lt_bench second = bench;
        cudaStreamCreateWithFlags(&second.stream, cudaStreamNonBlocking);
        lt_run other;
        lt_open(&other, &second, c);
        lt_multiply(&other, &second);
    } else if (!strcmp(fault, "destroyed")) {
        cublasLtMatrixLayoutDestroy(r.la);
        cublasLtMatrixLayoutDestroy(r.la);
    }
    printf("status %s\n", cublasLtGetStatusString(lt_multiply(&r, &bench)));
    cudaDeviceSynchronize();
    fflush(stdout);
    return 0;
}

static void faults_are_reported(void **state)
{
    (void)state;
    static farm_result result;
    /* A planted fault ends where it stands. */
    static const char *const env[] = {"STANDIN_RACE=1", "LSAN_OPTIONS=detect_leaks=0", NULL};
    static const struct {
        const char *fault, *status, *report;
    } rows[] = {
        {"algorithm", "NOT_SUPPORTED", "MISUSE: cublasLtMatmul: the algorithm was selected for another problem"},
        {"alignment", "INVALID_VALUE", "is not aligned to the 16 bytes that were promised"},
        {"bias", "INVALID_VALUE", "MISUSE: cublasLtMatmul: bias 0x"},
        {"overlap", "INVALID_VALUE", "overlaps A or B"},
        {"host", "INVALID_VALUE", "MISUSE: cublasLtMatmul: 0x"},
        {"end", "INVALID_VALUE", "past its end"},
        {"workspace", "SUCCESS", "RACE: "},
        {"destroyed", "INVALID_VALUE", "MISUSE: cublasLtMatrixLayoutDestroy: 0x"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        farm_run("/proc/self/exe", rows[i].fault, 1, env, 60, &result);
        if (result.status[0] != 97 || !strstr(result.text[0], rows[i].report) ||
            !strstr(result.text[0], rows[i].status)) {
            farm_show(&result);
            fail_msg("fault %s: status or report is not the expected one", rows[i].fault);
        }
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(layouts),           cmocka_unit_test(epilogues),
        cmocka_unit_test(tensor_float_32),   cmocka_unit_test(splits_change_no_bits),
        cmocka_unit_test(workspaces),        cmocka_unit_test(scalars_on_the_device),
        cmocka_unit_test(refused_arguments), cmocka_unit_test(faults_are_reported),
    };
    if (argc > 1) {
        return planted(argv[1]);
    }
    lt_bench_open(&bench);
    int failed = cmocka_run_group_tests_name("stand-in for cuBLASLt", tests, NULL, NULL);
    lt_bench_close(&bench);
    return failed;
}
