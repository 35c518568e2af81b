/* The engines of `megac prepare`, `inspect` and the readers as a small program for the Python tests.
 *
 *   prepare_tool prepare INPUT... -o PREFIX [--keys K,K] [--split U] [--format F] [--eod] [--workers N] [--compress]
 *                [--overwrite] [--tokenizer T]
 *   prepare_tool inspect FILE [--verify] [--json] [--tokens N]
 *   prepare_tool windows FILE SEQ SPLIT WHICH SHUFFLE SEED FIRST COUNT   raw int32 windows on standard output
 *   prepare_tool check FILE...   a line for each: "ok", "open" (refused at open) or "verify" (found by --verify) */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "datasets/ds.h"
#include "datasets/ds_inspect.h"
#include "datasets/ds_prepare.h"
#include "megac/base/alloc.h"

enum { MAX = 64 };

static int split_list(char *text, const char **out)
{
    int n = 0;
    char *save = NULL;
    for (char *p = strtok_r(text, ",", &save); p && n < MAX; p = strtok_r(NULL, ",", &save)) {
        out[n++] = p;
    }
    return n;
}

/* Peak of resident memory. getrusage's ru_maxrss would include the parent's at the fork. */
static long peak_kb(void)
{
    char line[256];
    long kb = -1;
    FILE *f = fopen("/proc/self/status", "r");
    while (f && fgets(line, sizeof line, f)) {
        if (strncmp(line, "VmHWM:", 6) == 0) {
            kb = strtol(line + 6, NULL, 10);
        }
    }
    if (f) {
        fclose(f);
    }
    return kb;
}

static int prepare(int argc, char **argv)
{
    const char *inputs[MAX], *keys[MAX];
    ds_prepare_config c = {.inputs = inputs, .json_keys = keys, .workers = 1};
    for (int i = 0; i < argc; i++) {
        const char *a = argv[i];
        char *next = i + 1 < argc ? argv[i + 1] : NULL;
        if (strcmp(a, "--eod") == 0) {
            c.append_eod = true;
        } else if (strcmp(a, "--compress") == 0) {
            c.compress = true;
        } else if (strcmp(a, "--overwrite") == 0) {
            c.overwrite = true;
        } else if (a[0] == '-' && a[1] && next) {
            i++;
            c.output_prefix = strcmp(a, "-o") == 0 ? next : c.output_prefix;
            c.n_json_keys = strcmp(a, "--keys") == 0 ? split_list(next, keys) : c.n_json_keys;
            c.split_documents_on = strcmp(a, "--split") == 0 ? next : c.split_documents_on;
            c.input_format = strcmp(a, "--format") == 0 ? next : c.input_format;
            c.tokenizer_type = strcmp(a, "--tokenizer") == 0 ? next : c.tokenizer_type;
            c.workers = strcmp(a, "--workers") == 0 ? atoi(next) : c.workers;
        } else if (c.n_inputs < MAX) {
            inputs[c.n_inputs++] = a;
        }
    }
    ds_prepare_result r;
    mc_status st = ds_prepare(&c, &r);
    if (st == MC_OK) {
        printf("{\"files\": %llu, \"documents\": %llu, \"tokens\": %llu, \"empty\": %llu, \"input_bytes\": %llu, "
               "\"text_bytes\": %llu, \"output_bytes\": %llu, \"seconds\": %.6f, \"peak_kb\": %ld}\n",
               (unsigned long long)r.n_files, (unsigned long long)r.n_documents, (unsigned long long)r.n_tokens,
               (unsigned long long)r.n_empty, (unsigned long long)r.input_bytes, (unsigned long long)r.text_bytes,
               (unsigned long long)r.output_bytes, r.seconds, peak_kb());
    }
    return mc_status_exit(st);
}

static int inspect(int argc, char **argv)
{
    bool verify = false, json = false;
    int n = 32;
    for (int i = 1; i < argc; i++) {
        verify = verify || strcmp(argv[i], "--verify") == 0;
        json = json || strcmp(argv[i], "--json") == 0;
        n = strcmp(argv[i], "--tokens") == 0 && i + 1 < argc ? atoi(argv[i + 1]) : n;
    }
    return mc_status_exit(ds_inspect(argv[0], verify, json, n, stdout));
}

static int windows(char **argv)
{
    const char *paths[1] = {argv[0]};
    ds_source_config c = {.paths = paths,
                          .n_paths = 1,
                          .seq_length = atoll(argv[1]),
                          .split = argv[2],
                          .which = (ds_split)atoi(argv[3]),
                          .shuffle = atoi(argv[4]) != 0,
                          .seed = (uint32_t)atoi(argv[5])};
    uint64_t first = strtoull(argv[6], NULL, 10), count = strtoull(argv[7], NULL, 10);
    ds_source *s;
    int32_t *w;
    mc_status st = ds_source_open(&c, &s);
    if (st != MC_OK) {
        return mc_status_exit(st);
    }
    count = count ? count : ds_source_epoch_samples(s);
    st = MC_NEW_N(&w, c.seq_length + 1, "window");
    for (uint64_t i = 0; i < count && st == MC_OK; i++) {
        st = ds_source_read(s, first + i, w);
        fwrite(w, sizeof *w, (size_t)c.seq_length + 1, stdout);
    }
    mc_free(w);
    ds_source_close(s);
    return mc_status_exit(st);
}

static int check(int argc, char **argv)
{
    for (int i = 0; i < argc; i++) {
        ds_file *f;
        if (ds_file_open(argv[i], &f) != MC_OK) {
            puts("open");
            continue;
        }
        puts(ds_file_verify(f) == MC_OK ? "ok" : "verify");
        ds_file_close(f);
    }
    return 0;
}

int main(int argc, char **argv)
{
    int rc = 64;
    if (argc > 2 && strcmp(argv[1], "prepare") == 0) {
        rc = prepare(argc - 2, argv + 2);
    } else if (argc > 2 && strcmp(argv[1], "inspect") == 0) {
        rc = inspect(argc - 2, argv + 2);
    } else if (argc == 10 && strcmp(argv[1], "windows") == 0) {
        rc = windows(argv + 2);
    } else if (argc > 2 && strcmp(argv[1], "check") == 0) {
        rc = check(argc - 2, argv + 2);
    }
    return mc_alloc_report_leaks() ? 99 : rc;
}
