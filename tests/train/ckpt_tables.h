/* What the checkpoint tests share: a parameter table with every way of cutting a tensor, for each rank of a simulated
 * layout, with values that every layout can compute. */
#ifndef TESTS_TRAIN_CKPT_TABLES_H
#define TESTS_TRAIN_CKPT_TABLES_H

#include "megac/base/alloc.h"
#include "megac/train/checkpoint/checkpoint.h"
#include "tests/unit.h"

enum {
    CKPT_C = 6,
    CKPT_F = 24,     /* divisible by every tp below, also halved */
    CKPT_QUERY = 24, /* rows of the query part */
    CKPT_KV_HEADS = 2,
    CKPT_KV_ROWS = 8, /* of all kv heads */
    CKPT_VOCAB = 37,
    CKPT_PARAMS = 8,
    CKPT_PREFIXES = 3,
    CKPT_ITEMS = CKPT_PARAMS * CKPT_PREFIXES,
    CKPT_MAX_ELEMS = 64 * CKPT_F,
};

/* A grid of tp x pp: rank = pp * tp_size + tp. With pp 2, the last four parameters live on the last stage. `pad` is
 * what the vocabulary's rows are a multiple of. */
typedef struct ckpt_layout {
    int tp, pp;
    int64_t pad;
    bool strided; /* local tensors with gaps between rows */
    mc_dtype dtype;
} ckpt_layout;

typedef struct ckpt_rank {
    mt_param params[CKPT_PARAMS];
    mt_ckpt_item items[CKPT_ITEMS];
    float (*values)[CKPT_MAX_ELEMS];
    int n_items;
} ckpt_rank;

/* The value of a global element; a small integer plus k / 4, exact in every element type. */
static inline float ckpt_value(int salt, int prefix, int param, int64_t i, int64_t j)
{
    return (float)((salt * 31 + prefix * 17 + param * 7 + i * 5 + j * 3) % 61) + 0.25f * (float)prefix;
}

static inline mt_param ckpt_param(const char *name, int n_dims, int64_t d0, int64_t d1)
{
    mt_param p = {.n_dims = n_dims, .global_dims = {d0, d1}, .local_dims = {d0, d1}, .n_ranges = 1};
    snprintf(p.name, sizeof p.name, "%s", name);
    p.ranges[0] = (mt_range){0, d0};
    return p;
}

static inline void ckpt_split(mt_param *p, int dim, int tp, int rank)
{
    int64_t n = p->global_dims[dim] / tp;
    p->shard_dim = dim;
    p->ranges[0] = (mt_range){n * rank, n};
    p->local_dims[dim] = n;
}

/* Two ranges of dim 0: [0, first) and [first, first + second), each split; `second_parts` <= tp ranks share a part. */
static inline void ckpt_split_two(mt_param *p, int64_t first, int64_t second, int second_parts, int tp, int rank)
{
    int parts = second_parts < tp ? second_parts : tp;
    int64_t a = first / tp, b = second / parts;
    p->n_ranges = 2;
    p->ranges[0] = (mt_range){a * rank, a};
    p->ranges[1] = (mt_range){first + b * (rank * parts / tp), b};
    p->local_dims[0] = a + b;
}

static inline void ckpt_make_params(mt_param *p, const ckpt_layout *l, int tp_rank)
{
    int64_t unit = l->pad * l->tp, vocab = (CKPT_VOCAB + unit - 1) / unit * unit;
    p[0] = ckpt_param("embedding.word_embeddings.weight", 2, vocab, CKPT_C);
    ckpt_split(&p[0], 0, l->tp, tp_rank);
    p[1] = ckpt_param("layers.0.norm.weight", 1, CKPT_C, 0);
    p[2] = ckpt_param("layers.0.qkv.weight", 2, CKPT_QUERY + CKPT_KV_ROWS, CKPT_C);
    ckpt_split_two(&p[2], CKPT_QUERY, CKPT_KV_ROWS, CKPT_KV_HEADS, l->tp, tp_rank);
    p[3] = ckpt_param("layers.0.proj.weight", 2, CKPT_C, CKPT_F);
    ckpt_split(&p[3], 1, l->tp, tp_rank);
    p[4] = ckpt_param("layers.1.gate_up.weight", 2, 2 * CKPT_F, CKPT_C);
    ckpt_split_two(&p[4], CKPT_F, CKPT_F, l->tp, l->tp, tp_rank);
    p[5] = ckpt_param("layers.1.gate_up.bias", 1, 2 * CKPT_F, 0);
    ckpt_split_two(&p[5], CKPT_F, CKPT_F, l->tp, l->tp, tp_rank);
    p[6] = ckpt_param("layers.1.down.weight", 2, CKPT_C, CKPT_F);
    ckpt_split(&p[6], 1, l->tp, tp_rank);
    p[7] = ckpt_param("layers.1.fc.bias", 1, CKPT_F, 0);
    ckpt_split(&p[7], 0, l->tp, tp_rank);
}

/* Global index of the local index `k` along the shard dim. */
static inline int64_t ckpt_global(const mt_param *p, int dim, int64_t k)
{
    if (dim != p->shard_dim) {
        return k;
    }
    return k < p->ranges[0].count ? p->ranges[0].begin + k : p->ranges[1].begin + (k - p->ranges[0].count);
}

static inline void ckpt_make(ckpt_rank *r, const ckpt_layout *l, int rank)
{
    static const char *const prefixes[CKPT_PREFIXES] = {"model", "optimizer.exp_avg", "optimizer.exp_avg_sq"};
    ckpt_make_params(r->params, l, rank % l->tp);
    assert_int_equal(MC_NEW_N(&r->values, CKPT_ITEMS, "test values"), MC_OK);
    r->n_items = 0;
    for (int k = 0; k < CKPT_ITEMS; k++) {
        mt_param *p = &r->params[k % CKPT_PARAMS];
        int stage = k % CKPT_PARAMS < 4 ? 0 : l->pp - 1;
        if (stage != rank / l->tp) {
            continue;
        }
        bool replicated = p->n_ranges == 1 && p->ranges[0].count == p->global_dims[p->shard_dim];
        p->writes = !replicated || rank % l->tp == 0;
        int64_t gap = l->strided ? 3 : 0;
        mc_tensor t = p->n_dims == 2 ? mc_tensor_2d(r->values[k], l->dtype, p->local_dims[0], p->local_dims[1])
                                     : mc_tensor_1d(r->values[k], l->dtype, p->local_dims[0]);
        if (p->n_dims == 2) {
            t.strides[0] += gap;
        } else if (l->strided) {
            t.strides[0] = 2;
        }
        assert_true(t.strides[0] * t.dims[0] <= CKPT_MAX_ELEMS);
        int64_t valid = k % CKPT_PARAMS == 0 ? CKPT_VOCAB : 0;
        r->items[r->n_items++] = (mt_ckpt_item){prefixes[k / CKPT_PARAMS], p, t, valid};
    }
}

static inline void ckpt_drop(ckpt_rank *r)
{
    mc_free(r->values);
    r->values = NULL;
}

static inline int ckpt_prefix_of(const mt_ckpt_item *item)
{
    size_t n = strlen(item->prefix);
    return n == 5 ? 0 : n == 17 ? 1 : 2;
}

static inline float *ckpt_at(const mt_ckpt_item *item, int64_t i, int64_t j)
{
    const mc_tensor *t = &item->local;
    return (float *)t->data + i * t->strides[0] + (t->n_dims == 2 ? j * t->strides[1] : 0);
}

/* Calls fn for every local element with its global value. f32 tables only. */
#define CKPT_EACH(r, salt, element, value, statement)                                                     \
    for (int k_ = 0; k_ < (r)->n_items; k_++) {                                                           \
        const mt_ckpt_item *item_ = &(r)->items[k_];                                                      \
        const mt_param *p_ = item_->param;                                                                \
        for (int64_t i_ = 0; i_ < item_->local.dims[0]; i_++) {                                           \
            for (int64_t j_ = 0; j_ < (p_->n_dims == 2 ? item_->local.dims[1] : 1); j_++) {               \
                float *element = ckpt_at(item_, i_, j_);                                                  \
                int64_t gi_ = ckpt_global(p_, 0, i_), gj_ = p_->n_dims == 2 ? ckpt_global(p_, 1, j_) : 0; \
                float value = ckpt_value(salt, ckpt_prefix_of(item_), (int)(p_ - (r)->params), gi_, gj_); \
                bool padding_ = item_->valid_rows > 0 && gi_ >= item_->valid_rows;                        \
                (void)padding_;                                                                           \
                statement                                                                                 \
            }                                                                                             \
        }                                                                                                 \
    }

static inline void ckpt_fill(ckpt_rank *r, int salt)
{
    CKPT_EACH(r, salt, element, value, { *element = value; })
}

/* Every byte not a number, so that what is not filled is seen. */
static inline void ckpt_spoil(ckpt_rank *r)
{
    memset(r->values, 0xff, sizeof *r->values * CKPT_ITEMS);
}

/* True when every real element is the expected one, and the gaps of strided tensors are untouched. */
static inline bool ckpt_check(const ckpt_rank *r, int salt)
{
    CKPT_EACH(r, salt, element, value, {
        if (!padding_ && *element != value) {
            return false;
        }
    })
    for (int k = 0; k < r->n_items; k++) {
        const mc_tensor *t = &r->items[k].local;
        if (t->n_dims == 2 && t->strides[0] > t->dims[1]) {
            uint32_t gap;
            memcpy(&gap, (const float *)t->data + t->dims[1], 4);
            if (gap != 0xffffffffu) {
                return false;
            }
        }
    }
    return true;
}

/* Losses, then gradient norms, of the last three steps: every bit of a double counts. */
static const double ckpt_recent[6] = {1.0 / 3, 2e-300, 7, 0.1, 1e300, 3};

static inline mt_ckpt_state ckpt_state(int64_t iteration)
{
    return (mt_ckpt_state){
        .iteration = iteration,
        .consumed_samples = 1000 + (uint64_t)iteration,
        .consumed_tokens = 1 << 20,
        .skipped_iterations = 2,
        .optimizer_steps = iteration - 2,
        .schedule_samples = 900 + (uint64_t)iteration,
        .loss_scale = 0.1 + (double)iteration,
        .loss_scale_good_steps = 5,
        .loss_scale_hysteresis = -3,
        .recent_losses = ckpt_recent,
        .recent_norms = ckpt_recent + 3,
        .n_recent = 3,
        .config = "--hidden-size 6\n--flag\n--data-path one two\n--name a \"quoted\" \xc3\xa9 text\n",
        .tokenizer_kind = "ByteTokenizer",
        .tokenizer = "a tokenizer\0file",
        .tokenizer_bytes = 16,
    };
}

#endif
