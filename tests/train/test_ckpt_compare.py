"""megac inspect A B against what Python finds in the two metadata.json."""

import json
import shutil

import pytest
from megac_runs import run, train
from test_resume import MOCK


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two runs: other layout, step, learning rate and model."""
    folder = tmp_path_factory.mktemp("pair")
    train([*MOCK, "--train-iters", "4", "--save-interval", "2", "--save", folder / "a"], 1, folder)
    other = "--tp 2 --lr 1e-3 --train-iters 3 --untie-embeddings-and-output-weights --lr-warmup-iters 1".split()
    train([*MOCK, *other, "--save", folder / "b"], 2, folder)
    return folder / "a" / "iter_0000004", folder / "b" / "iter_0000003", folder / "a" / "iter_0000002"


def metadata(path):
    return json.loads((path / "metadata.json").read_text())


def differences(a, b):
    return {k: [a.get(k), b.get(k)] for k in {**a, **b} if a.get(k) != b.get(k)}


def shapes(meta):
    return {k: {n: t[n] for n in ("dtype", "shape", "valid_rows") if n in t} for k, t in meta["tensors"].items()}


def values(a, b):
    """Tensors with the same checksums, with other ones, and cut in other ways."""
    count = {"same": 0, "other": 0, "unknown": 0}
    for name in a["tensors"].keys() & b["tensors"].keys():
        x, y = ([(s["begin"], s["shape"], s["xxh3"]) for s in m["tensors"][name]["slices"]] for m in (a, b))
        if [s[:2] for s in x] != [s[:2] for s in y]:
            count["unknown"] += 1
        else:
            count["same" if x == y else "other"] += 1
    return count


STATE = ("iteration consumed_samples consumed_tokens skipped_iterations optimizer_steps schedule_samples world_size "
         "best_iteration").split()  # fmt: skip


@pytest.mark.parametrize("one, other", [(0, 1), (1, 0), (0, 2), (2, 2)])
def test_the_report_is_what_metadata_say(one, other, pair):
    a, b = metadata(pair[one]), metadata(pair[other])
    report = json.loads(run(["inspect", pair[one], pair[other], "--json"]).stdout)
    assert report["kind"] == "checkpoint-difference" and [report["a"], report["b"]] == [str(pair[one]), str(pair[other])]
    assert report["config"] == differences(a["config"], b["config"])
    want = differences(*({k: m[k] for k in STATE if k in m} for m in (a, b)))
    files = differences({"files": len(a["files"])}, {"files": len(b["files"])})
    assert {k: v for k, v in report["state"].items() if k in {*STATE, "files"}} == {**want, **files}
    assert report["tensors"] == differences(shapes(a), shapes(b))
    assert report["values"] == values(a, b)
    assert report["same"] == (one == other)


def test_the_pair_differs_in_every_way(pair):
    """So that the comparison above has seen each kind: options with two values and with one, shapes, absent tensors,
    values, slices."""
    report = json.loads(run(["inspect", pair[0], pair[1], "--json"]).stdout)
    assert report["config"]["--tensor-model-parallel-size"] == ["1", "2"]
    assert report["config"]["--untie-embeddings-and-output-weights"] == ["false", "true"]
    assert report["config"]["--save-interval"] == ["2", None]
    assert report["state"]["world_size"] == [1, 2] and report["state"]["iteration"] == [4, 3]
    assert report["tensors"]["model.output_layer.weight"][0] is None
    assert report["values"]["other"] > 0 and report["values"]["unknown"] > 0


def test_for_people(pair):
    report = json.loads(run(["inspect", pair[0], pair[1], "--json"]).stdout)
    text = run(["inspect", pair[0], pair[1]]).stdout
    lines = text.splitlines()
    assert lines[0] == f"{pair[0]} | {pair[1]}"
    for section in ("state", "config"):
        at = lines.index(section) + 1
        rows = [f"  {k}: {' | '.join('-' if v is None else str(v) for v in pair_)}" for k, pair_ in report[section].items()]
        assert lines[at : at + len(rows)] == rows
    assert "no difference" not in text
    assert run(["inspect", pair[0].parent, pair[0]]).stdout.endswith("no difference\n")  # the directory's latest one


def test_a_copy_is_the_same_and_damage_is_seen(pair, tmp_path):
    copy = shutil.copytree(pair[0], tmp_path / "iter_0000004")
    assert json.loads(run(["inspect", pair[0], copy, "--json", "--verify"]).stdout)["same"] is True
    shard = next(copy.glob("*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    assert run(["inspect", pair[0], copy]).returncode == 0  # metadata alone are read
    for two in ([pair[0], copy], [copy, pair[0]]):
        done = run(["inspect", *two, "--verify"], expect=2)
        assert shard.name in done.stderr and done.stdout == ""


def test_wrong_use(pair, tmp_path):
    (tmp_path / "x.h5").write_text("no dataset either")
    for two in ([pair[0], tmp_path / "x.h5"], [tmp_path / "none", pair[0]]):
        done = run(["inspect", *two], expect=2)
        assert done.stdout == "" and len(done.stderr.splitlines()) == 1 and "two checkpoints" in done.stderr
        assert str(tmp_path) in done.stderr
