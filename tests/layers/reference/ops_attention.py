"""Reference of attention, forward and backward, with the score matrix in full."""

import jax
import jax.numpy as jnp
import numpy as np

import philox
from case import U, Case, f32
from ops_rows import pull_back


def setup(c: Case, B, T, G, r, H, window, p, sample0, head0, spread):
    """Random q, k, v (B, T, G, r or 1, H), the mask of dropout (B, G, r, T, T) and the function itself."""
    q, k, v = c.normal(B, T, G, r, H, scale=spread), c.normal(B, T, G, 1, H), c.normal(B, T, G, 1, H)
    d = c.dropout(p, T, sample0)
    scale = f32(1.0 / np.sqrt(H))
    c.ints(seq_len=T, window_left=window, head0=head0)
    c.floats(scale=scale)
    head = head0 + np.arange(G * r).reshape(1, G, r, 1, 1)
    t, u = np.arange(T).reshape(T, 1), np.arange(T)
    sample = sample0 + np.arange(B).reshape(B, 1, 1, 1, 1)
    element = (head * T + t) * T + u + 0 * sample
    mask = philox.kept(d["seed"], d["stream"], sample + 0 * element, element, p) if p else np.ones((B, G, r, T, T))
    seen = (u <= t) & ((t - u <= window) | (window < 0))

    def f(q, k, v):
        s = jnp.einsum("btgjh,bugh->bgjtu", q, k[:, :, :, 0]) * scale
        s = jnp.where(seen, s, -jnp.inf)
        return jnp.einsum("bgjtu,bugh->btgjh", jax.nn.softmax(s, axis=-1) * mask, v[:, :, :, 0]), s

    return q, k, v, mask, seen, scale, f


def tolerances(q, k, v, mask, seen, scale, s, dout):
    """A score is a sum of H products, so a probability has a relative error of that sum's error (exponential), which
    carries through linear sums. Everything below is such a sum of absolute values. Returns (out, lse, dq, dk, dv)."""
    H, T = q.shape[-1], q.shape[1]
    qa, ka, va, da = (np.abs(x) for x in (q, k[:, :, :, 0], v[:, :, :, 0], dout))
    probability = np.exp(s - s.max(-1, keepdims=True))
    probability = probability / probability.sum(-1, keepdims=True)
    size = np.where(seen, np.einsum("btgjh,bugh->bgjtu", qa, ka) * scale, 0.0)
    score_error = (8 + 2 * np.sqrt(H)) * U * size.max(-1, keepdims=True)
    unit = score_error + (8 + 2 * np.sqrt(T)) * U
    error_p = unit * probability
    dropped = probability * mask
    out = np.einsum("bgjtu,bugh->btgjh", error_p * mask, va)
    lse = (score_error[..., 0] + (8 + 2 * np.sqrt(T)) * U) + 4 * U * np.abs(s.max(-1))
    dp = np.einsum("btgjh,bugh->bgjtu", da, va)
    delta = (dp * dropped).sum(-1, keepdims=True)
    error_ds = 2 * scale * (unit + (8 + 2 * np.sqrt(H)) * U) * probability * (dp * mask + delta)
    dq = np.einsum("bgjtu,bugh->btgjh", error_ds, ka)
    dk = np.einsum("bgjtu,btgjh->bugh", error_ds, qa)[:, :, :, None]
    dv = np.einsum("bgjtu,btgjh->bugh", 2 * error_p * mask, da)[:, :, :, None]
    return out, lse, dq, dk, dv


def views(c: Case, prefix, B, T, G, r, H):
    """q, k and v of one buffer in Megatron-LM's order, rows a little apart."""
    group, row = (r + 2) * H, G * (r + 2) * H + 3
    buffer = c.buffer(B * T * row)
    strides = (row, group, H, 1)
    return [
        c.view(prefix + name, buffer, (B * T, G, n, H), strides, offset)
        for name, n, offset in (("q", r, 0), ("k", 1, r * H), ("v", 1, (r + 1) * H))
    ]


def inputs(c: Case, q, k, v):
    B, T, G, r, H = q.shape
    for place, x in zip(views(c, "", B, T, G, r, H), (q, k, v)):
        c.put(place, x.reshape(B * T, G, -1, H))


def attention_fwd(c: Case, B, T, G, r, H, window=-1, p=0.0, sample0=0, head0=0, spread=1.0):
    q, k, v, mask, seen, scale, f = setup(c, B, T, G, r, H, window, p, sample0, head0, spread)
    out, s = (np.asarray(x) for x in jax.jit(f)(q, k, v))
    out_tol, lse_tol, *_ = tolerances(q, k, v, mask, seen, scale, s, out)
    inputs(c, q, k, v)
    c.output("out", out.reshape(B * T, G, r, H), out_tol.reshape(B * T, G, r, H))
    lse = np.asarray(jax.nn.logsumexp(jnp.asarray(s), axis=-1))
    c.output("lse", lse.reshape(B, G * r, T), lse_tol.reshape(B, G * r, T))


def attention_bwd(c: Case, B, T, G, r, H, window=-1, p=0.0, sample0=0, head0=0, spread=1.0):
    q, k, v, mask, seen, scale, f = setup(c, B, T, G, r, H, window, p, sample0, head0, spread)
    dout = c.normal(B, T, G, r, H)
    (out, s), grads = pull_back(f, [q, k, v], dout, np.zeros((B, G, r, T, T)))
    _, _, *tols = tolerances(q, k, v, mask, seen, scale, s, dout)
    inputs(c, q, k, v)
    c.input("out", out.reshape(B * T, G, r, H))
    c.input("dout", dout.reshape(B * T, G, r, H))
    lse = np.asarray(jax.nn.logsumexp(jnp.asarray(s), axis=-1))
    c.input("lse", lse.reshape(B, G * r, T))
    # Workspace: what is left there is nobody's business, so any value passes.
    c.output("delta", np.zeros((B, G * r, T)), np.full((B, G * r, T), np.inf))
    for place, grad, tol in zip(views(c, "d", B, T, G, r, H), grads, tols):
        c.expect(place, grad.reshape(B * T, G, -1, H), tol.reshape(B * T, G, -1, H))


def places(c: Case, R, S, P):
    """Places of R tokens, each of its own sequence where there are as many: the last position first, then the first."""
    sequences = c.rng.permutation(S)[:R] if R <= S else None
    if sequences is None:
        return c.rng.permutation(S * P)[:R]
    positions = c.rng.integers(0, P, R)
    positions[: 2 if R > 1 else 1] = [P - 1, 0][: 2 if R > 1 else 1]
    return sequences * P + positions


def kv_store(c: Case, R, S, P, G, H, r=1):
    k, v, at = c.normal(R, G, 1, H), c.normal(R, G, 1, H), places(c, R, S, P)
    inputs_at = views(c, "", R, 1, G, r, H)
    c.lines = [line for line in c.lines if not line.startswith("tensor q ")]
    for place, x in zip(inputs_at[1:], (k, v)):
        c.put(place, x)
    c.input("places", at, dtype="i32")
    for field, x in (("k_cache", k), ("v_cache", v)):
        # NaN before; what no place names keeps its bits.
        buffer, grid = c.rows(field, (S, G, P, H))
        c.expect((buffer, grid[at // P, :, at % P]), x[:, :, 0], 0.0)


def attention_decode(c: Case, R, S, P, G, r, H, window=-1, spread=1.0):
    q, at = c.normal(R, G, r, H, scale=spread), places(c, R, S, P)
    k, v = c.normal(S, G, P, H), c.normal(S, G, P, H)
    scale = f32(1.0 / np.sqrt(H))
    c.ints(window_left=window)
    c.floats(scale=scale)
    last, u = (at % P).reshape(R, 1), np.arange(P)
    seen = (u <= last) & ((last - u <= window) | (window < 0))
    # What no query sees is NaN: it must not be read.
    hidden = np.ones((S, P), bool)
    hidden[at // P] = ~seen
    for field, x in (("k_cache", k), ("v_cache", v)):
        c.input(field, np.where(hidden[:, None, :, None], np.nan, x))
    c.put(views(c, "", R, 1, G, r, H)[0], q)
    c.lines = [line for line in c.lines if not line.startswith(("tensor k ", "tensor v "))]
    c.input("places", at, dtype="i32")
    k, v, seen = k[at // P], v[at // P], seen[:, None, None]
    s = jnp.where(seen, jnp.einsum("ngjh,nguh->ngju", q, k) * scale, -jnp.inf)
    probability = np.asarray(jax.nn.softmax(s, axis=-1))
    size = np.where(seen, np.einsum("ngjh,nguh->ngju", np.abs(q), np.abs(k)) * scale, 0.0)
    # As in tolerances(): the error of a score, carried by the exponential, and that of the sums.
    unit = (8 + 2 * np.sqrt(H)) * U * size.max(-1, keepdims=True) + (8 + 2 * np.sqrt(P)) * U
    tol = np.einsum("ngju,nguh->ngjh", unit * probability, np.abs(v))
    c.output("out", np.einsum("ngju,nguh->ngjh", probability, v), tol)
