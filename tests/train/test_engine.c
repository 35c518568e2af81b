/* An engine on one rank: every allocation of its set-up may fail without a leak, and a step leaves scratch as it found
 * it, at the planned peak. */
#include "megac/base/alloc.h"
#include "megac/base/log.h"
#include "megac/train/run.h"
#include "tests/train/options_run.h"
#include "tests/unit.h"

enum { MAX_ALLOCATIONS = 2000 };

#define SHAPE                                                                                               \
    "--num-layers 3 --hidden-size 32 --num-attention-heads 4 --seq-length 16 --max-position-embeddings 16 " \
    "--micro-batch-size 2 --global-batch-size 6 --train-iters 4 --lr 1e-3 --mock-data --vocab-size 61 "     \
    "--num-threads 2 "
#define LLAMA                                                                                               \
    "--position-embedding-type rope --normalization RMSNorm --swiglu --disable-bias-linear --qk-layernorm " \
    "--untie-embeddings-and-output-weights --group-query-attention --num-query-groups 2 "

typedef struct fixture {
    mc_world *world;
    mt_options *o;
    mt_feed feed;
} fixture;

static void open_fixture(fixture *f, const char *flags)
{
    char text[1024], *argv[RUN_MAX_ARGS];
    bool done;
    const mc_job job = {.size = 1, .local_size = 1, .launcher = "none"};
    *f = (fixture){0};
    snprintf(text, sizeof text, "%s", flags);
    assert_int_equal(mt_options_parse(MT_TRAIN, run_split(text, argv), argv, &f->o, &done), MC_OK);
    assert_int_equal(mt_options_finish(f->o, 1), MC_OK);
    assert_int_equal(mc_world_open(&job, "self", 10, &f->world), MC_OK);
    assert_int_equal(mt_source_open(f->o, DS_TRAIN, false, &f->feed.source), MC_OK);
}

static void close_fixture(fixture *f)
{
    ds_loader_destroy(f->feed.loader);
    ds_source_close(f->feed.source);
    mc_world_close(f->world, false, 0);
    mt_options_free(f->o);
    assert_int_equal(mc_alloc_report_leaks(), 0);
}

static void sweep(const char *flags, mt_purpose purpose)
{
    fixture f;
    mc_status st = MC_NOMEM;
    int n = 0;
    open_fixture(&f, flags);
    while (st != MC_OK) {
        char said[256];
        mt_engine *e = NULL;
        size_t before = mc_alloc_get_stats().live_blocks;
        assert_true(++n < MAX_ALLOCATIONS);
        mc_alloc_fail_at((size_t)n);
        UNIT_CAPTURE(said, st = mt_engine_create(f.o, purpose, f.world, f.feed.source, &e));
        mc_alloc_fail_at(0);
        if (st != MC_OK) {
            assert_int_equal(st, MC_NOMEM);
            assert_null(e);
        }
        mt_engine_destroy(e);
        /* The world keeps nothing of an engine that is gone. */
        assert_int_equal(mc_alloc_get_stats().live_blocks, before);
    }
    assert_true(n > 20);
    close_fixture(&f);
}

static void test_every_allocation_may_fail(void **state)
{
    (void)state;
    sweep(SHAPE, MT_FOR_TRAINING);
    sweep(SHAPE LLAMA, MT_FOR_TRAINING);
    sweep(SHAPE, MT_FOR_EVALUATION);
    sweep(SHAPE LLAMA, MT_FOR_GENERATION);
}

static void run_one(mt_engine *e, ds_loader *loader, uint64_t first, int n_micro, bool training)
{
    double weight;
    pp_stats stats;
    mt_votes votes = {0};
    mt_step_result result;
    assert_int_equal(ds_loader_request(loader, first, n_micro), MC_OK);
    assert_int_equal(ds_loader_next(loader, &weight), MC_OK);
    assert_int_equal(mt_engine_run_step(e, loader, n_micro, training, 1 / weight, &stats), MC_OK);
    assert_int_equal(e->arenas.scratch.used_bytes, 0);
    if (training) {
        assert_int_equal(stats.peak_live, 1); /* 1F1B on one stage */
        assert_int_equal(mt_optimizer_reduce(e->optimizer, n_micro, 1, &votes, &result), MC_OK);
        assert_true(result.grad_norm > 0);
        assert_int_equal(mt_optimizer_update(e->optimizer, 1e-3, 1e-3, 0.1, 1, result.grad_norm), MC_OK);
        assert_int_equal(e->arenas.scratch.used_bytes, 0);
    }
}

static void check_steps(const char *flags)
{
    fixture f;
    mt_engine *e;
    open_fixture(&f, flags);
    assert_int_equal(mt_engine_create(f.o, MT_FOR_TRAINING, f.world, f.feed.source, &e), MC_OK);
    ds_loader_config c = mt_setup_loader(&e->setup, 0, f.feed.source);
    assert_int_equal(ds_loader_create(&c, &f.feed.loader), MC_OK);
    size_t blocks = mc_alloc_get_stats().total_blocks;
    /* Fewer micro-batches than the largest step, as in a ramp; an evaluation between; the largest. */
    run_one(e, f.feed.loader, 0, 1, true);
    run_one(e, f.feed.loader, 2, 2, false);
    run_one(e, f.feed.loader, 2, 3, true);
    assert_int_equal(mc_alloc_get_stats().total_blocks, blocks);
    const mt_memory_plan *plan = &e->memory.plan;
    assert_int_equal(e->arenas.scratch.peak_bytes, plan->scratch);
    assert_int_equal(e->arenas.params.peak_bytes, plan->params);
    assert_int_equal(e->arenas.grads.peak_bytes, plan->grads);
    assert_int_equal(e->arenas.optimizer.peak_bytes, plan->optimizer);
    assert_int_equal(e->arenas.stash.peak_bytes, plan->stash);
    assert_int_equal(e->arenas.process.peak_bytes, plan->process);
    assert_int_equal(e->arenas.pinned.peak_bytes, plan->pinned);
    mt_engine_destroy(e);
    close_fixture(&f);
}

static void test_a_step_uses_the_plan(void **state)
{
    (void)state;
    check_steps(SHAPE);
    check_steps(SHAPE "--hidden-dropout 0.1 --attention-dropout 0.1");
    check_steps(SHAPE LLAMA);
    check_steps(SHAPE LLAMA "--head-chunk-tokens 7 --hidden-dropout 0.1 --optimizer sgd");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_allocation_may_fail),
        cmocka_unit_test(test_a_step_uses_the_plan),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
