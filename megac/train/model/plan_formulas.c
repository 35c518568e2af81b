#include "megac/train/model/plan_formulas.h"

#include <math.h>

/* Rajbhandari et al. 2020 (ZeRO), section 3: 2 bytes of parameter, 2 of gradient, `optimizer` bytes: 12 of fp32
 * parameter and moments, 16 with fp32 gradient sums. */
static double zero_states(const mt_formula_input *in, double optimizer)
{
    double n = (double)in->parameters / (in->tp * in->pp), dp = in->shared_by;
    return 2 * n / (in->zero >= 3 ? dp : 1) + 2 * n / (in->zero >= 2 ? dp : 1) +
           optimizer * n / (in->zero >= 1 ? dp : 1);
}

/* Megatron-LM's theoretical_memory_usage.py: gradients in fp32. */
static double megatron_states(const mt_formula_input *in)
{
    double n = (double)in->parameters / (in->tp * in->pp);
    return in->zero > 0 ? n * (6 + 12.0 / in->shared_by) : 18 * n;
}

/* Korthikanti et al. 2022 (Reducing Activation Recomputation), table 2: 16-bit activations of the first pipeline stage,
 * which holds as many micro-batches of its layers as make up one of the whole model. */
static double korthikanti(const mt_formula_input *in)
{
    const mt_model_config *c = in->model;
    double t = in->tp, sbh = (double)c->seq_length * (double)in->micro_batch * (double)c->hidden;
    double scores = in->recompute.core_attn ? 0 : 5.0 * c->heads * (double)c->seq_length / ((double)c->hidden * t);
    double layer = in->sequence_parallel ? 34 / t + scores : in->tp > 1 ? 10 + 24 / t + scores : 34 + scores;
    double again = fmin((double)in->recompute.full_layers * in->pp, c->n_layers);
    double inputs = again > 0 ? again / in->recompute.group : 0;
    return sbh *
           ((c->n_layers - again) * layer + inputs * 2 / (in->sequence_parallel || in->recompute.distribute ? t : 1));
}

/* Megatron-LM's theoretical_memory_usage.py, the part of its layers: selective recomputation with sequence parallelism,
 * whatever the flags. */
static double megatron_activations(const mt_formula_input *in)
{
    const mt_model_config *c = in->model;
    double sbh = (double)c->seq_length * (double)in->micro_batch * (double)c->hidden;
    return sbh * c->n_layers / in->tp * (18 + 4 * (double)c->ffn / (double)c->hidden);
}

void mt_plan_formulas(const mt_formula_input *in, mt_formula out[MT_FORMULAS])
{
    const mt_model_config *c = in->model;
    double n = (double)in->parameters, tokens = (double)c->seq_length * (double)in->micro_batch;
    const mt_formula all[MT_FORMULAS] = {
        {"ZeRO states (Rajbhandari et al. 2020)", "(2 + 2 + 12) bytes a parameter, shared out by stage",
         "activations, buffers; assumes 16-bit gradients", zero_states(in, 12)},
        {"ZeRO states with fp32 gradient sums", "(2 + 2 + 16) bytes a parameter, shared out by stage",
         "activations, buffers; assumes 16-bit gradients beside their sums", zero_states(in, 16)},
        {"Megatron-LM states", "18 bytes a parameter; 6 + 12 / DP with the distributed optimizer",
         "activations, buffers; assumes 16-bit training", megatron_states(in)},
        {"activations (Korthikanti et al. 2022)", "s b h L (34 + 5 a s / h) and its variants for TP, SP, recomputation",
         "flash attention (no 5 a s / h), grouped queries, gated MLPs, embedding, output layer and logits",
         korthikanti(in)},
        {"activations (Megatron-LM's report)", "s b h L / TP (18 + 4 f / h)",
         "attention scores, whole-block recomputation, grouped queries, a gated MLP's second matrix, logits",
         megatron_activations(in)},
        {"rule of thumb 2 + 2 + 8, one device", "12 bytes a parameter + 10 x 2 h L bytes a token",
         "fp32 parameters, layout, logits; an MLP that is not 4 h",
         12 * n + tokens * 10 * 2 * (double)c->hidden * c->n_layers},
        {"rule of thumb 2 + 12 + 4, one device", "18 bytes a parameter", "activations, layout", 18 * n},
    };
    for (int i = 0; i < MT_FORMULAS; i++) {
        out[i] = all[i];
    }
}
