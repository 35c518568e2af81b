/* Values that a stage starts with, and those that it gives back to the host. */
#include <math.h>

#include "megac/train/model/host_view.h"
#include "megac/train/model/stage.h"

/* Inverse frequency of pair i of `half`, after Llama 3.1's scaling where asked: long wavelengths are stretched by the
 * factor, short ones kept, those between mixed (Llama 3.1 reference: low 1, high 4, original context 8192). */
static double rope_frequency(const mt_rope_config *r, int64_t i, int64_t half)
{
    double f = pow(r->base, -(double)i / (double)half);
    if (!r->llama3_scaling) {
        return f;
    }
    const double low = 1, high = 4, original = 8192;
    double wavelength = 6.283185307179586 / f;
    if (wavelength > original / low) {
        return f / r->scaling_factor;
    }
    if (wavelength < original / high) {
        return f;
    }
    double mix = (original / wavelength - low) / (high - low);
    return (1 - mix) * f / r->scaling_factor + mix * f;
}

/* One table on the host, then on the device. */
static mc_status init_rope(mt_stage *s, mc_tensor table, double (*f)(double))
{
    mt_host_view v;
    MC_TRY(mt_host_view_open(&v, s->dev, s->ly.stream, table, false));
    int64_t half = table.dims[1];
    float *out = v.host.data;
    for (int64_t i = 0; i < half; i++) {
        double frequency = rope_frequency(&s->c->rope, i, half);
        for (int64_t t = 0; t < s->c->seq_length; t++) {
            out[t * half + i] = (float)f((double)t / s->c->rope.interpolation_factor * frequency);
        }
    }
    mc_status st = mt_host_view_write(&v);
    mt_host_view_close(&v);
    return st;
}

/* In f32 always: the same numbers in any precision, rounded. */
static mc_status init_params(mt_stage *s, mc_pool *pool)
{
    mt_host_view v;
    MC_TRY(mt_host_view_open(&v, s->dev, s->ly.stream, s->shards.main_store, false));
    for (int u = 0; u < s->params.n_units; u++) {
        const mt_shard *d = &s->shards.units[u];
        int64_t begin = s->place.zero > 0 ? d->begin : s->params.units[u].begin;
        mt_params_init(&s->params, s->c->seed, begin, mc_tensor_slice(v.host, 0, d->main_at, d->main.dims[0]), pool);
    }
    mc_status st = mt_host_view_write(&v);
    mt_host_view_close(&v);
    return st == MC_OK ? mt_stage_refresh_params(s) : st;
}

mc_status mt_stage_init_values(mt_stage *s, mc_pool *pool)
{
    if (mc_tensor_present(s->x.rope_cos)) {
        MC_TRY(init_rope(s, s->x.rope_cos, cos));
        MC_TRY(init_rope(s, s->x.rope_sin, sin));
    }
    return init_params(s, pool);
}

mc_status mt_stage_refresh_params(mt_stage *s)
{
    MC_TRY(mt_shards_publish(&s->shards, true));
    return mt_shards_settle(&s->shards);
}

mc_status mt_stage_fetch_losses(mt_stage *s, int n_micro)
{
    if (!mt_has_head(&s->place)) {
        return MC_OK;
    }
    size_t bytes = mc_tensor_bytes(mc_tensor_slice(s->losses, 0, 0, n_micro));
    return s->dev->ops->copy(s->dev, s->host_losses.data, s->losses.data, bytes, s->ly.stream);
}

double mt_stage_loss_sum(const mt_stage *s, int n_micro)
{
    double sum = 0;
    int64_t n = mt_has_head(&s->place) ? s->host_losses.dims[1] * n_micro : 0;
    const float *losses = s->host_losses.data;
    for (int64_t i = 0; i < n; i++) {
        sum += losses[i];
    }
    return sum;
}
