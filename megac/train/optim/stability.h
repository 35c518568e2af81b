/* Watches loss and gradient norm for what should not be trained on. Both are sums over all ranks, so every rank judges
 * alike. */
#ifndef MEGAC_TRAIN_OPTIM_STABILITY_H
#define MEGAC_TRAIN_OPTIM_STABILITY_H

#include <stddef.h>

#include "megac/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What to do about a step: leave its update out; leave it out and go back to the last checkpoint's model, passing over
 * the data since then; end the run. */
typedef enum { MT_POLICY_SKIP, MT_POLICY_REWIND, MT_POLICY_STOP } mt_policy;

typedef enum { MT_SANE, MT_NOT_FINITE, MT_LARGE_NORM, MT_NORM_SPIKE, MT_LOSS_SPIKE, MT_LOSS_OUTLIER } mt_finding;

/* A limit of 0 is not looked at. */
typedef struct mt_stability_config {
    double norm_limit;  /* largest gradient norm */
    double norm_factor; /* x the mean norm of the last `window` steps: largest norm */
    double loss_factor; /* the same for the loss */
    double z_score;     /* standard deviations of the last losses above their mean: largest loss */
    int window;
    mt_policy spike_policy, nan_policy;
} mt_stability_config;

/* Losses and norms of the last steps that updated the model, which alone are compared with: nothing that was found
 * enters the statistics, so they stay finite. Kept in checkpoints. */
typedef struct mt_stability {
    mt_stability_config config;
    double *losses, *norms; /* (window), a ring; NULL: no limit needs them */
    int n, next;
} mt_stability;

mc_status mt_stability_init(mt_stability *s, const mt_stability_config *config) MC_MUST_CHECK;
void mt_stability_fini(mt_stability *s);

/* Judges a step. Limits that need the last steps hold once there are `window` of them. `text_out` says what was found,
 * with values; empty for MT_SANE. */
mt_finding mt_stability_judge(const mt_stability *s, double loss, double norm, char *text_out, size_t cap);
/* A few words for the finding, and the policy's name. */
const char *mt_finding_name(mt_finding finding);
const char *mt_policy_name(mt_policy policy);
mt_policy mt_policy_of(const mt_stability_config *c, mt_finding finding);

/* Records a step that updated the model. */
void mt_stability_accept(mt_stability *s, double loss, double norm);
/* The recorded steps, oldest first, into arrays of `window`; returns their number. And back: the last `window` of n. */
int mt_stability_history(const mt_stability *s, double *losses_out, double *norms_out);
void mt_stability_restore(mt_stability *s, const double *losses, const double *norms, int n);

#ifdef __cplusplus
}
#endif
#endif
