/* Windows of a split of one or several dataset files, in an order computed from (seed, epoch, index). README draws it.
 *
 * A file of N tokens has W = (N - 1) / seq_length windows; window i holds tokens [i * seq_length, + seq_length + 1), so
 * that every token but the first is the target of one window. Splits are ranges of windows. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "datasets/ds_impl.h"
#include "megac/base/alloc.h"
#include "megac/base/rng.h"

typedef struct member {
    ds_file *file;
    uint64_t first, n; /* windows of this split */
    uint64_t before;   /* windows of the members before: used without weights */
} member;

struct ds_source {
    ds_source_config config; /* its strings are not kept */
    int n_members;
    member *members;
    uint64_t n_windows;
    bool weighted;
    ds_i_blend blend;
    uint64_t *shares;
    uint32_t vocab_size;
    int64_t eod_id;
};

static bool parse_number(const char *text, double *out)
{
    char *end;
    errno = 0;
    double v = strtod(text, &end);
    if (end == text || *end || errno || !isfinite(v)) {
        return false;
    }
    *out = v;
    return true;
}

static const char *const split_names[DS_SPLIT_COUNT] = {"training", "validation", "test"};

/* "969,30,1" -> fractions whose sum is 1; missing ones are 0 (Megatron-LM's --split). */
static mc_status parse_split(const char *text, double fractions_out[DS_SPLIT_COUNT])
{
    double parts[DS_SPLIT_COUNT] = {0}, sum = 0;
    char copy[128], *save = NULL;
    int n = 0;
    bool ok = text && strlen(text) < sizeof copy && strlen(text) > 0;
    if (ok) {
        memcpy(copy, text, strlen(text) + 1);
        ok = !strstr(copy, ",,") && copy[0] != ',' && copy[strlen(copy) - 1] != ',';
        for (char *p = strtok_r(copy, ",", &save); p && ok; p = strtok_r(NULL, ",", &save), n++) {
            ok = n < DS_SPLIT_COUNT && parse_number(p, &parts[n]) && parts[n] >= 0;
            sum += ok ? parts[n] : 0;
        }
    }
    if (!ok || !(sum > 0)) {
        return MC_FAIL(MC_INVALID, "--split \"%s\": give up to three numbers >= 0 such as 969,30,1", text ? text : "");
    }
    for (int i = 0; i < DS_SPLIT_COUNT; i++) {
        fractions_out[i] = parts[i] / sum;
    }
    return MC_OK;
}

/* Windows [first, first + n) of split `which`: boundaries are the rounded cumulative shares of all windows. */
static mc_status split_range(const ds_source_config *c, const char *path, uint64_t windows, member *m)
{
    double f[DS_SPLIT_COUNT], before = 0;
    MC_TRY(parse_split(c->split, f));
    for (int i = 0; i < (int)c->which; i++) {
        before += f[i];
    }
    bool last = true; /* no share follows: the end is the end, whatever the sum of fractions rounds to */
    for (int i = (int)c->which + 1; i < DS_SPLIT_COUNT; i++) {
        last = last && f[i] == 0;
    }
    uint64_t first = (uint64_t)llround(before * (double)windows);
    uint64_t end = last ? windows : (uint64_t)llround((before + f[c->which]) * (double)windows);
    first = first > windows ? windows : first;
    if (f[c->which] <= 0 || end <= first) {
        return MC_FAIL(MC_INVALID,
                       "%s: --split %s leaves the %s set no window of %lld + 1 tokens (the file has %llu windows); "
                       "change --split, or use more data or a shorter --seq-length",
                       path, c->split, split_names[c->which], (long long)c->seq_length, (unsigned long long)windows);
    }
    m->first = first;
    m->n = end - first;
    return MC_OK;
}

static mc_status open_member(const ds_source_config *c, const char *path, member *m)
{
    MC_TRY(ds_file_open(path, &m->file));
    uint64_t tokens = m->file->info.n_tokens, windows = (tokens - 1) / (uint64_t)c->seq_length;
    if (windows == 0) {
        return MC_FAIL(MC_INVALID, "%s has %llu tokens, fewer than one window of --seq-length %lld + 1; use more data",
                       path, (unsigned long long)tokens, (long long)c->seq_length);
    }
    if (c->whole) {
        m->n = windows;
        return MC_OK;
    }
    return split_range(c, path, windows, m);
}

/* "[w1] p1 [w2] p2 ...": weights when every other entry, from the first on, is a number and a path follows each. */
static mc_status parse_paths(const ds_source_config *c, const char **paths_out, double *weights_out, int *n_out,
                             bool *weighted_out)
{
    double w;
    int numbers = 0;
    bool pairs = c->n_paths % 2 == 0;
    for (int i = 0; i < c->n_paths; i++) {
        bool number = parse_number(c->paths[i], &w);
        numbers += number;
        pairs = pairs && number == (i % 2 == 0);
    }
    if (numbers > 0 && !pairs) {
        return MC_FAIL(MC_INVALID,
                       "--data-path: %d of %d entries are numbers; give a weight before every path, or none", numbers,
                       c->n_paths);
    }
    int n = pairs ? c->n_paths / 2 : c->n_paths;
    for (int i = 0; i < n; i++) {
        weights_out[i] = 1;
        if (pairs && parse_number(c->paths[2 * i], &weights_out[i]) && !(weights_out[i] > 0)) {
            return MC_FAIL(MC_INVALID, "--data-path: weight %s of %s must be above 0; leave the dataset out instead",
                           c->paths[2 * i], c->paths[2 * i + 1]);
        }
        paths_out[i] = c->paths[pairs ? 2 * i + 1 : i];
    }
    *n_out = n;
    *weighted_out = pairs && n > 1;
    return MC_OK;
}

static mc_status check_config(const ds_source_config *c)
{
    if (c->seq_length < 1) {
        return MC_FAIL(MC_INVALID, "--seq-length %lld must be at least 1", (long long)c->seq_length);
    }
    if (c->mock) {
        return c->mock_vocab_size >= 1 && c->mock_vocab_size <= INT32_MAX
                   ? MC_OK
                   : MC_FAIL(MC_INVALID, "--mock-data needs a vocabulary (--vocab-size), not %u", c->mock_vocab_size);
    }
    if (c->n_paths < 1) {
        return MC_FAIL(MC_INVALID, "no dataset; give --data-path PATH, or --mock-data");
    }
    if (c->n_paths > 2 * DS_I_BLEND_MAX) {
        return MC_FAIL(MC_INVALID, "--data-path has %d entries; at most %d datasets can be blended", c->n_paths,
                       DS_I_BLEND_MAX);
    }
    return MC_OK;
}

static mc_status open_members(ds_source *s, const char **paths, int n)
{
    MC_TRY(MC_NEW_N(&s->members, n, "datasets of a source"));
    s->eod_id = -1;
    for (int i = 0; i < n; i++) {
        s->n_members = i + 1; /* closed even when opening it fails half-way */
        member *m = &s->members[i];
        MC_TRY(open_member(&s->config, paths[i], m));
        m->before = s->n_windows;
        s->n_windows += m->n;
        const ds_info *info = &m->file->info;
        s->vocab_size = info->vocab_size > s->vocab_size ? info->vocab_size : s->vocab_size;
        s->eod_id = i == 0 || s->eod_id == info->eod_id ? info->eod_id : -1;
    }
    return MC_OK;
}

static mc_status open_files(ds_source *s)
{
    const char *paths[2 * DS_I_BLEND_MAX];
    double weights[2 * DS_I_BLEND_MAX];
    int n = 0;
    MC_TRY(parse_paths(&s->config, paths, weights, &n, &s->weighted));
    if (n > DS_I_BLEND_MAX) {
        return MC_FAIL(MC_INVALID, "--data-path names %d datasets; at most %d can be blended", n, DS_I_BLEND_MAX);
    }
    MC_TRY(open_members(s, paths, n));
    if (s->weighted) {
        MC_TRY(MC_NEW_N(&s->shares, n, "blend shares"));
        MC_TRY(ds_i_blend_init(weights, n, s->shares, &s->blend));
    }
    return MC_OK;
}

mc_status ds_source_open(const ds_source_config *config, ds_source **source_out)
{
    double fractions[DS_SPLIT_COUNT];
    MC_TRY(check_config(config));
    if (!config->mock && !config->whole) {
        MC_TRY(parse_split(config->split, fractions)); /* before any file is opened */
    }
    ds_source *s;
    MC_TRY(MC_NEW(&s, "data source"));
    s->config = *config;
    s->eod_id = -1;
    mc_status st = MC_OK;
    if (config->mock) {
        s->vocab_size = config->mock_vocab_size;
    } else {
        st = open_files(s);
    }
    s->config.paths = NULL;
    s->config.split = NULL;
    if (st != MC_OK) {
        ds_source_close(s);
        return st;
    }
    *source_out = s;
    return MC_OK;
}

void ds_source_close(ds_source *source)
{
    if (!source) {
        return;
    }
    for (int i = 0; i < source->n_members; i++) {
        ds_file_close(source->members[i].file);
    }
    mc_free(source->members);
    mc_free(source->shares);
    mc_free(source);
}

uint64_t ds_source_epoch_samples(const ds_source *source)
{
    return source->n_windows;
}

uint32_t ds_source_vocab_size(const ds_source *source)
{
    return source->vocab_size;
}

int64_t ds_source_eod(const ds_source *source)
{
    return source->eod_id;
}

const ds_info *ds_source_first_info(const ds_source *source)
{
    return source->config.mock ? NULL : &source->members[0].file->info;
}

/* The member whose windows hold number `index` of the members laid end to end; *index becomes its own number. */
static int find_member(const ds_source *s, uint64_t *index)
{
    int low = 0, high = s->n_members - 1;
    while (low < high) {
        int mid = (low + high + 1) / 2;
        if (s->members[mid].before <= *index) {
            low = mid;
        } else {
            high = mid - 1;
        }
    }
    *index -= s->members[low].before;
    return low;
}

static uint64_t place(const ds_source *s, uint32_t stream_index, uint64_t n, uint64_t number)
{
    uint64_t epoch = number / n, index = number % n;
    if (!s->config.shuffle) {
        return index;
    }
    return ds_i_permute(s->config.seed, mc_rng_stream(MC_RNG_DATA_ORDER, stream_index), epoch, n, index);
}

mc_status ds_source_read(const ds_source *source, uint64_t sample, int32_t *window_out)
{
    const ds_source *s = source;
    int64_t count = s->config.seq_length + 1;
    if (s->config.mock) {
        ds_i_mock_window(s->config.seed, (uint32_t)s->config.which, sample, s->vocab_size, count, window_out);
        return MC_OK;
    }
    int which = 0;
    uint64_t index;
    if (s->weighted) {
        /* Proportions by blocks of the blend, then each member's own epochs and order. */
        ds_i_blend_place(&s->blend, s->config.seed, s->config.shuffle, sample, &which, &index);
        index = place(s, (uint32_t)which + 1, s->members[which].n, index);
    } else {
        index = place(s, 0, s->n_windows, sample);
        which = find_member(s, &index);
    }
    const member *m = &s->members[which];
    return ds_file_read(m->file, (m->first + index) * (uint64_t)s->config.seq_length, (uint64_t)count, window_out);
}
