"""References of the operators that work on whole slabs: optimizers, norms of gradients, add, fill. They have no
gradients; NumPy in float64 computes them from their published formulas."""

import numpy as np

from case import EXACT, U, Case, f32, rounded


def split(c: Case, n, segments):
    """`segments` runs with gaps between them (padding, which must stay untouched), or one run of everything. Returns
    index arrays with their multipliers."""
    if not segments:
        bounds = [(0, n, 1.0, 1.0, 1.0)]
    else:
        cut = [i * n // segments for i in range(segments + 1)]
        bounds = [
            (cut[i] + 3 * i, cut[i + 1] - i, [1.0, 0.5, 2.0][i % 3], [0.0, 1.0, 0.25][i % 3], [1.0, 0.0, 1.0][i % 3])
            for i in range(segments)
        ]
    for row in bounds:
        c.segment(*row)
    return [(np.arange(b, e), lr, decay, weight) for b, e, lr, decay, weight in bounds]


def adamw(c: Case, n, step, decay=0.0, segments=0, grad_scale=1.0):
    lr, b1, b2, eps, decay = f32(1e-2), f32(0.9), f32(0.95), f32(1e-8), f32(decay)
    p, g, m, v = c.normal(n), c.normal(n), c.normal(n, scale=0.1), np.abs(c.normal(n, scale=0.1))
    places = [c.input(field, x) for field, x in (("param", p), ("grad", g), ("m", m), ("v", v))]
    c.floats(lr=lr, beta1=b1, beta2=b2, eps=eps, weight_decay=decay, grad_scale=grad_scale)
    c.ints(step=step)
    for at, lr_mult, decay_mult, _ in split(c, n, segments):
        gs = g[at] * grad_scale
        m2, v2 = b1 * m[at] + (1 - b1) * gs, b2 * v[at] + (1 - b2) * gs**2
        # 1 - b^step keeps few bits of b in float32; an implementation may compute it in either precision.
        hat = (m2 / (1 - b1**step)) / (np.sqrt(v2 / (1 - b2**step)) + eps)
        update = lr * lr_mult * (hat + decay * decay_mult * p[at])
        sizes = lr * lr_mult * (np.abs(hat) + decay * decay_mult * np.abs(p[at]))
        # The two terms of m may cancel; what their rounding leaves is divided by sqrt(v) like m itself.
        m_size = np.abs(b1 * m[at]) + np.abs((1 - b1) * gs)
        m_part = lr * lr_mult * m_size / (1 - b1**step) / (np.sqrt(v2 / (1 - b2**step)) + eps)
        expect = [
            (places[0], p[at] - update, 4 * U * np.abs(p[at]) + 32 * U * (sizes + m_part)),
            (places[2], m2, 8 * U * m_size),
            (places[3], v2, 8 * U * v2),
        ]
        for (buffer, _), want, tol in expect:
            c.expect((buffer, at), want, tol)


def sgd(c: Case, n, momentum=0.0, decay=0.0, segments=0, grad_scale=1.0):
    lr, momentum, decay = f32(1e-2), f32(momentum), f32(decay)
    p, g, m = c.normal(n), c.normal(n), c.normal(n)
    param = c.input("param", p)
    c.input("grad", g)
    if momentum:
        m_place = c.input("m", m)
    c.floats(lr=lr, momentum=momentum, weight_decay=decay, grad_scale=grad_scale)
    for at, lr_mult, decay_mult, _ in split(c, n, segments):
        step = g[at] * grad_scale + decay * decay_mult * p[at]
        size = np.abs(g[at] * grad_scale) + np.abs(decay * decay_mult * p[at])
        if momentum:
            step, size = momentum * m[at] + step, np.abs(momentum * m[at]) + size
            c.expect((m_place[0], at), step, 8 * U * size)
        c.expect((param[0], at), p[at] - lr * lr_mult * step, 4 * U * np.abs(p[at]) + 16 * U * lr * lr_mult * size)


def sq_norm(c: Case, n, segments=0):
    x = c.normal(n)
    c.input("x", x)
    parts = split(c, n, segments)
    want = np.array([sum(weight * (x[at] ** 2).sum() for at, _, _, weight in parts)])
    c.output("out", want, n * 2.0**-53 * want, dtype="f64")


def add(c: Case, n, in_place=0):
    a, b = c.normal(n), c.normal(n)
    place = c.input("a", a)
    c.input("b", b)
    if in_place:
        c.expect(c.view("out", place[0], (n,)), a + b, U * np.abs(a + b))
    else:
        c.output("out", a + b, U * np.abs(a + b))


def fill(c: Case, n, value=1.25):
    c.floats(value=value)
    c.output("x", np.full(n, value), 0.0)


def cast(c: Case, n, x="f32", out="f32", scale=1.0, accumulate=0, in_place=0):
    """One rounding of the product to f32 and one to out's type, so the result is known to the bit; the sum with old
    values may be fused."""
    values = c.normal(n, scale=3.0)
    values[: min(n, 4)] = [0.0, -1e6, 3e38, 2.0**-24][: min(n, 4)]
    values = rounded(values, x)
    c.floats(scale=scale)
    c.ints(accumulate=accumulate)
    place = c.input("x", values, x)
    with np.errstate(over="ignore"):
        product = (values.astype(np.float32) * np.float32(scale)).astype(np.float64)
    if in_place:
        c.expect(c.view("out", place[0], (n,)), rounded(product, out), EXACT)
    elif not accumulate:
        c.output("out", rounded(product, out), EXACT, out)
    else:
        old = rounded(c.normal(n), out)
        want = rounded(values * f32(scale) + old, out)
        # Twice half a unit of the type: the unrounded sum may lie beside a tie.
        unit = {"f32": U, "bf16": 2.0**-8, "f16": 2.0**-11}[out]
        with np.errstate(invalid="ignore"):
            tol = np.where(np.isfinite(want), 2 * unit * np.abs(want) + U * (np.abs(product) + np.abs(old)), EXACT)
        c.expect(c.put(c.rows("out", (n,), out), old), want, tol)
