/* Generation on one rank: the cache of keys and values changes no logit beyond rounding, and no token; the texts of a
 * group do not see each other; what is reserved is what the plan says. */
#include <math.h>

#include "megac/base/alloc.h"
#include "megac/train/generate.h"
#include "megac/train/run.h"
#include "tests/train/options_run.h"
#include "tests/unit.h"

enum { N_TEXTS = 3, POSITIONS = 24, VOCAB = 61, MAX_NEW = 30 };

/* Weights large enough that every token of a text matters to its logits, which then are of the order of 10. */
#define SHAPE                                                                                               \
    "--num-layers 3 --hidden-size 32 --num-attention-heads 4 --seq-length 24 --max-position-embeddings 24 " \
    "--micro-batch-size 2 --global-batch-size 6 --train-iters 4 --lr 1e-3 --mock-data --vocab-size 61 "     \
    "--init-method-std 0.3 --num-threads 2 "
#define LLAMA                                                                                \
    "--position-embedding-type rope --normalization RMSNorm --swiglu --disable-bias-linear " \
    "--untie-embeddings-and-output-weights --group-query-attention --num-query-groups 2 "

static const char *const models[] = {
    SHAPE,
    SHAPE "--window-size 5 0",
    SHAPE "--no-position-embedding",
    SHAPE "--hidden-dropout 0.1 --attention-dropout 0.1",
    SHAPE LLAMA,
    SHAPE LLAMA "--qk-layernorm --window-size 0 0",
    SHAPE LLAMA "--qk-layernorm --rotary-percent 0.5 --rotary-interleaved --window-size 7 0",
    SHAPE LLAMA "--kv-channels 12 --rotary-seq-len-interpolation-factor 4",
};
enum { N_MODELS = sizeof models / sizeof *models };

/* A logit is a sum of 32 products after 3 layers, each a few sums of that size: 1e-4 of the largest logit is a hundred
 * roundings of it; a wrong key or position changes the first digit. */
static const double TOLERANCE = 1e-4;

typedef struct fixture {
    mc_world *world;
    mt_options *o;
    mt_engine *e;
} fixture;

static void open_fixture(fixture *f, const char *flags, bool keeps_kv)
{
    char text[1024], *argv[RUN_MAX_ARGS];
    bool done;
    const mc_job job = {.size = 1, .local_size = 1, .launcher = "none"};
    *f = (fixture){0};
    snprintf(text, sizeof text, "%s", flags);
    assert_int_equal(mt_options_parse(MT_TRAIN, run_split(text, argv), argv, &f->o, &done), MC_OK);
    f->o->inference_max_requests = N_TEXTS;
    f->o->no_kv_cache = !keeps_kv;
    assert_int_equal(mt_options_finish(f->o, 1), MC_OK);
    assert_int_equal(mc_world_open(&job, "self", 10, &f->world), MC_OK);
    assert_int_equal(mt_engine_create(f->o, MT_FOR_GENERATION, f->world, NULL, &f->e), MC_OK);
}

static void check_plan(const mt_engine *e)
{
    const mt_memory_plan *plan = &e->memory.plan;
    assert_int_equal(e->arenas.scratch.used_bytes, 0);
    assert_int_equal(e->arenas.scratch.peak_bytes, plan->scratch);
    assert_int_equal(e->arenas.params.peak_bytes, plan->params);
    assert_int_equal(e->arenas.stash.peak_bytes, plan->stash);
    assert_int_equal(e->arenas.process.peak_bytes, plan->process);
    assert_int_equal(e->arenas.cache.peak_bytes, plan->cache);
    assert_int_equal(e->arenas.pinned.peak_bytes, plan->pinned);
}

static void close_fixture(fixture *f)
{
    mt_engine_destroy(f->e);
    mc_world_close(f->world, false, 0);
    mt_options_free(f->o);
}

static int32_t token_of(int text, int64_t position)
{
    return (int32_t)((text * 17 + position * position * 7 + 3) % VOCAB);
}

/* Runs one step; rows of logits (m, VOCAB) into out. */
static void step_logits(mt_engine *e, mt_step_kind kind, int64_t n, int64_t m, float *out)
{
    size_t mark = mc_arena_mark(&e->arenas.scratch);
    mc_tensor logits;
    memcpy(e->stage->step_ids.data, e->stage->host_step_ids.data, (size_t)(3 * n) * sizeof(int32_t));
    assert_int_equal(mt_stage_forward_tokens(e->stage, (mt_token_step){kind, n}, &logits), MC_OK);
    assert_int_equal(logits.dims[1], m);
    for (int64_t r = 0; r < m; r++) {
        memcpy(out + r * VOCAB, (const float *)logits.data + r * logits.dims[2], VOCAB * sizeof(float));
    }
    mc_arena_rewind(&e->arenas.scratch, mark);
}

static void put(mt_engine *e, int64_t n, int64_t row, int text, int64_t position)
{
    int32_t *ids = e->stage->host_step_ids.data;
    ids[row] = token_of(text, position);
    ids[n + row] = (int32_t)(text * POSITIONS + position);
    ids[2 * n + row] = (int32_t)position;
}

/* The first n tokens of a text at once. */
static void whole(mt_engine *e, int text, int64_t n, mt_step_kind kind, float *out)
{
    for (int64_t i = 0; i < n; i++) {
        put(e, n, i, text, i);
    }
    step_logits(e, kind, n, 1, out);
}

static void same_logits(const float *got, const float *want, const char *model, int text, int64_t n)
{
    double largest = 0;
    for (int i = 0; i < VOCAB; i++) {
        largest = fmax(largest, fabs((double)want[i]));
    }
    assert_true(largest > 1);
    for (int i = 0; i < VOCAB; i++) {
        if (!(fabs((double)got[i] - (double)want[i]) <= TOLERANCE * largest)) {
            fail_msg("%s: text %d, %lld tokens, logit %d is %g, without the cache %g", model, text, (long long)n, i,
                     (double)got[i], (double)want[i]);
        }
    }
}

/* Texts that begin with 1, 6 and 13 tokens grow together to the last position. */
static void check_logits(const char *model)
{
    static const int64_t begin[N_TEXTS] = {1, 6, 13};
    fixture cached, plain;
    float got[N_TEXTS * VOCAB], want[VOCAB];
    open_fixture(&cached, model, true);
    open_fixture(&plain, model, false);
    assert_int_equal(plain.e->arenas.cache.peak_bytes < cached.e->arenas.cache.peak_bytes, 1);
    for (int t = 0; t < N_TEXTS; t++) {
        whole(cached.e, t, begin[t], MT_STEP_BEGIN, got);
        whole(plain.e, t, begin[t], MT_STEP_WHOLE, want);
        same_logits(got, want, model, t, begin[t]);
    }
    for (int64_t grown = 0; begin[0] + grown < POSITIONS; grown++) {
        int rows[N_TEXTS], n = 0;
        for (int t = N_TEXTS - 1; t >= 0; t--) { /* rows are in no order, and fewer as texts reach their end */
            if (begin[t] + grown < POSITIONS) {
                rows[n++] = t;
            }
        }
        for (int i = 0; i < n; i++) {
            put(cached.e, n, i, rows[i], begin[rows[i]] + grown);
        }
        step_logits(cached.e, MT_STEP_NEXT, n, n, got);
        for (int i = 0; i < n; i++) {
            int64_t length = begin[rows[i]] + grown + 1;
            whole(plain.e, rows[i], length, MT_STEP_WHOLE, want);
            same_logits(got + i * VOCAB, want, model, rows[i], length);
        }
    }
    close_fixture(&plain);
    close_fixture(&cached);
}

static void test_logits(void **state)
{
    (void)state;
    for (int i = 0; i < N_MODELS; i++) {
        check_logits(models[i]);
    }
    assert_int_equal(mc_alloc_report_leaks(), 0);
}

/* Continues N_TEXTS prompts of 1, 9 and 24 tokens: together, or with `apart` one at a time. */
static void write_texts(const char *model, bool keeps_kv, bool apart, const mt_sampling *how,
                        int32_t tokens[N_TEXTS][POSITIONS + MAX_NEW], int64_t n_out[N_TEXTS])
{
    static const int64_t begin[N_TEXTS] = {1, 9, POSITIONS};
    mt_generation g = {.max_new = MAX_NEW, .stop_token = 5, .sampling = *how};
    mt_text texts[N_TEXTS];
    fixture f;
    open_fixture(&f, model, keeps_kv);
    memset(tokens, 0xff, N_TEXTS * sizeof *tokens);
    for (int t = 0; t < N_TEXTS; t++) {
        texts[t] = (mt_text){.tokens = tokens[t], .n_prompt = begin[t], .number = (uint64_t)t};
        for (int64_t i = 0; i < begin[t]; i++) {
            tokens[t][i] = token_of(t, i);
        }
    }
    for (int t = 0; t < (apart ? N_TEXTS : 1); t++) {
        assert_int_equal(mt_generate(f.e, &g, texts + t, apart ? 1 : N_TEXTS), MC_OK);
    }
    for (int t = 0; t < N_TEXTS; t++) {
        assert_true(texts[t].ended);
        n_out[t] = texts[t].n;
    }
    if (!apart) {
        check_plan(f.e);
    }
    close_fixture(&f);
}

/* Texts outgrow the positions on the way, or meet the stop token. */
static void check_texts(const char *model, const mt_sampling *how)
{
    int32_t want[N_TEXTS][POSITIONS + MAX_NEW], got[N_TEXTS][POSITIONS + MAX_NEW];
    int64_t n_want[N_TEXTS], n_got[N_TEXTS], longest = 0;
    write_texts(model, false, true, how, want, n_want);
    for (int way = 0; way < 2; way++) {
        write_texts(model, true, way == 1, how, got, n_got);
        for (int t = 0; t < N_TEXTS; t++) {
            assert_int_equal(n_got[t], n_want[t]);
            assert_memory_equal(got[t], want[t], (size_t)n_want[t] * sizeof **want);
            longest = n_got[t] > longest ? n_got[t] : longest;
        }
    }
    assert_true(longest > POSITIONS);
}

static void test_texts(void **state)
{
    (void)state;
    int32_t scratch[VOCAB];
    const mt_sampling ways[] = {
        {.temperature = 0},
        {.temperature = 1.5, .seed = 3},
        {.temperature = 2, .seed = 4, .top_k = 9, .top_p = 0.9, .scratch = scratch},
    };
    for (int i = 0; i < 3; i++) {
        check_texts(models[0], &ways[i]);
        check_texts(models[6], &ways[i]);
    }
    assert_int_equal(mc_alloc_report_leaks(), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_logits),
        cmocka_unit_test(test_texts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
