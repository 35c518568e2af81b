#include "megac/train/sampling.h"

#include <math.h>
#include <stdbool.h>
#include <stddef.h>

#include "megac/base/rng.h"

/* NaN and -inf have no chance. */
static bool possible(float logit)
{
    return logit > -INFINITY;
}

static int32_t likeliest(const float *logits, int n)
{
    int32_t best = -1;
    for (int i = 0; i < n; i++) {
        if (possible(logits[i]) && (best < 0 || logits[i] > logits[best])) {
            best = i;
        }
    }
    return best;
}

/* Uniform in (0, 1) with 53 bits: 24 would leave tokens of a large vocabulary without a chance. */
static double uniform(const mt_sampling *s, uint64_t prompt, uint64_t position)
{
    mc_rng_block r = mc_rng_bits(s->seed, mc_rng_stream(MC_RNG_SAMPLING, 0), prompt, position);
    uint64_t bits = (uint64_t)r.w[0] << 32 | r.w[1];
    return ((double)(bits >> 12) + 0.5) * 0x1p-52;
}

/* A heap of tokens, the likeliest on top. */
static bool before(const float *logits, int32_t a, int32_t b)
{
    return logits[a] > logits[b] || (logits[a] == logits[b] && a < b);
}

static void sift_down(int32_t *heap, int n, int at, const float *logits)
{
    for (;;) {
        int child = 2 * at + 1;
        if (child >= n) {
            return;
        }
        if (child + 1 < n && before(logits, heap[child + 1], heap[child])) {
            child++;
        }
        if (!before(logits, heap[child], heap[at])) {
            return;
        }
        int32_t t = heap[at];
        heap[at] = heap[child];
        heap[child] = t;
        at = child;
    }
}

static double weight(const mt_sampling *s, const float *logits, int32_t token, float top)
{
    /* An infinite logit takes everything; infinity minus itself would be NaN. */
    return logits[token] == top ? 1.0 : exp(((double)logits[token] - (double)top) / s->temperature);
}

static double weight_of_all(const mt_sampling *s, const float *logits, const int32_t *tokens, int n, float top)
{
    double total = 0.0;
    for (int i = 0; i < n; i++) {
        total += weight(s, logits, tokens[i], top);
    }
    return total;
}

/* Moves the tokens that top_k and top_p leave to the end of `heap`, the likeliest last; returns how many. Only as many
 * are sorted as are looked at. */
static int keep(const mt_sampling *s, const float *logits, int32_t *heap, int n, float top)
{
    for (int at = n / 2 - 1; at >= 0; at--) {
        sift_down(heap, n, at, logits);
    }
    int limit = s->top_k > 0 && s->top_k < n ? s->top_k : n;
    bool by_weight = s->top_p > 0 && s->top_p < 1;
    double enough = by_weight && limit == n ? s->top_p * weight_of_all(s, logits, heap, n, top) : INFINITY;
    double sum = 0.0;
    int sorted = 0;
    while (sorted < limit && sum < enough) {
        int32_t token = heap[0];
        int left = n - 1 - sorted;
        heap[0] = heap[left];
        heap[left] = token;
        sift_down(heap, left, 0, logits);
        sum += weight(s, logits, token, top);
        sorted++;
    }
    if (!by_weight || limit == n) {
        return sorted;
    }
    double part = 0.0;
    int kept = 0;
    while (kept < sorted && part < s->top_p * sum) {
        part += weight(s, logits, heap[n - 1 - kept], top);
        kept++;
    }
    return kept;
}

/* The token at which the running weight passes u of the whole. `order` lists n tokens from its end backwards; NULL: all
 * tokens in turn. */
static int32_t draw(const mt_sampling *s, const float *logits, const int32_t *order, int first, int n, float top,
                    double u)
{
    double total = 0.0;
    for (int i = 0; i < n; i++) {
        int32_t token = order != NULL ? order[first - i] : i;
        total += possible(logits[token]) ? weight(s, logits, token, top) : 0.0;
    }
    double sum = 0.0;
    int32_t chosen = -1;
    for (int i = 0; i < n; i++) {
        int32_t token = order != NULL ? order[first - i] : i;
        double w = possible(logits[token]) ? weight(s, logits, token, top) : 0.0;
        if (w > 0.0) {
            chosen = token; /* the last possible one, should rounding let u x total pass the sum */
        }
        sum += w;
        if (w > 0.0 && u * total < sum) {
            break;
        }
    }
    return chosen;
}

int32_t mt_sample(const mt_sampling *s, const float *logits, int n_vocab, uint64_t prompt, uint64_t position)
{
    int32_t best = likeliest(logits, n_vocab);
    if (best < 0 || !(s->temperature > 0.0)) {
        return best;
    }
    float top = logits[best];
    double u = uniform(s, prompt, position);
    bool filtered = (s->top_k > 0 && s->top_k < n_vocab) || (s->top_p > 0 && s->top_p < 1);
    if (!filtered) {
        return draw(s, logits, NULL, 0, n_vocab, top, u);
    }
    MC_ASSERT(s->scratch != NULL);
    int n = 0;
    for (int i = 0; i < n_vocab; i++) {
        if (possible(logits[i])) {
            s->scratch[n++] = i;
        }
    }
    int kept = keep(s, logits, s->scratch, n, top);
    return draw(s, logits, s->scratch, n - 1, kept, top, u);
}
