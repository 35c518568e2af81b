"""References of the operators that work row by row: gemm, norms, activations, rope, embeddings, cross entropy."""

import jax
import jax.numpy as jnp
import numpy as np

import philox
from case import U, Case, f32, sum_tol

GELU_C = np.sqrt(2.0 / np.pi)


def pull_back(f, inputs, *cotangents):
    """Outputs of f and the gradients of its inputs, by reverse-mode automatic differentiation in float64."""

    def run(args, cts):
        out, back = jax.vjp(f, *args)
        return out, back(cts if isinstance(out, tuple) else cts[0])

    out, grads = jax.jit(run)(tuple(jnp.asarray(x) for x in inputs), tuple(jnp.asarray(c) for c in cotangents))
    return jax.tree.map(np.asarray, out), [np.asarray(g) for g in grads]


def forward(f, *inputs):
    return jax.tree.map(np.asarray, jax.jit(f)(*[jnp.asarray(x) for x in inputs]))


def gemm(c: Case, M, N, K, trans_a=0, trans_b=0, beta=0.0, bias=0, pad=0):
    a, b = c.normal(M, K), c.normal(K, N)
    start, add = c.normal(M, N), c.normal(N) * bias
    c.input("a", a.T if trans_a else a, pad=pad)
    c.input("b", b.T if trans_b else b, pad=pad)
    c.ints(trans_a=trans_a, trans_b=trans_b)
    c.floats(beta=beta)
    if bias:
        c.input("bias", add)
    want = forward(lambda a, b: a @ b + beta * start + add, a, b)
    place = c.output("c", want, sum_tol(K, np.abs(a) @ np.abs(b) + np.abs(beta * start) + np.abs(add)), pad=pad)
    if beta:
        c.put(place, start)


def bias_grad(c: Case, R, N, pad=0):
    dy = c.normal(R, N)
    c.input("dy", dy, pad=pad)
    _, (grad,) = pull_back(lambda b: jnp.zeros((R, N)) + b, [np.zeros(N)], dy)
    c.accumulated("dbias", grad, sum_tol(R, np.abs(dy).sum(0)))


def norm_of(kind, one_plus, eps):
    def f(h, gamma, beta):
        mean = h.mean(-1, keepdims=True) if kind == "layer" else 0.0
        rstd = 1.0 / jnp.sqrt(((h - mean) ** 2).mean(-1, keepdims=True) + eps)
        return (h - mean) * rstd * (gamma + one_plus) + beta, mean + 0.0 * rstd, rstd

    return f


def norm_scales(h, kind, eps):
    """|h| rstd as far as rounding of h and of the mean goes, and the normalised h."""
    mean = h.mean(-1, keepdims=True) if kind == "layer" else 0.0
    rstd = 1.0 / np.sqrt(((h - mean) ** 2).mean(-1, keepdims=True) + eps)
    return (np.abs(h) + np.abs(mean)) * rstd, (h - mean) * rstd, rstd


def norm_bwd_tols(h, kind, eps, gain, dout):
    """Tolerances of dh, dgamma and dbeta over rows h (n, C)."""
    rough, xhat, rstd = norm_scales(h, kind, eps)
    n, columns = h.shape
    gd = np.abs(gain * dout)
    unit = (16 + 2 * np.sqrt(columns)) * U
    dh = unit * rstd * (gd + gd.mean(-1, keepdims=True) + rough * (gd * np.abs(xhat)).mean(-1, keepdims=True))
    dgamma = unit * np.sqrt(n) * (np.abs(dout) * rough).sum(0)
    return dh, dgamma, sum_tol(n, np.abs(dout).sum(0))


def fused_input(c: Case, R, C, y, y_bias, drop):
    """x, y, y_bias, the mask, and h = x + mask (y + y_bias) as a function."""
    x, yv, yb = c.normal(R, C) + 0.5, c.normal(R, C), c.normal(C)
    mask = philox.kept_rows(drop, R, C) if drop["p"] else np.ones((R, C))

    def h_of(x, yv, yb):
        return x + (mask * (yv + yb * y_bias) if y else 0.0)

    return x, yv, yb, mask, h_of


def norm_fwd(c: Case, R, C, kind="layer", beta=0, one_plus=0, y=0, y_bias=0, in_place=0, p=0.0, T=1, row0=0,
             sample0=0, no_out=0):
    eps = 1e-5
    drop = c.dropout(p, T, sample0, row0)
    x, yv, yb, mask, h_of = fused_input(c, R, C, y, y_bias, drop)
    gamma, bt = c.normal(C), c.normal(C) * beta
    c.ints(kind=kind == "rms", one_plus_gamma=one_plus)
    c.floats(eps=eps)
    h = forward(h_of, x, yv, yb)
    h_tol = 4 * U * (np.abs(x) + mask * (np.abs(yv) + np.abs(yb)))
    x_place = c.input("x", x)
    if y:
        c.input("y", yv)
        if in_place:
            c.expect(c.view("h", x_place[0], (R, C)), h, h_tol)
        else:
            c.output("h", h, h_tol)
    if y_bias:
        c.input("y_bias", yb)
    if no_out:
        return
    c.input("gamma", gamma)
    if beta:
        c.input("beta", bt)
    out, mean, rstd = forward(norm_of(kind, one_plus, f32(eps)), h, gamma, bt)
    rough, _, _ = norm_scales(h, kind, eps)
    unit = (16 + 2 * np.sqrt(C)) * U
    c.output("out", out, unit * (rough + h_tol / U * rstd) * np.abs(gamma + one_plus) + 4 * U * np.abs(bt))
    stats_tol = np.concatenate([unit * np.abs(h).mean(-1, keepdims=True), unit * rstd], 1)
    c.output("stats", np.concatenate([mean, rstd], 1), stats_tol)


def norm_bwd(c: Case, R, C, kind="layer", beta=0, one_plus=0, dskip=0, out=0, y_bias=0, in_place=0, p=0.0, T=1,
             row0=0, sample0=0, no_norm=0):
    eps = f32(1e-5)
    drop = c.dropout(p, T, sample0, row0)
    x, yv, yb, mask, h_of = fused_input(c, R, C, 1, 1, drop)
    gamma, bt = c.normal(C), c.normal(C) * beta
    skip, dout = c.normal(R, C) * dskip, c.normal(R, C) * (not no_norm)
    norm = norm_of(kind, one_plus, eps)
    # The operator sees h in float32; take that h as the point of differentiation.
    h = forward(h_of, x, yv, yb).astype(np.float32).astype(np.float64)
    x = h - forward(h_of, 0.0 * x, yv, yb)

    def f(x, yv, yb, gamma, bt):
        hh = h_of(x, yv, yb)
        return hh, norm(hh, gamma, bt)[0]

    (_, normed), (dx, dy, dyb, dgamma, dbeta) = pull_back(f, [x, yv, yb, gamma, bt], skip, dout)
    _, mean, rstd = forward(norm, h, gamma, bt)
    dh_tol, dgamma_tol, dbeta_tol = norm_bwd_tols(h, kind, eps, gamma + one_plus, dout)
    dh_tol = dh_tol + 2 * U * np.abs(skip)
    c.ints(kind=kind == "rms", one_plus_gamma=one_plus)
    c.input("h", h)
    if not no_norm:
        c.input("dout", dout)
        c.input("stats", np.concatenate([mean, rstd], 1))
        c.input("gamma", gamma)
        c.accumulated("dgamma", dgamma, dgamma_tol)
        if beta:
            c.input("beta", bt)
            c.accumulated("dbeta", dbeta, dbeta_tol)
    if dskip:
        skip_place = c.input("dskip", skip)
    if in_place:
        c.expect(c.view("dh", skip_place[0], (R, C)), dx, dh_tol)
    else:
        c.output("dh", dx, dh_tol)
    if p:
        c.output("dy", dy, mask * dh_tol + 2 * U * np.abs(dy))
    if y_bias:
        c.accumulated("dy_bias", dyb, sum_tol(R, np.abs(dy).sum(0)) + (mask * dh_tol).sum(0))
    if out:
        rough, _, _ = norm_scales(h, kind, eps)
        c.output("out", normed, 16 * U * (rough * np.abs(gamma + one_plus) + np.abs(bt)))


def head_rows(c: Case, field, values, others=3):
    """A per-head view (R, G, r, H) inside rows that hold other columns too. Returns buffer and place."""
    R, G, r, H = values.shape
    width = G * (r * H + others)
    place = c.view(field, c.buffer(R * width), (R, G, r, H), (width, r * H + others, H, 1))
    return c.put(place, values)


def head_norm_fwd(c: Case, R, G, r, H, kind="layer", beta=0, one_plus=0, others=3):
    eps = 1e-6
    x, gamma, bt = c.normal(R, G, r, H), c.normal(H), c.normal(H) * beta
    head_rows(c, "x", x, others)
    c.input("gamma", gamma)
    if beta:
        c.input("beta", bt)
    c.ints(kind=kind == "rms", one_plus_gamma=one_plus)
    c.floats(eps=eps)
    out, mean, rstd = forward(norm_of(kind, one_plus, f32(eps)), x, gamma, bt)
    unit = (16 + 2 * np.sqrt(H)) * U
    rough, _, _ = norm_scales(x, kind, eps)
    place = head_rows(c, "out", np.full(x.shape, np.nan), others)
    c.expect(place, out, unit * (rough * np.abs(gamma + one_plus) + np.abs(bt)))
    stats = np.concatenate([mean, rstd], -1).reshape(-1, 2)
    tol = np.concatenate([np.abs(x).mean(-1, keepdims=True), rstd], -1).reshape(-1, 2) * unit
    c.output("stats", stats, tol)


def head_norm_bwd(c: Case, R, G, r, H, kind="layer", beta=0, one_plus=0, in_place=0, others=3):
    eps = f32(1e-6)
    x, gamma, bt, dout = c.normal(R, G, r, H), c.normal(H), c.normal(H), c.normal(R, G, r, H)
    norm = norm_of(kind, one_plus, eps)
    _, (dx, dgamma, dbeta) = pull_back(lambda *a: norm(*a)[0], [x, gamma, bt], dout)
    _, mean, rstd = forward(norm, x, gamma, bt)
    flat = (-1, H)
    dx_tol, dgamma_tol, dbeta_tol = norm_bwd_tols(x.reshape(flat), kind, eps, gamma + one_plus, dout.reshape(flat))
    c.ints(kind=kind == "rms", one_plus_gamma=one_plus)
    head_rows(c, "x", x, others)
    dout_place = head_rows(c, "dout", dout, others)
    c.input("stats", np.concatenate([mean, rstd], -1).reshape(-1, 2))
    c.input("gamma", gamma)
    if in_place:
        width = G * (r * H + others)
        place = c.view("dx", dout_place[0], (R, G, r, H), (width, r * H + others, H, 1))
    else:
        place = head_rows(c, "dx", np.full(x.shape, np.nan), others)
    c.expect(place, dx, dx_tol.reshape(x.shape))
    c.accumulated("dgamma", dgamma, dgamma_tol)
    if beta:
        c.accumulated("dbeta", dbeta, dbeta_tol)


ACTS = {
    "gelu_tanh": lambda x: 0.5 * x * (1 + jnp.tanh(GELU_C * (x + 0.044715 * x**3))),
    "gelu_erf": lambda x: 0.5 * x * (1 + jax.scipy.special.erf(x / np.sqrt(2.0))),
    "squared_relu": lambda x: jnp.maximum(x, 0.0) ** 2,
    "swiglu": lambda x: jax.nn.silu(x[..., : x.shape[-1] // 2]) * x[..., x.shape[-1] // 2 :],
    "silu": jax.nn.silu,
}


def act_input(c: Case, kind, R, F):
    """Values from -12 to 12, zero among them, so that both tails are met."""
    x = c.normal(R, F * (2 if kind == "swiglu" else 1), scale=2.0)
    x.flat[:5] = f32(12.0), f32(-12.0), 0.0, f32(-5.5), f32(0.01)
    size = np.abs(x)
    if kind == "swiglu":
        size = size[:, :F] * (1 + size[:, F:])
    # exp(-x) near the tails has a relative error of |x| units.
    return x, 32 * U * (size + (size**2 if kind == "squared_relu" else 0))


def act_fwd(c: Case, kind, R, F):
    x, tol = act_input(c, kind, R, F)
    c.ints(kind=list(ACTS).index(kind))
    c.input("x", x)
    c.output("out", forward(ACTS[kind], x), tol)


def act_bwd(c: Case, kind, R, F, in_place=0, out=0, out_is_dout=0):
    x, out_tol = act_input(c, kind, R, F)
    dout = c.normal(R, F)
    y, (dx,) = pull_back(ACTS[kind], [x], dout)
    size = np.abs(dout) if kind != "swiglu" else np.concatenate([np.abs(dout * x[:, F:]), np.abs(dout * x[:, :F])], 1)
    tol = 32 * U * size * (1 + np.abs(x))
    c.ints(kind=list(ACTS).index(kind))
    x_place = c.input("x", x)
    dout_place = c.input("dout", dout)
    if in_place:
        c.expect(c.view("dx", x_place[0], x.shape), dx, tol)
    else:
        c.output("dx", dx, tol)
    if out_is_dout:
        c.expect(c.view("out", dout_place[0], (R, F)), y, out_tol)
    elif out:
        c.output("out", y, out_tol)


def rope(c: Case, R, G, r, H, D, T, pos0=0, interleaved=0, inverse=0):
    half = D // 2
    angle = np.arange(pos0 + T)[:, None] * 10000.0 ** (-np.arange(half)[None, :] / half)
    cos = np.cos(angle).astype(np.float32).astype(np.float64)
    sin = np.sin(angle).astype(np.float32).astype(np.float64)
    at = pos0 + np.arange(R) % T
    first = np.arange(0, D, 2) if interleaved else np.arange(half)
    second = first + 1 if interleaved else first + half

    def rotate(x):
        co, si = cos[at][:, None, None, :], sin[at][:, None, None, :]
        a, b = x[..., first], x[..., second]
        return x.at[..., first].set(a * co - b * si).at[..., second].set(b * co + a * si)

    x = c.normal(R, G, r, H)
    want = pull_back(rotate, [x], x)[1][0] if inverse else forward(rotate, x)
    tol = np.zeros_like(x)
    size = np.abs(x[..., first]) + np.abs(x[..., second])
    tol[..., first] = tol[..., second] = 3 * U * size
    place = head_rows(c, "x", x)
    c.expect((place[0], place[1][..., :D]), want[..., :D], tol[..., :D])
    c.input("cos", cos)
    c.input("sin", sin)
    c.ints(seq_len=T, pos0=pos0, interleaved=interleaved, inverse=inverse)


def tokens_for(c: Case, R, V, vocab0):
    return c.rng.integers(0, V + 2 * vocab0, R)


def lookup(table, tokens, vocab0):
    local = tokens - vocab0
    inside = (local >= 0) & (local < table.shape[0])
    return jnp.where(inside[:, None], table[np.where(inside, local, 0)], 0.0)


def embedding_fwd(c: Case, R, V, C, vocab0=0):
    tokens, table = tokens_for(c, R, V, vocab0), c.normal(V, C)
    c.input("tokens", tokens, "i32")
    c.input("table", table)
    c.ints(vocab0=vocab0)
    c.output("out", forward(lambda t: lookup(t, tokens, vocab0), table), 0.0)


def embedding_bwd(c: Case, R, V, C, vocab0=0):
    tokens, dout = tokens_for(c, R, V, vocab0), c.normal(R, C)
    c.input("tokens", tokens, "i32")
    c.input("dout", dout)
    c.ints(vocab0=vocab0)
    _, (grad,) = pull_back(lambda t: lookup(t, tokens, vocab0), [np.zeros((V, C))], dout)
    _, (size,) = pull_back(lambda t: lookup(t, tokens, vocab0), [np.zeros((V, C))], np.abs(dout))
    c.accumulated("dtable", grad, sum_tol(R, size))


def finish_of(d, R, C):
    mask = philox.kept_rows(d, R, C) if d["p"] else np.ones((R, C))
    at = (d["row0"] + np.arange(R)) % d["seq_len"]
    return lambda x, positions: mask * (x + positions[at]), mask


def embed_finish_fwd(c: Case, R, C, T, P=0, positions=0, p=0.0, row0=0, sample0=0, in_place=0):
    d = c.dropout(p, T, sample0, row0)
    x, table = c.normal(R, C), c.normal(max(P, T), C) * positions
    f, mask = finish_of(d, R, C)
    place = c.input("x", x)
    if positions:
        c.input("positions", table)
    tol = 4 * U * mask * (np.abs(x) + np.abs(table).max())
    if in_place:
        c.expect(c.view("h", place[0], (R, C)), forward(f, x, table), tol)
    else:
        c.output("h", forward(f, x, table), tol)


def embed_finish_bwd(c: Case, R, C, T, P=0, positions=0, p=0.0, row0=0, sample0=0, in_place=0):
    d = c.dropout(p, T, sample0, row0)
    dh = c.normal(R, C)
    f, mask = finish_of(d, R, C)
    _, (dx, dpos) = pull_back(f, [np.zeros((R, C)), np.zeros((max(P, T), C))], dh)
    place = c.input("dh", dh)
    if in_place:
        c.expect(c.view("dx", place[0], (R, C)), dx, 2 * U * np.abs(dx))
    else:
        c.output("dx", dx, 2 * U * np.abs(dx))
    if positions:
        c.accumulated("dpositions", dpos, sum_tol(R, np.abs(dx).sum(0) + 0 * dpos))


def shard_stats(logits, targets, vocab0, valid):
    """(R, 3) of one shard in float64."""
    V = logits.shape[1]
    real = vocab0 + np.arange(V) < valid
    masked = np.where(real, logits, -np.inf)
    top = masked.max(-1)
    total = np.where(real, np.exp(masked - np.where(np.isfinite(top), top, 0.0)[:, None]), 0.0).sum(-1)
    local = targets - vocab0
    inside = (local >= 0) & (local < V)
    target = np.where(inside, logits[np.arange(len(targets)), np.where(inside, local, 0)], 0.0)
    return np.stack([top, total, target], 1)


def xent_stats(c: Case, R, V, valid, vocab0=0):
    logits = c.normal(R, V, scale=3.0)
    targets = c.rng.integers(0, valid, R)
    c.input("logits", logits)
    c.input("targets", targets, "i32")
    c.ints(vocab0=vocab0, vocab_valid=valid)
    want = shard_stats(logits, targets, vocab0, valid)
    tol = np.zeros_like(want)
    tol[:, 1] = (16 + 2 * np.sqrt(V) + 2 * np.ptp(logits)) * U * want[:, 1]
    c.output("stats", want, tol)


def xent_grad(c: Case, R, V, valid, shards=1, shard=0, weights=0, scale=1.0, no_grad=0, no_losses=0):
    logits = c.normal(R, V * shards, scale=3.0)
    targets = c.rng.integers(0, valid, R)
    w = np.abs(c.normal(R)) if weights else np.ones(R)
    if weights:
        w[1] = 0.0
    scale = f32(scale)
    cut = slice(shard * V, (shard + 1) * V)

    def losses_of(logits):
        real = np.arange(V * shards) < valid
        lse = jax.nn.logsumexp(jnp.where(real, logits, -jnp.inf), axis=-1)
        return (lse - logits[np.arange(R), targets]) * w

    losses, (grad,) = pull_back(losses_of, [logits], np.full(R, scale))
    soft = np.abs(grad) + (np.arange(V * shards)[None, :] == targets[:, None]) * 2 * (w * scale)[:, None]
    place = c.input("logits", logits[:, cut])
    c.input("targets", targets, "i32")
    stats = [shard_stats(logits[:, i * V : (i + 1) * V], targets, i * V, valid) for i in range(shards)]
    c.input("all_stats", np.stack(stats))
    unit = (16 + 2 * np.sqrt(V) + 2 * np.ptp(logits)) * U
    if weights:
        c.input("weights", w)
    if not no_losses:
        c.output("losses", losses, unit * (1 + np.abs(losses)))
    if not no_grad:
        c.expect(place, grad[:, cut], unit * soft[:, cut])
    c.ints(vocab0=shard * V, vocab_valid=valid, write_grad=not no_grad)
    c.floats(scale=scale)
