/* Every operation of the communicators, run by `tests/ranks N`: all groups, kinds of memory and sizes against sums made
 * here, bit for bit. Through shared memory, with MEGAC_NO_SHM=1 through messages, and with the argument "staged" as a
 * device's communicators over the host's. */
#include <math.h>

#include "megac/base/alloc.h"
#include "megac/base/log.h"
#include "tests/base/ranks.h"

enum { BIG = 300000, GUARD = 64, N_GROUPS = 6 };

typedef enum { MAPPED, PLAIN, MIXED, N_MEMORIES } memory;

static struct {
    mc_world *world;
    const mc_job *job;
    mc_comm groups[N_GROUPS];
    int n_groups;
    bool staged; /* groups[i] run over host[i] */
    mc_comm host[N_GROUPS];
    mc_device dev;
    unsigned char *mapped[2], *plain[2]; /* in, out: room for BIG doubles' worth of a float gather */
    size_t bytes;
    int k; /* number of the operation: other data each time */
} t;

/* Where this rank's buffer `which` lies: mixed has every other rank's in mapped memory. */
static unsigned char *buffer(memory mem, int which)
{
    bool mapped = mem == MAPPED || (mem == MIXED && t.job->rank % 2 == 0);
    return (mapped ? t.mapped : t.plain)[which];
}

static void mark(unsigned char *data, size_t bytes)
{
    memset(data, 0xf5, bytes + GUARD);
}

static void check_guard(const unsigned char *data, size_t bytes)
{
    for (size_t i = 0; i < GUARD; i++) {
        if (data[bytes + i] != 0xf5) {
            fail_msg("byte %zu after the buffer was written", i);
        }
    }
}

static void check_equal(const unsigned char *have, const void *want, size_t at, size_t e, const char *what)
{
    if (memcmp(have + at * e, want, e) != 0) {
        fail_msg("%s: element %zu differs", what, at);
    }
}

static void check_reduced(const mc_comm *c, mc_dtype dtype, mc_reduce op, const unsigned char *out, size_t n,
                          size_t first, const char *what)
{
    size_t e = mc_dtype_bytes(dtype);
    for (size_t i = 0; i < n; i++) {
        double want;
        ranks_reduced(dtype, op, c->size, first + i, t.k, &want);
        check_equal(out, &want, i, e, what);
    }
}

static void all_reduce(const mc_comm *c, mc_dtype dtype, mc_reduce op, size_t n, memory mem, bool in_place)
{
    size_t e = mc_dtype_bytes(dtype);
    unsigned char *in = buffer(mem, 0), *out = in_place ? in : buffer(mem, 1);
    t.k++;
    mark(out, n * e);
    for (size_t i = 0; i < n; i++) {
        ranks_put(dtype, in, i, ranks_value(c->rank, i, t.k));
    }
    RANKS_OK(mc_comm_all_reduce(c, mc_tensor_1d(in, dtype, (int64_t)n), mc_tensor_1d(out, dtype, (int64_t)n), op));
    check_reduced(c, dtype, op, out, n, 0, "all_reduce");
    check_guard(out, n * e);
    for (size_t i = 0; i < n && !in_place; i++) {
        double mine;
        ranks_put(dtype, &mine, 0, ranks_value(c->rank, i, t.k));
        check_equal(in, &mine, i, e, "all_reduce changed its input");
    }
}

static void reduce_scatter(const mc_comm *c, mc_dtype dtype, size_t n, memory mem, bool in_place)
{
    size_t e = mc_dtype_bytes(dtype), first = (size_t)c->rank * n;
    unsigned char *in = buffer(mem, 0), *out = in_place ? in + first * e : buffer(mem, 1);
    t.k++;
    mark(in_place ? in : out, (in_place ? (size_t)c->size : 1) * n * e);
    for (size_t i = 0; i < n * (size_t)c->size; i++) {
        ranks_put(dtype, in, i, ranks_value(c->rank, i, t.k));
    }
    RANKS_OK(mc_comm_reduce_scatter(c, mc_tensor_2d(in, dtype, c->size, (int64_t)n),
                                    mc_tensor_2d(out, dtype, 1, (int64_t)n)));
    check_reduced(c, dtype, MC_SUM, out, n, first, "reduce_scatter");
    check_guard(in_place ? in : out, (in_place ? (size_t)c->size : 1) * n * e);
}

static void all_gather(const mc_comm *c, size_t n, memory mem, bool in_place)
{
    size_t e = sizeof(float);
    unsigned char *out = buffer(mem, 1), *in = in_place ? out + (size_t)c->rank * n * e : buffer(mem, 0);
    t.k++;
    mark(out, n * e * (size_t)c->size);
    for (size_t i = 0; i < n; i++) {
        ranks_put(MC_F32, in, i, ranks_value(c->rank, i, t.k));
    }
    RANKS_OK(
        mc_comm_all_gather(c, mc_tensor_1d(in, MC_F32, (int64_t)n), mc_tensor_1d(out, MC_F32, (int64_t)n * c->size)));
    for (int m = 0; m < c->size; m++) {
        for (size_t i = 0; i < n; i++) {
            float want = (float)ranks_value(m, i, t.k);
            check_equal(out, &want, (size_t)m * n + i, e, "all_gather");
        }
    }
    check_guard(out, n * e * (size_t)c->size);
}

static void broadcast(const mc_comm *c, size_t n, memory mem, int root)
{
    unsigned char *buf = buffer(mem, 0);
    t.k++;
    mark(buf, n * sizeof(float));
    for (size_t i = 0; i < n && c->rank == root; i++) {
        ranks_put(MC_F32, buf, i, ranks_value(root, i, t.k));
    }
    RANKS_OK(mc_comm_broadcast(c, mc_tensor_1d(buf, MC_F32, (int64_t)n), root));
    for (size_t i = 0; i < n; i++) {
        float want = (float)ranks_value(root, i, t.k);
        check_equal(buf, &want, i, sizeof want, "broadcast");
    }
    check_guard(buf, n * sizeof(float));
}

static void every_operation(const mc_comm *c, size_t n, memory mem, bool in_place)
{
    all_reduce(c, MC_F32, MC_SUM, n, mem, in_place);
    reduce_scatter(c, MC_F32, n, mem, in_place);
    all_gather(c, n, mem, in_place);
    broadcast(c, n, mem, c->size - 1);
    if (n <= 5000) {
        static const mc_dtype dtypes[] = {MC_F32, MC_F64, MC_I32, MC_BF16, MC_F16};
        for (int d = 0; d < 5; d++) {
            all_reduce(c, dtypes[d], MC_MAX, n, mem, in_place);
            all_reduce(c, dtypes[d], MC_MIN, n, mem, in_place);
            all_reduce(c, dtypes[d], MC_SUM, n, mem, in_place);
            reduce_scatter(c, dtypes[d], n, mem, in_place);
        }
    }
}

static void test_operations(void **state)
{
    (void)state;
    static const size_t sizes[] = {0, 1, 3, 1000, 5000, BIG};
    /* Eight ranks check for eight times as long. */
    size_t big = t.job->size < 8 ? BIG : BIG / 4;
    for (int g = 0; g < t.n_groups; g++) {
        for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++) {
            size_t n = sizes[s] < big ? sizes[s] : big;
            for (int mem = 0; mem < N_MEMORIES; mem++) {
                for (int in_place = 0; in_place < 2; in_place++) {
                    /* The large ones take long to check: half of the combinations for subgroups. */
                    if (g == 0 || sizes[s] < BIG || in_place == mem % 2) {
                        every_operation(&t.groups[g], n, (memory)mem, in_place);
                    }
                }
            }
            RANKS_OK(mc_comm_barrier(&t.groups[g]));
        }
    }
}

/* More operations than a ring holds, of two groups, waited for in an order that differs by rank. */
static void test_overlap(void **state)
{
    (void)state;
    enum { N = 150, ELEMS = 2000 };
    static mc_request reqs[N];
    const mc_comm *group[2] = {&t.groups[0], &t.groups[t.n_groups - 1]};
    for (int mem = 0; mem < 2; mem++) {
        float *data = (float *)buffer((memory)mem, 0);
        for (int k = 0; k < N; k++) {
            const mc_comm *c = group[k % 2];
            size_t n = k % 3 == 0 ? ELEMS : 10;
            for (size_t i = 0; i < n; i++) {
                data[(size_t)k * ELEMS + i] = (float)ranks_value(c->rank, i, k);
            }
            mc_tensor v = mc_tensor_1d(data + (size_t)k * ELEMS, MC_F32, (int64_t)n);
            RANKS_OK(mc_comm_all_reduce_begin(c, v, v, MC_SUM, &reqs[k]));
        }
        for (int i = 0; i < N; i++) {
            RANKS_OK(mc_comm_wait(&reqs[t.job->rank % 2 ? N - 1 - i : i * 7 % N]));
        }
        for (int k = 0; k < N; k++) {
            for (size_t i = 0; i < (k % 3 == 0 ? ELEMS : 10); i++) {
                double want;
                ranks_reduced(MC_F32, MC_SUM, group[k % 2]->size, i, k, &want);
                check_equal((unsigned char *)(data + (size_t)k * ELEMS), &want, i, sizeof(float), "overlapped");
            }
        }
    }
}

static void exchange_ring(const mc_comm *c, size_t n, memory mem, bool sends_first)
{
    enum { N = 5 };
    mc_request send[N], recv[N];
    int next = (c->rank + 1) % c->size, prev = (c->rank + c->size - 1) % c->size;
    float *out = (float *)buffer(mem, 0), *in = (float *)buffer(mem, 1);
    t.k++;
    mark((unsigned char *)in, N * n * sizeof(float));
    for (int k = 0; k < N; k++) {
        for (size_t i = 0; i < n; i++) {
            out[(size_t)k * n + i] = (float)ranks_value(c->rank, i, t.k + k);
        }
        RANKS_OK(mc_comm_send_begin(c, mc_tensor_1d(out + (size_t)k * n, MC_F32, (int64_t)n), next, &send[k]));
    }
    for (int k = 0; k < N; k++) {
        RANKS_OK(mc_comm_recv_begin(c, mc_tensor_1d(in + (size_t)k * n, MC_F32, (int64_t)n), prev, &recv[k]));
    }
    for (int k = 0; k < 2 * N; k++) {
        bool first = k < N;
        RANKS_OK(mc_comm_wait(first == sends_first ? &send[k % N] : &recv[N - 1 - k % N]));
    }
    for (int k = 0; k < N; k++) {
        for (size_t i = 0; i < n; i++) {
            float want = (float)ranks_value(prev, i, t.k + k);
            check_equal((unsigned char *)(in + (size_t)k * n), &want, i, sizeof want, "receive");
        }
    }
    check_guard((unsigned char *)in, N * n * sizeof(float));
    t.k += N;
}

static void test_send_receive(void **state)
{
    (void)state;
    static const size_t sizes[] = {0, 1, 100, 1000, 100000};
    for (int g = 0; g < t.n_groups; g++) {
        for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++) {
            for (int mem = 0; mem < N_MEMORIES && t.groups[g].size > 1; mem++) {
                exchange_ring(&t.groups[g], sizes[s], (memory)mem, true);
                exchange_ring(&t.groups[g], sizes[s], (memory)mem, false);
            }
        }
    }
}

/* Rank 0 sends a large unmapped buffer to rank 1, which first wants one from rank 2, which first wants one from rank 0.
 */
static void test_sends_that_cross(void **state)
{
    (void)state;
    const mc_comm *c = &t.groups[0];
    if (c->size < 3 || c->rank > 2) {
        return;
    }
    mc_tensor a = mc_tensor_1d(t.plain[0], MC_U8, 1 << 20), b = mc_tensor_1d(t.plain[1], MC_U8, 1 << 20);
    mc_request r[2];
    if (c->rank == 0) {
        RANKS_OK(mc_comm_send_begin(c, a, 1, &r[0]));
        RANKS_OK(mc_comm_send_begin(c, a, 2, &r[1]));
    } else {
        RANKS_OK(mc_comm_recv_begin(c, b, c->rank == 1 ? 2 : 0, &r[0]));
        RANKS_OK(mc_comm_wait(&r[0]));
        RANKS_OK(c->rank == 1 ? mc_comm_recv_begin(c, b, 0, &r[0]) : mc_comm_send_begin(c, a, 1, &r[0]));
        r[1] = r[0];
    }
    RANKS_OK(mc_comm_wait(&r[0]));
    if (c->rank == 0) {
        RANKS_OK(mc_comm_wait(&r[1]));
    }
}

static void test_nan_survives_max(void **state)
{
    (void)state;
    const mc_comm *c = &t.groups[0];
    for (int bad = 0; bad < c->size; bad++) {
        float x = c->rank == bad ? (float)NAN : (float)c->rank;
        RANKS_OK(mc_comm_all_reduce(c, mc_tensor_1d(&x, MC_F32, 1), mc_tensor_1d(&x, MC_F32, 1), MC_MAX));
        assert_true(x != x);
    }
}

static void test_agree(void **state)
{
    (void)state;
    RANKS_OK(mc_world_agree(t.world, "--lr 3e-4\n--hidden-size 64\n"));
    RANKS_OK(mc_world_agree(t.world, ""));
}

static void test_many_barriers(void **state)
{
    (void)state;
    for (int i = 0; i < 1000; i++) {
        RANKS_OK(mc_comm_barrier(&t.groups[0]));
    }
}

/* Nothing is allocated once buffers and groups are made. */
static void test_allocates_nothing(void **state)
{
    (void)state;
    t.k = 1000; /* groups of one rank have skipped some */
    mc_alloc_freeze(true);
    every_operation(&t.groups[0], 5000, PLAIN, false);
    if (t.job->size > 1) {
        exchange_ring(&t.groups[0], 100000, MIXED, true);
    }
    mc_alloc_freeze(false);
    assert_int_equal(mc_alloc_get_stats().after_freeze, 0);
}

static void test_ledger(void **state)
{
    (void)state;
    char text[400], small[2];
    RANKS_OK(mc_comm_barrier(&t.groups[0]));
    mc_world_ledger(t.world, text, sizeof text);
    if (t.job->size > 1) {
        assert_non_null(strstr(text, "world #"));
        assert_non_null(strstr(text, "barrier, 0 bytes i32"));
        assert_non_null(strstr(text, "took"));
    }
    mc_world_ledger(t.world, small, sizeof small);
    assert_string_equal(small, "");
}

static void make_groups(void)
{
    mc_grid grid;
    int size = t.job->size;
    RANKS_OK(size == 8   ? mc_grid_init(8, 2, 1, 2, 2, &grid)
             : size == 4 ? mc_grid_init(4, 2, 1, 2, 1, &grid)
                         : mc_grid_init(size, 1, 1, size, 1, &grid));
    static const struct {
        unsigned axes;
        const char *name;
    } rows[] = {{1 << MC_AXIS_TP, "tp"}, {1 << MC_AXIS_DP, "dp"}, {1 << MC_AXIS_PP | 1 << MC_AXIS_TP, "tp-pp"}};
    t.groups[t.n_groups++] = *mc_world_comm(t.world);
    for (int i = 0; i < 3; i++) {
        RANKS_OK(mc_world_group(t.world, &grid, rows[i].axes, rows[i].name, &t.groups[t.n_groups]));
        mc_group want = mc_grid_group(&grid, t.job->rank, rows[i].axes);
        assert_int_equal(t.groups[t.n_groups].rank, want.index);
        assert_int_equal(t.groups[t.n_groups++].size, want.size);
    }
    RANKS_OK(mc_world_split(t.world, t.job->rank == 0 ? -1 : 7, "rest", &t.groups[t.n_groups]));
    assert_int_equal(t.groups[t.n_groups++].size, t.job->rank == 0 ? 1 : size - 1);
}

static void stage_groups(void)
{
    RANKS_OK(mc_device_open("cpu", 0, &t.dev));
    for (int g = 0; g < t.n_groups; g++) {
        t.host[g] = t.groups[g];
        RANKS_OK(mc_comm_staged(&t.dev, &t.host[g], (mc_stream){0}, &t.groups[g]));
    }
}

static int open_all(void **state)
{
    (void)state;
    static mc_job job;
    RANKS_OK(mc_job_from_env(&job));
    mc_log_set_rank(job.rank);
    mc_log_set_level(MC_LOG_WARN);
    RANKS_OK(mc_world_open(&job, NULL, 30, &t.world));
    t.job = mc_world_job(t.world);
    t.bytes = (size_t)BIG * sizeof(float) * (size_t)(job.size > 2 ? job.size : 2) + GUARD;
    void *p;
    for (int i = 0; i < 2; i++) {
        RANKS_OK(mc_world_map(t.world, t.bytes, "test buffers", &p));
        assert_int_equal((uintptr_t)p % 4096, 0);
        assert_int_equal(((unsigned char *)p)[t.bytes - 1], 0);
        t.mapped[i] = p;
        RANKS_OK(mc_alloc(t.bytes, 1, "test buffers", &p));
        t.plain[i] = p;
    }
    make_groups();
    if (t.staged) {
        stage_groups();
    }
    return 0;
}

static int close_all(void **state)
{
    (void)state;
    for (int g = 0; g < t.n_groups; g++) {
        if (g > 0 || t.staged) { /* group 0 is the world's own */
            mc_comm_destroy(&t.groups[g]);
        }
        if (g > 0 && t.staged) {
            mc_comm_destroy(&t.host[g]);
        }
    }
    mc_free(t.plain[0]);
    mc_free(t.plain[1]);
    mc_world_close(t.world, false, 0);
    assert_int_equal(mc_alloc_report_leaks(), 0);
    return 0;
}

int main(int argc, char **argv)
{
    t.staged = argc > 1 && strcmp(argv[1], "staged") == 0;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_operations),       cmocka_unit_test(test_overlap),
        cmocka_unit_test(test_send_receive),     cmocka_unit_test(test_sends_that_cross),
        cmocka_unit_test(test_nan_survives_max), cmocka_unit_test(test_agree),
        cmocka_unit_test(test_many_barriers),    cmocka_unit_test(test_allocates_nothing),
        cmocka_unit_test(test_ledger),
    };
    return cmocka_run_group_tests(tests, open_all, close_all);
}
