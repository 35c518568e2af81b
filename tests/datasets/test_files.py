"""Dataset files read by megac against the same files read, made and damaged by h5py and numpy."""

import json
import subprocess

import h5py
import numpy as np
import pytest


@pytest.fixture(scope="session")
def tool(build_dir):
    return build_dir / "tests" / "datasets" / "prepare_tool"


def run(tool, *args):
    return subprocess.run([tool, *map(str, args)], capture_output=True, timeout=120)


@pytest.fixture(params=["contiguous", "chunked"])
def dataset(tool, tmp_path, request):
    """A dataset of 40,000 tokens in documents of many lengths, and its tokens."""
    r = np.random.default_rng(5)
    text = b"\n".join(bytes(r.integers(97, 123, int(n), dtype=np.uint8)) for n in r.integers(1, 400, 200))
    (tmp_path / "in.txt").write_bytes(text)
    extra = ["--compress"] if request.param == "chunked" else []
    done = run(tool, "prepare", tmp_path / "in.txt", "-o", tmp_path / "d", "--split", "line", "--eod", *extra)
    assert done.returncode == 0, done.stderr
    return tmp_path / "d.h5"


def windows(tool, path, seq, split, which, shuffle, seed=0, first=0, count=0):
    done = run(tool, "windows", path, seq, split, which, int(shuffle), seed, first, count)
    assert done.returncode == 0, done.stderr
    return np.frombuffer(done.stdout, dtype="<i4").reshape(-1, seq + 1)


@pytest.mark.parametrize("seq", [1, 7, 64, 1000])
def test_windows_are_slices(tool, dataset, seq):
    tokens = h5py.File(dataset)["tokens"][:].astype(np.int32)
    n = (len(tokens) - 1) // seq
    want = np.stack([tokens[i * seq : i * seq + seq + 1] for i in range(n)])
    parts = [windows(tool, dataset, seq, "8,1,1", which, False) for which in range(3)]
    assert np.abs([len(p) for p in parts] - np.array([0.8, 0.1, 0.1]) * n).max() <= 1
    assert (np.concatenate(parts) == want).all()  # disjoint and complete, in file order


def test_shuffled_windows_are_a_permutation(tool, dataset):
    plain = windows(tool, dataset, 16, "969,30,1", 0, False)
    epochs = windows(tool, dataset, 16, "969,30,1", 0, True, seed=3, count=3 * len(plain)).reshape(3, -1, 17)
    key = sorted(map(bytes, plain))
    for e in epochs:
        assert sorted(map(bytes, e)) == key
    assert not (epochs[0] == epochs[1]).all() and not (epochs[1] == epochs[2]).all()
    other = windows(tool, dataset, 16, "969,30,1", 0, True, seed=4)
    assert (epochs[0] != other).any(axis=1).mean() > 0.9
    again = windows(tool, dataset, 16, "969,30,1", 0, True, seed=3, first=100, count=50)
    assert (again == epochs[0][100:150]).all()


def test_inspect(tool, dataset):
    done = run(tool, "inspect", dataset, "--verify", "--json", "--tokens", "5")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    with h5py.File(dataset) as f:
        lengths = np.sort(np.diff(f["documents"][:]))
        assert report["num_tokens"] == len(f["tokens"])
        assert report["first_tokens"] == f["tokens"][:5].tolist()
        assert report["first_text"] == bytes(f["tokens"][:5].astype(np.uint8)).decode()
    got = report["document_lengths"]
    rank = lambda p: int(lengths[-(-len(lengths) * p // 100) - 1])  # noqa: E731
    assert (got["min"], got["median"], got["p90"], got["max"]) == (lengths[0], rank(50), rank(90), lengths[-1])
    assert got["mean"] == pytest.approx(lengths.mean(), rel=1e-12)
    for row in got["histogram"]:
        assert row["documents"] == ((lengths >= row["from"]) & (lengths < 2 * row["from"])).sum()
    assert sum(row["documents"] for row in got["histogram"]) == len(lengths)
    assert report["verified"] and report["storage"] in ("contiguous", "chunked")
    text = run(tool, "inspect", dataset).stdout.decode()
    assert str(report["num_tokens"]) in text and "ByteTokenizer" in text


def test_checksums_are_xxh3(tool, dataset):
    xxhash = pytest.importorskip("xxhash")
    raw = dataset.read_bytes()
    with h5py.File(dataset) as f:
        data = f["documents"][:].tobytes()
        assert list(f["checksums/documents"]) == [xxhash.xxh3_64_intdigest(data)]
        at = f["checksums/rest"].id.get_offset()
        holes = [(at, 8)]
        if f["tokens"].chunks is None:
            tokens = f["tokens"][:].tobytes()
            assert list(f["checksums/tokens"]) == [xxhash.xxh3_64_intdigest(tokens)]
            holes.append((f["tokens"].id.get_offset(), len(tokens)))
        rest, pos = b"", 0
        for start, n in sorted(holes):
            rest += raw[pos:start]
            pos = start + n
        assert f["checksums/rest"][0] == xxhash.xxh3_64_intdigest(rest + raw[pos:])


def edit(name):
    """A change that HDF5 itself accepts: valid files that are no valid datasets."""

    def attr(key, value):
        def change(f):
            f.attrs[key] = value

        return change

    def gone(key):
        def change(f):
            del f[key]

        return change

    def replace(key, data):
        def change(f):
            del f[key]
            f[key] = data

        return change

    def no_attr(f):
        del f.attrs["vocab_size"]

    def end(f):
        f["documents"][-1] = 1

    def start(f):
        f["documents"][0] = 1

    return {
        "other format": (attr("format", b"something"), "something"),
        "version 2": (attr("version", np.uint64(2)), "version 2"),
        "text for a number": (attr("version", b"1"), "version"),
        "no vocabulary": (no_attr, "vocab_size"),
        "vocabulary 0": (attr("vocab_size", np.uint64(0)), "vocabulary 0"),
        "huge vocabulary": (attr("vocab_size", np.uint64(2**40)), "vocab_size"),
        "eod outside": (attr("eod_id", np.int64(999)), "eod_id"),
        "too many tokens": (attr("num_tokens", np.uint64(2**50)), "/tokens"),
        "one document less": (attr("num_documents", np.uint64(3)), "/documents"),
        "no tokens": (gone("tokens"), "/tokens"),
        "no documents": (gone("documents"), "/documents"),
        "float tokens": (replace("tokens", np.zeros(40000)), "/tokens"),
        "2-D documents": (replace("documents", np.zeros((3, 3), dtype="u8")), "/documents"),
        "signed documents": (replace("documents", np.zeros(201, dtype="i8")), "/documents"),
        "last end wrong": (end, "/documents"),
        "first end wrong": (start, "/documents"),
    }[name]


@pytest.mark.parametrize(
    "name",
    ["other format", "version 2", "text for a number", "no vocabulary", "vocabulary 0", "huge vocabulary", "eod outside",
     "too many tokens", "one document less", "no tokens", "no documents", "float tokens", "2-D documents",
     "signed documents", "last end wrong", "first end wrong"],
)  # fmt: skip
def test_wrong_contents_are_refused_at_open(tool, dataset, name):
    change, word = edit(name)
    with h5py.File(dataset, "r+") as f:
        change(f)
    done = run(tool, "inspect", dataset)
    text = done.stderr.decode()
    assert done.returncode == 2 and text.count("\n") == 1 and word in text, text
    assert done.stdout == b""


def test_a_file_of_another_tool_is_readable_but_not_verifiable(tool, tmp_path):
    tokens = np.arange(1000, dtype="<u4") % 90000
    with h5py.File(tmp_path / "x.h5", "w") as f:
        f["tokens"] = tokens
        f["documents"] = np.array([0, 400, 1000], dtype="<u8")
        f.attrs.update(format="megac-dataset", version=1, vocab_size=90000, eod_id=-1, num_tokens=1000)
        f.attrs.update(num_documents=2, tokenizer_kind="Other", tokenizer_sha256="")
    got = windows(tool, tmp_path / "x.h5", 10, "1", 0, False)
    assert (got[:, :10].ravel() == tokens[:990]).all()
    done = run(tool, "inspect", tmp_path / "x.h5", "--verify")
    assert done.returncode == 2 and b"checksums" in done.stderr


def test_damage_that_changes_many_bytes(tool, dataset, tmp_path):
    """Blocks of zeros, of ones and of noise over any part of the file: refused or found, never a crash."""
    raw = dataset.read_bytes()
    r = np.random.default_rng(8)
    paths = []
    for i in range(300):
        bad = bytearray(raw)
        at, n = int(r.integers(0, len(raw))), int(2 ** r.uniform(0, 12))
        patch = [bytes(n), b"\xff" * n, r.bytes(n)][i % 3][: len(raw) - at]
        bad[at : at + n] = patch
        if bytes(bad) == raw:
            continue
        paths.append(tmp_path / f"bad{i}.h5")
        paths[-1].write_bytes(bad)
    done = run(tool, "check", *paths)
    answers = done.stdout.split()
    assert done.returncode == 0 and len(answers) == len(paths) > 200
    assert b"ok" not in answers
    assert {b"open", b"verify"} == set(answers)


def test_damage_is_told_in_one_line(tool, dataset, tmp_path):
    """Also where the HDF5 library comes across it: no words of its own, not even when the program ends."""
    raw = dataset.read_bytes()
    places = np.flatnonzero(np.frombuffer(raw, np.uint8))
    places = places[(places < 8192) | (places > len(raw) - 16384)]  # structure, most of it
    for at in np.random.default_rng(9).choice(places, 60, replace=False):
        bad = bytearray(raw)
        bad[at] ^= 1 << at % 8
        (tmp_path / "bad.h5").write_bytes(bad)
        done = run(tool, "inspect", tmp_path / "bad.h5", "--verify")
        text = done.stderr.decode()
        assert done.returncode == 2 and text.count("\n") == 1 and "bad.h5" in text, (at, text)
