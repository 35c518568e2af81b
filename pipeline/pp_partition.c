/* Layers to pipeline stages, by Megatron-LM's rules: what is not fixed is divided evenly or refused. */
#include <stdio.h>

#include "pipeline/pp.h"

#define FLAG_FIRST "--decoder-first-pipeline-num-layers"
#define FLAG_LAST "--decoder-last-pipeline-num-layers"
#define FLAG_EMBEDDING "--account-for-embedding-in-pipeline-split"
#define FLAG_LOSS "--account-for-loss-in-pipeline-split"

/* Whether `layers` can be divided over `stages`, none of them empty. */
static bool divides(int layers, int stages)
{
    return stages == 0 ? layers == 0 : layers >= stages && layers % stages == 0;
}

/* The number of layers for one stage of its own that leaves an even share for `others` stages: the fullest stage as
 * small as possible, and among equals the own stage the smaller. 0: there is none. */
static int own_stage_layers(int layers, int others)
{
    if (others <= 0) {
        return layers > 0 ? layers : 0;
    }
    int best = 0, best_fullest = 0;
    for (int share = 1; share * others < layers; share++) {
        int own = layers - share * others;
        int fullest = own > share ? own : share;
        if (best == 0 || fullest <= best_fullest) {
            best = own;
            best_fullest = fullest;
        }
    }
    return best;
}

/* A growing list "a, b or c" in a fixed buffer. */
typedef struct list {
    char text[480];
    size_t used;
} list;

static void list_add(list *l, const char *flag, int value)
{
    const char *sep = l->used > 0 ? ", or " : "";
    int n = value >= 0 ? snprintf(l->text + l->used, sizeof l->text - l->used, "%s%s %d", sep, flag, value)
                       : snprintf(l->text + l->used, sizeof l->text - l->used, "%s%s", sep, flag);
    MC_ASSERT(n > 0 && (size_t)n < sizeof l->text - l->used);
    l->used += (size_t)n;
}

/* What to write instead; every entry was checked to work. */
static list remedies(const pp_partition *p)
{
    list l = {{0}, 0};
    int own = own_stage_layers(p->n_layers, p->n_stages - 1);
    if (p->first_layers >= 0 && p->n_stages >= 2) {
        int last = own_stage_layers(p->n_layers - p->first_layers, p->n_stages - 2);
        if (last > 0) {
            list_add(&l, "with the same " FLAG_FIRST " also " FLAG_LAST, last);
        }
    } else if (p->last_layers >= 0 && p->n_stages >= 2) {
        int first = own_stage_layers(p->n_layers - p->last_layers, p->n_stages - 2);
        if (first > 0) {
            list_add(&l, "with the same " FLAG_LAST " also " FLAG_FIRST, first);
        }
    }
    if (own > 0 && p->n_stages >= 2) {
        list_add(&l, FLAG_LAST " alone:", own);
        list_add(&l, FLAG_FIRST " alone:", own);
    }
    if (divides(p->n_layers + 1, p->n_stages)) {
        list_add(&l, FLAG_LOSS " alone", -1);
        list_add(&l, FLAG_EMBEDDING " alone", -1);
    } else if (divides(p->n_layers + 2, p->n_stages)) {
        list_add(&l, "both " FLAG_EMBEDDING " and " FLAG_LOSS, -1);
    }
    int below = p->n_layers / p->n_stages * p->n_stages;
    list_add(&l, "--num-layers", below > 0 && below < p->n_layers ? below : below + p->n_stages);
    return l;
}

static mc_status check_fixed(const pp_partition *p)
{
    bool fixed = p->first_layers >= 0 || p->last_layers >= 0;
    if (!fixed) {
        return MC_OK;
    }
    const char *flag = p->first_layers >= 0 ? FLAG_FIRST : FLAG_LAST;
    if (p->n_stages < 2) {
        return MC_FAIL(MC_INVALID, "%s needs at least 2 pipeline stages and there is 1; drop the flag", flag);
    }
    if (p->first_layers == 0 || p->last_layers == 0) {
        return MC_FAIL(MC_INVALID, "%s 0: a stage needs at least one layer; give 1 or more",
                       p->first_layers == 0 ? FLAG_FIRST : FLAG_LAST);
    }
    if (p->account_embedding || p->account_loss) {
        return MC_FAIL(MC_INVALID, "%s fixes the layers of a stage, %s computes them; drop one of the two", flag,
                       p->account_embedding ? FLAG_EMBEDDING : FLAG_LOSS);
    }
    return MC_OK;
}

static mc_status refuse(const pp_partition *p, int rest, int rest_stages, const char *what)
{
    list l = remedies(p);
    return MC_FAIL(MC_INVALID,
                   "--num-layers %d over --pipeline-model-parallel-size %d: %d %s cannot be divided evenly over %d %s, "
                   "at least one each; use %s",
                   p->n_layers, p->n_stages, rest, what, rest_stages, rest_stages == 1 ? "stage" : "stages", l.text);
}

mc_status pp_partition_layers(const pp_partition *p, int *first_out, int *count_out)
{
    if (p->n_layers < 1 || p->n_stages < 1) {
        return MC_FAIL(MC_INVALID, "--num-layers %d over --pipeline-model-parallel-size %d: both must be at least 1",
                       p->n_layers, p->n_stages);
    }
    MC_TRY(check_fixed(p));
    int first = p->first_layers >= 0 ? p->first_layers : 0, last = p->last_layers >= 0 ? p->last_layers : 0;
    int rest = p->n_layers - first - last + (p->account_embedding ? 1 : 0) + (p->account_loss ? 1 : 0);
    int rest_stages = p->n_stages - (first > 0) - (last > 0);
    if (!divides(rest, rest_stages)) {
        const char *what = first > 0 || last > 0                     ? "layers left beside the fixed stages"
                           : p->account_embedding || p->account_loss ? "layers (embedding or loss counted as one)"
                                                                     : "layers";
        return refuse(p, rest, rest_stages, what);
    }
    int share = rest_stages > 0 ? rest / rest_stages : 0;
    int next = 0;
    for (int s = 0; s < p->n_stages; s++) {
        int count = s == 0 && first > 0 ? first : s == p->n_stages - 1 && last > 0 ? last : share;
        count -= s == 0 && p->account_embedding ? 1 : 0;
        count -= s == p->n_stages - 1 && p->account_loss ? 1 : 0;
        first_out[s] = next;
        count_out[s] = count;
        next += count;
    }
    MC_ASSERT(next == p->n_layers);
    return MC_OK;
}
