/* Matrix product of one tile of C on one thread: pack, then a register-blocked kernel (Goto and van de Geijn, "Anatomy
 * of High-Performance Matrix Multiplication", 2008).
 *
 *   for each LY_KC-long piece of K:              op(B) piece  -> panels [n / NR][k][NR]   (last-level cache)
 *     for each LY_MC rows of the tile:           op(A) piece  -> panels [m / MR][k][MR]   (second-level cache)
 *       for each B panel (first-level cache), for each A panel: MR x NR sums in registers, added to C
 *
 * An element of C is the sum, in order, of one fused multiply-add chain per LY_KC piece of K: it depends neither on the
 * tile nor on M and N, so any split of rows or columns over threads or ranks gives the same bits. */
#ifndef LAYERS_CPU_GEMM_TILE_H
#define LAYERS_CPU_GEMM_TILE_H

#include <stdbool.h>

#include "layers/cpu/simd.h"

/* Rows and columns of the register block: as many accumulators as the register file holds next to two vectors of B. */
#if LY_I_NATIVE == 16
enum { LY_MR = 12 };
#else
enum { LY_MR = 6 };
#endif
/* LY_WIDEST: of MR and NR. */
enum { LY_NV = 2, LY_NR = LY_NV * LY_I_NATIVE, LY_WIDEST = LY_NR };
/* Multiples of every variant's MR and NR. Packed A (216 KiB) stays in the second-level cache, a panel of B (24 or 48
 * KiB) in the first, and both fit the scratch of a thread. */
enum { LY_KC = 384, LY_MC = 144, LY_NC_MAX = 512 };
/* Packing stores whole vectors of 4, up to 6 floats past the end of a panel. */
enum { LY_GEMM_SLACK = 16 };
enum { LY_GEMM_SCRATCH_FLOATS = LY_KC * (LY_MC + LY_NC_MAX) + 2 * LY_GEMM_SLACK };

/* Element (i, k) of an operand as the kernel sees it (i a row of op(A) or a column of op(B)): either i or k is
 * contiguous, the other has stride `ld`. */
typedef struct ly_i_operand {
    const float *data;
    int64_t ld;
    bool k_contiguous;
} ly_i_operand;

typedef float ly_i_f4u __attribute__((vector_size(16), aligned(4), may_alias));

/* x[i][k .. k + 3] of four rows i -> to[k][i], rows of `to` at stride `width`, in ascending k. */
LY_INLINE void ly_i_transpose4(float *to, int width, const float *const x[4], int64_t k)
{
    ly_i_f4 a = *(const ly_i_f4u *)(x[0] + k), b = *(const ly_i_f4u *)(x[1] + k);
    ly_i_f4 c = *(const ly_i_f4u *)(x[2] + k), d = *(const ly_i_f4u *)(x[3] + k);
    ly_i_f4 ab0 = __builtin_shufflevector(a, b, 0, 4, 1, 5), ab2 = __builtin_shufflevector(a, b, 2, 6, 3, 7);
    ly_i_f4 cd0 = __builtin_shufflevector(c, d, 0, 4, 1, 5), cd2 = __builtin_shufflevector(c, d, 2, 6, 3, 7);
    *(ly_i_f4u *)(to + 0 * width) = __builtin_shufflevector(ab0, cd0, 0, 1, 4, 5);
    *(ly_i_f4u *)(to + 1 * width) = __builtin_shufflevector(ab0, cd0, 2, 3, 6, 7);
    *(ly_i_f4u *)(to + 2 * width) = __builtin_shufflevector(ab2, cd2, 0, 1, 4, 5);
    *(ly_i_f4u *)(to + 3 * width) = __builtin_shufflevector(ab2, cd2, 2, 3, 6, 7);
}

/* Packs one panel of `width` (MR or NR) rows of an operand with contiguous k to to[k][width]; rows at or past n become
 * 0. `at` is the panel's first element.
 *
 * Four rows at a time over 16 k (whole cache lines of few rows: rows a power of two apart share cache sets), last rows
 * first: where width is not a multiple of 4 their stores run two floats into the next k, which rows 0..3 then
 * overwrite, or the next panel, which is packed later, or the slack at the end. */
LY_INLINE void ly_i_pack_transposed(float *to, int width, const float *at, int64_t ld, int64_t n, int64_t kc)
{
    enum { STRIP = 16 };
    const float *row[LY_WIDEST + 3];
    int groups = (width + 3) / 4;
    for (int i = 0; i < groups * 4; i++) {
        row[i] = at + (i < n ? i : n - 1) * ld;
    }
    int64_t k4 = kc / 4 * 4;
    for (int64_t k0 = 0; k0 < k4; k0 += STRIP) {
        int64_t k1 = k0 + STRIP < k4 ? k0 + STRIP : k4;
        for (int g = groups - 1; g >= 0; g--) {
            for (int64_t k = k0; k < k1; k += 4) {
                ly_i_transpose4(to + k * width + g * 4, width, row + g * 4, k);
            }
        }
    }
    for (int64_t k = k4; k < kc; k++) {
        for (int i = 0; i < width; i++) {
            to[k * width + i] = row[i][k];
        }
    }
    for (int i = (int)n; i < width; i++) {
        for (int64_t k = 0; k < kc; k++) {
            to[k * width + i] = 0.0f;
        }
    }
}

/* The same for an operand whose rows are contiguous over i: k_count of its k, at[k * ld + i]. */
LY_INLINE void ly_i_pack_copied(float *to, int width, const float *at, int64_t ld, int64_t n, int64_t k_count)
{
    enum { AHEAD = 8 };
    if (n >= width) {
        for (int64_t k = 0; k < k_count; k++, at += ld, to += width) {
            __builtin_prefetch(at + AHEAD * ld); /* short runs of distant rows: no hardware prefetcher follows them */
            for (int i = 0; i < width; i++) {
                to[i] = at[i];
            }
        }
        return;
    }
    for (int64_t k = 0; k < k_count; k++, at += ld, to += width) {
        for (int i = 0; i < width; i++) {
            to[i] = i < n ? at[i] : 0.0f;
        }
    }
}

/* Rows [i0, i0 + n) of an operand, k in [k0, k0 + kc), to panels of `width` rows. */
LY_INLINE void ly_i_pack(float *to, int width, ly_i_operand x, int64_t i0, int64_t n, int64_t k0, int64_t kc)
{
    /* Four k at a time over all panels: few streams, should they share cache sets, as rows a power of two apart do. */
    enum { STREAMS = 4 };
    if (x.k_contiguous) {
        for (int64_t i = 0; i < n; i += width) {
            ly_i_pack_transposed(to + i * kc, width, x.data + (i0 + i) * x.ld + k0, x.ld, n - i, kc);
        }
        return;
    }
    for (int64_t k = 0; k < kc; k += STREAMS) {
        int64_t count = kc - k < STREAMS ? kc - k : STREAMS;
        for (int64_t i = 0; i < n; i += width) {
            ly_i_pack_copied(to + i * kc + k * width, width, x.data + (k0 + k) * x.ld + i0 + i, x.ld, n - i, count);
        }
    }
}

/* c (MR x NR at stride ldc) = sum over k of a[k][MR] b[k][NR], plus c itself (`add`), plus bias[NR] (if any). */
LY_INLINE void ly_i_gemm_micro(int64_t kc, const float *a, const float *b, float *c, int64_t ldc, bool add,
                               const float *bias)
{
    ly_i_f acc[LY_MR][LY_NV]; /* all in registers once the loops are unrolled */
#pragma GCC unroll 16
    for (int i = 0; i < LY_MR; i++) {
#pragma GCC unroll 2
        for (int v = 0; v < LY_NV; v++) {
            acc[i][v] = (ly_i_f){0};
        }
        __builtin_prefetch(c + i * ldc, 1);
    }
    for (int64_t k = 0; k < kc; k++) {
        ly_i_f b0 = *(const ly_i_fu *)b, b1 = *(const ly_i_fu *)(b + LY_I_NATIVE);
#pragma GCC unroll 16
        for (int i = 0; i < LY_MR; i++) {
            ly_i_f x = a[i] - (ly_i_f){0};
            acc[i][0] += x * b0;
            acc[i][1] += x * b1;
        }
        a += LY_MR;
        b += LY_NR;
    }
#pragma GCC unroll 16
    for (int i = 0; i < LY_MR; i++) {
#pragma GCC unroll 2
        for (int v = 0; v < LY_NV; v++) {
            ly_i_fu *to = (ly_i_fu *)(c + i * ldc + v * LY_I_NATIVE);
            ly_i_f x = acc[i][v];
            if (add) {
                x = *to + x;
            }
            if (bias) {
                x = x + *(const ly_i_fu *)(bias + v * LY_I_NATIVE);
            }
            *to = x;
        }
    }
}

/* The same where only m x n of the block exist. */
static __attribute__((noinline, unused)) void ly_i_gemm_edge(int64_t kc, const float *a, const float *b, float *c,
                                                             int64_t ldc, bool add, const float *bias, int64_t m,
                                                             int64_t n)
{
    float t[LY_MR * LY_NR];
    ly_i_gemm_micro(kc, a, b, t, LY_NR, false, NULL);
    for (int64_t i = 0; i < m; i++) {
        for (int64_t j = 0; j < n; j++) {
            float x = t[i * LY_NR + j];
            if (add) {
                x = c[i * ldc + j] + x;
            }
            if (bias) {
                x = x + bias[j];
            }
            c[i * ldc + j] = x;
        }
    }
}

/* One packed piece of A (mc rows) times the packed B (nc columns). */
static inline void ly_i_gemm_block(int64_t mc, int64_t nc, int64_t kc, const float *a, const float *b, float *c,
                                   int64_t ldc, bool add, const float *bias)
{
    for (int64_t j = 0; j < nc; j += LY_NR) {
        const float *bj = b + j * kc, *bias_j = bias ? bias + j : NULL;
        int64_t n = nc - j < LY_NR ? nc - j : LY_NR;
        for (int64_t i = 0; i < mc; i += LY_MR) {
            int64_t m = mc - i < LY_MR ? mc - i : LY_MR;
            if (m == LY_MR && n == LY_NR) {
                ly_i_gemm_micro(kc, a + i * kc, bj, c + i * ldc + j, ldc, add, bias_j);
            } else {
                ly_i_gemm_edge(kc, a + i * kc, bj, c + i * ldc + j, ldc, add, bias_j, m, n);
            }
        }
    }
}

/* K is cut into equal pieces of at most LY_KC, a multiple of 8: a function of K only. */
LY_INLINE int64_t ly_i_gemm_kc(int64_t n_k)
{
    int64_t pieces = (n_k + LY_KC - 1) / LY_KC, kc = (n_k + pieces - 1) / pieces;
    return (kc + 7) / 8 * 8;
}

/* Rows [m0, m1), columns [n0, n1) (at most LY_NC_MAX) of c = a b + beta c + bias; K >= 1. */
static inline void ly_i_gemm_tile(ly_i_operand a, ly_i_operand b, float *c, int64_t ldc, const float *bias, bool beta,
                                  int64_t m0, int64_t m1, int64_t n0, int64_t n1, int64_t n_k, float *scratch)
{
    float *packed_a = scratch, *packed_b = scratch + LY_KC * LY_MC + LY_GEMM_SLACK;
    int64_t piece = ly_i_gemm_kc(n_k);
    for (int64_t k0 = 0; k0 < n_k; k0 += piece) {
        int64_t kc = n_k - k0 < piece ? n_k - k0 : piece;
        ly_i_pack(packed_b, LY_NR, b, n0, n1 - n0, k0, kc);
        for (int64_t i0 = m0; i0 < m1; i0 += LY_MC) {
            int64_t mc = m1 - i0 < LY_MC ? m1 - i0 : LY_MC;
            ly_i_pack(packed_a, LY_MR, a, i0, mc, k0, kc);
            ly_i_gemm_block(mc, n1 - n0, kc, packed_a, packed_b, c + i0 * ldc + n0, ldc, beta || k0 > 0,
                            k0 == 0 && bias ? bias + n0 : NULL);
        }
    }
}

#endif
