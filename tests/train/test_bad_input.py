"""Bad flags and damaged files: exit status 2, one message that names the value and what to do, nothing written."""
import pathlib
import shutil

import pytest
from megac_runs import run

GOOD = (
    "--num-layers 2 --hidden-size 32 --num-attention-heads 4 --seq-length 16 --max-position-embeddings 16 "
    "--micro-batch-size 2 --global-batch-size 4 --lr 1e-3 --train-iters 2 --mock-data --vocab-size 64"
).split()


def change(flag, *values):
    """GOOD with one flag changed (or added)."""
    args = list(GOOD)
    if flag in args:
        at = args.index(flag)
        del args[at : at + 2]
    return [*args, flag, *values]


def without(flag, n=2):
    args = list(GOOD)
    at = args.index(flag)
    del args[at : at + n]
    return args


# name: (arguments of megac train, words that the message must hold)
FLAGS = {
    "unknown flag": (["--num-layer", "2"], ["--num-layer", "--num-layers"]),
    "unknown short flag": ([*GOOD, "-x"], ["-x"]),
    "value missing": ([*GOOD, "--seed"], ["--seed"]),
    "int is a word": (change("--hidden-size", "big"), ["--hidden-size", "big"]),
    "int is a fraction": (change("--num-layers", "2.5"), ["--num-layers", "2.5"]),
    "int is too large": (change("--seq-length", "99999999999999999999"), ["--seq-length"]),
    "negative int": (change("--micro-batch-size", "-1"), ["--micro-batch-size", "-1"]),
    "zero layers": (change("--num-layers", "0"), ["--num-layers", "0"]),
    "float is a word": (change("--lr", "fast"), ["--lr", "fast"]),
    "float is not finite": (change("--lr", "inf"), ["--lr", "inf"]),
    "negative float": (change("--weight-decay", "-0.1"), ["--weight-decay", "-0.1"]),
    "dropout of one": (change("--hidden-dropout", "1.0"), ["--hidden-dropout", "1.0"]),
    "unknown choice": (change("--normalization", "BatchNorm"), ["--normalization", "BatchNorm", "RMSNorm"]),
    "unknown optimizer": (change("--optimizer", "adamw"), ["--optimizer", "adamw"]),
    "optimizer not here": (change("--optimizer", "muon"), ["muon"]),
    "unknown decay style": (change("--lr-decay-style", "step"), ["--lr-decay-style", "step"]),
    "no learning rate": (without("--lr"), ["--lr"]),
    "no layers": (without("--num-layers"), ["--num-layers"]),
    "no hidden size": (without("--hidden-size"), ["--hidden-size"]),
    "no heads": (without("--num-attention-heads"), ["--num-attention-heads"]),
    "no sequence length": (without("--seq-length"), ["--seq-length"]),
    "no length of the run": (without("--train-iters"), ["--train-iters"]),
    "both lengths": (change("--train-samples", "100"), ["--train-iters", "--train-samples"]),
    "no data": (without("--mock-data", 1), ["--data-path"]),
    "heads do not divide hidden": (change("--num-attention-heads", "5"), ["5", "32"]),
    "heads do not divide by TP": ([*GOOD, "--tp", "3"], ["3"]),
    "positions fewer than sequence": (change("--max-position-embeddings", "8"), ["--max-position-embeddings", "8", "16"]),
    "batch does not divide": (change("--global-batch-size", "5"), ["--global-batch-size", "5"]),
    "groups do not divide heads": (
        [*GOOD, "--group-query-attention", "--num-query-groups", "3"],
        ["--num-query-groups", "3"],
    ),
    "layers do not divide by stages": (change("--pipeline-model-parallel-size", "3"), ["3"]),
    "more ranks than started": ([*GOOD, "--tp", "2"], ["2"]),
    "context parallelism": ([*GOOD, "--cp", "2"], ["2"]),
    "fp32 residual in bf16": ([*GOOD, "--bf16", "--fp32-residual-connection"], ["--fp32-residual-connection"]),
    "two precisions": ([*GOOD, "--fp16", "--bf16"], ["--fp16", "--bf16"]),
    "hybrid sharding": ([*GOOD, "--num-distributed-optimizer-instances", "2"], ["--num-distributed-optimizer-instances 2"]),
    "two ZeRO stages": ([*GOOD, "--zero", "2", "--use-distributed-optimizer"], ["--zero 2", "leave one out"]),
    "recompute method alone": ([*GOOD, "--recompute-method", "block"], ["--recompute-method", "--recompute-granularity full"]),
    "odd head size with rope": (
        [*change("--kv-channels", "7"), "--position-embedding-type", "rope"],
        ["7"],
    ),
    "rotary percent": (change("--rotary-percent", "1.5"), ["--rotary-percent", "1.5"]),
    "window with a future": ([*GOOD, "--window-size", "4", "4"], ["--window-size", "4"]),
    "two warm-ups": (
        [*GOOD, "--lr-warmup-iters", "1", "--lr-warmup-fraction", "0.1"],
        ["--lr-warmup-iters", "--lr-warmup-fraction"],
    ),
    "WSD without its length": (change("--lr-decay-style", "WSD"), ["--lr-wsd-decay-iters"]),
    "warm-up longer than decay": (
        [*GOOD, "--lr-warmup-iters", "9", "--lr-decay-iters", "5"],
        ["--lr-warmup-iters", "9"],
    ),
    "min-lr above lr": (change("--min-lr", "1"), ["--min-lr"]),
    "ramp-up of two numbers": ([*GOOD, "--rampup-batch-size", "2", "2"], ["--rampup-batch-size"]),
    "ramp-up past the batch": ([*GOOD, "--rampup-batch-size", "8", "2", "100"], ["--rampup-batch-size", "8"]),
    "split of words": ([*without("--mock-data", 1), "--data-path", "x", "--split", "a,b"], ["--split", "a,b"]),
    "missing data": ([*without("--mock-data", 1), "--data-path", "no/such/data"], ["no/such/data"]),
    "data and mock data": ([*GOOD, "--data-path", "x"], ["--mock-data", "--data-path"]),
    "missing checkpoint": ([*GOOD, "--load", "no/such/checkpoint"], ["no/such/checkpoint"]),
    "missing config file": ([*GOOD, "--config", "no/such.yaml"], ["no/such.yaml"]),
    "vocabulary unknown": (without("--vocab-size"), ["--vocab-size"]),
    "seed out of range": (change("--seed", "-1"), ["--seed", "-1"]),
    "unknown device": (change("--device", "tpu"), ["--device", "tpu"]),
    "cuda without cuda": (change("--device", "cuda"), ["cuda"]),
    "metrics in a missing directory": (change("--metrics-file", "no/such/dir/m.jsonl"), ["no/such/dir"]),
    "encoder-decoder": ([*GOOD, "--encoder-num-layers", "2"], ["--encoder-num-layers"]),
    "old flag with a pointer": ([*GOOD, "--model-parallel-size", "2"], ["--tensor-model-parallel-size"]),
    "interleaving": ([*GOOD, "--num-layers-per-virtual-pipeline-stage", "1"], ["--num-layers-per-virtual-pipeline-stage"]),
}


def assert_one_error(done, words):
    errors = [line for line in done.stderr.splitlines() if "error:" in line]
    assert len(errors) == 1, done.stderr
    for word in words:
        assert word in errors[0], f"{word!r} is not in: {errors[0]}"


@pytest.mark.parametrize("name", FLAGS)
def test_flag(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args, words = FLAGS[name]
    assert_one_error(run(["train", *args, "--save", "saved"], expect=2, timeout=20), words)
    assert not list(pathlib.Path(tmp_path).rglob("iter_*"))


def test_the_good_line_is_good(tmp_path):
    run(["train", *GOOD, "--metrics-file", tmp_path / "m.jsonl"])


def test_ranks_that_disagree(tmp_path):
    """Both ranks stop before step 1, and the flag is named."""
    script = tmp_path / "start.sh"
    script.write_text('#!/bin/sh\nexec "$@" --seed $((1 + OMPI_COMM_WORLD_RANK))\n')
    script.chmod(0o755)
    from megac_runs import MEGAC, MPI_ENV
    import os
    import subprocess

    line = ["mpirun", "--timeout", "60", "-n", "2", str(script), str(MEGAC), "train", *GOOD]
    done = subprocess.run(line, env={**os.environ, **MPI_ENV}, capture_output=True, text=True, timeout=90)
    assert done.returncode == 2
    assert "--seed" in done.stderr and "iteration" not in done.stdout


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    (folder / "text.txt").write_text("in the beginning there was a text, and it was long enough to train on. " * 200)
    run(["prepare", "--input", folder / "text.txt", "--output-prefix", folder / "d", "--append-eod"])
    return folder / "d.h5"


def with_data(path):
    return [*without("--vocab-size")[: without("--vocab-size").index("--mock-data")], "--data-path", str(path)]


def test_data_trains(dataset, tmp_path):
    run(["train", *with_data(dataset), "--metrics-file", tmp_path / "m.jsonl"])


@pytest.mark.parametrize("damage", ["empty", "text", "truncated", "header"])
def test_damaged_dataset(damage, dataset, tmp_path):
    path = tmp_path / "bad.h5"
    shutil.copy(dataset, path)
    data = bytearray(path.read_bytes())
    if damage == "empty":
        data = bytearray()
    elif damage == "text":
        data = bytearray(b"this is not a dataset\n" * 100)
    elif damage == "truncated":
        data = data[: len(data) // 2]
    else:
        data[9:13] = b"\xff" * 4
    path.write_bytes(data)
    done = run(["train", *with_data(path)], expect=2)
    assert_one_error(done, ["bad.h5"])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    run(["train", *GOOD, "--save", folder / "c"])
    return folder / "c"


@pytest.mark.parametrize("damage", ["shard flipped", "shard cut", "shard gone", "metadata flipped", "tracker", "tracker gone"])
def test_damaged_checkpoint(damage, checkpoint, tmp_path):
    path = tmp_path / "c"
    shutil.copytree(checkpoint, path)
    shard = next(path.rglob("*.safetensors"))
    metadata = next(path.rglob("metadata.json"))
    tracker = path / "latest_checkpointed_iteration.txt"
    if damage == "shard flipped":
        data = bytearray(shard.read_bytes())
        data[len(data) // 2] ^= 1
        shard.write_bytes(data)
    elif damage == "shard cut":
        shard.write_bytes(shard.read_bytes()[:-100])
    elif damage == "shard gone":
        shard.unlink()
    elif damage == "metadata flipped":
        data = bytearray(metadata.read_bytes())
        data[len(data) // 2] ^= 1
        metadata.write_bytes(data)
    elif damage == "tracker":
        tracker.write_text("999\n")
    else:
        tracker.unlink()
    before = sorted((p, p.stat().st_mtime_ns) for p in path.rglob("*"))
    done = run(["train", *change("--train-iters", "4"), "--load", path], expect=2)
    assert_one_error(done, [])
    assert sorted((p, p.stat().st_mtime_ns) for p in path.rglob("*")) == before


@pytest.mark.parametrize(
    "args",
    [
        ["prepare"],
        ["prepare", "--input", "no/such/file", "--output-prefix", "x"],
        ["prepare", "--input", "/dev/null", "--output-prefix", "x"],
        ["inspect", "no/such/file"],
        ["inspect"],
        ["eval", "--mock-data"],
        ["generate", "--prompt", "x"],
        ["generate", "--load", "no/such/checkpoint", "--prompt", "x"],
        ["trian"],
        ["plan", "--num-layers", "2"],
    ],
    ids=" ".join,
)
def test_other_commands(args, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_one_error(run(args, expect=2), [])
    assert list(tmp_path.iterdir()) == []
