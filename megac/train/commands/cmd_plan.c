/* megac plan: the memory of every rank, without running. */
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "megac/base/alloc.h"
#include "megac/train/commands/commands.h"
#include "megac/train/model/plan_formulas.h"
#include "megac/train/run.h"

/* One rank stands for all that reserve the same: the first of each pipeline stage and tensor-parallel rank (a
 * vocabulary or key/value split can differ between these), of data-parallel coordinate 0. */
typedef struct plan_row {
    int rank, stage, tp_rank;
    mt_memory_plan memory;
} plan_row;

static mc_status make_rows(const mt_setup *s, plan_row *rows, int *n_out)
{
    int n = 0;
    for (int rank = 0; rank < s->world_size; rank++) {
        mt_place p = mt_setup_place(s, rank);
        if (p.dp_rank == 0) {
            mt_memory_request rq = mt_setup_memory(s, rank);
            rows[n] = (plan_row){.rank = rank, .stage = p.stage, .tp_rank = p.tp_rank};
            MC_TRY(mt_memory_measure(&rq, &rows[n].memory));
            n++;
        }
    }
    *n_out = n;
    return MC_OK;
}

/* The row with the most on its device. */
static int largest(const mt_setup *s, const plan_row *rows, int n)
{
    int best = 0;
    for (int i = 1; i < n; i++) {
        bool more =
            mt_memory_on_device(&rows[i].memory, s->device) > mt_memory_on_device(&rows[best].memory, s->device);
        best = more ? i : best;
    }
    return best;
}

/* "80GB" -> 8e10; KB to TB are powers of 1000, KiB to TiB of 1024. */
static mc_status parse_bytes(const char *text, double *bytes_out)
{
    static const char units[] = "KMGT";
    char *end;
    double v = strtod(text, &end);
    const char *unit = *end ? strchr(units, *end) : NULL;
    bool binary = unit && strcmp(end + 1, "iB") == 0;
    if (end == text || !(v > 0) || !unit || (!binary && strcmp(end + 1, "B") != 0)) {
        return MC_FAIL(MC_INVALID, "--fits %s: give a size such as 80GB or 79.6GiB", text);
    }
    for (const char *u = units; u <= unit; u++) {
        v *= binary ? 1024 : 1000;
    }
    *bytes_out = v;
    return MC_OK;
}

/* --fits: MC_NOMEM (exit status 1) when the largest rank does not. */
static mc_status check_fits(const mt_setup *s, const plan_row *top)
{
    double limit, need = (double)mt_memory_on_device(&top->memory, s->device);
    if (!s->o->fits) {
        return MC_OK;
    }
    MC_TRY(parse_bytes(s->o->fits, &limit));
    if (need > limit) {
        return MC_FAIL(MC_NOMEM,
                       "--fits %s: rank %d needs %.3f GB, %.3f GB more; raise --zero, --tp or --pp, recompute "
                       "activations or lower --micro-batch-size",
                       s->o->fits, top->rank, need / 1e9, (need - limit) / 1e9);
    }
    return MC_OK;
}

static void formulas(const mt_setup *s, mt_formula out[MT_FORMULAS])
{
    const mt_options *o = s->o;
    mt_place place = mt_setup_place(s, 0);
    mt_formula_input in = {
        .model = &s->model,
        .parameters = mt_params_count(&s->model, true),
        .tp = place.tp,
        .pp = place.pp,
        .shared_by = place.dp / place.instances,
        .zero = place.zero,
        .sequence_parallel = place.sequence_parallel,
        .recompute = mt_options_recompute(o),
        .micro_batch = o->micro_batch_size,
    };
    mt_plan_formulas(&in, out);
}

static void print_table(const mt_setup *s, const plan_row *rows, int n)
{
    const int *g = s->grid.size;
    char instances[64] = "";
    mt_place place = mt_setup_place(s, 0);
    if (place.instances > 1) {
        snprintf(instances, sizeof instances, "; ZeRO in %d instances of %d replicas", place.instances,
                 place.dp / place.instances);
    }
    printf("%" PRId64 " parameters (%" PRId64 " with the padded vocabulary of %" PRId64
           "); %d ranks: TP %d x CP %d x DP %d x "
           "PP %d%s\n\n",
           mt_params_count(&s->model, true), mt_params_count(&s->model, false), s->model.padded_vocab, s->world_size,
           g[MC_AXIS_TP], g[MC_AXIS_CP], g[MC_AXIS_DP], g[MC_AXIS_PP], instances);
    printf("bytes per rank (data-parallel rank 0)\n%6s %6s %4s %15s %15s %15s %15s %15s %12s %12s %12s %12s %16s\n",
           "rank", "stage", "tp", "parameters", "gradients", "optimizer", "activations", "scratch", "process",
           "workspace", "pinned", "host", "total");
    for (int i = 0; i < n; i++) {
        const mt_memory_plan *m = &rows[i].memory;
        printf("%6d %6d %4d %15zu %15zu %15zu %15zu %15zu %12zu %12zu %12zu %12zu %16zu\n", rows[i].rank, rows[i].stage,
               rows[i].tp_rank, m->params, m->grads, m->optimizer, m->stash, m->scratch, m->process, m->workspace,
               m->pinned, m->host, mt_memory_total(m));
    }
    const plan_row *top = &rows[largest(s, rows, n)];
    double need = (double)mt_memory_on_device(&top->memory, s->device);
    printf("\nlargest: rank %d with %.3f GiB (%.3f GB) on its device\n\nfor comparison, what is commonly estimated\n",
           top->rank, need / (1 << 30), need / 1e9);
    mt_formula f[MT_FORMULAS];
    formulas(s, f);
    for (int i = 0; i < MT_FORMULAS; i++) {
        printf("%10.3f GB  %s: %s; leaves out %s\n", f[i].bytes / 1e9, f[i].name, f[i].text, f[i].leaves_out);
    }
}

static mc_status print_json(const mt_setup *s, const plan_row *rows, int n)
{
    json_t *ranks = json_array(), *root = NULL;
    for (int i = 0; i < n && ranks; i++) {
        const mt_memory_plan *m = &rows[i].memory;
        json_array_append_new(
            ranks, json_pack("{s:i, s:i, s:i, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "rank", rows[i].rank,
                             "stage", rows[i].stage, "tp_rank", rows[i].tp_rank, "parameters", (json_int_t)m->params,
                             "gradients", (json_int_t)m->grads, "optimizer", (json_int_t)m->optimizer, "activations",
                             (json_int_t)m->stash, "scratch", (json_int_t)m->scratch, "process", (json_int_t)m->process,
                             "workspace", (json_int_t)m->workspace, "pinned", (json_int_t)m->pinned, "host",
                             (json_int_t)m->host, "total", (json_int_t)mt_memory_total(m)));
    }
    mt_formula f[MT_FORMULAS];
    json_t *estimates = json_array();
    formulas(s, f);
    for (int i = 0; i < MT_FORMULAS && estimates; i++) {
        json_array_append_new(estimates, json_pack("{s:s, s:s, s:s, s:f}", "name", f[i].name, "formula", f[i].text,
                                                   "leaves_out", f[i].leaves_out, "bytes", f[i].bytes));
    }
    const plan_row *top = &rows[largest(s, rows, n)];
    mt_flops flops = mt_setup_flops(s);
    root = json_pack("{s:I, s:I, s:f, s:f, s:i, s:I, s:o, s:o}", "parameters",
                     (json_int_t)mt_params_count(&s->model, true), "padded_parameters",
                     (json_int_t)mt_params_count(&s->model, false), "flops_per_token", flops.causal,
                     "flops_per_token_full_attention", flops.full, "largest_rank", top->rank, "largest_device_bytes",
                     (json_int_t)mt_memory_on_device(&top->memory, s->device), "ranks", ranks, "estimates", estimates);
    if (!root) {
        return MC_FAIL(MC_NOMEM, "no memory for the plan as JSON");
    }
    json_dumpf(root, stdout, JSON_INDENT(2));
    printf("\n");
    json_decref(root);
    return MC_OK;
}

static mc_status plan(const mt_options *o)
{
    ds_source *source = NULL;
    mt_setup s = {0};
    plan_row *rows = NULL;
    int n;
    mc_status st;
    MC_TRY_GOTO(st, mt_source_open(o, DS_TRAIN, false, &source), undo_all);
    MC_TRY_GOTO(st, mt_setup_init(&s, o, MT_FOR_TRAINING, (int)o->world_size, 1, source), undo_all);
    MC_TRY_GOTO(st, MC_NEW_N(&rows, s.world_size, "plan rows"), undo_all);
    MC_TRY_GOTO(st, make_rows(&s, rows, &n), undo_all);
    if (o->json) {
        st = print_json(&s, rows, n);
    } else {
        print_table(&s, rows, n);
    }
    fflush(stdout);
    if (st == MC_OK) {
        st = check_fits(&s, &rows[largest(&s, rows, n)]);
    }
undo_all:
    mc_free(rows);
    mt_setup_fini(&s);
    ds_source_close(source);
    return st;
}

mc_status mt_cmd_plan(const mc_job *job, int argc, char **argv)
{
    mt_options *o;
    bool done;
    (void)job;
    MC_TRY(mt_options_parse(MT_PLAN, argc, argv, &o, &done));
    if (done) {
        return MC_OK;
    }
    mc_status st = mt_options_finish(o, 0);
    if (st == MC_OK) {
        st = plan(o);
    }
    mt_options_free(o);
    return st;
}
