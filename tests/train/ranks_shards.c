/* Sums of gradients over data-parallel ranks (tests/ranks 4), bit by bit against their definition in shards.h: the
 * order of additions and the places where they round, for every stage, number of instances and type that is exchanged.
 * And what is exchanged: how many bytes, and that it is under way while the next unit is computed. */
#include <math.h>

#include "megac/base/alloc.h"
#include "megac/base/half.h"
#include "megac/base/rng.h"
#include "megac/base/world.h"
#include "megac/train/model/shards.h"
#include "tests/unit.h"

enum { SEED = 7, RANKS = 4, MAX_MICRO = 3, STEPS = 2, ARENA_BYTES = 4 << 20 };
enum { WITHIN, ACROSS };

typedef struct setting {
    int zero, instances, n_micro, n_layers;
    bool bf16;
} setting;

static struct {
    mc_world *world;
    int rank;
    ly_ctx ly;
    void *memory[3];
    const mc_comm_ops *real[2]; /* what the counting groups below stand before */
    int64_t bytes[2];
    int under_way[2];
} run;

/* ---- groups that count ---- */

static int which(const mc_comm *c)
{
    return strcmp(c->name, "across") == 0 ? ACROSS : WITHIN;
}

#define COUNTING_BEGIN(name)                                                 \
    static mc_status count_##name##_begin(const mc_comm *c, mc_request *req) \
    {                                                                        \
        run.bytes[which(c)] += (int64_t)mc_tensor_bytes(req->in);            \
        run.under_way[which(c)]++;                                           \
        return run.real[which(c)]->name##_begin(c, req);                     \
    }
COUNTING_BEGIN(all_reduce)
COUNTING_BEGIN(reduce_scatter)
#undef COUNTING_BEGIN

static mc_status count_wait(const mc_comm *c, mc_request *req)
{
    run.under_way[which(c)]--;
    return run.real[which(c)]->wait(c, req);
}

static const mc_comm_ops counting = {.name = "counting",
                                     .all_reduce_begin = count_all_reduce_begin,
                                     .reduce_scatter_begin = count_reduce_scatter_begin,
                                     .wait = count_wait};

/* ---- the sums by their definition ---- */

static float gradient(int step, int rank, int micro, int64_t elem)
{
    uint64_t sample = (uint64_t)((step * RANKS + rank) * MAX_MICRO + micro);
    return mc_rng_uniform(mc_rng_bits(SEED, 1, sample, (uint64_t)elem).w[0]) - 0.4f;
}

static float sent(const setting *s, float x)
{
    return s->bf16 ? mc_f32_from_bf16(mc_bf16_from_f32(x)) : x;
}

/* Of what each rank of an instance has at element `elem` of micro-batches [from, to). */
static float within(const setting *s, int step, int instance, int from, int to, int64_t elem)
{
    int size = RANKS / s->instances;
    float sum = 0;
    for (int r = 0; r < size; r++) {
        float own = 0;
        for (int m = from; m < to; m++) {
            own += gradient(step, instance * size + r, m, elem);
        }
        sum = r == 0 ? sent(s, own) : sum + sent(s, own);
    }
    return sent(s, sum);
}

static float want(const setting *s, int step, bool each_micro, int64_t elem)
{
    float sum = 0;
    for (int i = 0; i < s->instances; i++) {
        float own = 0;
        for (int m = 0; each_micro && m < s->n_micro; m++) {
            own += within(s, step, i, m, m + 1, elem);
        }
        own = each_micro ? own : within(s, step, i, 0, s->n_micro, elem);
        own = s->instances > 1 ? sent(s, own) : own;
        sum = i == 0 ? own : sum + own;
    }
    return s->instances > 1 ? sent(s, sum) : sum;
}

/* ---- one setting ---- */

static bool is_block(const mt_params *p, int unit)
{
    return unit >= p->first_block_unit && unit < p->first_block_unit + p->n_layers;
}

static void backward(const setting *s, mt_shards *d, int step, int micro)
{
    const mt_params *p = d->params;
    bool last = micro + 1 == s->n_micro;
    for (int u = p->n_units - 1; u >= 0; u--) {
        assert_int_equal(mt_shards_open_grads(d, u), MC_OK);
        float *grad = d->units[u].grad.data;
        for (int64_t i = 0; i < d->units[u].grad.dims[0]; i++) {
            grad[i] += gradient(step, run.rank, micro, p->units[u].begin + i);
        }
        assert_int_equal(mt_shards_close_grads(d, u, last), MC_OK);
        if (last) {
            assert_true(run.under_way[WITHIN] > 0);
            assert_true(s->instances == 1 || u == p->n_units - 1 || run.under_way[ACROSS] > 0);
        }
    }
}

static void check_sums(const setting *s, const mt_shards *d, int step)
{
    for (int u = 0; u < d->params->n_units; u++) {
        const mt_shard *h = &d->units[u];
        const float *have = s->zero > 0 ? h->grad_part.data : h->grad.data;
        int64_t begin = s->zero > 0 ? h->begin : d->params->units[u].begin;
        int64_t n = s->zero > 0 ? h->elems : h->grad.dims[0];
        for (int64_t i = 0; i < n; i++) {
            float expected = want(s, step, s->zero >= 2 && is_block(d->params, u), begin + i);
            if (have[i] != expected) {
                fail_msg(
                    "ZeRO %d, %d instances, %d micro-batches, %d layers, %s: unit %d, element %lld is %.9g, not %.9g",
                    s->zero, s->instances, s->n_micro, s->n_layers, s->bf16 ? "bf16" : "fp32", u, (long long)i,
                    (double)have[i], (double)expected);
            }
        }
    }
}

/* Each step: units once, but blocks of stages 2 and 3 with every micro-batch; then own parts across the instances. */
static void check_bytes(const setting *s, const mt_shards *d)
{
    int64_t elems = 0, elem_bytes = s->bf16 ? 2 : 4, parts = d->params->slab_elems * s->instances / RANKS;
    for (int u = 0; u < d->params->n_units; u++) {
        int64_t n = d->params->units[u].end - d->params->units[u].begin;
        elems += s->zero >= 2 && is_block(d->params, u) ? n * s->n_micro : n;
    }
    assert_int_equal(run.bytes[WITHIN], STEPS * elems * elem_bytes);
    assert_int_equal(run.bytes[ACROSS], s->instances > 1 ? STEPS * parts * elem_bytes : 0);
}

static void open_group(int color, const char *name, int number, mc_comm *real, mc_comm *counted)
{
    assert_int_equal(mc_world_split(run.world, color, name, real), MC_OK);
    run.real[number] = real->ops;
    run.bytes[number] = run.under_way[number] = 0;
    *counted = *real;
    counted->ops = &counting;
}

static void check_setting(const setting *s)
{
    const mt_model_config model = {.n_layers = s->n_layers,
                                   .heads = 2,
                                   .groups = 2,
                                   .head_dim = 8,
                                   .hidden = 16,
                                   .ffn = 24,
                                   .seq_length = 8,
                                   .max_positions = 8,
                                   .vocab = 31,
                                   .padded_vocab = 31,
                                   .norm = LY_LAYERNORM,
                                   .position = MT_POSITION_LEARNED,
                                   .linear_bias = true,
                                   .tied = true};
    int size = RANKS / s->instances;
    mt_place place = {.tp = 1, .dp = RANKS, .dp_rank = run.rank, .pp = 1, .zero = s->zero, .n_layers = s->n_layers};
    mt_params params;
    mc_comm real[2], counted[2];
    mc_arena arenas[3];
    for (int i = 0; i < 3; i++) {
        memset(run.memory[i], 0xff, ARENA_BYTES);
        mc_arena_init(&arenas[i], "shards");
        mc_arena_bind(&arenas[i], run.memory[i], ARENA_BYTES);
    }
    assert_int_equal(mt_params_create(&model, &place, &params), MC_OK);
    open_group(run.rank / size, "within", WITHIN, &real[WITHIN], &counted[WITHIN]);
    open_group(s->instances > 1 ? run.rank % size : -1, "across", ACROSS, &real[ACROSS], &counted[ACROSS]);
    mt_shards d;
    mt_shards_config c = {.params = &params,
                          .comms = {&counted[WITHIN], &counted[ACROSS]},
                          .ly = &run.ly,
                          .dtype = MC_F32,
                          .zero = s->zero,
                          .training = true,
                          .reduce_bf16 = s->bf16,
                          .bucket_elems = 1,
                          .params_arena = &arenas[0],
                          .grads_arena = &arenas[1],
                          .optimizer_arena = &arenas[2]};
    assert_int_equal(mt_shards_create(&d, &c), MC_OK);
    for (int step = 0; step < STEPS; step++) {
        assert_int_equal(mt_shards_begin_step(&d), MC_OK);
        for (int m = 0; m < s->n_micro; m++) {
            backward(s, &d, step, m);
        }
        assert_int_equal(mt_shards_reduced(&d), MC_OK);
        assert_int_equal(run.under_way[WITHIN] + run.under_way[ACROSS], 0);
        check_sums(s, &d, step);
    }
    check_bytes(s, &d);
    mt_shards_destroy(&d);
    mt_params_destroy(&params);
    mc_comm_destroy(&real[WITHIN]);
    mc_comm_destroy(&real[ACROSS]);
}

static void test_sums(void **state)
{
    (void)state;
    for (int zero = 0; zero < 4; zero++) {
        for (int instances = 1; instances <= (zero > 0 ? 2 : 1); instances++) {
            for (int n_micro = 1; n_micro <= MAX_MICRO; n_micro += 2) {
                for (int i = 0; i < 4; i++) { /* one block has the buffers to itself */
                    check_setting(&(setting){zero, instances, n_micro, i < 2 ? 3 : 1, i % 2});
                }
            }
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_sums)};
    mc_job job;
    mc_pool *pool;
    if (mc_job_from_env(&job) != MC_OK || job.size != RANKS || mc_world_open(&job, NULL, 30.0, &run.world) != MC_OK ||
        mc_pool_create(1, LY_POOL_SCRATCH_BYTES, &pool) != MC_OK || ly_ops_get("cpu", &run.ly.ops) != MC_OK) {
        fprintf(stderr, "usage: tests/ranks 4 ranks_shards\n");
        return 1;
    }
    run.rank = job.rank;
    run.ly.pool = pool;
    for (int i = 0; i < 3; i++) {
        run.memory[i] = aligned_alloc(4096, ARENA_BYTES);
    }
    int failed = cmocka_run_group_tests_name("sums of gradients", tests, NULL, NULL);
    for (int i = 0; i < 3; i++) {
        free(run.memory[i]);
    }
    mc_pool_destroy(pool);
    mc_world_close(run.world, failed != 0, 1);
    return failed != 0;
}
