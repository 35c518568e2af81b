#include "megac/train/checkpoint/ckpt_retain.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "megac/base/alloc.h"
#include "megac/base/log.h"
#include "megac/train/checkpoint/ckpt_impl.h"

static void remove_one(const char *dir, const char *name)
{
    char path[MC_PATH_BYTES], gone[MC_PATH_BYTES];
    mc_status st = mc_path_format(path, "%s/%s", dir, name);
    if (st == MC_OK && strchr(name, '.')) {
        st = mc_file_remove_tree(path);
    } else if (st == MC_OK) {
        st = mc_path_format(gone, "%s.gone", path);
        st = st == MC_OK ? mc_file_rename(path, gone) : st;
        st = st == MC_OK ? mc_file_remove_tree(gone) : st;
    }
    if (st != MC_OK) {
        MC_WARN("%s/%s could not be removed; it takes space, and nothing else", dir, name);
    }
}

/* Iterations of the whole checkpoints in `dir`, newest first. */
typedef struct iterations {
    int64_t *v;
    int n, cap;
} iterations;

static mc_status add(iterations *all, int64_t v)
{
    if (all->n == all->cap) {
        int cap = all->cap ? 2 * all->cap : 64;
        MC_TRY(MC_MORE(&all->v, all->n, cap, "names of checkpoints"));
        all->cap = cap;
    }
    all->v[all->n++] = v;
    return MC_OK;
}

static int newest_first(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x < y) - (x > y);
}

/* Lists whole checkpoints; removes leftovers of saves and removals that were interrupted. */
static mc_status sweep(const char *dir, iterations *all)
{
    char whole[MC_PATH_BYTES];
    mc_status st = MC_OK;
    DIR *d = opendir(dir);
    for (struct dirent *e; d && st == MC_OK && (e = readdir(d));) {
        int64_t iteration;
        const char *suffix;
        if (!mt_i_iter_parse(e->d_name, &iteration, &suffix)) {
            continue;
        }
        if (*suffix == '\0') {
            st = add(all, iteration);
            continue;
        }
        st = mt_i_iter_path(whole, dir, iteration, "");
        bool superseded = strcmp(suffix, ".old") == 0 && st == MC_OK && mc_file_is_dir(whole);
        if (strcmp(suffix, ".tmp") == 0 || strcmp(suffix, ".gone") == 0 || superseded) {
            remove_one(dir, e->d_name);
        }
    }
    if (d) {
        closedir(d);
    }
    return st;
}

void mt_checkpoint_retain(const char *dir, const mt_retain *p)
{
    iterations all = {0};
    mc_status st = sweep(dir, &all);
    if (all.n > 0) {
        qsort(all.v, (size_t)all.n, sizeof *all.v, newest_first);
    }
    int64_t kept = 0;
    for (int i = 0; i < all.n && st == MC_OK && p->keep_last > 0; i++) {
        int64_t v = all.v[i];
        char name[32];
        if (v > p->newest) {
            continue;
        }
        bool stays = kept < p->keep_last || v == p->newest || v == p->best || (p->interval > 0 && v % p->interval == 0);
        kept++;
        if (!stays) {
            snprintf(name, sizeof name, "iter_%07lld", (long long)v);
            remove_one(dir, name);
        }
    }
    mc_free(all.v);
}

mc_status mt_checkpoint_mark_best(const char *dir, int64_t iteration)
{
    char path[MC_PATH_BYTES], number[32];
    MC_TRY(mc_path_format(path, "%s/best_checkpointed_iteration.txt", dir));
    int n = snprintf(number, sizeof number, "%lld\n", (long long)iteration);
    return mc_file_replace(path, number, (size_t)n);
}
