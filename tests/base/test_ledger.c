#include <pthread.h>

#include "megac/base/comm_impl.h"
#include "megac/base/comm_ledger.h"
#include "tests/unit.h"

static float data[64];
static mc_i_ledger ledger;

static mc_request request(const mc_comm *c, int kind, uint64_t seq, int64_t elems)
{
    return (mc_request){.comm = c, .kind = kind, .seq = seq, .peer = -1, .in = mc_tensor_1d(data, MC_F32, elems)};
}

static void test_keeps_the_newest(void **state)
{
    (void)state;
    mc_comm c = mc_comm_self("dp");
    char text[16384];
    ledger = (mc_i_ledger){0};
    mc_i_ledger_text(&ledger, 64, "\n", text, sizeof text);
    assert_string_equal(text, "");
    for (int i = 0; i < 100; i++) {
        mc_request req = request(&c, MC_I_SEND, (uint64_t)i, 4);
        req.peer = 3;
        mc_i_ledger_set_step(&ledger, i / 10);
        mc_i_ledger_begun(&ledger, &req);
        if (i < 99) {
            mc_i_ledger_done(&ledger, &req);
        }
    }
    mc_i_ledger_text(&ledger, 2, "; ", text, sizeof text);
    assert_non_null(strstr(text, "dp #98 send to member 3, 16 bytes f32, step 9, begun "));
    assert_null(strstr(text, "dp #97"));
    assert_non_null(strstr(text, "under way; "));
    mc_i_ledger_text(&ledger, 1000, "\n", text, sizeof text);
    assert_true(strncmp(text, "dp #36 ", 7) == 0); /* 64 rows */
    mc_i_ledger_text(&ledger, 1000, "\n", text, 200);
    assert_true(strlen(text) < 200 && strstr(text, "dp #99 "));
    mc_i_ledger_row row;
    assert_false(mc_i_ledger_get_row(&ledger, 36, &row)); /* the first ids are overwritten */
    assert_true(mc_i_ledger_get_row(&ledger, 37, &row) && row.seq == 36);
}

/* The rank's own work is found while it is under way, whatever comes after it; a long path keeps its end. */
static void test_own_work(void **state)
{
    (void)state;
    mc_comm c = mc_comm_self("tp");
    mc_i_ledger_row row;
    char path[400];
    ledger = (mc_i_ledger){0};
    assert_false(mc_i_ledger_get_own(&ledger, &row));
    mc_i_ledger_set_step(&ledger, 7);
    uint64_t outer = mc_i_ledger_own_begun(&ledger, "reads data", NULL);
    uint64_t inner = mc_i_ledger_own_begun(&ledger, "saves iteration 4:", "run/iter_0000004.tmp/shard");
    mc_request req = request(&c, MC_I_ALL_REDUCE, 0, 8);
    mc_i_ledger_begun(&ledger, &req);
    assert_true(mc_i_ledger_get_own(&ledger, &row));
    assert_string_equal(row.name, "saves iteration 4: run/iter_0000004.tmp/shard");
    assert_true(row.step == 7 && row.id == inner);
    mc_i_ledger_ended(&ledger, inner);
    assert_true(mc_i_ledger_get_own(&ledger, &row) && row.id == outer);
    assert_string_equal(row.name, "reads data");
    mc_i_ledger_ended(&ledger, outer);
    assert_false(mc_i_ledger_get_own(&ledger, &row));
    memset(path, 'x', sizeof path);
    memcpy(path + sizeof path - sizeof "/the_end", "/the_end", sizeof "/the_end");
    inner = mc_i_ledger_own_begun(&ledger, "loads", path);
    assert_true(mc_i_ledger_get_own(&ledger, &row) && row.id == inner);
    size_t n = strlen(row.name);
    assert_int_equal(n, MC_I_LEDGER_NAME_BYTES - 1);
    assert_memory_equal(row.name, "loads ...x", 10);
    assert_string_equal(row.name + n - 8, "/the_end");
}

static void test_waits(void **state)
{
    (void)state;
    mc_i_ledger_wait wait;
    int ranks[20];
    for (int i = 0; i < 20; i++) {
        ranks[i] = 3 * i;
    }
    ledger = (mc_i_ledger){0};
    assert_false(mc_i_ledger_get_wait(&ledger, &wait));
    mc_i_ledger_waits(&ledger, 5, 1.5, ranks, 20);
    assert_true(mc_i_ledger_get_wait(&ledger, &wait));
    assert_true(wait.id == 5 && wait.since_s == 1.5 && wait.n == 20);
    for (int i = 0; i < MC_I_LEDGER_MISSING; i++) {
        assert_int_equal(wait.ranks[i], ranks[i]);
    }
    mc_i_ledger_waits(&ledger, 0, 0, NULL, 0);
    assert_false(mc_i_ledger_get_wait(&ledger, &wait));
    assert_false(mc_i_ledger_has_left(&ledger));
    mc_i_ledger_leaves(&ledger);
    assert_true(mc_i_ledger_has_left(&ledger));
}

enum { WRITTEN = 60000 };

/* Rows whose parts all follow from the number, so that a mixture of two is seen; every third is the rank's own. */
static void *write_rows(void *arg)
{
    mc_i_ledger *l = arg;
    mc_comm c = mc_comm_self("world");
    for (uint64_t i = 1; i <= WRITTEN; i++) {
        mc_i_ledger_set_step(l, (int64_t)(2 * i));
        if (i % 3 == 0) {
            char path[32];
            snprintf(path, sizeof path, "%llu", (unsigned long long)i);
            mc_i_ledger_ended(l, mc_i_ledger_own_begun(l, "row", path));
            continue;
        }
        mc_request req = request(&c, MC_I_ALL_REDUCE, i, (int64_t)(i % 64));
        mc_i_ledger_begun(l, &req);
        mc_i_ledger_done(l, &req);
    }
    return NULL;
}

static void check_row(const mc_i_ledger_row *row)
{
    char want[32];
    unsigned long long id = row->id;
    snprintf(want, sizeof want, id % 3 == 0 ? "row %llu" : "world", id);
    if (strcmp(row->name, want) != 0 || row->step != (int64_t)(2 * id) || row->seq != (id % 3 == 0 ? 0 : id) ||
        row->bytes != (id % 3 == 0 ? 0 : 4 * (id % 64)) || (row->done_s != 0 && row->done_s < row->begun_s)) {
        fail_msg("row %llu: %s #%llu, %llu bytes, step %lld, %.9f to %.9f", id, row->name, (unsigned long long)row->seq,
                 (unsigned long long)row->bytes, (long long)row->step, row->begun_s, row->done_s);
    }
}

/* Nothing torn, while the ledger is written; run under ThreadSanitizer too. */
static void test_read_while_written(void **state)
{
    (void)state;
    pthread_t writer;
    long n_read = 0;
    uint64_t last = 0;
    ledger = (mc_i_ledger){0};
    assert_int_equal(pthread_create(&writer, NULL, write_rows, &ledger), 0);
    while (last < WRITTEN) {
        last = mc_i_ledger_last_id(&ledger);
        mc_i_ledger_row row;
        for (uint64_t id = last > 70 ? last - 70 : 1; id <= last; id++) {
            if (mc_i_ledger_get_row(&ledger, id, &row)) {
                assert_true(row.id == id);
                check_row(&row);
                n_read++;
            }
        }
    }
    pthread_join(writer, NULL);
    assert_true(n_read >= MC_I_LEDGER_OPS); /* at the end all are there */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_keeps_the_newest),
        cmocka_unit_test(test_own_work),
        cmocka_unit_test(test_waits),
        cmocka_unit_test(test_read_while_written),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
