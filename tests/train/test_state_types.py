"""Parameters, gradients and moments of 16 bits in the optimizer: 8 bytes a parameter in all."""

import json

import pytest
from megac_runs import run, train
from test_layouts import COMMON, DROPOUT, MODELS
from test_resume import losses

EIGHT = "--bf16 --main-params-dtype bf16 --main-grads-dtype bf16 --exp-avg-dtype bf16 --exp-avg-sq-dtype bf16".split()
ARGS = [*COMMON, *DROPOUT["dropout"], "--train-iters", "8", "--eval-interval", "8", "--eval-iters", "1"]


def close(got, want, tolerance):
    for a, b in zip(got, want, strict=True):
        assert a["lm_loss"] == pytest.approx(b["lm_loss"], rel=tolerance), a["iteration"]
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=30 * tolerance), a["iteration"]


@pytest.mark.parametrize("model", ["gpt", "llama-tied"])
def test_eight_bytes_on_every_layout(model, tmp_path):
    """Rounding is at random but by global index: layouts differ by sums that round to another neighbour, no more."""
    args = [*ARGS, *MODELS[model], *EIGHT]
    one, _ = train([*args, "--micro-batch-size", "2"], 1, tmp_path)
    fp32, _ = train([*ARGS, *MODELS[model], "--micro-batch-size", "2"], 1, tmp_path)
    close(one, fp32, 3e-3)
    layouts = [
        (2, "--tp 2 --micro-batch-size 2"),
        (4, "--pp 2 --zero 2 --micro-batch-size 2"),
        (8, "--tp 2 --pp 2 --sequence-parallel --zero 3 --micro-batch-size 4"),
    ]
    for ranks, flags in layouts:
        got, _ = train([*args, *flags.split()], ranks, tmp_path)
        close(got, one, 1e-3)


@pytest.mark.parametrize("types", [EIGHT, ["--bf16", "--exp-avg-dtype", "fp16", "--exp-avg-sq-dtype", "bf16"]])
def test_resume_is_bit_identical(types, tmp_path):
    args = [*ARGS, *MODELS["llama"], *types, "--micro-batch-size", "2", "--dp", "2", "--zero", "2"]
    whole, _ = train([*args, "--save", tmp_path / "a", "--save-interval", "4"], 2, tmp_path, "whole")
    rest, _ = train([*args, "--load", tmp_path / "a", "--ckpt-step", "4"], 2, tmp_path, "rest")
    assert losses(rest) == losses(whole)[4:] and len(rest) == 4


def test_gradient_types_of_one_micro_batch_a_step(tmp_path):
    """A sum of one micro-batch in bf16 is the f32 one rounded: the first loss is the same, later ones are near."""
    args = [*ARGS, "--bf16", "--micro-batch-size", "8"]
    f32, _ = train(args, 1, tmp_path)
    bf16, _ = train([*args, "--main-grads-dtype", "bf16"], 1, tmp_path)
    assert bf16[0]["lm_loss"] == f32[0]["lm_loss"] and losses(bf16) != losses(f32)
    close(bf16, f32, 1e-3)


def plan(*flags):
    shape = "--num-layers 12 --hidden-size 256 --num-attention-heads 8 --seq-length 64 --micro-batch-size 1 --vocab-size 512"
    args = [*shape.split(), "--max-position-embeddings", "64", "--global-batch-size", "8", "--mock-data"]
    return json.loads(run(["plan", *args, "--train-iters", "2", "--lr", "1e-3", "--json", *flags]).stdout)["ranks"][0]


def test_bytes():
    h = 256
    block, outer = 12 * h * h + 13 * h, (512 + 64) * h + 2 * h
    n = 12 * block + outer
    near = lambda bytes_: pytest.approx(bytes_, rel=0.01)
    p = plan(*EIGHT)
    assert p["parameters"] == near(2 * n) and p["optimizer"] == near(4 * n)
    assert p["gradients"] == near(2 * 12 * block + 4 * outer + 2 * 4 * block)  # two buffers of a block in fp32
    p = plan(*EIGHT, "--dp", "8", "--zero", "3")
    assert p["parameters"] == near(2 * (12 * block / 8 + outer + 2 * block)) and p["optimizer"] == near(4 * n / 8)
    assert plan("--bf16")["optimizer"] == near(12 * n)
    assert plan("--bf16", "--exp-avg-dtype", "bf16")["optimizer"] == near(10 * n)


def test_seven_billion_on_one_device():
    llama = (
        "--position-embedding-type rope --normalization RMSNorm --swiglu --disable-bias-linear "
        "--untie-embeddings-and-output-weights --vocab-size 32000 --mock-data --device cuda --num-layers 32 "
        "--hidden-size 4096 --num-attention-heads 32 --ffn-hidden-size 11008 --seq-length 2048 --micro-batch-size 4"
    ).split()
    run(["plan", *llama, *EIGHT, "--recompute-granularity", "full", "--fits", "80GB"])
    run(["plan", *llama, "--bf16", "--recompute-granularity", "full", "--fits", "80GB"], expect=1)


def test_contradictions():
    bad = {
        "--main-params-dtype bf16": "--bf16",
        "--bf16 --main-params-dtype fp16": "--main-params-dtype",
        "--bf16 --exp-avg-dtype bf16 --optimizer sgd": "--optimizer sgd",
        "--bf16 --main-grads-dtype bf16 --dp 2": "--zero 2",
        "--bf16 --exp-avg-dtype fp8": "fp8",
    }
    for flags, says in bad.items():
        done = run(["plan", *COMMON, "--micro-batch-size", "1", *flags.split()], expect=2)
        assert says in done.stderr and len(done.stderr.splitlines()) == 1, flags
