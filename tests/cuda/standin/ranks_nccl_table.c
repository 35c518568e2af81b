/* Values that the stand-in for NCCL must deliver. Inputs are small integers, exact in every type. */
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "megac/base/half.h"
#include "tests/cuda/standin/ranks_nccl.h"

static size_t size_of(ncclDataType_t type)
{
    static const size_t bytes[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2};
    return bytes[type];
}

static double get(const void *p, size_t i, ncclDataType_t type)
{
    switch (type) {
    case ncclInt8:
        return ((const int8_t *)p)[i];
    case ncclUint8:
        return ((const uint8_t *)p)[i];
    case ncclInt32:
        return ((const int32_t *)p)[i];
    case ncclUint32:
        return ((const uint32_t *)p)[i];
    case ncclInt64:
        return (double)((const int64_t *)p)[i];
    case ncclUint64:
        return (double)((const uint64_t *)p)[i];
    case ncclFloat16:
        return (double)mc_f32_from_f16(((const uint16_t *)p)[i]);
    case ncclBfloat16:
        return (double)mc_f32_from_bf16(((const uint16_t *)p)[i]);
    case ncclFloat32:
        return (double)((const float *)p)[i];
    default:
        return ((const double *)p)[i];
    }
}

static void put(void *p, size_t i, ncclDataType_t type, int v)
{
    switch (size_of(type)) {
    case 1:
        ((int8_t *)p)[i] = (int8_t)v;
        break;
    case 2:
        ((uint16_t *)p)[i] = type == ncclFloat16 ? mc_f16_from_f32((float)v) : mc_bf16_from_f32((float)v);
        break;
    case 4:
        if (type == ncclFloat32) {
            ((float *)p)[i] = (float)v;
        } else {
            ((int32_t *)p)[i] = v;
        }
        break;
    default:
        if (type == ncclFloat64) {
            ((double *)p)[i] = v;
        } else {
            ((int64_t *)p)[i] = v;
        }
    }
}

static int value(int rank, size_t i)
{
    return (int)((i * 5 + (size_t)rank * 3) % 7);
}

enum { ALL_REDUCE, ALL_REDUCE_MAX, REDUCE_SCATTER, ALL_GATHER, BROADCAST, REDUCE, ALL_TO_ALL, AVERAGE, N_OPS };

/* One case: a and b hold n * k elements; a the inputs. */
typedef struct table_case {
    const ranks_nccl *r;
    ncclDataType_t type;
    size_t k, bytes;
    char *a, *b;
} table_case;

/* Queues operation `op`; returns where its result lies and how many elements it has. */
static const char *call(const table_case *t, int op, size_t *n_out)
{
    const ranks_nccl *r = t->r;
    size_t k = t->k, part = (size_t)r->rank * k * t->bytes;
    ncclComm_t c = r->comm;
    cudaStream_t s = r->stream;
    *n_out = k;
    switch (op) {
    case ALL_REDUCE:
        CHECK(ncclAllReduce(t->a, t->b, k, t->type, ncclSum, c, s));
        return t->b;
    case ALL_REDUCE_MAX:
        CHECK(ncclAllReduce(t->a, t->a, k, t->type, ncclMax, c, s));
        return t->a;
    case REDUCE_SCATTER:
        CHECK(ncclReduceScatter(t->a, t->a + part, k, t->type, ncclSum, c, s));
        return t->a + part;
    case ALL_GATHER:
        CHECK(ncclAllGather(t->a + part, t->a, k, t->type, c, s));
        *n_out = k * (size_t)r->n;
        return t->a;
    case BROADCAST:
        CHECK(ncclBroadcast(t->a, t->b, k, t->type, r->n / 2, c, s));
        return t->b;
    case REDUCE:
        CHECK(ncclReduce(t->a, t->b, k, t->type, ncclMin, r->n - 1, c, s));
        *n_out = r->rank == r->n - 1 ? k : 0;
        return t->b;
    case ALL_TO_ALL:
        CHECK(ncclGroupStart());
        for (int p = 0; p < r->n; p++) {
            CHECK(ncclSend(t->a + (size_t)p * k * t->bytes, k, t->type, p, c, s));
            CHECK(ncclRecv(t->b + (size_t)p * k * t->bytes, k, t->type, p, c, s));
        }
        CHECK(ncclGroupEnd());
        *n_out = k * (size_t)r->n;
        return t->b;
    default: /* two collectives and two streams in one group; the result counts on both streams */
        CHECK(ncclGroupStart());
        CHECK(ncclAllReduce(t->a, t->b, k, t->type, ncclAvg, c, r->other));
        CHECK(ncclBroadcast(t->a, t->a, 1, t->type, 0, c, s));
        CHECK(ncclGroupEnd());
        return t->b;
    }
}

static double expected(const table_case *t, int op, size_t i)
{
    int n = t->r->n, rank = t->r->rank;
    size_t at = op == REDUCE_SCATTER ? (size_t)rank * t->k + i : i;
    double sum = 0, max = 0, min = 7;
    for (int p = 0; p < n; p++) {
        int v = value(p, at);
        sum += v;
        max = v > max ? v : max;
        min = v < min ? v : min;
    }
    switch (op) {
    case ALL_REDUCE:
    case REDUCE_SCATTER:
        return sum;
    case ALL_REDUCE_MAX:
        return max;
    case REDUCE:
        return min;
    case ALL_GATHER:
        return value((int)(i / t->k), i);
    case BROADCAST:
        return value(n / 2, i);
    case ALL_TO_ALL:
        return value((int)(i / t->k), (size_t)rank * t->k + i % t->k);
    default:
        return t->type < ncclFloat16 ? floor(sum / n) : sum / n;
    }
}

/* Only averages are not exact: half a unit in the last place of each type, of numbers below 8. */
static double tolerance(ncclDataType_t type, int op)
{
    if (op != AVERAGE || type < ncclFloat16) {
        return 0;
    }
    return type == ncclBfloat16 ? 0x1p-6 : type == ncclFloat16 ? 0x1p-9 : 0x1p-21;
}

static void run_case(table_case *t, int op, char *host)
{
    size_t all = t->k * (size_t)t->r->n, n;
    for (size_t i = 0; i < all; i++) {
        put(host, i, t->type, value(t->r->rank, i));
    }
    CHECK(cudaMemcpyAsync(t->a, host, all * t->bytes, cudaMemcpyHostToDevice, t->r->stream));
    const char *result = call(t, op, &n);
    CHECK(cudaStreamSynchronize(t->r->stream));
    memset(host, 0xff, all * t->bytes);
    CHECK(cudaMemcpyAsync(host, result, n * t->bytes, cudaMemcpyDeviceToHost, t->r->stream));
    CHECK(cudaStreamSynchronize(t->r->stream));
    for (size_t i = 0; i < n; i++) {
        double got = get(host, i, t->type), want = expected(t, op, i);
        if (!(fabs(got - want) <= tolerance(t->type, op))) {
            fprintf(stderr, "operation %d, type %d, element %zu of %zu: %g, expected %g\n", op, t->type, i, n, got,
                    want);
            exit(4);
        }
    }
}

void ranks_nccl_table(const ranks_nccl *r)
{
    /* One element; an odd number; more than a slot of 1 MB at 8 bytes and at 4, and for 2 bytes with 16 ranks. */
    static const size_t counts[] = {1, 1001, 300007};
    for (ncclDataType_t type = ncclInt8; type <= ncclBfloat16; type++) {
        for (int size = 0; size < 3; size++) {
            table_case t = {.r = r, .type = type, .k = counts[size], .bytes = size_of(type)};
            size_t all = t.k * (size_t)r->n * t.bytes;
            char *host;
            CHECK(cudaMalloc((void **)&t.a, all));
            CHECK(cudaMalloc((void **)&t.b, all));
            CHECK(cudaMallocHost((void **)&host, all));
            for (int op = 0; op < N_OPS; op++) {
                run_case(&t, op, host);
            }
            CHECK(cudaStreamSynchronize(r->other));
            CHECK(cudaFree(t.a));
            CHECK(cudaFree(t.b));
            CHECK(cudaFreeHost(host));
        }
    }
}

/* Sums whose bits depend on the order and on where rounding happens: ranks add 2^24, 1, 1, -2^24 (f32) and 256, 1, 1, 1
 * (bf16: 256 + 1 would round back to 256 at every hop). */
void ranks_nccl_order(const ranks_nccl *r)
{
    static const float wide[] = {0x1p24f, 1, 1, -0x1p24f};
    float *f, got;
    uint16_t *b, bits = mc_bf16_from_f32(r->rank == 0 ? 256.0f : 1.0f);
    CHECK(cudaMalloc((void **)&f, sizeof *f));
    CHECK(cudaMalloc((void **)&b, sizeof *b));
    CHECK(cudaMemcpy(f, &wide[r->rank], sizeof *f, cudaMemcpyHostToDevice));
    CHECK(cudaMemcpy(b, &bits, sizeof *b, cudaMemcpyHostToDevice));
    CHECK(ncclAllReduce(f, f, 1, ncclFloat32, ncclSum, r->comm, r->stream));
    CHECK(ncclAllReduce(b, b, 1, ncclBfloat16, ncclSum, r->comm, r->stream));
    CHECK(cudaStreamSynchronize(r->stream));
    CHECK(cudaMemcpy(&got, f, sizeof got, cudaMemcpyDeviceToHost));
    CHECK(cudaMemcpy(&bits, b, sizeof bits, cudaMemcpyDeviceToHost));
    if (got != 0.0f || mc_f32_from_bf16(bits) != 260.0f) { /* 259 is not a bf16: ties go to even */
        fprintf(stderr, "sums in rank order: %g and %g, expected 0 and 260\n", (double)got,
                (double)mc_f32_from_bf16(bits));
        exit(4);
    }
    CHECK(cudaFree(f));
    CHECK(cudaFree(b));
}

enum { MICRO = 8, ELEMS = 50001 };

/* What a stage sends and receives around one micro batch of a 1F1B schedule; x goes down, g comes back. */
typedef struct stage {
    const ranks_nccl *r;
    float *x[MICRO], *g[MICRO];
    int received, backward;
} stage;

static void recv_forward(stage *s)
{
    if (s->r->rank > 0) {
        CHECK(ncclRecv(s->x[s->received], ELEMS, ncclFloat32, s->r->rank - 1, s->r->comm, s->r->stream));
    }
    s->received++;
}

static void send_forward(const stage *s, int m)
{
    if (s->r->rank < s->r->n - 1) {
        CHECK(ncclSend(s->x[m], ELEMS, ncclFloat32, s->r->rank + 1, s->r->comm, s->r->stream));
    }
}

/* The last stage makes the gradient out of the activation. */
static void recv_backward(const stage *s)
{
    if (s->r->rank < s->r->n - 1) {
        CHECK(ncclRecv(s->g[s->backward], ELEMS, ncclFloat32, s->r->rank + 1, s->r->comm, s->r->stream));
    } else {
        CHECK(cudaMemcpyAsync(s->g[s->backward], s->x[s->backward], ELEMS * sizeof(float), cudaMemcpyDeviceToDevice,
                              s->r->stream));
    }
}

static void send_backward(const stage *s)
{
    if (s->r->rank > 0) {
        CHECK(ncclSend(s->g[s->backward], ELEMS, ncclFloat32, s->r->rank - 1, s->r->comm, s->r->stream));
    }
}

static void schedule(stage *s)
{
    int warm = s->r->n - 1 - s->r->rank < MICRO ? s->r->n - 1 - s->r->rank : MICRO, forward = 0;
    for (; forward < warm; forward++) {
        recv_forward(s);
        send_forward(s, forward);
    }
    if (forward < MICRO) {
        recv_forward(s);
    }
    for (; forward < MICRO; s->backward++) {
        CHECK(ncclGroupStart());
        send_forward(s, forward);
        if (s->r->rank < s->r->n - 1) {
            recv_backward(s);
        }
        CHECK(ncclGroupEnd());
        if (s->r->rank == s->r->n - 1) {
            recv_backward(s);
        }
        forward++;
        CHECK(ncclGroupStart());
        send_backward(s);
        if (forward < MICRO) {
            recv_forward(s);
        }
        CHECK(ncclGroupEnd());
    }
    for (; s->backward < MICRO; s->backward++) {
        recv_backward(s);
        send_backward(s);
    }
}

void ranks_nccl_pipeline(const ranks_nccl *r)
{
    stage s = {.r = r};
    float *host;
    CHECK(cudaMallocHost((void **)&host, MICRO * ELEMS * sizeof *host));
    for (int i = 0; i < MICRO * ELEMS; i++) {
        host[i] = (float)i;
    }
    for (int m = 0; m < MICRO; m++) {
        CHECK(cudaMalloc((void **)&s.x[m], ELEMS * sizeof(float)));
        CHECK(cudaMalloc((void **)&s.g[m], ELEMS * sizeof(float)));
        if (r->rank == 0) {
            CHECK(cudaMemcpyAsync(s.x[m], host + m * ELEMS, ELEMS * sizeof(float), cudaMemcpyHostToDevice, r->stream));
        }
    }
    CHECK(cudaStreamSynchronize(r->stream));
    memset(host, 0xff, MICRO * ELEMS * sizeof *host);
    schedule(&s);
    for (int m = 0; m < MICRO; m++) {
        CHECK(cudaMemcpyAsync(host + m * ELEMS, s.g[m], ELEMS * sizeof(float), cudaMemcpyDeviceToHost, r->stream));
    }
    CHECK(cudaStreamSynchronize(r->stream));
    for (int i = 0; i < MICRO * ELEMS; i++) {
        if (host[i] != (float)i) {
            fprintf(stderr, "gradient %d is %g\n", i, (double)host[i]);
            exit(4);
        }
    }
    for (int m = 0; m < MICRO; m++) {
        CHECK(cudaFree(s.x[m]));
        CHECK(cudaFree(s.g[m]));
    }
    CHECK(cudaFreeHost(host));
}

/* Many messages between the same two ranks in one group, longer and shorter than the pipe between them. */
void ranks_nccl_long_group(const ranks_nccl *r)
{
    enum { MESSAGES = 24 };
    static const int lengths[] = {60001, 3, 17000, 1};
    int32_t *out[MESSAGES], *in[MESSAGES], *host;
    int to = (r->rank + 1) % r->n, from = (r->rank + r->n - 1) % r->n;
    CHECK(cudaMallocHost((void **)&host, 60001 * sizeof *host));
    CHECK(ncclGroupStart());
    for (int m = 0; m < MESSAGES; m++) {
        int k = lengths[m % 4];
        for (int i = 0; i < k; i++) {
            host[i] = r->rank * 1000000 + m * 1000 + i % 997;
        }
        CHECK(cudaMalloc((void **)&out[m], (size_t)k * 4));
        CHECK(cudaMalloc((void **)&in[m], (size_t)k * 4));
        CHECK(cudaMemcpy(out[m], host, (size_t)k * 4, cudaMemcpyHostToDevice));
        CHECK(ncclSend(out[m], (size_t)k, ncclInt32, to, r->comm, r->stream));
        CHECK(ncclRecv(in[m], (size_t)k, ncclInt32, from, r->comm, r->stream));
    }
    CHECK(ncclGroupEnd());
    for (int m = 0; m < MESSAGES; m++) {
        int k = lengths[m % 4];
        CHECK(cudaMemcpyAsync(host, in[m], (size_t)k * 4, cudaMemcpyDeviceToHost, r->stream));
        CHECK(cudaStreamSynchronize(r->stream));
        for (int i = 0; i < k; i++) {
            if (host[i] != from * 1000000 + m * 1000 + i % 997) {
                fprintf(stderr, "message %d, element %d is %d\n", m, i, host[i]);
                exit(4);
            }
        }
        CHECK(cudaFree(out[m]));
        CHECK(cudaFree(in[m]));
    }
    CHECK(cudaFreeHost(host));
}
