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
