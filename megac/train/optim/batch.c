#include "megac/train/optim/batch.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "megac/base/alloc.h"

/* Beyond this, products of sample counts and increments would no longer fit 63 bits. */
static const int64_t MAX_SAMPLES = INT64_C(1) << 40, MAX_BATCH = INT64_C(1) << 30;

static int64_t rounded(const mt_batch *b, int64_t size)
{
    return b->decrease ? size / b->unit * b->unit : size;
}

/* Number of sizes in all, and the kth of them. */
static int64_t n_sizes(const mt_batch *b)
{
    return b->n_steps > 0 ? b->n_steps : b->n_increments + 1;
}

static mt_batch_step step_at(const mt_batch *b, int64_t k)
{
    if (b->n_steps > 0) {
        return (mt_batch_step){b->steps[k].threshold, rounded(b, b->steps[k].size)};
    }
    int64_t threshold = k == 0 ? 0 : (k * b->ramp_samples + b->n_increments - 1) / b->n_increments;
    return (mt_batch_step){(uint64_t)threshold, rounded(b, b->start + k * b->increment)};
}

/* Which size holds after `consumed` samples. */
static int64_t index_at(const mt_batch *b, uint64_t consumed)
{
    if (b->n_steps > 0) {
        int64_t k = 0;
        while (k + 1 < b->n_steps && b->steps[k + 1].threshold <= consumed) {
            k++;
        }
        return k;
    }
    if (consumed >= (uint64_t)b->ramp_samples) {
        return b->n_increments;
    }
    return (int64_t)consumed * b->n_increments / b->ramp_samples;
}

static mc_status set_ramp(mt_batch *b, const int64_t *ramp)
{
    int64_t start = ramp[0], increment = ramp[1], samples = ramp[2];
    if (start < 1 || increment < 1 || samples < 0 || samples > MAX_SAMPLES) {
        return MC_FAIL(MC_INVALID,
                       "--rampup-batch-size %lld %lld %lld: start and increment must be at least 1, samples from 0 to "
                       "%lld",
                       (long long)start, (long long)increment, (long long)samples, (long long)MAX_SAMPLES);
    }
    int64_t rise = b->max - start;
    if (rise < 0) {
        return MC_FAIL(MC_INVALID, "--rampup-batch-size starts at %lld, above --global-batch-size %lld; start lower",
                       (long long)start, (long long)b->max);
    }
    if (rise % increment != 0) {
        return MC_FAIL(MC_INVALID,
                       "--rampup-batch-size: from %lld to --global-batch-size %lld is no multiple of the increment "
                       "%lld; use a global batch size of %lld or %lld",
                       (long long)start, (long long)b->max, (long long)increment,
                       (long long)(start + rise / increment * increment),
                       (long long)(start + (rise / increment + 1) * increment));
    }
    b->start = start;
    b->increment = increment;
    b->n_increments = rise / increment;
    b->ramp_samples = b->n_increments > 0 ? samples : 0;
    if (b->n_increments > 0 && b->ramp_samples > INT64_MAX / 2 / b->n_increments) {
        return MC_FAIL(MC_INVALID,
                       "--rampup-batch-size: %lld increments over %lld samples are too many; use a larger "
                       "increment",
                       (long long)b->n_increments, (long long)samples);
    }
    return MC_OK;
}

/* "2.4B" -> 2400000000; *end_out is the first character behind it. False when there is no number. */
static bool parse_count(const char *text, const char **end_out, double *value_out)
{
    if ((*text < '0' || *text > '9') && *text != '.') {
        return false; /* strtod would take blanks, signs, "inf" and "nan" */
    }
    char *end;
    errno = 0;
    double v = strtod(text, &end);
    if (end == text || errno != 0) {
        return false;
    }
    static const char suffixes[] = "KMBT";
    double scale = 1;
    char upper = (char)(*end >= 'a' && *end <= 'z' ? *end - 'a' + 'A' : *end);
    const char *suffix = upper != '\0' ? strchr(suffixes, upper) : NULL;
    if (suffix != NULL) {
        for (const char *s = suffixes; s <= suffix; s++) {
            scale *= 1000;
        }
        end++;
    }
    *end_out = end;
    *value_out = v * scale;
    return true;
}

static bool separates(char c)
{
    return c == ' ' || c == ',' || c == '\t' || c == '\n';
}

/* One "THRESHOLD:SIZE"; *text moves behind it. */
static mc_status parse_step(const char **text, int64_t seq_length, mt_batch_step *step_out)
{
    const char *begin = *text, *p;
    double tokens, size;
    int length = (int)strcspn(begin, " ,\t\n");
    if (!parse_count(begin, &p, &tokens) || *p != ':' || !parse_count(p + 1, &p, &size) ||
        (*p != '\0' && !separates(*p))) {
        return MC_FAIL(
            MC_INVALID,
            "--step-batch-size-schedule: \"%.*s\" is not THRESHOLD:SIZE; write for example \"0:16 2.4B:320\"", length,
            begin);
    }
    int64_t whole = (int64_t)(size < 4e18 ? size : 4e18);
    if (whole < 1 || whole > MAX_BATCH || (double)whole != size || tokens > 1e18) {
        return MC_FAIL(MC_INVALID,
                       "--step-batch-size-schedule: \"%.*s\": the size must be a whole number from 1 to %lld, the "
                       "threshold at most 1e18 tokens",
                       length, begin, (long long)MAX_BATCH);
    }
    *step_out = (mt_batch_step){(uint64_t)tokens / (uint64_t)seq_length, whole};
    *text = p;
    return MC_OK;
}

/* Megatron-LM sorts the entries too. */
static void sort_steps(mt_batch *b)
{
    for (int i = 1; i < b->n_steps; i++) {
        for (int j = i; j > 0 && b->steps[j].threshold < b->steps[j - 1].threshold; j--) {
            mt_batch_step t = b->steps[j];
            b->steps[j] = b->steps[j - 1];
            b->steps[j - 1] = t;
        }
    }
}

static mc_status set_steps(mt_batch *b, const mt_batch_config *c)
{
    if (c->seq_length < 1) {
        return MC_FAIL(MC_INVALID, "--step-batch-size-schedule counts tokens and needs --seq-length");
    }
    MC_TRY(MC_NEW_N(&b->steps, strlen(c->step_schedule) / 2 + 1, "batch size steps"));
    const char *p = c->step_schedule;
    for (;;) {
        while (separates(*p)) {
            p++;
        }
        if (*p == '\0') {
            break;
        }
        MC_TRY(parse_step(&p, c->seq_length, &b->steps[b->n_steps]));
        b->n_steps++;
    }
    sort_steps(b);
    if (b->n_steps == 0 || b->steps[0].threshold != 0) {
        return MC_FAIL(MC_INVALID,
                       "--step-batch-size-schedule \"%s\" says no size for the start; begin with \"0:SIZE\"",
                       c->step_schedule);
    }
    for (int i = 1; i < b->n_steps; i++) {
        if (b->steps[i].threshold == b->steps[i - 1].threshold) {
            return MC_FAIL(MC_INVALID,
                           "--step-batch-size-schedule: sizes %lld and %lld both begin at sample %llu (thresholds are "
                           "tokens, %lld a sample); drop one",
                           (long long)b->steps[i - 1].size, (long long)b->steps[i].size,
                           (unsigned long long)b->steps[i].threshold, (long long)c->seq_length);
        }
    }
    return MC_OK;
}

/* Flags that exclude each other, and ranges. */
static mc_status check_flags(const mt_batch_config *c)
{
    if (c->micro_batch < 1 || c->data_parallel < 1 || c->micro_batch > MAX_BATCH / c->data_parallel) {
        return MC_FAIL(MC_INVALID,
                       "--micro-batch-size %lld on %lld data-parallel ranks: both must be at least 1, their "
                       "product at most %lld",
                       (long long)c->micro_batch, (long long)c->data_parallel, (long long)MAX_BATCH);
    }
    if (c->global_batch > MAX_BATCH) {
        return MC_FAIL(MC_INVALID, "--global-batch-size %lld is above %lld", (long long)c->global_batch,
                       (long long)MAX_BATCH);
    }
    if (c->step_schedule == NULL) {
        return MC_OK;
    }
    const char *other = c->rampup != NULL       ? "--rampup-batch-size"
                        : c->decrease_if_needed ? "--decrease-batch-size-if-needed"
                        : c->global_batch > 0   ? "--global-batch-size"
                                                : NULL;
    return other == NULL ? MC_OK
                         : MC_FAIL(MC_INVALID, "--step-batch-size-schedule and %s exclude each other; drop one", other);
}

/* Every size from `consumed` on must be dealt to the ranks in whole micro-batches. */
static mc_status check_sizes(const mt_batch *b, const mt_batch_config *c)
{
    for (int64_t k = index_at(b, c->consumed); k < n_sizes(b); k++) {
        int64_t size = step_at(b, k).size;
        if (size >= b->unit && size % b->unit == 0) {
            continue;
        }
        int64_t wanted = b->n_steps > 0 ? b->steps[k].size : b->start + k * b->increment, below = wanted / b->unit;
        const char *flag = b->n_steps > 0        ? "--step-batch-size-schedule"
                           : b->n_increments > 0 ? "--rampup-batch-size"
                                                 : "--global-batch-size";
        const char *more = b->decrease || b->n_steps > 0 || below == 0 ? "" : " or --decrease-batch-size-if-needed";
        return MC_FAIL(MC_INVALID,
                       "%s: a global batch of %lld samples is no multiple of --micro-batch-size %lld x %lld "
                       "data-parallel ranks = %lld; use %lld or %lld samples%s",
                       flag, (long long)wanted, (long long)c->micro_batch, (long long)c->data_parallel,
                       (long long)b->unit, (long long)((below > 0 ? below : 1) * b->unit),
                       (long long)((below > 0 ? below + 1 : 2) * b->unit), more);
    }
    return MC_OK;
}

mc_status mt_batch_init(mt_batch *batch, const mt_batch_config *c)
{
    MC_TRY(check_flags(c));
    mt_batch b = {.unit = c->micro_batch * c->data_parallel, .decrease = c->decrease_if_needed};
    b.max = c->global_batch > 0 ? c->global_batch : b.unit;
    b.start = b.max;
    mc_status st = MC_OK;
    if (c->step_schedule != NULL) {
        MC_TRY_GOTO(st, set_steps(&b, c), undo_init);
    } else if (c->rampup != NULL) {
        MC_TRY_GOTO(st, set_ramp(&b, c->rampup), undo_init);
    }
    MC_TRY_GOTO(st, check_sizes(&b, c), undo_init);
    b.max = 0;
    for (int64_t k = 0; k < n_sizes(&b); k++) {
        int64_t size = step_at(&b, k).size;
        b.max = size > b.max ? size : b.max;
    }
    *batch = b;
    return MC_OK;
undo_init:
    mt_batch_fini(&b);
    return st;
}

void mt_batch_fini(mt_batch *batch)
{
    mc_free(batch->steps);
    *batch = (mt_batch){0};
}

int64_t mt_batch_size_at(const mt_batch *b, uint64_t consumed)
{
    return step_at(b, index_at(b, consumed)).size;
}

int64_t mt_batch_max(const mt_batch *b)
{
    return b->max;
}

/* Steps of the size that holds at `consumed`: until the next size takes over. */
static int64_t steps_of_size(const mt_batch *b, uint64_t consumed, int64_t *size_out)
{
    int64_t k = index_at(b, consumed), size = step_at(b, k).size;
    MC_ASSERT(size > 0);
    *size_out = size;
    if (k + 1 == n_sizes(b)) {
        return INT64_MAX;
    }
    uint64_t left = step_at(b, k + 1).threshold - consumed;
    return (int64_t)((left + (uint64_t)size - 1) / (uint64_t)size);
}

int64_t mt_batch_iterations(const mt_batch *b, uint64_t consumed, uint64_t samples)
{
    int64_t n = 0;
    while (consumed < samples) {
        int64_t size, run = steps_of_size(b, consumed, &size);
        int64_t fit = (int64_t)((samples - consumed) / (uint64_t)size);
        if (fit < run) {
            return n + fit;
        }
        n += run;
        consumed += (uint64_t)(run * size);
    }
    return n;
}

uint64_t mt_batch_samples(const mt_batch *b, uint64_t consumed, int64_t iterations)
{
    uint64_t first = consumed;
    while (iterations > 0) {
        int64_t size, run = steps_of_size(b, consumed, &size);
        run = run < iterations ? run : iterations;
        consumed += (uint64_t)run * (uint64_t)size;
        iterations -= run;
    }
    return consumed - first;
}
