"""--trace-tensors and megac diff: equal runs are equal on any layout; the first wrong tensor is named."""
import json
import math
import re

import pytest
from megac_runs import run

GPT = (
    "--num-layers 4 --hidden-size 64 --num-attention-heads 4 --seq-length 32 --max-position-embeddings 32 "
    "--micro-batch-size 2 --global-batch-size 4 --vocab-size 301 --train-iters 3 --lr 1e-3 --mock-data --num-threads 1"
).split()
LLAMA = [
    *GPT,
    *(
        "--position-embedding-type rope --normalization RMSNorm --swiglu --disable-bias-linear "
        "--untie-embeddings-and-output-weights --group-query-attention --num-query-groups 2"
    ).split(),
]


def trace(flags, ranks, path):
    run(["train", *flags, "--trace-tensors", path], ranks)
    return path


def lines(path):
    return [json.loads(text) for file in sorted(path.glob("rank_*.jsonl")) for text in file.read_text().splitlines()]


@pytest.mark.parametrize("model", [GPT, LLAMA], ids=["gpt", "llama"])
@pytest.mark.parametrize(
    "ranks, layout", [(2, []), (4, "--tp 2 --pp 2 --sequence-parallel".split()), (4, ["--tp", "4"])], ids=["dp2", "tp2pp2sp", "tp4"]
)
def test_traces_of_layouts_are_equal(model, ranks, layout, tmp_path):
    a = trace(model, 1, tmp_path / "a")
    b = trace([*model, *layout], ranks, tmp_path / "b")
    # Llama's two key/value heads have two copies on four tensor-parallel ranks: its qkv activations are in A only.
    replicated = model is LLAMA and layout == ["--tp", "4"]
    done = run(["diff", a, b, "--tolerance", "2e-5"], expect=1 if replicated else 0)
    assert re.search(r"^0 of \d{3} tensors differ", done.stdout, re.M), done.stdout
    assert ("only in A 24, only in B 0" in done.stdout) == replicated
    # 4 layers x (5 forward + 1 backward) + embedding, losses, d_embedding, of 2 micro-batches; and the gradients.
    step = [e for e in lines(a) if e["iteration"] == 2]
    assert len([e for e in step if e["sample"] >= 0]) == 2 * (4 * 6 + 3)
    assert len({e["name"] for e in step if e["sample"] < 0}) == len([e for e in step if e["sample"] < 0]) > 20


def test_the_first_difference_is_named(tmp_path):
    a = trace(GPT, 1, tmp_path / "a")
    b = trace([*GPT, "--window-size", "8", "0"], 1, tmp_path / "b")
    done = run(["diff", a, b], expect=1)
    # Embedding and qkv are equal; attention of the first layer is where a window shows first.
    assert re.match(r"first difference: iteration 1, micro-batch of sample 0, decoder\.layers\.0\.attention: ", done.stdout)


def test_numbers_of_a_trace(tmp_path):
    entries = lines(trace(GPT, 1, tmp_path / "a"))
    losses = [e for e in entries if e["name"] == "losses" and e["iteration"] == 1]
    assert [e["sample"] for e in losses] == [0, 2]
    for e in losses:
        assert e["n"] == 64 and e["nan"] == 0
        assert e["sum"] / e["n"] == pytest.approx(math.log(301), rel=0.05)
        assert e["min"] <= e["sum"] / e["n"] <= e["max"] and e["sum_sq"] >= e["sum"] ** 2 / e["n"]


def test_bad_traces_are_refused(tmp_path):
    a = trace(GPT, 1, tmp_path / "a")
    assert "no directory of a trace" in run(["diff", a, tmp_path / "none"], expect=2).stderr
    (tmp_path / "empty").mkdir()
    assert "holds no trace" in run(["diff", a, tmp_path / "empty"], expect=2).stderr
    (tmp_path / "empty" / "rank_00000.jsonl").write_text("{}\n")
    assert "no line of a trace" in run(["diff", a, tmp_path / "empty"], expect=2).stderr
    assert "two traces are compared" in run(["diff", a], expect=2).stderr
