#!/usr/bin/env python3
"""What recomputation costs in time and saves in bytes: every setting in turn, several rounds, against no recomputation of the
same round.

  tests/bench/recompute_cost.py [--build build] [--rounds 5] [--threads 2] [--processor-time] [MEGAC FLAGS THAT CHANGE THE MODEL]

A run's figure is its median step, or (for machines with other jobs) the processor time of a run of one thread less that of a run of
one step; a setting's cost is the median over rounds of its figure / that of the plain run of the round.
Bytes are those that `megac plan` says (which is what a run reserves). Prints a row of a Markdown table for each setting."""
import argparse
import json
import pathlib
import resource
import statistics
import subprocess
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODEL = (
    "--num-layers 8 --hidden-size 256 --num-attention-heads 8 --seq-length 256 --max-position-embeddings 256 --vocab-size 512 "
    "--micro-batch-size 8 --global-batch-size 8 --lr 1e-3 --lr-decay-style constant --mock-data"
).split()
FULL = "--recompute-granularity full"
SELECTIVE = "--recompute-granularity selective --recompute-modules"
SETTINGS = {
    "none": "",
    "selective, core_attn": f"{SELECTIVE} core_attn",
    "selective, mlp": f"{SELECTIVE} mlp",
    "selective, core_attn mlp": f"{SELECTIVE} core_attn mlp",
    "full, block, half of the layers": f"{FULL} --recompute-method block --recompute-num-layers 4",
    "full, uniform, groups of 4": f"{FULL} --recompute-num-layers 4",
    "full, uniform, groups of 2": f"{FULL} --recompute-num-layers 2",
    "full, each layer": FULL,
}


def step_ms(megac, flags, metrics):
    metrics.unlink(missing_ok=True)
    subprocess.run([megac, "train", *flags, "--metrics-file", metrics], check=True, capture_output=True)
    steps = [json.loads(line)["iteration_time_ms"] for line in metrics.read_text().splitlines()]
    return statistics.median(steps[2:])


def processor_ms(megac, flags, steps):
    def run(n):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([megac, "train", *flags, "--train-iters", str(n)], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return 1e3 * (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)

    return (run(steps) - run(1)) / (steps - 1)


def activation_bytes(megac, flags):
    plan = subprocess.run([megac, "plan", *flags, "--json"], check=True, capture_output=True, text=True)
    return json.loads(plan.stdout)["ranks"][0]["activations"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", default=ROOT / "build", type=pathlib.Path)
    parser.add_argument("--rounds", default=5, type=int)
    parser.add_argument("--threads", default=2, type=int)
    parser.add_argument("--steps", default=10, type=int)
    parser.add_argument("--processor-time", action="store_true")
    args, more = parser.parse_known_args()
    megac = args.build.resolve() / "megac"
    threads = 1 if args.processor_time else args.threads
    flags = {
        name: [*MODEL, "--num-threads", str(threads), "--train-iters", str(args.steps), *more, *setting.split()]
        for name, setting in SETTINGS.items()
    }
    costs = {name: [] for name in SETTINGS}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(args.rounds):
            if args.processor_time:
                ms = {name: processor_ms(megac, line, args.steps) for name, line in flags.items()}
            else:
                ms = {name: step_ms(megac, line, pathlib.Path(folder) / "m.jsonl") for name, line in flags.items()}
            for name in SETTINGS:
                costs[name].append(100 * (ms[name] / ms["none"] - 1))
            print("ms a step:", ", ".join(f"{v:.0f}" for v in ms.values()), flush=True)
    plain = activation_bytes(megac, flags["none"])
    print("| setting | activations, MB | saved | time, % of a step (median; rounds) |\n|---|---|---|---|")
    for name, line in flags.items():
        kept = activation_bytes(megac, line)
        rounds = ", ".join(f"{c:.0f}" for c in sorted(costs[name]))
        median = statistics.median(costs[name])
        print(f"| {name} | {kept / 1e6:.1f} | {100 * (1 - kept / plain):.0f} % | {median:+.1f} ({rounds}) |")


if __name__ == "__main__":
    main()
