"""Hybrid sharding: replicas share out inside each of N instances and keep the same across them; the run stays the run."""

import json

import pytest
from megac_runs import run, train
from test_layouts import COMMON, DROPOUT, MODELS
from test_resume import losses
from test_zero import BIG

ARGS = [*COMMON, *DROPOUT["dropout"], "--train-iters", "5", "--eval-interval", "5", "--eval-iters", "1"]
TWO = ["--num-distributed-optimizer-instances", "2"]


def close(got, want, tolerance):
    assert len(got) == len(want) > 0
    for a, b in zip(got, want, strict=True):
        assert a["lm_loss"] == pytest.approx(b["lm_loss"], rel=tolerance), a["iteration"]
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=10 * tolerance), a["iteration"]


@pytest.mark.parametrize(
    "model,ranks,flags",
    [
        ("gpt", 4, "--micro-batch-size 2"),
        ("llama-tied", 4, "--micro-batch-size 1 --bf16"),
        ("llama-tied", 8, "--micro-batch-size 1 --tp 2 --sequence-parallel --num-query-groups 1"),
    ],
)
def test_every_stage_is_the_run_of_one_instance(model, ranks, flags, tmp_path):
    args = [*ARGS, *MODELS[model], *flags.split()]
    tolerance = 1e-3 if "--bf16" in flags else 1e-6  # only sums over replicas are in another order
    want, want_evals = train(args, ranks, tmp_path)
    runs = {}
    for stage in (1, 2, 3):
        runs[stage], evals = train([*args, *TWO, "--zero", stage], ranks, tmp_path)
        close(runs[stage], want, tolerance)
        assert evals[-1]["valid_loss"] == pytest.approx(want_evals[-1]["valid_loss"], rel=tolerance)
    assert losses(runs[3]) == losses(runs[2])
    if "--micro-batch-size 2" in flags:  # one a step: every stage adds in one order
        assert losses(runs[2]) == losses(runs[1])


def test_sums_in_bf16(tmp_path):
    args = [*ARGS, *MODELS["gpt"], "--bf16", "--main-grads-dtype", "bf16", "--micro-batch-size", "1", "--zero", "3"]
    want, _ = train(args, 4, tmp_path)
    got, _ = train([*args, *TWO], 4, tmp_path)
    close(got, want, 1e-3)
    assert losses(got) != losses(want)  # each sum of instances is rounded
    reduced, _ = train([*args, *TWO, "--grad-reduce-in-bf16"], 4, tmp_path)
    close(reduced, want, 1e-3)


@pytest.mark.parametrize("instances", [2, 4])
def test_plan_is_that_of_the_replicas_of_an_instance(instances):
    def ranks(*flags):
        return json.loads(run(["plan", *BIG, "--json", *map(str, flags)]).stdout)

    for stage in (1, 2, 3):
        many = ranks("--zero", stage, "--num-distributed-optimizer-instances", instances)
        one = ranks("--zero", stage, "--world-size", 8 // instances)
        for kind in ("parameters", "gradients", "optimizer"):  # whose units are padded to a multiple of all replicas
            assert many["ranks"][0][kind] == pytest.approx(one["ranks"][0][kind], rel=0.01), (stage, kind)
        assert [e["bytes"] for e in many["estimates"]] == [e["bytes"] for e in one["estimates"]]
    says = run(["plan", *BIG, "--zero", "1", "--num-distributed-optimizer-instances", str(instances)]).stdout
    assert f"{instances} instances of {8 // instances} replicas" in says.splitlines()[0]


@pytest.mark.parametrize("stage", [1, 3])
def test_resume_is_bit_identical(stage, tmp_path):
    args = [*ARGS, *MODELS["llama-tied"], "--train-iters", "6", "--micro-batch-size", "1", *TWO, "--zero", stage]
    whole, _ = train([*args, "--save", tmp_path / "a", "--save-interval", "3"], 4, tmp_path, "whole")
    rest, _ = train([*args, "--load", tmp_path / "a", "--ckpt-step", "3"], 4, tmp_path, "rest")
    assert losses(rest) == losses(whole)[3:] and len(rest) == 3


def test_any_number_of_instances_loads_any_other(tmp_path):
    layouts = {
        "two instances": (4, [*TWO, "--zero", "2"]),
        "one instance": (4, ["--zero", "3"]),
        "two of two, tp2": (8, [*TWO, "--zero", "3", "--tp", "2"]),
        "one rank": (1, []),
    }
    args = [*ARGS, *MODELS["llama-tied"], "--train-iters", "4", "--lr-warmup-iters", "0", "--micro-batch-size", "1"]
    loads = {"two instances": ("one instance", "two of two, tp2", "one rank"), "one instance": ("two of two, tp2",)}
    for saved, others in loads.items():
        ranks, flags = layouts[saved]
        save = ["--save", tmp_path / saved, "--save-interval", "2"]
        whole, _ = train([*args, *flags, *save], ranks, tmp_path, "whole")
        run(["inspect", tmp_path / saved, "--verify"])
        for other in others:
            other_ranks, other_flags = layouts[other]
            load = ["--load", tmp_path / saved, "--ckpt-step", "2"]
            rest, _ = train([*args, *other_flags, *load], other_ranks, tmp_path, "rest")
            close(rest, whole[2:], 1e-5)


def test_only_one_instance_writes(tmp_path):
    args = [*ARGS, *MODELS["gpt"], "--train-iters", "1", "--lr-warmup-iters", "0", "--micro-batch-size", "2"]
    args += ["--zero", "1", "--save-interval", "1"]
    sizes = []
    for flags in ([], TWO):
        train([*args, *flags, "--save", tmp_path / str(len(sizes))], 4, tmp_path)
        files = list((tmp_path / str(len(sizes)) / "iter_0000001").glob("*.safetensors"))
        assert len(files) == 4 // (1 + len(sizes))
        sizes.append(sum(f.stat().st_size for f in files))
    assert sizes[1] == pytest.approx(sizes[0], rel=0.05)  # the same tensors, in fewer rectangles
