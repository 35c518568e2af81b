/* Names in a save directory, and the steps that make a written checkpoint the latest one. */
#include <stdio.h>
#include <string.h>

#include "megac/base/alloc.h"
#include "megac/train/checkpoint/ckpt_impl.h"

mc_status mt_i_iter_path(char *out, const char *dir, int64_t iteration, const char *suffix)
{
    return mc_path_format(out, "%s/iter_%07lld%s", dir, (long long)iteration, suffix);
}

bool mt_i_iter_parse(const char *name, int64_t *iteration_out, const char **suffix_out)
{
    long long v;
    int end = 0;
    if (sscanf(name, "iter_%lld%n", &v, &end) != 1 || end == 0 || v < 0) {
        return false;
    }
    *iteration_out = v;
    *suffix_out = name + end;
    return true;
}

mc_status mt_i_save_begin(const char *dir, int64_t iteration)
{
    char tmp[MC_PATH_BYTES];
    if (iteration < 0) {
        return MC_FAIL(MC_INVALID, "cannot save iteration %lld; it must be >= 0", (long long)iteration);
    }
    MC_TRY(mt_i_iter_path(tmp, dir, iteration, ".tmp"));
    MC_TRY(mc_file_remove_tree(tmp));
    return mc_file_make_dirs(tmp);
}

void mt_i_save_undo(const char *dir, int64_t iteration)
{
    char tmp[MC_PATH_BYTES];
    mc_status ignored = mt_i_iter_path(tmp, dir, iteration, ".tmp");
    ignored = ignored == MC_OK ? mc_file_remove_tree(tmp) : ignored;
    (void)ignored;
}

static mc_status write_durable(const char *dir, const char *name, const void *data, size_t bytes)
{
    char path[MC_PATH_BYTES];
    int fd = -1;
    MC_TRY(mc_path_format(path, "%s/%s", dir, name));
    MC_TRY(mc_file_create(path, &fd));
    mc_status st = mc_file_write(fd, path, data, bytes);
    if (st == MC_OK) {
        st = mc_file_sync(fd, path);
    }
    MC_KEEP_FIRST(st, mc_file_close(fd, path));
    return st;
}

/* Rank 0 must see, in full, what the others say they wrote: with node-local directories it does not. */
static mc_status check_shards(const char *dir, int world, const char *tables)
{
    char path[MC_PATH_BYTES];
    for (const char *p = tables; *p; p = strchr(p, '\n') + 1) {
        int rank;
        unsigned long long bytes;
        uint64_t seen = 0;
        if (*p != 'f') {
            continue;
        }
        MC_ASSERT(sscanf(p, "file %d %llu", &rank, &bytes) == 2);
        MC_TRY(mc_path_format(path, "%s/shard_%05d_of_%05d.safetensors", dir, rank, world));
        if (!mc_file_exists(path)) {
            return MC_FAIL(MC_IO,
                           "rank 0 cannot see %s, which rank %d wrote; --save needs a directory that all nodes share",
                           path, rank);
        }
        MC_TRY(mc_file_stat(path, &seen));
        if (seen != bytes) {
            return MC_FAIL(MC_IO, "%s has %llu bytes, rank %d wrote %llu; check the file system", path,
                           (unsigned long long)seen, rank, bytes);
        }
    }
    return MC_OK;
}

static mc_status write_metadata(const char *tmp, const mt_ckpt_state *state, int world, const char *tables)
{
    mt_text text = {0};
    mc_status st = mt_i_metadata_make(state, world, tables, &text);
    if (st == MC_OK && text.bytes > MT_I_MAX_METADATA_BYTES) {
        st = MC_FAIL(MC_INVALID, "checkpoint: %s would have %zu bytes, at most %d can be read back", MT_I_METADATA,
                     text.bytes, MT_I_MAX_METADATA_BYTES);
    }
    if (st == MC_OK) {
        st = write_durable(tmp, MT_I_METADATA, text.data, text.bytes);
    }
    mt_text_fini(&text);
    return st;
}

/* tmp becomes `final`. A checkpoint of that name is swapped out in one step where the file system can; otherwise it
 * stands aside as ".old" for a moment, where open finds it should the program die in between. */
static mc_status move_in_place(const char *dir, const char *tmp, const char *final, int64_t iteration)
{
    char old[MC_PATH_BYTES];
    if (!mc_file_exists(final)) {
        return mc_file_rename(tmp, final);
    }
    mc_status st = mc_file_exchange(tmp, final);
    if (st != MC_UNSUPPORTED) {
        return st;
    }
    MC_TRY(mt_i_iter_path(old, dir, iteration, ".old"));
    MC_TRY(mc_file_remove_tree(old));
    MC_TRY(mc_file_rename(final, old));
    st = mc_file_rename(tmp, final);
    if (st != MC_OK) {
        mc_status back = mc_file_rename(old, final);
        (void)back;
        return st;
    }
    MC_TRY(mc_file_sync_dir(dir));
    return mc_file_remove_tree(old);
}

mc_status mt_i_save_publish(const char *dir, const mt_ckpt_state *state, int world, const char *tables)
{
    char tmp[MC_PATH_BYTES], final[MC_PATH_BYTES], latest[MC_PATH_BYTES], number[32];
    MC_TRY(mt_i_iter_path(tmp, dir, state->iteration, ".tmp"));
    MC_TRY(mt_i_iter_path(final, dir, state->iteration, ""));
    MC_TRY(mc_path_format(latest, "%s/%s", dir, MT_I_LATEST));
    MC_TRY(check_shards(tmp, world, tables));
    if (state->tokenizer) {
        if (state->tokenizer_bytes > MT_I_MAX_TOKENIZER_BYTES) {
            return MC_FAIL(MC_INVALID, "tokenizer file of %llu bytes, at most %d fit a checkpoint",
                           (unsigned long long)state->tokenizer_bytes, MT_I_MAX_TOKENIZER_BYTES);
        }
        MC_TRY(write_durable(tmp, MT_I_TOKENIZER, state->tokenizer, (size_t)state->tokenizer_bytes));
    }
    MC_TRY(write_metadata(tmp, state, world, tables));
    MC_TRY(mc_file_sync_dir(tmp));
    MC_TRY(move_in_place(dir, tmp, final, state->iteration));
    MC_TRY(mc_file_sync_dir(dir));
    int n = snprintf(number, sizeof number, "%lld\n", (long long)state->iteration);
    MC_TRY(mc_file_replace(latest, number, (size_t)n));
    mt_i_save_undo(dir, state->iteration); /* what was swapped out */
    return MC_OK;
}
