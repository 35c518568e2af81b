#!/usr/bin/env python3
"""megac against PyTorch on the same model and machine, in turn, within one run; prints ratios.

  tests/bench/vs_pytorch.py --torch-python VENV/bin/python --peers DIR_OF_torch_gpt.py [--rounds 3] [--cases small,llama] [--ranks]

Each round runs megac, PyTorch eager and PyTorch compiled once for each case, all with tcmalloc preloaded for PyTorch where it
is installed. A run's figure is the median step; a case's ratio is the median over rounds of megac / the better PyTorch of the
same round. --ranks compares two megac ranks of one thread with one rank of two threads instead.
"""
import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
TCMALLOC = "/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4"

# layers, hidden, heads, kv heads, ffn, vocabulary, micro-batch, sequence, counted steps
CASES = {
    "small": dict(layers=4, hidden=256, heads=8, vocab=512, batch=8, seq=256, steps=10),
    "gpt2-b4t64": dict(layers=12, hidden=768, heads=12, vocab=50304, batch=4, seq=64, steps=8),
    "gpt2-b4t256": dict(layers=12, hidden=768, heads=12, vocab=50304, batch=4, seq=256, steps=5),
    "gpt2-b1t1024": dict(layers=12, hidden=768, heads=12, vocab=50304, batch=1, seq=1024, steps=3),
    "llama": dict(layers=8, hidden=512, heads=8, kv_heads=4, ffn=1408, vocab=32000, batch=2, seq=512, steps=8, llama=True),
}
RANKS = {
    "dp2": ("", 2),
    "tp2": ("--tp 2", 1),
    "tp2-sp": ("--tp 2 --sequence-parallel", 1),
    "pp2": ("--pp 2", 8),  # micro-batches
}


def megac_args(c, micro, batch, steps, metrics):
    flags = (
        f"train --num-layers {c['layers']} --hidden-size {c['hidden']} --num-attention-heads {c['heads']} "
        f"--seq-length {c['seq']} --max-position-embeddings {c['seq']} --micro-batch-size {micro} "
        f"--global-batch-size {batch} --vocab-size {c['vocab']} --train-iters {steps} --lr 3e-4 --lr-decay-style constant "
        f"--weight-decay 0.1 --adam-beta2 0.95 --clip-grad 1.0 --hidden-dropout 0 --attention-dropout 0 --mock-data "
        f"--log-interval 1000 --metrics-file {metrics}"
    ).split()
    if c.get("llama"):
        flags += (
            f"--position-embedding-type rope --normalization RMSNorm --swiglu --disable-bias-linear "
            f"--untie-embeddings-and-output-weights --group-query-attention --num-query-groups {c['kv_heads']} "
            f"--ffn-hidden-size {c['ffn']}"
        ).split()
    return flags


def run_megac(c, threads, ranks=1, layout="", n_micro=1, warmup=2):
    """Median tokens/s of the counted steps, and the largest resident set of a rank in MiB."""
    with tempfile.TemporaryDirectory() as tmp:
        metrics = pathlib.Path(tmp) / "m.jsonl"
        micro = max(1, c["batch"] // n_micro // (2 if layout == "" and ranks == 2 else 1))
        line = [os.environ.get("MEGAC", str(ROOT / "build" / "megac")), *megac_args(c, micro, c["batch"], c["steps"] + warmup, metrics)]
        line += [*layout.split(), "--num-threads", str(threads)]
        if ranks > 1:
            line = ["mpirun", "--bind-to", "none", "-n", str(ranks), *line]
        env = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        subprocess.run(line, check=True, env=env, stdout=subprocess.DEVNULL)
        rss = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        steps = [json.loads(s) for s in metrics.read_text().splitlines()][warmup:]
        return statistics.median(s["tokens_per_second"] for s in steps), (rss / 1024 if rss > before else None)


def run_torch(c, python, script, compiled):
    line = [python, script, "--layers", c["layers"], "--hidden", c["hidden"], "--heads", c["heads"], "--vocab", c["vocab"]]
    line += ["--seq", c["seq"], "--micro-batch", c["batch"], "--steps", c["steps"], "--warmup", 2, "--threads", 2]
    if c.get("llama"):
        line += ["--llama", "--kv-heads", c["kv_heads"], "--ffn", c["ffn"]]
    if compiled:
        line += ["--compile"]
    env = dict(os.environ)
    if os.path.exists(TCMALLOC):
        env["LD_PRELOAD"] = TCMALLOC
    done = subprocess.run([str(x) for x in line], check=True, env=env, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])["tokens_per_second"]


def against_pytorch(a):
    for name in a.cases.split(","):
        c, ratios, rows = CASES[name], [], []
        for _ in range(a.rounds):
            mine, rss = run_megac(c, threads=2)
            eager = run_torch(c, a.torch_python, pathlib.Path(a.peers) / "torch_gpt.py", False)
            compiled = run_torch(c, a.torch_python, pathlib.Path(a.peers) / "torch_gpt.py", True) if a.compile else 0
            ratios.append(mine / max(eager, compiled))
            rows.append(f"{mine:.0f} / {eager:.0f} / {compiled:.0f}" + (f" ({rss:.0f} MiB)" if rss else ""))
        print(f"{name}: {statistics.median(ratios):.2f} x PyTorch (megac / eager / compiled tokens/s: {'; '.join(rows)})", flush=True)


def ranks_against_threads(a):
    for name in a.cases.split(","):
        c = CASES[name]
        results = {k: [] for k in RANKS}
        for _ in range(a.rounds):
            one, _ = run_megac(c, threads=2)
            for layout, (flags, n_micro) in RANKS.items():
                base = one
                if n_micro == 8:  # the same micro-batches on one rank, and the pipeline's ideal of m / (m + p - 1)
                    base, _ = run_megac({**c, "batch": 8}, threads=2, n_micro=8)
                    base *= 8 / 9
                    got, _ = run_megac({**c, "batch": 8}, threads=1, ranks=2, layout=flags, n_micro=8)
                else:
                    got, _ = run_megac(c, threads=1, ranks=2, layout=flags, n_micro=1)
                results[layout].append(got / base)
        for layout, r in results.items():
            print(f"{name} {layout}: {statistics.median(r):.2f} ({', '.join(f'{x:.2f}' for x in r)})", flush=True)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--torch-python", default=sys.executable)
    p.add_argument("--peers", default=str(ROOT.parent / "shared" / "peers"))
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--cases", default=",".join(CASES))
    p.add_argument("--no-compile", dest="compile", action="store_false")
    p.add_argument("--ranks", action="store_true")
    a = p.parse_args()
    ranks_against_threads(a) if a.ranks else against_pytorch(a)


if __name__ == "__main__":
    main()
