/* Which attention calls go to cuDNN, in how many runs, with how much workspace: from the call alone, so that `megac
 * plan` and the backend say the same. What cuDNN then refuses runs on our kernels, which need no workspace. */
#ifndef LAYERS_CUDA_ATTENTION_SPLIT_H
#define LAYERS_CUDA_ATTENTION_SPLIT_H

#include <stdbool.h>
#include <string.h>

#include "layers/attention.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A deterministic backward of cuDNN 9 keeps a 16-bit matrix of all scores' gradients: it is worth this much memory. */
enum { LY_I_SDPA_MOST_BYTES = 256 << 20 };
/* What any plan may need besides (256 bytes, with cuDNN 9.19). */
enum { LY_I_SDPA_SMALL_BYTES = 64 << 10 };

/* cuDNN sees (batch, heads, T, H), with one distance between heads. Where the heads of a call lie so, one run takes
 * `samples` samples: (samples, G * r, T, H). Where they do not (grouped queries of a fused buffer: [q * r, k, v] for
 * each group), one run takes one sample, whose groups stand in for a batch: (G, r, T, H). */
typedef struct ly_i_sdpa_split {
    int64_t runs;    /* 0: our kernel */
    int64_t samples; /* of a run */
    bool by_group;
    int64_t workspace_bytes;
    const char *why; /* of runs == 0 */
} ly_i_sdpa_split;

static inline bool ly_i_sdpa_even_heads(mc_tensor t)
{
    return t.dims[1] == 1 || t.dims[2] == 1 || t.strides[1] == t.dims[2] * t.strides[2];
}

/* As measured on cuDNN 9.19 for compute capability 9.0: dS of every head, in tiles of at most 128, and where heads
 * share keys, dK and dV of every query head. */
static inline int64_t ly_i_sdpa_bwd_bytes(int64_t heads, int64_t r, int64_t T, int64_t H)
{
    int64_t tiled = (T + 127) / 128 * 128;
    return heads * tiled * tiled * 2 + (r > 1 ? 2 * heads * T * H * 2 : 0) + LY_I_SDPA_SMALL_BYTES;
}

/* What no graph of ours expresses; NULL: nothing. */
static inline const char *ly_i_sdpa_refusal(mc_tensor q, int64_t seq_len, int64_t window_left, float p)
{
    if (q.dtype != MC_BF16 && q.dtype != MC_F16) {
        return "cuDNN computes it in 16 bits only";
    }
    if (p > 0.0f) {
        return "its dropout mask is a function of global positions, which cuDNN's generator cannot make";
    }
    if (window_left >= 0 && window_left < seq_len - 1) {
        return "it has a window";
    }
    return q.dims[3] % 8 != 0 ? "its head size is not a multiple of 8" : NULL;
}

static inline ly_i_sdpa_split ly_i_sdpa_split_fwd(const ly_attention_fwd *a)
{
    ly_i_sdpa_split s = {.why = ly_i_sdpa_refusal(a->q, a->seq_len, a->window_left, a->dropout.p)};
    int64_t B = a->q.dims[0] / a->seq_len;
    if (!s.why) {
        s.by_group = !(ly_i_sdpa_even_heads(a->q) && ly_i_sdpa_even_heads(a->out));
        s.samples = s.by_group ? 1 : B;
        s.runs = B / s.samples;
        s.workspace_bytes = LY_I_SDPA_SMALL_BYTES;
    }
    return s;
}

static inline ly_i_sdpa_split ly_i_sdpa_split_bwd(const ly_attention_bwd *a)
{
    ly_i_sdpa_split s = {.why = ly_i_sdpa_refusal(a->q, a->seq_len, a->window_left, a->dropout.p)};
    int64_t T = a->seq_len, B = a->q.dims[0] / T, heads = a->q.dims[1] * a->q.dims[2];
    if (!s.why) {
        s.by_group = !(ly_i_sdpa_even_heads(a->q) && ly_i_sdpa_even_heads(a->out) && ly_i_sdpa_even_heads(a->dout) &&
                       ly_i_sdpa_even_heads(a->dq));
        for (s.samples = s.by_group ? 1 : B; s.samples > 0; s.samples--) {
            int64_t bytes = ly_i_sdpa_bwd_bytes(s.samples * heads, a->q.dims[2], T, a->q.dims[3]);
            if (B % s.samples == 0 && bytes <= LY_I_SDPA_MOST_BYTES) {
                s.runs = B / s.samples;
                s.workspace_bytes = bytes;
                return s;
            }
        }
        s.why = "cuDNN's deterministic plan would need more workspace than is planned for it";
    }
    return s;
}

/* In elements. The distance of two elements of a head is 1. */
typedef struct ly_i_sdpa_strides {
    int64_t batch, head, row;
} ly_i_sdpa_strides;

/* One run: causal attention of `heads` query heads over `kv_heads` heads of keys and values, a divisor: query head h
 * reads h / (heads / kv_heads). Statistics (lse, delta) are (batch, heads, seq) f32. Compared as bytes: no padding, and
 * the last four strides of a forward are zero. */
typedef struct ly_i_sdpa {
    int64_t batch, heads, kv_heads, seq, head_size;
    ly_i_sdpa_strides q, k, v, out, dout, dq, dk, dv;
    int32_t dtype;    /* MC_BF16 or MC_F16 */
    int32_t backward; /* 0 or 1; deterministic */
} ly_i_sdpa;

static inline ly_i_sdpa_strides ly_i_sdpa_strides_of(const ly_i_sdpa_split *split, mc_tensor t, int64_t seq_len)
{
    if (split->by_group) {
        return (ly_i_sdpa_strides){t.strides[1], t.strides[2], t.strides[0]};
    }
    return (ly_i_sdpa_strides){seq_len * t.strides[0], t.dims[2] > 1 ? t.strides[2] : t.strides[1], t.strides[0]};
}

static inline ly_i_sdpa ly_i_sdpa_of_fwd(const ly_attention_fwd *a, const ly_i_sdpa_split *split)
{
    int64_t G = a->q.dims[1], r = a->q.dims[2];
    ly_i_sdpa s;
    memset(&s, 0, sizeof s);
    s.batch = split->by_group ? G : split->samples;
    s.heads = split->by_group ? r : G * r;
    s.kv_heads = split->by_group ? 1 : G;
    s.seq = a->seq_len;
    s.head_size = a->q.dims[3];
    s.q = ly_i_sdpa_strides_of(split, a->q, a->seq_len);
    s.k = ly_i_sdpa_strides_of(split, a->k, a->seq_len);
    s.v = ly_i_sdpa_strides_of(split, a->v, a->seq_len);
    s.out = ly_i_sdpa_strides_of(split, a->out, a->seq_len);
    s.dtype = a->q.dtype;
    return s;
}

static inline ly_i_sdpa ly_i_sdpa_of_bwd(const ly_attention_bwd *a, const ly_i_sdpa_split *split)
{
    ly_attention_fwd f = {.q = a->q, .k = a->k, .v = a->v, .out = a->out, .seq_len = a->seq_len};
    ly_i_sdpa s = ly_i_sdpa_of_fwd(&f, split);
    s.dout = ly_i_sdpa_strides_of(split, a->dout, a->seq_len);
    s.dq = ly_i_sdpa_strides_of(split, a->dq, a->seq_len);
    s.dk = ly_i_sdpa_strides_of(split, a->dk, a->seq_len);
    s.dv = ly_i_sdpa_strides_of(split, a->dv, a->seq_len);
    s.backward = 1;
    return s;
}

#ifdef __cplusplus
}
#endif
#endif
