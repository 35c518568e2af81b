"""Checkpoints against the format's own library: Hugging Face safetensors reads our shards, we read files it writes, and
every checksum of metadata.json is recomputed with another XXH3."""
import json
import os
import pathlib
import subprocess

import numpy as np
import pytest
import safetensors
import safetensors.numpy
import xxhash
from megac_runs import ROOT, run

ST_TOOL = pathlib.Path(os.environ.get("MEGAC_BUILD", ROOT / "build")) / "tests/train/st_tool"
MODEL = [
    "--num-layers", 2, "--hidden-size", 24, "--num-attention-heads", 4, "--group-query-attention", "--num-query-groups", 2,
    "--swiglu", "--seq-length", 16, "--max-position-embeddings", 16, "--micro-batch-size", 1, "--global-batch-size", 4,
    "--lr", 1e-3, "--mock-data", "--vocab-size", 301, "--train-iters", 2, "--save-interval", 2,
]


def save(path, ranks, *layout):
    run(["train", *MODEL, *layout, "--save", path, "--num-threads", 1], ranks)
    return path / "iter_0000002"


def whole_tensors(directory):
    """All global tensors of a checkpoint, put together with the format's library; every checksum is checked."""
    text = (directory / "metadata.json").read_bytes()
    meta = json.loads(text)
    before = text[: text.rindex(b'"xxh3"')]
    assert meta["xxh3"] == xxhash.xxh3_64_hexdigest(before)
    shards = {}
    for row in meta["files"]:
        path = directory / row["name"]
        raw = path.read_bytes()
        header = 8 + int.from_bytes(raw[:8], "little")
        assert len(raw) == row["bytes"] and header % 8 == 0
        assert xxhash.xxh3_64_hexdigest(raw[:header]) == row["header_xxh3"]
        with safetensors.safe_open(path, "np") as f:
            assert f.metadata()["format"] == "pt"
            shards[row["name"]] = {k: f.get_tensor(k) for k in f.keys()}
    assert sorted(p.name for p in directory.iterdir() if p.suffix == ".safetensors") == sorted(shards)
    whole, listed = {}, 0
    for name, t in meta["tensors"].items():
        whole[name] = np.full(t["shape"], np.nan, dtype=np.float32)
        for s in t["slices"]:
            part = shards[s["file"]][s["tensor"]]
            assert list(part.shape) == s["shape"]
            assert xxhash.xxh3_64_hexdigest(part.tobytes()) == s["xxh3"]
            whole[name][tuple(slice(b, b + n) for b, n in zip(s["begin"], s["shape"]))] = part
            listed += 1
        assert not np.isnan(whole[name]).any(), name
    assert listed == sum(map(len, shards.values())) > 0
    return meta, whole


def test_shards_are_safetensors(tmp_path):
    meta, one = whole_tensors(save(tmp_path / "one", 1))
    assert meta["format"] == "megac-checkpoint" and meta["iteration"] == 2 and meta["consumed_samples"] == 8
    assert meta["config"]["--hidden-size"] == "24"
    assert (tmp_path / "one/latest_checkpointed_iteration.txt").read_text() == "2\n"
    _, four = whole_tensors(save(tmp_path / "four", 4, "--tp", 2, "--pp", 2))
    assert one.keys() == four.keys()
    for name, value in one.items():
        rows = min(len(value), len(four[name]))  # the vocabulary's padding depends on the layout
        np.testing.assert_allclose(value[:rows], four[name][:rows], rtol=1e-4, atol=2e-5, err_msg=name)


def st_tool(path, expect=0):
    done = subprocess.run([ST_TOOL, path], capture_output=True, text=True, timeout=60)
    assert done.returncode == expect, done.stderr
    return [line.split("\t") for line in done.stdout.splitlines()], done.stderr


def test_reads_what_the_library_writes(tmp_path):
    rng = np.random.default_rng(7)
    names = {
        "F64": np.float64, "F32": np.float32, "F16": np.float16, "I64": np.int64, "I32": np.int32, "I16": np.int16,
        "I8": np.int8, "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8, "BOOL": np.bool_,
    }
    tensors = {f"t.{k}.{i}": rng.integers(0, 2, shape).astype(v)
               for k, v in names.items() for i, shape in enumerate([(3, 5), (7,), (), (2, 0, 3), (1, 2, 3, 4)])}
    tensors["ünï \"quoted\""] = np.arange(3, dtype=np.float32)
    path = tmp_path / "a.safetensors"
    safetensors.numpy.save_file(tensors, path, metadata={"format": "pt", "x": "y"})
    rows, _ = st_tool(path)
    assert {r[0] for r in rows} == set(tensors)
    for name, dtype, dims, digest in rows:
        want = tensors[name]
        assert names[dtype] == want.dtype.type
        assert dims == ",".join(map(str, want.shape))
        assert digest == xxhash.xxh3_64_hexdigest(want.tobytes())


@pytest.mark.parametrize("cut", [0, 5, 40, -1])
def test_cut_files_are_refused(tmp_path, cut):
    path = tmp_path / "a.safetensors"
    safetensors.numpy.save_file({"a": np.arange(100, dtype=np.float32)}, path)
    path.write_bytes(path.read_bytes()[:cut])
    _, message = st_tool(path, expect=2)
    assert str(path) in message
