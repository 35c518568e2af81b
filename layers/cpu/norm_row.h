/* One row of a norm: statistics, output, and the pieces of its gradient. Rows and parameters are of type T (typed.h),
 * statistics f32. */
#ifndef LAYERS_CPU_NORM_ROW_H
#define LAYERS_CPU_NORM_ROW_H

#include <math.h>
#include <stdbool.h>

#include "layers/cpu/typed.h"
#include "layers/norm.h"

/* gamma[c..], plus 1 where the norm stores gamma - 1. */
LY_INLINE ly_vf ly_i_gain(mc_dtype type, const void *gamma, int64_t c, int64_t n, bool one_plus)
{
    ly_vf g = ly_tload(type, ly_elem(type, gamma, c), n);
    return one_plus ? ly_vadd(g, ly_vset1(1.0f)) : g;
}

LY_INLINE ly_vf ly_i_xhat(ly_vf h, float mean, float rstd)
{
    return ly_vmul(ly_vsub(h, ly_vset1(mean)), ly_vset1(rstd));
}

/* Mean (0 for RMSNorm) and 1 / sqrt(variance + eps): two passes over a row that is in the first-level cache, so that
 * rows with a large mean lose nothing. */
LY_INLINE void ly_i_norm_stats(mc_dtype type, const void *h, int64_t n_cols, ly_norm_kind kind, float eps,
                               float *mean_out, float *rstd_out)
{
    float mean = 0.0f;
    if (kind == LY_LAYERNORM) {
        ly_vf s = ly_vzero();
        for (int64_t c = 0; c < n_cols; c += LY_LANES) {
            s = ly_vadd(s, ly_tload(type, ly_elem(type, h, c), n_cols - c));
        }
        mean = ly_vsum(s) / (float)n_cols;
    }
    ly_vf q = ly_vzero(), m = ly_vset1(mean);
    for (int64_t c = 0; c < n_cols; c += LY_LANES) {
        ly_vf d = ly_vsub(ly_tload(type, ly_elem(type, h, c), n_cols - c), m);
        if (n_cols - c < LY_LANES) {
            d = ly_vkeep(ly_vmask_n(n_cols - c), d);
        }
        q = ly_vfma(d, d, q);
    }
    *mean_out = mean;
    *rstd_out = 1.0f / sqrtf(ly_vsum(q) / (float)n_cols + eps);
}

LY_INLINE void ly_i_norm_out(mc_dtype type, void *out, const void *h, float mean, float rstd, const void *gamma,
                             bool one_plus, const void *beta, int64_t n_cols)
{
    for (int64_t c = 0; c < n_cols; c += LY_LANES) {
        int64_t n = n_cols - c;
        ly_vf x = ly_i_xhat(ly_tload(type, ly_elem(type, h, c), n), mean, rstd);
        ly_vf b = beta ? ly_tload(type, ly_elem(type, beta, c), n) : ly_vzero();
        ly_tstore(type, ly_elem_out(type, out, c), ly_vfma(x, ly_i_gain(type, gamma, c, n, one_plus), b), n);
    }
}

/* d(norm)/dh . dout = rstd (dg - mean(dg) - xhat mean(dg xhat)) with dg = dout g; RMSNorm has no mean(dg). */
typedef struct ly_i_norm_grad {
    float mean, rstd, mean_dg, mean_dgx;
} ly_i_norm_grad;

LY_INLINE ly_i_norm_grad ly_i_norm_grad_of(mc_dtype type, const void *dout, const void *h, const float *stats,
                                           const void *gamma, bool one_plus, ly_norm_kind kind, int64_t n_cols)
{
    ly_i_norm_grad r = {.mean = stats[0], .rstd = stats[1]};
    ly_vf s = ly_vzero(), sx = ly_vzero();
    for (int64_t c = 0; c < n_cols; c += LY_LANES) {
        int64_t n = n_cols - c;
        ly_vf dg = ly_vmul(ly_tload(type, ly_elem(type, dout, c), n), ly_i_gain(type, gamma, c, n, one_plus));
        s = ly_vadd(s, dg);
        sx = ly_vfma(dg, ly_i_xhat(ly_tload(type, ly_elem(type, h, c), n), r.mean, r.rstd), sx);
    }
    r.mean_dg = kind == LY_LAYERNORM ? ly_vsum(s) / (float)n_cols : 0.0f;
    r.mean_dgx = ly_vsum(sx) / (float)n_cols;
    return r;
}

LY_INLINE ly_vf ly_i_norm_dx(const ly_i_norm_grad *g, ly_vf dout, ly_vf h, ly_vf gain)
{
    ly_vf dg = ly_vmul(dout, gain), x = ly_i_xhat(h, g->mean, g->rstd);
    ly_vf d = ly_vfnma(x, ly_vset1(g->mean_dgx), ly_vsub(dg, ly_vset1(g->mean_dg)));
    return ly_vmul(d, ly_vset1(g->rstd));
}

#endif
