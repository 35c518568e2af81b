"""ZeRO: what replicas share out changes memory and nothing else."""

import json

import pytest
from megac_runs import run, train
from test_layouts import COMMON, DROPOUT, MODELS
from test_resume import losses

ARGS = [*COMMON, *DROPOUT["dropout"], "--train-iters", "5", "--eval-interval", "5", "--eval-iters", "1"]
# Ranks and flags; with one micro-batch a step every stage adds in one order.
LAYOUTS = {
    "dp4": (4, "--micro-batch-size 2"),
    "dp4 accumulating": (4, "--micro-batch-size 1"),
    "dp3, nothing divides": (3, "--micro-batch-size 1 --global-batch-size 6 --num-layers 1"),
    "dp2 pp4, one block a stage": (8, "--micro-batch-size 4 --pp 4"),
    "tp2 pp2 dp2 sp": (8, "--micro-batch-size 4 --tp 2 --pp 2 --sequence-parallel"),
    "tp2 pp2 dp2 sp accumulating": (8, "--micro-batch-size 1 --tp 2 --pp 2 --sequence-parallel"),
}
PAIRS = [
    ("gpt", "dp4", ""),
    ("llama", "dp4 accumulating", ""),
    ("gpt", "dp3, nothing divides", "--optimizer sgd"),
    ("llama-tied", "dp2 pp4, one block a stage", "--pipeline-schedule gpipe"),
    ("gpt", "tp2 pp2 dp2 sp", "--decoupled-lr 1e-3"),
    ("llama-tied", "tp2 pp2 dp2 sp accumulating", "--num-query-groups 1"),
]


@pytest.mark.parametrize("model,layout,more", PAIRS)
def test_every_stage_is_the_same_run(model, layout, more, tmp_path):
    ranks, flags = LAYOUTS[layout]
    args = [*ARGS, *MODELS[model], *flags.split(), *more.split()]
    want, want_evals = train(args, ranks, tmp_path)
    exact = "accumulating" not in layout and "nothing divides" not in layout
    for stage in (1, 2, 3):
        got, evals = train([*args, "--zero", stage], ranks, tmp_path)
        if stage == 1 or exact:
            assert losses(got) == losses(want) and evals[-1]["valid_loss"] == want_evals[-1]["valid_loss"], stage
            continue
        for a, b in zip(got, want, strict=True):  # micro-batches are added after the group's ranks
            assert a["lm_loss"] == pytest.approx(b["lm_loss"], rel=1e-6), stage
            assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-5), stage


def test_flags_of_megatron_and_the_short_one_agree(tmp_path):
    def plan(*flags):
        line = ["plan", *COMMON, "--micro-batch-size", "1", "--world-size", "4", "--json", *flags]
        return json.loads(run(line).stdout)["ranks"]

    strategies = ("no_shard", "optim", "optim_grads", "optim_grads_params")
    for stage, name in enumerate(strategies):
        assert plan("--zero", stage) == plan("--data-parallel-sharding-strategy", name)
    assert plan("--zero", 1) == plan("--use-distributed-optimizer")
    assert plan("--zero", 1) != plan()
    for flags in (
        ["--zero", "2", "--data-parallel-sharding-strategy", "optim"],
        ["--zero", "0", "--use-distributed-optimizer"],
    ):
        done = run(["plan", *COMMON, "--micro-batch-size", "1", *flags], expect=2)
        assert "contradicts" in done.stderr and len(done.stderr.splitlines()) == 1


BIG = (
    "--num-layers 12 --hidden-size 256 --num-attention-heads 8 --seq-length 64 --max-position-embeddings 64 "
    "--micro-batch-size 1 --global-batch-size 8 --train-iters 2 --lr 1e-3 --mock-data --vocab-size 512 --world-size 8"
).split()


def test_memory_shrinks_as_the_formulas_say():
    """Parameters of blocks: 12 x (12 h^2 + 13 h); outside them, which stay whole: (512 + 64) h + 2 h."""
    h, dp = 256, 8
    block, outer = 12 * h * h + 13 * h, (512 + 64) * h + 2 * h
    n = 12 * block + outer
    line = lambda stage: run(["plan", *BIG, "--json", "--zero", stage]).stdout
    ranks = {stage: json.loads(line(stage))["ranks"][0] for stage in range(4)}
    near = lambda bytes_: pytest.approx(bytes_, rel=0.01)  # padding of units, tensors of the norm's sums
    assert ranks[0]["parameters"] == ranks[2]["parameters"] == near(4 * n)
    assert ranks[3]["parameters"] == near(4 * (12 * block / dp + outer + 2 * block))
    assert ranks[0]["gradients"] == ranks[1]["gradients"] == near(4 * n)
    assert ranks[2]["gradients"] == ranks[3]["gradients"] == near(4 * (12 * block / dp + outer + 2 * block))
    assert ranks[0]["optimizer"] == near(8 * n)
    assert ranks[1]["optimizer"] == ranks[3]["optimizer"] == near(8 * n / dp)


@pytest.mark.parametrize("stage", [1, 3])
def test_resume_is_bit_identical(stage, tmp_path):
    args = [*ARGS, *MODELS["llama-tied"], "--train-iters", "6", "--micro-batch-size", "2", "--zero", stage]
    whole, _ = train([*args, "--save", tmp_path / "a", "--save-interval", "3"], 4, tmp_path, "whole")
    rest, _ = train([*args, "--load", tmp_path / "a", "--ckpt-step", "3"], 4, tmp_path, "rest")
    assert losses(rest) == losses(whole)[3:] and len(rest) == 3


SAVED = {"dp4 zero3": (4, "--zero 3"), "dp3 zero2": (3, "--zero 2"), "tp2 pp2 dp2 zero1": (8, "--tp 2 --pp 2 --zero 1")}
LOADED = {"one rank": (1, ""), "tp2 pp2 dp2 zero3": (8, "--tp 2 --pp 2 --zero 3"), "dp2 zero1": (2, "--zero 1")}


@pytest.mark.parametrize("saved", SAVED)
def test_any_stage_and_layout_loads_any_other(saved, tmp_path):
    ranks, flags = SAVED[saved]
    args = [*ARGS, *MODELS["llama-tied"], "--num-query-groups", "1", "--global-batch-size", "12", "--micro-batch-size", "1"]
    args += ["--train-iters", "6"]
    whole, _ = train([*args, *flags.split(), "--save", tmp_path / "a", "--save-interval", "3"], ranks, tmp_path, "whole")
    run(["inspect", tmp_path / "a", "--verify"])
    for other, (other_ranks, other_flags) in LOADED.items():
        rest, _ = train(
            [*args, *other_flags.split(), "--load", tmp_path / "a", "--ckpt-step", "3"], other_ranks, tmp_path, "rest"
        )
        for a, b in zip(rest, whole[3:], strict=True):
            assert a["lm_loss"] == pytest.approx(b["lm_loss"], rel=1e-5), other
            assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4), other
