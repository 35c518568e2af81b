/* Matrix product of one tile of C on one thread: pack, then a register-blocked kernel (Goto and van de Geijn, "Anatomy
 * of High-Performance Matrix Multiplication", 2008).
 *
 *   for each LY_KC-long piece of K:        op(A) rows of the tile -> panels [m / MR][k][MR]
 *     for each NR columns of the tile:     op(B)                  -> one panel [k][NR]
 *       for each panel of A:               MR x NR sums in registers, added to C
 *
 * While the kernel goes through the panels of A, the next panel of B is fetched and packed strip by strip between its
 * calls: memory has a whole call (some thousand cycles) to deliver. Packing widens 16-bit operands; everything after it
 * is f32. A product of 16 bits gathers its sums in the scratch and is rounded when the last piece of K is in.
 *
 * An element of C is the sum, in order, of one fused multiply-add chain per piece of K: it depends neither on the tile
 * nor on M and N, so any split of rows or columns over threads or ranks gives the same bits. */
#ifndef LAYERS_CPU_GEMM_TILE_H
#define LAYERS_CPU_GEMM_TILE_H

#include "layers/cpu/gemm_pack.h"

/* Rows and columns of the register block: as many accumulators as the register file holds next to two vectors of B. */
#if LY_I_NATIVE == 16
enum { LY_MR = 12 };
#else
enum { LY_MR = 6 };
#endif
enum { LY_NV = 2, LY_NR = LY_NV * LY_I_NATIVE };
/* Longest piece of K, and floats of packed A: 264 rows (a multiple of every variant's MR) of that length, 796 KiB. */
enum { LY_KC = 768, LY_A_FLOATS = 264 * LY_KC + 264 / 6 * LY_PANEL_GAP };
/* Largest tile of a product of 16 bits with more than one piece of K, and its sums, 808 KiB. Rows are an odd number of
 * cache lines apart. */
enum { LY_SUM_ROWS = 264, LY_SUM_COLS = 768, LY_SUM_GAP = 16 };
enum { LY_SUM_FLOATS = LY_SUM_ROWS * (LY_SUM_COLS + LY_SUM_GAP) + LY_LANES };
enum { LY_GEMM_SCRATCH_FLOATS = LY_A_FLOATS + 2 * LY_WIDEST * LY_KC + 3 * LY_PACK_SLACK + LY_SUM_FLOATS };

/* Lines to fetch while the kernel runs: line i at byte `at` + i % inner * step + i / inner * hop; inner is a power
 * of 2.
 */
typedef struct ly_i_lines {
    const char *at;
    int64_t step, hop, n;
    int inner;
} ly_i_lines;

LY_INLINE void ly_i_fetch_line(const ly_i_lines *f, int64_t i)
{
    __builtin_prefetch(f->at + (i & (f->inner - 1)) * f->step + i / f->inner * f->hop);
}

/* c (m x NR at stride ldc; m <= MR is a constant) = sum over k of a[k][MR] b[k][NR], plus c itself (`add`), plus
 * bias[NR] (if any). One of `lines` is fetched every LY_STRIP steps. */
LY_INLINE void ly_i_gemm_micro(int m, int64_t kc, const float *a, const float *b, float *c, int64_t ldc, bool add,
                               const float *bias, const ly_i_lines *lines)
{
    ly_i_f acc[LY_MR][LY_NV]; /* all in registers once the loops are unrolled */
#pragma GCC unroll 16
    for (int i = 0; i < m; i++) {
#pragma GCC unroll 2
        for (int v = 0; v < LY_NV; v++) {
            acc[i][v] = (ly_i_f){0};
        }
        __builtin_prefetch(c + i * ldc, 1);
    }
    for (int64_t k0 = 0; k0 < kc; k0 += LY_STRIP) {
        int64_t k1 = ly_i_min(kc - k0, LY_STRIP);
        if (k0 < lines->n * LY_STRIP) {
            ly_i_fetch_line(lines, k0 / LY_STRIP);
        }
        for (int64_t k = 0; k < k1; k++) {
            ly_i_f b0 = *(const ly_i_fu *)b, b1 = *(const ly_i_fu *)(b + LY_I_NATIVE);
#pragma GCC unroll 16
            for (int i = 0; i < m; i++) {
                ly_i_f x = a[i] - (ly_i_f){0};
                acc[i][0] += x * b0;
                acc[i][1] += x * b1;
            }
            a += LY_MR;
            b += LY_NR;
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < m; i++) {
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

/* The same for m rows that are not a constant. */
static __attribute__((noinline, unused)) void ly_i_gemm_rows(int64_t m, int64_t kc, const float *a, const float *b,
                                                             float *c, int64_t ldc, bool add, const float *bias,
                                                             const ly_i_lines *lines)
{
    switch (m) {
#define LY_I_CASE(n)                                            \
    case n:                                                     \
        ly_i_gemm_micro(n, kc, a, b, c, ldc, add, bias, lines); \
        break;
        LY_I_CASE(1)
        LY_I_CASE(2)
        LY_I_CASE(3)
        LY_I_CASE(4)
        LY_I_CASE(5)
#if LY_I_NATIVE == 16
        LY_I_CASE(6)
        LY_I_CASE(7)
        LY_I_CASE(8)
        LY_I_CASE(9)
        LY_I_CASE(10)
        LY_I_CASE(11)
#endif
#undef LY_I_CASE
    default:
        ly_i_gemm_micro(LY_MR, kc, a, b, c, ldc, add, bias, lines);
    }
}

/* The same where only n of the columns exist. */
static __attribute__((noinline, unused)) void ly_i_gemm_edge(int64_t m, int64_t n, int64_t kc, const float *a,
                                                             const float *b, float *c, int64_t ldc, bool add,
                                                             const float *bias, const ly_i_lines *lines)
{
    float t[LY_MR * LY_NR];
    ly_i_gemm_rows(m, kc, a, b, t, LY_NR, false, NULL, lines);
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

/* What one thread computes: rows [m0, m1), columns [n0, n1) of c = a b + beta c + bias. bias has the type of b. */
typedef struct ly_i_tile {
    ly_i_operand a, b;
    void *c;
    const void *bias;
    int64_t ldc;
    mc_dtype c_type;
    bool add; /* f32 only */
    int64_t m0, m1, n0, n1, k;
} ly_i_tile;

/* One piece of K on its way through the kernel. */
typedef struct ly_i_feed {
    const ly_i_tile *t;
    int64_t k0, kc, n_strips;
} ly_i_feed;

/* Packs strips [s0, s1) of the panel of B at column j. */
LY_INLINE void ly_i_feed_pack_as(mc_dtype T, const ly_i_feed *f, float *to, int64_t j, int64_t s0, int64_t s1)
{
    ly_i_operand x = f->t->b;
    x.type = T;
    for (int64_t s = s0; s < s1; s++) {
        int64_t k = s * LY_STRIP;
        ly_i_pack_strip(T, to + k * LY_NR, LY_NR, x, j, f->t->n1 - j, f->k0 + k, ly_i_min(f->kc - k, LY_STRIP));
    }
}

LY_INLINE void ly_i_feed_pack(const ly_i_feed *f, float *to, int64_t j, int64_t s0, int64_t s1)
{
    LY_FOR_TYPE(f->t->b.type, T, ly_i_feed_pack_as(T, f, to, j, s0, s1));
}

/* Their lines in memory. */
LY_INLINE ly_i_lines ly_i_feed_lines(const ly_i_feed *f, int64_t j, int64_t s0, int64_t s1)
{
    ly_i_operand x = f->t->b;
    int64_t elem = x.type == MC_F32 ? 4 : 2;
    int row_lines = LY_NR * elem > LY_LINE_BYTES ? (int)(LY_NR * elem / LY_LINE_BYTES) : 1;
    const char *at = ly_i_at(x, j, f->k0 + s0 * LY_STRIP);
    if (x.k_contiguous) {
        return (ly_i_lines){at, x.ld * elem, LY_STRIP * elem, (s1 - s0) * LY_NR, LY_NR};
    }
    return (ly_i_lines){at, LY_LINE_BYTES, x.ld * elem, (s1 - s0) * LY_STRIP * row_lines, row_lines};
}

/* Where the kernel adds: element (i, j) of the tile at i * ld + j; where `same`, all blocks one after another at the
 * same place. */
typedef struct ly_i_sums {
    float *at;
    int64_t ld;
    bool same;
} ly_i_sums;

static inline ly_i_sums ly_i_sums_of(const ly_i_tile *t, bool one_piece, float *room)
{
    if (t->c_type == MC_F32) {
        return (ly_i_sums){(float *)t->c + t->m0 * t->ldc + t->n0, t->ldc, false};
    }
    int64_t cols = (t->n1 - t->n0 + LY_WIDEST - 1) / LY_WIDEST * LY_WIDEST;
    return one_piece ? (ly_i_sums){room, LY_NR, true} : (ly_i_sums){room, cols + LY_SUM_GAP, false};
}

/* Rounds m x n sums to C from row i, column j on. */
static inline void ly_i_round_block(const ly_i_tile *t, int64_t i, int64_t j, int64_t m, int64_t n, const float *sums,
                                    int64_t ld)
{
    for (int64_t r = 0; r < m; r++) {
        void *c = ly_elem_out(t->c_type, t->c, (i + r) * t->ldc + j);
        for (int64_t l = 0; l < n; l += LY_LANES) {
            ly_vf v = ly_vload(sums + r * ld + l);
            LY_FOR_TYPE(t->c_type, T, ly_tstore(T, ly_elem_out(T, c, l), v, n - l));
        }
    }
}

/* A block of MR x NR or less at row i, column j: from panels a and b to the sums, and to a C of 16 bits if this is the
 * `last` piece of K. */
LY_INLINE void ly_i_gemm_cell(const ly_i_tile *t, int64_t i, int64_t j, int64_t kc, const float *a, const float *b,
                              ly_i_sums sums, bool add, const float *bias, bool last, const ly_i_lines *lines)
{
    int64_t m = ly_i_min(t->m1 - i, LY_MR), n = ly_i_min(t->n1 - j, LY_NR);
    bool f32 = t->c_type == MC_F32;
    float *to = sums.same ? sums.at : sums.at + (i - t->m0) * sums.ld + (j - t->n0);
    if (f32 && n < LY_NR) {
        ly_i_gemm_edge(m, n, kc, a, b, to, sums.ld, add, bias, lines);
    } else if (m < LY_MR) {
        ly_i_gemm_rows(m, kc, a, b, to, sums.ld, add, bias, lines);
    } else {
        ly_i_gemm_micro(LY_MR, kc, a, b, to, sums.ld, add, bias, lines);
    }
    if (!f32 && last) {
        ly_i_round_block(t, i, j, m, n, to, sums.ld);
    }
}

/* bias[0 .. NR - 1] from column j on, widened, 0 past the end. */
static inline void ly_i_gemm_bias(const ly_i_tile *t, int64_t j, float *bias)
{
    float wide[LY_WIDEST];
    for (int64_t l = 0; l < LY_NR; l += LY_LANES) {
        ly_vf v = j + l < t->n1 ? ly_tload(t->b.type, ly_elem(t->b.type, t->bias, j + l), t->n1 - j - l) : ly_vzero();
        ly_vstore(wide + l, v);
    }
    memcpy(bias, wide, LY_NR * sizeof *bias);
}

/* One piece of K: all rows of the tile, packed at `a`, times its columns. b[2]: room for a panel each. */
static inline void ly_i_gemm_piece(const ly_i_tile *t, int64_t k0, int64_t kc, const float *a, float *const b[2],
                                   ly_i_sums sums)
{
    ly_i_feed f = {t, k0, kc, (kc + LY_STRIP - 1) / LY_STRIP};
    int64_t panels = (t->m1 - t->m0 + LY_MR - 1) / LY_MR;
    bool add = t->add || k0 > 0, last = k0 + kc == t->k;
    float bias[LY_NR];
    ly_i_feed_pack(&f, b[0], t->n0, 0, f.n_strips);
    for (int64_t j = t->n0, side = 0; j < t->n1; j += LY_NR, side ^= 1) {
        int64_t next = j + LY_NR, s = 0;
        bool with_bias = k0 == 0 && t->bias;
        if (with_bias) {
            ly_i_gemm_bias(t, j, bias);
        }
        for (int64_t p = 0; p < panels; p++) {
            ly_i_lines lines = {0};
            if (next < t->n1) {
                /* Packs what was fetched one call ago, fetches what the next call packs. */
                int64_t s1 = (p + 1) * f.n_strips / panels, s2 = (p + 2) * f.n_strips / panels;
                ly_i_feed_pack(&f, b[side ^ 1], next, s, s1);
                s = s1;
                if (p + 1 < panels) {
                    lines = ly_i_feed_lines(&f, next, s1, s2);
                } else if (next + LY_NR < t->n1) {
                    lines = ly_i_feed_lines(&f, next + LY_NR, 0, f.n_strips / panels);
                }
            }
            ly_i_gemm_cell(t, t->m0 + p * LY_MR, j, kc, a + p * ly_i_panel(LY_MR, kc), b[side], sums, add,
                           with_bias ? bias : NULL, last, &lines);
        }
    }
}

/* K is cut into equal pieces of at most LY_KC, a multiple of 16: a function of K only. */
LY_INLINE int64_t ly_i_gemm_kc(int64_t n_k)
{
    int64_t pieces = (n_k + LY_KC - 1) / LY_KC, kc = (n_k + pieces - 1) / pieces;
    return (kc + 15) / 16 * 16;
}

/* Packed floats of m rows of A, kc of their k. */
LY_INLINE int64_t ly_i_a_floats(int64_t m, int64_t kc)
{
    return (m + LY_MR - 1) / LY_MR * ly_i_panel(LY_MR, kc);
}

/* Whether the scratch holds m rows of A with all of their k. */
LY_INLINE bool ly_i_a_fits(int64_t m, int64_t n_k)
{
    int64_t piece = ly_i_gemm_kc(n_k), pieces = (n_k + piece - 1) / piece;
    return pieces * ly_i_a_floats(m, piece) <= LY_A_FLOATS;
}

/* Computes the tile; K >= 1. `held`: the scratch still has the rows of A, from this thread's last tile. Returns whether
 * it has those of this one. */
static inline bool ly_i_gemm_tile(const ly_i_tile *t, bool held, float *scratch)
{
    float *b_side = scratch + LY_A_FLOATS + LY_PACK_SLACK;
    float *const b[2] = {b_side, b_side + LY_WIDEST * LY_KC + LY_PACK_SLACK};
    int64_t m = t->m1 - t->m0, piece = ly_i_gemm_kc(t->k), a_floats = ly_i_a_floats(m, piece);
    bool whole = ly_i_a_fits(m, t->k);
    ly_i_sums sums = ly_i_sums_of(t, t->k <= piece, b[1] + LY_WIDEST * LY_KC + LY_PACK_SLACK);
    for (int64_t k0 = 0; k0 < t->k; k0 += piece) {
        int64_t kc = ly_i_min(t->k - k0, piece);
        float *a = scratch + (whole ? k0 / piece * a_floats : 0);
        if (!held) {
            LY_FOR_TYPE(t->a.type, T, ly_i_pack(T, a, LY_MR, t->a, t->m0, m, k0, kc));
        }
        ly_i_gemm_piece(t, k0, kc, a, b, sums);
    }
    return whole;
}

#endif
