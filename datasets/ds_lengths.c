/* Document lengths: one pass for the sums, and one for each byte of a percentile. */
#include "datasets/ds_lengths.h"

#include <string.h>

#include "megac/base/alloc.h"

enum { BATCH = 4096 };

typedef struct scan {
    const ds_file *file;
    uint64_t *ends; /* BATCH + 1 */
} scan;

typedef void (*length_fn)(void *arg, uint64_t length);

static mc_status each_length(const scan *s, length_fn fn, void *arg)
{
    uint64_t n = ds_file_info(s->file)->n_documents;
    for (uint64_t at = 0; at < n;) {
        uint64_t count = n - at < BATCH ? n - at : BATCH;
        MC_TRY(ds_file_documents(s->file, at, count, s->ends));
        for (uint64_t i = 0; i < count; i++) {
            if (s->ends[i + 1] < s->ends[i]) {
                return MC_FAIL(MC_INPUT,
                               "document %llu ends at token %llu, before its start %llu: the file is damaged; "
                               "run megac inspect --verify on it",
                               (unsigned long long)(at + i), (unsigned long long)s->ends[i + 1],
                               (unsigned long long)s->ends[i]);
            }
            fn(arg, s->ends[i + 1] - s->ends[i]);
        }
        at += count;
    }
    return MC_OK;
}

static void add_length(void *arg, uint64_t length)
{
    ds_i_lengths *l = arg;
    l->min = length < l->min ? length : l->min;
    l->max = length > l->max ? length : l->max;
    l->bins[length ? 64 - __builtin_clzll(length) : 0]++;
}

/* Counts byte `shift` of the lengths that agree with `prefix` above it. */
typedef struct digit_count {
    uint64_t prefix;
    int shift;
    uint64_t counts[256];
} digit_count;

static void count_digit(void *arg, uint64_t length)
{
    digit_count *d = arg;
    if (d->shift == 56 || length >> (d->shift + 8) == d->prefix) {
        d->counts[length >> d->shift & 255]++;
    }
}

/* The length of rank `rank` (0-based) in sorted order, found byte by byte from the top: a pass for each byte. */
static mc_status select_rank(const scan *s, uint64_t max, uint64_t rank, uint64_t *out)
{
    digit_count d = {0};
    int shift = max ? (63 - __builtin_clzll(max)) / 8 * 8 : 0;
    for (; shift >= 0; shift -= 8) {
        memset(d.counts, 0, sizeof d.counts);
        d.shift = shift;
        MC_TRY(each_length(s, count_digit, &d));
        unsigned digit = 0;
        while (digit < 255 && rank >= d.counts[digit]) {
            rank -= d.counts[digit++];
        }
        d.prefix = d.prefix << 8 | digit;
    }
    *out = d.prefix;
    return MC_OK;
}

/* ceil(n * percent / 100) - 1 */
static uint64_t rank_of(uint64_t n, unsigned percent)
{
    uint64_t whole = n / 100 * percent, part = (n % 100 * percent + 99) / 100;
    return whole + part - 1;
}

static mc_status measure(const scan *s, ds_i_lengths *out)
{
    const ds_info *info = ds_file_info(s->file);
    *out = (ds_i_lengths){.min = UINT64_MAX};
    MC_TRY(each_length(s, add_length, out));
    out->mean = (double)info->n_tokens / (double)info->n_documents;
    MC_TRY(select_rank(s, out->max, rank_of(info->n_documents, 50), &out->median));
    return select_rank(s, out->max, rank_of(info->n_documents, 90), &out->p90);
}

mc_status ds_i_lengths_measure(const ds_file *file, ds_i_lengths *out)
{
    scan s = {.file = file};
    MC_TRY(MC_NEW_N(&s.ends, BATCH + 1, "document ends"));
    mc_status st = measure(&s, out);
    mc_free(s.ends);
    return st;
}
