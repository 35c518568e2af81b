#include "megac/train/optim/stability.h"

#include <math.h>
#include <stdio.h>

#include "megac/base/alloc.h"

mc_status mt_stability_init(mt_stability *s, const mt_stability_config *config)
{
    *s = (mt_stability){.config = *config};
    if (!(config->norm_factor > 0 || config->loss_factor > 0 || config->z_score > 0)) {
        return MC_OK;
    }
    mc_status st;
    MC_TRY_GOTO(st, MC_NEW_N(&s->losses, config->window, "losses of the last steps"), undo_stability);
    MC_TRY_GOTO(st, MC_NEW_N(&s->norms, config->window, "gradient norms of the last steps"), undo_stability);
    return MC_OK;
undo_stability:
    mt_stability_fini(s);
    return st;
}

void mt_stability_fini(mt_stability *s)
{
    mc_free(s->losses);
    mc_free(s->norms);
    *s = (mt_stability){0};
}

static double mean_of(const double *v, int n)
{
    double sum = 0;
    for (int i = 0; i < n; i++) {
        sum += v[i];
    }
    return sum / n;
}

static double deviation_of(const double *v, int n, double mean)
{
    double sum = 0;
    for (int i = 0; i < n; i++) {
        sum += (v[i] - mean) * (v[i] - mean);
    }
    return sqrt(sum / n);
}

/* What a ratio to the mean of the last steps says. */
static bool spikes(const mt_stability *s, const double *last, const char *what, double value, double factor, char *text,
                   size_t cap)
{
    double mean = factor > 0 ? mean_of(last, s->n) : 0;
    if (!(factor > 0 && value > factor * mean)) {
        return false;
    }
    snprintf(text, cap, "%s %.6g is above %g times %.6g, the mean of the last %d steps", what, value, factor, mean,
             s->n);
    return true;
}

mt_finding mt_stability_judge(const mt_stability *s, double loss, double norm, char *text_out, size_t cap)
{
    const mt_stability_config *c = &s->config;
    text_out[0] = 0;
    if (!isfinite(loss) || !isfinite(norm)) {
        snprintf(text_out, cap, "loss %.6g, gradient norm %.6g", loss, norm);
        return MT_NOT_FINITE;
    }
    if (c->norm_limit > 0 && norm > c->norm_limit) {
        snprintf(text_out, cap, "gradient norm %.6g is above the limit %g", norm, c->norm_limit);
        return MT_LARGE_NORM;
    }
    if (!s->losses || s->n < c->window) {
        return MT_SANE;
    }
    if (spikes(s, s->norms, "gradient norm", norm, c->norm_factor, text_out, cap)) {
        return MT_NORM_SPIKE;
    }
    if (spikes(s, s->losses, "loss", loss, c->loss_factor, text_out, cap)) {
        return MT_LOSS_SPIKE;
    }
    double mean = mean_of(s->losses, s->n), deviation = deviation_of(s->losses, s->n, mean);
    if (c->z_score > 0 && deviation > 0 && loss - mean > c->z_score * deviation) {
        snprintf(text_out, cap, "loss %.6g is %.3g standard deviations above %.6g, the mean of the last %d steps", loss,
                 (loss - mean) / deviation, mean, s->n);
        return MT_LOSS_OUTLIER;
    }
    return MT_SANE;
}

const char *mt_finding_name(mt_finding finding)
{
    static const char *const names[] = {"sane",       "not finite",  "gradient norm limit", "gradient norm spike",
                                        "loss spike", "loss outlier"};
    return names[finding];
}

const char *mt_policy_name(mt_policy policy)
{
    static const char *const names[] = {"skip", "rewind", "stop"};
    return names[policy];
}

mt_policy mt_policy_of(const mt_stability_config *c, mt_finding finding)
{
    return finding == MT_NOT_FINITE ? c->nan_policy : c->spike_policy;
}

void mt_stability_accept(mt_stability *s, double loss, double norm)
{
    if (!s->losses) {
        return;
    }
    s->losses[s->next] = loss;
    s->norms[s->next] = norm;
    s->next = (s->next + 1) % s->config.window;
    s->n += s->n < s->config.window;
}

int mt_stability_history(const mt_stability *s, double *losses_out, double *norms_out)
{
    for (int i = 0; i < s->n; i++) {
        int at = (s->next - s->n + i + s->config.window) % s->config.window;
        losses_out[i] = s->losses[at];
        norms_out[i] = s->norms[at];
    }
    return s->n;
}

void mt_stability_restore(mt_stability *s, const double *losses, const double *norms, int n)
{
    s->n = s->next = 0;
    for (int i = n > s->config.window ? n - s->config.window : 0; i < n; i++) {
        mt_stability_accept(s, losses[i], norms[i]);
    }
}
