"""The run as a whole: its memory is the plan, its steps allocate nothing, its batch may grow, its end is orderly."""
import json
import os
import re
import signal
import subprocess
import time

import pytest
from megac_runs import command, metrics, peak_bytes, run, train

SHAPE = (
    "--num-layers 4 --hidden-size 64 --num-attention-heads 4 --seq-length 32 --max-position-embeddings 32 "
    "--micro-batch-size 1 --lr 1e-3 --mock-data --vocab-size 301"
).split()


def plan(args):
    return json.loads(run(["plan", *args, "--json"]).stdout)


def reserved_mib(stdout):
    return float(re.search(r"rank 0 reserves ([0-9.]+) MiB", stdout).group(1))


@pytest.mark.parametrize(
    "ranks, flags",
    [
        (1, []),
        (2, ["--tp", "2"]),
        (2, ["--tp", "2", "--sequence-parallel"]),
        (4, ["--tp", "2", "--pp", "2"]),
        (8, ["--tp", "2", "--pp", "2", "--sequence-parallel", "--eval-interval", "2", "--eval-iters", "1"]),
    ],
)
def test_plan_is_what_the_run_reserves_and_no_step_allocates(ranks, flags):
    args = [*SHAPE, "--global-batch-size", "8", "--train-iters", "6", *flags]
    done = run(["train", *args, "--num-threads", "1"], ranks)
    # The plan's table is per rank; --num-threads counts in its host bytes.
    rank0 = plan([*args, "--num-threads", "1", "--world-size", str(ranks)])["ranks"][0]
    assert rank0["rank"] == 0
    assert reserved_mib(done.stdout) == pytest.approx(rank0["total"] / 2**20, abs=0.06)
    assert "allocations after the first step" not in done.stderr


@pytest.mark.parametrize(
    "more",
    [
        "",
        "--bf16 --main-params-dtype bf16 --main-grads-dtype bf16 --exp-avg-dtype bf16 --exp-avg-sq-dtype bf16",
        "--fp16 --initial-loss-scale 1024 --recompute-granularity full",
    ],
)
def test_resident_memory_is_the_plan(more):
    args = (
        "--num-layers 6 --hidden-size 384 --num-attention-heads 6 --seq-length 128 --micro-batch-size 4 "
        "--global-batch-size 4 --lr 1e-3 --mock-data --vocab-size 8192 --train-iters 3 --num-threads 2 "
        + more
    ).split()
    peak = peak_bytes(["train", *args])
    planned = plan([*args, "--world-size", "1"])["ranks"][0]["total"]
    assert planned > 100e6  # large enough that 30 MB do not hide a mistake
    assert 0.9 * planned < peak < 1.05 * planned + 30e6


def test_threads_keep_to_the_bound_cores():
    """A rank that its launcher bound to one core starts one thread, whatever the machine has."""
    core = str(min(os.sched_getaffinity(0)))
    line, env = command(["train", *SHAPE, "--global-batch-size", "4", "--train-iters", "1"])
    done = subprocess.run(["taskset", "-c", core, *line], env=env, timeout=60, capture_output=True, text=True)
    assert done.returncode == 0 and ", 1 thread a rank" in done.stdout


def test_1f1b_holds_no_more_than_the_stages():
    """With PP 4, activations of 16 micro-batches take what those of 4 take; GPipe's take four times as much."""

    def activations(micros, schedule):
        args = [*SHAPE, "--global-batch-size", str(micros), "--train-iters", "2", "--pp", "4"]
        return [r["activations"] for r in plan([*args, "--pipeline-schedule", schedule, "--world-size", "4"])["ranks"]]

    f4, f16, g16 = activations(4, "1f1b"), activations(16, "1f1b"), activations(16, "gpipe")
    # The last stage also keeps the token losses of every micro-batch.
    assert f16[:3] == f4[:3]
    assert g16[0] > 3.8 * f16[0]  # both also have the two gradient buffers
    assert f16[0] > f16[1] > f16[2]


@pytest.mark.parametrize("ranks, flags", [(2, []), (4, ["--tp", "2", "--pp", "2"])])
def test_batch_ramp(ranks, flags, tmp_path):
    args = [*SHAPE, "--global-batch-size", "16", "--rampup-batch-size", "4", "4", "48", "--train-samples", "120"]
    want, _ = train(args, 1, tmp_path, "want")
    got, _ = train([*args, *flags], ranks, tmp_path, "got")
    sizes = [b["consumed_samples"] - a for a, b in zip([0, *(s["consumed_samples"] for s in want)], want)]
    assert sizes[0] == 4 and sizes[-1] == 16 and sizes == sorted(sizes) and len(set(sizes)) == 4
    assert [s["consumed_samples"] for s in got] == [s["consumed_samples"] for s in want]
    for a, b in zip(got, want):
        assert a["lm_loss"] == pytest.approx(b["lm_loss"], rel=1e-5)


def test_masked_targets_do_not_count(tmp_path):
    """--eod-mask-loss: the same on any data-parallel layout, though replicas hold different numbers of masked targets."""
    (tmp_path / "t.txt").write_text("\n".join("abcdefgh"[: 1 + i * 5 % 8] for i in range(3000)))
    run(["prepare", "--input", tmp_path / "t.txt", "--output-prefix", tmp_path / "t", "--append-eod",
         "--split-documents-on", "line"])  # fmt: skip
    shape = [a for a in SHAPE if a != "--mock-data"]
    at = shape.index("--vocab-size")
    args = [*shape[:at], "--global-batch-size", "4", "--train-iters", "6", "--data-path", tmp_path / "t", "--split", "1"]
    plain, _ = train(args, 1, tmp_path, "plain")
    one, _ = train([*args, "--eod-mask-loss"], 1, tmp_path, "one")
    for layout in ([], ["--tp", "2"], ["--pp", "2"]):
        four, _ = train([*args, "--eod-mask-loss", *layout], 4, tmp_path, "four")
        for a, b in zip(four, one, strict=True):
            assert a["lm_loss"] == pytest.approx(b["lm_loss"], rel=1e-5)
    assert one[-1]["lm_loss"] != plain[-1]["lm_loss"]


def test_skipped_iterations_change_nothing_but_the_data(tmp_path):
    args = [*SHAPE, "--global-batch-size", "4", "--train-iters", "6", "--iterations-to-skip", "2", "3"]
    steps, _ = train(args, 1, tmp_path, "one")
    assert [s["skipped"] for s in steps] == [False, True, True, False, False, False]
    assert steps[1]["lm_loss"] is None and steps[-1]["consumed_samples"] == 24
    assert steps[1]["tokens_per_second"] == 0 and steps[3]["tokens_per_second"] > 0
    two, _ = train(args, 2, tmp_path, "two")
    assert two[-1]["lm_loss"] == pytest.approx(steps[-1]["lm_loss"], rel=1e-5)


def test_a_step_that_is_not_finite_is_skipped_on_all_ranks(tmp_path):
    args = [*SHAPE, "--global-batch-size", "4", "--train-iters", "4", "--lr-decay-style", "constant", "--lr", "1e38"]
    for ranks in (1, 2):
        steps, _ = train(args, ranks, tmp_path, f"r{ranks}")
        assert [s["skipped"] for s in steps] == [False, True, True, True]
        assert steps[1]["grad_norm"] is None


def test_killed_rank_ends_the_job(tmp_path):
    args = [*SHAPE, "--global-batch-size", "4", "--train-iters", "100000000", "--metrics-file", tmp_path / "m.jsonl"]
    line, env = command(["train", *args, "--num-threads", "1"], 2)
    job = subprocess.Popen(line, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.time() + 30
        while not ((tmp_path / "m.jsonl").exists() and metrics(tmp_path / "m.jsonl")) and time.time() < deadline:
            time.sleep(0.1)
        children = subprocess.run(["pgrep", "-P", str(job.pid)], capture_output=True, text=True).stdout.split()
        assert len(children) == 2
        victim = next(c for c in children if b"OMPI_COMM_WORLD_RANK=1\0" in open(f"/proc/{c}/environ", "rb").read())
        os.kill(int(victim), signal.SIGKILL)
        _, stderr = job.communicate(timeout=10)
    finally:
        job.kill()
    assert job.returncode not in (0, None)
    # mpirun names the dead rank too; this line is megac's, and says what the other rank was waiting for.
    assert re.search(rf"megac.*error: rank 1 \(process {victim}\) is gone while \w+ of \w+", stderr)
    assert re.search(rf"watchdog: rank 1, process {victim} \(gone\), step \d+: (computes|waits|reads data)", stderr)
    assert 1 <= len(re.findall(r"watchdog: rank 1 did: .*, step \d+, begun [0-9.]+ s ago", stderr)) <= 6


def test_one_rank_that_fails_ends_the_job(tmp_path):
    """Only rank 0 opens the metrics file; the others would wait for it in the first step."""
    args = [*SHAPE, "--global-batch-size", "4", "--train-iters", "3", "--metrics-file", tmp_path / "none" / "m"]
    # The deadline of a collective is 600 s: rank 1 must not wait for that.
    done = run(["train", *args, "--num-threads", "1"], 2, expect=2, timeout=30)
    assert done.stderr.count("--metrics-file") == 1


def test_samples_that_fill_no_step_are_left_out(tmp_path):
    """--train-samples 10 in batches of 4 is two steps, as Megatron-LM counts; less than one step is an error."""
    args = [*SHAPE, "--global-batch-size", "4"]
    steps, _ = train([*args, "--train-samples", "10"], 1, tmp_path)
    assert [s["consumed_samples"] for s in steps] == [4, 8]
    done = run(["train", *args, "--train-samples", "3"], expect=2)
    assert "--train-samples 3" in done.stderr
    # A ramp (4 samples up to 8, then 8) that ends between two steps: the last step would reach 24.
    ramp = [*SHAPE, "--global-batch-size", "8", "--rampup-batch-size", "4", "4", "8", "--train-samples", "22"]
    steps, _ = train(ramp, 2, tmp_path)
    assert [s["consumed_samples"] for s in steps] == [4, 8, 16]


@pytest.mark.parametrize("ranks, flags", [(1, []), (2, ["--pp", "2"]), (2, [])])
def test_evaluation_leaves_training_alone(ranks, flags, tmp_path):
    """With an evaluation after every step, dropout on, the run keeps every bit. PP 2: one training slot on the last
    stage, two in evaluation."""
    args = [*SHAPE, "--global-batch-size", "4", "--train-iters", "5", "--hidden-dropout", "0.1", *flags]
    without, none = train([*args, "--eval-iters", "0"], ranks, tmp_path, "without")
    steps, evals = train([*args, "--eval-interval", "1", "--eval-iters", "2"], ranks, tmp_path, "with")
    assert none == [] and len(evals) == 5
    for a, b in zip(steps, without):
        assert (a["lm_loss"], a["grad_norm"]) == (b["lm_loss"], b["grad_norm"])


def test_evaluation_that_cannot_run_is_refused_at_the_start(tmp_path):
    args = [*SHAPE, "--global-batch-size", "4", "--train-iters", "3", "--eval-interval", "2", "--full-validation"]
    done = run(["train", *args, "--metrics-file", tmp_path / "m.jsonl"], expect=2)
    assert "--mock-data" in done.stderr and "--eval-iters" in done.stderr
    assert not (tmp_path / "m.jsonl").exists()


def test_progress_leaves_skipped_steps_out_of_the_mean():
    args = [*SHAPE, "--global-batch-size", "4", "--train-iters", "4", "--iterations-to-skip", "2", "--log-interval", "4"]
    line = next(l for l in run(["train", *args]).stdout.splitlines() if l.startswith("iteration 4/4"))
    assert re.search(r"loss 5\.\d+ ", line) and line.endswith("| skipped 1 of 4")


def test_decoupled_rate_works_alone(tmp_path):
    """--lr 0 --decoupled-lr trains the embedding and nothing else."""
    args = [*SHAPE, "--global-batch-size", "4", "--train-iters", "8", "--lr-decay-style", "constant", "--lr", "0"]
    frozen, _ = train(args, 1, tmp_path, "frozen")
    moving, _ = train([*args, "--decoupled-lr", "1e-2"], 1, tmp_path, "moving")
    assert moving[0]["lm_loss"] == frozen[0]["lm_loss"]
    assert moving[-1]["lm_loss"] < frozen[-1]["lm_loss"] - 0.05


def test_metrics_hold_the_contract(tmp_path):
    args = [*SHAPE, "--global-batch-size", "4", "--train-iters", "3", "--eval-interval", "3", "--eval-iters", "1"]
    steps, evals = train(args, 1, tmp_path)
    keys = (
        "iteration consumed_samples consumed_tokens lm_loss learning_rate grad_norm loss_scale iteration_time_ms "
        "tokens_per_second model_tflops mfu skipped"
    ).split()
    for s in steps:
        assert set(keys) <= set(s)
    assert [s["consumed_tokens"] for s in steps] == [128, 256, 384]
    assert set(evals[0]) >= {"iteration", "valid_loss", "valid_ppl"}
    # 17 significant digits: the text of a float reads back to the same bits, and is not shortened.
    text = (tmp_path / "m.jsonl").read_text()
    assert re.search(r'"lm_loss":\d\.\d{14,}', text)


def test_start_up_is_told_once(tmp_path):
    """Flags without effect are reported by one rank, not by all."""
    args = [*SHAPE, "--global-batch-size", "6", "--train-iters", "1", "--sequence-parallel", "--eod-mask-loss"]
    messages = run(["train", *args, "--num-threads", "1"], 3).stderr.splitlines()
    warnings = [m for m in messages if "warning" in m]
    assert len(warnings) == 2
    assert warnings[0].startswith("megac: warning: --sequence-parallel")
    assert warnings[1].startswith("megac: warning: --eod-mask-loss")


def test_skip_train_evaluates_without_length_or_rate(tmp_path):
    text = " ".join(SHAPE)
    args = text.replace("--lr 1e-3 ", "").split()
    evaluate = ["--skip-train", "--eval-iters", "2", "--global-batch-size", "4"]
    steps, evals = train([*args, *evaluate], 1, tmp_path, "skip")
    trained = [*SHAPE, "--train-iters", "1", "--lr-decay-style", "constant", "--lr", "1e-30"]
    _, want = train([*trained, "--eval-interval", "1", *evaluate[1:]], 1, tmp_path, "want")
    assert not steps and len(evals) == 1
    assert evals[0]["valid_loss"] == pytest.approx(want[0]["valid_loss"], rel=1e-6)
