#!/usr/bin/env python3
"""Loss curves of 16-bit precisions beside fp32's: same model, data and seed; prints the largest and the mean deviation.

  tests/bench/loss_curves.py [--steps 300] [--layers 6] [--hidden 256] [--seq 128] [--batch 8] [--threads 1] [--text FILE]
                             [--precisions "--bf16" "--fp16 --initial-loss-scale 65536"] [--dir DIR]

The text is the King James Bible, as launch/quickstart.sh prints it (package bible-kjv), unless --text names another; bytes are
tokens. A deviation is |loss - fp32's loss| / fp32's loss of the same step. Losses of single steps are compared, not means over steps,
which would hide differences. Exit status 1 where a deviation exceeds --limit.
"""
import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
MEGAC = pathlib.Path(os.environ.get("MEGAC_BUILD", ROOT / "build")) / "megac"


def bible():
    """One verse a line, a chapter a document."""
    done = subprocess.run(["bible", "-f", "gen1:1-rev22:21"], capture_output=True, text=True, check=True)
    lines, last = [], None
    for line in done.stdout.splitlines():
        place, _, verse = line.partition(" ")
        chapter = place.split(":")[0]
        if last not in (None, chapter):
            lines.append("")
        lines.append(verse)
        last = chapter
    return "\n".join(lines) + "\n"


def prepare(text, folder):
    if not text:
        text = folder / "kjv.txt"
        text.write_text(bible())
    flags = "--input-format text --overwrite --tokenizer-type ByteTokenizer --append-eod --split-documents-on blank-line"
    subprocess.run([MEGAC, "prepare", "--input", text, "--output-prefix", folder / "text", *flags.split()], check=True,
                   stdout=subprocess.DEVNULL)  # fmt: skip


def curve(a, precision, folder):
    """Steps of a run: losses, NaN where one was skipped; and its median tokens/s."""
    metrics = folder / "m.jsonl"
    metrics.unlink(missing_ok=True)
    flags = (
        f"train --data-path {folder / 'text'} --split 1 --num-layers {a.layers} --hidden-size {a.hidden} "
        f"--num-attention-heads {a.hidden // 32} --seq-length {a.seq} --max-position-embeddings {a.seq} "
        f"--micro-batch-size {a.batch} --train-iters {a.steps} --lr 1e-3 --min-lr 1e-4 --lr-decay-style cosine "
        f"--lr-warmup-iters {a.steps // 20} --adam-beta2 0.95 --clip-grad 1.0 --attention-dropout 0 --hidden-dropout 0 "
        f"--device cpu --num-threads {a.threads} --log-interval 1000000 --metrics-file {metrics} {precision}"
    )
    done = subprocess.run([MEGAC, *flags.split()], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"megac {flags}\n{done.stdout}{done.stderr}")
    steps = [json.loads(line) for line in metrics.read_text().splitlines()]
    parameters = int(re.search(r"(\d+) parameters", done.stdout).group(1))
    losses = [float("nan") if s["skipped"] else s["lm_loss"] for s in steps]
    rates = sorted(s["tokens_per_second"] for s in steps)
    return parameters, losses, rates[len(rates) // 2]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, preset in dict(steps=300, layers=6, hidden=256, seq=128, batch=8, threads=1).items():
        p.add_argument(f"--{name}", type=int, default=preset)
    p.add_argument("--precisions", nargs="+", default=["--bf16", "--fp16 --initial-loss-scale 65536"])
    p.add_argument("--text", type=pathlib.Path)
    p.add_argument("--dir", type=pathlib.Path)
    p.add_argument("--limit", type=float, default=0.01, help="largest deviation allowed (default: 0.01)")
    a = p.parse_args()
    with tempfile.TemporaryDirectory() as tmp:
        folder = a.dir or pathlib.Path(tmp)
        prepare(a.text, folder)
        parameters, want, rate = curve(a, "", folder)
        print(f"{parameters} parameters, {a.steps} steps of {a.batch} x {a.seq} bytes")
        print(f"fp32: loss {want[0]:.4f} -> {want[-1]:.4f}, {rate:.0f} tokens/s", flush=True)
        worst = 0.0
        for precision in a.precisions:
            _, have, rate = curve(a, precision, folder)
            off = [abs(h - w) / w for h, w in zip(have, want, strict=True) if h == h]
            skipped = len(want) - len(off)
            worst = max(worst, max(off))
            print(
                f"{precision}: loss {have[0]:.4f} -> {have[-1]:.4f}, {rate:.0f} tokens/s; deviation {100 * max(off):.3f} % "
                f"at most (step {off.index(max(off)) + 1}), {100 * sum(off) / len(off):.4f} % on average; {skipped} skipped",
                flush=True,
            )
    if not worst <= a.limit:
        sys.exit(f"deviation {worst} exceeds {a.limit}")


if __name__ == "__main__":
    main()
