/* Saving the test tables: all ranks of a layout one after the other in one process, or one rank through the collective
 * save. */
#ifndef TESTS_TRAIN_CKPT_SAVE_H
#define TESTS_TRAIN_CKPT_SAVE_H

#include "megac/train/checkpoint/ckpt_impl.h"
#include "tests/train/ckpt_tables.h"

static inline mc_status ckpt_save_rank(const char *tmp, const ckpt_layout *l, int rank, int64_t iteration, int salt,
                                       mt_text *tables)
{
    ckpt_rank r;
    mt_i_shard shard;
    ckpt_make(&r, l, rank);
    ckpt_fill(&r, salt);
    mc_status st = mt_i_shard_plan(r.items, r.n_items, rank, l->tp * l->pp, &shard);
    if (st == MC_OK) {
        st = mt_i_shard_open(tmp, iteration, &shard);
        st = st == MC_OK ? mt_i_shard_write(&shard) : st;
        mt_i_shard_table(&shard, tables);
        mt_i_shard_fini(&shard);
    }
    ckpt_drop(&r);
    return st;
}

static inline mc_status ckpt_save_all(const char *dir, const ckpt_layout *l, int64_t iteration, int salt)
{
    char tmp[MC_PATH_BYTES];
    mt_text tables = {0};
    mt_ckpt_state state = ckpt_state(iteration);
    mc_status st = mt_i_save_begin(dir, iteration);
    if (st == MC_OK) {
        st = mt_i_iter_path(tmp, dir, iteration, ".tmp");
    }
    for (int rank = 0; st == MC_OK && rank < l->tp * l->pp; rank++) {
        st = ckpt_save_rank(tmp, l, rank, iteration, salt, &tables);
    }
    if (st == MC_OK) {
        st = mt_i_save_publish(dir, &state, l->tp * l->pp, tables.data);
    }
    mt_text_fini(&tables);
    return st;
}

/* Loads every rank of a layout; MC_MISMATCH when a value is wrong. */
static inline mc_status ckpt_load_all(const char *path, const ckpt_layout *l, int salt)
{
    mc_status st = MC_OK;
    for (int rank = 0; st == MC_OK && rank < l->tp * l->pp; rank++) {
        mt_checkpoint *c;
        ckpt_rank r;
        st = mt_checkpoint_open(path, -1, &c);
        if (st != MC_OK) {
            return st;
        }
        ckpt_make(&r, l, rank);
        ckpt_spoil(&r);
        for (int i = 0; st == MC_OK && i < r.n_items; i++) {
            st = mt_checkpoint_read(c, &r.items[i]);
        }
        if (st == MC_OK && !ckpt_check(&r, salt)) {
            st = MC_MISMATCH;
        }
        ckpt_drop(&r);
        mt_checkpoint_close(c);
    }
    return st;
}

#endif
