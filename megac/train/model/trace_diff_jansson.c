/* megac diff: two traces, folded over ranks, side by side. */
#include <dirent.h>
#include <jansson.h>
#include <math.h>
#include <string.h>

#include "megac/base/alloc.h"
#include "megac/base/file.h"
#include "megac/train/model/trace.h"

/* One tensor of one micro-batch and step, over all ranks that count. */
typedef struct entry {
    int64_t iteration, sample, order, n, nan;
    double sum, sum_sq, min, max;
    char name[MT_NAME_BYTES + 16];
} entry;

typedef struct trace {
    entry *entries;
    int64_t n, cap;
} trace;

static mc_status grow(trace *t)
{
    int64_t cap = t->cap ? 2 * t->cap : 1024;
    MC_TRY(MC_MORE(&t->entries, t->n, cap, "trace"));
    t->cap = cap;
    return MC_OK;
}

/* Numbers that JSON lacks are written as strings. */
static double number(const json_t *v)
{
    if (!json_is_string(v)) {
        return json_number_value(v);
    }
    const char *s = json_string_value(v);
    return strcmp(s, "inf") == 0 ? INFINITY : strcmp(s, "-inf") == 0 ? -INFINITY : NAN;
}

static mc_status add_line(trace *t, const char *path, int line_number, const char *line)
{
    json_error_t error;
    json_t *o = json_loads(line, 0, &error), *sum, *sum_sq, *min, *max;
    json_int_t iteration, sample, order, n, nan;
    const char *name;
    int counts;
    if (!o || json_unpack(o, "{s:I, s:I, s:I, s:s, s:b, s:I, s:o, s:o, s:o, s:o, s:I}", "iteration", &iteration,
                          "sample", &sample, "order", &order, "name", &name, "counts", &counts, "n", &n, "sum", &sum,
                          "sum_sq", &sum_sq, "min", &min, "max", &max, "nan", &nan) != 0) {
        json_decref(o);
        return MC_FAIL(MC_INPUT, "%s:%d: no line of a trace; give directories written with --trace-tensors", path,
                       line_number);
    }
    mc_status st = counts && t->n == t->cap ? grow(t) : MC_OK;
    if (counts && st == MC_OK) {
        entry *e = &t->entries[t->n++];
        *e = (entry){iteration, sample, order, n, nan, number(sum), number(sum_sq), number(min), number(max), {0}};
        snprintf(e->name, sizeof e->name, "%s", name);
    }
    json_decref(o);
    return st;
}

static mc_status add_file(trace *t, const char *path)
{
    char *text, *rest;
    size_t bytes;
    int n = 0;
    mc_status st = MC_OK;
    MC_TRY(mc_file_read_all(path, (size_t)1 << 34, "trace", &text, &bytes));
    rest = text;
    for (char *line; st == MC_OK && (line = strsep(&rest, "\n")) != NULL;) {
        n++;
        st = *line ? add_line(t, path, n, line) : MC_OK;
    }
    mc_free(text);
    return st;
}

static int compare(const void *pa, const void *pb)
{
    const entry *a = pa, *b = pb;
    const int64_t keys[][2] = {{a->iteration, b->iteration},
                               {a->sample < 0 ? INT64_MAX : a->sample, b->sample < 0 ? INT64_MAX : b->sample},
                               {a->order, b->order}};
    for (int i = 0; i < 3; i++) {
        if (keys[i][0] != keys[i][1]) {
            return keys[i][0] < keys[i][1] ? -1 : 1;
        }
    }
    return strcmp(a->name, b->name);
}

/* Shards of one tensor become one entry. */
static void fold(trace *t)
{
    int64_t kept = 0;
    qsort(t->entries, (size_t)t->n, sizeof *t->entries, compare);
    for (int64_t i = 0; i < t->n; i++) {
        entry *e = &t->entries[i], *last = kept > 0 ? &t->entries[kept - 1] : NULL;
        if (last && compare(last, e) == 0) {
            last->n += e->n;
            last->nan += e->nan;
            last->sum += e->sum;
            last->sum_sq += e->sum_sq;
            last->min = e->min < last->min ? e->min : last->min;
            last->max = e->max > last->max ? e->max : last->max;
        } else {
            t->entries[kept++] = *e;
        }
    }
    t->n = kept;
}

static mc_status read_trace(const char *dir, trace *t)
{
    DIR *d = opendir(dir);
    if (!d) {
        return MC_FAIL(MC_NOTFOUND, "%s: no directory of a trace; give one written with --trace-tensors", dir);
    }
    mc_status st = MC_OK;
    int n_files = 0;
    for (struct dirent *f; st == MC_OK && (f = readdir(d)) != NULL;) {
        char path[4096];
        size_t len = strlen(f->d_name);
        if (strncmp(f->d_name, "rank_", 5) != 0 || len < 6 || strcmp(f->d_name + len - 6, ".jsonl") != 0) {
            continue;
        }
        n_files++;
        st = mc_path_format(path, "%s/%s", dir, f->d_name);
        st = st == MC_OK ? add_file(t, path) : st;
    }
    closedir(d);
    if (st == MC_OK && n_files == 0) {
        return MC_FAIL(MC_NOTFOUND, "%s: holds no trace (rank_*.jsonl); give a directory written with --trace-tensors",
                       dir);
    }
    fold(t);
    return st;
}

/* Largest difference of the two, relative to the tensor's size; NaN counts and shapes must be equal. */
static double distance(const entry *a, const entry *b)
{
    if (a->n != b->n || a->nan != b->nan) {
        return INFINITY;
    }
    double norm = sqrt(fmax(a->sum_sq, b->sum_sq)), top = fmax(fmax(fabs(a->min), fabs(a->max)), fabs(b->max));
    double rms_sum = norm * sqrt((double)a->n); /* the size a sum of n such elements can have */
    double d[4] = {fabs(sqrt(a->sum_sq) - sqrt(b->sum_sq)) / norm, fabs(a->sum - b->sum) / rms_sum,
                   fabs(a->min - b->min) / top, fabs(a->max - b->max) / top};
    double worst = 0;
    for (int i = 0; i < 4; i++) {
        /* 0 / 0 is a tensor of zeros on both sides; infinity - infinity the same infinity. */
        worst = d[i] > worst ? d[i] : worst;
    }
    bool a_finite = isfinite(a->sum_sq), b_finite = isfinite(b->sum_sq);
    return a_finite == b_finite ? worst : INFINITY;
}

static void print_pair(FILE *out, const entry *a, const entry *b, double d)
{
    fprintf(out, "iteration %lld", (long long)a->iteration);
    if (a->sample >= 0) {
        fprintf(out, ", micro-batch of sample %lld", (long long)a->sample);
    }
    fprintf(out, ", %s: %.3g apart\n", a->name, d);
    const entry *both[2] = {a, b};
    for (int i = 0; i < 2; i++) {
        const entry *e = both[i];
        fprintf(out, "  %c: %lld elements, norm %.9g, mean %.9g, from %.9g to %.9g, %lld NaN\n", 'A' + i,
                (long long)e->n, sqrt(e->sum_sq), e->sum / (double)e->n, e->min, e->max, (long long)e->nan);
    }
}

static void compare_traces(const trace *a, const trace *b, double tolerance, FILE *out, bool *same_out)
{
    int64_t both = 0, differ = 0, alone[2] = {0, 0};
    for (int64_t i = 0, j = 0; i < a->n || j < b->n;) {
        int order = i >= a->n ? 1 : j >= b->n ? -1 : compare(&a->entries[i], &b->entries[j]);
        if (order != 0) {
            alone[order > 0]++;
            i += order < 0;
            j += order > 0;
            continue;
        }
        double d = distance(&a->entries[i], &b->entries[j]);
        if (d > tolerance && differ++ == 0) {
            fprintf(out, "first difference: ");
            print_pair(out, &a->entries[i], &b->entries[j], d);
        }
        both++;
        i++;
        j++;
    }
    fprintf(out, "%lld of %lld tensors differ by more than %g", (long long)differ, (long long)both, tolerance);
    if (alone[0] + alone[1] > 0) {
        fprintf(out, "; only in A %lld, only in B %lld (other micro-batches, iterations or model)", (long long)alone[0],
                (long long)alone[1]);
    }
    fprintf(out, "\n");
    *same_out = differ == 0 && alone[0] + alone[1] == 0 && both > 0;
}

mc_status mt_trace_diff(const char *a, const char *b, double tolerance, FILE *out, bool *same_out)
{
    trace ta = {0}, tb = {0};
    mc_status st = read_trace(a, &ta);
    st = st == MC_OK ? read_trace(b, &tb) : st;
    if (st == MC_OK) {
        compare_traces(&ta, &tb, tolerance, out, same_out);
    }
    mc_free(ta.entries);
    mc_free(tb.entries);
    return st;
}
