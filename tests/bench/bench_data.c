/* Reading rate of a dataset: time to the first sample, and windows of 2,049 tokens a second from the page cache.
 *
 *   bench_data FILE.h5 [TOKENS]   makes FILE.h5 of TOKENS (default 200 million) uint16 tokens if it is not there
 *
 * Not a test: prints figures. Run it twice; the second run finds the file in the page cache. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "datasets/ds.h"
#include "datasets/ds_write.h"
#include "megac/base/alloc.h"

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static mc_status make(const char *path, uint64_t n)
{
    enum { BATCH = 1 << 16 };
    static uint16_t tokens[BATCH];
    ds_writer_config c = {.path = path, .vocab_size = 50257, .eod_id = 50256, .tokenizer_kind = "ByteTokenizer"};
    ds_writer *w;
    MC_TRY(ds_writer_create(&c, &w));
    mc_status st = MC_OK;
    uint32_t x = 1;
    for (uint64_t at = 0; at < n && st == MC_OK; at += BATCH) {
        for (int i = 0; i < BATCH; i++) {
            x = x * 1664525u + 1013904223u;
            tokens[i] = (uint16_t)((uint64_t)(x >> 8) * 50257 >> 24);
        }
        st = ds_writer_tokens(w, tokens, n - at < BATCH ? n - at : BATCH);
        MC_KEEP_FIRST(st, ds_writer_end_document(w, 0));
    }
    st = st == MC_OK ? ds_writer_finish(w) : st;
    ds_writer_destroy(w);
    return st;
}

static mc_status measure(const char *path, double start)
{
    enum { SEQ = 2048 };
    static int32_t window[SEQ + 1];
    const char *paths[] = {path};
    ds_source_config c = {
        .paths = paths, .n_paths = 1, .split = "969,30,1", .seq_length = SEQ, .seed = 1234, .shuffle = true};
    ds_source *s;
    MC_TRY(ds_source_open(&c, &s));
    mc_status st = ds_source_read(s, 0, window);
    printf("first sample     %.2f ms after start\n", 1e3 * (seconds() - start));
    for (int pass = 0; pass < 3 && st == MC_OK; pass++) {
        uint64_t n = ds_source_epoch_samples(s), sum = 0;
        double begin = seconds();
        for (uint64_t i = 0; i < n && st == MC_OK; i++) {
            st = ds_source_read(s, i, window);
            sum += (uint64_t)window[i % SEQ];
        }
        double t = seconds() - begin;
        printf("epoch %d          %llu windows, %.0f windows/s, %.2f G tokens/s (check %llu)\n", pass,
               (unsigned long long)n, (double)n / t, (double)n * SEQ / t / 1e9, (unsigned long long)sum);
    }
    ds_source_close(s);
    return st;
}

int main(int argc, char **argv)
{
    double start = seconds();
    if (argc < 2) {
        fprintf(stderr, "bench_data FILE.h5 [TOKENS]\n");
        return 2;
    }
    mc_status st = MC_OK;
    if (access(argv[1], R_OK) != 0) {
        st = make(argv[1], argc > 2 ? strtoull(argv[2], NULL, 10) : 200000000u);
        printf("made             %s in %.2f s\n", argv[1], seconds() - start);
        start = seconds();
    }
    return mc_status_exit(st == MC_OK ? measure(argv[1], start) : st);
}
