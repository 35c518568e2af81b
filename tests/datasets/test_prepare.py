"""megac prepare's engine: every kind of input, read back by h5py, against documents cut by Python."""

import gzip
import json
import os
import random
import signal
import subprocess
import time

import h5py
import numpy as np
import pytest

EOD = 256


@pytest.fixture(scope="session")
def tool(build_dir):
    program = build_dir / "tests" / "datasets" / "prepare_tool"
    assert program.is_file(), f"{program} is missing: build first"
    return program


def run(tool, *args, stdin=None, check=True):
    done = subprocess.run([tool, *map(str, args)], input=stdin, capture_output=True, timeout=120)
    if check:
        assert done.returncode == 0, done.stderr.decode(errors="replace")
    return done


def prepare(tool, out, *args, stdin=None):
    return json.loads(run(tool, "prepare", *args, "-o", out, stdin=stdin).stdout)


def documents(path, eod=False):
    """The documents of a dataset file, as bytes, through h5py alone."""
    with h5py.File(path) as f:
        tokens, ends = f["tokens"][:], f["documents"][:]
    assert ends[0] == 0 and ends[-1] == len(tokens)
    out = []
    for a, b in zip(ends, ends[1:]):
        part = tokens[a:b]
        if eod:
            assert part[-1] == EOD
            part = part[:-1]
        assert (part < 256).all()
        out.append(part.astype(np.uint8).tobytes())
    return out


def lines_of(data):
    parts = data.split(b"\n")
    last = parts.pop()
    parts = [p[:-1] if p.endswith(b"\r") else p for p in parts]
    return [p for p in [*parts, last] if p]


def paragraphs_of(data):
    out, current = [], []
    for line in data.split(b"\n"):
        if line.strip(b" \t\r"):
            current.append(line)
        elif current:
            out.append(current)
            current = []
    if current:
        out.append(current)
    texts = []
    for lines in out:
        text = b"\n".join(lines)
        ends_with_newline = not data.endswith(lines[-1]) or lines is not out[-1]
        texts.append(text[:-1] if text.endswith(b"\r") and ends_with_newline else text)
    return texts


def messy_text(seed, n):
    """Lines of many lengths, blank ones, white ones, carriage returns, bytes that are no UTF-8."""
    r = random.Random(seed)
    rows = []
    for _ in range(n):
        kind = r.random()
        if kind < 0.15:
            rows.append(b"")
        elif kind < 0.2:
            rows.append(r.choice([b" ", b"\t \t", b"\r", b" \r"]))
        else:
            row = bytes(r.choice(b"abc xyz\t\xff\xc3\xa9\x00") for _ in range(r.randrange(1, 80)))
            rows.append(row + r.choice([b"", b"", b"\r"]))
    return b"\n".join(rows) + r.choice([b"", b"\n"])


def test_attributes(tool, tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    result = prepare(tool, tmp_path / "a", tmp_path / "a.txt", "--split", "line", "--eod")
    with h5py.File(tmp_path / "a.h5") as f:
        assert f.attrs["format"] == b"megac-dataset"
        assert f.attrs["version"] == 1
        assert f.attrs["vocab_size"] == 257
        assert f.attrs["eod_id"] == 256
        assert f.attrs["num_tokens"] == 8 == result["tokens"]
        assert f.attrs["num_documents"] == 2 == result["documents"]
        assert f.attrs["tokenizer_kind"] == b"ByteTokenizer"
        assert f.attrs["tokenizer_sha256"] == b""
        assert f["tokens"].dtype == np.dtype("<u2") and f["tokens"].shape == (8,)
        assert f["documents"].dtype == np.dtype("<u8") and list(f["documents"]) == [0, 4, 8]
        assert "tokenizer" not in f
        assert f["tokens"].id.get_offset() % 4096 == 0 and f["tokens"].chunks is None
        assert f["checksums"].attrs["algorithm"] == b"XXH3-64"
        assert f["checksums"].attrs["block_bytes"] == 1 << 20
        assert list(f["tokens"]) == [*b"one", 256, *b"two", 256]
    head = (tmp_path / "a.h5").read_bytes()[:9]
    assert head[8] == 3, "the superblock of the 1.10 format"


def test_compressed(tool, tmp_path):
    data = messy_text(1, 2000) * 10
    (tmp_path / "a.txt").write_bytes(data)
    prepare(tool, tmp_path / "a", tmp_path / "a.txt", "--compress", "--workers", 2)
    with h5py.File(tmp_path / "a.h5") as f:
        assert f["tokens"].compression == "gzip" and f["tokens"].fletcher32 and f["tokens"].chunks == (65536,)
    assert documents(tmp_path / "a.h5") == [data]
    assert (tmp_path / "a.h5").stat().st_size < len(data)


def test_h5dump(tool, tmp_path):
    (tmp_path / "a.txt").write_text("words")
    prepare(tool, tmp_path / "a", tmp_path / "a.txt")
    out = subprocess.run(["h5dump", tmp_path / "a.h5"], capture_output=True, text=True, check=True).stdout
    assert "H5T_STD_U16LE" in out and "megac-dataset" in out and "119, 111, 114, 100, 115" in out


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("unit", ["file", "line", "blank"])
def test_units(tool, tmp_path, unit, seed):
    data = messy_text(seed, 300) * (1 if seed < 5 else 200)
    (tmp_path / "a.txt").write_bytes(data)
    result = prepare(tool, tmp_path / "a", tmp_path / "a.txt", "--split", unit, "--eod", "--workers", 1 + seed % 3)
    want = {"file": lambda d: [d], "line": lines_of, "blank": paragraphs_of}[unit](data)
    assert documents(tmp_path / "a.h5", eod=True) == want
    assert result["documents"] == len(want)
    assert result["text_bytes"] == sum(map(len, want))
    assert result["input_bytes"] == len(data)


@pytest.mark.parametrize("size", [2**20 - 1, 2**20, 2**20 + 1, 3 * 2**20, 2**18, 5_000_003])
@pytest.mark.parametrize("unit", ["file", "line", "blank"])
def test_documents_longer_than_a_piece(tool, tmp_path, unit, size):
    r = np.random.default_rng(size)
    data = r.integers(97, 123, size, dtype=np.uint8).tobytes()
    (tmp_path / "a.txt").write_bytes(data + b"\n\nnext\n\n" + data[:10])
    prepare(tool, tmp_path / "a", tmp_path / "a.txt", "--split", unit, "--workers", 2)
    want = [data + b"\n\nnext\n\n" + data[:10]] if unit == "file" else [data, b"next", data[:10]]
    assert documents(tmp_path / "a.h5") == want


def test_folder(tool, tmp_path):
    d = tmp_path / "in"
    names = ["b.txt", "a/z.txt", "a/y/1.txt", "B.txt", "c.txt.gz", ".hidden.txt", ".git/x.txt", "empty.txt"]
    for name in names:
        p = d / name
        p.parent.mkdir(parents=True, exist_ok=True)
        text = b"" if name == "empty.txt" else name.encode() + b" text"
        p.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    result = prepare(tool, tmp_path / "out", d)
    assert documents(tmp_path / "out.h5") == [
        n.encode() + b" text" for n in ["B.txt", "a/y/1.txt", "a/z.txt", "b.txt", "c.txt.gz"]
    ]
    assert result["files"] == 6 and result["empty"] == 1


def test_jsonl(tool, tmp_path):
    rows = [{"text": "first ü €\n", "n": 1}, {"text": ""}, {"n": [1, {"a": 2}], "text": "with \u0000 and \U0001f600"}]
    body = "\n".join(json.dumps(r, ensure_ascii=i == 2) for i, r in enumerate(rows)) + "\n\n   \n"
    (tmp_path / "a.jsonl").write_text(body, encoding="utf-8")
    result = prepare(tool, tmp_path / "a", tmp_path / "a.jsonl", "--eod")
    assert documents(tmp_path / "a.h5", eod=True) == [rows[0]["text"].encode(), rows[2]["text"].encode()]
    assert result["empty"] == 1


def test_json_keys(tool, tmp_path):
    rows = [{"title": f"t{i}", "body": "b" * (i % 50), "text": 5} for i in range(50000)]
    (tmp_path / "a.json").write_text("\n".join(map(json.dumps, rows)))
    prepare(tool, tmp_path / "a", tmp_path / "a.json", "--keys", "title,body", "--workers", 3)
    assert documents(tmp_path / "a.h5") == [f"{r['title']}\n{r['body']}".encode() for r in rows]


def test_long_json_line(tool, tmp_path):
    text = "x" * 7_000_000
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in ["a", text, "b"]))
    prepare(tool, tmp_path / "a", tmp_path / "a.jsonl")
    assert documents(tmp_path / "a.h5") == [b"a", text.encode(), b"b"]


def test_mixed_inputs_in_order(tool, tmp_path):
    (tmp_path / "1.txt").write_text("one")
    (tmp_path / "2.jsonl").write_text('{"text": "two"}\n{"text": "three"}')
    (tmp_path / "3.txt").write_text("four")
    prepare(tool, tmp_path / "o", tmp_path / "3.txt", tmp_path / "2.jsonl", tmp_path / "1.txt", tmp_path / "2.jsonl")
    assert documents(tmp_path / "o.h5") == [b"four", b"two", b"three", b"one", b"two", b"three"]


def test_standard_input(tool, tmp_path):
    data = messy_text(3, 5000)
    prepare(tool, tmp_path / "a", "-", "--split", "line", stdin=data)
    assert documents(tmp_path / "a.h5") == lines_of(data)
    prepare(tool, tmp_path / "j", "-", "--keys", "t", stdin=gzip.compress(b'{"t": "x"}\n{"t": "y"}'))
    assert documents(tmp_path / "j.h5") == [b"x", b"y"]


@pytest.mark.parametrize("kind", ["gzip", "gzip-members", "zstd", "zstd-frames"])
def test_packed(tool, tmp_path, kind):
    data = messy_text(4, 4000) * 10
    half = len(data) // 2
    if kind.startswith("gzip"):
        packed = gzip.compress(data) if kind == "gzip" else gzip.compress(data[:half]) + gzip.compress(data[half:])
    else:
        parts = [data] if kind == "zstd" else [data[:half], data[half:]]
        pack = ["zstd", "-q", "-c"]
        try:
            packed = b"".join(subprocess.run(pack, input=p, capture_output=True, check=True).stdout for p in parts)
        except FileNotFoundError:
            pytest.skip("no zstd program to pack with")
    (tmp_path / "plain-name").write_bytes(packed)  # known by its first bytes, not by its name
    result = prepare(tool, tmp_path / "a", tmp_path / "plain-name", "--split", "line", "--workers", 2)
    assert documents(tmp_path / "a.h5") == lines_of(data)
    assert result["input_bytes"] == len(packed)
    for cut in [len(packed) - 1, len(packed) * 3 // 4, 20]:
        (tmp_path / "cut").write_bytes(packed[:cut])
        done = run(tool, "prepare", tmp_path / "cut", "-o", tmp_path / "c", check=False)
        assert done.returncode == 2 and b"cut" in done.stderr and not (tmp_path / "c.h5").exists()
    damaged = bytearray(packed)
    damaged[len(damaged) // 2] ^= 0x55
    (tmp_path / "bad").write_bytes(damaged)
    done = run(tool, "prepare", tmp_path / "bad", "-o", tmp_path / "c", check=False)
    if kind.startswith("gzip"):  # zstd frames have no checksum unless asked for
        assert done.returncode == 2 and done.stderr.count(b"\n") == 1
    assert list(tmp_path.glob("c.h5*")) == ([tmp_path / "c.h5"] if done.returncode == 0 else [])


@pytest.mark.parametrize("storage", [[], ["--compress"]])
@pytest.mark.parametrize("kind", ["file", "line", "blank", "jsonl"])
def test_any_number_of_workers_gives_the_same_bytes(tool, tmp_path, kind, storage):
    if kind == "jsonl":
        source = tmp_path / "a.jsonl"
        source.write_text("\n".join(json.dumps({"text": "t" * (i % 997)}) for i in range(9000)))
        args = []
    else:
        source = tmp_path / "a.txt"
        source.write_bytes(messy_text(5, 5000) * 18)
        args = ["--split", kind]
    outputs = []
    for workers in [1, 2, 3, 8]:
        prepare(tool, tmp_path / "o", source, *args, *storage, "--overwrite", "--eod", "--workers", workers)
        outputs.append((tmp_path / "o.h5").read_bytes())
    assert all(o == outputs[0] for o in outputs)


BAD = {
    "bad JSON": (["a.jsonl"], {"a.jsonl": b'{"text": "x"}\n{"text": "y"\n'}, 2, ["a.jsonl:2:", '{"text": "y"']),
    "not an object": (["a.jsonl"], {"a.jsonl": b"[1]\n"}, 2, ["a.jsonl:1:", "an array"]),
    "key missing": (["a.jsonl"], {"a.jsonl": b'\n{"txt": "x"}\n'}, 2, ["a.jsonl:2:", '"text" is missing']),
    "key no string": (["a.jsonl"], {"a.jsonl": b'{"text": 5}\n'}, 2, ["a.jsonl:1:", "an integer"]),
    "JSON not UTF-8": (["a.jsonl"], {"a.jsonl": b'{"text": "\xff"}\n'}, 2, ["a.jsonl:1:", "byte 0xff"]),
    "no such input": (["nothing.txt"], {}, 2, ["nothing.txt", "No such file"]),
    "second input gone": (["a.txt", "b.txt"], {"a.txt": b"x"}, 2, ["b.txt"]),
    "empty input": (["a.txt"], {"a.txt": b""}, 2, ["no document"]),
    "only blank lines": (["a.txt", "--split", "line"], {"a.txt": b"\n\n\n"}, 2, ["no document"]),
    "HDF5 as text": (["a.txt"], {"a.txt": b"\x89HDF\r\n\x1a\nxx"}, 2, ["HDF5", "a.txt"]),
    "unknown unit": (["a.txt", "--split", "word"], {"a.txt": b"x"}, 2, ['"word"', "line"]),
    "unknown format": (["a.txt", "--format", "xml"], {"a.txt": b"x"}, 2, ['"xml"', "jsonl"]),
    "unknown tokenizer": (["a.txt", "--tokenizer", "Xyz"], {"a.txt": b"x"}, 2, ["Xyz", "ByteTokenizer"]),
    "no workers": (["a.txt", "--workers", "0"], {"a.txt": b"x"}, 2, ["--workers 0"]),
    "unit against format": (["a.jsonl", "--split", "line"], {"a.jsonl": b"{}"}, 2, ["--split-documents-on line"]),
    "keys for text": (["a.txt", "--keys", "k"], {"a.txt": b"x"}, 2, ["--json-keys k", "--input-format"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(tool, tmp_path, name):
    args, files, status, words = BAD[name]
    for path, body in files.items():
        (tmp_path / path).write_bytes(body)
    (tmp_path / "o.h5").write_bytes(b"what was there before")
    args = [tmp_path / a if a.endswith((".txt", ".jsonl")) else a for a in args]
    done = run(tool, "prepare", *args, "-o", tmp_path / "o", "--overwrite", check=False)
    text = done.stderr.decode()
    assert done.returncode == status, text
    assert text.count("\n") == 1 and all(w in text for w in words), text
    assert (tmp_path / "o.h5").read_bytes() == b"what was there before"
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*files, "o.h5"])


def test_the_first_error_in_input_order_is_told(tool, tmp_path):
    good = json.dumps({"text": "x" * 1000}) + "\n"
    rows = [good] * 20000
    rows[7000] = "oops\n"
    rows[7001] = "worse\n"
    rows[19000] = "late\n"
    (tmp_path / "a.jsonl").write_text("".join(rows))
    for workers in [1, 4]:
        done = run(tool, "prepare", tmp_path / "a.jsonl", "-o", tmp_path / "o", "--workers", workers, check=False)
        assert done.returncode == 2 and b"a.jsonl:7001:" in done.stderr and done.stderr.count(b"\n") == 1


def test_does_not_overwrite(tool, tmp_path):
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "o.h5").write_text("keep me")
    done = run(tool, "prepare", tmp_path / "a.txt", "-o", tmp_path / "o", check=False)
    assert done.returncode == 2 and b"--overwrite" in done.stderr
    assert (tmp_path / "o.h5").read_text() == "keep me"
    prepare(tool, tmp_path / "o.h5", tmp_path / "a.txt", "--overwrite")  # .h5 is not doubled
    assert documents(tmp_path / "o.h5") == [b"x"]


def test_folder_that_cannot_be_written(tool, tmp_path):
    (tmp_path / "a.txt").write_text("x")
    done = run(tool, "prepare", tmp_path / "a.txt", "-o", tmp_path / "no" / "o", check=False)
    assert done.returncode == 1 and b"--output-prefix" in done.stderr and done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("storage", [[], ["--compress"]])
def test_killed_at_any_moment(tool, tmp_path, storage):
    """kill -9 at 30 moments: an existing file is whole, a new one is whole or absent."""
    data = messy_text(6, 5000) * 20
    (tmp_path / "a.txt").write_bytes(data)
    command = [tool, "prepare", tmp_path / "a.txt", "--split", "line", "--workers", "2", "--overwrite", *storage]
    start = time.monotonic()
    subprocess.run([*command, "-o", tmp_path / "whole"], check=True, capture_output=True)
    full = time.monotonic() - start
    whole = (tmp_path / "whole.h5").read_bytes()
    (tmp_path / "old.h5").write_bytes(whole)
    r = random.Random(7)
    killed = 0
    for i in range(30):
        target = ["old", "new"][i % 2]
        child = subprocess.Popen([*command, "-o", tmp_path / target], stdout=subprocess.DEVNULL)
        time.sleep(r.uniform(0, 1.1 * full))
        child.send_signal(signal.SIGKILL)
        killed += child.wait() == -signal.SIGKILL
        assert (tmp_path / "old.h5").read_bytes() == whole
        if (tmp_path / "new.h5").exists():
            assert (tmp_path / "new.h5").read_bytes() == whole
            (tmp_path / "new.h5").unlink()
        for left in tmp_path.glob("*.tmp-*"):  # what a kill leaves never passes for a dataset
            if left.name.endswith("-docs"):
                left.unlink()
                continue
            answer = run(tool, "check", left).stdout.strip()
            assert answer in (b"open", b"verify") or left.read_bytes() == whole
            left.unlink()
    assert killed >= 10


def test_memory_does_not_grow_with_the_input(tool, tmp_path):
    """200 MB in one line, and in many: the peak stays where it is for 20 MB (64 MB, most of it the ring)."""
    block = bytes(np.random.default_rng(1).integers(97, 123, 1_000_000, dtype=np.uint8))
    peaks = {}
    for mb in [20, 200]:
        with open(tmp_path / "a.txt", "wb") as f:
            for _ in range(mb):
                f.write(block)
        for unit in ["file", "line"]:
            result = prepare(tool, tmp_path / "o", tmp_path / "a.txt", "--split", unit, "--workers", 2, "--overwrite")
            assert result["tokens"] == mb * 1_000_000
            peaks[mb, unit] = result["peak_kb"]
    assert max(peaks.values()) < 64_000, peaks
    assert peaks[200, "file"] < peaks[20, "file"] + 4_000, peaks
    os.unlink(tmp_path / "a.txt")
