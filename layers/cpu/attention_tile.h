/* The register tile that every product of attention_*_cpu.c goes through, and how blocks are laid out for it.
 *
 *   c (rows, lanes) (+)= sum over p of a(row, p) * b(p, lanes)
 *
 * a is read one float at a time with any strides, b and c are rows of lanes. All blocks lie in a thread's scratch,
 * padded to whole tiles, so that no tile has an edge. Every element of c is one chain of multiply-adds in the order of
 * p that starts from the old c, so a sum does not depend on how its range is cut into blocks. */
#ifndef LAYERS_CPU_ATTENTION_TILE_H
#define LAYERS_CPU_ATTENTION_TILE_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "layers/cpu/typed.h"

#ifdef __cplusplus
extern "C" {
#endif

/* LY_AT_ROWS x LY_AT_VECS accumulators fill the registers. */
#if defined(__AVX512F__)
enum { LY_AT_ROWS = 12, LY_AT_VECS = 2 };
#elif defined(__AVX2__)
enum { LY_AT_ROWS = 6, LY_AT_VECS = 1 };
#elif defined(__x86_64__)
enum { LY_AT_ROWS = 3, LY_AT_VECS = 1 };
#else
enum { LY_AT_ROWS = 6, LY_AT_VECS = 1 };
#endif
enum { LY_AT_LANES = LY_AT_VECS * LY_LANES };

/* A view of rows: element (i, h) at p[i * row + h]. */
typedef struct ly_at_rows {
    float *p;
    int64_t row;
} ly_at_rows;

/* The same in memory of type T: element (i, h) is number i * row + h. */
typedef struct ly_at_typed {
    void *p;
    int64_t row;
    mc_dtype type;
} ly_at_typed;

/* One operand of a tile product: element (i, p) at x[i * row + p * step]. */
typedef struct ly_at_operand {
    const float *x;
    int64_t row, step;
} ly_at_operand;

LY_INLINE int64_t ly_at_round_up(int64_t n, int64_t unit)
{
    return (n + unit - 1) / unit * unit;
}

/* Row stride of a block of `cols` columns: an odd number of cache lines, so that rows spread over all cache sets. */
LY_INLINE int64_t ly_at_stride(int64_t cols)
{
    return (((cols + LY_LANES - 1) / LY_LANES) | 1) * LY_LANES;
}

/* p in [begin, end); b (p, lanes) at b[p * b_step], c rows c_row apart. `vecs` (1 .. LY_AT_VECS) is a constant. */
LY_INLINE void ly_at_tile(int vecs, int64_t begin, int64_t end, ly_at_operand a, const float *b, int64_t b_step,
                          float *c, int64_t c_row, bool accumulate)
{
    ly_vf acc[LY_AT_ROWS][LY_AT_VECS];
#pragma GCC unroll 16
    for (int i = 0; i < LY_AT_ROWS; i++) {
#pragma GCC unroll 2
        for (int v = 0; v < vecs; v++) {
            acc[i][v] = accumulate ? ly_vload(c + i * c_row + v * LY_LANES) : ly_vset1(0.0f);
        }
    }
    const float *ap = a.x + begin * a.step, *bp = b + begin * b_step;
    for (int64_t p = begin; p < end; p++, ap += a.step, bp += b_step) {
        ly_vf bv[LY_AT_VECS];
#pragma GCC unroll 2
        for (int v = 0; v < vecs; v++) {
            bv[v] = ly_vload(bp + v * LY_LANES);
        }
#pragma GCC unroll 16
        for (int i = 0; i < LY_AT_ROWS; i++) {
            ly_vf av = ly_vset1(ap[i * a.row]);
#pragma GCC unroll 2
            for (int v = 0; v < vecs; v++) {
                acc[i][v] = ly_vfma(av, bv[v], acc[i][v]);
            }
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < LY_AT_ROWS; i++) {
#pragma GCC unroll 2
        for (int v = 0; v < vecs; v++) {
            ly_vstore(c + i * c_row + v * LY_LANES, acc[i][v]);
        }
    }
}

/* One row tile: c (LY_AT_ROWS, cols) += sum over p in [begin, end) of a(row, p) b(p, cols); cols is a multiple of
 * LY_LANES. */
LY_INLINE void ly_at_row_tile(int64_t begin, int64_t end, ly_at_operand a, ly_at_rows b, ly_at_rows c, int64_t cols)
{
    int64_t h = 0;
    for (; h + LY_AT_LANES <= cols; h += LY_AT_LANES) {
        ly_at_tile(LY_AT_VECS, begin, end, a, b.p + h, b.row, c.p + h, c.row, true);
    }
    for (; h < cols; h += LY_LANES) {
        ly_at_tile(1, begin, end, a, b.p + h, b.row, c.p + h, c.row, true);
    }
}

/* 2^x with about one unit of rounding error; 0 below 2^-100; NaN stays NaN. x <= 127. The fraction's polynomial is the
 * Chebyshev-spaced least-squares fit of degree 6 on [-1/2, 1/2] (maximum relative error 2e-9). */
LY_INLINE ly_vf ly_at_exp2(ly_vf x)
{
    const ly_vf shift = ly_vset1(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer in the low bits */
    ly_vi tiny = ly_vlt(x, ly_vset1(-100.0f));
    ly_vf whole = ly_vadd(x, shift);
    ly_vf f = ly_vsub(x, ly_vsub(whole, shift));
    ly_vf y = ly_vset1(1.53707048e-4f);
    y = ly_vfma(y, f, ly_vset1(1.33998483e-3f));
    y = ly_vfma(y, f, ly_vset1(9.61837325e-3f));
    y = ly_vfma(y, f, ly_vset1(5.55032904e-2f));
    y = ly_vfma(y, f, ly_vset1(2.40226485e-1f));
    y = ly_vfma(y, f, ly_vset1(6.93147206e-1f));
    y = ly_vfma(y, f, ly_vset1(1.0f));
    ly_vf r;
#define LY_AT_SCALE(part, at) r.part = (ly_i_f)(((ly_i_u)y.part + ((ly_i_u)whole.part << 23)) & ~(ly_i_u)tiny.part);
    LY_I_EACH(LY_AT_SCALE)
#undef LY_AT_SCALE
    return r;
}

/* Rows fetched ahead of a copy: a row often starts a page, which hardware prefetchers do not cross. */
enum { LY_AT_AHEAD = 8 };

LY_INLINE void ly_at_prefetch(mc_dtype type, const void *row, int64_t elems)
{
    for (int64_t h = 0; h < elems; h += type == MC_F32 ? LY_LANES : 2 * LY_LANES) {
        __builtin_prefetch(ly_elem(type, row, h));
    }
}

LY_INLINE void ly_i_at_pack_rows(mc_dtype type, ly_at_rows dst, ly_at_typed src, int64_t n, int64_t H, int64_t cols)
{
    for (int64_t i = 0; i < n; i++) {
        float *d = dst.p + i * dst.row;
        const void *s = ly_elem(type, src.p, i * src.row);
        ly_at_prefetch(type, ly_elem(type, s, LY_AT_AHEAD * src.row), H);
        int64_t h = 0;
        for (; h + LY_LANES <= H; h += LY_LANES) {
            ly_vstore(d + h, ly_tload(type, ly_elem(type, s, h), LY_LANES));
        }
        if (h < cols) {
            ly_vstore(d + h, h < H ? ly_tload(type, ly_elem(type, s, h), H - h) : ly_vzero());
        }
    }
}

/* Copies n rows of H elements as f32 and pads them with zeros to `n_padded` rows of `cols`, which is H or H rounded up
 * to LY_LANES. */
static inline void ly_at_pack_rows(ly_at_rows dst, ly_at_typed src, int64_t n, int64_t n_padded, int64_t H,
                                   int64_t cols)
{
    LY_FOR_TYPE(src.type, T, ly_i_at_pack_rows(T, dst, src, n, H, cols));
    for (int64_t i = n; i < n_padded; i++) {
        memset(dst.p + i * dst.row, 0, (size_t)cols * sizeof(float));
    }
}

/* Four elements, widened. */
LY_INLINE ly_i_f4 ly_i_at_load4(mc_dtype type, const void *x)
{
    typedef float f4u __attribute__((vector_size(16), aligned(4), may_alias));
    typedef uint32_t u4 __attribute__((vector_size(16)));
    if (type == MC_F32) {
        return *(const f4u *)x;
    }
#if defined(__F16C__)
    if (type == MC_F16) {
        return (ly_i_f4)_mm_cvtph_ps(_mm_loadl_epi64((const __m128i_u *)x));
    }
#endif
    uint16_t e[4];
    memcpy(e, x, sizeof e);
    if (type == MC_BF16) {
        return (ly_i_f4)((u4){e[0], e[1], e[2], e[3]} << 16);
    }
    return (ly_i_f4){mc_f32_from_f16(e[0]), mc_f32_from_f16(e[1]), mc_f32_from_f16(e[2]), mc_f32_from_f16(e[3])};
}

/* Four rows of four elements, times `scale`, transposed: out (4, 4) rows LY_AT_LANES apart. */
LY_INLINE void ly_at_transpose4(mc_dtype type, const void *s, int64_t row, float scale, float *out)
{
    typedef float f4u __attribute__((vector_size(16), aligned(4), may_alias));
    ly_i_f4 r0 = ly_i_at_load4(type, s) * scale, r1 = ly_i_at_load4(type, ly_elem(type, s, row)) * scale;
    ly_i_f4 r2 = ly_i_at_load4(type, ly_elem(type, s, 2 * row)) * scale;
    ly_i_f4 r3 = ly_i_at_load4(type, ly_elem(type, s, 3 * row)) * scale;
    ly_i_f4 a = __builtin_shufflevector(r0, r1, 0, 4, 1, 5), b = __builtin_shufflevector(r2, r3, 0, 4, 1, 5);
    ly_i_f4 c = __builtin_shufflevector(r0, r1, 2, 6, 3, 7), d = __builtin_shufflevector(r2, r3, 2, 6, 3, 7);
    *(f4u *)out = __builtin_shufflevector(a, b, 0, 1, 4, 5);
    *(f4u *)(out + LY_AT_LANES) = __builtin_shufflevector(a, b, 2, 3, 6, 7);
    *(f4u *)(out + 2 * LY_AT_LANES) = __builtin_shufflevector(c, d, 0, 1, 4, 5);
    *(f4u *)(out + 3 * LY_AT_LANES) = __builtin_shufflevector(c, d, 2, 3, 6, 7);
}

/* One element, widened. */
LY_INLINE float ly_i_at_load1(mc_dtype type, const void *x, int64_t i)
{
    const uint16_t *half = (const uint16_t *)x;
    return type == MC_F32    ? ((const float *)x)[i]
           : type == MC_BF16 ? mc_f32_from_bf16(half[i])
                             : mc_f32_from_f16(half[i]);
}

LY_INLINE void ly_i_at_pack_lanes(mc_dtype type, float *dst, ly_at_typed src, int64_t n, int64_t n_padded, int64_t H,
                                  float scale)
{
    for (int64_t i = 0; i < n_padded; i += 4) {
        float *panel = dst + i / LY_AT_LANES * LY_AT_LANES * H + i % LY_AT_LANES;
        const void *s = ly_elem(type, src.p, i * src.row);
        int64_t h = 0;
        if (i + 4 <= n) {
            for (int64_t l = 0; l < 4; l++) {
                ly_at_prefetch(type, ly_elem(type, s, (LY_AT_AHEAD + l) * src.row), H);
            }
            for (; h + 4 <= H; h += 4) {
                ly_at_transpose4(type, ly_elem(type, s, h), src.row, scale, panel + h * LY_AT_LANES);
            }
        }
        for (; h < H; h++) {
            for (int64_t l = 0; l < 4; l++) {
                panel[h * LY_AT_LANES + l] = i + l < n ? ly_i_at_load1(type, s, l * src.row + h) * scale : 0.0f;
            }
        }
    }
}

/* n rows of H elements as f32, times `scale`, transposed into panels (n_padded / LY_AT_LANES, H, LY_AT_LANES); lanes
 * past n are zero. n_padded is a multiple of LY_AT_LANES. */
static inline void ly_at_pack_lanes(float *dst, ly_at_typed src, int64_t n, int64_t n_padded, int64_t H, float scale)
{
    LY_FOR_TYPE(src.type, T, ly_i_at_pack_lanes(T, dst, src, n, n_padded, H, scale));
}

/* Rounds n rows of H floats, each times its factor (NULL: none), to T. */
LY_INLINE void ly_i_at_store_rows(mc_dtype type, ly_at_typed dst, ly_at_rows src, const float *factor, int64_t n,
                                  int64_t H)
{
    for (int64_t i = 0; i < n; i++) {
        for (int64_t h = 0; h < H; h += LY_LANES) {
            ly_vf x = ly_vload(src.p + i * src.row + h);
            x = factor ? ly_vmul(x, ly_vset1(factor[i])) : x;
            ly_tstore(type, ly_elem_out(type, dst.p, i * dst.row + h), x, H - h);
        }
    }
}

static inline void ly_at_store_rows(ly_at_typed dst, ly_at_rows src, const float *factor, int64_t n, int64_t H)
{
    LY_FOR_TYPE(dst.type, T, ly_i_at_store_rows(T, dst, src, factor, n, H));
}

#ifdef __cplusplus
}
#endif
#endif
