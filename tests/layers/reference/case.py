"""One case of an operator, as test_ops_reference.c reads it.

A case is memory before the call, what each element of it must be afterwards, and the views that the operator's
arguments are. An element has a wanted value and a tolerance; a tolerance of 0 says that the call must leave the
element's bits alone. So gaps between strided rows, inputs and padding are checked like outputs.

File: text lines, then for every buffer in order its wanted values (f64) and tolerances (f64), then for every buffer
its bytes before the call.

    megac-op-case 1
    op NAME
    int FIELD VALUE | float FIELD VALUE | segment BEGIN END LR_MULT DECAY_MULT NORM_WEIGHT
    buffer DTYPE COUNT
    tensor FIELD BUFFER OFFSET N_DIMS DIMS... STRIDES...
    end
"""

import zlib

import ml_dtypes
import numpy as np

U = 2.0**-24  # unit roundoff of float32
TYPES = {"f32": np.float32, "i32": np.int32, "f64": np.float64, "bf16": ml_dtypes.bfloat16, "f16": np.float16}
EXACT = 1e-300  # tolerance of an output that must be the wanted float exactly


def f32(x):
    """The float64 value that a float32 parameter really has."""
    return float(np.float32(x))


def rounded(x, dtype):
    """float64 values of x once it is stored as dtype (to nearest, ties to even; too large for f16 is infinite)."""
    with np.errstate(over="ignore"):
        return np.asarray(x, np.float32).astype(TYPES[dtype]).astype(np.float64)


def sum_tol(n, abs_sum):
    """Error of a float32 sum of n terms (a product each) in any order: rounding errors add up like a random walk, so
    2 sqrt(n) units cover it with a wide margin; 8 for the operations around it."""
    return (8 + 2 * np.sqrt(n)) * U * abs_sum


class Case:
    def __init__(self, op, name):
        self.op, self.name = op, name
        self.rng = np.random.default_rng(zlib.crc32(f"{op}-{name}".encode()))
        self.lines, self.buffers = [f"op {op}"], []

    def normal(self, *shape, scale=1.0):
        """Random float32 values, as float64."""
        return (self.rng.normal(size=shape) * scale).astype(np.float32).astype(np.float64)

    def ints(self, **fields):
        self.lines += [f"int {k.replace('__', '.')} {int(v)}" for k, v in fields.items()]

    def floats(self, **fields):
        self.lines += [f"float {k.replace('__', '.')} {f32(v)!r}" for k, v in fields.items()]

    def segment(self, begin, end, lr_mult, decay_mult, norm_weight):
        self.lines.append(f"segment {begin} {end} {lr_mult!r} {decay_mult!r} {norm_weight!r}")

    def buffer(self, count, dtype="f32"):
        """Memory of `count` elements, NaN (or -1) until something is put there. Returns its number."""
        data = np.full(count, -1 if dtype == "i32" else np.nan, TYPES[dtype])
        self.lines.append(f"buffer {dtype} {count}")
        self.buffers.append({"data": data, "want": np.zeros(count), "tol": np.zeros(count)})
        return len(self.buffers) - 1

    def view(self, field, buffer, dims, strides=None, offset=0):
        """Argument `field` is a view of a buffer. Returns the elements' places."""
        if strides is None:
            strides = [int(np.prod(dims[i + 1 :])) for i in range(len(dims))]
        numbers = " ".join(str(int(x)) for x in [len(dims), *dims, *strides])
        self.lines.append(f"tensor {field} {buffer} {offset} {numbers}")
        grid = np.indices(dims).reshape(len(dims), -1)
        return buffer, (offset + np.asarray(strides) @ grid).reshape(dims).astype(int)

    def put(self, place, values):
        buffer, at = place
        self.buffers[buffer]["data"][at] = values
        return place

    def expect(self, place, want, tol):
        buffer, at = place
        b = self.buffers[buffer]
        b["want"][at] = want
        b["tol"][at] = np.maximum(tol, EXACT)
        return place

    def rows(self, field, shape, dtype="f32", pad=0):
        """A view with its own buffer; with `pad`, rows (last dim) stand that many elements apart."""
        if pad:
            width = shape[-1] + pad
            place_strides = [int(np.prod(shape[i + 1 : -1]) * width) for i in range(len(shape) - 1)] + [1]
            n = int(np.prod(shape[:-1]) * width)
            return self.view(field, self.buffer(n, dtype), shape, place_strides)
        return self.view(field, self.buffer(int(np.prod(shape)), dtype), shape)

    def input(self, field, values, dtype="f32", pad=0):
        return self.put(self.rows(field, np.shape(values), dtype, pad), values)

    def output(self, field, want, tol, dtype="f32", pad=0):
        """Overwritten: holds NaN before."""
        return self.expect(self.rows(field, np.shape(want), dtype, pad), want, tol)

    def accumulated(self, field, grad, tol, pad=0):
        """+=: starts from known values."""
        start = self.normal(*np.shape(grad))
        place = self.put(self.rows(field, np.shape(grad), "f32", pad), start)
        return self.expect(place, start + grad, tol + 2 * U * (np.abs(start) + np.abs(grad)))

    def dropout(self, p, seq_len, sample0=0, row0=0):
        """Sets the `dropout` argument; returns it for philox.kept_rows."""
        d = {"p": f32(p), "seed": 1234, "stream": 77, "sample0": sample0, "row0": row0, "seq_len": seq_len}
        self.floats(dropout__p=p)
        self.ints(**{f"dropout__{k}": d[k] for k in ("seed", "stream", "sample0", "row0", "seq_len")})
        return d

    def write(self, path):
        with open(path, "wb") as file:
            file.write("\n".join(["megac-op-case 1", *self.lines, "end", ""]).encode())
            for b in self.buffers:
                file.write(b["want"].tobytes() + b["tol"].tobytes())
            for b in self.buffers:
                file.write(b["data"].tobytes())
