#!/usr/bin/env python3
"""How long training stands still for a save with --async-save, against a step's time.

  tests/bench/async_save.py DIRECTORY [--saves 5]

GPT-2 124M (batches of 4 x 64 and 4 x 256 tokens, two threads), a save every fourth step. Prints the median wait and the median
step that began with no save under way, in seconds, and their ratio.
"""
import argparse
import json
import os
import pathlib
import re
import shutil
import statistics
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]
MEGAC = os.environ.get("MEGAC", str(ROOT / "build" / "megac"))
EVERY = 4
SHAPE = (
    "--num-layers 12 --hidden-size 768 --num-attention-heads 12 --max-position-embeddings 1024 --micro-batch-size 4 "
    "--global-batch-size 4 --vocab-size 50304 --lr 3e-4 --lr-decay-style constant --mock-data --device cpu --keep-last 1 "
    "--hidden-dropout 0 --attention-dropout 0 --num-threads 2 --log-interval 1000"
).split()
WAITED = re.compile(r"written in ([\d.]+) s behind training, which waited ([\d.]+) s")


def run(directory, seq, saves):
    """Standard output of the run, and its steps."""
    shutil.rmtree(directory, ignore_errors=True)
    line = [MEGAC, "train", *SHAPE, "--seq-length", str(seq), "--save", str(directory), "--save-interval", str(EVERY)]
    line += ["--train-iters", str(EVERY * saves + 1), "--async-save"]
    out = subprocess.run(line, check=True, capture_output=True, text=True).stdout
    steps = [json.loads(s) for s in (pathlib.Path(directory) / "metrics.jsonl").read_text().splitlines()]
    shutil.rmtree(directory)
    return out, steps


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("directory", type=pathlib.Path)
    p.add_argument("--saves", type=int, default=5)
    a = p.parse_args()
    for seq in (64, 256):
        out, steps = run(a.directory / "bench_async_save", seq, a.saves)
        written, waited = zip(*[(float(w), float(s)) for w, s in WAITED.findall(out)[:-1]])  # the end waits for the last
        step = statistics.median(4 * seq / s["tokens_per_second"] for s in steps[2:] if s["iteration"] % EVERY == 0)
        wait = statistics.median(waited)
        print(f"4 x {seq}: waited {wait:.3f} s ({min(waited):.3f} .. {max(waited):.3f}), written in {statistics.median(written):.3f} s, "
              f"step {step:.3f} s: {wait / step:.2f} of a step", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
