"""16-bit training: loss curves beside fp32's, the dynamic loss scale, layouts, resuming."""
import pathlib

import pytest
from megac_runs import ROOT, run, train

SHAPE = (
    "--num-layers 2 --hidden-size 64 --num-attention-heads 4 --seq-length 64 --max-position-embeddings 64 "
    "--lr 2e-3 --lr-decay-style constant"
).split()
SMALL = [*SHAPE, *"--micro-batch-size 1 --global-batch-size 4 --vocab-size 201 --mock-data --train-iters 12".split()]
# Overflows at first, and doubles soon: every rule of the scale is met within a few steps.
RESTLESS = "--fp16 --initial-loss-scale 1073741824 --loss-scale-window 3".split()
LAYOUTS = {"tp2": (2, "--tp 2"), "tp2 sp": (2, "--tp 2 --sequence-parallel"), "pp2": (2, "--pp 2"), "dp2": (2, ""),
           "tp2 pp2 dp2": (8, "--tp 2 --pp 2")}  # fmt: skip


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """English of this repository, as bytes."""
    folder = tmp_path_factory.mktemp("text")
    pages = sorted(pathlib.Path(ROOT).glob("*/**/README.md"))
    (folder / "t.txt").write_text("\n\n".join(p.read_text() for p in pages if ".venv" not in str(p)))
    run(["prepare", "--input", folder / "t.txt", "--output-prefix", folder / "t", "--append-eod"])
    return folder / "t"


@pytest.mark.parametrize("precision", ["--bf16", "--fp16 --initial-loss-scale 65536"])
def test_loss_curve_is_within_one_percent_of_fp32(precision, text, tmp_path):
    """tests/bench/loss_curves.py is the long version."""
    args = [*SHAPE, *"--lr 1e-3 --lr-warmup-iters 5 --hidden-dropout 0 --attention-dropout 0 --split 1".split()]
    args += ["--micro-batch-size", "4", "--train-iters", "30", "--data-path", text]
    want, _ = train(args, 1, tmp_path, "wide")
    have, _ = train([*args, *precision.split()], 1, tmp_path, "narrow")
    assert want[-1]["lm_loss"] < want[0]["lm_loss"] - 1.5
    assert not any(s["skipped"] for s in have)
    for h, w in zip(have, want, strict=True):
        assert h["lm_loss"] == pytest.approx(w["lm_loss"], rel=0.01)
    assert [s["lm_loss"] for s in have] != [s["lm_loss"] for s in want]


class Scaler:
    """Megatron-LM's DynamicGradScaler by its rules: growth 2, backoff 0.5; `consecutive` is DeepSpeed's."""

    def __init__(self, initial, lowest, window, hysteresis, consecutive=False):
        self.consecutive = consecutive
        self.scale, self.lowest, self.window, self.hysteresis = initial, lowest, window, hysteresis
        self.growth_tracker, self.hysteresis_tracker = 0, hysteresis

    def update(self, found_inf):
        if found_inf:
            self.growth_tracker = 0
            self.hysteresis_tracker -= 1
            if self.hysteresis_tracker <= 0:
                self.scale = max(self.scale * 0.5, self.lowest)
        else:
            self.growth_tracker += 1
            self.hysteresis_tracker = self.hysteresis if self.consecutive else self.hysteresis_tracker
            if self.growth_tracker == self.window:
                self.growth_tracker, self.hysteresis_tracker = 0, self.hysteresis
                self.scale *= 2


@pytest.mark.parametrize("lowest", [1.0, 2.0**23])
def test_the_scale_follows_overflows_by_megatron_s_rules(lowest, tmp_path):
    flags = [*SMALL, *RESTLESS, "--train-iters", "40", "--hysteresis", "2", "--min-loss-scale", lowest]
    steps, _ = train(flags, 1, tmp_path)
    scaler = Scaler(2.0**30, lowest, 3, 2)
    for s in steps:
        assert s["loss_scale"] == scaler.scale, s
        assert s["skipped"] == (s["grad_norm"] is None)
        scaler.update(s["skipped"])
    skipped = [s["skipped"] for s in steps]
    if lowest == 1.0:
        assert skipped[:6] == [True] * 6 and skipped.count(False) > 15 and skipped[20:].count(True) > 1
    assert min(s["loss_scale"] for s in steps) >= lowest


def test_hysteresis_of_overflows_in_a_row(tmp_path):
    runs = {}
    for consecutive, more in ((False, []), (True, ["--consecutive-hysteresis"])):
        flags = [*SMALL, *RESTLESS, "--train-iters", "40", "--hysteresis", "2", "--loss-scale-window", "5", *more]
        runs[consecutive], _ = train(flags, 1, tmp_path)
        scaler = Scaler(2.0**30, 1.0, 5, 2, consecutive)
        for s in runs[consecutive]:
            assert s["loss_scale"] == scaler.scale, s
            scaler.update(s["skipped"])
    assert [s["loss_scale"] for s in runs[True]] != [s["loss_scale"] for s in runs[False]]


def test_an_overflow_leaves_no_trace_but_in_the_scale(tmp_path):
    """Steps after overflows are those of a run that starts with the scale come to and passes over the same data."""
    decay = ["--lr-decay-style", "linear", "--train-iters", "20", "--loss-scale-window", "1000"]
    first, _ = train([*SMALL, *RESTLESS, *decay], 1, tmp_path, "first")
    n = [s["skipped"] for s in first].index(False)
    assert n > 4
    skip = ["--iterations-to-skip", *range(1, n + 1)]
    passed, _ = train(
        [*SMALL, *decay, "--fp16", "--initial-loss-scale", first[n]["loss_scale"], "--hysteresis", 1, *skip],
        1, tmp_path, "passed",
    )  # fmt: skip
    keys = ("iteration", "lm_loss", "grad_norm", "learning_rate", "loss_scale", "skipped")
    have, want = ([[s[k] for k in keys] for s in steps[n:]] for steps in (first, passed))
    assert have == want
    # The schedule stood still: the first update has the rate of the first step.
    assert first[n]["learning_rate"] == first[0]["learning_rate"]


def test_a_static_scale_changes_nothing_but_what_it_saves(tmp_path):
    """In fp32's range a power of two is exact: bf16 with a scale of 2^10 has the bits of bf16 without."""
    plain, _ = train([*SMALL, "--bf16"], 1, tmp_path, "plain")
    scaled, _ = train([*SMALL, "--bf16", "--loss-scale", 1024], 1, tmp_path, "scaled")
    assert {s["loss_scale"] for s in scaled} == {1024} and {s["loss_scale"] for s in plain} == {1}
    assert [s["lm_loss"] for s in scaled] == [s["lm_loss"] for s in plain]
    assert [s["grad_norm"] for s in scaled] == pytest.approx([s["grad_norm"] for s in plain], rel=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("precision", [["--bf16"], RESTLESS], ids=["bf16", "fp16"])
def test_layouts_agree(precision, layout, tmp_path):
    """Sums in another order, rounded to 16 bits, differ in the last bit; overflows and decisions do not."""
    ranks, flags = LAYOUTS[layout]
    one, _ = train([*SMALL, *precision], 1, tmp_path, "one")
    many, _ = train([*SMALL, *precision, *flags.split()], ranks, tmp_path, "many")
    for a, b in zip(one, many, strict=True):
        assert (a["skipped"], a["loss_scale"]) == (b["skipped"], b["loss_scale"])
        assert a["skipped"] or a["lm_loss"] == pytest.approx(b["lm_loss"], rel=2e-3)


@pytest.mark.parametrize("precision", [["--bf16"], RESTLESS], ids=["bf16", "fp16"])
def test_resumed_runs_have_the_same_bits(precision, tmp_path):
    """Scale, good steps and hysteresis among them: the run stops between two of the scale's doublings."""
    args = [*SMALL, *precision, "--train-iters", "16", "--lr-decay-style", "cosine"]
    whole, _ = train(args, 1, tmp_path, "whole")
    save = ["--save", tmp_path / "ck", "--exit-interval", 11]
    run(["train", *args, *save, "--num-threads", 1], expect=75)
    rest, _ = train([*args, "--load", tmp_path / "ck"], 1, tmp_path, "rest")
    keys = ("iteration", "lm_loss", "grad_norm", "learning_rate", "loss_scale", "skipped")
    assert [[s[k] for k in keys] for s in rest] == [[s[k] for k in keys] for s in whole[11:]]
    # The optimizer's fp32 parameters are the model: a checkpoint loads in any precision.
    other, _ = train([*args[: len(SMALL)], "--train-iters", 12, "--load", tmp_path / "ck"], 1, tmp_path, "other")
    assert other[0]["lm_loss"] == pytest.approx(whole[11]["lm_loss"], rel=0.01)


def test_progress_says_the_scale():
    done = run(["train", *SMALL, *RESTLESS, "--train-iters", 3, "--log-interval", 1])
    assert "| loss scale 1.07374e+09 |" in done.stdout
    assert "gradients overflow at loss scale 1.07374e+09" in done.stderr
