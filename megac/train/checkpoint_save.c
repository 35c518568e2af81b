/* The collective save: every step ends with an agreement, so that all ranks go on or all give up. */
#include <string.h>

#include "megac/base/alloc.h"
#include "megac/train/ckpt_impl.h"

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
    mc_request req;
    if (comm->rank > 0) {
        if (mine->bytes == 0) {
            return MC_OK;
        }
        MC_TRY(mc_comm_send_begin(comm, mc_tensor_1d(mine->data, MC_U8, (int64_t)mine->bytes), 0, &req));
        return mc_comm_wait(&req);
    }
    size_t at = 0;
    for (int r = 0; r < comm->size; r++) {
        if (r == 0 && mine->bytes > 0) {
            memcpy(g->all, mine->data, mine->bytes);
        } else if (r > 0 && g->bytes[r] > 0) {
            MC_TRY(mc_comm_recv_begin(comm, mc_tensor_1d(g->all + at, MC_U8, g->bytes[r]), r, &req));
            MC_TRY(mc_comm_wait(&req));
        }
        at += (size_t)g->bytes[r];
    }
    return MC_OK;
}

static mc_status write_and_describe(const char *dir, const mt_ckpt_state *state, mt_i_shard *shard, mt_text *table)
{
    char tmp[MC_PATH_BYTES];
    MC_TRY(mt_i_iter_path(tmp, dir, state->iteration, ".tmp"));
    MC_TRY(mt_i_shard_write(tmp, state->iteration, shard));
    mt_i_shard_table(shard, table);
    MC_TRY(table->st);
    return table->bytes <= INT32_MAX ? MC_OK
                                     : MC_FAIL(MC_INVALID, "slice table of %zu bytes: too many tensors", table->bytes);
}

static mc_status save_steps(const char *dir, const mc_comm *comm, const mt_ckpt_state *state, mt_i_shard *shard,
                            mt_text *table, gather *g)
{
    MC_TRY(agree(comm, comm->rank == 0 ? mt_i_save_begin(dir, state->iteration) : MC_OK));
    MC_TRY(agree(comm, write_and_describe(dir, state, shard, table)));
    int32_t bytes = (int32_t)table->bytes;
    MC_TRY(mc_comm_all_gather(comm, mc_tensor_1d(&bytes, MC_I32, 1), mc_tensor_1d(g->bytes, MC_I32, comm->size)));
    MC_TRY(agree(comm, gather_make_room(comm, g)));
    MC_TRY(agree(comm, gather_move(comm, table, g)));
    return agree(comm, comm->rank == 0 ? mt_i_save_publish(dir, state, comm->size, g->all) : MC_OK);
}

mc_status mt_checkpoint_save(const char *dir, mc_world *world, const mt_ckpt_state *state, const mt_ckpt_item *items,
                             int n_items)
{
    const mc_comm *comm = mc_world_comm(world);
    mt_i_shard shard = {0};
    mt_text table = {0};
    gather g = {0};
    mc_status st = mt_i_shard_plan(items, n_items, comm->rank, comm->size, &shard);
    if (st == MC_OK) {
        st = MC_NEW_N(&g.bytes, comm->size, "sizes of slice tables");
    }
    st = agree(comm, st);
    if (st == MC_OK) {
        st = save_steps(dir, comm, state, &shard, &table, &g);
        if (st != MC_OK && comm->rank == 0) {
            mt_i_save_undo(dir, state->iteration);
        }
    }
    mc_free(g.all);
    mc_free(g.bytes);
    mt_text_fini(&table);
    mt_i_shard_fini(&shard);
    return st;
}
