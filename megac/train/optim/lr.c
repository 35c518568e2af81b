#include "megac/train/optim/lr.h"

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

static const double PI = 3.14159265358979323846;

/* From 1 at ratio 0 to 0 at ratio 1. */
static double wsd_share(mt_wsd_style style, double ratio)
{
    switch (style) {
    case MT_WSD_EXPONENTIAL:
        return 2.0 * pow(0.5, ratio) - 1.0;
    case MT_WSD_LINEAR:
        return 1.0 - ratio;
    case MT_WSD_COSINE:
        return 0.5 * (cos(PI * ratio) + 1.0);
    case MT_WSD_MINUS_SQRT:
        return 1.0 - sqrt(ratio);
    }
    return 0.0;
}

static double rate_at(const mt_lr_config *c, double max_lr, double min_lr, double at)
{
    if (c->warmup_samples > 0 && at <= c->warmup_samples) {
        return c->warmup_init + (max_lr - c->warmup_init) * at / c->warmup_samples;
    }
    if (c->style == MT_LR_CONSTANT) {
        return max_lr;
    }
    if (at > c->decay_samples) {
        return min_lr;
    }
    double ratio = (at - c->warmup_samples) / (c->decay_samples - c->warmup_samples);
    double share = 0.0;
    switch (c->style) {
    case MT_LR_CONSTANT:
        break;
    case MT_LR_INVERSE_SQRT:
        return fmax(min_lr, max_lr * sqrt(fmax(c->warmup_samples, 1.0)) / sqrt(fmax(at, 1.0)));
    case MT_LR_LINEAR:
        share = 1.0 - ratio;
        break;
    case MT_LR_COSINE:
        share = 0.5 * (cos(PI * ratio) + 1.0);
        break;
    case MT_LR_WSD: {
        double start = c->decay_samples - c->wsd_samples;
        share = at <= start ? 1.0 : wsd_share(c->wsd_style, (at - start) / c->wsd_samples);
        break;
    }
    }
    return min_lr + share * (max_lr - min_lr);
}

double mt_lr_at(const mt_lr_config *c, double progress_samples)
{
    return rate_at(c, c->max_lr, c->min_lr, progress_samples);
}

double mt_decoupled_lr_at(const mt_lr_config *c, double progress_samples)
{
    return rate_at(c, c->decoupled_max_lr, c->decoupled_min_lr, progress_samples);
}

double mt_weight_decay_at(const mt_lr_config *c, double progress_samples)
{
    if (c->wd_style == MT_DECAY_CONSTANT || progress_samples > c->wd_samples) {
        return c->end_wd;
    }
    double ratio = progress_samples / c->wd_samples;
    double share = c->wd_style == MT_DECAY_LINEAR ? ratio : 0.5 * (cos(PI * (1.0 - ratio)) + 1.0);
    return c->start_wd + share * (c->end_wd - c->start_wd);
}

/* Index of `word` in the list; `fallback` when it is NULL. */
static mc_status choose(const char *flag, const char *word, const char *const *words, int n, int fallback, int *out)
{
    if (word == NULL) {
        *out = fallback;
        return MC_OK;
    }
    char known[128] = "";
    for (int i = 0; i < n; i++) {
        if (strcmp(word, words[i]) == 0) {
            *out = i;
            return MC_OK;
        }
        size_t used = strlen(known);
        snprintf(known + used, sizeof known - used, "%s%s", i > 0 ? ", " : "", words[i]);
    }
    return MC_FAIL(MC_INVALID, "%s \"%s\" is not known; choose one of: %s", flag, word, known);
}

static mc_status set_styles(mt_lr_config *c, const mt_lr_flags *f)
{
    static const char *const lr[] = {"constant", "linear", "cosine", "inverse-square-root", "WSD"};
    static const char *const wsd[] = {"exponential", "linear", "cosine", "minus_sqrt"};
    static const char *const wd[] = {"constant", "linear", "cosine"};
    int i = 0;
    MC_TRY(choose("--lr-decay-style", f->lr_decay_style, lr, 5, MT_LR_LINEAR, &i));
    c->style = (mt_lr_style)i;
    MC_TRY(choose("--lr-wsd-decay-style", f->lr_wsd_decay_style, wsd, 4, MT_WSD_EXPONENTIAL, &i));
    c->wsd_style = (mt_wsd_style)i;
    MC_TRY(choose("--weight-decay-incr-style", f->weight_decay_incr_style, wd, 3, MT_DECAY_CONSTANT, &i));
    c->wd_style = (mt_decay_incr_style)i;
    return MC_OK;
}

/* Lengths, all in samples. */
static mc_status set_lengths(mt_lr_config *c, const mt_lr_flags *f)
{
    bool by_samples = f->train_samples >= 0;
    if (by_samples == (f->train_iters >= 0)) {
        return MC_FAIL(MC_INVALID, "the length of the run must be given by one of --train-iters and --train-samples");
    }
    const struct {
        const char *name;
        int64_t value;
    } other[] = {
        {by_samples ? "--lr-decay-iters" : "--lr-decay-samples", by_samples ? f->lr_decay_iters : f->lr_decay_samples},
        {by_samples ? "--lr-warmup-iters" : "--lr-warmup-samples",
         by_samples ? f->lr_warmup_iters : f->lr_warmup_samples},
        {by_samples ? "--lr-wsd-decay-iters" : "--lr-wsd-decay-samples",
         by_samples ? f->lr_wsd_decay_iters : f->lr_wsd_decay_samples},
    };
    for (int i = 0; i < 3; i++) {
        if (other[i].value > 0) {
            return MC_FAIL(MC_INVALID, "%s %lld does not go with --train-%s; give the one in %s", other[i].name,
                           (long long)other[i].value, by_samples ? "samples" : "iters",
                           by_samples ? "samples" : "iterations");
        }
    }
    double unit = by_samples ? 1.0 : (double)f->global_batch;
    int64_t length = by_samples ? f->train_samples : f->train_iters;
    int64_t decay = by_samples ? f->lr_decay_samples : f->lr_decay_iters;
    int64_t warmup = by_samples ? f->lr_warmup_samples : f->lr_warmup_iters;
    int64_t wsd = by_samples ? f->lr_wsd_decay_samples : f->lr_wsd_decay_iters;
    c->wd_samples = unit * (double)length;
    c->decay_samples = unit * (double)(decay >= 0 ? decay : length);
    c->warmup_samples = warmup > 0 ? unit * (double)warmup : 0.0;
    c->wsd_samples = wsd > 0 ? unit * (double)wsd : 0.0;
    if (!isnan(f->lr_warmup_fraction)) {
        if (warmup > 0) {
            return MC_FAIL(MC_INVALID, "--lr-warmup-fraction and --lr-warmup-%s exclude each other; drop one",
                           by_samples ? "samples" : "iters");
        }
        c->warmup_samples = f->lr_warmup_fraction * c->decay_samples;
    }
    return MC_OK;
}

static mc_status check_lengths(const mt_lr_config *c)
{
    if (!(c->decay_samples > 0)) {
        return MC_FAIL(MC_INVALID, "the learning rate has %g samples to decay over; train for at least one step",
                       c->decay_samples);
    }
    if (!(c->warmup_samples >= 0 && c->warmup_samples < c->decay_samples)) {
        return MC_FAIL(MC_INVALID,
                       "warm-up of %g samples is not shorter than the decay of the learning rate, %g samples; shorten "
                       "--lr-warmup-... or lengthen --lr-decay-...",
                       c->warmup_samples, c->decay_samples);
    }
    if (c->style == MT_LR_WSD && !(c->wsd_samples > 0 && c->wsd_samples <= c->decay_samples)) {
        return MC_FAIL(
            MC_INVALID,
            "--lr-decay-style WSD: the last phase has %g samples of the decay's %g; set --lr-wsd-decay-iters "
            "or --lr-wsd-decay-samples to a part of it",
            c->wsd_samples, c->decay_samples);
    }
    return MC_OK;
}

static mc_status set_rates(mt_lr_config *c, const mt_lr_flags *f)
{
    if (isnan(f->lr)) {
        return MC_FAIL(MC_INVALID, "--lr is required; give a value such as 3e-4");
    }
    c->max_lr = f->lr;
    c->min_lr = isnan(f->min_lr) ? 0.0 : f->min_lr;
    c->warmup_init = isnan(f->lr_warmup_init) ? 0.0 : f->lr_warmup_init;
    c->decoupled_max_lr = isnan(f->decoupled_lr) ? c->max_lr : f->decoupled_lr;
    c->decoupled_min_lr = isnan(f->decoupled_min_lr) || isnan(f->decoupled_lr) ? c->min_lr : f->decoupled_min_lr;
    if (!(c->min_lr >= 0 && c->min_lr <= c->max_lr)) {
        return MC_FAIL(MC_INVALID, "--min-lr %g must lie between 0 and --lr %g", c->min_lr, c->max_lr);
    }
    if (!(c->warmup_init >= 0 && c->warmup_init <= c->max_lr)) {
        return MC_FAIL(MC_INVALID, "--lr-warmup-init %g must lie between 0 and --lr %g", c->warmup_init, c->max_lr);
    }
    if (!(c->decoupled_min_lr >= 0 && c->decoupled_min_lr <= c->decoupled_max_lr)) {
        return MC_FAIL(MC_INVALID, "--decoupled-min-lr %g (default: --min-lr) must lie between 0 and --decoupled-lr %g",
                       c->decoupled_min_lr, c->decoupled_max_lr);
    }
    return MC_OK;
}

static mc_status set_weight_decay(mt_lr_config *c, const mt_lr_flags *f)
{
    double decay = isnan(f->weight_decay) ? 0.01 : f->weight_decay;
    bool start = !isnan(f->start_weight_decay), end = !isnan(f->end_weight_decay);
    c->start_wd = start ? f->start_weight_decay : decay;
    c->end_wd = end ? f->end_weight_decay : decay;
    if (c->wd_style == MT_DECAY_CONSTANT && c->start_wd != c->end_wd) {
        return MC_FAIL(MC_INVALID,
                       "weight decay from %g to %g needs --weight-decay-incr-style linear or cosine; constant keeps "
                       "--weight-decay",
                       c->start_wd, c->end_wd);
    }
    if (c->wd_style != MT_DECAY_CONSTANT && !(start && end)) {
        return MC_FAIL(MC_INVALID,
                       "--weight-decay-incr-style %s needs both --start-weight-decay and --end-weight-decay",
                       f->weight_decay_incr_style);
    }
    if (!(c->start_wd >= 0 && c->start_wd <= c->end_wd)) {
        return MC_FAIL(MC_INVALID, "weight decay from %g to %g: it must not be negative and must not fall", c->start_wd,
                       c->end_wd);
    }
    return MC_OK;
}

mc_status mt_lr_init(mt_lr_config *config, const mt_lr_flags *f)
{
    mt_lr_config c = {0};
    MC_TRY(set_styles(&c, f));
    MC_TRY(set_lengths(&c, f));
    MC_TRY(set_rates(&c, f));
    MC_TRY(check_lengths(&c));
    MC_TRY(set_weight_decay(&c, f));
    *config = c;
    return MC_OK;
}
