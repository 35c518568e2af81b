"""What leaves the device: Adam's moments, in host memory or in a file; activations and parameters, in host memory. The same
run, to the bit."""

import json
import os
import pathlib
import resource
import signal
import subprocess

import pytest
from megac_runs import command, run, train
from test_layouts import COMMON, DROPOUT, MODELS
from test_recompute import BLOCK, H, HEADS, LAYERS, ROWS
from test_resume import losses
from test_saving import start, wait_for_steps
from test_state_types import EIGHT

# 5.3 million parameters: several chunks of 2^20 elements, the last ones of their pieces shorter.
SHAPE = (
    "--num-layers 2 --hidden-size 256 --num-attention-heads 4 --seq-length 16 --max-position-embeddings 16 "
    "--micro-batch-size 1 --global-batch-size 4 --lr 2e-3 --mock-data --vocab-size 14500 --hidden-dropout 0.1"
).split()
LAYOUTS = {"one rank": (1, ""), "tp2 pp2": (4, "--tp 2 --pp 2"), "dp2 zero 3": (2, "--zero 3")}


@pytest.mark.parametrize(
    "layout, types", [("one rank", []), ("tp2 pp2", ["--bf16"]), ("dp2 zero 3", EIGHT)], ids=["fp32", "bf16", "8 bytes"]
)
def test_the_same_run(layout, types, tmp_path):
    ranks, flags = LAYOUTS[layout]
    args = [*SHAPE, *types, *flags.split(), "--train-iters", "4"]
    want, _ = train(args, ranks, tmp_path)
    for more in (["--optimizer-cpu-offload"], ["--optimizer-offload-path", tmp_path / "nvme"]):
        got, _ = train([*args, *more], ranks, tmp_path)
        assert losses(got) == losses(want), more
    assert list((tmp_path / "nvme").iterdir()) == []  # nothing is left, whatever ends a run


@pytest.mark.parametrize("more", [[], ["--async-save"]])
def test_checkpoints_are_the_same_files(more, tmp_path):
    args = [*SHAPE, "--train-iters", "4", "--save-interval", "2", "--dp", "2", "--zero", "1"]
    train([*args, "--save", tmp_path / "a"], 2, tmp_path)
    off = ["--optimizer-offload-path", tmp_path / "nvme", *more]
    train([*args, *off, "--save", tmp_path / "b"], 2, tmp_path)
    for f in sorted((tmp_path / "a").rglob("*.safetensors")):
        assert f.read_bytes() == (tmp_path / "b" / f.relative_to(tmp_path / "a")).read_bytes(), f
    whole, _ = train(args, 2, tmp_path)
    for load, flags in (("a", off), ("b", []), ("b", ["--optimizer-cpu-offload"])):
        rest, _ = train([*args, *flags, "--load", tmp_path / load, "--ckpt-step", "2", "--save", tmp_path / "c"], 2, tmp_path)
        assert losses(rest) == losses(whole)[2:], (load, flags)


def plan(*flags):
    return json.loads(run(["plan", *SHAPE, "--train-iters", "1", "--json", *flags]).stdout)["ranks"][0]


def test_memory():
    plain, host = plan(), plan("--optimizer-cpu-offload")
    file = plan("--optimizer-offload-path", "x")
    assert host["optimizer"] == file["optimizer"] == 0
    assert host["pinned"] - plain["pinned"] == pytest.approx(plain["optimizer"], rel=0.01)
    assert file["pinned"] - plain["pinned"] == pytest.approx(3 * 2 * 4 * 2**20, rel=0.01)  # three chunks of both in fp32


def test_no_room_is_a_clear_error(tmp_path):
    """A limit on the size of files stands for a full disk: both are found before the first step."""

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    line, env = command(["train", *SHAPE, "--train-iters", "2", "--optimizer-offload-path", str(tmp_path)])
    done = subprocess.run(line, env=env, preexec_fn=limit, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and str(tmp_path) in done.stderr and "size limit" in done.stderr
    assert "iteration 1" not in done.stdout
    done = run(["train", *SHAPE, "--train-iters", "2", "--optimizer-offload-path", "/dev/null/x"], expect=2)
    assert "/dev/null" in done.stderr


def test_a_read_that_fails_ends_the_run(tmp_path):
    args = [*SHAPE, "--train-iters", "1000000", "--optimizer-offload-path", tmp_path / "nvme"]
    job = start([*args, "--metrics-file", tmp_path / "m.jsonl"], 1)
    try:
        wait_for_steps(tmp_path / "m.jsonl", 2)
        fds = pathlib.Path(f"/proc/{job.pid}/fd")
        name = next(f for f in fds.iterdir() if "megac_moments" in os.readlink(f))
        os.truncate(name, 1 << 20)
        _, stderr = job.communicate(timeout=30)
    finally:
        job.kill()
    assert job.returncode not in (0, None, -9) and "megac_moments" in stderr, stderr


# Seven blocks in two places and three inputs: every order of what is on its way.
DEEP = [*COMMON, *DROPOUT["dropout"], *"--num-layers 7 --lr-warmup-iters 1 --train-iters 3".split()]
DEEP += "--eval-interval 2 --eval-iters 1".split()
FULL = "--recompute-granularity full"
OFFLOADS = {  # ranks, model, layout, what else: the number of layers
    "one rank": (1, "gpt", "--micro-batch-size 4", {"": [1, 2, 7], FULL: [7], "--recompute-activations": [5]}),
    "pp2 1f1b": (2, "llama-tied", "--pp 2 --micro-batch-size 2 --num-layers 8", {"": [2, 3, 4], f"{FULL} --recompute-num-layers 2": [4]}),
    "pp2 gpipe, zero 3": (4, "gpt", "--pp 2 --pipeline-schedule gpipe --zero 3 --micro-batch-size 2 --num-layers 6", {"": [2, 3]}),
    "tp2": (
        2,
        "gpt",
        "--tp 2 --micro-batch-size 4",
        {"": [6], f"{FULL} --distribute-saved-activations": [7], f"{FULL} --recompute-method block --recompute-num-layers 2": [6]},
    ),
}


@pytest.mark.parametrize("layout", OFFLOADS)
def test_activations_are_the_same_run(layout, tmp_path):
    ranks, model, flags, settings = OFFLOADS[layout]
    args = [*DEEP, *MODELS[model], *flags.split()]
    want, want_evals = train(args, ranks, tmp_path)
    for setting, numbers in settings.items():
        for n in numbers:
            got, evals = train([*args, *setting.split(), "--cpu-offloading-num-layers", n], ranks, tmp_path)
            assert losses(got) == losses(want), (setting, n)
            assert [e["valid_loss"] for e in evals] == [e["valid_loss"] for e in want_evals], (setting, n)


def test_memory_of_activations():
    """Of 12 blocks 10 leave, all but the first with an input: two stay, and three inputs. Two slots (1F1B) use the same
    places of the device; the host has one for each."""
    shape = f"--num-layers {LAYERS} --hidden-size {H} --num-attention-heads {HEADS} --seq-length 64 --micro-batch-size 2"
    args = [*shape.split(), *"--mock-data --vocab-size 512 --train-iters 1 --lr 1e-3 --global-batch-size 8 --json".split()]

    def plan(*flags):
        return json.loads(run(["plan", *args, *flags]).stdout)["ranks"][0]

    def saves(slots, *flags):
        n = 10 * BLOCK + 9 * H
        plain, off = plan(*flags), plan(*flags, "--cpu-offloading-num-layers", "10")
        stay = 2 * BLOCK + 3 * H
        assert plain["activations"] - off["activations"] == pytest.approx(4 * ROWS * (slots * n - stay), rel=2e-3)
        assert off["pinned"] - plain["pinned"] == pytest.approx(4 * ROWS * slots * n, rel=2e-3)
        others = {k: v for k, v in plain.items() if k not in ("activations", "pinned", "total")}
        assert others == {k: off[k] for k in others}

    saves(1)
    saves(2, "--pp", "2", "--num-layers", str(2 * LAYERS))
    full, gone = plan(*FULL.split()), plan(*FULL.split(), "--cpu-offloading-num-layers", str(LAYERS))
    assert full["activations"] - gone["activations"] == pytest.approx(4 * ROWS * (LAYERS - 1 - 3) * H, rel=2e-3)
    assert gone["pinned"] - full["pinned"] == pytest.approx(4 * ROWS * (LAYERS - 1) * H, rel=2e-3)


WEIGHTS = {  # ranks, model, flags
    "one rank": (1, "gpt", "--bf16 --micro-batch-size 4"),
    "pp2, fp16, overflow": (2, "llama-tied", "--pp 2 --fp16 --initial-loss-scale 4194304 --micro-batch-size 4"),
    "dp2": (2, "llama", "--bf16 --micro-batch-size 2 --main-grads-dtype fp32"),
    "dp2 zero 3": (2, "gpt", f"--bf16 --zero 3 --micro-batch-size 2 {FULL} --recompute-num-layers 2"),
    "bf16 gradients": (1, "gpt", "--bf16 --main-grads-dtype bf16 --micro-batch-size 4 --optimizer-cpu-offload"),
}


@pytest.mark.parametrize("layout", WEIGHTS)
def test_parameters_are_the_same_run(layout, tmp_path):
    """Saved and loaded on the way: what is loaded reaches the host, too."""
    ranks, model, flags = WEIGHTS[layout]
    args = [*DEEP, *MODELS[model], *"--num-layers 6 --train-iters 4 --save-interval 2".split(), *flags.split()]
    want, want_evals = train(args, ranks, tmp_path)
    off = [*args, "--cpu-offloading-weights", "--save", tmp_path / "c"]
    got, evals = train([*off, "--cpu-offloading-num-layers", "1"], ranks, tmp_path)
    assert losses(got) == losses(want)
    assert [e["valid_loss"] for e in evals] == [e["valid_loss"] for e in want_evals]
    rest, _ = train([*off, "--load", tmp_path / "c", "--ckpt-step", "2"], ranks, tmp_path)
    assert losses(rest) == losses(want)[2:]


def test_memory_of_parameters():
    """Blocks of 12 h^2 parameters and 13 h biases and gammas: two stay of 16-bit ones; ZeRO 3 keeps two whole already."""
    shape = f"--num-layers {LAYERS} --hidden-size {H} --num-attention-heads {HEADS} --seq-length 64 --micro-batch-size 1"
    args = [*shape.split(), *"--mock-data --vocab-size 512 --train-iters 1 --lr 1e-3 --global-batch-size 8 --json --bf16".split()]
    block = 2 * (12 * H * H + 13 * H)
    for flags, here, away in (
        ("", (LAYERS - 2) * block, LAYERS * block),
        ("--dp 2", (LAYERS - 2) * block, LAYERS * block),
        ("--dp 4 --zero 3", LAYERS * block / 4, LAYERS * block / 4),
    ):
        plan = lambda *more: json.loads(run(["plan", *args, *flags.split(), *more]).stdout)["ranks"][0]
        plain, off = plan(), plan("--cpu-offloading-weights")
        assert plain["parameters"] - off["parameters"] == pytest.approx(here, rel=1e-3)
        assert off["pinned"] - plain["pinned"] == pytest.approx(away, rel=1e-3)
        others = {k: v for k, v in plain.items() if k not in ("parameters", "pinned", "total")}
        assert others == {k: off[k] for k in others}


def test_the_plan_is_what_an_offload_reserves():
    for flags in (
        "--cpu-offloading-num-layers 3 --optimizer-cpu-offload",
        f"--cpu-offloading-num-layers 2 {FULL}",
        "--cpu-offloading-num-layers 2 --cpu-offloading-weights --bf16",
    ):
        args = [*DEEP, "--micro-batch-size", "2", "--num-threads", 1, *flags.split()]
        done = run(["train", *args])
        rank0 = json.loads(run(["plan", *args, "--json"]).stdout)["ranks"][0]
        assert f"rank 0 reserves {rank0['total'] / 2**20:.1f} MiB" in done.stdout
        assert "allocations after the first step" not in done.stderr
        assert done.stderr.count("the CPU's memory is the host's") == 1


@pytest.mark.parametrize(
    "flags, says",
    [
        ("--cpu-offloading-num-layers 8", "--num-layers 7"),
        ("--cpu-offloading-weights", "fp32 parameters"),
        ("--cpu-offloading-weights --bf16 --main-params-dtype bf16", "bf16 parameters"),
        ("--cpu-offloading-weights --bf16 --dp 2 --zero 2", "--zero 2"),
    ],
)
def test_what_makes_no_sense(flags, says):
    done = run(["plan", *DEEP, "--micro-batch-size", "1", *flags.split()], expect=2)
    assert flags.split()[0] in done.stderr and says in done.stderr and len(done.stderr.splitlines()) == 1
