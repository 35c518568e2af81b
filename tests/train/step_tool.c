/* One step of the model on one rank, written out for an independent implementation to check: the same flags as `megac
 * train`, preceded by the output prefix; with --load, from a checkpoint's weights. Writes PREFIX.params.safetensors and
 * PREFIX.grads.safetensors under the parameters' names, PREFIX.batch.safetensors with tokens, targets and loss_mask
 * (B,T), and prints the mean loss. */
#include <stdio.h>
#include <string.h>

#include "megac/base/alloc.h"
#include "megac/base/file.h"
#include "megac/train/checkpoint/safetensors.h"
#include "megac/train/commands/commands.h"
#include "megac/train/run.h"

typedef struct named {
    const char *name;
    mc_tensor t;
} named;

static mc_status write_tensors(const char *prefix, const char *what, const named *all, int n)
{
    char path[4096];
    mt_st_tensor *rows;
    mt_st_writer *w = NULL;
    mc_status st = MC_OK;
    snprintf(path, sizeof path, "%s.%s.safetensors", prefix, what);
    MC_TRY(MC_NEW_N(&rows, n, "tensors"));
    for (int i = 0; i < n; i++) {
        rows[i] =
            (mt_st_tensor){.name = all[i].name, .dtype = mt_st_dtype_of(all[i].t.dtype), .n_dims = all[i].t.n_dims};
        memcpy(rows[i].shape, all[i].t.dims, sizeof(int64_t) * (size_t)all[i].t.n_dims);
    }
    MC_TRY_GOTO(st, mt_st_writer_create(path, rows, n, NULL, 0, &w), undo_rows);
    for (int i = 0; i < n && st == MC_OK; i++) {
        st = mt_st_writer_append(w, all[i].t.data, mc_tensor_bytes(all[i].t));
    }
    if (st == MC_OK) {
        st = mt_st_writer_finish(w);
    }
undo_rows:
    mt_st_writer_destroy(w);
    mc_free(rows);
    return st;
}

static mc_status write_slab(const char *prefix, const char *what, const mt_params *p, mc_tensor slab)
{
    named *all;
    MC_TRY(MC_NEW_N(&all, p->n_rows, "tensors"));
    for (int i = 0; i < p->n_rows; i++) {
        all[i] = (named){p->rows[i].name, mt_params_view(p, i, slab)};
    }
    mc_status st = write_tensors(prefix, what, all, p->n_rows);
    mc_free(all);
    return st;
}

/* All micro-batches of the step as one batch. */
static mc_status write_batch(const char *prefix, const mt_run *run, int n_micro)
{
    int64_t micro = run->o->micro_batch_size, seq = run->o->seq_length, rows = micro * n_micro;
    int32_t *tokens = NULL, *targets = NULL;
    float *mask = NULL;
    mc_status st;
    MC_TRY_GOTO(st, MC_NEW_N(&tokens, rows * seq, "tokens"), undo_all);
    MC_TRY_GOTO(st, MC_NEW_N(&targets, rows * seq, "targets"), undo_all);
    MC_TRY_GOTO(st, MC_NEW_N(&mask, rows * seq, "loss mask"), undo_all);
    for (int m = 0; m < n_micro; m++) {
        ds_batch b = ds_loader_batch(run->train.loader, m);
        memcpy(tokens + m * micro * seq, b.tokens, sizeof *tokens * (size_t)(micro * seq));
        memcpy(targets + m * micro * seq, b.targets, sizeof *targets * (size_t)(micro * seq));
        memcpy(mask + m * micro * seq, b.weights, sizeof *mask * (size_t)(micro * seq));
    }
    const named all[] = {{"tokens", mc_tensor_2d(tokens, MC_I32, rows, seq)},
                         {"targets", mc_tensor_2d(targets, MC_I32, rows, seq)},
                         {"loss_mask", mc_tensor_2d(mask, MC_F32, rows, seq)}};
    st = write_tensors(prefix, "batch", all, 3);
undo_all:
    mc_free(tokens);
    mc_free(targets);
    mc_free(mask);
    return st;
}

static mc_status one_step(mt_run *run, mt_weights *weights, const char *prefix)
{
    double weight, loss;
    pp_stats stats;
    MC_TRY(mt_source_open(run->o, DS_TRAIN, false, &run->train.source));
    MC_TRY(mt_engine_create(run->o, MT_FOR_TRAINING, run->world, run->train.source, &run->e));
    mt_engine *e = run->e;
    if (weights) {
        MC_TRY(mt_engine_load(e, weights));
    }
    int n_micro = e->setup.max_micro;
    ds_loader_config c = mt_setup_loader(&e->setup, 0, run->train.source);
    MC_TRY(ds_loader_create(&c, &run->train.loader));
    MC_TRY(ds_loader_request(run->train.loader, 0, n_micro));
    MC_TRY(ds_loader_next(run->train.loader, &weight));
    MC_TRY(mt_engine_run_step(e, run->train.loader, n_micro, true, 1 / weight, &stats));
    MC_TRY(write_slab(prefix, "params", &e->stage->params, e->stage->shards.param_store));
    MC_TRY(write_slab(prefix, "grads", &e->stage->params, e->stage->shards.grad_store));
    MC_TRY(write_batch(prefix, run, n_micro));
    MC_TRY(mt_engine_loss_sum(e, n_micro, &loss));
    printf("%.17g\n", loss / weight);
    return MC_OK;
}

int main(int argc, char **argv)
{
    mc_job job = {.rank = 0, .size = 1, .local_size = 1, .launcher = "none"};
    mt_session session;
    mt_run run = {0};
    if (argc < 2) {
        fprintf(stderr, "usage: step_tool PREFIX TRAIN_FLAGS...\n");
        return 2;
    }
    mc_status st = mt_session_open(&session, MT_TRAIN, &job, argc - 2, argv + 2);
    if (st == MC_OK) {
        run.o = session.o;
        run.world = session.world;
        st = one_step(&run, session.weights, argv[1]);
        ds_loader_destroy(run.train.loader);
        ds_source_close(run.train.source);
        mt_engine_destroy(run.e);
        mt_session_close(&session, st);
    }
    return mc_status_exit(st);
}
