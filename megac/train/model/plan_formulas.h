/* The literature's estimates of a rank's memory, to stand beside the plan's exact bytes. */
#ifndef MEGAC_TRAIN_MODEL_PLAN_FORMULAS_H
#define MEGAC_TRAIN_MODEL_PLAN_FORMULAS_H

#include "megac/train/model/model_config.h"
#include "megac/train/model/recompute.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What the formulas take. */
typedef struct mt_formula_input {
    const mt_model_config *model;
    int64_t parameters; /* of the whole model */
    int tp, pp;
    int shared_by; /* replicas that share out by the ZeRO stage: DP, or those of an instance */
    int zero;
    bool sequence_parallel;
    mt_recompute recompute;
    int64_t micro_batch;
} mt_formula_input;

typedef struct mt_formula {
    const char *name;
    const char *text; /* the formula */
    const char *leaves_out;
    double bytes;
} mt_formula;

enum { MT_FORMULAS = 7 };

/* For the busiest rank of the layout, as each formula's authors count. */
void mt_plan_formulas(const mt_formula_input *in, mt_formula out[MT_FORMULAS]);

#ifdef __cplusplus
}
#endif
#endif
