/* exp, log, tanh, erf and sigmoid on 16 lanes, in f32.
 *
 * Errors (measured over the whole range by tests/layers/test_simd.c) stay within 2.5 units in the last place where the
 * result is a normal number. NaN gives NaN; infinities give the limits. Polynomials: weighted minimax fits made for
 * this file, in Horner form. */
#ifndef LAYERS_CPU_VMATH_H
#define LAYERS_CPU_VMATH_H

#include "layers/cpu/simd.h"

/* c[n-1] x^(n-1) + ... + c[0] */
LY_INLINE ly_vf ly_vpoly(ly_vf x, const float *c, int n)
{
    ly_vf r = ly_vset1(c[n - 1]);
    for (int i = n - 2; i >= 0; i--) {
        r = ly_vfma(r, x, ly_vset1(c[i]));
    }
    return r;
}

/* 2^n for -252 <= n <= 256, as two factors, so that neither overflows: p 2^n = p * lo * hi. */
LY_INLINE ly_vf ly_vscale2(ly_vf p, ly_vi n)
{
    ly_vi half = ly_visra(n, 1), rest = ly_visub(n, half), bias = ly_viset1(127);
    ly_vf lo = ly_vfrombits(ly_visll(ly_viadd(half, bias), 23)), hi = ly_vfrombits(ly_visll(ly_viadd(rest, bias), 23));
    return ly_vmul(ly_vmul(p, lo), hi);
}

/* e^x: overflow gives inf, underflow denormals and 0. */
LY_INLINE ly_vf ly_vexp(ly_vf x)
{
    static const float c[] = {
        1.0f, 1.0f, 5.000000101e-01f, 1.666651289e-01f, 4.166618728e-02f, 8.369598410e-03f, 1.395171725e-03f};
    /* The constant first: a NaN in x passes through min and max. */
    ly_vf y = ly_vmin(ly_vset1(90.0f), ly_vmax(ly_vset1(-106.0f), x));
    /* Adding 1.5 * 2^23 rounds to an integer and leaves it in the low mantissa bits. */
    ly_vf magic = ly_vset1(12582912.0f), t = ly_vfma(y, ly_vset1(1.44269504f), magic), n = ly_vsub(t, magic);
    ly_vi k = ly_visub(ly_vbits(t), ly_viset1(0x4b400000));
    /* ln 2 in two parts: n * high is exact (9 bits times at most 8). */
    ly_vf r = ly_vfnma(n, ly_vset1(-2.12194440e-4f), ly_vfnma(n, ly_vset1(0.693359375f), y));
    return ly_vscale2(ly_vpoly(r, c, 7), k);
}

/* 1 / (1 + e^-x) */
LY_INLINE ly_vf ly_vsigmoid(ly_vf x)
{
    ly_vf one = ly_vset1(1.0f);
    return ly_vdiv(one, ly_vadd(one, ly_vexp(ly_vsub(ly_vzero(), x))));
}

LY_INLINE ly_vf ly_vtanh(ly_vf x)
{
    static const float c[] = {-3.333328164e-01f, 1.333142476e-01f, -5.373761014e-02f, 2.063040232e-02f,
                              -5.693510060e-03f};
    ly_vf a = ly_vabs(x), z = ly_vmul(x, x), one = ly_vset1(1.0f);
    ly_vf small = ly_vfma(ly_vmul(ly_vpoly(z, c, 5), z), x, x);
    ly_vf e = ly_vadd(ly_vexp(ly_vadd(a, a)), one);
    ly_vf big = ly_vcopysign(ly_vsub(one, ly_vdiv(ly_vset1(2.0f), e)), x);
    return ly_vselect(ly_vlt(a, ly_vset1(0.625f)), small, big);
}

/* Below 0.92 x + x times an even polynomial; above, 1 - exp(-g) with g fitted to -log(erfc). */
LY_INLINE ly_vf ly_verf(ly_vf x)
{
    static const float c[] = {0.128379167f,     -3.761263356e-01f, 1.128369279e-01f, -2.685924848e-02f,
                              5.200660961e-03f, -8.138492627e-04f, 8.352300125e-05f};
    static const float g[] = {-1.692051244e-04f, 1.129488406e+00f, 6.334008509e-01f,  1.082203840e-01f,
                              -2.508061646e-02f, 4.156254900e-03f, -4.313935622e-04f, 2.082861810e-05f};
    ly_vf a = ly_vabs(x), one = ly_vset1(1.0f);
    ly_vf small = ly_vfma(ly_vpoly(ly_vmul(x, x), c, 7), x, x);
    ly_vf e = ly_vexp(ly_vsub(ly_vzero(), ly_vpoly(ly_vmin(ly_vset1(4.0f), a), g, 8)));
    return ly_vselect(ly_vlt(a, ly_vset1(0.92f)), small, ly_vcopysign(ly_vsub(one, e), x));
}

/* Natural logarithm: 0 gives -inf, negative numbers NaN; denormals count as 0. */
LY_INLINE ly_vf ly_vlog(ly_vf x)
{
    static const float c[] = {3.333331197e-01f,  -2.500000872e-01f, 2.000216714e-01f,
                              -1.666809016e-01f, 1.421855293e-01f,  -1.240308633e-01f,
                              1.189352495e-01f,  -1.169432444e-01f, 6.757530884e-02f};
    const float inf = __builtin_inff();
    /* The arithmetic runs on 1 where the result is special. */
    ly_vf y = ly_vselect(ly_vlt(x, ly_vset1(inf)), x, ly_vset1(1.0f));
    y = ly_vselect(ly_vlt(y, ly_vset1(1.17549435e-38f)), ly_vset1(1.0f), y);
    /* y = 2^k m with m in [sqrt(1/2), sqrt(2)): subtracting the bits of sqrt(1/2) moves the cut there. */
    ly_vi b = ly_visub(ly_vbits(y), ly_viset1(0x3f3504f3)), k = ly_visra(b, 23);
    ly_vf m = ly_vfrombits(ly_viadd(ly_viand(b, ly_viset1(0x007fffff)), ly_viset1(0x3f3504f3)));
    ly_vf f = ly_vsub(m, ly_vset1(1.0f)), n = ly_vtofloat(k), ff = ly_vmul(f, f);
    ly_vf p = ly_vmul(ly_vmul(ly_vpoly(f, c, 9), f), ff);
    p = ly_vfma(n, ly_vset1(-2.12194440e-4f), p);
    p = ly_vfma(ly_vset1(-0.5f), ff, p);
    ly_vf r = ly_vfma(n, ly_vset1(0.693359375f), ly_vadd(f, p));
    r = ly_vselect(ly_vlt(x, ly_vset1(inf)), r, x); /* inf and NaN stand for themselves */
    r = ly_vselect(ly_vlt(x, ly_vset1(1.17549435e-38f)), ly_vset1(-inf), r);
    return ly_vselect(ly_vlt(x, ly_vzero()), ly_vset1(__builtin_nanf("")), r);
}

#endif
