/* Packing of matrix product operands: a panel holds `width` rows of op(A), or columns of op(B), k by k: [k][width].
 *
 * Panels are filled by strips of LY_STRIP k. A strip is whole cache lines of its source, read once and in any order of
 * panels, so that it can be fetched ahead and packed between two calls of the register kernel (gemm_tile.h). */
#ifndef LAYERS_CPU_GEMM_PACK_H
#define LAYERS_CPU_GEMM_PACK_H

#include <stdbool.h>

#include "layers/cpu/typed.h"

enum { LY_LINE_BYTES = 64, LY_STRIP = 16 };
/* Widest panel of any variant, and floats that a transposing store may run past a panel. */
enum { LY_WIDEST = 32, LY_PACK_SLACK = 8 };

/* Element (i, k) of an operand as the kernel sees it (i a row of op(A) or a column of op(B)): either i or k is
 * contiguous, the other has stride `ld`. */
typedef struct ly_i_operand {
    const void *data;
    int64_t ld;
    mc_dtype type;
    bool k_contiguous;
} ly_i_operand;

LY_INLINE const void *ly_i_at(ly_i_operand x, int64_t i, int64_t k)
{
    return ly_elem(x.type, x.data, x.k_contiguous ? i * x.ld + k : k * x.ld + i);
}

typedef float ly_i_f4u __attribute__((vector_size(16), aligned(4), may_alias));
typedef uint32_t ly_i_u4 __attribute__((vector_size(16)));
typedef uint16_t ly_i_h4u __attribute__((vector_size(8), aligned(2), may_alias));

/* Elements of type T, a constant, widened: one, four, a native vector. */
LY_INLINE float ly_i_one(mc_dtype T, const void *x, int64_t i)
{
    const uint16_t *h = (const uint16_t *)x + i;
    return T == MC_F32 ? ((const float *)x)[i] : T == MC_BF16 ? mc_f32_from_bf16(*h) : mc_f32_from_f16(*h);
}

LY_INLINE ly_i_f4 ly_i_four(mc_dtype T, const void *x)
{
    if (T == MC_F32) {
        return *(const ly_i_f4u *)x;
    }
    if (T == MC_BF16) {
        return (ly_i_f4)(__builtin_convertvector(*(const ly_i_h4u *)x, ly_i_u4) << 16);
    }
#if defined(__F16C__)
    return (ly_i_f4)_mm_cvtph_ps(_mm_loadl_epi64((const __m128i_u *)x));
#else
    return (ly_i_f4){ly_i_one(T, x, 0), ly_i_one(T, x, 1), ly_i_one(T, x, 2), ly_i_one(T, x, 3)};
#endif
}

LY_INLINE ly_i_f ly_i_native(mc_dtype T, const void *x)
{
    if (T == MC_F32) {
        return *(const ly_i_fu *)x;
    }
    if (T == MC_BF16) {
        return (ly_i_f)(__builtin_convertvector(*(const ly_i_hu *)x, ly_i_u) << 16);
    }
#if defined(__AVX512F__)
    return (ly_i_f)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i_u *)x));
#elif defined(__AVX2__) && defined(__F16C__)
    return (ly_i_f)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i_u *)x));
#else
    ly_i_f r;
    for (int i = 0; i < LY_I_NATIVE; i++) {
        r[i] = ly_i_one(T, x, i);
    }
    return r;
#endif
}

/* Elements k .. k + 3 of LY_I_TURN rows x -> to[0 .. 3][row], rows of `to` at stride `width`, in ascending k. */
#if defined(__AVX2__) && defined(__F16C__)
enum { LY_I_TURN = 8 };

/* Four elements at p, then four at q. */
LY_INLINE __m256 ly_i_fours(mc_dtype T, const void *p, const void *q)
{
    if (T == MC_F32) {
        return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps((const float *)p)),
                                    _mm_loadu_ps((const float *)q), 1);
    }
    __m128i h = _mm_castps_si128(_mm_loadh_pi(_mm_castsi128_ps(_mm_loadl_epi64((const __m128i_u *)p)), q));
    return T == MC_BF16 ? _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16)) : _mm256_cvtph_ps(h);
}

LY_INLINE void ly_i_turn4(mc_dtype T, float *to, int width, const void *const x[8], int64_t k)
{
    __m256 v[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        v[i] = ly_i_fours(T, ly_elem(T, x[i], k), ly_elem(T, x[i + 4], k));
    }
    __m256 a = _mm256_unpacklo_ps(v[0], v[1]), b = _mm256_unpackhi_ps(v[0], v[1]);
    __m256 c = _mm256_unpacklo_ps(v[2], v[3]), d = _mm256_unpackhi_ps(v[2], v[3]);
    _mm256_storeu_ps(to, _mm256_shuffle_ps(a, c, 0x44));
    _mm256_storeu_ps(to + width, _mm256_shuffle_ps(a, c, 0xee));
    _mm256_storeu_ps(to + 2 * width, _mm256_shuffle_ps(b, d, 0x44));
    _mm256_storeu_ps(to + 3 * width, _mm256_shuffle_ps(b, d, 0xee));
}
#else
enum { LY_I_TURN = 4 };

LY_INLINE void ly_i_turn4(mc_dtype T, float *to, int width, const void *const x[4], int64_t k)
{
    ly_i_f4 a = ly_i_four(T, ly_elem(T, x[0], k)), b = ly_i_four(T, ly_elem(T, x[1], k));
    ly_i_f4 c = ly_i_four(T, ly_elem(T, x[2], k)), d = ly_i_four(T, ly_elem(T, x[3], k));
    ly_i_f4 ab0 = __builtin_shufflevector(a, b, 0, 4, 1, 5), ab2 = __builtin_shufflevector(a, b, 2, 6, 3, 7);
    ly_i_f4 cd0 = __builtin_shufflevector(c, d, 0, 4, 1, 5), cd2 = __builtin_shufflevector(c, d, 2, 6, 3, 7);
    *(ly_i_f4u *)(to + 0 * width) = __builtin_shufflevector(ab0, cd0, 0, 1, 4, 5);
    *(ly_i_f4u *)(to + 1 * width) = __builtin_shufflevector(ab0, cd0, 2, 3, 6, 7);
    *(ly_i_f4u *)(to + 2 * width) = __builtin_shufflevector(ab2, cd2, 0, 1, 4, 5);
    *(ly_i_f4u *)(to + 3 * width) = __builtin_shufflevector(ab2, cd2, 2, 3, 6, 7);
}
#endif

/* One strip (n_k <= LY_STRIP) of a panel of an operand with contiguous k; `at` is its first element. Panel rows at or
 * past n repeat the last real one: what the kernel makes of them is not stored. Last rows first: where width is not a
 * multiple of LY_I_TURN their stores run into the next k, which rows 0 .. LY_I_TURN - 1 then overwrite, or into the
 * next strip, which is packed later, or into the slack at the end. */
LY_INLINE void ly_i_pack_turned(mc_dtype T, float *to, int width, const void *at, int64_t ld, int64_t n, int64_t n_k)
{
    const void *row[LY_WIDEST + LY_I_TURN];
    int groups = (width + LY_I_TURN - 1) / LY_I_TURN;
#pragma GCC unroll 40
    for (int i = 0; i < groups * LY_I_TURN; i++) {
        row[i] = ly_elem(T, at, (i < n ? i : n - 1) * ld);
    }
    if (n_k == LY_STRIP) {
#pragma GCC unroll 8
        for (int g = groups - 1; g >= 0; g--) {
#pragma GCC unroll 4
            for (int64_t k = 0; k < LY_STRIP; k += 4) {
                ly_i_turn4(T, to + k * width + g * LY_I_TURN, width, row + g * LY_I_TURN, k);
            }
        }
        return;
    }
    for (int64_t k = 0; k < n_k; k++) {
        for (int i = 0; i < width; i++) {
            to[k * width + i] = ly_i_one(T, row[i], k);
        }
    }
}

/* to[0 .. width - 1] = at[0 .. width - 1]; vectors, as the compiler cannot know that they do not overlap. */
LY_INLINE void ly_i_copy(mc_dtype T, float *to, int width, const void *at)
{
    int i = 0;
#pragma GCC unroll 8
    for (; i + LY_I_NATIVE <= width; i += LY_I_NATIVE) {
        *(ly_i_fu *)(to + i) = ly_i_native(T, ly_elem(T, at, i));
    }
#pragma GCC unroll 8
    for (; i + 4 <= width; i += 4) {
        *(ly_i_f4u *)(to + i) = ly_i_four(T, ly_elem(T, at, i));
    }
    for (; i < width; i++) {
        to[i] = ly_i_one(T, at, i);
    }
}

/* Four k at once: to[0 .. 3][0 .. width - 1] = at[0 .. 3][...] (rows ld apart). */
LY_INLINE void ly_i_copy4(mc_dtype T, float *to, int width, const void *at, int64_t ld)
{
    if (width != 6) {
#pragma GCC unroll 4
        for (int r = 0; r < 4; r++) {
            ly_i_copy(T, to + r * width, width, ly_elem(T, at, r * ld));
        }
        return;
    }
#pragma GCC unroll 2
    for (int r = 0; r < 4; r += 2, to += 12) { /* in stores that cross no line */
        const void *row0 = ly_elem(T, at, r * ld), *row1 = ly_elem(T, row0, ld);
        ly_i_f4 a = ly_i_four(T, ly_elem(T, row0, 2)), b = ly_i_four(T, row1);
        *(ly_i_f4u *)to = ly_i_four(T, row0);
        *(ly_i_f4u *)(to + 4) = __builtin_shufflevector(a, b, 2, 3, 4, 5);
        *(ly_i_f4u *)(to + 8) = ly_i_four(T, ly_elem(T, row1, 2));
    }
}

/* The same as ly_i_pack_turned of an operand whose rows are contiguous over i: element (i, k) at at[k * ld + i]. */
LY_INLINE void ly_i_pack_copied(mc_dtype T, float *to, int width, const void *at, int64_t ld, int64_t n, int64_t n_k)
{
    for (int64_t k = 0; k < n_k; k++, at = ly_elem(T, at, ld), to += width) {
        if (n >= width) {
            ly_i_copy(T, to, width, at);
        } else {
            for (int i = 0; i < width; i++) {
                to[i] = ly_i_one(T, at, i < n ? i : n - 1);
            }
        }
    }
}

LY_INLINE void ly_i_pack_strip(mc_dtype T, float *to, int width, ly_i_operand x, int64_t i, int64_t n, int64_t k,
                               int64_t n_k)
{
    if (x.k_contiguous) {
        ly_i_pack_turned(T, to, width, ly_i_at(x, i, k), x.ld, n, n_k);
    } else {
        ly_i_pack_copied(T, to, width, ly_i_at(x, i, k), x.ld, n, n_k);
    }
}

LY_INLINE int64_t ly_i_min(int64_t x, int64_t y)
{
    return x < y ? x : y;
}

/* Floats from one panel of packed A to the next. The gap makes it an odd number of cache lines, so that panels which
 * are written side by side do not share cache sets. */
enum { LY_PANEL_GAP = 16 };
LY_INLINE int64_t ly_i_panel(int width, int64_t kc)
{
    return width * kc + LY_PANEL_GAP;
}

LY_INLINE void ly_i_pack_turned_rows(mc_dtype T, float *to, int width, ly_i_operand x, int64_t i0, int64_t n,
                                     int64_t k0, int64_t kc)
{
    for (int64_t i = 0; i < n; i += width, to += ly_i_panel(width, kc)) {
        for (int64_t k = 0; k < kc; k += LY_STRIP) {
            for (int64_t r = i + width; r < ly_i_min(n, i + 2 * width); r++) {
                __builtin_prefetch(ly_i_at(x, i0 + r, k0 + k));
            }
            ly_i_pack_turned(T, to + k * width, width, ly_i_at(x, i0 + i, k0 + k), x.ld, n - i,
                             ly_i_min(kc - k, LY_STRIP));
        }
    }
}

/* FOUR k of GROUP panels at a time: whole lines are read, by few streams, should rows share cache sets, as those a
 * power of two apart do. */
LY_INLINE void ly_i_pack_copied_rows(mc_dtype T, float *to, int width, ly_i_operand x, int64_t i0, int64_t n,
                                     int64_t k0, int64_t kc)
{
    enum { GROUP = 16, FOUR = 4, AHEAD = 16, SECOND_LEVEL = 2 };
    int64_t panel = ly_i_panel(width, kc), line = LY_LINE_BYTES / (T == MC_F32 ? 4 : 2);
    for (int64_t g = 0; g < n; g += GROUP * width, to += GROUP * panel) {
        int64_t end = ly_i_min(n, g + GROUP * width);
        for (int64_t k = 0; k < kc; k += FOUR) {
            int64_t n_k = ly_i_min(kc - k, FOUR), i = g;
            float *row = to + k * width;
            for (int64_t r = k + AHEAD; r < ly_i_min(kc, k + AHEAD + FOUR); r++) {
                for (int64_t c = g; c < end; c += line) {
                    __builtin_prefetch(ly_i_at(x, i0 + c, k0 + r), 0, SECOND_LEVEL);
                }
            }
            for (; n_k == FOUR && i + width <= end; i += width, row += panel) {
                ly_i_copy4(T, row, width, ly_i_at(x, i0 + i, k0 + k), x.ld);
            }
            for (; i < end; i += width, row += panel) {
                ly_i_pack_copied(T, row, width, ly_i_at(x, i0 + i, k0 + k), x.ld, n - i, n_k);
            }
        }
    }
}

/* Rows [i0, i0 + n), k in [k0, k0 + kc), to panels of `width`. */
LY_INLINE void ly_i_pack(mc_dtype T, float *to, int width, ly_i_operand x, int64_t i0, int64_t n, int64_t k0,
                         int64_t kc)
{
    x.type = T; /* a constant from here on */
    if (x.k_contiguous) {
        ly_i_pack_turned_rows(T, to, width, x, i0, n, k0, kc);
    } else {
        ly_i_pack_copied_rows(T, to, width, x, i0, n, k0, kc);
    }
}

#endif
