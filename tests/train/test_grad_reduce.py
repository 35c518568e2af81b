"""--grad-reduce-in-bf16: replicas exchange rounded gradients; tests/train/ranks_shards.c checks each sum to the bit."""

import json

import pytest
from megac_runs import run, train
from test_hybrid import TWO, close
from test_layouts import COMMON, DROPOUT, MODELS
from test_resume import losses
from test_zero import BIG

ARGS = [*COMMON, *DROPOUT["dropout"], "--train-iters", "6", "--eval-interval", "6", "--eval-iters", "1"]
BF16 = ["--grad-reduce-in-bf16"]


@pytest.mark.parametrize(
    "model,ranks,flags,stages",
    [
        ("gpt", 4, "--micro-batch-size 2", [1, 2, 3]),
        ("llama-tied", 4, "--micro-batch-size 2 --bf16", [1]),
        ("llama", 4, "--micro-batch-size 4 --tp 2 --sequence-parallel", [3]),
    ],
)
def test_the_run_in_fp32_but_for_roundings(model, ranks, flags, stages, tmp_path):
    """A gradient is rounded twice, by 2^-9 at most; the first loss comes before any of that. With one micro-batch a step
    every stage rounds the same, bit for bit."""
    args = [*ARGS, *MODELS[model], *flags.split()]
    fp32, _ = train(args, ranks, tmp_path)
    want, _ = train([*args, *BF16], ranks, tmp_path)
    assert want[0]["lm_loss"] == fp32[0]["lm_loss"] and losses(want) != losses(fp32)
    assert want[0]["grad_norm"] == pytest.approx(fp32[0]["grad_norm"], rel=2**-8)
    close(want, fp32, 1e-3)
    for stage in stages:
        got, _ = train([*args, *BF16, "--zero", stage], ranks, tmp_path)
        assert losses(got) == losses(want), stage


@pytest.mark.parametrize("more", ["--fp16 --initial-loss-scale 65536 --zero 1", "--bf16 --main-grads-dtype bf16 --zero 3"])
def test_other_types_of_gradients(more, tmp_path):
    args = [*ARGS, *MODELS["gpt"], "--micro-batch-size", "1", *more.split()]
    want, _ = train(args, 4, tmp_path)
    got, _ = train([*args, *BF16], 4, tmp_path)
    assert losses(got) != losses(want)
    close(got, want, 1e-3)


def test_resume_is_bit_identical(tmp_path):
    args = [*ARGS, *MODELS["gpt"], "--bf16", "--micro-batch-size", "1", "--zero", "2", *TWO, *BF16]
    whole, _ = train([*args, "--save", tmp_path / "a", "--save-interval", "3"], 4, tmp_path, "whole")
    rest, _ = train([*args, "--load", tmp_path / "a", "--ckpt-step", "3"], 4, tmp_path, "rest")
    assert losses(rest) == losses(whole)[3:] and len(rest) == 3


def test_bytes_of_the_buffers():
    """Two of 2 bytes for each element of the largest unit, in place of one of a block's two of 4 in stages 2 and 3."""
    h = 256
    block = 12 * h * h + 13 * h

    def gradients(*flags):
        plan = json.loads(run(["plan", *BIG, "--json", "--ddp-bucket-size", "1", *map(str, flags)]).stdout)
        return plan["ranks"][0]["gradients"]

    for stage, more in ((0, 4 * block), (1, 4 * block), (2, 0), (3, 0)):
        extra = gradients("--zero", stage, *BF16) - gradients("--zero", stage)
        assert extra == pytest.approx(more, rel=0.01, abs=512), stage


def test_one_replica_reduces_nothing(tmp_path):
    args = [*ARGS, *MODELS["gpt"], "--micro-batch-size", "8"]
    done = run(["train", *args, *BF16, "--num-threads", 1])
    assert "--grad-reduce-in-bf16: there is one replica" in done.stderr
