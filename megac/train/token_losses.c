#include "megac/train/token_losses.h"

#include "megac/base/alloc.h"
#include "megac/base/file.h"
#include "megac/train/checkpoint/safetensors.h"

struct mt_token_losses {
    mt_engine *e;
    uint64_t left;        /* windows that have not been added */
    mt_st_writer *writer; /* of rank 0; NULL on the others */
    float *received;      /* (micro_batch, T), of rank 0 */
    bool finished;
    char path[MC_PATH_BYTES], temporary[MC_PATH_BYTES];
};

static mc_status begin_file(mt_token_losses *t)
{
    const mt_setup *s = &t->e->setup;
    int64_t micro = s->o->micro_batch_size, seq = s->model.seq_length;
    mt_st_tensor losses = {.name = "losses", .dtype = MT_ST_F32, .n_dims = 2, .shape = {(int64_t)t->left, seq}};
    MC_TRY(MC_NEW_N(&t->received, micro * seq, "token losses"));
    return mt_st_writer_create(t->temporary, &losses, 1, NULL, 0, &t->writer);
}

mc_status mt_token_losses_create(mt_engine *e, const char *path, uint64_t n_windows, mt_token_losses **losses_out)
{
    mt_token_losses *t;
    mc_status st;
    MC_TRY(MC_NEW(&t, "token losses"));
    t->e = e;
    t->left = n_windows;
    MC_TRY_GOTO(st, mc_path_format(t->path, "%s", path), undo_losses);
    MC_TRY_GOTO(st, mc_path_format(t->temporary, "%s.tmp", path), undo_losses);
    if (mc_world_job(e->world)->rank == 0) {
        MC_TRY_GOTO(st, begin_file(t), undo_losses);
    }
    *losses_out = t;
    return MC_OK;
undo_losses:
    mt_token_losses_destroy(t);
    return st;
}

mc_status mt_token_losses_add(mt_token_losses *t, int n_micro)
{
    const mt_engine *e = t->e;
    const mc_comm *world = mc_world_comm(e->world);
    int64_t windows = e->setup.o->micro_batch_size, seq = e->setup.model.seq_length;
    for (int m = 0; m < n_micro; m++) { /* samples of a step go round the replicas, micro-batch by micro-batch */
        for (int d = 0; d < e->setup.grid.size[MC_AXIS_DP]; d++) {
            int from = mt_engine_speaker(e, d);
            float *losses = from == world->rank ? (float *)e->stage->host_losses.data + m * windows * seq : t->received;
            uint64_t n = t->left < (uint64_t)windows ? t->left : (uint64_t)windows;
            t->left -= n;
            mc_tensor moved = mc_tensor_1d(losses, MC_F32, (int64_t)n * seq);
            if (n > 0 && from != 0 && world->rank == from) {
                MC_TRY(mc_comm_send(world, moved, 0));
            } else if (n > 0 && from != 0 && world->rank == 0) {
                MC_TRY(mc_comm_recv(world, moved, from));
            }
            if (n > 0 && world->rank == 0) {
                MC_TRY(mt_st_writer_append(t->writer, losses, n * (size_t)seq * sizeof *losses));
            }
        }
    }
    return MC_OK;
}

mc_status mt_token_losses_finish(mt_token_losses *t)
{
    char folder[MC_PATH_BYTES];
    MC_ASSERT(t->left == 0);
    if (t->writer) {
        MC_TRY(mt_st_writer_finish(t->writer));
        MC_TRY(mc_file_rename(t->temporary, t->path));
        t->finished = true;
        MC_TRY(mc_path_parent(folder, t->path));
        MC_TRY(mc_file_sync_dir(folder));
    }
    return MC_OK;
}

void mt_token_losses_destroy(mt_token_losses *t)
{
    if (!t) {
        return;
    }
    if (t->writer && !t->finished) {
        mc_status ignored = mc_file_remove_tree(t->temporary);
        (void)ignored;
    }
    mt_st_writer_destroy(t->writer);
    mc_free(t->received);
    mc_free(t);
}
