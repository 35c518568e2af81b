/* The parameter table: every rank's share starts as its slice of the one-rank tensors, each element is counted once in
 * the global norm, and Xavier's limits follow the real vocabulary. */
#include <math.h>

#include "megac/base/alloc.h"
#include "megac/train/model/params.h"
#include "tests/unit.h"

enum { SEED = 7, MAX_ROWS = 80, MAX_ELEMS = 1 << 14 };

static mt_model_config model(int tp)
{
    return (mt_model_config){
        .n_layers = 4,
        .heads = 4,
        .groups = 2,
        .head_dim = 8,
        .hidden = 32,
        .ffn = 48,
        .seq_length = 16,
        .max_positions = 16,
        .vocab = 61,
        .padded_vocab = tp_padded_vocab(61, 1, tp),
        .norm = LY_LAYERNORM,
        .act = LY_SWIGLU,
        .position = MT_POSITION_LEARNED,
        .linear_bias = true,
        .qk_norm = true,
        .init_std = 0.02f,
        .embedding_init_std = 0.02f,
        .seed = SEED,
    };
}

typedef struct table {
    mt_model_config c;
    mt_params p;
    mc_tensor slab;
    float *values;
} table;

static void open_table(table *t, mt_model_config c, mt_place place, mc_pool *pool)
{
    t->c = c;
    assert_int_equal(mt_params_create(&t->c, &place, &t->p), MC_OK);
    assert_int_equal(MC_NEW_N(&t->values, t->p.slab_elems, "values"), MC_OK);
    for (int64_t i = 0; i < t->p.slab_elems; i++) {
        t->values[i] = NAN;
    }
    t->slab = mc_tensor_1d(t->values, MC_F32, t->p.slab_elems);
    mt_params_init(&t->p, SEED, 0, t->slab, pool);
}

static void close_table(table *t)
{
    mc_free(t->values);
    mt_params_destroy(&t->p);
}

static mt_place alone(void)
{
    return (mt_place){.tp = 1, .dp = 1, .pp = 1, .n_layers = 4};
}

static int find(const mt_params *p, const char *name)
{
    for (int i = 0; i < p->n_rows; i++) {
        if (strcmp(p->rows[i].name, name) == 0) {
            return i;
        }
    }
    fail_msg("no tensor %s", name);
    return -1;
}

/* Compares a rank's tensor with its ranges of the whole one and counts what it covers; `seen` is by whole element. */
static void check_slice(const mt_param *r, const float *local, const mt_param *whole_row, const float *whole,
                        unsigned char *seen)
{
    int64_t cols = r->n_dims == 2 ? r->local_dims[1] : 1;
    int64_t whole_rows = whole_row->global_dims[0], whole_cols = r->n_dims == 2 ? whole_row->global_dims[1] : 1;
    for (int64_t i = 0; i < r->local_dims[0]; i++) {
        int part = r->shard_dim == 0 && i >= r->ranges[0].count;
        int64_t row = r->shard_dim == 0 ? r->ranges[part].begin + i - (part ? r->ranges[0].count : 0) : i;
        int64_t first = r->shard_dim == 1 ? r->ranges[0].begin : 0;
        for (int64_t j = 0; j < cols && row < whole_rows; j++) {
            int64_t at = row * whole_cols + first + j;
            if (local[i * cols + j] != whole[at]) {
                fail_msg("%s: element %lld is %g, not %g", r->name, (long long)at, (double)local[i * cols + j],
                         (double)whole[at]);
            }
            seen[at] = (unsigned char)(seen[at] + r->counts_in_norm);
        }
    }
}

static void check_layout(const table *whole, int tp, int pp, mc_pool *pool)
{
    static unsigned char seen[MAX_ROWS][MAX_ELEMS];
    mt_model_config c = model(tp);
    c.tied = whole->c.tied;
    c.init_xavier = whole->c.init_xavier;
    memset(seen, 0, sizeof seen);
    for (int rank = 0; rank < tp * pp; rank++) {
        table t;
        mt_place place = {.tp = tp, .tp_rank = rank % tp, .dp = 1, .pp = pp, .stage = rank / tp};
        place.n_layers = 4 / pp;
        place.first_layer = place.stage * place.n_layers;
        open_table(&t, c, place, pool);
        for (int i = 0; i < t.p.n_rows; i++) {
            int w = find(&whole->p, t.p.rows[i].name);
            assert_true(w < MAX_ROWS && t.p.rows[i].global_dims[0] * 48 <= MAX_ELEMS);
            check_slice(&t.p.rows[i], t.values + t.p.rows[i].offset, &whole->p.rows[w],
                        whole->values + whole->p.rows[w].offset, seen[w]);
        }
        close_table(&t);
    }
    tp_heads h = tp_heads_of(c.heads, c.groups, c.head_dim, tp, 0);
    for (int w = 0; w < whole->p.n_rows; w++) {
        const mt_param *r = &whole->p.rows[w];
        int64_t cols = r->n_dims == 2 ? r->global_dims[1] : 1, group = (c.heads / c.groups + 2) * c.head_dim;
        for (int64_t i = 0; i < r->global_dims[0] * cols; i++) {
            /* Copies of k and v are told apart by the optimizer, which knows their place among the replicas. */
            bool kv = strstr(r->name, "linear_qkv") && i / cols % group >= group - 2 * c.head_dim;
            if (seen[w][i] != (kv ? h.replicas : 1)) {
                fail_msg("%s, element %lld: counted %d times", r->name, (long long)i, seen[w][i]);
            }
        }
    }
}

static void test_every_layout_starts_alike(void **state)
{
    (void)state;
    mc_pool *pool;
    assert_int_equal(mc_pool_create(2, 1024, &pool), MC_OK);
    for (int kind = 0; kind < 4; kind++) {
        table whole;
        mt_model_config c = model(1);
        c.tied = kind & 1;
        c.init_xavier = kind & 2;
        open_table(&whole, c, alone(), pool);
        check_layout(&whole, 2, 1, pool);
        check_layout(&whole, 4, 2, pool); /* more ranks than KV groups; a tied copy on the last stage */
        check_layout(&whole, 1, 4, pool);
        close_table(&whole);
    }
    mc_pool_destroy(pool);
    assert_int_equal(mc_alloc_report_leaks(), 0);
}

static void test_count_is_the_sum_of_the_rows(void **state)
{
    (void)state;
    for (int kind = 0; kind < 32; kind++) {
        mt_model_config c = model(1);
        mt_place place = alone();
        mt_params p;
        int64_t sum = 0;
        c.padded_vocab = 64;
        c.tied = kind & 1;
        c.linear_bias = kind & 2;
        c.qkv_bias = kind & 4;
        c.qk_norm = kind & 8;
        c.norm = kind & 16 ? LY_RMSNORM : LY_LAYERNORM;
        assert_int_equal(mt_params_create(&c, &place, &p), MC_OK);
        for (int i = 0; i < p.n_rows; i++) {
            sum += p.rows[i].global_dims[0] * (p.rows[i].n_dims == 2 ? p.rows[i].global_dims[1] : 1);
        }
        assert_int_equal(sum, p.n_local);
        assert_int_equal(sum, mt_params_count(&c, false));
        assert_int_equal(sum - 3 * c.hidden * (c.tied ? 1 : 2), mt_params_count(&c, true));
        mt_params_destroy(&p);
    }
}

static double largest(const table *t, const char *name)
{
    const mt_param *r = &t->p.rows[find(&t->p, name)];
    double most = 0;
    for (int64_t i = 0; i < r->global_dims[0] * r->global_dims[1]; i++) {
        most = fmax(most, fabs((double)t->values[r->offset + i]));
    }
    return most;
}

static void test_xavier_limits(void **state)
{
    (void)state;
    mc_pool *pool;
    table t;
    mt_model_config c = model(1);
    c.init_xavier = true;
    c.padded_vocab = 128;
    assert_int_equal(mc_pool_create(1, 1024, &pool), MC_OK);
    open_table(&t, c, alone(), pool);
    /* Of thousands of uniform numbers the largest is near the limit. */
    const struct {
        const char *name;
        double fans;
    } tensors[] = {
        {"embedding.word_embeddings.weight", 61 + 32},
        {"output_layer.weight", 61 + 32},
        {"embedding.position_embeddings.weight", 16 + 32},
        {"decoder.layers.1.mlp.linear_fc2.weight", 32 + 48},
        {"decoder.layers.3.self_attention.linear_qkv.weight", 64 + 32},
    };
    for (size_t i = 0; i < sizeof tensors / sizeof tensors[0]; i++) {
        double limit = sqrt(6 / tensors[i].fans), most = largest(&t, tensors[i].name);
        assert_true(most <= limit * (1 + 1e-6) && most > 0.97 * limit);
    }
    close_table(&t);

    c.embedding_init_std = 0.001f; /* of its own: normal numbers again */
    open_table(&t, c, alone(), pool);
    assert_true(largest(&t, "embedding.word_embeddings.weight") < 0.01);
    close_table(&t);
    mc_pool_destroy(pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_layout_starts_alike),
        cmocka_unit_test(test_count_is_the_sum_of_the_rows),
        cmocka_unit_test(test_xavier_limits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
