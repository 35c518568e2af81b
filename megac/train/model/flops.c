#include "megac/train/model/flops.h"

/* Keys that a token meets on average. With all of them visible the causal half is T / 2 by convention (exactly it would
 * be (T + 1) / 2); with a window of w = left + 1 < T keys it is what remains of that triangle: w - w^2 / 2T. */
static double keys_full(const mt_flops_shape *s)
{
    double t = (double)s->seq_length, w = (double)s->window_left + 1;
    return s->window_left < 0 || w > t ? t : w;
}

static double keys_causal(const mt_flops_shape *s)
{
    double w = keys_full(s);
    return w - w * w / (2.0 * (double)s->seq_length);
}

mt_flops mt_flops_per_token(const mt_flops_shape *s)
{
    double c = (double)s->hidden, layers = (double)s->n_layers;
    double q = (double)s->heads * (double)s->head_dim, kv = (double)s->groups * (double)s->head_dim;
    double weights = c * q + 2.0 * c * kv + q * c + (s->gated ? 3.0 : 2.0) * c * (double)s->ffn;
    mt_flops f = {
        .linear = 2.0 * (layers * weights + c * (double)s->vocab),
        .attention_half = 4.0 * layers * q * keys_causal(s),
        .attention_full = 4.0 * layers * q * keys_full(s),
    };
    f.causal = 3.0 * (f.linear + f.attention_half);
    f.full = 3.0 * (f.linear + f.attention_full);
    return f;
}
