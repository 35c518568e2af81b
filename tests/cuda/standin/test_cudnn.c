/* The stand-in for cuDNN: attention against double precision, and what it refuses and reports. The program runs itself
 * (argv[1]: a fault) for reports, which end a process with status 97. */
#include <math.h>

#include "megac/base/half.h"
#include "tests/cuda/standin/farm.h"
#include "tests/cuda/standin/sdpa_graph.h"
#include "tests/unit.h"

static cudnnHandle_t handle;
static cudaStream_t stream;
static sdpa_graph graph;

/* ---- one problem: 16-bit memory on both sides */

enum { Q, K, V, DOUT, O, DQ, DK, DV, N_ARRAYS };

typedef struct problem {
    sdpa_shape s;
    sdpa_memory m;
    uint16_t *host[N_ARRAYS]; /* inputs, then results, as (B,T,row) */
    float *mask;              /* (B,Hq,T,T): 0, or what the probabilities are multiplied with */
    int32_t lengths[8];
} problem;

static bool has_key_heads(int array)
{
    return array == K || array == V || array == DK || array == DV;
}

static int64_t heads_of(const problem *p, int array)
{
    return has_key_heads(array) ? p->s.hk : p->s.hq;
}

static int64_t row_of(const problem *p, int array)
{
    return p->s.row ? p->s.row : heads_of(p, array) * p->s.d;
}

static size_t elements(const problem *p, int array)
{
    return (size_t)(p->s.b * p->s.t * row_of(p, array));
}

static size_t place(const problem *p, int array, int64_t b, int64_t t, int64_t h, int64_t d)
{
    return (size_t)((b * p->s.t + t) * row_of(p, array) + h * p->s.d + d);
}

static double get(const problem *p, int array, int64_t b, int64_t t, int64_t h, int64_t d)
{
    uint16_t bits = p->host[array][place(p, array, b, t, h, d)];
    return (double)(p->s.type == CUDNN_DATA_BFLOAT16 ? mc_f32_from_bf16(bits) : mc_f32_from_f16(bits));
}

static float number(void)
{
    static uint32_t state = 1;
    state = state * 1664525u + 1013904223u;
    return (float)(state >> 8) / (1 << 23) - 1.0f;
}

static void *device(size_t bytes, const void *host)
{
    void *p;
    assert_int_equal(cudaMalloc(&p, bytes), 0);
    if (host) {
        assert_int_equal(cudaMemcpy(p, host, bytes, cudaMemcpyHostToDevice), 0);
    }
    return p;
}

static void **slot(problem *p, int array)
{
    void **slots[] = {&p->m.q, &p->m.k, &p->m.v, &p->m.dout, &p->m.o, &p->m.dq, &p->m.dk, &p->m.dv};
    return slots[array];
}

static void open_problem(problem *p, sdpa_shape s)
{
    *p = (problem){.s = s};
    for (int64_t b = 0; b < s.b; b++) {
        p->lengths[b] = (int32_t)(s.padded ? s.t - 3 * (b + 1) : s.t);
    }
    for (int a = 0; a < N_ARRAYS; a++) {
        p->host[a] = malloc(elements(p, a) * 2);
        for (size_t i = 0; i < elements(p, a); i++) {
            int64_t b = (int64_t)i / (s.t * row_of(p, a)), t = (int64_t)i / row_of(p, a) % s.t;
            float v = a < O && t < p->lengths[b] ? number() : NAN; /* behind the lengths nothing may be read */
            p->host[a][i] = s.type == CUDNN_DATA_BFLOAT16 ? mc_bf16_from_f32(v) : mc_f16_from_f32(v);
        }
        *slot(p, a) = device(elements(p, a) * 2, p->host[a]);
    }
    size_t rows = (size_t)(s.b * s.hq * s.t);
    int64_t seed = 1234567890123, offset = 7;
    p->m.stats = device(rows * 4, NULL);
    p->m.sum = device(rows * 4, NULL);
    p->m.dq_sum = device(rows * (size_t)s.d * 4, NULL);
    p->m.seed = device(8, &seed);
    p->m.offset = device(8, &offset);
    p->m.lengths_q = device(sizeof p->lengths, p->lengths);
    p->m.lengths_k = device(sizeof p->lengths, p->lengths);
    p->mask = malloc(rows * (size_t)s.t * 4);
}

static void close_problem(problem *p)
{
    for (int a = 0; a < N_ARRAYS; a++) {
        free(p->host[a]);
        assert_int_equal(cudaFree(*slot(p, a)), 0);
    }
    void *others[] = {p->m.stats, p->m.sum, p->m.dq_sum, p->m.seed, p->m.offset, p->m.lengths_q, p->m.lengths_k};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        assert_int_equal(cudaFree(others[i]), 0);
    }
    free(p->mask);
}

/* Executes `graph` with configuration `engine`, destroys all descriptors at once, and waits. */
static void execute(int engine)
{
    int64_t n = 0;
    cudnnBackendDescriptor_t plan = sdpa_plan(&graph, handle, engine, &n);
    assert_non_null(plan);
    size_t bytes = (size_t)sdpa_workspace(plan);
    assert_true(bytes > 0);
    void *workspace = device(bytes, NULL);
    assert_int_equal(cudnnBackendExecute(handle, plan, sdpa_pack(&graph, workspace)), 0);
    sdpa_close(&graph);
    assert_int_equal(cudaStreamSynchronize(stream), 0);
    assert_int_equal(cudaFree(workspace), 0);
}

/* The mask that the graph's generator draws, as the reference takes it. */
static void draw_mask(problem *p)
{
    size_t n = (size_t)(p->s.b * p->s.hq * p->s.t * p->s.t);
    if (p->s.dropout > 0) {
        void *out = device(n * 4, NULL);
        sdpa_mask(&graph, p->s, &p->m, out);
        execute(0);
        assert_int_equal(cudaMemcpy(p->mask, out, n * 4, cudaMemcpyDeviceToHost), 0);
        assert_int_equal(cudaFree(out), 0);
    }
    for (size_t i = 0; i < n; i++) {
        p->mask[i] = p->s.dropout > 0 ? p->mask[i] / (float)(1 - p->s.dropout) : 1.0f;
    }
}

/* ---- the reference: textbook attention in double precision */

typedef struct reference {
    double *out[N_ARRAYS];
} reference;

static void add(const problem *p, reference *r, int array, const int64_t at[3], int64_t d, double v)
{
    r->out[array][place(p, array, at[0], at[1], at[2], d)] += v;
}

/* One query: token i of head h. */
static void reference_row(const problem *p, reference *r, int64_t b, int64_t h, int64_t i)
{
    double prob[256], dprob[256], max = -1e300, sum = 0, mean = 0, scale = 1 / sqrt((double)p->s.d);
    int64_t kh = h * p->s.hk / p->s.hq, n = i + 1 < p->lengths[b] ? i + 1 : p->lengths[b];
    const float *mask = p->mask + ((b * p->s.hq + h) * p->s.t + i) * p->s.t;
    for (int64_t j = 0; j < n; j++) {
        prob[j] = 0;
        for (int64_t d = 0; d < p->s.d; d++) {
            prob[j] += get(p, Q, b, i, h, d) * get(p, K, b, j, kh, d) * scale;
        }
        max = prob[j] > max ? prob[j] : max;
    }
    for (int64_t j = 0; j < n; j++) {
        prob[j] = exp(prob[j] - max);
        sum += prob[j];
    }
    for (int64_t j = 0; j < n; j++) {
        prob[j] /= sum;
        dprob[j] = 0;
        for (int64_t d = 0; d < p->s.d; d++) {
            double weight = prob[j] * (double)mask[j];
            add(p, r, O, (int64_t[]){b, i, h}, d, weight * get(p, V, b, j, kh, d));
            add(p, r, DV, (int64_t[]){b, j, kh}, d, weight * get(p, DOUT, b, i, h, d));
            dprob[j] += get(p, DOUT, b, i, h, d) * get(p, V, b, j, kh, d) * (double)mask[j];
        }
        mean += prob[j] * dprob[j];
    }
    for (int64_t j = 0; j < n; j++) {
        double ds = prob[j] * (dprob[j] - mean) * scale;
        for (int64_t d = 0; d < p->s.d; d++) {
            add(p, r, DQ, (int64_t[]){b, i, h}, d, ds * get(p, K, b, j, kh, d));
            add(p, r, DK, (int64_t[]){b, j, kh}, d, ds * get(p, Q, b, i, h, d));
        }
    }
}

static void compute_reference(const problem *p, reference *r)
{
    for (int a = O; a < N_ARRAYS; a++) {
        r->out[a] = calloc(elements(p, a), sizeof(double));
    }
    for (int64_t b = 0; b < p->s.b; b++) {
        for (int64_t h = 0; h < p->s.hq; h++) {
            for (int64_t i = 0; i < p->lengths[b]; i++) {
                reference_row(p, r, b, h, i);
            }
        }
    }
}

/* Inputs and probabilities (or their gradients) are rounded to 16 bits, and so is the result: a few units of rounding
 * of the largest value. Elements of the memory that belong to no head must be as they were, NaN. */
static void compare(const problem *p, const reference *r, int array)
{
    static const char *const names[] = {"q", "k", "v", "dout", "o", "dq", "dk", "dv"};
    double unit = p->s.type == CUDNN_DATA_BFLOAT16 ? 0x1p-8 : 0x1p-11, largest = 0;
    for (size_t i = 0; i < elements(p, array); i++) {
        largest = fabs(r->out[array][i]) > largest ? fabs(r->out[array][i]) : largest;
    }
    int64_t row = row_of(p, array), used = heads_of(p, array) * p->s.d;
    for (size_t i = 0; i < elements(p, array); i++) {
        uint16_t bits = p->host[array][i];
        double v = (double)(p->s.type == CUDNN_DATA_BFLOAT16 ? mc_f32_from_bf16(bits) : mc_f32_from_f16(bits));
        if ((int64_t)(i % (size_t)row) >= used ? !isnan(v) : !(fabs(v - r->out[array][i]) <= 4 * unit * largest)) {
            fail_msg("%s[%zu] is %g, expected %g; the largest is %g", names[array], i, v, r->out[array][i], largest);
        }
    }
}

static void fetch(problem *p, int array)
{
    assert_int_equal(cudaMemcpy(p->host[array], *slot(p, array), elements(p, array) * 2, cudaMemcpyDeviceToHost), 0);
}

static void verify(sdpa_shape s, bool backward)
{
    problem p;
    reference r = {{NULL}};
    open_problem(&p, s);
    draw_mask(&p);
    sdpa_forward(&graph, s, &p.m);
    execute(0);
    if (backward) {
        sdpa_backward(&graph, s, &p.m);
        execute(1);
    }
    compute_reference(&p, &r);
    for (int a = O; a < (backward ? N_ARRAYS : DQ); a++) {
        fetch(&p, a);
        compare(&p, &r, a);
    }
    for (int a = O; a < N_ARRAYS; a++) {
        free(r.out[a]);
    }
    close_problem(&p);
}

static const sdpa_shape mha = {.b = 2, .hq = 4, .hk = 4, .t = 32, .d = 16, .type = CUDNN_DATA_BFLOAT16};

static void attention(void **state)
{
    (void)state;
    sdpa_shape s = mha;
    verify(s, true);
    s.type = CUDNN_DATA_HALF;
    verify(s, true);
    s = (sdpa_shape){.b = 2, .hq = 4, .hk = 2, .t = 24, .d = 40, .type = CUDNN_DATA_BFLOAT16};
    verify(s, true);
    s.hk = 1;
    s.t = 37;
    s.deterministic = true;
    verify(s, true);
    s = (sdpa_shape){.b = 1, .hq = 4, .hk = 2, .t = 100, .d = 64, .type = CUDNN_DATA_BFLOAT16};
    s.row = (s.hq + 2 * s.hk) * s.d; /* as in a fused projection */
    verify(s, true);
}

static void dropout(void **state)
{
    (void)state;
    sdpa_shape s = mha;
    s.hk = 2;
    s.dropout = 0.2;
    verify(s, true);
    problem p;
    open_problem(&p, s);
    size_t n = (size_t)(s.b * s.hq * s.t * s.t), kept = 0, differ = 0;
    float *first = malloc(n * 4);
    draw_mask(&p);
    memcpy(first, p.mask, n * 4);
    int64_t offset = 8;
    assert_int_equal(cudaMemcpy(p.m.offset, &offset, 8, cudaMemcpyHostToDevice), 0);
    draw_mask(&p);
    for (size_t i = 0; i < n; i++) {
        kept += first[i] > 0;
        differ += first[i] != p.mask[i];
    }
    /* 8192 draws: five standard deviations of the share kept, and of the share of pairs that differ (0.32) */
    assert_true(fabs((double)kept / (double)n - 0.8) < 5 * 0.4 / sqrt((double)n));
    assert_true(fabs((double)differ / (double)n - 0.32) < 5 * 0.47 / sqrt((double)n));
    free(first);
    close_problem(&p);
}

static void padding(void **state)
{
    (void)state;
    sdpa_shape s = mha;
    s.padded = true;
    verify(s, false); /* rows behind a length are zero */
}

static void repeats_bit_for_bit(void **state)
{
    (void)state;
    problem p;
    open_problem(&p, mha);
    uint16_t *first = malloc(elements(&p, O) * 2);
    for (int i = 0; i < 2; i++) {
        sdpa_forward(&graph, p.s, &p.m);
        execute(i);
        fetch(&p, O);
        if (i == 0) {
            memcpy(first, p.host[O], elements(&p, O) * 2);
        }
    }
    assert_memory_equal(first, p.host[O], elements(&p, O) * 2);
    free(first);
    close_problem(&p);
}

static void engines(void **state)
{
    (void)state;
    problem p;
    open_problem(&p, mha);
    int64_t n = 0, least, most;
    sdpa_backward(&graph, p.s, &p.m);
    least = sdpa_workspace(sdpa_plan(&graph, handle, 0, &n));
    assert_int_equal(n, 2);
    most = sdpa_workspace(sdpa_plan(&graph, handle, 1, &n));
    assert_true(0 < least && least < most);
    assert_true(sdpa_varies(&graph));
    sdpa_close(&graph);
    p.s.deterministic = true;
    sdpa_backward(&graph, p.s, &p.m);
    assert_false(sdpa_varies(&graph));
    sdpa_close(&graph);
    close_problem(&p);
}

static void expect_reason(const char *reason)
{
    char text[512] = "";
    cudnnGetLastErrorString(text, sizeof text);
    if (!strstr(text, reason)) {
        fail_msg("the last error is \"%s\", expected \"%s\"", text, reason);
    }
}

/* What a caller must have another way for. */
static void refused_shapes(void **state)
{
    (void)state;
    static const struct {
        int64_t d;
        cudnnDataType_t type;
        const char *reason;
    } rows[] = {{36, CUDNN_DATA_BFLOAT16, "head size 36 is not a multiple of 8"},
                {264, CUDNN_DATA_HALF, "head size 264"},
                {16, CUDNN_DATA_FLOAT, "matrices are bf16 or f16"}};
    sdpa_memory m;
    memset(&m, 1, sizeof m); /* nothing is executed: the addresses do not matter */
    for (size_t i = 0; i < 2 * sizeof rows / sizeof *rows; i++) {
        sdpa_shape s = mha;
        s.d = rows[i / 2].d;
        s.type = rows[i / 2].type;
        int64_t n = -1;
        if (i % 2) {
            sdpa_forward(&graph, s, &m);
        } else {
            sdpa_backward(&graph, s, &m);
        }
        assert_null(sdpa_plan(&graph, handle, 0, &n));
        assert_int_equal(n, 0);
        expect_reason(rows[i / 2].reason);
        sdpa_close(&graph);
    }
}

static void refused_calls(void **state)
{
    (void)state;
    problem p;
    int64_t n = 0;
    open_problem(&p, mha);
    sdpa_forward(&graph, p.s, &p.m);
    cudnnBackendDescriptor_t plan = sdpa_plan(&graph, handle, 0, &n);
    assert_int_equal(cudnnBackendExecute(handle, plan, sdpa_pack(&graph, NULL)), CUDNN_STATUS_BAD_PARAM);
    expect_reason("no workspace of");
    void *workspace = device((size_t)sdpa_workspace(plan), NULL);
    graph.ptrs[0] = (char *)graph.ptrs[0] + 2;
    assert_int_equal(cudnnBackendExecute(handle, plan, sdpa_pack(&graph, workspace)),
                     CUDNN_STATUS_BAD_PARAM_MISALIGNED_POINTER);
    expect_reason("is not aligned to 16 bytes");
    graph.ptrs[0] = NULL;
    assert_int_equal(cudnnBackendExecute(handle, plan, sdpa_pack(&graph, workspace)),
                     CUDNN_STATUS_BAD_PARAM_NULL_POINTER);
    expect_reason("no pointer for 1");
    assert_int_equal(cudnnBackendExecute(handle, NULL, NULL), CUDNN_STATUS_BAD_PARAM_NULL_POINTER);
    cudnnBackendDescriptor_t pack = sdpa_pack(&graph, workspace), fresh;
    assert_int_equal(cudnnBackendSetAttribute(pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, 1, &n),
                     CUDNN_STATUS_BAD_PARAM);
    expect_reason("finalized already");
    assert_int_equal(cudnnBackendCreateDescriptor(CUDNN_BACKEND_TENSOR_DESCRIPTOR, &fresh), 0);
    assert_int_equal(cudnnBackendFinalize(fresh), CUDNN_STATUS_BAD_PARAM);
    expect_reason("is missing");
    assert_int_equal(cudnnBackendDestroyDescriptor(fresh), 0);
    sdpa_close(&graph);
    assert_int_equal(cudaFree(workspace), 0);
    close_problem(&p);
}

/* ---- faults: each in a process of its own */

static int planted(const char *fault)
{
    problem p;
    int64_t n = 0;
    open_problem(&p, mha);
    if (!strcmp(fault, "host")) {
        p.m.k = p.host[K];
    } else if (!strcmp(fault, "end")) {
        p.m.v = (char *)p.m.v + 64;
    }
    sdpa_forward(&graph, p.s, &p.m);
    cudnnBackendDescriptor_t plan = sdpa_plan(&graph, handle, 0, &n);
    void *workspace = device((size_t)sdpa_workspace(plan) - !strcmp(fault, "workspace"), NULL);
    printf("status %s\n", cudnnGetErrorString(cudnnBackendExecute(handle, plan, sdpa_pack(&graph, workspace))));
    sdpa_close(&graph);
    if (!strcmp(fault, "destroyed")) {
        printf("once more: status %s\n", cudnnGetErrorString(cudnnBackendDestroyDescriptor(plan)));
    }
    fflush(stdout);
    return 0;
}

static void faults_are_reported(void **state)
{
    (void)state;
    static farm_result result;
    static const char *const env[] = {"LSAN_OPTIONS=detect_leaks=0", NULL}; /* a planted fault ends where it stands */
    static const struct {
        const char *fault, *status, *report;
    } rows[] = {
        {"host", "BAD_PARAM", "MISUSE: cudnnBackendExecute: 0x"},
        {"end", "BAD_PARAM", "past its end"},
        {"workspace", "BAD_PARAM", "past its end"},
        {"destroyed", "once more: status CUDNN_STATUS_BAD_PARAM", "MISUSE: cudnnBackendDestroyDescriptor: 0x"},
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
        cmocka_unit_test(attention),     cmocka_unit_test(dropout),
        cmocka_unit_test(padding),       cmocka_unit_test(repeats_bit_for_bit),
        cmocka_unit_test(engines),       cmocka_unit_test(refused_shapes),
        cmocka_unit_test(refused_calls), cmocka_unit_test(faults_are_reported),
    };
    if (cudnnCreate(&handle) || cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) ||
        cudnnSetStream(handle, stream)) {
        fprintf(stderr, "no handle or stream\n");
        return 2;
    }
    if (argc > 1) {
        return planted(argv[1]);
    }
    int failed = cmocka_run_group_tests_name("stand-in for cuDNN", tests, NULL, NULL);
    cudnnDestroy(handle);
    cudaStreamDestroy(stream);
    return failed;
}
