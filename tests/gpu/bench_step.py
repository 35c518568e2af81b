"""Whole training steps on a GPU: tokens/s, model TFLOP/s, and their share of the GPU's best square product (MFU).

  bench_step.py --megac PATH --peak TFLOPS [--tiny] [--steps N] [CASE...]

A figure is the median of the counted steps; the first two are not counted. FLOP are the model's (causal attention counted
half, recomputation not); the peak is what bench_cuda measured in the same run of bench.sh. Models of which one GPU holds
only some blocks train those, with the embedding and the output layer: their name says how many.
"""
import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

LLAMA = (
    "--position-embedding-type rope --rotary-base 500000 --normalization RMSNorm --swiglu --disable-bias-linear "
    "--untie-embeddings-and-output-weights --group-query-attention --num-query-groups 8"
)
# layers, hidden, ffn, heads, vocabulary, micro-batch, sequence, further flags
CASES = {
    "gpt2-124m": (12, 768, 3072, 12, 50304, 16, 1024, ""),
    "gpt2-1558m": (48, 1600, 6400, 25, 50304, 4, 1024, ""),
    "llama-1b": (16, 2048, 8192, 32, 128256, 2, 4096, LLAMA),
    "llama-8b, 4 of 32 blocks": (4, 4096, 14336, 32, 128256, 1, 8192, LLAMA),
}
TINY = {"tiny": (2, 64, 128, 8, 96, 2, 32, LLAMA)}
PRECISIONS = {"bf16": ["--bf16"], "tf32": ["--allow-tf32"]}


def flags_of(case, steps):
    layers, hidden, ffn, heads, vocab, micro, seq, more = case
    return (
        f"train --device cuda --num-layers {layers} --hidden-size {hidden} --ffn-hidden-size {ffn} "
        f"--num-attention-heads {heads} --vocab-size {vocab} --micro-batch-size {micro} --global-batch-size {4 * micro} "
        f"--seq-length {seq} --max-position-embeddings {seq} --train-iters {steps} --lr 3e-4 --lr-decay-style constant "
        f"--hidden-dropout 0 --attention-dropout 0 --mock-data --log-interval 1000 {more}"
    ).split()


def steps_of(megac, flags):
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "metrics.jsonl"
        done = subprocess.run([megac, *flags, "--metrics-file", path], capture_output=True, text=True, errors="replace")
        if done.returncode != 0:
            return None, done.stderr.strip().splitlines()[-1:]
        return [r for r in map(json.loads, path.read_text().splitlines()) if "lm_loss" in r], None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megac", required=True)
    parser.add_argument("--peak", type=float, required=True, help="TFLOP/s in bf16")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("case", nargs="*")
    args = parser.parse_args()
    failed = False
    for name, case in (TINY if args.tiny else CASES).items():
        for precision, more in PRECISIONS.items():
            label = f"{name} {precision}"
            if args.case and not any(c in label for c in args.case):
                continue
            steps, error = steps_of(args.megac, [*flags_of(case, 4 if args.tiny else args.steps), *more])
            if error is not None:
                print(f"{label:40} failed: {' '.join(error)}", flush=True)
                failed = True
                continue
            tokens = statistics.median(s["tokens_per_second"] for s in steps[2:])
            tflops = statistics.median(s["model_tflops"] for s in steps[2:])
            share = f" MFU {100 * tflops / args.peak:5.1f} %" if precision == "bf16" else ""
            print(f"{label:40} {tokens:10.0f} tokens/s {tflops:8.1f} TFLOP/s{share}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
