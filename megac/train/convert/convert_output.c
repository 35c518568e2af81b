#include "megac/train/convert/convert_output.h"

#include <dirent.h>
#include <errno.h>
#include <fnmatch.h>
#include <string.h>
#include <unistd.h>

#include "megac/base/alloc.h"
#include "megac/train/checkpoint/ckpt_impl.h"
#include "megac/train/checkpoint/ckpt_inspect.h"
#include "megac/train/convert/hf_dir.h"

enum { COPY_BYTES = 1 << 18 };

/* What belongs to a tokenizer or to generation, in any of transformers' spellings. */
static const char *const carried[] = {
    "tokenizer*",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "generation_config.json",
    "*.tiktoken",
    "spiece.model",
    "sentencepiece*.model",
};

static bool is_empty(const char *path)
{
    DIR *d = opendir(path);
    bool empty = d != NULL;
    for (struct dirent *e; d && (e = readdir(d));) {
        empty = empty && (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0);
    }
    if (d) {
        closedir(d);
    }
    return empty;
}

mc_status mt_output_begin(mt_output *out, const char *path)
{
    MC_TRY(mc_path_format(out->path, "%s", path));
    for (size_t n = strlen(out->path); n > 1 && out->path[n - 1] == '/'; n--) {
        out->path[n - 1] = '\0';
    }
    if (mc_file_exists(out->path) && !is_empty(out->path)) {
        return MC_FAIL(MC_INVALID, "--output %s is there already; give a new directory, or remove it first", path);
    }
    MC_TRY(mc_path_format(out->tmp, "%s.megac-convert-tmp", out->path));
    MC_TRY(mc_file_remove_tree(out->tmp));
    return mc_file_make_dirs(out->tmp);
}

mc_status mt_output_publish(const mt_output *out)
{
    char parent[MC_PATH_BYTES];
    MC_TRY(mc_path_parent(parent, out->path));
    MC_TRY(mc_file_sync_dir(out->tmp));
    MC_TRY(mc_file_rename(out->tmp, out->path));
    return mc_file_sync_dir(parent);
}

void mt_output_undo(const mt_output *out)
{
    mc_status ignored = mc_file_remove_tree(out->tmp);
    (void)ignored;
}

mc_status mt_output_write(const mt_output *out, const char *name, const void *data, size_t bytes)
{
    char path[MC_PATH_BYTES];
    MC_TRY(mc_path_format(path, "%s/%s", out->tmp, name));
    return mc_file_replace(path, data, bytes);
}

static mc_status copy_bytes(int from, const char *from_path, int to, const char *to_path, uint64_t bytes)
{
    char *buffer;
    MC_TRY(mc_alloc(COPY_BYTES, 1, "copy buffer", (void **)&buffer));
    mc_status st = MC_OK;
    while (bytes > 0 && st == MC_OK) {
        size_t n = bytes < COPY_BYTES ? (size_t)bytes : COPY_BYTES;
        st = mc_file_read(from, from_path, buffer, n);
        if (st == MC_OK) {
            st = mc_file_write(to, to_path, buffer, n);
        }
        bytes -= n;
    }
    mc_free(buffer);
    return st;
}

static mc_status copy_file(const char *from_path, const char *to_path)
{
    int from = -1, to = -1;
    uint64_t bytes;
    MC_TRY(mc_file_stat(from_path, &bytes));
    MC_TRY(mc_file_open(from_path, &from));
    mc_status st = mc_file_create(to_path, &to);
    if (st == MC_OK) {
        st = copy_bytes(from, from_path, to, to_path, bytes);
        if (st == MC_OK) {
            st = mc_file_sync(to, to_path);
        }
        MC_KEEP_FIRST(st, mc_file_close(to, to_path));
    }
    close(from);
    return st;
}

static bool is_carried(const char *name, bool config)
{
    for (size_t i = 0; i < sizeof carried / sizeof *carried; i++) {
        if (fnmatch(carried[i], name, 0) == 0) {
            return true;
        }
    }
    return config && strcmp(name, "config.json") == 0;
}

static mc_status carry_one(const char *dir, const char *name, const char *to)
{
    char from_path[MC_PATH_BYTES], to_path[MC_PATH_BYTES];
    MC_TRY(mc_path_format(from_path, "%s/%s", dir, name));
    if (mc_file_is_dir(from_path)) {
        return MC_OK;
    }
    MC_TRY(mc_file_make_dirs(to));
    MC_TRY(mc_path_format(to_path, "%s/%s", to, name));
    return copy_file(from_path, to_path);
}

mc_status mt_carry(const char *dir, bool config, const char *to)
{
    DIR *d = opendir(dir);
    mc_status st = MC_OK;
    if (!d) {
        return errno == ENOENT ? MC_OK : mc_file_fail("open directory", dir, errno);
    }
    for (struct dirent *e; st == MC_OK && (e = readdir(d));) {
        if (is_carried(e->d_name, config)) {
            st = carry_one(dir, e->d_name, to);
        }
    }
    closedir(d);
    return st == MC_OK && mc_file_is_dir(to) ? mc_file_sync_dir(to) : st;
}

mc_status mt_carried_dir(const char *model, char *out)
{
    char metadata[MC_PATH_BYTES];
    if (mt_hf_is(model) && !mt_checkpoint_is(model)) {
        return mc_path_format(out, "%s", model);
    }
    MC_TRY(mc_path_format(metadata, "%s/%s", model, MT_I_METADATA));
    return mc_path_format(out, "%s%s/%s", model, mc_file_exists(metadata) ? "/.." : "", MT_CARRIED);
}
