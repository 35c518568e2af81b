/* What the flags of activations, computed again or offloaded, ask for together. */
#include <string.h>

#include "megac/base/log.h"
#include "megac/train/options/options_impl.h"

static const char *granularity(const mt_options *o)
{
    return o->recompute_granularity ? o->recompute_granularity : o->recompute_activations ? "selective" : "";
}

static bool names(const mt_options *o, const char *module)
{
    for (int i = 0; i < o->recompute_modules.n; i++) {
        if (strcmp(o->recompute_modules.v[i], module) == 0) {
            return true;
        }
    }
    return false;
}

static mc_status check_modules(const mt_options *o)
{
    for (int i = 0; i < o->recompute_modules.n; i++) {
        const char *module = o->recompute_modules.v[i];
        if (strcmp(module, "layernorm") == 0) {
            MC_INFO("--recompute-modules layernorm: outputs of norms are never kept; nothing to recompute");
        } else if (strcmp(module, "core_attn") != 0 && strcmp(module, "mlp") != 0) {
            return MC_FAIL(MC_INVALID, "--recompute-modules %s: this model has none; use core_attn, mlp or layernorm",
                           module);
        }
    }
    return MC_OK;
}

mc_status mt_i_check_recompute(mt_options *o)
{
    bool full = strcmp(granularity(o), "full") == 0, selective = strcmp(granularity(o), "selective") == 0;
    if (o->recompute_activations && full) {
        return MC_FAIL(MC_INVALID,
                       "--recompute-activations means --recompute-granularity selective, not full; leave one "
                       "out");
    }
    const struct {
        bool asks; /* for something: a configuration that was printed states the defaults, too */
        const char *flag;
        bool goes;
        const char *with;
    } rows[] = {
        {strcmp(o->recompute_method, "uniform") != 0, "--recompute-method", full, "full"},
        {o->recompute_num_layers > 1, "--recompute-num-layers", full, "full"},
        {o->distribute_saved_activations, "--distribute-saved-activations", full, "full"},
        {o->recompute_modules.n > 0, "--recompute-modules", selective, "selective"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        if (rows[i].asks && !rows[i].goes) {
            return MC_FAIL(MC_INVALID, "%s goes with --recompute-granularity %s; give that, or leave it out",
                           rows[i].flag, rows[i].with);
        }
    }
    if (o->cpu_offloading_num_layers > o->num_layers) {
        return MC_FAIL(MC_INVALID,
                       "--cpu-offloading-num-layers %lld: the model has --num-layers %lld; use at most that",
                       (long long)o->cpu_offloading_num_layers, (long long)o->num_layers);
    }
    int64_t tp = o->tensor_model_parallel_size, rows_of_micro = o->micro_batch_size * o->seq_length;
    if (o->distribute_saved_activations && (tp == 1 || o->sequence_parallel || rows_of_micro % tp != 0)) {
        return MC_FAIL(MC_INVALID,
                       "--distribute-saved-activations: splits the %lld rows of a micro-batch over "
                       "--tensor-model-parallel-size %lld ranks%s; leave it out",
                       (long long)rows_of_micro, (long long)tp,
                       o->sequence_parallel ? ", which --sequence-parallel has done already" : "");
    }
    return check_modules(o);
}

mt_recompute mt_options_recompute(const mt_options *o)
{
    const char *g = granularity(o);
    mt_recompute r = {.group = 1};
    if (strcmp(g, "full") == 0) {
        bool uniform = strcmp(o->recompute_method, "uniform") == 0;
        int64_t n = o->recompute_num_layers < o->num_layers ? o->recompute_num_layers : o->num_layers;
        r.full_layers = (int)(uniform ? o->num_layers : n);
        r.group = uniform ? (int)n : 1;
        r.distribute = o->distribute_saved_activations;
    } else if (strcmp(g, "selective") == 0) {
        r.core_attn = names(o, "core_attn") || o->recompute_modules.n == 0;
        r.mlp = names(o, "mlp");
    }
    return r;
}
