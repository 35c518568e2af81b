"""Adam's moments in host memory or in a file: the same run, to the bit."""

import json
import os
import pathlib
import resource
import signal
import subprocess

import pytest
from megac_runs import command, run, train
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
