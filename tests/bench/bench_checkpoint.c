/* Save and load rates of a checkpoint against the same bytes written and read raw, in turn, in one run:
 *
 *   bench_checkpoint DIRECTORY [MILLION_PARAMETERS [ROUNDS]]     (default 32 million: 384 MB with moments, 3 rounds)
 *
 * Prints the median of each in MB/s and the ratios. Both sides sync what they wrote; "cold" loads follow after the
 * pages were dropped. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "megac/base/alloc.h"
#include "megac/base/file.h"
#include "megac/base/world.h"
#include "megac/train/checkpoint/checkpoint.h"

enum { HIDDEN = 1024, MAX_TENSORS = 4096, MAX_ROUNDS = 32, RAW_CALL = 64 << 20 };

typedef enum { RAW_SAVE, SAVE, RAW_COLD, COLD, RAW_WARM, WARM, KINDS } kind;
static const char *const names[KINDS] = {"raw write", "save", "raw read, cold", "load, cold", "raw read", "load"};

typedef struct bench {
    const char *dir;
    char raw[MC_PATH_BYTES], shard[MC_PATH_BYTES];
    char *data;
    size_t bytes;
    mt_param *params;
    mt_ckpt_item *items;
    int n_items;
    mc_world *world;
} bench;

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static mc_status make_items(bench *b, long rows)
{
    static const char *const prefixes[] = {"model", "optimizer.exp_avg", "optimizer.exp_avg_sq"};
    enum { TENSOR_ROWS = 1024 };
    int n = (int)((rows + TENSOR_ROWS - 1) / TENSOR_ROWS);
    n = n < MAX_TENSORS ? n : MAX_TENSORS;
    size_t one = (size_t)TENSOR_ROWS * HIDDEN * 4;
    b->bytes = 3 * (size_t)n * one;
    MC_TRY(mc_alloc(b->bytes, 1, "values", (void **)&b->data));
    MC_TRY(MC_NEW_N(&b->params, n, "parameters"));
    MC_TRY(MC_NEW_N(&b->items, 3 * n, "items"));
    for (size_t i = 0; i < b->bytes / 4; i++) {
        ((uint32_t *)(void *)b->data)[i] = (uint32_t)i * 2654435761u >> 3;
    }
    for (int i = 0; i < n; i++) {
        mt_param *p = &b->params[i];
        *p = (mt_param){.n_dims = 2, .n_ranges = 1, .writes = true};
        snprintf(p->name, sizeof p->name, "decoder.layers.%d.weight", i);
        p->global_dims[0] = p->local_dims[0] = p->ranges[0].count = TENSOR_ROWS;
        p->global_dims[1] = p->local_dims[1] = HIDDEN;
    }
    for (b->n_items = 0; b->n_items < 3 * n; b->n_items++) {
        mc_tensor t = mc_tensor_2d(b->data + (size_t)b->n_items * one, MC_F32, TENSOR_ROWS, HIDDEN);
        b->items[b->n_items] = (mt_ckpt_item){prefixes[b->n_items / n], &b->params[b->n_items % n], t, 0};
    }
    return MC_OK;
}

static mc_status raw_save(const bench *b)
{
    int fd = -1;
    MC_TRY(mc_file_create(b->raw, &fd));
    mc_status st = MC_OK;
    for (size_t at = 0; at < b->bytes && st == MC_OK; at += RAW_CALL) {
        st = mc_file_write(fd, b->raw, b->data + at, b->bytes - at < RAW_CALL ? b->bytes - at : RAW_CALL);
    }
    MC_KEEP_FIRST(st, mc_file_sync(fd, b->raw));
    MC_KEEP_FIRST(st, mc_file_close(fd, b->raw));
    return st;
}

static mc_status raw_load(const bench *b)
{
    int fd = -1;
    MC_TRY(mc_file_open(b->raw, &fd));
    mc_status st = mc_file_pread(fd, b->raw, b->data, b->bytes, 0);
    MC_KEEP_FIRST(st, mc_file_close(fd, b->raw));
    return st;
}

static mc_status save(const bench *b)
{
    const mt_ckpt_state s = {.iteration = 1, .config = "", .tokenizer_kind = ""};
    return mt_checkpoint_save(b->dir, b->world, &s, b->items, b->n_items);
}

static mc_status load(const bench *b)
{
    mt_checkpoint *c;
    MC_TRY(mt_checkpoint_open(b->dir, -1, &c));
    mc_status st = MC_OK;
    for (int i = 0; i < b->n_items && st == MC_OK; i++) {
        st = mt_checkpoint_read(c, &b->items[i]);
    }
    mt_checkpoint_close(c);
    return st;
}

static mc_status drop_pages(const char *path)
{
    int fd = -1;
    MC_TRY(mc_file_open(path, &fd));
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    return mc_file_close(fd, path);
}

static mc_status one(const bench *b, kind k)
{
    switch (k) {
    case RAW_SAVE:
        return raw_save(b);
    case SAVE:
        return save(b);
    case RAW_COLD:
    case RAW_WARM:
        return raw_load(b);
    default:
        return load(b);
    }
}

static mc_status measure(const bench *b, kind k, double *mb_per_s_out)
{
    if (k == RAW_SAVE) {
        MC_TRY(mc_file_remove_tree(b->raw)); /* both sides write new files */
    } else if (k == SAVE) {
        MC_TRY(mc_file_remove_tree(b->dir));
        MC_TRY(mc_file_make_dirs(b->dir));
    } else if (k == RAW_COLD || k == COLD) {
        MC_TRY(drop_pages(k == COLD ? b->shard : b->raw));
    }
    double start = seconds();
    MC_TRY(one(b, k));
    *mb_per_s_out = 1e-6 * (double)b->bytes / (seconds() - start);
    return MC_OK;
}

static int compare(const void *x, const void *y)
{
    double a = *(const double *)x, b = *(const double *)y;
    return (a > b) - (a < b);
}

static mc_status run(bench *b, long rows, int rounds)
{
    static double rate[KINDS][MAX_ROUNDS];
    const mc_job job = {.size = 1, .local_size = 1, .launcher = "none"};
    MC_TRY(make_items(b, rows));
    MC_TRY(mc_world_open(&job, "self", 60, &b->world));
    for (int r = 0; r < rounds; r++) {
        for (int k = 0; k < KINDS; k++) {
            MC_TRY(measure(b, (kind)k, &rate[k][r]));
        }
    }
    for (int k = 0; k < KINDS; k++) {
        qsort(rate[k], (size_t)rounds, sizeof(double), compare);
    }
    printf("%.0f MB, %d tensors, median of %d rounds\n", 1e-6 * (double)b->bytes, b->n_items, rounds);
    for (int k = 0; k < KINDS; k++) {
        printf("  %-15s %8.0f MB/s (%.0f .. %.0f)", names[k], rate[k][rounds / 2], rate[k][0], rate[k][rounds - 1]);
        printf(k % 2 ? "   %.2f of raw\n" : "\n", k ? rate[k][rounds / 2] / rate[k - 1][rounds / 2] : 1.0);
    }
    return MC_OK;
}

int main(int argc, char **argv)
{
    long million = argc > 2 ? strtol(argv[2], NULL, 10) : 32, rounds = argc > 3 ? strtol(argv[3], NULL, 10) : 3;
    if (argc < 2 || million < 1 || million > 4096 || rounds < 1 || rounds > MAX_ROUNDS) {
        fprintf(stderr, "usage: bench_checkpoint DIRECTORY [MILLION_PARAMETERS [ROUNDS]]\n");
        return 2;
    }
    static bench b;
    char dir[MC_PATH_BYTES];
    mc_status st = mc_path_format(dir, "%s/save", argv[1]);
    MC_KEEP_FIRST(st, mc_path_format(b.raw, "%s/raw", argv[1]));
    MC_KEEP_FIRST(st, mc_path_format(b.shard, "%s/iter_0000001/shard_00000_of_00001.safetensors", dir));
    MC_KEEP_FIRST(st, mc_file_make_dirs(argv[1]));
    b.dir = dir;
    if (st == MC_OK) {
        st = run(&b, million * 1000000 / HIDDEN, (int)rounds);
    }
    MC_KEEP_FIRST(st, mc_file_remove_tree(b.raw));
    MC_KEEP_FIRST(st, mc_file_remove_tree(b.dir));
    if (b.world) {
        mc_world_close(b.world, st != MC_OK, 1);
    }
    mc_free(b.items);
    mc_free(b.params);
    mc_free(b.data);
    return mc_status_exit(st);
}
