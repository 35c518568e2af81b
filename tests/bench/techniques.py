#!/usr/bin/env python3
"""What each memory technique costs in time and saves in bytes, against the plain run of the same round and layout.

  tests/bench/techniques.py [--rounds 3] [--steps 8]

A small GPT (4 layers, hidden 256, 8 heads, vocabulary 512, 8 x 256 tokens): one rank of two threads, and two data-parallel ranks
of one thread for ZeRO. A run's figure is the median step; cost is the median over rounds of plain / technique tokens a second - 1.
Bytes are the plan's, of rank 0, without the host's threads and batches.
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
MEGAC = os.environ.get("MEGAC", str(ROOT / "build" / "megac"))
SHAPE = (
    "--num-layers 4 --hidden-size 256 --num-attention-heads 8 --seq-length 256 --max-position-embeddings 256 "
    "--global-batch-size 8 --vocab-size 512 --lr 3e-4 --lr-decay-style constant --mock-data --device cpu "
    "--hidden-dropout 0 --attention-dropout 0"
).split()
EIGHT = "--bf16 --main-params-dtype bf16 --main-grads-dtype bf16 --exp-avg-dtype bf16 --exp-avg-sq-dtype bf16"
ONE = {  # one rank of two threads
    "bf16": "--bf16",
    "fp16": "--fp16 --initial-loss-scale 65536",
    "8-byte state": EIGHT,
    "recompute core attention": "--recompute-activations",
    "recompute attention and MLP": "--recompute-granularity selective --recompute-modules core_attn mlp",
    "recompute all": "--recompute-granularity full",
    "recompute all, groups of 2": "--recompute-granularity full --recompute-num-layers 2",
    "recompute 2 of 4 blocks": "--recompute-granularity full --recompute-method block --recompute-num-layers 2",
}
TWO = {"ZeRO 1": "--zero 1", "ZeRO 2": "--zero 2", "ZeRO 3": "--zero 3"}  # two ranks of one thread


def speed(flags, ranks, steps):
    with tempfile.TemporaryDirectory() as tmp:
        metrics = pathlib.Path(tmp) / "m.jsonl"
        line = [MEGAC, "train", *SHAPE, *flags.split(), "--micro-batch-size", str(8 // ranks), "--num-threads", str(2 // ranks)]
        line += ["--train-iters", str(steps + 2), "--metrics-file", str(metrics), "--log-interval", "1000"]
        if ranks > 1:
            line = ["mpirun", "--bind-to", "none", "-n", str(ranks), *line]
        env = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        subprocess.run(line, check=True, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return statistics.median(json.loads(s)["tokens_per_second"] for s in metrics.read_text().splitlines()[2:])


def planned(flags, ranks):
    line = [MEGAC, "plan", *SHAPE, *flags.split(), "--micro-batch-size", str(8 // ranks), "--train-iters", "1"]
    line += ["--world-size", str(ranks), "--json"]
    rank = json.loads(subprocess.run(line, check=True, capture_output=True).stdout)["ranks"][0]
    return rank["total"] - rank["host"]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--steps", type=int, default=8)
    a = p.parse_args()
    costs = {}
    for _ in range(a.rounds):
        for ranks, techniques in ((1, ONE), (2, TWO)):
            for name, flags in techniques.items():
                plain = speed("", ranks, a.steps)
                costs.setdefault((name, ranks), []).append(plain / speed(flags, ranks, a.steps) - 1)
    print("| technique | ranks | time, by round | median | MiB, plain -> with it |\n|---|---|---|---|---|")
    for (name, ranks), c in costs.items():
        flags = (ONE | TWO)[name]
        rounds = "; ".join(f"{100 * x:+.1f} %" for x in c)
        mib = f"{planned('', ranks) / 2**20:.1f} -> {planned(flags, ranks) / 2**20:.1f}"
        print(f"| {name} | {ranks} | {rounds} | {100 * statistics.median(c):+.1f} % | {mib} |")


if __name__ == "__main__":
    main()
