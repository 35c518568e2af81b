#!/usr/bin/env python3
"""Faults planted in the training step on the CUDA backend, over the stand-ins, and what finds each.

`planted.py` plants each fault at each of its places in a run of two steps, and prints the table of README.md; it ends
with status 1 if one was neither found nor shown to change nothing. `--every K` takes one place in K. test_planted.py
takes a few."""
import argparse
import collections
import dataclasses
import pathlib
import re
import sys
import tempfile

import cuda_runs
from megac_runs import metrics

MODEL = (
    "--num-layers 2 --hidden-size 32 --num-attention-heads 4 --seq-length 16 --max-position-embeddings 16 "
    "--micro-batch-size 1 --global-batch-size 2 --vocab-size 61 --lr 1e-3 --lr-decay-style constant --mock-data "
    "--num-threads 1 --device cuda"
).split()
LAYOUTS = {
    "one": [],
    "tp": "--tp 2 --sequence-parallel --num-layers 1 --global-batch-size 1".split(),
    "pp": "--pp 2 --hidden-dropout 0.1".split(),
    "dp": "--dp 2 --swiglu --normalization RMSNorm --disable-bias-linear".split(),
    "zero": "--dp 2 --zero 3".split(),
    "offload": (
        "--num-layers 3 --cpu-offloading-num-layers 3 --cpu-offloading-weights --optimizer-cpu-offload --bf16 "
        "--global-batch-size 1"
    ).split(),
}
STEPS = 2


@dataclasses.dataclass
class Fault:
    name: str  # of planted.c, or of STANDIN_FAIL with a leading "!"
    text: str
    layouts: str
    finder: str  # who must find it
    harmless: str = ""  # what it means that nobody did, where that may be


RACE, NCCL, NUMBERS, MEGAC = "race detector", "NCCL's stand-in", "other numbers", "megac's own error"
REDUNDANT = "redundant: no race, same bits"
FAULTS = [
    Fault("skip-wait", "a stream does not wait for an event", "tp pp dp zero offload", RACE, REDUNDANT),
    Fault("skip-record", "an event is not recorded where it should be", "tp pp dp zero offload", RACE, REDUNDANT),
    Fault("skip-sync", "the host does not wait for a stream", "one tp pp", RACE, REDUNDANT),
    Fault("reuse-early", "a buffer is overwritten while it is communicated", "tp pp dp zero", RACE),
    Fault("pinned-early", "pinned memory is overwritten before it was copied", "one", RACE),
    Fault("shared-workspace", "two streams share a workspace", "one", RACE),
    Fault("host-touch", "the host reads memory of the device", "one", "guard of device memory"),
    Fault("swap-kind", "a rank receives where it should send", "pp", NCCL),
    Fault("swap-order", "two sends change places", "pp", NCCL),
    Fault("wrong-count", "one rank's count is too small by one", "tp pp dp zero", NCCL),
    Fault("skip-launch", "a launch fails and nobody looks", "one", NUMBERS, "the kernel's output was there already"),
    Fault("leak", "memory, a stream or an event is not given back", "tp", "report of leaks"),
    Fault("allocation", "device memory is allocated after step 1", "one", "count of allocations"),
    Fault("!*", "a call of CUDA's, cuBLASLt's or NCCL's functions fails", "one tp", MEGAC, "a call that may fail"),
    Fault("!launch", "a launch fails", "one", MEGAC),
    Fault("!async", "an operation fails on the device", "one", MEGAC),
]
BY_NAME = {f.name: f for f in FAULTS}

# Calls whose failure may change nothing: what gives back (megac warns, and goes on), the watch's questions, whose error
# the wait itself meets again on a device, and the search for an algorithm of a product with bias, which has another form.
MAY_FAIL = re.compile(r"Destroy|Free|Finalize|Abort|cudaEventQuery|AsyncError|cudaStreamSynchronize|AlgoGetHeuristic")

SIGNS = [  # in the order of what is most telling
    (RACE, r"MISUSE: (RACE: .*)"),
    ("guard of device memory", r"FAULT: (host code .*touched.*)"),
    (NCCL, r"FATAL: (MISMATCH .*|communicator .* is not complete after .*)"),
    ("report of leaks", r"MISUSE: (\d+ allocations leaked.*|never destroyed: .*)"),
    ("another report of a stand-in", r"(?:MISUSE|FATAL|FAULT): (.*)"),
    (MEGAC, r"megac[^:\n]*: error: (.*)"),
]


@dataclasses.dataclass
class Outcome:
    status: int
    numbers: list
    allocations: list
    stderr: str

    def found_by(self, clean):
        """(who, in which words) noticed that this run is not the clean one; ("", "") if nobody did."""
        for finder, sign in SIGNS:
            if said := re.search(sign, self.stderr):
                return finder, said.group(1)
        if self.status != 0:
            return "exit status", str(self.status)
        if self.numbers != clean.numbers:
            return NUMBERS, f"{self.numbers} instead of {clean.numbers}"
        if self.allocations != clean.allocations:
            return "count of allocations", f"{self.allocations} instead of {clean.allocations}"
        return "", ""

    def is_harmless(self, fault):
        """Whether nobody need notice this run of the fault."""
        if failed := re.search(r"NOTE: (\w+) fails", self.stderr):
            return bool(MAY_FAIL.search(failed.group(1)))
        return bool(fault.harmless)

    def calls(self, name):
        """How often what the fault is about was called in the run, on rank 0; of a run that counted."""
        failing = r"STANDIN_FAIL=\S+ was not reached, (\d+) calls"
        pattern = failing if name[0] == "!" else rf"planted\[0\].* {name}=(\d+)"
        return int(re.search(pattern, self.stderr).group(1))


def train(layout, plant=None, fail=None, deadline=20):
    """One run of a layout, with a fault or without: a plant of planted.c in the instrumented program, or a failure of
    the stand-in's. deadline: seconds until a wait for another rank is reported."""
    flags = LAYOUTS[layout]
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "metrics.jsonl"
        done = cuda_runs.run(
            ["train", *MODEL, *flags, "--train-iters", STEPS, "--metrics-file", path],
            ranks=1 if layout in ("one", "offload") else 2,
            expect=None,
            timeout=120,
            instrumented=fail is None,
            plant=plant,
            stats=1,
            deadline=deadline,
            **({"fail": fail} if fail else {}),
        )
        records = metrics(path) if path.exists() else []
    numbers = [(r["lm_loss"], r["grad_norm"]) for r in records if "lm_loss" in r]
    return Outcome(done.returncode, numbers, sorted(re.findall(r"(\d+) device allocations", done.stderr)), done.stderr)


def count(layout, name="skip-wait"):
    """A clean run that counts the calls of a fault."""
    clean = train(layout, fail=f"{name[1:]}:1000000@0") if name[0] == "!" else train(layout, plant="count")
    assert clean.status == 0 and len(clean.numbers) == STEPS, clean.stderr
    return clean


def plant(fault, layout, nth):
    """The fault at its nth place, on rank 0."""
    if fault.name[0] == "!":
        return train(layout, fail=f"{fault.name[1:]}:{nth}@0")
    deadline = 3 if fault.name.startswith("swap") else 20  # who waits for ever need not wait long
    return train(layout, plant=f"{fault.name}:{nth}@0", deadline=deadline)


def sweep(fault, every, missed):
    """Lines of the table for one fault."""
    for layout in fault.layouts.split():
        clean = count(layout, fault.name)
        finders = collections.Counter()
        places = range(1, clean.calls(fault.name) + 1, every)
        for nth in places:
            outcome = plant(fault, layout, nth)
            finder, words = outcome.found_by(clean)
            harmless = outcome.is_harmless(fault)
            finders[finder or (fault.harmless if harmless else "NOBODY")] += 1
            if not finder and not harmless:
                missed.append((fault.name, layout, nth))
            print(f"{fault.name} {layout} {nth}: {finder or 'nobody'}: {words[:160]}", file=sys.stderr, flush=True)
        by = ", ".join(f"{who} {n}" for who, n in finders.most_common())
        print(f"| {fault.text} | `{fault.name}` | {layout} | {len(places)} | {by} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, metavar="K", help="one place in K of each fault")
    parser.add_argument("names", nargs="*", metavar="FAULT", help="these faults only: " + " ".join(BY_NAME))
    args = parser.parse_args()
    missed = []
    print("| fault | name | layout | places | found by |\n|---|---|---|---|---|")
    for name in args.names or BY_NAME:
        sweep(BY_NAME[name], args.every, missed)
    if missed:
        print(f"found by nobody: {missed}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
