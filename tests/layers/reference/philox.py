"""Philox4x32-10 and the dropout masks of megac/base/rng.h and layers/dropout.h, written from the paper in NumPy."""

import numpy as np

M0, M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
W0, W1 = 0x9E3779B9, 0xBB67AE85
LOW = np.uint64(0xFFFFFFFF)
HALF = np.uint64(32)


def philox(counter, key):
    """counter: four uint64 arrays of 32-bit values; key: two ints. Returns four arrays."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = M0 * c0, M1 * c2
        c0, c1, c2, c3 = (
            (p1 >> HALF) ^ c1 ^ np.uint64(k0),
            p1 & LOW,
            (p0 >> HALF) ^ c3 ^ np.uint64(k1),
            p0 & LOW,
        )
        k0, k1 = (k0 + W0) & 0xFFFFFFFF, (k1 + W1) & 0xFFFFFFFF
    return c0, c1, c2, c3


def words(seed, stream, sample, elements):
    """The 32-bit word of each element of (seed, stream, sample)."""
    element = np.asarray(elements, np.uint64)
    block = element >> np.uint64(2)
    sample = np.broadcast_to(np.uint64(sample), block.shape)
    four = philox((block & LOW, block >> HALF, sample & LOW, sample >> HALF), (seed, stream))
    return np.choose((element & np.uint64(3)).astype(int), four)


def kept(seed, stream, sample, elements, p):
    """1 / (1 - p) where an element is kept, 0 where it is dropped, in float64. p as float32."""
    p = float(np.float32(p))
    threshold = min(int(p * 4294967296.0), 0xFFFFFFFF)
    return np.where(words(seed, stream, sample, elements) >= threshold, 1.0 / (1.0 - p), 0.0)


def kept_rows(d, rows, columns):
    """The mask of `rows` rows of a tensor (layers/dropout.h); d: dict of p, seed, stream, sample0, row0, seq_len."""
    row = d["row0"] + np.arange(rows)[:, None]
    element = row % d["seq_len"] * columns + np.arange(columns)[None, :]
    sample = np.broadcast_to(d["sample0"] + row // d["seq_len"], element.shape)
    return kept(d["seed"], d["stream"], sample, element, d["p"])


def check():
    """Known answers of the Random123 library."""
    zero, ones = np.zeros(1, np.uint64), np.full(1, 0xFFFFFFFF, np.uint64)
    assert [int(w[0]) for w in philox((zero,) * 4, (0, 0))] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    want = [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    assert [int(w[0]) for w in philox((ones,) * 4, (0xFFFFFFFF, 0xFFFFFFFF))] == want
