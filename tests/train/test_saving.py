"""When a run saves, what stays, and how it ends: signals, time, snapshots in the background, two runs in one directory."""

import json
import os
import random
import re
import signal
import subprocess
import time

import pytest
from megac_runs import command, metrics, run, train
from test_resume import DROPOUT, MOCK, losses

ARGS = [*MOCK, *DROPOUT, "--train-iters", "12"]


def iterations(folder):
    """Numbers of the checkpoints in a save directory; nothing half done may lie there."""
    names = sorted(p.name for p in folder.iterdir() if p.name.startswith("iter_"))
    assert all(re.fullmatch(r"iter_\d{7}", n) for n in names), names
    return [int(n[5:]) for n in names]


def start(args, ranks):
    line, env = command(["train", *args, "--num-threads", 1], ranks)
    return subprocess.Popen(line, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_steps(path, n):
    deadline = time.time() + 30
    while time.time() < deadline and not (path.exists() and len(metrics(path)) >= n):
        time.sleep(0.02)
    assert len(metrics(path)) >= n


def wait_for_growth(path):
    size, deadline = path.stat().st_size if path.exists() else 0, time.time() + 30
    while time.time() < deadline and not (path.exists() and path.stat().st_size > size):
        time.sleep(0.01)


def children(job, ranks):
    if ranks == 1:
        return [job.pid]
    return [int(p) for p in subprocess.run(["pgrep", "-P", str(job.pid)], capture_output=True, text=True).stdout.split()]


@pytest.mark.parametrize("ranks, name", [(1, "SIGTERM"), (1, "SIGUSR1"), (1, "SIGINT"), (4, "SIGTERM"), (4, "SIGUSR1")])
def test_a_signal_to_any_rank_saves_and_stops_all(ranks, name, tmp_path):
    flags = ["--tp", "2"] if ranks == 4 else []
    args = [*MOCK, *DROPOUT, *flags, "--train-iters", "1000000", "--save", tmp_path / "c", "--lr-decay-iters", "50"]
    job = start([*args, "--metrics-file", tmp_path / "m.jsonl"], ranks)
    try:
        wait_for_steps(tmp_path / "m.jsonl", 3)
        pids = children(job, ranks)
        assert len(pids) == ranks
        subprocess.run(["kill", f"-{name}", str(pids[-1])], check=True)
        stdout, stderr = job.communicate(timeout=30)
    finally:
        job.kill()
    assert job.returncode == 75, stderr
    assert stderr.count(f"{name}: finishing this step") == 1
    done = metrics(tmp_path / "m.jsonl")
    assert iterations(tmp_path / "c") == [len(done)]
    # What was saved is the run: it goes on as if nothing had been.
    more = ["--exit-interval", len(done) + 2]
    rest, _ = train_stopped([*args, "--load", tmp_path / "c", *more], ranks, tmp_path)
    whole, _ = train_stopped([*args[:-4], "--lr-decay-iters", "50", "--save", tmp_path / "d", *more], ranks, tmp_path)
    assert losses(rest) == losses(whole)[len(done) :] and len(rest) == 2


def train_stopped(args, ranks, tmp_path):
    """A run that ends with exit status 75."""
    path = tmp_path / "stopped.jsonl"
    path.unlink(missing_ok=True)
    run(["train", *args, "--metrics-file", path, "--num-threads", 1], ranks, expect=75)
    return metrics(path), None


def test_a_second_signal_stops_at_once(tmp_path):
    args = [*MOCK, "--train-iters", "1000000", "--save", tmp_path / "c", "--global-batch-size", "4096"]
    job = start([*args, "--metrics-file", tmp_path / "m.jsonl"], 1)
    try:
        time.sleep(0.5)
        job.send_signal(signal.SIGTERM)
        assert "finishing this step" in job.stderr.readline()
        job.send_signal(signal.SIGTERM)
        job.wait(timeout=10)
    finally:
        job.kill()
    assert job.returncode == -signal.SIGTERM and iterations(tmp_path / "c") == []


def test_without_save_a_signal_ends_the_run(tmp_path):
    job = start([*MOCK, "--train-iters", "1000000", "--metrics-file", tmp_path / "m.jsonl"], 1)
    try:
        wait_for_steps(tmp_path / "m.jsonl", 1)
        job.send_signal(signal.SIGTERM)
        assert job.wait(timeout=10) == -signal.SIGTERM
    finally:
        job.kill()


RETENTION = {
    "all": ([], list(range(1, 13))),
    "last two": (["--keep-last", "2"], [11, 12]),
    "every fifth and the newest": (["--save-retain-interval", "5"], [5, 10, 12]),
    "every fifth and the last three": (["--save-retain-interval", "5", "--keep-last", "3"], [5, 10, 11, 12]),
}


@pytest.mark.parametrize("name", RETENTION)
def test_retention(name, tmp_path):
    flags, want = RETENTION[name]
    (tmp_path / "iter_0000007.tmp").mkdir()  # of a save that was killed
    (tmp_path / "iter_0000003.gone").mkdir()
    train([*ARGS, "--save", tmp_path, "--save-interval", "1", *flags], 2, tmp_path)
    assert iterations(tmp_path) == want
    for i in want:
        run(["inspect", tmp_path / f"iter_{i:07d}", "--verify"])


def test_the_best_stays(tmp_path):
    """Validation losses of a run that diverges after some steps: the best is kept though it is old."""
    args = [*ARGS, "--eval-interval", "2", "--eval-iters", "2", "--save", tmp_path, "--keep-last", "1", "--save-best"]
    _, evals = train([*args, "--lr", "0.3", "--lr-decay-style", "constant", "--clip-grad", "0"], 2, tmp_path)
    best = min(evals, key=lambda e: e["valid_loss"])["iteration"]
    assert best < 12
    assert iterations(tmp_path) == [best, 12]
    assert (tmp_path / "best_checkpointed_iteration.txt").read_text() == f"{best}\n"
    # A resumed run remembers it.
    _, more = train([*args, "--load", tmp_path, "--train-iters", "14", "--lr", "0.3", "--lr-decay-style", "constant",
                     "--clip-grad", "0", "--override-opt-param-scheduler"], 2, tmp_path)  # fmt: skip
    assert more[-1]["iteration"] == 14 and more[-1]["valid_loss"] > min(e["valid_loss"] for e in evals)
    assert iterations(tmp_path) == [best, 14]


def test_no_loss_is_not_the_best(tmp_path):
    """A model that computes NaN from the second step on."""
    args = [*ARGS, "--eval-interval", "2", "--eval-iters", "1", "--save", tmp_path, "--keep-last", "1", "--save-best"]
    run(["train", *args, "--lr", "3e38", "--lr-decay-style", "constant"], 2)
    assert iterations(tmp_path) == [12] and not (tmp_path / "best_checkpointed_iteration.txt").exists()
    run(["inspect", tmp_path / "iter_0000012", "--verify"])


def test_hours_save_too(tmp_path):
    train([*ARGS, "--save", tmp_path, "--save-interval-hours", "1e-9"], 2, tmp_path)
    assert iterations(tmp_path) == list(range(1, 13))


@pytest.mark.parametrize("ranks, flags", [(1, ""), (4, "--tp 2 --zero 3"), (4, "--tp 2 --pp 2 --sequence-parallel")])
def test_async_saves_are_the_same_files(ranks, flags, tmp_path):
    args = [*ARGS, *flags.split(), "--save-interval", "4"]
    train([*args, "--save", tmp_path / "a"], ranks, tmp_path)
    done = run(["train", *args, "--save", tmp_path / "b", "--async-save", "--num-threads", 1], ranks)
    assert re.search(r"saved .* at iteration 4 \(written in [\d.]+ s behind training, which waited [\d.]+ s\)", done.stdout)
    assert "allocations after the first step" not in done.stderr
    assert iterations(tmp_path / "a") == iterations(tmp_path / "b") == [4, 8, 12]
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.safetensors"))
    assert len(files) >= 3
    for f in files:
        assert (tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes(), f
    run(["inspect", tmp_path / "b", "--verify"])


def test_two_runs_cannot_write_one_directory(tmp_path):
    args = [*MOCK, "--save", tmp_path / "c"]
    job = start([*args, "--train-iters", "1000000", "--metrics-file", tmp_path / "m.jsonl"], 1)
    try:
        wait_for_steps(tmp_path / "m.jsonl", 1)
        done = run(["train", *args, "--train-iters", "5"], 2, expect=2)
        assert f"process {job.pid} on " in done.stderr and "--save" in done.stderr
        job.send_signal(signal.SIGTERM)
        assert job.wait(timeout=10) == 75
    finally:
        job.kill()
    run(["train", *args, "--train-iters", "5"])


@pytest.mark.parametrize("ranks, flags", [(1, ["--async-save"]), (2, ["--async-save", "--zero", "1"]), (2, [])])
def test_killed_at_any_time_it_goes_on_where_it_was(ranks, flags, tmp_path):
    """SIGKILL to every rank at random moments of a run that always saves; MEGAC_KILLS sets how often (the soak: 200)."""
    kills, rng, seen = int(os.environ.get("MEGAC_KILLS", 10)), random.Random(7), {}
    args = [*MOCK, *DROPOUT, *flags, "--train-iters", "400", "--lr-decay-iters", "400", "--save-interval", "1", "--keep-last", "2"]
    args += ["--save", tmp_path / "c", "--load", tmp_path / "c", "--load-if-exists", "--metrics-file", tmp_path / "m.jsonl"]
    for i in range(kills):
        job = start(args, ranks)
        if i % 4 < 3:  # every fourth is killed while it starts, or not
            wait_for_growth(tmp_path / "m.jsonl")
        time.sleep(rng.uniform(0.02, 0.5))
        for pid in children(job, ranks):
            subprocess.run(["kill", "-KILL", str(pid)], stderr=subprocess.DEVNULL)
        job.kill()
        job.communicate(timeout=30)
        if (tmp_path / "c" / "latest_checkpointed_iteration.txt").exists():
            run(["inspect", tmp_path / "c", "--verify"])
    lines = (tmp_path / "m.jsonl").read_text().splitlines()
    for line in lines:  # the last line of a killed run may be cut off, and the next one's first stand behind it
        try:
            step = json.loads(line)
        except ValueError:
            continue
        seen.setdefault(step["iteration"], set()).add((step["lm_loss"], step["grad_norm"]))
    last = max(seen)
    assert last > kills / 2  # it came on
    whole, _ = train([*MOCK, *DROPOUT, *flags, "--train-iters", last, "--lr-decay-iters", "400"], ranks, tmp_path, "whole")
    for step in whole:
        if step["iteration"] in seen:
            assert seen[step["iteration"]] == {(step["lm_loss"], step["grad_norm"])}
