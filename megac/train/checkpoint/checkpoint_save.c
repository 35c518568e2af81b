/* The collective save: every step ends with an agreement, so that all ranks go on or all give up. Only the writing of
 * the shards, in the middle, is each rank's own. */
#include <stdio.h>
#include <string.h>

#include "megac/base/alloc.h"
#include "megac/train/checkpoint/ckpt_impl.h"

/* Sizes of the ranks' tables; on rank 0 the tables themselves, one after the other, with a NUL. */
typedef struct gather {
    int32_t *bytes;
    char *all;
} gather;

/* MC_OK when every rank says so; else this rank's own code, or the largest of the others (whose detector has spoken).
 */
static mc_status agree(const mc_comm *comm, mc_status mine)
{
    int32_t code = (int32_t)mine;
    mc_tensor t = mc_tensor_1d(&code, MC_I32, 1);
    MC_TRY(mc_comm_all_reduce(comm, t, t, MC_MAX));
    return mine != MC_OK ? mine : (mc_status)code;
}

static mc_status gather_make_room(const mc_comm *comm, gather *g)
{
    size_t total = 1;
    for (int r = 0; r < comm->size; r++) {
        total += (size_t)g->bytes[r];
    }
    return comm->rank == 0 ? mc_alloc(total, 1, "slice tables of all ranks", (void **)&g->all) : MC_OK;
}

/* Point to point, so that only rank 0 holds the tables of thousands of ranks. */
static mc_status gather_move(const mc_comm *comm, const mt_text *mine, gather *g)
{
    if (comm->rank > 0) {
        mc_tensor all = mc_tensor_1d(mine->data, MC_U8, (int64_t)mine->bytes);
        return mine->bytes > 0 ? mc_comm_send(comm, all, 0) : MC_OK;
    }
    size_t at = 0;
    for (int r = 0; r < comm->size; r++) {
        if (r == 0 && mine->bytes > 0) {
            memcpy(g->all, mine->data, mine->bytes);
        } else if (r > 0 && g->bytes[r] > 0) {
            MC_TRY(mc_comm_recv(comm, mc_tensor_1d(g->all + at, MC_U8, g->bytes[r]), r));
        }
        at += (size_t)g->bytes[r];
    }
    return MC_OK;
}

struct mt_ckpt_writer {
    char *dir;
    mc_world *world;
    const mc_comm *comm; /* its communicator */
    mt_ckpt_state state;
    mt_i_shard shard;
    mt_text table;
    gather gathered;
};

/* In the ledger: on its own at `file` of the checkpoint. */
static uint64_t note(const mt_ckpt_writer *w, const char *file)
{
    char what[48], path[MC_PATH_BYTES];
    snprintf(what, sizeof what, "saves iteration %lld:", (long long)w->state.iteration);
    snprintf(path, sizeof path, "%s/iter_%07lld.tmp/%s", w->dir, (long long)w->state.iteration, file);
    return mc_world_own_begin(w->world, what, path);
}

uint64_t mt_ckpt_note(const mt_ckpt_writer *w)
{
    return note(w, w->shard.file);
}

static mc_status open_shard(mt_ckpt_writer *w)
{
    char tmp[MC_PATH_BYTES];
    MC_TRY(mt_i_iter_path(tmp, w->dir, w->state.iteration, ".tmp"));
    uint64_t own = mt_ckpt_note(w);
    mc_status st = mt_i_shard_open(tmp, w->state.iteration, &w->shard);
    mc_world_own_end(w->world, own);
    return st;
}

/* What rank 0 does for all: before the others open their shards, and after they have written them. */
static mc_status make_directory(const mt_ckpt_writer *w)
{
    if (w->comm->rank != 0) {
        return MC_OK;
    }
    uint64_t own = note(w, "");
    mc_status st = mt_i_save_begin(w->dir, w->state.iteration);
    mc_world_own_end(w->world, own);
    return st;
}

static mc_status publish(mt_ckpt_writer *w)
{
    if (w->comm->rank != 0) {
        return MC_OK;
    }
    uint64_t own = note(w, "metadata.json");
    mc_status st = mt_i_save_publish(w->dir, &w->state, w->comm->size, w->gathered.all);
    mc_world_own_end(w->world, own);
    return st;
}

static mc_status describe(mt_ckpt_writer *w)
{
    mt_i_shard_table(&w->shard, &w->table);
    MC_TRY(w->table.st);
    return w->table.bytes <= INT32_MAX
               ? MC_OK
               : MC_FAIL(MC_INVALID, "slice table of %zu bytes: too many tensors", w->table.bytes);
}

/* A failed save leaves nothing behind. */
static mc_status undo(const mt_ckpt_writer *w, mc_status st)
{
    if (st != MC_OK && w->comm->rank == 0) {
        mt_i_save_undo(w->dir, w->state.iteration);
    }
    return st;
}

static mc_status begin_steps(mt_ckpt_writer *w, mc_status mine)
{
    MC_TRY(agree(w->comm, mine));
    MC_TRY(agree(w->comm, make_directory(w)));
    return undo(w, agree(w->comm, open_shard(w)));
}

mc_status mt_ckpt_begin(const char *dir, mc_world *world, const mt_ckpt_state *state, const mt_ckpt_item *items,
                        int n_items, mt_ckpt_writer **writer_out)
{
    const mc_comm *comm = mc_world_comm(world);
    mt_ckpt_writer *w;
    MC_TRY(MC_NEW(&w, "checkpoint writer"));
    w->world = world;
    w->comm = comm;
    w->state = *state;
    mc_status st = mc_strdup(dir, "checkpoint path", &w->dir);
    if (st == MC_OK) {
        st = mt_i_shard_plan(items, n_items, comm->rank, comm->size, &w->shard);
    }
    if (st == MC_OK) {
        st = MC_NEW_N(&w->gathered.bytes, comm->size, "sizes of slice tables");
    }
    st = begin_steps(w, st);
    if (st != MC_OK) {
        mt_ckpt_writer_destroy(w);
        return st;
    }
    *writer_out = w;
    return MC_OK;
}

mc_status mt_ckpt_write(mt_ckpt_writer *w)
{
    return mt_i_shard_write(&w->shard);
}

static mc_status commit_steps(mt_ckpt_writer *w, mc_status written)
{
    gather *g = &w->gathered;
    MC_TRY(agree(w->comm, written));
    MC_TRY(agree(w->comm, describe(w)));
    int32_t bytes = (int32_t)w->table.bytes;
    MC_TRY(mc_comm_all_gather(w->comm, mc_tensor_1d(&bytes, MC_I32, 1), mc_tensor_1d(g->bytes, MC_I32, w->comm->size)));
    MC_TRY(agree(w->comm, gather_make_room(w->comm, g)));
    MC_TRY(agree(w->comm, gather_move(w->comm, &w->table, g)));
    return agree(w->comm, publish(w));
}

mc_status mt_ckpt_commit(mt_ckpt_writer *w, mc_status written)
{
    return undo(w, commit_steps(w, written));
}

void mt_ckpt_writer_destroy(mt_ckpt_writer *w)
{
    if (!w) {
        return;
    }
    mc_free(w->gathered.all);
    mc_free(w->gathered.bytes);
    mt_text_fini(&w->table);
    mt_i_shard_fini(&w->shard);
    mc_free(w->dir);
    mc_free(w);
}

mc_status mt_checkpoint_save(const char *dir, mc_world *world, const mt_ckpt_state *state, const mt_ckpt_item *items,
                             int n_items)
{
    mt_ckpt_writer *w;
    MC_TRY(mt_ckpt_begin(dir, world, state, items, n_items, &w));
    uint64_t own = mt_ckpt_note(w);
    mc_status st = mt_ckpt_write(w);
    mc_world_own_end(world, own);
    st = mt_ckpt_commit(w, st);
    mt_ckpt_writer_destroy(w);
    return st;
}
